"""The layer map at work: notes what it needs of both networks in their forward passes, and compares it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lmlab.backbones.base import Backbone
from lmlab.backbones.features import Features, noting
from lmlab.data.batch import Batch
from lmlab.losses import Part
from lmlab.objectives.distillation_losses import attention_flops, feature_loss
from lmlab.objectives.layer_map import STATES, FeatureMatch, attention_of, check_map, real_tokens, resolve
from lmlab.objectives.projections import Projections, key_of


@dataclass(frozen=True)
class Matching:
    """A layer map between two networks.

    Args:
        matches: The map.
        teacher: The teacher's network, built.
        student: The student's.
        projections: Bring the student's states to the teacher's width.

    Raises:
        ConfigError: If the networks do not have what the map names.
    """

    matches: tuple[FeatureMatch, ...]
    teacher: Backbone
    student: Backbone
    projections: Projections | None

    def __post_init__(self) -> None:
        """Checks the map, and makes what projections are missing."""
        check_map(self.matches, self.teacher, self.student)
        if self.projections is not None:
            self.projections.make(self.matches, self.student.config.hidden_size, self.teacher.config.hidden_size)

    def noting(self, who: Literal["teacher", "student"]) -> AbstractContextManager[Features]:
        """Notes what the map needs of one of the two, in the pass inside a `with`.

        Args:
            who: Whose pass it is.
        """
        network = self.teacher if who == "teacher" else self.student
        hidden = {self._layer(m, who) for m in self.matches if m.feature == "hidden"}
        attention = {self._layer(m, who) for m in self.matches if m.feature not in STATES}
        return noting(network, hidden, attention, any(m.feature == "embedding" for m in self.matches))

    def parts(self, batch: Batch, teacher: Features, student: Features, counts: Mapping[str, Tensor]) -> dict[str, Part]:
        """The terms of the loss, by name.

        Args:
            batch: What both have read.
            teacher: What was noted of the teacher.
            student: What was noted of the student.
            counts: Terms of each.
        """
        found = {}
        for match in self.matches:
            real, _ = real_tokens(batch, match.side(batch, self._encoder_layers))
            layers = self._layer(match, "teacher"), self._layer(match, "student")
            total = feature_loss(match, layers, teacher, student, real, lambda states, m=match: self._project(m, states))
            found[match.name] = Part(total, counts[match.name], match.weight)
        return found

    def flops(self, batch: Batch) -> int:
        """FLOPs of comparing: matrices between tokens, of the teacher forward only, and projections.

        Args:
            batch: What the collator made; only shapes are read.
        """
        total = 0
        for match in self.matches:
            _, (size, length) = real_tokens(batch, match.side(batch, self._encoder_layers))
            if match.feature in STATES:
                rows = size if match.rows == "first" else size * length
                widths = self.student.config.hidden_size * self.teacher.config.hidden_size
                total += 6 * rows * widths if key_of(match) else 0
            else:
                total += attention_flops(match, attention_of(self.teacher), size, length)
                total += 3 * attention_flops(match, attention_of(self.student), size, length)
        return total

    @property
    def _encoder_layers(self) -> int:
        return self.student.config.num_layers

    def _layer(self, match: FeatureMatch, who: Literal["teacher", "student"]) -> int:
        network = self.teacher if who == "teacher" else self.student
        return resolve(match.teacher if who == "teacher" else match.student, len(network.blocks))

    def _project(self, match: FeatureMatch, states: Tensor) -> Tensor:
        return states if self.projections is None else self.projections.project(match, states)
