"""Gradients of several tasks on the parameters they share, kept apart over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter


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
            By task, then by parameter; zero where a task has none.
        """
        filled = [
            [torch.zeros_like(p) if g is None else g for g, p in zip(self._apart[task], self.parameters, strict=True)]
            for task in self.tasks
        ]
        if world_size == 1:
            return filled
        sizes = [parameter.numel() for parameter in self.parameters]
        reduced = []
        for gradients in filled:
            # passes scale their loss by the number of ranks, because ranks are averaged in the end
            flat = sum_over_ranks(torch.cat([g.flatten() for g in gradients])) / world_size
            reduced.append([part.view_as(p) for part, p in zip(flat.split(sizes), self.parameters, strict=True)])
        return reduced

    def give_back(self, combined: Sequence[Tensor] | None = None) -> None:
        """Puts a gradient into the parameters.

        Args:
            combined: The same on all ranks; None for the sum of what was taken on this one.
        """
        for index, parameter in enumerate(self.parameters):
            gradient = self._together[index]
            parameter.grad = gradient if combined is None or gradient is None else combined[index].to(gradient.dtype)
