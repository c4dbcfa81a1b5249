"""From an objective and a cluster to what a run will take."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from lightning.pytorch import Callback
from torch import nn

from lmlab.budget import BudgetConfig
from lmlab.callbacks.averaging import WeightAveraging
from lmlab.data.batch import Feed
from lmlab.data.module import CorpusModule
from lmlab.errors import ConfigError, LabError
from lmlab.objectives.base import Objective
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.ngram import NGram
from lmlab.planning.activations import default_dtype
from lmlab.planning.cluster import Batches, Cluster, cut_batches, feeds_of
from lmlab.planning.examples import planned_batches
from lmlab.planning.memory import NOTHING, STRATEGIES, ZERO_BUCKET, Bytes, Held, Strategy, footprint
from lmlab.planning.optimizer_state import optimizer_states
from lmlab.planning.speed import RECOMPUTATION, Amounts, Cost, amounts, tokens_per_second
from lmlab.planning.teachers import describe_teachers, seat_teachers
from lmlab.planning.weights import MIXED, Network, named_precision, network_of, weight_dtype
from lmlab.planning.working import working_memory
from lmlab.strategies.refusals import Asked, refusal_of

CONVERTED = {"bf16-mixed": "bf16-true", "16-mixed": "16-true"}
"""What a pass computes with where FSDP gathers weights in half precision, and DeepSpeed keeps them so: autocast converts nothing then."""
AUTOCAST = (
    "mixed precision is autocast on one device and under DDP: each rank keeps copies of all matrices in half precision during a pass; "
    "FSDP and ZeRO, and bf16-true, have none"
)
LARGE = 64 * 2**30
"""Bytes that a host may have no room for, where every rank on it reads them at once."""
LARGEST_COMPARISON = 1024
"""Examples of a batch that are compared with each other in the batch that is planned with: more change its FLOPs by little."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A strategy.

    Args:
        strategy: Its name.
        bytes: What a rank holds; None if it is refused.
        fits: Whether that is less than what a device can be filled with.
        refused: Why it cannot be used here.
    """

    strategy: Strategy
    bytes: Bytes | None = None
    fits: bool = False
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run will take.

    Args:
        objective: Name of its class.
        precision: Of the Trainer.
        network: Its parameters.
        cluster: What it is spread over.
        batches: How the global batch is cut.
        cost: Of a step.
        rows: One for each strategy.
        peak: FLOP/s of a device at best in this precision; None if nobody claims one.
        speed: Tokens a second over all devices; None without a peak and a utilisation.
        amounts: The budget in every unit; None if it cannot be told.
        notes: What the reader should know besides.
    """

    objective: str
    precision: str
    network: Network
    cluster: Cluster
    batches: Batches
    cost: Cost
    rows: tuple[Row, ...]
    peak: float | None
    speed: float | None
    amounts: Amounts | None
    notes: tuple[str, ...] = field(default=())


def predict(
    objective: Objective,
    data: CorpusModule,
    budget: BudgetConfig,
    cluster: Cluster,
    *,
    precision: str | int | None = None,
    callbacks: tuple[Callback, ...] = (),
    gathered: Literal["in_turn", "all"] = "in_turn",
    bucket: int = ZERO_BUCKET,
) -> Prediction:
    """Predicts memory, time and size of a run; nothing is trained, read or allocated.

    Args:
        objective: Not built.
        data: Its batch sizes are read.
        budget: When the run ends.
        cluster: What it is spread over.
        precision: Of the Trainer.
        callbacks: Of the Trainer: averages of weights take memory.
        gathered: See `Held`.
        bucket: See `Held`.

    Raises:
        ConfigError: If the objective cannot be predicted, or a setting is impossible.
        CheckpointError: If a teacher is not there.
    """
    _refuse_counting(objective)
    precision, notes = named_precision(precision), list[str]()
    batches, said = cut_batches(objective, data, cluster)
    notes += said
    teachers = describe_teachers(objective)

    def build() -> Objective:
        built = copy.deepcopy(objective, {id(objective.tokenizer): objective.tokenizer})  # a planned one would forget its size
        built.configure_model()
        seat_teachers(built, copy.deepcopy(teachers))
        return built

    dtype = weight_dtype(precision)
    with torch.device("meta"), default_dtype(dtype):
        built = build()
    network = network_of(built)
    cost = _cost(objective, built, batches, cluster)
    batch = planned_batches(objective.feed(), objective.tokenizer, _size_of(objective, batches.micro_size))
    kind = "cpu" if cluster.device.is_cpu else "gpu"
    try:
        working = working_memory(objective, build, batch, precision, kind)
        converted = working if precision not in MIXED else working_memory(objective, build, batch, CONVERTED[precision], kind)
    except LabError:
        raise
    except Exception as error:  # any code of a user's objective may run here
        working = converted = NOTHING
        what = str(error).split("\n")[0]
        notes.append(f"activations are not in the table: {type(objective).__name__} asks for the content of its batches ({what})")
    held = Held(
        network=network,
        states=optimizer_states(network.weights, objective.optimizer_config, dtype),
        averages="ema" if any(isinstance(callback, WeightAveraging) for callback in callbacks) else "none",
        computes_in=MIXED[precision].itemsize if precision in MIXED else dtype.itemsize,
        working=working,
        converted=converted,
        memory="device" if cluster.device.is_cpu else "host",
        gathered=gathered,
        bucket=bucket,
    )
    if any(isinstance(part, nn.LSTM) for part in built.modules()):
        notes.append("activations lack the workspace of torch's LSTM: with it, a pass on a CPU was found to keep four times as much")
    if precision in MIXED and cluster.devices > 1:
        notes.append(AUTOCAST)
    if held.averages == "ema":
        notes.append("a validation puts the weights aside while their averages stand in, which takes as much as the weights once more")
    rows = tuple(row_of(strategy, held, cluster, Asked(objective, {"callbacks": callbacks})) for strategy in STRATEGIES)
    notes += _about_hosts(rows, held, cluster)
    peak = cluster.device.peak(precision)
    speed = tokens_per_second(cost, peak, cluster.utilisation, cluster.devices) if peak and cluster.utilisation and cost.flops else None
    return Prediction(
        objective=type(objective).__name__,
        precision=precision,
        network=network,
        cluster=cluster,
        batches=batches,
        cost=cost,
        rows=rows,
        peak=peak,
        speed=speed,
        amounts=amounts(budget, cost, speed),
        notes=tuple(notes),
    )


