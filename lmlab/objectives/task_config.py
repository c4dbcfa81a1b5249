"""How one of several objectives is described, and which objectives go together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lmlab.backbones.single import SingleStackBackbone
from lmlab.config import require
from lmlab.data.task_order import TaskSampling
from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.objectives.nested import ObjectiveConfig, kind_of_backbone
from lmlab.objectives.task_step import GradientsConfig
from lmlab.optim import kind_of
from lmlab.optim.weighting import WeightingConfig

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
        """Refuses a weight that is not a positive number."""
        super().__post_init__()
        rule = "a task that counts for nothing is not trained, and beside an infinite one no other is"
        require(0 < self.weight < math.inf, self, "weight", rule, "set a positive number, or leave it out")


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


def check_settings(tasks: Mapping[str, TaskConfig], sampling: TaskSampling, weighting: WeightingConfig, gradients: GradientsConfig) -> None:
    """Refuses settings that do not go together.

    Args:
        tasks: By name.
        sampling: Which tasks a step has.
        weighting: How much they count.
        gradients: What is made of their gradients.

    Raises:
        ConfigError: Naming the setting.
    """
    weighting.check_tasks(list(tasks), sampling.tasks_per_step)
    several, weighted = len(tasks) > 1, weighting.kind not in ("equal", "static")
    rule = "a single task is in every step"
    require(several or sampling.regime == "all", sampling, "regime", rule, "leave sampling out, or name another task")
    require(several or not weighted, weighting, "kind", "one task has nothing to be weighed against", "set it to equal")
    for task, config in tasks.items():
        used = weighting.kind != "equal" or config.weight == 1
        rule = "with `equal` weighting all weights are 1"
        require(used, config, "weight", rule, f"set weighting.kind to static, or leave tasks.{task}.weight out")
    why, remedy = "it compares the gradients of several tasks in one step", "set sampling.regime to all, with two tasks or more"
    for asked, where in (
        (gradients.rule == "pcgrad", "gradients.rule = pcgrad"),
        (gradients.cosines == "on", "gradients.cosines = on"),
        (weighting.kind == "gradnorm", "weighting.kind = gradnorm"),
    ):
        if asked and not (several and sampling.regime == "all"):
            raise ConfigError(f"{where} is not possible here", where=where.split(" ")[0], why=why, remedy=remedy)


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
