"""Any strategy and any number of ranks goes on from the checkpoints of any other."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.runs.conftest import Place
from tests.strategies.conftest import PLAIN, Train, apart

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # what DeepSpeed imports
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning"),  # what it calls
]

TOLERANCE = 1e-6
RANKS = {"auto": 1, "ddp": 2, "fsdp": 2, "zero1": 2, "zero2": 2, "zero3": 2}
"""Strategies, and on how many ranks they are tried with each other."""
RESIZED = [("fsdp", 2, "auto", 1), ("auto", 1, "zero3", 2), ("fsdp", 2, "fsdp", 4), ("zero2", 2, "zero2", 4), ("zero3", 2, "ddp", 4)]
RESIZED += [("zero3_small", 2, "zero3_small", 4)]  # a network of which a rank holds billions is stepped in parts


def goes_on(place: Place, train: Train, first: str, ranks: int, second: str, more: int, objective: str = "mlm", **settings: Any) -> None:
    """Stops half-way, goes on otherwise, and ends where one process ends that did all of it."""
    settings = {"checkpoints": 2, "averaged": True, **settings}
    whole = train(objective, "auto", 1, micro=8, **settings)
    half = place.folder / "halves" / f"{objective}-{first}-{ranks}"
    end = place.folder / "resumed" / f"{objective}-{first}-{ranks}-{second}-{more}"
    given = {**settings, "micro": 2, "log_every": 1, "name": "half"}
    train(objective, first, ranks, root=str(half), stop_at=PLAIN["steps"] // 2, **given)
    if not end.exists():  # several tables name this pair
        shutil.copytree(half, end)
    last = train(objective, second, more, root=str(end), resume="must", **given)
    assert last["global_step"] == PLAIN["steps"]
    assert apart(whole["state_dict"], last["state_dict"]) < TOLERANCE
    assert apart(whole["lmlab_average"]["averages"], last["lmlab_average"]["averages"]) < TOLERANCE
    [run] = (end / "half").iterdir()
    assert positions(run) == list(range(1, PLAIN["steps"] + 1)), "each step once, in one run's folder"


def positions(folder: Path) -> list[int]:
    rows = (folder / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("step")
    return sorted({int(float(row.split(",")[column])) for row in rows[1:]})


@pytest.mark.parametrize(("first", "second"), [("fsdp", "zero3"), ("zero2", "auto")])
def test_going_on_otherwise(place: Place, train: Train, first: str, second: str) -> None:
    goes_on(place, train, first, RANKS[first], second, RANKS[second])


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [*product(RANKS, RANKS)])
def test_each_goes_on_from_each(place: Place, train: Train, first: str, second: str) -> None:
    goes_on(place, train, first, RANKS[first], second, RANKS[second])


@pytest.mark.slow
@pytest.mark.parametrize(("first", "ranks", "second", "more"), RESIZED)
def test_going_on_with_another_number_of_ranks(place: Place, train: Train, first: str, ranks: int, second: str, more: int) -> None:
    goes_on(place, train, first, ranks, second, more)
