"""Runs with a teacher: exact resume, on the student's own text too; two ranks; and that a student's run stands alone."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

import lmlab
from lmlab.checkpoint import read_checkpoint
from lmlab.objectives.clm import CLM
from lmlab.objectives.distillation import Distillation
from lmlab.run.find import find_run
from lmlab.run.record import Record
from tests.runs import one_run, taught_run
from tests.runs.conftest import Place, start
from tests.runs.test_resume import check_resume

FLOAT_NOISE = 1e-5  # gradients added up in another order, over a few steps
PLAIN = {"steps": 4, "dropout": 0.0, "optimizer": "sgd", "lr": 0.1}


@pytest.fixture(scope="module")
def taught(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a causal teacher, in which every process that is started trains students."""
    one_run.main(place.settings("guide", name="guide", objective="clm", steps=4, dropout=0.0))
    return place


@pytest.fixture(autouse=True)
def in_place(taught: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLAB_RUNS", str(taught.folder / "runs"))
    monkeypatch.setattr("tests.runs.conftest.SCRIPT", Path(taught_run.__file__))


@pytest.mark.slow
def test_killed_inside_a_window_with_its_own_text(taught: Place) -> None:
    check_resume(taught, "resume-on-policy", "on_policy", kill_at=8, workers=(0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [3, 11])
def test_killed_early_and_late(taught: Place, kill_at: int) -> None:
    check_resume(taught, f"resume-distillation-{kill_at}", "distillation", kill_at=kill_at, workers=(2, 0), averaged=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two processes compile
def test_compiled_it_learns_the_same(taught: Place) -> None:
    for label, compiled in (("eager", False), ("compiled", True)):
        start(taught.settings(label, name=label, objective="distillation", compiled=compiled, **PLAIN))
    assert same(taught, "eager", "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["distillation", "on_policy"])
def test_two_ranks_with_half_of_each_batch(taught: Place, objective: str) -> None:
    alone, together = f"alone-{objective}", f"ddp-{objective}"
    start(taught.settings(alone, name=alone, objective=objective, micro=8, **PLAIN))
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    start(taught.settings(together, name=together, objective=objective, micro=2, devices=2, **PLAIN), launcher)
    assert same(taught, alone, together)


def same(place: Place, first: str, second: str) -> bool:
    a, b = (place.result(name)["weights"] for name in (first, second))
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=FLOAT_NOISE, atol=FLOAT_NOISE) for k in a)


def test_a_students_run_stands_alone(taught: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trace of the teacher in the checkpoint; with its run gone, the student still writes."""
    monkeypatch.setitem(one_run.OBJECTIVES, "on_policy", taught_run.STUDENTS["on_policy"])
    one_run.main(taught.settings("student", name="student", objective="on_policy", steps=6, log_every=1))
    run, guide = find_run("student"), find_run("guide")
    content = read_checkpoint(next(iter(run.steps().values())))
    alone = content["state_dict"].keys()
    assert {name.split(".")[0] for name in alone} == {"student", "projections"}
    hidden = guide.path.with_name("elsewhere")
    shutil.move(guide.path, hidden)
    try:
        student = lmlab.load(run.path)
        assert isinstance(student, Distillation) and isinstance(student.product, CLM)
        assert isinstance(student.product.generate(["The"])[0], str)
    finally:
        shutil.move(hidden, guide.path)
    with run.metrics_path.open(encoding="utf-8") as file:
        logged = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert {bool(row["train/clm"]) for row in logged} == {True, False}, "a step on the student's own text has no loss of labels"
    assert all(row["train/response"] for row in logged)
    spent = Record.load(run.record_path).spent
    assert spent["flops"] > Record.load(find_run("guide").record_path).spent["flops"] * 6 / 4, "teacher and writing are counted"
    assert Record.load(run.record_path).num_parameters == sum(p.numel() for p in student.parameters())
