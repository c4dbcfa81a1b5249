"""Runs on several ranks, forked from this process, which has imported what they need."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.callbacks.peak import peak_flops
from lmlab.checkpoint import read_checkpoint
from tests.ranks import forked, import_deepspeed
from tests.runs import one_run
from tests.runs.conftest import Place, place  # noqa: F401  a fixture

os.environ.setdefault("DS_ACCELERATOR", "cpu")

PLAIN: dict[str, Any] = {"dropout": 0.0, "optimizer": "adamw", "lr": 1e-3, "steps": 20, "checkpoints": 1, "validations": 1, "micro": 2}
Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def train(place: Place) -> Train:  # noqa: F811
    """Trains on so many ranks, and gives the last checkpoint; the same run is not made twice."""
    import_deepspeed()
    for dtype in (torch.float32, torch.bfloat16):
        peak_flops("cpu", dtype)  # once for all ranks to come

    done: dict[str, dict[str, Any]] = {}

    def run(
        objective: str, strategy: str, ranks: int = 2, main: Callable[[Mapping[str, Any]], None] = one_run.main, **given: Any
    ) -> dict[str, Any]:
        settings = {**PLAIN, **given}
        label = "-".join(map(str, (objective, strategy, ranks, *(f"{k}{v}" for k, v in sorted(given.items()))))).replace("/", "_")
        name = settings.pop("name", label)
        if label not in done:
            job = partial(main, place.settings(label, name=name, objective=objective, strategy=strategy, devices=ranks, **settings))
            forked(job, num_ranks=ranks, exit_code=128 + signal.SIGTERM if "stop_at" in given else 0)
            done[label] = last(place, name, given.get("root"))
        return done[label]

    return run


def last(place: Place, name: str, root: str | None = None) -> dict[str, Any]:  # noqa: F811
    """The last checkpoint of the only run of a name."""
    [folder] = (Path(root or place.folder / "runs") / name).iterdir()
    path = sorted((folder / "checkpoints").glob("step=*.ckpt"))[-1]
    return read_checkpoint(path) if path.is_dir() else torch.load(path, weights_only=True)


def apart(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """The largest difference; infinite if they do not hold the same."""
    if a.keys() != b.keys() or any(a[k].shape != b[k].shape or a[k].dtype != b[k].dtype for k in a):
        return float("inf")
    return max((a[k] - b[k]).abs().max().item() for k in a)


def structure(checkpoint: Mapping[str, Any]) -> Any:
    """What an optimizer's state holds, without its values."""
    [state] = checkpoint["optimizer_states"]
    kept = [{k: v for k, v in group.items() if k not in ("lr", "fused", "foreach")} for group in state["param_groups"]]
    groups = [{k: list(v) if isinstance(v, tuple) else v for k, v in group.items()} for group in kept]
    tensors = {n: {k: (tuple(v.shape), v.dtype) for k, v in values.items()} for n, values in state["state"].items()}
    return groups, tensors


def moments(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of an optimizer's state."""
    [state] = checkpoint["optimizer_states"]
    return {f"{n}.{k}": v for n, values in state["state"].items() for k, v in values.items()}
