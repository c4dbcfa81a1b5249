"""Learning rate over a run, as a factor that depends on the progress through the budget and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

from torch.optim import Optimizer

from lmlab.config import check_choices, require
from lmlab.errors import CheckpointError

READ_BY = {
    "min_ratio": ("cosine", "linear", "inverse_sqrt", "wsd", "plateau"),
    "decay": ("wsd",),
    "decay_shape": ("wsd",),
    "plateau_factor": ("plateau",),
    "patience": ("plateau",),
    "threshold": ("plateau",),
}
"""Which kinds of schedule a setting has an effect on; elsewhere it must be left at its default."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the budget: a linear warm-up from zero, then one of six shapes.

    The clock is the share of the budget that is spent, not a number of steps: budgets in tokens, FLOPs or seconds do not know
    how many steps they will take, and the same run resumed, or spread over other devices, has the same clock.

    Args:
        kind: `cosine`: half a wave down to `min_ratio`. `linear`: a straight line down to it. `inverse_sqrt`: with the square
            root of warm-up over progress. `wsd`: constant, then down to `min_ratio` in the last `decay` of the budget.
            `constant`. `plateau`: constant, and multiplied by `plateau_factor` whenever `val/loss` stops falling.
        warmup: Share of the budget that the warm-up takes, in [0, 1).
        min_ratio: What the factor falls to, as a share of the full learning rate, in [0, 1].
        decay: Share of the budget that the decay of `wsd` takes, in (0, 1].
        decay_shape: `one_minus_sqrt` or `linear`, for `wsd`.
        plateau_factor: What a plateau multiplies the factor by, in (0, 1).
        patience: How many validations without a better loss are forgiven, for `plateau`.
        threshold: By what share of the best loss a loss must lie below it to be better, for `plateau`.

    Source: cosine: Loshchilov & Hutter 2017, "SGDR", equation 5, without restarts. inverse_sqrt: Vaswani et al. 2017, "Attention
    Is All You Need", equation 3. wsd: Hu et al. 2024, "MiniCPM", section 4.2; its 1-sqrt shape: Hägele et al. 2024, "Scaling Laws
    and Compute-Optimal Training Beyond Fixed Training Durations", section 3 (20 % of the budget is a good decay).
    """

    kind: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant", "plateau"] = "cosine"
    warmup: float = 0.05
    min_ratio: float = 0.1
    decay: float = 0.2
    decay_shape: Literal["one_minus_sqrt", "linear"] = "one_minus_sqrt"
    plateau_factor: float = 0.5
    patience: int = 2
    threshold: float = 1e-3

    def __post_init__(self) -> None:
        """Refuses shapes that do not fit into the budget, and settings that would have no effect."""
        check_choices(self)
        require(0 <= self.warmup < 1, self, "warmup", "it is a share of the budget", "set it to at least 0 and below 1")
        require(0 <= self.min_ratio <= 1, self, "min_ratio", "it is a share of the full learning rate", "set it between 0 and 1")
        require(0 < self.decay <= 1, self, "decay", "it is a share of the budget", "set it above 0 and at most 1")
        require(0 < self.plateau_factor < 1, self, "plateau_factor", "a plateau lowers the learning rate", "set it between 0 and 1")
        require(self.patience >= 0, self, "patience", "it counts validations", "set 0 or more")
        require(0 <= self.threshold < 1, self, "threshold", "it is a share of the best loss", "set it to at least 0 and below 1")
        if self.kind == "inverse_sqrt":
            require(self.warmup > 0, self, "warmup", "inverse_sqrt falls with warm-up over progress", "set it above 0, for example 0.05")
        if self.kind == "wsd":
            rule = "warm-up and decay together take no more than the budget"
            require(self.warmup + self.decay <= 1, self, "decay", rule, f"lower it to at most {1 - self.warmup:g}")
        for name, kinds in READ_BY.items():
            has_effect = self.kind in kinds or getattr(self, name) == getattr(type(self), name)
            rule = f"a schedule of kind {self.kind} does not read it"
            require(has_effect, self, name, rule, f"leave it out, or set kind to {' or '.join(kinds)}")

    def factor(self, progress: float) -> float:
        """What to multiply the learning rate by.

        Args:
            progress: Share of the budget that is spent, in [0, 1].

        Returns:
            A number in [0, 1]: 0 at the start if there is a warm-up, 1 at its end.
        """
        if progress < self.warmup:
            return progress / self.warmup
        if self.kind == "inverse_sqrt":
            return max(self.min_ratio, math.sqrt(self.warmup / progress))
        if self.kind in ("constant", "plateau"):
            return 1.0
        start = 1 - self.decay if self.kind == "wsd" else self.warmup
        share = min(1.0, max(0.0, (progress - start) / (1 - start)))
        if self.kind == "cosine":
            shape = (1 + math.cos(math.pi * share)) / 2
        elif self.kind == "wsd" and self.decay_shape == "one_minus_sqrt":
            shape = 1 - math.sqrt(share)
        else:
            shape = 1 - share
        return self.min_ratio + (1 - self.min_ratio) * shape

    def plateau_state(self) -> Plateau:
        """What a run has to remember beside the progress; for every kind but `plateau` its factor stays 1."""
        return Plateau(self)


class Plateau:
    """Lowers a factor when the validation loss stops falling, by the rule of `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Kept apart from the learning rate, which torch's class overwrites, so that it goes together with a warm-up.

    Args:
        config: `plateau_factor`, `patience`, `threshold`, and `min_ratio` as the floor.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        """Starts at 1."""
        self.config = config
        self.factor = 1.0
        """What to multiply the schedule's factor by."""
        self._best, self._num_bad = math.inf, 0

    def step(self, loss: SupportsFloat | None) -> None:
        """Takes in the result of a validation.

        Args:
            loss: `val/loss`; one that is not a number counts as no better. None, or another kind of schedule: nothing happens.
        """
        if self.config.kind != "plateau" or loss is None:
            return
        if float(loss) < self._best * (1 - self.config.threshold):
            self._best, self._num_bad = float(loss), 0
            return
        self._num_bad += 1
        if self._num_bad > self.config.patience:
            self.factor, self._num_bad = max(self.factor * self.config.plateau_factor, self.config.min_ratio), 0

    def state_dict(self) -> dict[str, float]:
        """Factor, best loss and count of bad ones, as plain numbers."""
        return {"factor": self.factor, "best": self._best, "num_bad": self._num_bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state.

        Raises:
            CheckpointError: If something is missing in it.
        """
        missing = {"factor", "best", "num_bad"} - set(state)
        if missing:
            raise CheckpointError(
                f"the plateau's state lacks {', '.join(sorted(missing))}", where="schedule", remedy="was it saved by another version?"
            )
        self.factor, self._best, self._num_bad = float(state["factor"]), float(state["best"]), int(state["num_bad"])


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Sets each group's learning rate to `factor` times its full one.

    Args:
        optimizer: One that `OptimizerConfig.build` made; `initial_lr` of a group is its full rate, the group's own scale included.
        factor: From a schedule.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
