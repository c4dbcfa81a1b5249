"""Watches the order in which gradients come."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import distributed, nn

from lmlab.errors import LabError

LARGEST = 2**62
"""What an exchanged number may be, with either sign."""


class GradientOrder:
    """Refuses to step with gradients that came in one order here and in another on another rank.

    DeepSpeed's stages 2 and 3 fill a bucket as gradients come, and add up over ranks what lies at the same place in it. Where the graph
    depends on the text, as that of an LSTM over documents does, these are gradients of different parameters, and nothing would tell.

    Args:
        parameters: Those that are trained, the same on all ranks.
        device: Where numbers are exchanged.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        """Hooks each parameter."""
        self._seen, self._device = 0, device
        for number, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._note(number))

    def _note(self, number: int) -> None:
        self._seen = hash((self._seen, number)) % LARGEST  # of numbers: the same in every process

    def check(self) -> None:
        """Compares what came since the last call. All ranks must ask.

        Raises:
            LabError: If ranks differ; nothing was stepped yet.
        """
        seen, self._seen = self._seen, 0
        most = torch.tensor([seen, -seen], device=self._device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        if most[0] != -most[1]:
            raise LabError(
                "gradients come in another order on another rank",
                where="trainer.strategy",
                why="DeepSpeed adds up over ranks what comes first with what comes first, whichever parameter it is of",
                remedy="use -c configs/strategies/fsdp.yaml or zero1.yaml, or make the same graph of every batch",
            )
