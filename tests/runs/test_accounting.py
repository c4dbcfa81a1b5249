"""Loss accounting: 1x8 = 8x1 accumulation = 2 ranks x 4, for every objective, through the whole trainer."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lmlab.run.record import Record
from tests.ranks import forked
from tests.runs import one_run
from tests.runs.conftest import Place, start

RTOL = 1e-6  # float32 sums taken in another order
ATOL = 2e-6
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
PLAIN = {"dropout": 0.0, "optimizer": "sgd", "lr": 0.5, "steps": 5, "checkpoints": 1}  # SGD shows any error of scale


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=RTOL, atol=ATOL) for k in a)


@pytest.mark.parametrize("objective", one_run.OBJECTIVES)
def test_one_process(place: Place, objective: str) -> None:
    found = []
    for micro in (8, 1):
        name = f"account-{objective}-{micro}"
        one_run.main(place.settings(name, name=name, objective=objective, micro=micro, **PLAIN))
        found.append(place.result(name)["weights"])
    assert same(*found)


@pytest.mark.parametrize(
    ("objective", "micro", "launcher"),
    [
        *((objective, 4, "fork") for objective in one_run.OBJECTIVES),
        *(pytest.param(objective, 2, "fork", marks=pytest.mark.slow) for objective in one_run.OBJECTIVES),
        pytest.param("mlm", 4, "torchrun", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_ranks(place: Place, objective: str, micro: int, launcher: str) -> None:
    alone, together = f"alone-{objective}-{micro}", f"ddp-{objective}-{micro}-{launcher}"
    one_run.main(place.settings(alone, name=alone, objective=objective, micro=8, **PLAIN))
    settings = place.settings(together, name=together, objective=objective, micro=micro, devices=2, **PLAIN)
    if launcher == "fork":
        forked(partial(one_run.main, settings))
    else:
        start(
            settings, ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
        )
    assert same(place.result(alone)["weights"], place.result(together)["weights"])


def test_ranks_that_lightning_starts_share_one_folder(place: Place) -> None:
    """Without the elastic launcher, rank 0 starts the others itself and tells them by their environment where the run lies."""
    start(place.settings("own-launcher", name="own-launcher", objective="clm", micro=4, devices=2, **PLAIN))
    [folder] = (place.folder / "runs" / "own-launcher").iterdir()
    record = Record.load(folder / "record.json")
    assert (record.status, record.spent["steps"]) == ("finished", PLAIN["steps"])
