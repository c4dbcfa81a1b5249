"""Muon for hidden matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch.optim import AdamW, Muon, Optimizer

from lmlab.errors import ConfigError
from lmlab.nn.sharded import full_shape

Half: TypeAlias = Muon | AdamW
HALVES: dict[str, type[Half]] = {"muon": Muon, "adamw": AdamW}
"""What a group's `update` may say."""


class MuonWithAdamW(Optimizer):
    """One optimizer whose groups say which of two updates they get.

    Orthogonalising an update makes sense for a matrix that maps hidden states to hidden states; embeddings, heads and vectors
    are left to AdamW. One optimizer rather than two, because automatic optimisation, schedulers and checkpoints take one.
    The arithmetic is torch's own: each step lends the groups and their state to a `torch.optim.Muon` and a `torch.optim.AdamW`.

    Args:
        groups: Parameter groups; `update` of each is "muon" (2-D parameters only) or "adamw".
        muon: Keyword arguments of `torch.optim.Muon` that a group does not give itself.
        adamw: Keyword arguments of `torch.optim.AdamW`, likewise.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; with `adjust_lr_fn="match_rms_adamw"`
    Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2: one learning rate and decay fit both halves.
    """

    def __init__(self, groups: list[dict[str, Any]], *, muon: dict[str, Any], adamw: dict[str, Any]) -> None:
        """Completes the groups with the defaults of their update."""
        for group in groups:
            if group.get("update") not in HALVES:
                raise ConfigError(f"a parameter group asks for the update {group.get('update')!r}", remedy="set it to 'muon' or 'adamw'")
            if group["update"] == "muon" and any(len(full_shape(p)) != 2 for p in group["params"]):
                what, remedy = f"the group '{group.get('name', 'muon')}' has a parameter that is no matrix", "give it to 'adamw'"
                raise ConfigError(what, why="Muon orthogonalises matrices", remedy=remedy)
        # which writes the defaults of a half into its groups
        self._halves = _build_halves(groups, {"muon": muon, "adamw": adamw})
        super().__init__(groups, {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over groups and state after copying, unpickling and `load_state_dict`."""
        super().__setstate__(state)
        self._halves = _build_halves(self.param_groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates every parameter that has a gradient.

        Args:
            closure: Computes the loss again and returns it.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for update, half in self._halves.items():
            self._step_half(half, [group for group in self.param_groups if group["update"] == update])
        return loss

    def _step_half(self, half: Half, groups: list[dict[str, Any]]) -> None:
        # lent anew each time: loading, sharding and schedulers may have put others in their place
        half.param_groups = groups
        half.state = self.state
        half.step()


def _build_halves(groups: list[dict[str, Any]], keywords: dict[str, dict[str, Any]]) -> dict[str, Half]:
    halves: dict[str, Half] = {}
    for update, cls in HALVES.items():
        own = [group for group in groups if group["update"] == update]
        if own:
            # without their parameters, for Muon looks at shapes, and ZeRO-3 leaves a rank nothing of a matrix's
            bare: list[dict[str, Any]] = [{**group, "params": []} for group in own]
            halves[update] = cls(cast(Any, bare), **keywords.get(update, {}))
            for group, complete in zip(own, bare, strict=True):
                group.update({**complete, "params": group["params"]})
    return halves
