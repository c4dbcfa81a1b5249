"""Losses over a whole batch: small passes, two ranks and a resumed run give what one pass, one rank and a straight run do."""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import pytest
import torch

from tests.ranks import forked
from tests.runs import one_run
from tests.runs.conftest import Place

FLOAT_NOISE = 1e-6  # of the largest weight: float32 sums taken in another order
PLAIN = {"dropout": 0.0, "optimizer": "sgd", "lr": 0.5, "steps": 5, "checkpoints": 1}  # SGD shows any error of scale


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    largest = max(float(value.abs().max()) for value in a.values())
    return a.keys() == b.keys() and all(float((a[k] - b[k]).abs().max()) <= FLOAT_NOISE * largest for k in a)


@pytest.mark.parametrize("objective", one_run.OVER_BATCH)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_any_cut(place: Place, objective: str) -> None:
    """Of the batch into passes, and over ranks: one compares its texts with those of the other, and each learns from both."""
    found = []
    for micro, devices in ((8, 1), (1, 1), (4, 2), (2, 2)):
        name = f"cut-{objective}-{micro}-{devices}"
        settings = place.settings(name, name=name, objective=objective, micro=micro, devices=devices, **PLAIN)
        forked(partial(one_run.main, settings)) if devices > 1 else one_run.main(settings)
        found.append(place.result(name)["weights"])
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("micro", [pytest.param(8, marks=pytest.mark.slow), 2])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_and_resumed_with_other_workers(place: Place, micro: int) -> None:
    name, steps, kill_at = f"kill-contrastive-{micro}", 14, 8
    common: dict[str, Any] = {"objective": "contrastive", "steps": steps, "checkpoints": steps, "micro": micro, "dropout": 0.1}
    one_run.main(place.settings(f"{name}-straight", name=f"{name}-straight", **common))
    killed = place.settings(f"{name}-killed", name=name, kill_at=kill_at, **common)
    forked(partial(one_run.main, killed), num_ranks=1, exit_code=-signal.SIGKILL)
    one_run.main(place.settings(f"{name}-resumed", name=name, num_workers=2, resume="must", **common))
    straight, before, after = (place.diary(f"{name}-{part}") for part in ("straight", "killed", "resumed"))
    assert len(straight) == steps and min(after)[0] == kill_at * one_run.GLOBAL_BATCH, "killed before the step was saved"
    assert before | after == straight
    weights, again = (place.result(f"{name}-{part}")["weights"] for part in ("straight", "resumed"))
    assert all(torch.equal(weights[k], again[k]) for k in weights)
