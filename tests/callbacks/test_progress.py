"""The progress line in a real trainer whose loader has no end, on a terminal and in a log file."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from lmlab.budget import Spent
from lmlab.callbacks.peak import peak_flops, training_dtype
from lmlab.callbacks.progress import ProgressLine, _bar

STEPS = 50


class Forever(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.ones(1)


class Clock(Callback):
    """A meter that counts batches: what the budget callback is in a real run."""

    def __init__(self, start: int = 0) -> None:
        self.start = self.done = start
        self.tokens_per_second, self.flops_per_second = 12_345.0, 3e9

    @property
    def spent(self) -> Spent:
        return Spent(steps=self.done, tokens=self.done * 1000, seconds=self.done * 2.0)

    @property
    def progress(self) -> float:
        return min(1.0, self.done / STEPS)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        pl_module.meter = self

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.done += 1
        trainer.should_stop = self.done >= STEPS
        trainer.val_check_batch = 1 if self.done % 10 == 0 else float("inf")


class Model(LightningModule):
    meter: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.log("train/loss", 3.456)
        return (self.weight * batch).sum()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/loss", 100.0 + self.meter.done)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Screen(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def run(tmp_path: Any, screen: Screen, start: int = 0) -> str:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=1,
        val_check_interval=10**6,
        limit_val_batches=2,
        default_root_dir=tmp_path,
        callbacks=[Clock(start), ProgressLine(stream=screen)],
    )
    trainer.fit(Model(), DataLoader(Forever()), DataLoader(Forever()))
    return screen.getvalue()


@pytest.fixture(autouse=True)
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmlab.callbacks.progress.peak_flops", lambda device, dtype: 1e10)


def test_a_log_gets_a_line_for_each_tenth_with_the_validation_of_that_mark(tmp_path: Any) -> None:
    lines = run(tmp_path, Screen(tty=False)).splitlines()
    assert [line.split()[0] for line in lines] == [f"{p}%" for p in range(10, 101, 10)]
    assert "loss 3.456" in lines[0] and "12.3\u202fk tokens/s" in lines[0] and "30% of peak" in lines[0]
    assert [re.findall(r"val (\d+)", line) for line in lines] == [
        [],
        ["110"],
        ["110"],
        ["120"],
        ["120"],
        ["130"],
        ["130"],
        ["140"],
        ["140"],
        ["150"],
    ]
    assert all(" left" in line for line in lines[:-1]) and "50\u202fk tokens in 1 min 40 s" in lines[-1]
    assert not re.search(r"[\r\x1b█]", "".join(lines))


def test_a_resumed_run_does_not_print_the_tenths_before_it(tmp_path: Any) -> None:
    lines = run(tmp_path, Screen(tty=False), start=25).splitlines()
    assert [line.split()[0] for line in lines] == ["60%", "70%", "80%", "90%", "100%"]


def test_a_terminal_gets_one_line_that_never_wraps_and_ends(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("lmlab.callbacks.progress.SECONDS_BETWEEN", 0.0)
    shown = run(tmp_path, Screen(tty=True))
    assert shown.count("\n") == 1 and shown.endswith("\n")
    states = shown.rstrip("\n").split("\r")[1:]
    assert {len(state) for state in states} == {59}
    assert any(state.startswith("validating 2 of 2") for state in states)
    assert states[-1].startswith(f"100% {'█' * 20} loss 3.456")


def test_a_step_between_two_refreshes_costs_next_to_nothing() -> None:
    line = ProgressLine(stream=Screen(tty=True))
    module: Any = SimpleNamespace(meter=Clock())
    trainer: Any = SimpleNamespace(callback_metrics={"train/loss": torch.tensor(1.0)}, world_size=1)
    begin = time.perf_counter()
    for index in range(2000):
        line.on_train_batch_end(trainer, module, None, None, index)
    assert (time.perf_counter() - begin) / 2000 < 0.5e-3


def test_time_left_follows_the_budget_and_not_what_was_done_before_the_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ProgressLine(style="log", stream=Screen(tty=False))
    clock = Clock(start=20)
    module: Any = SimpleNamespace(meter=clock)
    trainer: Any = SimpleNamespace(callback_metrics={}, world_size=1)
    now = [1000.0]
    monkeypatch.setattr("lmlab.callbacks.progress.time.perf_counter", lambda: now[0])
    line.on_train_start(trainer, module)
    clock.done, now[0] = 30, 1060.0  # 10 of the 30 remaining steps in 60 s: 20 steps, 120 s, to go
    assert line.describe(trainer, module).endswith("2 min left")


def test_other_ranks_and_dead_terminals_are_silent() -> None:
    screen = Screen(tty=True)
    line = ProgressLine(stream=screen)
    module: Any = SimpleNamespace(meter=Clock())
    trainer: Any = SimpleNamespace(callback_metrics={}, world_size=1, is_global_zero=False)
    line.setup(trainer, module, "fit")
    line.on_train_batch_end(trainer, module, None, None, 0)
    assert screen.getvalue() == ""
    line.enable()
    screen.close()
    line.on_train_batch_end(trainer, module, None, None, 0)  # does not raise


@pytest.mark.parametrize("share", [0.0, 0.004, 0.5, 0.999, 1.0])
def test_the_bar_has_one_width(share: float) -> None:
    assert len(_bar(share, True)) == 20 and len(_bar(share, False)) == 22


def test_the_peak_is_measured_quickly_without_touching_the_random_stream() -> None:
    state = torch.get_rng_state()
    begin = time.perf_counter()
    peak = peak_flops.__wrapped__("cpu", torch.float32)
    assert time.perf_counter() - begin < 3.0  # 0.3 s on a quiet machine
    assert torch.equal(torch.get_rng_state(), state)
    assert peak is not None and 1e8 < peak < 1e15
    assert peak_flops.__wrapped__("no_such_device", torch.float32) is None


def test_formats_by_lightnings_names() -> None:
    assert [training_dtype(p) for p in ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true", "32")] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.float32,
    ]
