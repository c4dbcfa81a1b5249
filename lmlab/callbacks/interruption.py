"""Ctrl-C and SIGTERM: finish the step, save, and leave with the exit code the signal asks for."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmlab.callbacks.checkpoints import Checkpoints


class Interruption(Callback):
    """Turns the first SIGINT or SIGTERM into a clean stop after the current window; a second one stops at once.

    Args:
        checkpoints: Who saves.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        """No signal has come."""
        self.checkpoints = checkpoints
        self.received: int | None = None
        self.listener = _Listener(self)
        """Belongs first among the callbacks, as this one belongs last: what happens before the first step may take a while."""
        self._previous: dict[int, Any] = {}

    def listen(self, trainer: Trainer) -> None:
        """Takes the signals over; Lightning's own handler exits with code 0 and saves nothing.

        Args:
            trainer: Knows whether a signal came already.
        """
        if trainer.received_sigterm:
            self.received = signal.SIGTERM
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a whole window: if any rank got a signal, all save and stop."""
        if not batch["window"].is_last:
            return
        received = self.received or 0
        if trainer.world_size > 1:
            flag = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(flag, reduce_op="max"))  # type: ignore[arg-type]
        if received:
            self.received = received
            self.checkpoints.save(trainer, pl_module)
            self._restore()
            raise SystemExit(128 + received)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self._restore()
            raise KeyboardInterrupt
        self.received = number

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class _Listener(Callback):
    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interruption.listen(trainer)
