"""How many bytes a rank holds under each strategy, as functions of what there is to hold.

N ranks share a model of P parameters. What is counted exactly is what lasts from step to step: weights, gradients, optimiser state, copies.
What comes and goes (gathered layers, buckets) is counted at its largest, by the rule each strategy follows; that was not measured on GPUs.

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 3.1 and figure 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from lmlab.planning.optimizer_state import State
from lmlab.planning.weights import Network, Weight

Strategy = Literal["single", "ddp", "fsdp", "hsdp", "fsdp_tp", "zero1", "zero2", "zero3", "zero3_offload"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
"""From the simplest on: those of DeepSpeed last, because they need a further package."""

ZERO_BUCKET = 50_000_000
"""Elements that ZeRO exchanges at once, and that stage 3 gathers ahead: the default of `lmlab.strategies.ZeRO`."""


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """What one rank holds, in bytes.

    Args:
        weights: Parameters and buffers in the dtype that computes, teachers included.
        gradients: At the end of a backward pass.
        optimizer: State, and the float32 master copy where a strategy keeps one.
        average: Of the weights, where there is one.
        activations: Saved for the backward pass of one micro-batch.
        transient: What comes and goes: gathered layers, buckets, the gradient of the largest activation.
        host: On the machine's own memory instead of the device's.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int = 0
    activations: int = 0
    transient: int = 0
    host: int = 0

    @property
    def lasting(self) -> int:
        """Weights and optimiser state: what is there between two steps, gradients apart."""
        return self.weights + self.optimizer + self.average

    @property
    def total(self) -> int:
        """On the device, at the worst moment."""
        return self.lasting + self.gradients + self.activations + self.transient


class Working(NamedTuple):
    """What a forward and a backward pass take besides weights, gradients and state.

    Args:
        activations: Saved for the backward pass of one micro-batch, in bytes.
        transient: Besides them at the worst moment: a layer computed again, the gradient of the largest activation.
    """

    activations: int = 0
    transient: int = 0


NOTHING = Working()


@dataclass(frozen=True, kw_only=True)
class Held:
    """What there is to hold, before it is divided.

    Args:
        network: Parameters.
        states: What the optimiser keeps, by parameter.
        averages: Whether weights are averaged.
        computes_in: Bytes of an element in which matrices are multiplied; less than the weights' own under mixed precision.
        working: Of a pass in the weights' own dtype, under autocast if the precision is mixed.
        converted: The same where weights are in half precision already when they are computed with: FSDP gathers them so, DeepSpeed
            keeps them so.
        memory: Where the offloaded part goes: `host` is another memory than the device's, `device` the same (a CPU).
        gathered: Whether FSDP lets go of a layer before it gathers the next but one, or keeps all until the backward pass.
        bucket: Elements that ZeRO exchanges at once.
    """

    network: Network
    states: Mapping[str, Sequence[State]]
    averages: Literal["none", "ema"] = "none"
    computes_in: int = 4
    working: Working = NOTHING
    converted: Working = NOTHING
    memory: Literal["host", "device"] = "host"
    gathered: Literal["in_turn", "all"] = "in_turn"
    bucket: int = ZERO_BUCKET

    @property
    def trained(self) -> list[Weight]:
        """Parameters that get a gradient."""
        return [weight for weight in self.network.weights if weight.trainable]

    @property
    def whole(self) -> int:
        """Bytes that no strategy divides: buffers and teachers."""
        return self.network.buffer_bytes + sum(weight.nbytes for weight in self.network.frozen)


def footprint(strategy: Strategy, held: Held, ranks: int, ranks_per_group: int) -> Bytes:
    """What one rank holds: the one that has most, where parts are uneven.

    Args:
        strategy: How the run is spread.
        held: What there is to hold.
        ranks: All of them, at least 1.
        ranks_per_group: Those that HSDP shards among, such as the ranks of a node.
    """
    divide: dict[str, Callable[[], Bytes]] = {
        "single": lambda: _whole(held),
        "ddp": lambda: _ddp(held, ranks),
        "fsdp": lambda: _fsdp(held, ranks),
        "fsdp_tp": lambda: _fsdp(held, ranks),
        "hsdp": lambda: _fsdp(held, ranks_per_group),
        "zero1": lambda: _zero(held, ranks, stage=1),
        "zero2": lambda: _zero(held, ranks, stage=2),
        "zero3": lambda: _zero(held, ranks, stage=3),
        "zero3_offload": lambda: _offloaded(held, ranks),
    }
    found = divide[strategy]()
    working = held.working if strategy in ("single", "ddp") else held.converted
    return replace(found, activations=working.activations, transient=found.transient + working.transient)


def _state_bytes(held: Held, ranks: int = 1) -> int:
    """Of the optimiser, sharded along the first dimension."""
    total = 0
    for weight in held.trained:
        for state in held.states.get(weight.name, ()):
            follows = bool(state.shape) and state.shape[0] == weight.shape[0]
            total += (
                Weight(name="", shape=state.shape, itemsize=state.itemsize, trainable=False).share(ranks if follows else 1) * state.itemsize
            )
    return total


