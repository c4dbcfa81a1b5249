"""What the passes of an objective take besides its weights: activations, recomputed layers, copies in half precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from lmlab.backbones.base import BackboneConfig
from lmlab.data.batch import Batch
from lmlab.objectives.base import Objective
from lmlab.planning.activations import Activations, Kind, trace_activations
from lmlab.planning.memory import Working
from lmlab.planning.weights import MIXED, Network, network_of


def working_memory(objective: Objective, build: Callable[[], Objective], batch: Batch, precision: str, kind: Kind) -> Working:
    """What one micro-batch takes.

    The tasks of several are differentiated one by one, so the largest counts. Where layers are computed again, what one of them keeps comes
    on top, or the copies in half precision that autocast keeps of all matrices until the forward pass is over, if these are more.

    Args:
        objective: Not built.
        build: Makes a built copy of it, with its teachers.
        batch: What its collator makes.
        precision: Of the Trainer, by its full name.
        kind: What it runs on.
    """
    parts = [{"tasks": {task: own}} for task, own in batch["tasks"].items()] if "tasks" in batch else [batch]

    def trace() -> Activations:
        found = [trace_activations(build, part, precision, kind, lambda module, one: module(one)) for part in parts]
        return max(found, key=lambda one: one.total)

    found = trace()
    if objective.backbone_config.checkpointing == "none":
        return Working(found.total, found.largest)
    _set_checkpointing(objective, "none")
    try:
        full = trace()
    finally:
        _set_checkpointing(objective, "blocks")
    with torch.device("meta"):
        network = network_of(build())
    layers = max(1, len({weight.unit for weight in network.weights} - {""}))
    return Working(found.total, found.largest + max((full.total - found.total) // layers, _copies(network, precision)))


def _copies(network: Network, precision: str) -> int:
    """Of matrices of layers, in the dtype of autocast: it casts each once in a forward pass, and remembers it until the pass is over."""
    if precision not in MIXED:
        return 0
    return sum(weight.numel * MIXED[precision].itemsize for weight in network.weights if weight.unit and len(weight.shape) > 1)


def _set_checkpointing(objective: Objective, value: str) -> None:
    for one in objective.modules():
        if isinstance(one, Objective) and isinstance(one.backbone_config, BackboneConfig):
            one.backbone_config = dataclasses.replace(one.backbone_config, checkpointing=value)
