"""What comes and goes in a pass, against a real one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lmlab.backbones import BackboneConfig
from lmlab.objectives.clm import CLM
from lmlab.planning.examples import planned_batch
from lmlab.planning.working import working_memory
from tests.objectives.toy import tokenizer

TOKENIZER = tokenizer()


class Casts(TorchDispatchMode):
    """Notes every tensor that is made in bfloat16 of one in float32, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16:
            self.made.append(result)
        return result


def model(checkpointing: str) -> CLM:
    config = BackboneConfig(hidden_size=32, num_layers=3, num_heads=4, checkpointing=checkpointing)  # type: ignore[arg-type]
    return CLM(TOKENIZER, config, length=8)


def built(checkpointing: str) -> CLM:
    made = model(checkpointing)
    made.configure_model()
    return made


def test_autocast_keeps_copies_of_matrices_though_layers_are_computed_again() -> None:
    """Somebody besides this test holds them until autocast is left."""
    module, casts = built("blocks").train(), Casts()
    batch = planned_batch(module.feed(), TOKENIZER, 1)  # type: ignore[arg-type]
    matrices = {tuple(p.shape) for name, p in module.named_parameters() if ".blocks." in name and p.ndim == 2}
    with torch.autocast("cpu", torch.bfloat16), casts:
        losses = module(batch)
        inside = [(copy, copy._use_count()) for copy in casts.made if tuple(copy.shape) in matrices]  # type: ignore[attr-defined]
    held = sum(copy.nbytes for copy, count in inside if copy._use_count() < count)  # type: ignore[attr-defined]
    assert losses.parts
    assert held == 2 * sum(p.numel() for name, p in module.named_parameters() if ".blocks." in name and p.ndim == 2)

    objective = model("blocks")
    found = working_memory(objective, lambda: built(objective.backbone_config.checkpointing), batch, "bf16-mixed", "cpu")
    assert found.transient >= held, "with rows this short they are more than a layer that is computed again"
    plain = working_memory(objective, lambda: built(objective.backbone_config.checkpointing), batch, "bf16-true", "cpu")
    assert plain.transient < held


def test_a_layer_that_is_computed_again_is_there_once() -> None:
    objective = model("blocks")
    batch = planned_batch(objective.feed(), TOKENIZER, 8)  # type: ignore[arg-type]

    def found(checkpointing: str) -> Any:
        one = model(checkpointing)
        return working_memory(one, lambda: built(one.backbone_config.checkpointing), batch, "32-true", "cpu")

    again, whole = found("blocks"), found("none")
    assert again.transient - whole.transient == (whole.activations - again.activations) // 3
