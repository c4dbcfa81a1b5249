"""Multitask runs: exact resume, two ranks, and what is left behind."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import lmlab
from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.callbacks import Budget
from lmlab.cli import main
from lmlab.data.module import CorpusModule
from lmlab.data.store import StoreConfig
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.objectives.multitask import Multitask
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.rulers.text_vectors import text_vectors
from lmlab.run.metrics import read_metrics
from lmlab.run.record import Record
from lmlab.tokenizer import Tokenizer
from tests.objectives.tasks import QUIET
from tests.ranks import forked
from tests.runs import one_run
from tests.runs.conftest import Place, start

STEPS = 9
PLAIN = {"dropout": 0.0, "optimizer": "sgd", "lr": 0.5, "steps": 5, "checkpoints": 1}  # SGD shows any error of scale
NOISE = {"rtol": 1e-5, "atol": 3e-6}  # float32 sums taken in another order
SEVERAL = list(one_run.MULTITASK)
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def check_resume(place: Place, objective: str, *, kill_at: int, workers: tuple[int, int]) -> None:
    """Straight through; killed inside a window and resumed in new processes; every batch, loss, rate and weight is compared."""
    common = {"objective": objective, "steps": STEPS, "checkpoints": STEPS}
    names = [f"{objective}-{kill_at}-{part}" for part in ("straight", "killed", "resumed")]
    start(place.settings(names[0], name=names[0], num_workers=workers[0], **common))
    start(place.settings(names[1], name=names[1], num_workers=workers[0], kill_at=kill_at, **common), check=lambda code: code == -9)
    start(place.settings(names[2], name=names[1], num_workers=workers[1], resume="must", **common))
    straight, killed, resumed = (place.diary(name) for name in names)
    assert killed and resumed and min(resumed)[0] == kill_at * one_run.GLOBAL_BATCH, "the killed window is the first to be repeated"
    assert killed | resumed == straight
    weights, again = place.result(names[0])["weights"], place.result(names[2])["weights"]
    assert weights.keys() == again.keys() and all(torch.equal(weights[k], again[k]) for k in weights)


class Saving(Callback):
    """Writes a checkpoint after some steps, and what each micro-batch was."""

    def __init__(self, path: Path | None = None, after: int = 0) -> None:
        self.path, self.after = path, after
        self.seen: dict[tuple[int, int], str] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        window = batch["window"]
        self.seen[window.position, window.index] = one_run.digest({k: v for k, v in batch.items() if k != "window"})
        if self.path is not None and window.is_last and trainer.global_step == self.after:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("name", SEVERAL)
def test_resumed_in_the_same_process(place: Place, name: str, tmp_path: Path) -> None:
    """Bit for bit, whatever the regime, the factors and the rule: what they remember is in the checkpoint."""

    def fitted(saving: Saving, ckpt: Path | None = None) -> Multitask:
        seed_everything(0, verbose=False)
        tokenizer = Tokenizer.load(place.tokenizer)
        backbone = BackboneConfig(hidden_size=16, num_layers=2, num_heads=2, dropout=0.1)
        made = one_run.MULTITASK[name](tokenizer, backbone, OptimizerConfig(lr=1e-2), ScheduleConfig())
        cut = {"global_batch_size": 8, "micro_batch_size": 4, "store": StoreConfig(val_share=0.3), "cache_dir": str(place.folder / "cache")}
        data = CorpusModule(str(place.corpus), tokenizer, made.feed(), **cut)  # type: ignore[arg-type]
        trainer = Trainer(**QUIET, callbacks=[Budget(BudgetConfig(steps=STEPS, validations=0)), saving])
        trainer.fit(made, data, ckpt_path=ckpt, weights_only=True if ckpt else None)
        assert isinstance(made, Multitask) and trainer.global_step == STEPS
        return made

    first, second = Saving(tmp_path / "5.ckpt", after=5), Saving()
    straight, resumed = fitted(first), fitted(second, tmp_path / "5.ckpt")
    assert len(second.seen) == 2 * (STEPS - 5) and second.seen.items() <= first.seen.items()
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in straight.state_dict().items())
    assert straight.weights.memory() == resumed.weights.memory()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["multitask_turns"])
def test_killed_inside_a_window_with_other_workers(place: Place, objective: str) -> None:
    check_resume(place, objective, kill_at=6, workers=(0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [4, 12])
@pytest.mark.parametrize("objective", ["multitask", "multitask_norms", "multitask_contrastive"])
def test_killed_early_and_late(place: Place, objective: str, kill_at: int) -> None:
    """Two tasks of eight examples a window: 4 and 12 are the second and the sixth."""
    check_resume(place, objective, kill_at=kill_at, workers=(2, 0))


def two_ranks(place: Place, objective: str, micro: int) -> None:
    alone, together = f"alone-{objective}-{micro}", f"ddp-{objective}-{micro}"
    one_run.main(place.settings(alone, name=alone, objective=objective, micro=8, **PLAIN))
    forked(partial(one_run.main, place.settings(together, name=together, objective=objective, micro=micro, devices=2, **PLAIN)))
    first, second = place.result(alone)["weights"], place.result(together)["weights"]
    assert first.keys() == second.keys()
    assert [k for k in first if not torch.allclose(first[k], second[k], **NOISE)] == []


@FORKS
def test_two_ranks_with_half_of_each_batch(place: Place) -> None:
    two_ranks(place, "multitask", micro=4)


@FORKS
@pytest.mark.parametrize("objective", SEVERAL)
def test_two_ranks_with_accumulation(place: Place, objective: str) -> None:
    two_ranks(place, objective, micro=2)


@FORKS
def test_what_belongs_to_an_absent_task_rests_on_two_ranks(place: Place) -> None:
    """Ranks exchange a gradient of 0 for it, by which AdamW would decay it and carry it on."""
    settings = {**PLAIN, "optimizer": "adamw", "lr": 0.01, "objective": "multitask_rests", "dropout": 0.0}
    one_run.main(place.settings("rests-1", name="rests-1", micro=8, **settings))
    forked(partial(one_run.main, place.settings("rests-2", name="rests-2", micro=4, devices=2, **settings)))
    first, second = place.result("rests-1")["weights"], place.result("rests-2")["weights"]
    own = [name for name in first if name.startswith(("tasks.", "weights."))]
    assert own and [name for name in own if (first[name] - second[name]).abs().max() > 1e-3] == []


@pytest.fixture(scope="module", params=["multitask_turns", "multitask_norms"])
def finished(request: pytest.FixtureRequest, place: Place) -> Path:
    name = f"left-{request.param}"
    one_run.main(place.settings(name, name=name, objective=request.param, steps=6, log_every=1))
    return Path(place.result(name)["run"])


def test_it_loads_with_children_that_fill_and_generate(finished: Path) -> None:
    loaded: Any = lmlab.load(finished, "last")
    assert isinstance(loaded, Multitask) and not loaded.training
    mlm, clm = loaded.tasks["mlm"], loaded.tasks["clm"]
    assert isinstance(mlm, MLM) and isinstance(clm, CLM)
    tok = loaded.tokenizer
    assert len(mlm.fill(f"she was {tok.token(tok.mask_id)} at home")) == 1
    assert len(clm.generate(["She was"])) == 1
    assert loaded.products == (mlm, clm) or loaded.products == (clm, mlm)
    assert text_vectors(loaded, ["She was", "He is"]).shape == (2, 32)


def test_commands_find_the_task_that_can_do_it(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(finished), "--prompt", "She was", "--max_new_tokens", "4", "--plain"]) == 0
    assert capsys.readouterr().out.startswith("She was")
    assert main(["fill", str(finished), "--text", "She was [MASK] here."]) == 0
    assert "gap" in capsys.readouterr().out


def test_the_folder_tells_of_each_task(finished: Path) -> None:
    record = Record.load(finished / "record.json")
    assert {"val/loss", "val/mlm/loss", "val/mlm/accuracy", "val/clm/loss", "val/clm/bits_per_byte"} <= record.metrics.keys()
    assert record.anchors.keys() >= {"uniform", "unigram", "bigram"}, "one of the tasks has a likelihood"
    assert record.metrics["val/loss"] == pytest.approx(record.metrics["val/mlm/loss"] + record.metrics["val/clm/loss"])
    rows = [row for row in read_metrics(finished / "metrics.csv").rows if "train/loss" in row]
    assert len(rows) == 6
    for row in rows:
        present = {task for task in ("mlm", "clm") if f"train/{task}/loss" in row}
        assert len(present) == (1 if "turns" in finished.parent.name else 2), "a task that a step did not have is not reported with it"
        weighted = sum(row[f"train/{task}/weight"] * row[f"train/{task}/loss"] for task in present)
        assert row["train/loss"] == pytest.approx(weighted, rel=1e-5)
    texts = (finished / "samples.jsonl").read_text().splitlines()
    assert len(texts) > 3
