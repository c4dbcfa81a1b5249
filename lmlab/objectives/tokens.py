"""What objectives have in common whose labels are tokens of the vocabulary."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from lmlab.data.batch import Batch
from lmlab.heads import VocabularyHead
from lmlab.losses import Losses, Part
from lmlab.objectives.base import Objective


class TokenObjective(Objective):
    """Predicts tokens from hidden states.

    A leaf gives `states()`, and `rows_of()` and `row_labels()`, the states and tokens of the labelled positions. What else is made of
    the states, such as a distillation, can then share one forward pass with the loss.
    """

    part: ClassVar[str]
    """Name of the loss of the tokens among the parts."""

    head: VocabularyHead

    @abstractmethod
    def states(self, batch: Batch) -> Tensor:
        """The hidden states.

        Args:
            batch: What the collator made.

        Returns:
            (B, T, D).
        """

    @abstractmethod
    def rows_of(self, states: Tensor, batch: Batch) -> Tensor:
        """The states that predict the labelled positions, in the order of `row_labels`.

        Args:
            states: From `states`, (B, T, D).
            batch: The batch they are of.

        Returns:
            (N, D).
        """

    @abstractmethod
    def row_labels(self, batch: Batch) -> Tensor:
        """The tokens to predict.

        Args:
            batch: What the collator made.

        Returns:
            (N,) int64.
        """

    def losses(self, batch: Batch) -> Losses:
        """The loss of a micro-batch; see `losses_of`."""
        return self.losses_of(self.states(batch), batch)

    def losses_of(self, states: Tensor, batch: Batch, nats: Tensor | None = None) -> Losses:
        """Cross-entropy of the labelled positions, from states that are computed already.

        Args:
            states: From `states`, (B, T, D).
            batch: The batch they are of.
            nats: () the cross-entropy, if that is computed already as well.

        Returns:
            The part `part`, in nats; outside training `monitors` too.
        """
        rows, labels = self.rows_of(states, batch), self.row_labels(batch)
        part = Part(self.head.nats(rows, labels) if nats is None else nats, batch["counts"][self.part])
        return Losses({self.part: part}, {} if self.training else self.monitors(rows, labels, part))

    def monitors(self, rows: Tensor, labels: Tensor, part: Part) -> dict[str, Part]:
        """What is reported besides the loss: the share of labels that are predicted.

        Args:
            rows: (N, D).
            labels: (N,) int64.
            part: The loss.
        """
        return {"accuracy": Part((self.head(rows).argmax(-1) == labels).sum(), part.count)}
