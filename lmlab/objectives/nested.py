"""Objectives inside an objective: how they are described, made and built on one backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lmlab.backbones import BackboneConfig
from lmlab.config import rebuild, to_plain
from lmlab.data.batch import Batch
from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.tokenizer import Tokenizer

FROM_PARENT = ("tokenizer", "backbone", "optimizer", "schedule")
"""What an objective inside another is given by it."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """An objective inside another one, which gives it tokenizer and backbone.

    Args:
        objective: Class path, for example `lmlab.objectives.mlm.MLM`.
        settings: Its own settings, for example `{mask_prob: 0.3}`.
    """

    objective: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses settings that are the parent's to give."""
        for key in FROM_PARENT:
            if key in self.settings:
                raise ConfigError(
                    f"{self.objective} cannot have a {key} of its own here",
                    where=f"settings.{key}",
                    why="objectives inside another share its tokenizer, backbone, optimizer and schedule",
                    remedy=f"set {key} of the objective around it",
                )

    @classmethod
    def of(cls, given: ObjectiveConfig | Objective | Mapping[str, Any]) -> ObjectiveConfig:
        """The description of an objective that is given in any way.

        Args:
            given: A description, its JSON form, or an objective, whose tokenizer, backbone, optimizer and schedule are then not used.
        """
        if isinstance(given, ObjectiveConfig):
            return given
        if isinstance(given, Objective):
            recipe = given.recipe(without=FROM_PARENT)
            return cls(objective=recipe["class_path"], settings=recipe["init_args"])
        return cls(**given)

    def make(self, tokenizer: Tokenizer, backbone: BackboneConfig, where: str) -> Objective:
        """Makes the objective; nothing is built yet.

        Args:
            tokenizer: The parent's.
            backbone: The parent's.
            where: The setting that holds this description, for messages.

        Raises:
            ConfigError: If it is no objective, may not be named, or has no such setting.
        """
        try:
            made = rebuild(
                {"class_path": self.objective, "init_args": {**to_plain(self.settings), "tokenizer": tokenizer, "backbone": backbone}}
            )
        except ConfigError as error:
            raise ConfigError(error.what, where=f"{where}: {error.where}".rstrip(": "), why=error.why, remedy=error.remedy) from error
        except TypeError as error:
            raise ConfigError(
                f"{self.objective} cannot be made", where=f"{where}.settings", why=str(error), remedy="set what is missing"
            ) from error
        if not isinstance(made, Objective):
            raise ConfigError(f"{self.objective} is no objective", where=where, remedy="name a class such as lmlab.objectives.mlm.MLM")
        return made


def build_on(child: Objective, backbone: nn.Module | None) -> nn.Module:
    """Builds an objective inside another, on the backbone they share.

    The shared backbone is the parent's to register: the child uses it without owning it, so that each parameter appears once in a
    state dict, under the parent's name.

    Args:
        child: Not built yet; it keeps what is its own, such as heads.
        backbone: The shared one; None if this child is the first, and makes it.

    Returns:
        The shared backbone.
    """
    child.build(backbone)
    own = child._modules.pop("backbone", None)
    if own is None:
        raise ConfigError(f"{type(child).__name__} has no backbone to share", where="objective", remedy="train it by itself")
    object.__setattr__(child, "backbone", own)
    child._is_built = True
    return own if backbone is None else backbone


def renamed(child: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Names of parts and monitors inside a parent: `child/name`, or `child` alone where the two are the same.

    Args:
        child: Name of the child.
        names: By the child's own names.
    """
    return {child if name == child else f"{child}/{name}": value for name, value in names.items()}


def nested_batch(batches: Mapping[str, Batch]) -> Batch:
    """One batch of the batches of several objectives.

    Args:
        batches: By the name of the objective.

    Returns:
        Batch with `tasks`, the batches by name, and the sums of their accounts.
    """
    counts = {name: count for child, batch in batches.items() for name, count in renamed(child, batch["counts"]).items()}
    tokens = sum(batch["tokens"] for batch in batches.values())
    labelled = sum(b["num_labelled"] if "num_labelled" in b else sum(b["counts"].values()) for b in batches.values())
    return {"tasks": dict(batches), "counts": counts, "tokens": tokens, "num_labelled": labelled}
