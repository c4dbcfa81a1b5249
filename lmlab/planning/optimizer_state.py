"""What an optimiser keeps for each parameter, found by letting it take a step on parameters of a few elements."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmlab.optim import OptimizerConfig
from lmlab.planning.weights import Weight

PRIMES = (5, 3, 7, 2, 11)
"""Sizes of the small parameters: no two alike and none 1, so that each size of a state tells which dimension it follows."""


class State(NamedTuple):
    """One tensor that an optimiser keeps for a parameter.

    Args:
        shape: Of the whole of it.
        itemsize: Bytes of an element.
    """

    shape: tuple[int, ...]
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole of it."""
        return prod(self.shape) * self.itemsize

    @property
    def is_counter(self) -> bool:
        """Whether it is a single number, such as Adam's count of steps, which every rank keeps."""
        return not self.shape


def optimizer_states(weights: Sequence[Weight], config: OptimizerConfig, dtype: torch.dtype) -> dict[str, tuple[State, ...]]:
    """What the optimiser will keep, by the name of the parameter.

    The same optimiser is built for parameters of the same names and numbers of dimensions, but a few elements each, and takes one step.
    Sizes of its state are then those of the small parameter, or 1, and stand for those of the large one. So whatever torch's version of an
    optimiser keeps is counted, and which parameters Muon leaves to AdamW is decided by its own rule.

    Args:
        weights: Frozen ones keep nothing.
        config: The optimiser.
        dtype: Of the parameters.
    """
    trained = [weight for weight in weights if weight.trainable]
    small = {weight.name: nn.Parameter(torch.ones(PRIMES[: len(weight.shape)], dtype=dtype)) for weight in trained}
    optimizer = config.build(small.items())
    for parameter in small.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        weight.name: tuple(
            _enlarged(value, weight.shape) for value in optimizer.state[small[weight.name]].values() if isinstance(value, Tensor)
        )
        for weight in trained
    }


def _enlarged(state: Tensor, shape: tuple[int, ...]) -> State:
    sizes: dict[int, int] = dict(zip(PRIMES, shape, strict=False))
    return State(tuple(sizes.get(size, size) for size in state.shape), state.itemsize)
