"""Students train as one process does, with the teacher whole on every rank and in no checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.runs import one_run, taught_run
from tests.runs.conftest import Place
from tests.strategies.conftest import PLAIN, Train, apart
from tests.strategies.test_parity import ROUNDED, SHARING, TOLERANCE

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # what DeepSpeed imports
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning"),  # what it calls
]


def taught(settings: Mapping[str, Any]) -> None:
    one_run.OBJECTIVES.update(taught_run.STUDENTS)  # of this rank alone
    one_run.main(dict(settings))


@pytest.fixture
def teacher(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the name that students ask for."""
    monkeypatch.setenv("LMLAB_RUNS", str(place.folder / "runs"))
    if not (place.folder / "runs" / "guide").exists():
        one_run.main(place.settings("guide", name="guide", objective="clm", **{**PLAIN, "micro": 8, "steps": 3}))


SGD = {"optimizer": "sgd", "lr": 0.1}


@pytest.mark.slow
@pytest.mark.usefixtures("teacher")
@pytest.mark.parametrize(
    ("objective", "strategy"), [*(("distillation", one) for one in ("ddp", *SHARING)), *(("on_policy", one) for one in ("fsdp", "zero3"))]
)
def test_students(train: Train, objective: str, strategy: str) -> None:
    one, two = train(objective, "auto", 1, main=taught, micro=8, **SGD), train(objective, strategy, main=taught, **SGD)
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE
    assert not [name for name in two["state_dict"] if "teacher" in name]


@pytest.mark.slow
@pytest.mark.usefixtures("teacher")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_students_by_adam(train: Train, strategy: str) -> None:
    one, two = train("distillation", "auto", 1, main=taught, micro=8), train("distillation", strategy, main=taught)
    assert apart(one["state_dict"], two["state_dict"]) < ROUNDED
