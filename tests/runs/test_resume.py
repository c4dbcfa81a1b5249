"""Exact resume: a run that was killed inside a window goes on, in a new process, as if nothing had happened."""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import pytest
import torch

from tests.ranks import forked
from tests.runs import one_run
from tests.runs.conftest import Place, start

STEPS = 14
OBJECTIVES = list(one_run.OBJECTIVES)


def begin(settings: dict[str, Any], exit_code: int) -> None:
    start(settings, check=lambda code: code == exit_code)


def fork(settings: dict[str, Any], exit_code: int) -> None:
    forked(partial(one_run.main, settings), num_ranks=1, exit_code=exit_code)


def check_resume(
    place: Place, name: str, objective: str, *, kill_at: int, workers: tuple[int, int], run: Any = begin, **given: Any
) -> None:
    """Straight through; killed and resumed in processes of their own; then every batch, loss, rate and weight is compared."""
    common = {"objective": objective, "steps": STEPS, "checkpoints": STEPS, **given}
    run(place.settings(f"{name}-straight", name=f"{name}-straight", num_workers=workers[0], **common), 0)
    run(place.settings(f"{name}-killed", name=name, num_workers=workers[0], kill_at=kill_at, **common), -signal.SIGKILL)
    run(place.settings(f"{name}-resumed", name=name, num_workers=workers[1], resume="must", **common), 0)
    straight, killed, resumed = (place.diary(f"{name}-{part}") for part in ("straight", "killed", "resumed"))
    assert len(straight) == 2 * STEPS, "two micro-batches a window"
    assert (kill_at * one_run.GLOBAL_BATCH, 0) in killed and (kill_at * one_run.GLOBAL_BATCH, 1) not in killed, "killed inside a window"
    assert min(resumed)[0] == kill_at * one_run.GLOBAL_BATCH, "the killed window is the first to be repeated"
    assert killed | resumed == straight
    result = place.result(f"{name}-straight")
    assert 2 * result["examples"] <= STEPS * one_run.GLOBAL_BATCH, "the run must cross two epochs to show anything"
    weights, again = result["weights"], place.result(f"{name}-resumed")["weights"]
    assert weights.keys() == again.keys() and all(torch.equal(weights[k], again[k]) for k in weights)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_inside_a_window_with_other_workers(place: Place, objective: str) -> None:
    check_resume(place, f"resume-{objective}", objective, kill_at=8, workers=(0, 2), run=fork)


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [3, 11])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_killed_early_and_late(place: Place, objective: str, kill_at: int) -> None:
    check_resume(place, f"kill-{objective}-{kill_at}", objective, kill_at=kill_at, workers=(2, 0))


@pytest.mark.slow
def test_counts_are_resumed(place: Place) -> None:
    check_resume(place, "resume-counts", "ngram", kill_at=4, workers=(2, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [{"optimizer": "muon"}, {"optimizer": "adafactor"}, {"averaged": True}], ids=lambda g: next(iter(g.values()))
)
def test_killed_with_other_optimizers_and_averages(place: Place, given: dict[str, Any]) -> None:
    check_resume(place, f"with-{next(iter(given.values()))}", "clm", kill_at=7, workers=(0, 0), **given)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # three processes compile
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_killed_while_compiled(place: Place, objective: str) -> None:
    check_resume(place, f"compiled-{objective}", objective, kill_at=6, workers=(0, 0), compiled=True)
