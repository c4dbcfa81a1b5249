"""One line that says how far the run is: loss, speed, and time left by progress through the budget.

On a terminal and in a notebook the line is rewritten in place; in a log file a new one is printed at every tenth of the budget.
Lightning's bars count batches of an epoch, and here an epoch has no end.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Any, Literal, Protocol, TextIO, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lmlab.budget import Spent
from lmlab.callbacks.peak import peak_flops, training_dtype
from lmlab.run.numbers import compact, duration, loss

SECONDS_BETWEEN = 0.25  # four times a second is as fast as a person reads; the rest of the time a step costs one clock reading
TENTHS = 10
BAR_WIDTH = 20
EIGHTHS = " ▏▎▍▌▋▊▉"

Style = Literal["auto", "line", "log"]


class Meter(Protocol):
    """The run's clock, as `trainer.lightning_module.meter`."""

    @property
    def spent(self) -> Spent:
        """What is spent so far."""
        ...

    @property
    def progress(self) -> float:
        """Share of the budget spent, in [0, 1]."""
        ...

    @property
    def tokens_per_second(self) -> float:
        """Recent speed in corpus tokens."""
        ...

    @property
    def flops_per_second(self) -> float:
        """Recent speed in FLOPs."""
        ...


class ProgressLine(ProgressBar):
    """Shows progress through the budget, losses, speed, use of the machine and time left.

    Args:
        style: `line` rewrites one line, `log` prints a line at every tenth of the budget, `auto` looks where the output goes.
        stream: Where to write; None takes standard error, as it is when something is written.
    """

    def __init__(self, style: Style = "auto", stream: TextIO | None = None) -> None:
        super().__init__()
        self._style, self._stream = style, stream
        self._is_enabled = True
        self._peak: float | None = None
        self._next = 0.0
        self._began = (0.0, 0.0)  # time and progress when this process took the run up
        self._tenth = 0
        self._is_due = False
        self._is_open = False

    def disable(self) -> None:
        """Shows nothing from now on; Lightning calls this on ranks other than 0."""
        self._is_enabled = False

    def enable(self) -> None:
        """Shows the line again."""
        self._is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints without tearing the line."""
        self._close()
        print(*args, **kwargs)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the machine, before the run's clock starts."""
        if self._is_enabled:
            self._peak = peak_flops(str(trainer.strategy.root_device), training_dtype(str(trainer.precision)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes where this process begins."""
        progress = _meter(pl_module).progress
        self._began, self._tenth = (time.perf_counter(), progress), int(progress * TENTHS + 1e-9)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Rewrites the line if a quarter of a second has passed; in a log, prints one if a tenth of the budget has."""
        if not self._is_enabled:
            return
        if self._writes_in_place:
            now = time.perf_counter()
            if now >= self._next:
                self._next = now + SECONDS_BETWEEN
                self._rewrite(self.describe(trainer, pl_module))
            return
        tenth = int(_meter(pl_module).progress * TENTHS + 1e-9)
        self._is_due, self._tenth = tenth > self._tenth, tenth
        validates = trainer.enable_validation and (trainer.val_check_batch == 1 or trainer.should_stop)
        if self._is_due and not validates:  # else the line waits for the new value
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the last state standing."""
        if not self._is_enabled:
            return
        if self._writes_in_place:
            self._rewrite(self.describe(trainer, pl_module))
            self._close()
        elif self._is_due:
            self._log(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the new validation loss."""
        if self._is_enabled and self._is_due and trainer.state.fn == "fit":
            self._log(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Says how far a validation is."""
        self._count(trainer, "validating", batch_idx, _total(trainer.num_val_batches, dataloader_idx))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Says how far a test is."""
        self._count(trainer, "testing", batch_idx, _total(trainer.num_test_batches, dataloader_idx))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Says how far a prediction is."""
        self._count(trainer, "predicting", batch_idx, _total(trainer.num_predict_batches, dataloader_idx))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the error a line of its own."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the line."""
        self._close()

    def describe(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """The line: ` 42% ━━━━━━━╺───── loss 3.41 · val 3.5 · 12.3 k tokens/s · 38% of peak · 3 min left`.

        Args:
            trainer: Has the losses.
            pl_module: Has the meter.
        """
        meter = _meter(pl_module)
        progress = meter.progress
        metrics = trainer.callback_metrics
        parts = [f"{name} {loss(float(metrics[key]))}" for name, key in (("loss", "train/loss"), ("val", "val/loss")) if key in metrics]
        if meter.tokens_per_second:
            parts.append(f"{compact(meter.tokens_per_second)} tokens/s")
        if self._peak and meter.flops_per_second:
            parts.append(f"{meter.flops_per_second / (self._peak * trainer.world_size):.0%} of peak")
        elapsed, done = time.perf_counter() - self._began[0], progress - self._began[1]
        if progress >= 1:
            parts.append(f"{compact(meter.spent.tokens)} tokens in {duration(meter.spent.seconds)}")
        elif done > 0:
            parts.append(f"{duration(elapsed * (1 - progress) / done)} left")
        bar = f"{_bar(progress, self._has_blocks)} " if self._writes_in_place else ""
        return f"{progress:4.0%} {bar}{' · '.join(parts)}"

    @property
    def _writes_in_place(self) -> bool:
        if self._style != "auto":
            return self._style == "line"
        return self._out.isatty() or "ipykernel" in sys.modules

    @property
    def _out(self) -> TextIO:
        return self._stream or sys.stderr

    @property
    def _has_blocks(self) -> bool:
        return "utf" in (getattr(self._out, "encoding", None) or "").lower()

    def _count(self, trainer: Trainer, what: str, index: int, total: float) -> None:
        now = time.perf_counter()
        if not self._is_enabled or trainer.sanity_checking or now < self._next or not self._writes_in_place:
            return
        self._next = now + SECONDS_BETWEEN
        self._rewrite(f"{what} {index + 1}" + (f" of {total}" if total != float("inf") else ""))

    def _rewrite(self, line: str) -> None:
        width = int(os.environ.get("COLUMNS") or shutil.get_terminal_size((100, 24)).columns) - 1  # a full line would wrap
        self._write(f"\r{line[:width]:<{width}}")
        self._is_open = True

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_due = False
        self._write(self.describe(trainer, pl_module) + "\n")

    def _close(self) -> None:
        if self._is_open:
            self._write("\n")
            self._is_open = False

    def _write(self, text: str) -> None:
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        try:
            self._out.write(text.encode(encoding, "replace").decode(encoding))
            self._out.flush()
        except (OSError, ValueError):  # a closed terminal must not end a run
            self._is_enabled = False


def _meter(pl_module: LightningModule) -> Meter:
    return cast(Meter, pl_module.meter)


def _total(batches: Any, loader: int) -> float:
    """Lightning gives a number or, for several loaders, a list of them."""
    return batches[loader] if isinstance(batches, list) else batches


def _bar(share: float, has_blocks: bool) -> str:
    if not has_blocks:
        return f"[{'#' * round(share * BAR_WIDTH):<{BAR_WIDTH}}]"
    full, part = divmod(round(min(share, 1.0) * BAR_WIDTH * 8), 8)
    return f"{'█' * full}{EIGHTHS[part] if full < BAR_WIDTH else '':<{BAR_WIDTH - full}}".replace(" ", "·")
