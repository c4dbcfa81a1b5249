"""What an objective makes of a batch: sums and counts, divided once, over everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lmlab.errors import ConfigError

Means: TypeAlias = dict[str, "float | Tensor"]
"""Mean of each part and monitor: a number, or a tensor where the sum was one."""


class Part(NamedTuple):
    """One term of a loss, not yet normalised.

    Args:
        sum: () float, summed over its terms in this micro-batch; of a monitor, a tensor of any shape.
        count: (1,) int64, how many terms.
        weight: Its share in the total; a () or (1,) tensor may be learned.
    """

    sum: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  nobody counts the fields of a part
    weight: float | Tensor = 1.0


class Losses(NamedTuple):
    """What an objective makes of a batch.

    Args:
        parts: Terms of the loss. The total is the sum over parts of weight * sum / *global* count of that part.
        monitors: Ratios to report, such as accuracy; no gradient flows from them. None has the name of a part.
    """

    parts: dict[str, Part]
    monitors: dict[str, Part]

    def total(self, counts: Mapping[str, Tensor], num_passes: int = 1) -> Tensor:
        """The differentiated loss.

        Args:
            counts: Global number of terms of each part over the whole window, as far as the collator could know it.
            num_passes: Micro-batches of the window on all ranks together. A part that no collator knows, such as a penalty on
                weights, has one term in each of them.

        Returns:
            ().
        """
        terms = [
            part.weight * part.sum / counts[n].clamp(min=1) if n in counts else part.weight * part.sum / num_passes
            for n, part in self.parts.items()
        ]
        return torch.stack([t.squeeze() for t in terms]).sum()


class Tally:
    """Adds up sums and counts over micro-batches, so that a mean is taken once, over everything."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._weights: dict[str, float | Tensor] = {}

    def add(self, losses: Losses, is_filler: bool = False) -> None:
        """Takes in one micro-batch; keeps no graph and does not wait for the device.

        Args:
            losses: What the objective made of it.
            is_filler: Whether only its names count, so that all ranks add up the same table.

        Raises:
            ConfigError: If a part and a monitor have one name.
        """
        if both := losses.parts.keys() & losses.monitors.keys():
            raise ConfigError(f"'{min(both)}' is both a part and a monitor", where="losses", remedy="give one of them another name")
        for name, part in (losses.parts | losses.monitors).items():
            dtype = torch.float32 if part.sum.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
            row = torch.cat([part.sum.detach().to(dtype).flatten(), part.count.to(part.sum.device, dtype).flatten()])
            row = torch.zeros_like(row) if is_filler else row
            self._sums[name] = self._sums[name] + row if name in self._sums else row
            self._shapes[name] = part.sum.shape
        self._weights.update(
            {n: part.weight.detach() if isinstance(part.weight, Tensor) else part.weight for n, part in losses.parts.items()}
        )

    def means(self, reduce: Callable[[Tensor], Tensor], summary: Callable[[Means], Means] = dict) -> dict[str, float]:
        """Mean of each part and monitor, and the weighted total of the parts under `loss`; empties the tally.

        What had no terms at all has no mean: NaN, not a loss of zero that would pass for the best.

        Args:
            reduce: Sums a tensor over all ranks.
            summary: Makes of the means what is to be reported, see `Objective.summary`.
        """
        if not self._sums:
            return {}
        table = reduce(torch.cat(list(self._sums.values()))).cpu()
        means: Means = {}
        for name, row in zip(self._sums, table.split([len(row) for row in self._sums.values()]), strict=True):
            mean, shape = row[:-1] / row[-1] if row[-1] else torch.full_like(row[:-1], torch.nan), self._shapes[name]
            means[name] = mean.view(shape) if mean.numel() > 1 else mean.item()
        loss = sum(float(weight) * float(means[name]) for name, weight in self._weights.items())
        hidden = self._weights if len(self._weights) == 1 else {}  # the only part is the loss already
        self._sums, self._weights = {}, {}  # another window may have other parts
        return {"loss": loss, **{name: float(value) for name, value in summary(means).items() if name not in hidden}}
