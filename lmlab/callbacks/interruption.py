"""Ctrl-C, SIGTERM and SIGUSR1: finish the step, save, and leave with the exit code the signal asks for."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmlab.callbacks.checkpoints import Checkpoints
from lmlab.data.loader import ASKS

log = logging.getLogger(__name__)


class Interruption(Callback):
    """Turns the first of these signals into a clean stop after the current window; a second one stops at once.

    A rank that a launcher looks after takes no notice of a second: where all processes of a job are signalled, as SLURM and systemd do, it
    hears of the same wish again from its launcher, which kills it anyway if it takes too long.

    Args:
        checkpoints: Who saves.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        """No signal has come."""
        self.checkpoints = checkpoints
        self.received: int | None = None  # SIGINT or SIGTERM
        self.listener = _Listener(self)
        """Belongs first among the callbacks, as this one belongs last: what happens before the first step may take a while."""
        self._previous: dict[int, Any] = {}
        self._has_launcher = "TORCHELASTIC_RUN_ID" in os.environ

    def listen(self, trainer: Trainer) -> None:
        """Takes the signals over; Lightning's own handler exits with code 0 and saves nothing.

        Args:
            trainer: Knows whether a signal came already.
        """
        if trainer.received_sigterm:
            self.received = signal.SIGTERM
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in ASKS}

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
            if trainer.is_global_zero:
                folder = shlex.quote(str(self.checkpoints.folder.parent))
                log.info("stopped after step %d and saved; to go on: lmlab fit --resume %s", trainer.global_step, folder)
            raise SystemExit(128 + received)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and not self._has_launcher:
            self._restore()
            raise KeyboardInterrupt
        if self.received is None and not self._has_launcher:
            os.write(2, b"\nthis step is finished, then saved; the signal once more stops at once\n")  # `print` may be at work already
        self.received = self.received or (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class _Listener(Callback):
    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interruption.listen(trainer)
