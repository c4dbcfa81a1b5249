"""A module that is used but not trained: a teacher, a guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Holds a module as a guest: it moves with its owner, and is otherwise none of the owner's.

    It stays in evaluation mode, has no gradient, is in no optimiser and no average, and is not written into a checkpoint, because
    it is in neither `parameters()` nor `state_dict()`.

    Args:
        module: The guest.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._guest = (module.requires_grad_(False).eval(),)  # in a tuple, so that it is not registered

    @property
    def module(self) -> Any:
        """The guest itself; call it inside `torch.no_grad()`."""
        return self._guest[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the guest without recording gradients."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Frozen:
        """Leaves the guest in evaluation mode."""
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self.module._apply(fn, recurse)
        return super()._apply(fn, recurse)
