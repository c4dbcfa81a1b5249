"""A callback that has one rank fail where a test wants it to."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer


class Failing(Callback):
    """Takes its time over each step, and lets one rank fail after one of them, in the first attempt.

    Args:
        step: After which.
        rank: Which.
        how: `kill` and `stop` are signals nobody can catch.
        pause: Seconds a step takes.
    """

    def __init__(self, step: int = -1, rank: int = 0, how: Literal["kill", "stop", "raise"] = "kill", pause: float = 0.0) -> None:
        self.step, self.rank, self.how, self.pause = step, rank, how, pause

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        time.sleep(self.pause)
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and batch["window"].is_last and (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            if self.how == "raise":
                raise ValueError("boom")
            os.kill(os.getpid(), signal.SIGKILL if self.how == "kill" else signal.SIGSTOP)
