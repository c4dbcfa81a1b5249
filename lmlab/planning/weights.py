"""What a built network is made of: its tensors, without their values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import nn

from lmlab.errors import ConfigError
from lmlab.nn.block import Block
from lmlab.nn.frozen import Frozen

Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"]
"""Those of the Trainer whose bytes are known here."""

DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
ALIASES = {32: "32-true", 64: "64-true", 16: "16-mixed", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""What Lightning takes for the same."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter.

    Args:
        name: Its dotted name; a tied one has its first.
        shape: Of the whole of it.
        itemsize: Bytes of an element.
        trainable: Whether it gets a gradient.
        unit: What a sharding strategy gathers at once: the dotted name of a layer, or `` for all that is in none.
        is_table: Whether it is an embedding, which is looked up and not multiplied.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    trainable: bool
    unit: str = ""
    is_table: bool = False

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole of it."""
        return self.numel * self.itemsize

    def share(self, ranks: int) -> int:
        """Elements of the largest part, when the first dimension is divided among ranks, as FSDP2 does.

        Args:
            ranks: How many.
        """
        if not self.shape or ranks == 1:
            return self.numel
        return -(-self.shape[0] // ranks) * prod(self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Network:
    """All tensors that a rank would hold without any sharding.

    Args:
        weights: Parameters, each once.
        buffer_bytes: Of tensors that are no parameters; every rank has all of them.
        frozen: Parameters of guests, such as teachers: no gradient, no optimiser, and no strategy shards them.
    """

    weights: tuple[Weight, ...]
    buffer_bytes: int = 0
    frozen: tuple[Weight, ...] = ()

    @property
    def num_parameters(self) -> int:
        """All, guests apart."""
        return sum(weight.numel for weight in self.weights)

    @property
    def num_trainable(self) -> int:
        """Those that get a gradient."""
        return sum(weight.numel for weight in self.weights if weight.trainable)

    @property
    def num_embedding(self) -> int:
        """Those in tables of tokens, positions and segments; a head tied to one is in it."""
        return sum(weight.numel for weight in self.weights if weight.is_table)

    @property
    def num_frozen(self) -> int:
        """Those of guests."""
        return sum(weight.numel for weight in self.frozen)


def weight_dtype(precision: str | int | None) -> torch.dtype:
    """The dtype in which parameters are kept.

    Args:
        precision: Of the Trainer; mixed ones keep float32.

    Raises:
        ConfigError: If its bytes are not known here.
    """
    name = named_precision(precision)
    return torch.float32 if name in MIXED else DTYPES[name]


def named_precision(precision: str | int | None) -> str:
    """The Trainer's precision by its full name.

    Args:
        precision: As the Trainer takes it; None is 32-true.

    Raises:
        ConfigError: If its bytes are not known here.
    """
    name = ALIASES.get(precision, str(precision)) if precision is not None else "32-true"
    if name not in DTYPES and name not in MIXED:
        raise ConfigError(
            f"what precision {precision} takes cannot be predicted",
            where="trainer.precision",
            why="how many bytes its weights have is decided elsewhere",
            remedy=f"choose one of {', '.join([*DTYPES, *MIXED])}",
        )
    return name


def network_of(module: nn.Module) -> Network:
    """Lists what a built module holds.

    Args:
        module: On any device; on the meta device it costs nothing.
    """
    guests = [part for part in module.modules() if isinstance(part, Frozen)]
    seen = {id(parameter) for parameter in module.parameters()}
    frozen = [weight for guest in guests for weight in weights_of(guest.module) if weight.name]
    buffers = {id(b): b.numel() * b.itemsize for b in module.buffers() if id(b) not in seen}
    held = {id(b): b.numel() * b.itemsize for guest in guests for b in guest.module.buffers()}
    return Network(weights=tuple(weights_of(module)), buffer_bytes=sum({**buffers, **held}.values()), frozen=tuple(frozen))


def weights_of(module: nn.Module) -> Iterator[Weight]:
    """Each parameter of a module, once, with the layer it belongs to.

    Args:
        module: Built.
    """
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    units = [name for name, part in module.named_modules() if isinstance(part, Block)]
    for name, parameter in module.named_parameters():
        yield Weight(
            name=name,
            shape=tuple(parameter.shape),
            itemsize=parameter.itemsize,
            trainable=parameter.requires_grad,
            unit=next((unit for unit in units if name.startswith(f"{unit}.")), ""),
            is_table=id(parameter) in tables,
        )
