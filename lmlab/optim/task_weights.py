"""How much each task counts in a loss of several: on a schedule, learned, or found from how the tasks get on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.data.order import rng

if TYPE_CHECKING:
    from lmlab.optim.weighting import WeightingConfig

RANDOM_WEIGHTS = 13  # stream of randomness
SMALLEST_FACTOR = 1e-3  # of gradnorm: a factor that reached zero would have no gradient norm to recover by


def interpolated(points: Sequence[tuple[float, float]], share: float) -> float:
    """The value of a piecewise-linear function.

    Args:
        points: (place, value), places ascending.
        share: Where to read it.
    """
    return float(np.interp(share, [at for at, _ in points], [value for _, value in points]))


class Seen(NamedTuple):
    """What a step showed of the tasks it had.

    Args:
        losses: By task, the mean over the step, without the task's weight and factor.
        norms: By task, the norm of the gradient of the last shared layer, weight and factor included; empty unless they are needed.
    """

    losses: dict[str, float]
    norms: dict[str, float]


class TaskWeights(nn.Module):
    """Factors of the tasks in the loss; all 1, unless a subclass finds better ones.

    Args:
        config: Of the kind.
        tasks: Names of all tasks.
    """

    is_dynamic = False
    is_learned = False
    observes = False
    needs_norms = False

    def __init__(self, config: WeightingConfig, tasks: Sequence[str]) -> None:
        super().__init__()
        self.config, self.tasks = config, tuple(tasks)

    def begin(self, progress: float, draw: int) -> None:
        """Finds the factors of a step.

        Args:
            progress: Share of the budget that is spent in the middle of the step.
            draw: Random bits of the step.
        """

    def factor(self, task: str) -> float | Tensor:
        """The factor of a task in this step: a number, or a () tensor.

        Args:
            task: Its name.
        """
        return 1.0

    def penalty(self, task: str) -> Tensor | None:
        """What is added to the loss for a factor to be learned, (); None unless it is.

        Args:
            task: Its name.
        """
        return None

    def end(self, seen: Seen) -> None:
        """Learns from a step.

        Args:
            seen: What it showed.
        """

    def parameters_of(self, task: str) -> list[nn.Parameter]:
        """Parameters of a task's factor.

        Args:
            task: Its name.
        """
        return []

    def memory(self) -> dict[str, list[float]]:
        """What is to be written into a checkpoint, besides parameters."""
        return {}

    def recall(self, memory: Mapping[str, list[float]]) -> None:
        """Takes up what a checkpoint has.

        Args:
            memory: From `memory`.
        """


class Scheduled(TaskWeights):
    """Factors that are piecewise-linear functions of the progress through the budget: which loss counts changes as training goes on.

    Source: the idea of a schedule over tasks is Kiperwasser & Ballesteros 2018, "Scheduled Multi-Task Learning: From Syntax to
    Translation", section 3; they schedule how often a task is drawn, which in the mean over many steps weighs its loss.
    """

    is_dynamic = True

    def __init__(self, config: WeightingConfig, tasks: Sequence[str]) -> None:
        super().__init__(config, tasks)
        self._progress = 0.0

    def begin(self, progress: float, draw: int) -> None:
        """Notes the progress."""
        self._progress = progress

    def factor(self, task: str) -> float:
        """Read off the schedule."""
        points = self.config.schedule.get(task)
        return 1.0 if points is None else interpolated(points, self._progress)


class Uncertainty(TaskWeights):
    """Factors 1 / (2 sigma^2), learned with s = log sigma^2 in place of the noise sigma: the loss is the sum of L / (2 e^s) + s / 2.

    Source: Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses", section 3.2, equation 7, and its remark on
    learning the log variance.
    """

    is_dynamic = True
    is_learned = True

    def __init__(self, config: WeightingConfig, tasks: Sequence[str]) -> None:
        super().__init__(config, tasks)
        # sigma is a scale, and ends in it, so that it is neither decayed nor taken for a hidden matrix; at s = 0 factors are 1/2
        self.noise = nn.ModuleDict({task: _Noise() for task in tasks})

    def factor(self, task: str) -> Tensor:
        """(), differentiable."""
        return torch.exp(-self._log_variance(task)) / 2

    def penalty(self, task: str) -> Tensor:
        """Half of s, without which the noise would grow for ever."""
        return self._log_variance(task) / 2

    def parameters_of(self, task: str) -> list[nn.Parameter]:
        """Its s."""
        return list(self.noise[task].parameters())

    def _log_variance(self, task: str) -> Tensor:
        return self.noise[task].log_squared_scale.squeeze()  # type: ignore[operator]


class _Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_squared_scale = nn.Parameter(torch.zeros(1))


class RandomWeights(TaskWeights):
    """Factors drawn in every step: K times the softmax of K normal numbers, a function of the run's seed and the step.

    Source: Lin et al. 2022, "Reasonable Effectiveness of Random Weighting", section 3.2 (normal numbers, softmax). Their factors sum
    to 1; here they sum to K, as those of all other kinds do, so that learning rates carry over.
    """

    is_dynamic = True

    def __init__(self, config: WeightingConfig, tasks: Sequence[str]) -> None:
        super().__init__(config, tasks)
        self._factors = dict.fromkeys(tasks, 1.0)

    def begin(self, progress: float, draw: int) -> None:
        """Draws."""
        powers = np.exp(rng(draw, RANDOM_WEIGHTS).standard_normal(len(self.tasks)))
        self._factors = dict(zip(self.tasks, (len(powers) * powers / powers.sum()).tolist(), strict=True))

    def factor(self, task: str) -> float:
        """As drawn."""
        return self._factors[task]


class _Remembering(TaskWeights, ABC):
    """Factors that are found from earlier steps. They are numbers, not buffers, which reduced precision would round.

    Args:
        config: Of the kind.
        tasks: Names of all tasks.
    """

    is_dynamic = True
    observes = True

    def __init__(self, config: WeightingConfig, tasks: Sequence[str]) -> None:
        super().__init__(config, tasks)
        self.factors = np.ones(len(self.tasks))

    def factor(self, task: str) -> float:
        """As found at the end of the step before."""
        return float(self.factors[self.tasks.index(task)])

    def _row(self, values: Mapping[str, float]) -> np.ndarray:
        return np.array([values.get(task, 0.0) for task in self.tasks])

    @abstractmethod
    def end(self, seen: Seen) -> None: ...

    def memory(self) -> dict[str, list[float]]:
        """What is to be written into a checkpoint."""
        return {name: value.tolist() for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def recall(self, memory: Mapping[str, list[float]]) -> None:
        """Takes up what a checkpoint has."""
        for name, values in memory.items():
            setattr(self, name, np.array(values))


class DynamicAverage(_Remembering):
    """Factors by how much each loss fell from the period before last to the last: what falls slowly counts more.

    K exp(r / T) over the sum of exp(r / T), with r = L(t-1) / L(t-2), losses averaged over a period; 1 in the first two periods.

    Source: Liu et al. 2019, "End-to-End Multi-Task Learning with Attention", section 3.2, equation 7.
    """

    def __init__(self, config: WeightingConfig, tasks: Sequence[str]) -> None:
        super().__init__(config, tasks)
        self.sums, self.counts, self.last = (np.full(len(self.tasks), value) for value in (0.0, 0.0, np.nan))
        self.steps = np.zeros(1)

    def end(self, seen: Seen) -> None:
        """Adds a step up; at the end of a period, finds the factors of the next. A task that no step of a period had has rate 1."""
        self.sums += self._row(seen.losses)
        self.counts += self._row(dict.fromkeys(seen.losses, 1.0))
        self.steps += 1
        if self.steps[0] % self.config.setting("period"):
            return
        means = np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1), self.last)
        rates = means / self.last
        powers = np.exp(np.where(np.isfinite(rates), rates, 1.0) / self.config.setting("temperature"))
        self.factors = len(powers) * powers / powers.sum()
        self.last, self.sums, self.counts = means, np.zeros_like(means), np.zeros_like(means)


class GradNorm(_Remembering):
    """Factors that bring the gradient norms of all tasks on the last shared layer to a common scale, larger for tasks that lag behind.

    The norm of task i is to be the mean norm times r^alpha, where r is the task's loss as a share of its first, over the mean of these
    shares. The factors take a step against the gradient of the sum of absolute differences, the target held fixed; then they are scaled
    to a sum of K. The step is a plain one, in units of the mean norm, so that `lr` means the same whatever the size of the gradients.

    Source: Chen et al. 2018, "GradNorm", section 3, equation 2 and algorithm 1.
    """

    needs_norms = True

    def __init__(self, config: WeightingConfig, tasks: Sequence[str]) -> None:
        super().__init__(config, tasks)
        self.first = np.full(len(self.tasks), np.nan)

    def end(self, seen: Seen) -> None:
        """Takes the step."""
        losses, norms = self._row(seen.losses), self._row(seen.norms)
        self.first = np.where(np.isnan(self.first), losses, self.first)
        shares = losses / self.first
        targets = norms.mean() * (shares / shares.mean()) ** self.config.setting("alpha")
        slopes = np.sign(norms - targets) * norms / self.factors  # a norm is its factor times that of the bare loss
        moved = np.maximum(self.factors - self.config.setting("lr") * slopes / max(norms.mean(), np.finfo(float).tiny), SMALLEST_FACTOR)
        self.factors = len(moved) * moved / moved.sum()
