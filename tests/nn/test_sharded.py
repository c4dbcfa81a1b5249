"""Whole weights find their way into shares."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lmlab.nn.sharded import load_whole, whole
from tests.ranks import forked

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def network(features: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, features), nn.Linear(features, 2))


def test_whole_networks_are_loaded_as_torch_does() -> None:
    source, target = network(), network()
    assert load_whole(target, source.state_dict()) == []
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    assert load_whole(target, {"0.bias": torch.ones(3)}, strict=False) == ["0.weight", "1.weight", "1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
        load_whole(target, {"0.bias": torch.ones(3)})


def shares() -> None:
    distributed.init_process_group("gloo")
    torch.manual_seed(distributed.get_rank())  # what is there before does not matter
    target, mesh = network(), init_device_mesh("cpu", (2,))
    fully_shard(target[0], mesh=mesh)
    torch.manual_seed(9)
    source = network()
    assert load_whole(target, source.state_dict()) == []
    assert isinstance(target[0].weight, DTensor) and not isinstance(target[1].weight, DTensor)
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(a, whole(b.detach(), b))
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        load_whole(target, network(4).state_dict())
    distributed.destroy_process_group()


def test_each_rank_takes_its_share() -> None:
    forked(shares)
