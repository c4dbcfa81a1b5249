"""The passes of which an optimiser step consists: the seam where techniques that need several of them come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from lmlab.data.loader import Window
from lmlab.losses import Losses


class Step(NamedTuple):
    """What the passes of a micro-batch may know of the optimiser step they belong to.

    Args:
        window: Where the micro-batch stands.
        counts: Global number of terms of each part over the whole window.
        world_size: Ranks.
        sum_over_ranks: Adds a tensor up over all ranks, without gradient.
    """

    window: Window
    counts: dict[str, Tensor]
    world_size: int
    sum_over_ranks: Callable[[Tensor], Tensor]

    def total(self, losses: Losses) -> Tensor:
        """The share of a micro-batch in the loss of the step, ().

        Args:
            losses: What the objective made of it.
        """
        return losses.total(self.counts, self.window.size * self.world_size)


class Outcome(NamedTuple):
    """What a pass gives.

    Args:
        loss: (), to be differentiated.
        report: What is logged of it; None where the loss is a means only, such as a surrogate.
    """

    loss: Tensor
    report: Losses | None = None


Pass: TypeAlias = Callable[[], Outcome]
"""A forward pass. It is called once the pass before it has been differentiated, so it may look at gradients."""
