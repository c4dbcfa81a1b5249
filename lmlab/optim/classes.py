"""From the name of an optimizer to its class. A name is looked up where everything is loaded already, and never imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from lmlab.errors import ConfigError, nearest

NAMES = {"adamw": "AdamW", "muon": "Muon", "adafactor": "Adafactor", "lion": None, "sgd": "SGD"}
"""Short names, and the class of `torch.optim` that does the arithmetic; for muon that of its matrices."""

PREFIX = "torch.optim."
"""Where a class path may point."""

UNFIT = {
    "LBFGS": "it takes no parameter groups and a closure it calls many times",
    "SparseAdam": "it takes sparse gradients only",
    "Muon": "it takes matrices only; `muon` gives it those, and AdamW the rest",
}
"""Classes of `torch.optim` that are not for a network as it is, and why."""


def class_named(name: str) -> type[Optimizer] | None:
    """The class of `torch.optim` that a name stands for.

    Args:
        name: A short name or a class path.

    Returns:
        The class; None for `lion`, which is not torch's.

    Raises:
        ConfigError: For anything else.
    """
    if name == "lion":
        return None
    public = {n: c for n in dir(torch.optim) if inspect.isclass(c := getattr(torch.optim, n)) and issubclass(c, Optimizer)}
    is_path = name.startswith(PREFIX)
    key = name.removeprefix(PREFIX) if is_path else NAMES.get(name)
    if key in public and not (is_path and key in {"Optimizer", *UNFIT}):
        return public[key]
    choices = [PREFIX + n for n in public if n not in {"Optimizer", *UNFIT}] if is_path else list(NAMES)
    raise ConfigError(
        f"there is no optimizer '{name}'",
        where="optimizer.name",
        why=UNFIT.get(key or "") or f"it is one of {', '.join(NAMES)}, or a class of torch.optim by its full name",
        remedy=nearest(name, choices),
    )


def load_class(name: str) -> Callable[..., Optimizer]:
    """The class itself, Lion's library included.

    Args:
        name: A short name or a class path.

    Raises:
        ConfigError: If there is none, or Lion's library is not installed.
    """
    cls = class_named(name)
    if cls is not None:
        return cls
    try:
        from lion_pytorch import Lion
    except ImportError as error:
        raise ConfigError("lion is not installed", where="optimizer.name", why=str(error), remedy="pip install lion-pytorch") from error
    return Lion


def arguments_of(name: str) -> set[str]:
    """Names of the arguments a class takes; Lion's are written down, so that a config can be checked without its library.

    Args:
        name: A short name or a class path.
    """
    cls: Any = class_named(name)
    return {"params", "lr", "betas", "weight_decay"} if cls is None else set(inspect.signature(cls).parameters)