def _average_bytes(held: Held, ranks: int = 1) -> int:
    """Averages are kept in float32 or wider."""
    return 0 if held.averages == "none" else sum(weight.share(ranks) * max(4, weight.itemsize) for weight in held.trained)


def _whole(held: Held) -> Bytes:
    return Bytes(
        weights=held.whole + sum(weight.nbytes for weight in held.network.weights),
        gradients=sum(weight.nbytes for weight in held.trained),
        optimizer=_state_bytes(held),
        average=_average_bytes(held),
    )


def _ddp(held: Held, ranks: int) -> Bytes:
    """Everything on each rank, and the buckets in which gradients are exchanged, which together are as large as they are."""
    alone = _whole(held)
    return replace(alone, transient=alone.gradients if ranks > 1 else 0)


def _fsdp(held: Held, ranks: int) -> Bytes:
    """Everything divided; a layer is gathered while it is at work, what is in no layer throughout.

    On top come the next layer, which is gathered ahead, and the gradient of a layer before it is divided: as it was computed, and in
    the dtype of the weights, in which it is added up.
    """
    weights = held.network.weights
    sharded = Bytes(
        weights=held.whole + sum(weight.share(ranks) * weight.itemsize for weight in weights),
        gradients=sum(weight.share(ranks) * weight.itemsize for weight in held.trained),
        optimizer=_state_bytes(held, ranks),
        average=_average_bytes(held, ranks),
    )
    if ranks == 1:
        return sharded
    gathered, added = dict.fromkeys((weight.unit for weight in weights), 0), 0
    for weight in weights:
        gathered[weight.unit] += weight.numel * min(weight.itemsize, held.computes_in)
    for unit in gathered:
        trained = [weight for weight in held.trained if weight.unit == unit]
        added = max(added, sum(weight.numel * (weight.itemsize + min(weight.itemsize, held.computes_in)) for weight in trained))
    root = gathered.pop("", 0)
    layers = sorted(gathered.values(), reverse=True)
    return replace(sharded, transient=root + sum(layers if held.gathered == "all" else layers[:2]) + added)


def _zero(held: Held, ranks: int, stage: Literal[1, 2, 3]) -> Bytes:
    """The optimiser's part, with a float32 master copy of it, is divided; stage 2 divides gradients too, stage 3 also weights.

    DeepSpeed computes in the dtype of the precision, and keeps a master copy even where that is float32 already. All parameters are
    flattened, so parts are even.
    """
    computed = [(weight.numel, min(weight.itemsize, held.computes_in)) for weight in held.network.weights]
    trained = sum(weight.numel for weight in held.trained)
    size = min((min(weight.itemsize, held.computes_in) for weight in held.trained), default=4)
    part = -(-trained // ranks)
    everything = sum(number * itemsize for number, itemsize in computed)
    states = _flat_state_bytes(held, ranks)
    gradients = part if stage >= 2 else trained
    bucket = min(sum(weight.numel for weight in held.network.weights), held.bucket)
    # two buckets: one is filled while the other travels; and the float32 gradient of the part, when the step is taken
    moving = 2 * bucket * size + 4 * part
    if stage == 3:
        moving += (_outside(held) + _largest_layer(held) + bucket) * size  # what is in no layer is there as long as a pass lasts
    return Bytes(
        weights=held.whole + (-(-everything // ranks) if stage == 3 else everything),
        gradients=gradients * size,
        optimizer=4 * part + states,
        average=_average_bytes(held, ranks if stage == 3 else 1),
        transient=moving,
    )


def _offloaded(held: Held, ranks: int) -> Bytes:
    """Stage 3 whose part of weights, master copy, gradients, state and averages is in the machine's own memory."""
    divided = _zero(held, ranks, stage=3)
    if held.memory == "device":
        return divided
    stepped = 4 * -(-sum(weight.numel for weight in held.trained) // ranks)  # the float32 gradient of a step
    moved = divided.weights - held.whole + divided.gradients + divided.optimizer + divided.average + stepped
    kept = {"gradients": 0, "optimizer": 0, "average": 0, "transient": divided.transient - stepped}
    return replace(divided, weights=held.whole, host=moved, **kept)


def _flat_state_bytes(held: Held, ranks: int) -> int:
    """State of flattened parameters, in float32 whatever the weights are in."""
    elements = sum(4 * state.nbytes // state.itemsize for states in held.states.values() for state in states if not state.is_counter)
    return -(-elements // ranks)


def _outside(held: Held) -> int:
    """Elements that are in no layer."""
    return sum(weight.numel for weight in held.network.weights if not weight.unit)


def _largest_layer(held: Held) -> int:
    units: dict[str, int] = {}
    for weight in held.network.weights:
        if weight.unit:
            units[weight.unit] = units.get(weight.unit, 0) + weight.numel
    return max(units.values(), default=0)
