"""A run leaves a folder that a person can read and a model that loads with no other knowledge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

import lmlab
from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.data.module import CorpusModule
from lmlab.errors import CheckpointError
from lmlab.objectives.clm import CLM
from lmlab.run.metrics import read_metrics
from lmlab.run.record import Record
from lmlab.session import RunConfig
from lmlab.tokenizer import Tokenizer
from tests.runs import one_run
from tests.runs.conftest import REPOSITORY, Place


@pytest.fixture(scope="module")
def finished(place: Place) -> Path:
    one_run.main(place.settings("loading", name="loading", objective="clm", steps=6, dropout=0.0))
    return Path(place.result("loading")["run"])


def test_the_folder_tells_the_whole_story(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.csv", "samples.jsonl", "checkpoints", "record.json", "report.html"} <= names
    record = Record.load(finished / "record.json")
    assert record.status == "finished" and record.name == "loading" and record.budget == {"steps": 6}
    assert record.spent["steps"] == 6 and record.spent["examples"] == 48 and record.spent["flops"] > 0
    assert record.spent["peak_memory_bytes"] > 10**7
    assert set(record.data) == {"data", "tokenizer"}
    steps = [row["step"] for row in read_metrics(finished / "metrics.csv").rows]
    assert steps[-1] == 6 and steps == sorted(set(steps))
    assert read_metrics(finished / "metrics.csv").last()["val/loss"] == pytest.approx(record.metrics["val/loss"], rel=1e-6)
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "loading" in page and "://" not in page.replace("http://www.w3.org", ""), "it must open offline"


def test_it_loads_by_folder_file_and_name(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLAB_RUNS", str(finished.parents[1]))
    last = sorted((finished / "checkpoints").glob("step=*.ckpt"))[-1]
    by_file = lmlab.load(last)
    for spec, which in ((finished, "last"), ("loading", "last"), (finished, "step=6"), (str(finished), "best")):
        loaded = lmlab.load(spec, which)
        assert type(loaded) is type(by_file) and loaded.tokenizer == by_file.tokenizer
        if which != "best":
            assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), by_file.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="there is no run"):
        lmlab.load("loadin")


@pytest.mark.slow
def test_another_process_generates_with_nothing_but_the_path(finished: Path) -> None:
    code = f"import lmlab; m = lmlab.load({str(finished)!r}); print(m.generate(['The'])[0].__class__.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip().endswith("str")


def test_the_samples_show_the_untrained_and_the_trained_model(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert min(line["step"] for line in lines) == 0 and max(line["step"] for line in lines) == 6


def test_a_run_that_a_callback_ends_early_is_finished_and_saved(place: Place) -> None:
    tokenizer = Tokenizer.load(place.tokenizer)
    objective = CLM(tokenizer, BackboneConfig(hidden_size=16, num_layers=1, num_heads=2), length=32)
    data = CorpusModule(str(place.corpus), tokenizer, objective.feed(), global_batch_size=4, cache_dir=str(place.folder / "cache"))
    stop = EarlyStopping("val/loss", stopping_threshold=1e9)  # any loss is good enough
    budget, config = BudgetConfig(steps=40, validations=10), RunConfig(name="early", root=str(place.folder / "runs"))
    run = lmlab.fit(objective, data, budget, config, callbacks=[stop], trainer={"accelerator": "cpu", "enable_progress_bar": False})
    record = Record.load(run.record_path)
    assert record.status == "finished" and record.spent["steps"] == 4
    assert list(run.steps()) == [4]
