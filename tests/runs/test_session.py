"""A run's folder: which run is taken up, what is refused, and that nothing is lost or counted twice on the way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import lmlab
from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.callbacks import WeightAveraging, checkpoints
from lmlab.checkpoint import read_checkpoint
from lmlab.data.module import CorpusModule
from lmlab.errors import CheckpointError, ConfigError
from lmlab.objectives.clm import CLM
from lmlab.optim import OptimizerConfig
from lmlab.run.directory import RunDirectory
from lmlab.run.find import list_runs
from lmlab.run.metrics import read_metrics
from lmlab.run.record import Record
from lmlab.session import RunConfig
from lmlab.tokenizer import Tokenizer, TokenizerConfig

PARAGRAPHS = [f"Paragraph {n}: " + "the quick brown fox jumps over the lazy dog. " * 3 for n in range(40)]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train(PARAGRAPHS, TokenizerConfig(vocab_size=320, num_sentinels=8))


class Fitter:
    """Trains a small model in a folder of its own, as often as it is told to."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.text = folder / "text.txt"
        self.text.write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")

    def __call__(
        self, resume: str = "never", steps: int = 6, lr: float = 1e-3, callbacks: tuple[Callback, ...] = (), keep: int = 2, **given: Any
    ) -> RunDirectory:
        backbone = BackboneConfig(hidden_size=16, num_layers=1, num_heads=2)
        objective = CLM(self.tokenizer, backbone, OptimizerConfig(lr=lr), length=16)
        data = CorpusModule(
            self.text, self.tokenizer, objective.feed(), global_batch_size=4, eval_examples=4, cache_dir=str(self.folder / "cache")
        )
        trainer = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1, **given.pop("trainer", {})}
        budget = BudgetConfig(steps=steps, validations=given.pop("validations", 3), checkpoints=steps)
        config = RunConfig(name="r", root=str(self.folder / "runs"), resume=resume, keep=keep)
        return lmlab.fit(objective, data, budget, config, callbacks=callbacks, trainer=trainer, **given)

    def runs(self) -> list[RunDirectory]:
        return list_runs(self.folder / "runs")


@pytest.fixture
def fitter(tmp_path: Path, tok: Tokenizer) -> Fitter:
    return Fitter(tmp_path, tok)


class Stop(Callback):
    """Ends a run after some steps, by an error or a signal."""

    def __init__(self, after: int, by: int | None = None) -> None:
        self.after, self.by = after, by

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.after == 0:
            self._do()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.after:
            self._do()

    def _do(self) -> None:
        if self.by is None:
            raise RuntimeError("stopped by the test")
        os.kill(os.getpid(), self.by)


def cut(path: Path) -> None:
    """Truncates a file that may have a second name, without touching what the second name holds."""
    content = path.read_bytes()[:1000]
    path.unlink()
    path.write_bytes(content)


def stopped(fitter: Fitter, after: int, **given: Any) -> RunDirectory:
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fitter(callbacks=(Stop(after),), **given)
    return fitter.runs()[-1]


def test_a_run_is_not_taken_up_with_other_settings(fitter: Fitter) -> None:
    run = stopped(fitter, 4)
    before = run.record_path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        fitter(resume=str(run.path), lr=9e-3)
    assert "model.init_args.optimizer.lr (0.001 -> 0.009)" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"budget.steps \(6 -> 8\)"):
        fitter(resume=str(run.path), steps=8)
    assert run.record_path.read_bytes() == before
    assert fitter(resume=str(run.path)).path == run.path
    with pytest.raises(CheckpointError, match="has finished"):
        fitter(resume=str(run.path))
    assert Record.load(run.record_path).status == "finished"


def test_a_run_that_failed_is_taken_up_in_the_same_process(fitter: Fitter) -> None:
    """A notebook keeps the traceback of a failed cell, and with it everything the cell held."""
    try:
        fitter(callbacks=(Stop(3),))
    except RuntimeError as error:
        kept = error
        assert fitter(resume="must").path == fitter.runs()[0].path
        assert kept.__traceback__ is not None


def test_a_broken_newest_checkpoint_is_put_aside(fitter: Fitter) -> None:
    run = stopped(fitter, 4)
    cut(run.checkpoints / "step=0000003.ckpt")
    (run.checkpoints / "step=0000099.ckpt").write_bytes(b"junk")
    assert fitter(resume="auto", keep=1).path == run.path
    names = {path.name for path in run.checkpoints.iterdir()}
    assert names == {"best.ckpt", "step=0000006.ckpt", "step=0000003.ckpt.broken", "step=0000099.ckpt.broken"}
    assert list(read_metrics(run.metrics_path).series("train/loss").x) == [1, 2, 3, 4, 5, 6]


def test_the_best_is_what_remains(fitter: Fitter) -> None:
    run = stopped(fitter, 6)
    for path in run.checkpoints.glob("step=*.ckpt"):
        cut(path)
    best = int(read_checkpoint(run.checkpoints / "best.ckpt")["global_step"])
    assert best < 6
    assert fitter(resume="auto").path == run.path
    assert list(read_metrics(run.metrics_path).series("train/loss").x) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("resume", ["must", "auto"])
