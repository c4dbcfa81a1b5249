"""Muon on matrices that DeepSpeed has laid end to end and cut into parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from lmlab.nn.sharded import full_shape, is_partitioned
from lmlab.optim.muon import Half, MuonWithAdamW
from lmlab.strategies.zero_state import flat_parts

EXCHANGED = torch.bfloat16
"""Muon's iteration begins by rounding to it, so that nothing is lost on the way."""


class Piece(NamedTuple):
    """What a rank has of a matrix.

    Args:
        shape: Of the matrix.
        place: Where the piece begins in the rank's flat part.
        first: Where it begins in the matrix, row by row.
        size: Its elements; 0 if the rank has none.
        is_split: Whether no rank has all of the matrix.
    """

    shape: torch.Size
    place: int
    first: int
    size: int
    is_split: bool = False


class FlatMuon(MuonWithAdamW):
    """`MuonWithAdamW` for parameters that a rank has flat parts of, with the same state: the moving average, laid out like the part.

    The average is taken element by element. What is to be orthogonalised is a whole matrix: ranks that have one do so, and those that
    share one add up its pieces first. In a group, stages 1 and 2 share one matrix at most between a rank and the next, and so divide the
    work; at stage 3 each rank has a piece of each, and all do the same. It belongs to an engine, and cannot be copied.

    Args:
        optimizer: As one process would use it; groups are taken over.
        device: Where matrices are put together; state may be elsewhere.
    """

    def __init__(self, optimizer: MuonWithAdamW, device: torch.device) -> None:
        """Takes the groups over; where pieces lie is known when an engine has been made."""
        super().__init__(optimizer.param_groups, muon={}, adamw={})
        self._device = device
        self._rounds: dict[Tensor, list[list[Piece]]] = {}

    def find(self, module: nn.Module, sharing: Any, names: list[list[str]]) -> None:
        """Finds the pieces. All ranks must ask, before the first step.

        Args:
            module: What is trained.
            sharing: DeepSpeed's optimizer around this one.
            names: Of the parameters of each group.
        """
        parameters = dict(module.named_parameters())
        orthogonal = {name for group, own in zip(self.param_groups, names, strict=True) if group["update"] == "muon" for name in own}
        for part, tile in flat_parts(module, sharing, names):
            own = [parameters[name] for name in tile if name in orthogonal and parameters[name].requires_grad]
            pieces = self._with_splits(_pieces(own))
            # what is shared is exchanged before anything is computed, lest ranks wait for each other's work; at stage 3, where all work is
            # the same, there is one matrix at a time instead
            self._rounds[part] = [[piece] for piece in pieces] if any(map(is_partitioned, own)) else [pieces]

    def _with_splits(self, pieces: list[Piece]) -> list[Piece]:
        if not pieces:
            return []
        largest = torch.tensor([piece.size for piece in pieces], device=self._device)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return [piece._replace(is_split=size < piece.shape.numel()) for piece, size in zip(pieces, largest.tolist(), strict=True)]

    def _step_half(self, half: Half, groups: list[dict[str, Any]]) -> None:
        if not isinstance(half, torch.optim.Muon):
            super()._step_half(half, groups)
            return
        for group in groups:
            for part in group["params"]:
                assert part.grad is not None
                state = self.state[part]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(part)
                average = state["momentum_buffer"].lerp_(part.grad, 1 - group["momentum"])
                for pieces in self._rounds[part]:
                    shared = [self._shared(group, piece, part.grad, average) for piece in pieces]
                    for piece, values in zip(pieces, shared, strict=True):
                        if piece.size:
                            update = values if values is not None else self._update(group, piece, part.grad, average)
                            self._step_piece(half, group, piece, part, update)
        half.param_groups, half.state = [], defaultdict(dict)  # the last matrix need not stay

    def _update(self, group: Mapping[str, Any], piece: Piece, gradient: Tensor, average: Tensor) -> Tensor:
        """Of the rank's own piece, flat."""
        gradient, average = (x.narrow(0, piece.place, piece.size) for x in (gradient, average))
        return (gradient.lerp(average, group["momentum"]) if group["nesterov"] else average).to(self._device)

    def _shared(self, group: Mapping[str, Any], piece: Piece, gradient: Tensor, average: Tensor) -> Tensor | None:
        """Of the whole matrix, flat, if it is split and this rank has a piece; all ranks ask."""
        if not piece.is_split:
            return None
        update = _spread(self._update(group, piece, gradient, average).to(EXCHANGED), piece)
        distributed.all_reduce(update)
        return update if piece.size else None

    def _step_piece(self, half: Half, group: Mapping[str, Any], piece: Piece, part: Tensor, update: Tensor) -> None:
        weights = part.narrow(0, piece.place, piece.size)
        # torch's Muon does the rest: of a matrix whose other elements are zero, with the average for its gradient
        matrix = _spread(weights.to(self._device), piece).view(piece.shape)
        matrix.grad = update.to(matrix.dtype).view(piece.shape)
        half.param_groups, half.state = [{**group, "params": [matrix], "momentum": 0.0}], defaultdict(dict)
        half.step()
        weights.copy_(matrix.flatten().narrow(0, piece.first, piece.size))


def _pieces(parameters: Sequence[Any]) -> list[Piece]:
    """Of the parameters that lie in a flat part, in their order there."""
    pieces, end = [], 0
    for parameter in parameters:
        shape = full_shape(parameter)
        if is_partitioned(parameter):
            # stage 3 cuts each parameter into parts of one size, of which the last ones may be beyond its end
            size = parameter.partition_numel()
            first = min(distributed.get_rank() * size, shape.numel())
            pieces.append(Piece(shape, end, first, min(size, shape.numel() - first)))
            end += size
        elif parameter._hp_mapping is None:
            pieces.append(Piece(shape, 0, 0, 0))
        else:
            inside, there = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
            pieces.append(Piece(shape, there.start, inside.start, there.numel))
    return pieces


def _spread(values: Tensor, piece: Piece) -> Tensor:
    """A matrix, flat, of which a rank has these values; the others are zero."""
    matrix = values.new_zeros(piece.shape.numel())
    matrix.narrow(0, piece.first, piece.size).copy_(values)
    return matrix
