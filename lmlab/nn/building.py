"""Tells whoever wants to know of each block of a network as soon as it is built, while the next ones are not there yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from torch import nn

B = TypeVar("B", bound=nn.Module)

_TOLD: ContextVar[Callable[[nn.Module], None] | None] = ContextVar("told", default=None)


@contextmanager
def after_each_block(tell: Callable[[nn.Module], None] | None) -> Iterator[None]:
    """Networks built inside `with` hand over each block when its weights are drawn, so that it need not stay whole.

    Blocks are drawn one after the other from one stream of random numbers: `tell` must not draw, and then the network is the same.

    Args:
        tell: Called with each block, which it may change in place but not replace; None hands over nothing, as without `with`.
    """
    before = _TOLD.set(tell)
    try:
        yield
    finally:
        _TOLD.reset(before)


def built(block: B) -> B:
    """To be called by a stack with each block that it has made.

    Args:
        block: Its weights are drawn.

    Returns:
        The same.
    """
    tell = _TOLD.get()
    if tell is not None:
        tell(block)
    return block
