"""Gathering over two real processes: values, and the gradient of the sum of all ranks' losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from lmlab.nn.gathering import gather

SCRIPT = """
import json, sys, torch
from torch import distributed
from lmlab.nn.gathering import gather, rank_and_size
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
rank, size = rank_and_size()
rows = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
everyone = gather(rows)
weights = torch.arange(12.0).view(6, 2) * (rank + 1)
(everyone * weights).square().sum().backward()
names = gather(torch.tensor([rank, 7]))
print(json.dumps({"all": everyone.tolist(), "grad": rows.grad.tolist(), "names": names.tolist()}))
"""


def test_two_ranks(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "meeting")]
    ranks = [subprocess.Popen([*command, str(r)], env=environment, stdout=subprocess.PIPE, text=True) for r in range(2)]
    try:
        found = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()  # one that waits for the other
            rank.communicate()
    rows = (torch.arange(6.0).view(3, 2) + torch.tensor([0.0, 10.0]).view(2, 1, 1)).flatten(0, 1).requires_grad_()
    sum((rows * torch.arange(12.0).view(6, 2) * (r + 1)).square().sum() for r in range(2)).backward()  # type: ignore[union-attr]
    assert rows.grad is not None
    for rank, one in enumerate(found):
        assert one["all"] == rows.tolist() and one["names"] == [0, 7, 1, 7]
        assert one["grad"] == rows.grad[3 * rank : 3 * rank + 3].tolist()


def test_a_process_alone_keeps_its_rows() -> None:
    rows = torch.randn(2, 3, requires_grad=True)
    assert gather(rows) is rows