def test_without_any_whole_checkpoint_nothing_is_lost(fitter: Fitter, resume: str) -> None:
    run = stopped(fitter, 4)
    for path in run.checkpoints.glob("*.ckpt"):
        cut(path)
    before = {path: path.read_bytes() for path in run.path.rglob("*.*") if path.is_file() and path.suffix != ".html"}
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        fitter(resume=resume)
    assert {path: path.read_bytes() for path in before} == before and not run.is_claimed()


@pytest.mark.parametrize("before", ["none", "earlier"])
def test_the_best_is_not_lost_by_a_kill_before_it_is_called_so(fitter: Fitter, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    first = None if before == "none" else stopped(fitter, 3, validations=6, steps=12, lr=1e-2)

    def dies(*_: Path) -> None:
        raise RuntimeError("stopped by the test")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped by the test"):
        patch.setattr(checkpoints, "link", dies)
        fitter(resume="auto", validations=6, steps=12, lr=1e-2)
    [run] = fitter.runs()
    saved = max(run.steps())
    assert (first is None) != run.best_path.exists()
    with pytest.raises(RuntimeError):
        fitter(resume="must", validations=6, steps=12, lr=1e-2, callbacks=(Stop(saved + 1),))
    assert read_checkpoint(run.best_path)["global_step"] == saved


def test_a_signal_after_a_save_does_not_save_again(fitter: Fitter, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = list[int]()
    real = Trainer.save_checkpoint
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, *given: (steps.append(self.global_step), real(self, *given)))
    with pytest.raises(SystemExit):
        fitter(callbacks=(Stop(2, signal.SIGTERM),), validations=1)
    assert steps == [1, 2]


def test_a_folder_that_a_killed_writer_had_put_aside_is_found(fitter: Fitter) -> None:
    run = stopped(fitter, 4)
    newest = run.steps()[3]
    for path in run.checkpoints.glob("*.ckpt"):
        if path != newest:
            path.unlink()
    newest.rename(newest.with_name(f".{newest.name}.123.old"))
    assert fitter(resume="must").path == run.path
    assert list(read_metrics(run.metrics_path).series("train/loss").x) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("after", [0, 3])
def test_a_signal_before_or_after_a_step_saves_all_there_is(fitter: Fitter, after: int) -> None:
    """Also one that comes before the first step; and the averages in the checkpoint have seen as many steps as the weights."""
    with pytest.raises(SystemExit) as caught:
        fitter(callbacks=(Stop(after, signal.SIGTERM), WeightAveraging(0.9)))
    assert caught.value.code == 128 + signal.SIGTERM
    [run] = fitter.runs()
    assert Record.load(run.record_path).status == "interrupted"
    steps = max(1, after)
    content = read_checkpoint(run.steps()[steps])
    assert content["global_step"] == content["lmlab_average"]["num_updates"] == steps


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_epochs": 0}, "the budget ends a run"),
        ({"limit_train_batches": 1}, "the budget ends a run"),
        ({"overfit_batches": 2}, "the budget ends a run"),
        ({"val_check_interval": 5}, "budget.validations"),
        ({"logger": False}, "run.wandb"),
        ({"default_root_dir": "x"}, "run.root"),
        ({"callbacks": []}, "fit\\(callbacks"),
        ({"log_every_n_steps": 0}, "it counts steps"),
        ({"gradient_clip_val": -1.0}, "null for none"),
    ],
)
def test_what_lmlab_answers_for_is_refused_and_leaves_no_run(fitter: Fitter, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fitter(trainer=given)
    assert fitter.runs() == []


def test_a_second_one_who_saves_is_refused(fitter: Fitter) -> None:
    with pytest.raises(ConfigError, match="there cannot be a ModelCheckpoint"):
        fitter(callbacks=(ModelCheckpoint(),))
    assert fitter.runs() == []


@pytest.mark.parametrize("seed", [True, -1, 2**32, 1.5])
def test_a_seed_is_a_number(fitter: Fitter, seed: Any) -> None:
    with pytest.raises(ConfigError, match="no seed"):
        fitter(seed=seed)


def test_never_means_never(fitter: Fitter) -> None:
    run = fitter(validations=0)
    assert not [name for name in read_metrics(run.metrics_path).columns if name.startswith("val/")]


def test_what_comes_before_the_first_step_is_not_training_time(fitter: Fitter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmlab.callbacks.recording.anchors_for", lambda data: time.sleep(2))
    assert Record.load(fitter().record_path).spent["seconds"] < 2


def test_a_session_that_cannot_begin_is_noted(fitter: Fitter) -> None:
    with pytest.raises(Exception, match="nope"):
        fitter(trainer={"strategy": "nope"})
    [run] = fitter.runs()
    assert Record.load(run.record_path).status == "failed" and not run.is_claimed()
