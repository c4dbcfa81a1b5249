"""Compiles the objective's forward pass."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer


class Compile(Callback):
    """Compiles the objective in place before training; parameter names stay as they are, unlike with `torch.compile(module)`.

    Args:
        mode: As in `torch.compile`.
        dynamic: Whether shapes may vary without a new compilation; `auto` finds out.
    """

    def __init__(
        self,
        mode: Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"] = "default",
        dynamic: Literal["auto", "always", "never"] = "auto",
    ) -> None:
        """Stores the settings."""
        self.mode, self.dynamic = mode, {"auto": None, "always": True, "never": False}[dynamic]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compiles; the work itself is done at the first batch."""
        pl_module.compile(mode=None if self.mode == "default" else self.mode, dynamic=self.dynamic)
