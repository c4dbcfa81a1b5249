"""Stops a run before a loss that is no number reaches the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lmlab.errors import LabError
from lmlab.nn.sharded import norm_of


class FiniteGuard(Callback):
    """Ends the run when the loss or the gradient norm is NaN or infinite, before the step that would spoil the weights.

    Left alone, Lightning trains on and finishes with NaN weights.
    """

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Looks at the loss.

        Raises:
            LabError: If it is not finite.
        """
        if not torch.isfinite(loss):
            raise not_finite("loss", loss.item(), trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Looks at the gradients, by the norm of their norms.

        Raises:
            LabError: If one is not finite.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            norm = norm_of(gradients)
            if not torch.isfinite(norm):
                raise not_finite("gradient norm", norm.item(), trainer.global_step)


def not_finite(what: str, value: float, step: int) -> LabError:
    """What is said then.

    Args:
        what: The quantity.
        value: Its value.
        step: Optimiser steps that were taken before.
    """
    return LabError(
        f"the {what} is {value} at step {step}",
        why="the weights would be spoilt by this step; the last checkpoint is good",
        remedy="lower optimizer.lr, set trainer.gradient_clip_val: 1.0, or use trainer.precision: 32-true; then resume",
    )
