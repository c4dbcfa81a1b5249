"""How one of several objectives is described, and which objectives go together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lmlab.backbones.single import SingleStackBackbone
from lmlab.config import require
from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.objectives.nested import ObjectiveConfig, kind_of_backbone
from lmlab.optim import kind_of

RESERVED = ("training", "cosine")


@dataclass(frozen=True, kw_only=True)
class TaskConfig(ObjectiveConfig):
    """One of several objectives.

    Args:
        objective: Class path, for example `lmlab.objectives.mlm.MLM`.
        settings: Its own settings, for example `{mask_prob: 0.3}`.
        weight: Its share in the loss.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a weight that is not positive."""
        super().__post_init__()
        require(self.weight > 0, self, "weight", "a task that counts for nothing is not trained", "set a positive weight, or leave it out")


def check_names(tasks: Mapping[str, object]) -> None:
    """Refuses no tasks, and names that could not name a module, a metric and its parameters.

    Args:
        tasks: By name.

    Raises:
        ConfigError: Saying why.
    """
    if not tasks:
        raise ConfigError("there are no tasks", where="tasks", remedy="name one: {mlm: {objective: lmlab.objectives.mlm.MLM}}")
    for task in tasks:
        why = ""
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", task):
            why = "it names metrics and parameters, and so consists of letters, digits and underscores"
        elif hasattr(nn.ModuleDict, task) or task in RESERVED:
            why = "something else has this name"
        elif kind_of(f"tasks.{task}.x") != "matrix":
            why = f"by their names, all of its parameters would be taken for those of kind {kind_of(f'tasks.{task}.x')}"
        if why:
            raise ConfigError(f"a task cannot be called '{task}'", where=f"tasks.{task}", why=why, remedy="choose another name")


def check_sharing(tasks: Mapping[str, Objective]) -> None:
    """Refuses objectives that cannot be built on one backbone, before anything is built.

    Args:
        tasks: By name; the first one builds the backbone.

    Raises:
        ConfigError: Naming the two.
    """
    kinds = {task: kind for task, child in tasks.items() if (kind := kind_of_backbone(child)) is not None}
    for first, kind in list(kinds.items())[:1]:
        for task, other in kinds.items():
            lends = issubclass(kind, SingleStackBackbone) and issubclass(other, SingleStackBackbone)
            if not lends and not issubclass(kind, other):
                raise ConfigError(
                    f"'{first}' and '{task}' cannot share a backbone",
                    where=f"tasks.{task}",
                    why=f"one trains a backbone of kind {kind.__name__}, the other one of kind {other.__name__}",
                    remedy="put objectives of one stack together, or objectives of an encoder beside a decoder",
                )