def row_of(strategy: Strategy, held: Held, cluster: Cluster, asked: Asked) -> Row:
    """What a strategy takes on a cluster.

    Args:
        strategy: Its name.
        held: What there is to hold.
        cluster: What it is spread over.
        asked: For what the strategy refuses.
    """
    refused = _refusal(strategy, cluster, asked)
    if refused:
        return Row(strategy=strategy, refused=refused)
    found = footprint(strategy, held, 1 if strategy == "single" else cluster.devices, cluster.per_group)
    return Row(strategy=strategy, bytes=found, fits=found.total <= cluster.usable)


def _about_hosts(rows: Sequence[Row], held: Held, cluster: Cluster) -> list[str]:
    """What machines need besides their devices."""
    notes = []
    offloaded = max((row.bytes.host for row in rows if row.bytes), default=0) * cluster.per_node
    if offloaded > LARGE:
        notes.append(f"zero3_offload takes {offloaded / 2**30:.0f} GiB of each machine's own memory")
    whole = footprint("single", held, 1, 1).lasting
    if whole > LARGE and cluster.devices > 1:
        notes.append(
            f"a checkpoint of one file is {whole / 2**30:.0f} GiB, which rank 0 puts together and every rank reads: under fsdp, "
            "--trainer.strategy.init_args.checkpoint sharded writes a folder instead"
        )
    return notes


def _refusal(strategy: Strategy, cluster: Cluster, asked: Asked) -> str:
    """Why a strategy cannot be used, empty if it can."""
    if cluster.devices == 1 and strategy not in ("single", "zero3_offload"):
        return "needs more than one device"
    if strategy == "hsdp" and (cluster.per_group in (1, cluster.devices)):
        return "needs several nodes of several devices, or `replicas` of its own"
    if strategy == "fsdp_tp" and cluster.per_node == 1:
        return "needs several devices in a node"
    refusal = refusal_of(strategy.removesuffix("_offload"), asked)
    return "" if refusal is None else f"{refusal.technique}: {refusal.why}"


def _refuse_counting(objective: Objective) -> None:
    if isinstance(objective, NGram):
        raise ConfigError(
            "an n-gram model cannot be planned",
            where="model.class_path",
            why="it counts: there is no gradient and no FLOP, and its tables grow with what the text has of different n-grams",
            remedy="run it: a text of some million tokens takes minutes and some hundred MB",
        )


def _size_of(objective: Objective, micro: int) -> int:
    """Examples to plan with: at least as many as can be compared with each other."""
    return max(micro, *(feed.min_examples for feed in feeds_of(objective)))


def _cost(objective: Objective, built: Objective, batches: Batches, cluster: Cluster) -> Cost:
    """FLOPs and tokens of a step, by the objective's own account."""
    feeds = objective.feed()
    compares = isinstance(feeds, Feed) and feeds.loss_over == "batch"
    share = min(batches.global_size // cluster.data_ranks, LARGEST_COMPARISON) if compares else batches.micro_size
    size = _size_of(objective, share)
    batch = planned_batches(feeds, objective.tokenizer, size)
    flops, tokens = built.flops(batch), int(batch["tokens"])
    if isinstance(objective, Multitask) and objective.sampling.regime != "all":
        flops, tokens = flops // len(objective.task_configs), tokens // len(objective.task_configs)  # a step has one of them
    recomputes = RECOMPUTATION if objective.backbone_config.checkpointing == "blocks" else 1.0
    return Cost(tokens=tokens * batches.global_size // size, flops=flops * batches.global_size // size, recomputes=recomputes)
