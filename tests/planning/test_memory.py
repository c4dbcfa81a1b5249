"""Bytes of a rank, against figures that were counted in real runs and that the ZeRO paper prints."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from lmlab.planning.memory import ZERO_BUCKET, Held, Strategy, Working, footprint
from lmlab.planning.optimizer_state import State
from lmlab.planning.weights import Network, Weight
from lmlab.strategies import ZeRO

ROOT = Path(__file__).parents[2]
MB, GB = 1e6, 1e9


def held(num_parameters: int, itemsize: int = 4, **given: object) -> Held:
    """A model of one even matrix with AdamW."""
    weight = Weight(name="w", shape=(num_parameters // 100, 100), itemsize=itemsize, trainable=True)
    states = {"w": (State((), 4), State(weight.shape, itemsize), State(weight.shape, itemsize))}
    return Held(network=Network(weights=(weight,)), states=states, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strategy", "counted"), [("single", 1120), ("ddp", 1120), ("fsdp", 560), ("zero1", 934), ("zero2", 934), ("zero3", 747)]
)
def test_what_lasts_is_what_was_counted_in_runs_of_two_ranks(strategy: Strategy, counted: int) -> None:
    """Weights and optimiser state of 93.4 M parameters in float32, in megabytes, as `benchmarks.strategies` counts them."""
    assert footprint(strategy, held(93_362_688), 2, 2).lasting / MB == pytest.approx(counted, abs=1)


@pytest.mark.parametrize(("strategy", "printed"), [("single", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_half_precision_takes_what_figure_1_of_the_zero_paper_says(strategy: Strategy, printed: float) -> None:
    """7.5 B parameters on 64 devices: 2 bytes of weights, 2 of gradients, 12 of optimiser state and master copy."""
    model = held(7_500_000_000, computes_in=2)
    found = footprint(strategy, model, 64, 8)
    if strategy == "single":  # here mixed precision without ZeRO is autocast: 4 + 4 + 8, which is as much
        assert found.gradients == found.weights == 30 * GB
    assert (found.lasting + found.gradients) / GB == pytest.approx(printed, abs=0.06)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100])
def test_the_largest_part_is_that_of_torchs_chunks(rows: int) -> None:
    weight = Weight(name="w", shape=(rows, 3), itemsize=4, trainable=True)
    assert weight.share(8) == max(chunk.numel() for chunk in torch.empty(rows, 3).chunk(8))
    assert weight.share(1) == weight.numel


def test_fsdp_gathers_the_root_and_two_layers_and_exchanges_the_gradient_of_one() -> None:
    sizes = {"": 1000, "blocks.0": 400, "blocks.1": 400, "blocks.2": 300}
    weights = tuple(Weight(name=unit or "root", shape=(size,), itemsize=4, trainable=True, unit=unit) for unit, size in sizes.items())
    found = footprint("fsdp", Held(network=Network(weights=weights), states={}), 4, 4)
    assert found.weights == found.gradients == 4 * 2100 // 4
    assert found.transient == 4 * (1000 + 400 + 400 + 2 * 1000)
    mixed = footprint("fsdp", Held(network=Network(weights=weights), states={}, computes_in=2), 4, 4)
    assert mixed.transient == 2 * (1000 + 400 + 400 + 1000) + 4 * 1000, "gradients are added up in float32"
    assert footprint("fsdp", Held(network=Network(weights=weights), states={}), 1, 1).transient == 0


def test_hsdp_divides_within_a_node_only() -> None:
    model = held(1_000_000)
    assert footprint("hsdp", model, 64, 8) == footprint("fsdp", model, 8, 8)


def test_ddp_needs_room_for_the_gradients_once_more() -> None:
    found = footprint("ddp", held(1_000_000), 2, 2)
    assert found.transient == found.gradients == 4_000_000
    assert found.total == footprint("single", held(1_000_000), 1, 1).total + 4_000_000


def test_zero_moves_buckets() -> None:
    """Two buckets in the dtype that travels, and the float32 gradient of the part; stage 3 gathers a layer, and some ahead."""
    assert inspect.signature(ZeRO).parameters["bucket"].default == ZERO_BUCKET
    assert f"buckets of {ZERO_BUCKET // 10**6} M elements" in (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    large = held(4 * ZERO_BUCKET, computes_in=2)
    assert footprint("zero2", large, 8, 8).transient == 2 * 2 * ZERO_BUCKET + 4 * ZERO_BUCKET // 2
    assert footprint("zero3", large, 8, 8).transient - footprint("zero2", large, 8, 8).transient == 2 * 4 * ZERO_BUCKET + 2 * ZERO_BUCKET
    small, set_small = held(4 * ZERO_BUCKET, computes_in=2, bucket=1000), held(1000)
    assert footprint("zero2", small, 8, 8).transient == 2 * 2 * 1000 + 4 * ZERO_BUCKET // 2
    assert footprint("zero2", set_small, 2, 2).transient == 2 * 4 * 1000 + 4 * 500, "no more than the network has"


def test_zero_3_has_what_is_in_no_layer_beside_each_layer() -> None:
    sizes = {"": 1000, "blocks.0": 400, "blocks.1": 300}
    weights = tuple(Weight(name=unit or "root", shape=(size,), itemsize=4, trainable=True, unit=unit) for unit, size in sizes.items())
    found = footprint("zero3", Held(network=Network(weights=weights), states={}, bucket=10), 2, 2)
    assert found.transient == 2 * 10 * 4 + 4 * 850 + 4 * (1000 + 400 + 10)


def test_layers_that_stay_gathered_are_all_there_at_once() -> None:
    sizes = {"": 1000, "blocks.0": 400, "blocks.1": 400, "blocks.2": 300}
    weights = tuple(Weight(name=unit or "root", shape=(size,), itemsize=4, trainable=True, unit=unit) for unit, size in sizes.items())
    network = Network(weights=weights)
    turns, whole = (footprint("fsdp", Held(network=network, states={}, gathered=how), 4, 4).transient for how in ("in_turn", "all"))
    assert whole - turns == 4 * 300


def test_offload_moves_what_lasts_to_the_host_and_on_a_cpu_nowhere() -> None:
    model = held(1_000_000, computes_in=2)
    on_device, away = footprint("zero3", model, 4, 4), footprint("zero3_offload", model, 4, 4)
    assert away.lasting == away.gradients == 0
    assert away.host == on_device.lasting + on_device.gradients + 4 * 250_000, "with the float32 gradient of a step"
    assert away.transient == on_device.transient - 4 * 250_000
    on_cpu = footprint("zero3_offload", held(1_000_000, computes_in=2, memory="device"), 4, 4)
    assert (on_cpu.total, on_cpu.host) == (on_device.total, 0)


def test_averages_are_in_float32_and_divided_like_weights() -> None:
    model = held(1_000_000, itemsize=2, averages="ema")
    assert footprint("single", model, 1, 1).average == 4_000_000
    assert footprint("fsdp", model, 4, 4).average == footprint("zero3", model, 4, 4).average == 1_000_000
    assert footprint("zero2", model, 4, 4).average == 4_000_000
    assert footprint("zero3_offload", model, 4, 4).average == 0


def test_teachers_and_buffers_are_whole_on_every_rank() -> None:
    guest = Weight(name="g", shape=(10, 10), itemsize=4, trainable=False)
    alone = held(1_000_000).network.weights
    model = Held(network=Network(weights=alone, buffer_bytes=50, frozen=(guest,)), states={})
    for strategy in ("single", "ddp", "fsdp", "zero1", "zero3"):
        plain = footprint(strategy, Held(network=Network(weights=alone), states={}), 4, 4)
        assert footprint(strategy, model, 4, 4).weights == plain.weights + 450


def test_fsdp_and_zero_work_with_converted_weights_and_the_others_under_autocast() -> None:
    model = held(1_000_000, working=Working(100, 10), converted=Working(60, 5))
    plain = held(1_000_000)
    for strategy, working in (("single", (100, 10)), ("ddp", (100, 10)), ("fsdp", (60, 5)), ("zero1", (60, 5)), ("zero3_offload", (60, 5))):
        found, without = footprint(strategy, model, 2, 2), footprint(strategy, plain, 2, 2)  # type: ignore[arg-type]
        assert (found.activations, found.transient - without.transient) == working
