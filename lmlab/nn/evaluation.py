"""Asking a network something in the middle of its training, without dropout and without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lmlab.nn.seeding import reseed


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Runs what is inside in evaluation mode and without gradients.

    Afterwards, also after an error, each part is in the mode it was in: a frozen teacher inside a network that trains stays at rest.
    What a part uses without owning it, it lists under `borrowed`; that is asked and put back as well.

    Args:
        module: The network to ask.
    """
    lenders = [lender for part in module.modules() for lender in getattr(part, "borrowed", ())]
    modes = [(part, part.training) for whole in (module, *lenders) for part in whole.modules()]
    for whole in (module, *lenders):
        whole.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, was_training in modes:
            part.training = was_training


@contextmanager
def with_dropout(module: nn.Module, seed: int) -> Iterator[None]:
    """Runs what is inside with dropout, also in an evaluation, and leaves no trace: neither in modes nor in the random stream.

    Args:
        module: The network to ask.
        seed: Decides what is dropped.
    """
    modes = [(part, part.training) for part in module.modules()]
    devices = {parameter.device for parameter in module.parameters() if parameter.device.type == "cuda"}
    module.train()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            reseed(seed)
            yield
    finally:
        for part, was_training in modes:
            part.training = was_training
