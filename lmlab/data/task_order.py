"""Which tasks a step trains on, when several objectives share a run: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmlab.config import check_choices, require
from lmlab.data.order import hash64, hash64_array

TASK_ORDER = 10  # stream of randomness
_STRIDE = 2**16  # steps looked at in one go
DRAWN = ("equal", "proportional", "temperature", "annealed")
"""Regimes that draw the task of a step."""


@dataclass(frozen=True, kw_only=True)
class TaskSampling:
    """Which tasks a step trains on.

    With `all`, every task is in every step, each with a global batch of its own. Otherwise a step is one task's: `round_robin` takes them
    in turn; the others draw one, `equal` with equal chances, `proportional` to the task's examples n, `temperature` with chances
    min(n, cap)^(1/T). With `annealed`, 1/T moves linearly, from that of `temperature` to that of `final_temperature`.

    Args:
        regime: Rule.
        temperature: T, of `temperature` and at the beginning of `annealed`: 1 is proportional, a large one is equal.
        final_temperature: T at the end of `annealed`.
        final_at_examples: Examples of the run, all tasks together, after which `annealed` has its final temperature.
        cap: More examples than these do not make a task likelier; None for no cap.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 3.5.2 (proportional with a limit K, temperature,
    equal); Stickland & Murray 2019, "BERT and PALs", section 4.1 (annealed: the exponent falls linearly).
    """

    regime: Literal["all", "round_robin", "equal", "proportional", "temperature", "annealed"] = "all"
    temperature: float | None = None
    final_temperature: float | None = None
    final_at_examples: int | None = None
    cap: int | None = None

    def __post_init__(self) -> None:
        """Refuses unknown regimes, impossible values, and settings that the regime does not read."""
        check_choices(self)
        annealed = self.regime == "annealed"
        self._belongs("temperature", annealed or self.regime == "temperature", "required")
        self._belongs("final_temperature", annealed, "required")
        self._belongs("final_at_examples", annealed, "required")
        self._belongs("cap", self.regime in ("proportional", "temperature", "annealed"), "optional")
        for field in ("temperature", "final_temperature"):
            value = getattr(self, field)
            require(value is None or value > 0, self, field, "a temperature is positive", "1 is proportional sampling")
        for field in ("final_at_examples", "cap"):
            value = getattr(self, field)
            require(value is None or value >= 1, self, field, "it is a number of examples", "set 1 or more, or leave it out")

    def _belongs(self, field: str, read: bool, need: Literal["required", "optional"]) -> None:
        given = getattr(self, field) is not None
        require(read or not given, self, field, f"the regime `{self.regime}` does not read it", "leave it out, or choose another regime")
        require(given or not read or need == "optional", self, field, f"the regime `{self.regime}` needs it", "set it")

    @property
    def tasks_per_step(self) -> Literal["all", "one"]:
        """Whether a step has all tasks or one."""
        return "all" if self.regime == "all" else "one"


@dataclass(frozen=True, kw_only=True)
class TaskOrder:
    """The tasks of each window of a run, and how far each task has come: no state is needed to know either.

    Args:
        sampling: The rule.
        sizes: Examples of each task.
        global_size: Examples of a task in one of its windows, over all ranks.
        seed: Of the run.
    """

    sampling: TaskSampling
    sizes: tuple[int, ...]
    global_size: int
    seed: int

    @property
    def examples_per_window(self) -> int:
        """Examples of all tasks in a window, over all ranks."""
        return self.global_size * (len(self.sizes) if self.sampling.regime == "all" else 1)

    def chances(self, windows: np.ndarray) -> np.ndarray:
        """How likely each task is.

        Args:
            windows: (W,) int64.

        Returns:
            (W, number of tasks) float64, each row of sum 1; of the regimes that draw.
        """
        sampling = self.sampling
        sizes = np.minimum(np.array(self.sizes, np.float64), np.inf if sampling.cap is None else sampling.cap)
        exponents = np.full(len(windows), {"equal": 0.0, "proportional": 1.0}.get(sampling.regime, 1 / (sampling.temperature or 1)))
        if sampling.final_temperature is not None and sampling.final_at_examples is not None:
            share = np.minimum(1.0, windows * self.examples_per_window / sampling.final_at_examples)
            exponents += share * (1 / sampling.final_temperature - exponents)
        chances = (sizes / sizes.max()) ** exponents[:, None]
        return chances / chances.sum(1, keepdims=True)

    def drawn(self, windows: np.ndarray) -> np.ndarray:
        """The task of each window, in the regimes that have one.

        Args:
            windows: (W,) int64.

        Returns:
            (W,) int64 indices into `sizes`.
        """
        if self.sampling.regime == "round_robin":
            return windows % len(self.sizes)
        bits = hash64_array(windows, hash64(self.seed, TASK_ORDER)) >> np.uint64(11)  # 53 of them, as many as a float64 holds
        uniform = bits.astype(np.float64) * 2.0**-53
        passed = uniform[:, None] >= self.chances(windows).cumsum(1)
        return np.minimum(passed.sum(1), len(self.sizes) - 1)  # a sum of chances may fall short of 1 by rounding

    def tasks(self, window: int) -> Sequence[int]:
        """The tasks of one window.

        Args:
            window: Running number of the window, which is the optimiser step.
        """
        return range(len(self.sizes)) if self.sampling.regime == "all" else self.drawn(np.array([window])).tolist()

    def done(self, window: int) -> list[int]:
        """How many of the windows before this one each task was in: its own running position.

        Args:
            window: Running number of the window.
        """
        if self.sampling.regime == "all":
            return [window] * len(self.sizes)
        total = np.zeros(len(self.sizes), np.int64)
        for first in range(0, window, _STRIDE):
            total += np.bincount(self.drawn(np.arange(first, min(window, first + _STRIDE))), minlength=len(self.sizes))
        return total.tolist()
