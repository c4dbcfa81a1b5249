"""Keeps an exponential moving average of the weights, and validates with it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmlab.optim import EMAConfig, ExponentialMovingAverage


class WeightAveraging(Callback):
    """Averages the weights after every optimiser step; validation and the final weights are the average's.

    Lightning's own averaging copies the whole module, which does not shard.

    Args:
        decay: Share of the old average that stays at each step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        """Nothing is averaged yet."""
        self.config = EMAConfig(decay=decay)
        self.average: ExponentialMovingAverage | None = None
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the present weights, or from a checkpoint's average; sharded weights are restored after `on_fit_start`."""
        self.average = ExponentialMovingAverage(pl_module, self.config)
        if self._state is not None:
            self.average.load_state_dict(self._state)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Takes in the weights after a step."""
        if batch["window"].is_last and self.average is not None:
            self.average.update()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average in place of the weights."""
        if self.average is not None and not trainer.sanity_checking:
            self.average.swap_in()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the weights back; checkpoints are written later, because Lightning calls their callbacks last."""
        if self.average is not None:
            self.average.swap_out()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the model."""
        if self.average is not None:
            self.average.swap_in()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the averages where `lmlab.load` finds them: they are what was validated."""
        if self.average is not None:
            is_sharded = getattr(trainer.strategy, "checkpoint", "file") == "sharded"
            checkpoint["lmlab_average"] = self.average.state_dict("parts" if is_sharded else "whole")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps a checkpoint's average until the weights are there."""
        self._state = checkpoint.get("lmlab_average")
