"""Gathering over two real processes: values, and the gradient of the sum of all ranks' losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import distributed

from lmlab.nn.gathering import gather, rank_and_size
from tests.ranks import forked


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_ranks(tmp_path: Path) -> None:
    def job() -> None:
        distributed.init_process_group("gloo")
        rank, size = rank_and_size()
        assert size == 2
        rows = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
        everyone = gather(rows)
        weights = torch.arange(12.0).view(6, 2) * (rank + 1)
        (everyone * weights).square().sum().backward()
        assert rows.grad is not None
        names = gather(torch.tensor([rank, 7]))
        found = {"all": everyone.tolist(), "grad": rows.grad.tolist(), "names": names.tolist()}
        (tmp_path / f"{rank}.json").write_text(json.dumps(found))
        distributed.destroy_process_group()

    forked(job)
    rows = (torch.arange(6.0).view(3, 2) + torch.tensor([0.0, 10.0]).view(2, 1, 1)).flatten(0, 1).requires_grad_()
    sum((rows * torch.arange(12.0).view(6, 2) * (r + 1)).square().sum() for r in range(2)).backward()  # type: ignore[union-attr]
    assert rows.grad is not None
    for rank in range(2):
        one = json.loads((tmp_path / f"{rank}.json").read_text())
        assert one["all"] == rows.tolist() and one["names"] == [0, 7, 1, 7]
        assert one["grad"] == rows.grad[3 * rank : 3 * rank + 3].tolist()


def test_a_process_alone_keeps_its_rows() -> None:
    rows = torch.randn(2, 3, requires_grad=True)
    assert gather(rows) is rows
