"""An average of the weights over the run, to validate and to keep instead of the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmlab.config import require
from lmlab.errors import CheckpointError, LabError
from lmlab.nn.sharded import fill, full_shape, own_part, put, share_of, whole


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """How weights are averaged.

    Args:
        decay: What the average keeps of itself in each update, in [0, 1); it looks back over about 1 / (1 - decay) updates.
        warmup: `count`: the t-th update (from 0) keeps min(decay, (1 + t) / (10 + t)), so that the random weights of the start
            are soon forgotten. `none`: `decay` from the first update on.

    Source: Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; the warm-up is that of
    TensorFlow's `ExponentialMovingAverage`. Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
    Models", section 3, say why a decay that grows with t suits training from scratch.
    """

    decay: float = 0.999
    warmup: Literal["count", "none"] = "count"

    def __post_init__(self) -> None:
        """Refuses a decay that would never forget or never remember."""
        require(0 <= self.decay < 1, self, "decay", "it lies in [0, 1)", "for example 0.999")
        require(self.warmup in ("count", "none"), self, "warmup", "there is no such warm-up", "choose 'count' or 'none'")


class ExponentialMovingAverage:
    """Running average of a module's parameters.

    One tensor a parameter, made like it: a sharded parameter has a sharded average, and no copy of the module is needed. Half-precision
    parameters are averaged in float32, where a change of a thousandth is not lost. Buffers are not averaged; while the
    averages stand in, the module uses the buffers it has. Tied parameters are averaged once, frozen ones not at all.

    Args:
        module: Its parameters must be what they will stay: make this after sharding.
        config: Decay and warm-up.
    """

    def __init__(self, module: nn.Module, config: EMAConfig | None = None) -> None:
        """Starts from the weights as they are."""
        self.config = config or EMAConfig()
        self.num_updates = 0
        """How often the average was updated."""
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._averages = {name: _wide(p).clone() for name, p in self._parameters.items()}
        self._stashed: list[Tensor] | None = None

    @property
    def decay(self) -> float:
        """What the next update keeps of the average."""
        warm = (1 + self.num_updates) / (10 + self.num_updates)
        return min(self.config.decay, warm) if self.config.warmup == "count" else self.config.decay

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are; call it after each step of the optimizer.

        Raises:
            LabError: While the averages stand in for the weights.
        """
        self._require_out("updated")
        averages, weights = (list(map(own_part, tensors)) for tensors in (self._averages.values(), map(_wide, self._parameters.values())))
        torch._foreach_lerp_(averages, weights, 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]
        self.num_updates += 1

    @torch.no_grad()
    def swap_in(self) -> None:
        """Puts the averages into the module, in place, and keeps the weights aside.

        Raises:
            LabError: If they are in already.
        """
        self._require_out("swapped in")
        self._stashed = [share_of(p).clone() for p in self._parameters.values()]
        for parameter, average in zip(self._parameters.values(), self._averages.values(), strict=True):
            put(parameter, average)

    @torch.no_grad()
    def swap_out(self) -> None:
        """Puts the weights back, bit for bit; does nothing if they are there."""
        if self._stashed is not None:
            for parameter, weight in zip(self._parameters.values(), self._stashed, strict=True):
                put(parameter, weight)
            self._stashed = None

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The averages stand in for the weights inside a `with`, whatever happens there."""
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()

    def state_dict(self, kind: Literal["whole", "parts"] = "whole") -> dict[str, Any]:
        """Number of updates, and averages by name; right also while they stand in.

        Args:
            kind: Copies of whole averages, or the averages themselves, sharded where the parameters are.
        """
        averages = dict(self._averages)
        if kind == "whole":
            averages = {name: whole(average, self._parameters[name]).clone() for name, average in self._averages.items()}
        return {"num_updates": self.num_updates, "averages": averages}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state, in place.

        Args:
            state: From `state_dict`, of a module with the same parameters.

        Raises:
            CheckpointError: If names or shapes differ.
        """
        saved: Mapping[str, Tensor] = state["averages"]
        differing = sorted(set(saved) ^ set(self._averages)) or [n for n, p in self._parameters.items() if saved[n].shape != full_shape(p)]
        if differing:
            raise CheckpointError(
                f"the averages do not fit: {', '.join(differing[:3])}",
                where="ema",
                why=f"{len(differing)} names or shapes differ between the checkpoint and the model",
                remedy="load it into the model it was saved from, or leave the averages out",
            )
        for name, average in self._averages.items():
            fill(average, saved[name], self._parameters[name])
        self.num_updates = int(state["num_updates"])

    def _require_out(self, verb: str) -> None:
        if self._stashed is not None:
            raise LabError(f"the averages cannot be {verb}", why="they stand in for the weights", remedy="swap them out first")


def _wide(parameter: Tensor) -> Tensor:
    """This rank's values in float32 or wider, without a copy where they are."""
    return share_of(parameter).to(torch.promote_types(parameter.dtype, torch.float32))
