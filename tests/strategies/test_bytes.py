"""What a rank holds from step to step of a network of some 100 M parameters."""

from __future__ import annotations

import pytest

from benchmarks.strategies import measure
from lmlab.backbones import BackboneConfig

OF_DDP = {"fsdp": 0.55, "zero1": 0.85, "zero2": 0.85, "zero3": 0.70}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # what DeepSpeed imports
@pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning")  # what it calls
@pytest.mark.timeout(600)
def test_ranks_share_weights_and_optimizer_state() -> None:
    found = measure(BackboneConfig(hidden_size=768, num_layers=13, num_heads=12))
    assert found["ddp"]["weights"] > 4 * 90e6 and found["ddp"]["optimizer"] == pytest.approx(2 * found["ddp"]["weights"], rel=1e-3)
    whole = sum(found["ddp"].values())
    for strategy, most in OF_DDP.items():
        assert 0.45 < sum(found[strategy].values()) / whole <= most, strategy
