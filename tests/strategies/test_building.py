"""A network that is shared while it is built is, to the bit, the one that a single process draws; and no rank ever holds it whole."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from lmlab.backbones import stack
from lmlab.backbones.base import BackboneConfig
from lmlab.nn import sharded
from lmlab.nn.block import Block
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.distillation import Distillation
from lmlab.objectives.teachers import TeacherConfig
from tests.ranks import forked, import_deepspeed
from tests.runs import one_run, taught_run
from tests.runs.conftest import Place
from tests.strategies.conftest import PLAIN

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # what DeepSpeed imports
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning"),  # what it calls
]

LAYERS = 8


def deep(tokenizer: Any, backbone: BackboneConfig, *rest: Any, **changed: Any) -> Objective:
    """Blocks are most of it, so that one that stays whole shows."""
    return CLM(tokenizer, replace(backbone, num_layers=LAYERS, hidden_size=64, **changed), *rest, length=one_run.LENGTH)


STUDENT = partial(Distillation, student=taught_run.STUDENT, teachers=(TeacherConfig(run="guide", lends=(2, 1)),))
MORE: dict[str, Callable[..., Objective]] = {
    "deep": deep,
    "biases": partial(deep, tie="untied", mlm_transform="dense", head_bias=True, norm="layernorm", feedforward_bias=True, qkv_bias=True),
    "from_layers": STUDENT,
}


def is_plain(parameter: Tensor) -> bool:
    return not isinstance(parameter, DTensor) and not sharded.is_partitioned(parameter)


def held() -> int:
    """Bytes of all parameters, and parts of parameters, that came after `gc.freeze`; each storage once."""
    gc.collect()
    found: dict[int, int] = {}
    for one in gc.get_objects():
        if issubclass(type(one), Tensor) and not isinstance(one, DTensor) and one.device.type == "cpu" and one.is_floating_point():
            found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(found.values())


class Watch:
    """Counts bytes whenever a block is drawn, before it is shared, and after."""

    def __init__(self) -> None:
        self.block, self.peaks, self.plain = 0, list[int](), 0

    def __call__(self, block: Block) -> Block:
        self.block = sum(p.nbytes for p in block.parameters())
        self.peaks.append(held())
        block = self.inner(block)
        self.peaks.append(held())
        self.plain += sum(is_plain(p) for p in block.parameters())
        return block

    inner = staticmethod(stack.built)


class Start(one_run.Diary):
    """Writes the weights that training begins with, whole, and what was watched while they were made."""

    watch: Watch | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = trainer.strategy.lightning_module_state_dict()
        guests = [guest for one in pl_module.modules() for guest in vars(one).get("_guest", ())]
        assert all(is_plain(p) and p.numel() for guest in guests for p in guest.parameters())
        if trainer.is_global_zero:
            torch.save({name: value.detach().clone() for name, value in weights.items()}, self.path.with_suffix(".start"))
            if self.watch is not None:
                outside = sum(v.nbytes for n, v in weights.items() if ".blocks." not in n)
                inside = sum(v.nbytes for n, v in weights.items() if ".blocks." in n)
                seen = {"peak": max(self.watch.peaks), "block": self.watch.block, "plain": self.watch.plain}
                self.path.with_suffix(".seen").write_text(json.dumps({**seen, "outside": outside, "inside": inside}))
        trainer.strategy.barrier()
        os._exit(0)  # the rest is what other tests look at


def begin(settings: Mapping[str, Any], watches: bool) -> None:
    one_run.Diary = Start  # of this rank alone
    one_run.OBJECTIVES.update(MORE)
    if watches:
        gc.freeze()
        Start.watch = stack.built = Watch()  # type: ignore[assignment]
    one_run.main(dict(settings))


Begin = Callable[..., tuple[dict[str, Tensor], dict[str, int]]]


@pytest.fixture(scope="session")
def started(place: Place) -> Begin:
    import_deepspeed()

    done: dict[str, tuple[dict[str, Tensor], dict[str, int]]] = {}

    def run(objective: str, strategy: str, ranks: int, watches: bool = False, **given: Any) -> tuple[dict[str, Tensor], dict[str, int]]:
        label = "-".join(map(str, ("start", objective, strategy, ranks, watches, *given.values())))
        if label not in done:
            more = {**PLAIN, "steps": 1, "micro": 8 if ranks == 1 else 2, **given}
            settings = place.settings(label, name=label, objective=objective, strategy=strategy, devices=ranks, **more)
            forked(partial(begin, settings, watches), num_ranks=ranks)
            diary, seen = Path(settings["diary"]), Path(settings["diary"]).with_suffix(".seen")
            counted = json.loads(seen.read_text()) if watches else {}
            done[label] = torch.load(diary.with_suffix(".start"), weights_only=True), counted
        return done[label]

    return run


@pytest.fixture
def guide(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the name that students ask for."""
    monkeypatch.setenv("LMLAB_RUNS", str(place.folder / "runs"))
    if not (place.folder / "runs" / "guide").exists():
        one_run.main(place.settings("guide", name="guide", objective="clm", **{**PLAIN, "micro": 8, "steps": 3}))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one)


RANKS = {"fsdp": 2, "hsdp": 4, "fsdp_tp": 2, "zero3": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("guide")
@pytest.mark.parametrize("strategy", RANKS)
@pytest.mark.parametrize("objective", ["biases", "span_corruption", "multitask_contrastive", "from_layers"])
def test_weights_are_those_of_one_process(started: Begin, objective: str, strategy: str) -> None:
    if strategy == "fsdp_tp" and objective == "multitask_contrastive":
        objective = "multitask_rests"
    one, _ = started(objective, "auto", 1)
    many, _ = started(objective, strategy, RANKS[strategy])
    assert same(one, many)


@pytest.mark.slow
@pytest.mark.usefixtures("guide")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
@pytest.mark.parametrize("objective", ["biases", "from_layers"])
def test_weights_in_half_precision(started: Begin, objective: str, strategy: str, precision: str) -> None:
    """DeepSpeed's engine keeps them in bfloat16, and makes its master copy of these."""
    one, _ = started(objective, "auto", 1, precision=precision)
    two, _ = started(objective, strategy, 2, precision=precision)
    if strategy == "zero3":
        one = {name: value.bfloat16().float() for name, value in one.items()}
    assert same(one, two)


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_no_rank_holds_it_whole(started: Begin, strategy: str) -> None:
    one, _ = started("deep", "auto", 1)
    two, seen = started("deep", strategy, 2, watches=True)
    assert same(one, two)
    assert seen["plain"] == 0 and seen["inside"] == LAYERS * seen["block"]
    assert seen["inside"] / 2 + seen["outside"] < seen["peak"] <= seen["inside"] / 2 + seen["block"] + seen["outside"]
