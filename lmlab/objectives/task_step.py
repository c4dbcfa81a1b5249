"""What an optimiser step of several tasks gathers over its passes, and what is made of it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from lmlab.config import check_choices
from lmlab.data.order import rng
from lmlab.losses import Part
from lmlab.objectives.passes import Outcome, Pass, Step
from lmlab.optim.gradient_rules import combined, cosines, pcgrad
from lmlab.optim.task_gradients import TaskGradients
from lmlab.optim.task_weights import Seen, TaskWeights

PROJECTION_ORDER = 14  # stream of randomness


@dataclass(frozen=True, kw_only=True)
class GradientsConfig:
    """What is made of the gradients of several tasks.

    Args:
        rule: `sum`, or `pcgrad`: where two gradients of the shared parameters oppose each other, each is freed from the part along the
            other before they are summed. Parameters of one task keep their own gradient.
        cosines: Whether the angles between the tasks' gradients are logged. `auto` does so with `pcgrad`, where they cost nothing, and
            with `gradnorm`; `on` costs a copy of the gradient per task, in the steps that are logged.
    """

    rule: Literal["sum", "pcgrad"] = "sum"
    cosines: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        """Checks the choices."""
        check_choices(self)


class TaskStep:
    """One optimiser step.

    Args:
        tasks: Names of all tasks.
        weights: Their factors.
        config: What is made of the gradients.
        backbone: What the tasks share.
        logs_cosines: Whether this step's angles are to be reported.
    """

    def __init__(
        self, tasks: Sequence[str], weights: TaskWeights, config: GradientsConfig, backbone: nn.Module, logs_cosines: bool
    ) -> None:
        self.losses: dict[str, Tensor] = {}
        self._learning: dict[str, Tensor] = {}
        self.weights, self.config, self.logs_cosines = weights, config, logs_cosines
        last: Sequence[nn.Module] = backbone.blocks if weights.needs_norms else ()  # type: ignore[assignment]
        self._last_layer = [p for layer in last[-1:] for p in layer.parameters() if p.requires_grad and p.ndim > 1]
        watches_all = config.rule == "pcgrad" or logs_cosines
        watched = [p for p in backbone.parameters() if p.requires_grad] if watches_all else self._last_layer
        self.gradients = TaskGradients(watched, tasks) if watched else None

    def after(self, task: str | None, one: Pass) -> Pass:
        """A pass that first takes away the gradient that was left by the pass before it.

        Args:
            task: Whose pass that was; None if there was none.
            one: The pass.
        """

        def taking() -> Outcome:
            if task is not None and self.gradients is not None:
                self.gradients.take(task)
            return one()

        return taking

    def begin(self, task: str, device: torch.device) -> None:
        """Notes that the step has a task.

        Args:
            task: Its name.
            device: Where its losses will be.
        """
        self.losses.setdefault(task, torch.zeros((), device=device))

    def note(self, task: str, loss: Tensor, learns_later: bool = False) -> None:
        """Adds up a task's own loss.

        Args:
            task: Its name.
            loss: The share of a micro-batch in it, without weight and factor.
            learns_later: Whether the task's factor is still to learn from it.
        """
        own = loss.detach()
        self.losses[task] = self.losses[task] + own
        if learns_later:
            self._learning[task] = self._learning[task] + own if task in self._learning else own

    def learning(self) -> list[tuple[str, Tensor]]:
        """Takes out the losses that factors are still to learn from."""
        taken, self._learning = list(self._learning.items()), {}
        return taken

    def settle(self, step: Step) -> dict[str, Part]:
        """Combines the gradients, and lets the factors learn; for the end of the last micro-batch.

        Args:
            step: Knows how to add up over ranks.

        Returns:
            The angles to report, if they are wanted.
        """
        norms: dict[str, float] = {}
        monitors: dict[str, Part] = {}
        if self.gradients is not None:
            tasks, gradients = self.gradients.tasks, self.gradients.reduced(step.sum_over_ranks, step.world_size)
            products = self.gradients.inner_products(gradients, step.sum_over_ranks)
            if self.weights.needs_norms:
                norms = self._norms(gradients, step)
            if self.config.rule == "pcgrad":
                self.gradients.give_back(combined(gradients, pcgrad(products, rng(step.window.draw, PROJECTION_ORDER))))
            else:
                self.gradients.give_back()
            if self.logs_cosines:
                angles, one = cosines(products).to(gradients[0][0].device, torch.float32), torch.ones(1, dtype=torch.int64)
                pairs = combinations(range(len(tasks)), 2)
                monitors = {f"cosine/{tasks[a]}-{tasks[b]}": Part(angles[a, b], one) for a, b in pairs}
            self.gradients = None  # not kept until the next step begins
        if self.weights.observes:
            losses = step.sum_over_ranks(torch.stack(list(self.losses.values()))).tolist()
            self.weights.end(Seen(dict(zip(self.losses, losses, strict=True)), norms))
        return monitors

    def _norms(self, gradients: Sequence[Sequence[Tensor]], step: Step) -> dict[str, float]:
        assert self.gradients is not None
        last = {id(p) for p in self._last_layer}
        places = [index for index, p in enumerate(self.gradients.parameters) if id(p) in last]
        squares = self.gradients.inner_products([[own[index] for index in places] for own in gradients], step.sum_over_ranks).diagonal()
        return dict(zip(self.gradients.tasks, squares.sqrt().tolist(), strict=True))
