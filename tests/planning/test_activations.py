"""Activations that are predicted, against those that autograd keeps in a real pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import torch

from benchmarks.memory import measure
from lmlab import heads
from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.data.module import CorpusModule
from lmlab.nn import explicit
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.optim import OptimizerConfig
from lmlab.planning.activations import trace_activations
from lmlab.planning.cluster import Cluster
from lmlab.planning.devices import device_named
from lmlab.planning.examples import planned_batch
from lmlab.planning.memory import Bytes
from lmlab.planning.prediction import predict
from tests.objectives.toy import OBJECTIVES, batches, objective, tokenizer

TOKENIZER = tokenizer()
SIZE = 4
TOLERANCE = 0.15
"""Rows of a real batch are not all full, and blocks of several documents have a mask; the largest difference here is 13 %, of nsp."""
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"activation": "gelu_tanh", "norm": "layernorm", "position": "learned", "qkv_bias": True, "norm_bias": True, "dropout": 0.1},
    "bert": {"activation": "gelu", "norm": "layernorm", "norm_position": "post", "embedding_norm": "norm", "mlm_transform": "dense"},
    "llama": {"num_kv_heads": 2, "tie": "untied"},
    "t5": {"position": "t5", "activation": "relu", "feedforward_dropout": 0.1},
    "checkpointing": {"checkpointing": "blocks"},
}
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
DAILY = {"clm": "32-true", "mlm": "bf16-mixed", "nsp": "bf16-true", "gpt2": "32-true", "llama": "bf16-mixed", "checkpointing": "bf16-mixed"}


def pairs(names: Iterable[str]) -> list[Any]:
    """Each name with each precision; all but the daily ones are slow, for there are many."""
    return [
        pytest.param(name, precision, marks=[] if DAILY.get(name) == precision else pytest.mark.slow)
        for name, precision in product(names, PRECISIONS)
    ]


def predicted(module: Objective, precision: str) -> Bytes:
    data = CorpusModule("austen", TOKENIZER, module.feed(), global_batch_size=SIZE)
    found = predict(module, data, BudgetConfig(steps=1), Cluster(device=device_named("cpu")), precision=precision).rows[0].bytes
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "precision"), pairs(OBJECTIVES))
def test_prediction_beside_a_real_step(name: str, precision: str) -> None:
    module = objective(name, TOKENIZER, optimizer=OptimizerConfig(name="muon" if precision == "32-true" else "adamw"))
    found = predicted(copy.deepcopy(module), precision)
    measured = measure(module, batches(name, TOKENIZER, size=SIZE), precision)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(found, part) == getattr(measured, part), part
    assert found.activations == pytest.approx(measured.activations, rel=TOLERANCE)


@pytest.mark.parametrize(("shape", "precision"), pairs(SHAPES))
def test_full_rows_are_predicted_to_the_byte(shape: str, precision: str) -> None:
    config = BackboneConfig(hidden_size=32, num_layers=3, num_heads=4, **SHAPES[shape])
    module = (MLM if shape == "bert" else CLM)(TOKENIZER, config, length=24)
    batch = planned_batch(module.feed(), TOKENIZER, SIZE)  # type: ignore[arg-type]  # one task
    measured = measure(copy.deepcopy(module), [batch], precision)
    assert predicted(module, precision).activations == measured.activations


def traced(kind: str, precision: str = "32-true", **config: Any) -> int:
    def build() -> Objective:
        module = CLM(TOKENIZER, BackboneConfig(hidden_size=32, num_layers=2, num_heads=4, **config), length=32)
        module.configure_model()
        return module

    batch = planned_batch(build().feed(), TOKENIZER, SIZE)  # type: ignore[arg-type]
    return trace_activations(build, batch, precision, kind, lambda module, one: module(one)).total  # type: ignore[arg-type]


def test_a_gpu_keeps_all_scores_and_no_weights_of_attention() -> None:
    scores = SIZE * 32 * TOKENIZER.vocab_size * 4
    on_cpu, on_gpu = traced("cpu"), traced("gpu")
    # in place of the gradient of the matrix, which the CPU's cross-entropy makes on the way forward; labels are small
    assert on_gpu - on_cpu == pytest.approx(scores - TOKENIZER.vocab_size * 32 * 4, abs=2048)
    attention = 2 * SIZE * 4 * 32 * 32 * 2  # layers, heads, T, T, bfloat16
    assert traced("cpu", "bf16-true") - traced("gpu", "bf16-true") > attention - scores
    assert traced("gpu", attention_dropout=0.1) == on_gpu


def test_a_trace_leaves_nothing_behind() -> None:
    before = (explicit.preferable, heads.linear_cross_entropy, torch.get_default_dtype())
    traced("gpu", "bf16-true")
    assert (explicit.preferable, heads.linear_cross_entropy, torch.get_default_dtype()) == before

    def broken() -> Objective:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        trace_activations(broken, {}, "bf16-true", "gpu", lambda module, one: None)
    assert (explicit.preferable, heads.linear_cross_entropy, torch.get_default_dtype()) == before
