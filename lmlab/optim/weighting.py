"""Settings of how much each task counts in a loss of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from lmlab.config import check_choices, require
from lmlab.errors import ConfigError, nearest
from lmlab.optim.task_weights import (
    DynamicAverage,
    GradNorm,
    RandomWeights,
    Scheduled,
    TaskWeights,
    Uncertainty,
    interpolated,
)

OF_KIND = {"schedule": "scheduled", "temperature": "dwa", "period": "dwa", "alpha": "gradnorm", "lr": "gradnorm"}
"""Which kind reads a setting."""

DEFAULTS = {"temperature": 2.0, "period": 50, "alpha": 1.5, "lr": 0.025}
"""What a setting that is left at None stands for. Liu et al. 2019, section 3.2 (temperature); Chen et al. 2018, section 5 (alpha)."""


@dataclass(frozen=True, kw_only=True)
class WeightingConfig:
    """How the factor of each task in the loss is found; it multiplies the weight that the task was given.

    Args:
        kind: `equal`: factors are 1, and so must weights be; `static`: factors are 1; `scheduled`: piecewise linear over the budget;
            `uncertainty`: learned, by the noise of each task; `dwa`: by how fast each loss falls; `gradnorm`: so that all tasks pull on the
            shared layers according to their progress; `random`: drawn anew in every step.
        schedule: For `scheduled`, by task: points (share of the budget, factor), from share 0 to share 1. Tasks not named keep 1.
        temperature: For `dwa`: 2; a larger one makes factors more alike.
        period: For `dwa`: optimiser steps over which a loss is averaged, 50. The paper has epochs.
        alpha: For `gradnorm`: 1.5; how strongly a task that lags behind is helped.
        lr: For `gradnorm`: 0.025; how far factors move in a step.
    """

    kind: Literal["equal", "static", "scheduled", "uncertainty", "dwa", "gradnorm", "random"] = "equal"
    schedule: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    temperature: float | None = None
    period: int | None = None
    alpha: float | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        """Refuses unknown kinds, impossible values, and settings that the kind does not read."""
        check_choices(self)
        for name, kind in OF_KIND.items():
            unused = getattr(self, name) in (None, {})
            require(self.kind == kind or unused, self, name, f"`{self.kind}` does not read it", f"leave it out, or set kind to {kind}")
        for name in ("temperature", "period", "lr"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, self, name, "it is a positive number", f"{DEFAULTS[name]} is the default")
        require(self.alpha is None or 0 <= self.alpha < math.inf, self, "alpha", "it is not negative", "1.5 is the default")
        require(
            self.period is None or self.period == int(self.period), self, "period", "it is a whole number of steps", "50 is the default"
        )
        require(self.kind != "scheduled" or bool(self.schedule), self, "schedule", "`scheduled` follows it", "give points for a task")
        for task, points in self.schedule.items():
            self._check_points(task, points)

    def _check_points(self, task: str, points: Sequence[tuple[float, float]]) -> None:
        shares = [share for share, _ in points]
        where = f"weighting.schedule.{task}"
        if not shares or shares[0] != 0 or shares[-1] != 1 or not all(a < b for a, b in pairwise(shares)):
            raise ConfigError(
                f"the schedule of '{task}' goes over {shares}, not from 0 to 1",
                where=where,
                why="a schedule says what holds from the beginning of the budget to its end",
                remedy="for example [[0, 1.0], [0.5, 1.0], [1, 0.1]]",
            )
        if not all(0 <= factor < math.inf for _, factor in points):
            raise ConfigError(
                f"the schedule of '{task}' has a factor that is negative or no number", where=where, remedy="0 turns a task off"
            )

    def setting(self, name: str) -> float:
        """A setting, or what it stands for at None.

        Args:
            name: Of the setting.
        """
        value = getattr(self, name)
        return DEFAULTS[name] if value is None else value

    def check_tasks(self, tasks: Sequence[str], per_step: Literal["all", "one"] = "all") -> None:
        """Refuses a schedule of tasks that are not there, or that leaves steps without one.

        Args:
            tasks: Names of all tasks.
            per_step: Whether a step has all of them, or one.
        """
        for task, points in self.schedule.items():
            where = f"weighting.schedule.{task}"
            if task not in tasks:
                raise ConfigError(f"there is no task '{task}'", where=where, remedy=nearest(task, tasks))
            if per_step == "one" and any(not a and not b for (_, a), (_, b) in pairwise(points)):
                raise ConfigError(
                    f"'{task}' has steps of its own while its factor is 0",
                    where=where,
                    why="nothing would be learned in them",
                    remedy="set sampling.regime to all, or keep the factor above 0",
                )
        if set(self.schedule) == set(tasks):
            for share in sorted({share for points in self.schedule.values() for share, _ in points}):
                if not any(interpolated(points, share) for points in self.schedule.values()):
                    raise ConfigError(
                        f"all factors are 0 at {share:g} of the budget",
                        where="weighting.schedule",
                        why="nothing would be learned there",
                        remedy="leave one task on",
                    )

    def build(self, tasks: Sequence[str]) -> TaskWeights:
        """Makes the factors.

        Args:
            tasks: Names of all tasks.
        """
        kinds: dict[str, type[TaskWeights]] = {
            "equal": TaskWeights,
            "static": TaskWeights,
            "scheduled": Scheduled,
            "uncertainty": Uncertainty,
            "dwa": DynamicAverage,
            "gradnorm": GradNorm,
            "random": RandomWeights,
        }
        return kinds[self.kind](self, tasks)
