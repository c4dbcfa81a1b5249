"""Gradients of several tasks on the parameters they share, kept apart over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from lmlab.nn.sharded import like, num_copies, own_part
from lmlab.optim.gradient_rules import inner_products


class TaskGradients:
    """Takes the gradient of one task after the other away from the parameters, and gives their sum or another combination back.

    Args:
        parameters: The shared ones.
        tasks: Names of all tasks.
    """

    def __init__(self, parameters: Sequence[Parameter], tasks: Sequence[str]) -> None:
        self.parameters, self.tasks = list(parameters), tuple(tasks)
        self._apart: dict[str, list[Tensor | None]] = {task: [None] * len(self.parameters) for task in tasks}
        self._together: list[Tensor | None] = [None] * len(self.parameters)

    def take(self, task: str) -> None:
        """Takes what a pass of a task has left in the parameters' gradients.

        Args:
            task: Its name.
        """
        apart = self._apart[task]
        for index, parameter in enumerate(self.parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            kept, sum_so_far = apart[index], self._together[index]
            apart[index] = gradient.clone() if kept is None else kept.add_(gradient)
            # in the order of the passes, as autograd itself would have added them up: watching changes no bit
            self._together[index] = gradient if sum_so_far is None else sum_so_far.add_(gradient)
            parameter.grad = None

    def reduced(self, sum_over_ranks: Callable[[Tensor], Tensor], world_size: int) -> list[list[Tensor]]:
        """The gradient of each task over the whole step, the same on all ranks.

        Args:
            sum_over_ranks: Adds a tensor up over all ranks.
            world_size: Ranks.

        Returns:
            By task, then by parameter; zero where a task has none. Of sharded parameters, this rank's part.
        """
        filled = [
            [own_part(torch.zeros_like(p) if g is None else g) for g, p in zip(self._apart[task], self.parameters, strict=True)]
            for task in self.tasks
        ]
        if world_size == 1 or self.is_sharded:  # sharded ones were reduced when they were made
            return filled
        sizes = [parameter.numel() for parameter in self.parameters]
        reduced = []
        for gradients in filled:
            # passes scale their loss by the number of ranks, because ranks are averaged in the end
            flat = sum_over_ranks(torch.cat([g.flatten() for g in gradients])) / world_size
            reduced.append([part.view_as(p) for part, p in zip(flat.split(sizes), self.parameters, strict=True)])
        return reduced

    def inner_products(self, reduced: Sequence[Sequence[Tensor]], sum_over_ranks: Callable[[Tensor], Tensor]) -> Tensor:
        """The inner product of each pair of gradients, the same on all ranks.

        Args:
            reduced: From `reduced`, of all parameters or some.
            sum_over_ranks: Adds a tensor up over all ranks.

        Returns:
            (K, K) float64.
        """
        products = inner_products(reduced)
        return sum_over_ranks(products).cpu() / num_copies(self.parameters[0]) if self.is_sharded else products

    @property
    def is_sharded(self) -> bool:
        """Whether ranks hold parts of the parameters."""
        return any(isinstance(parameter, DTensor) for parameter in self.parameters)

    def give_back(self, combined: Sequence[Tensor] | None = None) -> None:
        """Puts a gradient into the parameters.

        Args:
            combined: As `reduced` gives gradients; None for the sum of what was taken on this rank.
        """
        for index, parameter in enumerate(self.parameters):
            gradient = self._together[index]
            parameter.grad = gradient if combined is None or gradient is None else like(gradient, combined[index].to(gradient.dtype))
