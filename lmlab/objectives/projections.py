"""Learned matrices that bring a student's states to its teacher's width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.errors import ConfigError
from lmlab.nn.init import InitConfig, init_linear
from lmlab.objectives.layer_map import FeatureMatch

SHARED = "shared"


class Projections(nn.ModuleDict):
    """The projections of a layer map, by the name of the match, or `shared`.

    How wide the teacher is, is known when it is read, which a trained student does not need: so they are made then, or found in a
    checkpoint.

    Args:
        init: How fresh weights are drawn.
    """

    def __init__(self, init: InitConfig) -> None:
        super().__init__()
        self.init = init

    def make(self, matches: Sequence[FeatureMatch], student_size: int, teacher_size: int) -> None:
        """Draws those that are not there yet.

        Args:
            matches: The layer map.
            student_size: D of the student.
            teacher_size: D of the teacher.

        Raises:
            ConfigError: If those that are there were learned for another teacher.
        """
        for key in dict.fromkeys(key for match in matches if (key := key_of(match))):
            if key not in self:
                self[key] = nn.Linear(student_size, teacher_size, bias=False)
                init_linear(self[key], self.init)  # type: ignore[arg-type]
            elif self[key].out_features != teacher_size:
                why = f"its states have {teacher_size} channels, the run's projections make {self[key].out_features}"
                raise ConfigError("this is another teacher than the run's", where="teachers[0].run", why=why, remedy="name the run's own")

    def project(self, match: FeatureMatch, states: Tensor) -> Tensor:
        """The student's states as a match compares them.

        Args:
            match: Of the layer map.
            states: (..., D of the student).

        Returns:
            (..., D of the teacher).
        """
        key = key_of(match)
        return self[key](states) if key else states

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes what a checkpoint has and this has not."""
        for name, tensor in state_dict.items():
            key = name.removeprefix(prefix).removesuffix(".weight")
            if name.startswith(prefix) and name.endswith(".weight") and key not in self:
                self[key] = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, dtype=torch.float32)
        super()._load_from_state_dict(state_dict, prefix, *args)


def key_of(match: FeatureMatch) -> str | None:
    """Which projection a match uses; None for none.

    Args:
        match: Of the layer map.
    """
    return {"none": None, "linear": match.name, "shared": SHARED}[match.projection]
