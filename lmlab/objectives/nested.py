"""Objectives inside an objective: how they are described, made and built on one backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from torch import nn

from lmlab.backbones import BackboneConfig
from lmlab.config import rebuild, to_plain
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
        except AttributeError as error:
            why = f"it cannot do with a {type(backbone).__name__}: {error}"
            raise ConfigError(
                f"{self.objective} cannot be trained inside another objective", where=f"{where}.objective", why=why, remedy="name another"
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
    object.__setattr__(child, "borrowed", (own,))
    child._is_built = True
    return own if backbone is None else backbone


def take_out(child: Objective) -> None:
    """Gives an objective the backbone that it shared, for its own: whoever it was inside of is used no more.

    Args:
        child: Built by `build_on`; of any other, nothing is changed.
    """
    shared = vars(child).pop("backbone", None)
    if shared is not None:
        del vars(child)["borrowed"]
        child.called_through = None
        child.backbone = shared


def kind_of_backbone(child: Objective) -> type[nn.Module] | None:
    """What kind of backbone an objective trains, before it is built; None where its class does not say.

    Args:
        child: The objective; its class annotates `backbone`.
    """
    kind = get_type_hints(type(child)).get("backbone")
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) and kind is not nn.Module else None
