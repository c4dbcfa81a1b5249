"""bf16-mixed: what strategies do with it differs, and by how much."""

from __future__ import annotations

import pytest
import torch

from tests.strategies.conftest import Train, apart
from tests.strategies.test_parity import SHARING

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # what DeepSpeed imports
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning"),  # what it calls
]

ROUNDED = 2e-3
"""After 20 steps of 1e-3; in float32 the same runs are within 1e-6."""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", *SHARING])
@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_half_precision(train: Train, objective: str, strategy: str) -> None:
    one = train(objective, "auto", 1, micro=8, precision="bf16-mixed")
    two = train(objective, strategy, precision="bf16-mixed")
    assert 0.0 < apart(one["state_dict"], two["state_dict"]) < ROUNDED
    assert all(value.dtype == torch.float32 for value in two["state_dict"].values())
