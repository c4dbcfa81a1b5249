"""Compiled passes under strategies, in processes of their own: a compiler does not live on in a fork."""

from __future__ import annotations

import os

import pytest

from tests.runs.conftest import Place, start
from tests.runs.launches import TORCHRUN
from tests.strategies.conftest import PLAIN, Train, apart, last
from tests.strategies.test_parity import TOLERANCE


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_compiled_ranks_train_as_one_process(place: Place, train: Train, strategy: str) -> None:
    one, name = train("clm", "auto", 1, micro=8), f"compiled-{strategy}"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place.folder / "inductor")
    given = {**PLAIN, "objective": "clm", "strategy": strategy, "devices": 2, "compiled": True}
    start(place.settings(name, name=name, **given), (*TORCHRUN, "--standalone"))
    assert apart(one["state_dict"], last(place, name)["state_dict"]) < TOLERANCE
