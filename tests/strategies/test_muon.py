"""Muon, whose step needs whole matrices, under strategies that leave a rank a part of each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from lmlab.objectives.mlm import MLM
from lmlab.optim import OptimizerConfig
from lmlab.strategies import zero_muon
from lmlab.strategies.zero_muon import FlatMuon
from tests.ranks import forked
from tests.runs import one_run
from tests.runs.conftest import Place
from tests.strategies.conftest import Train, apart, moments, structure
from tests.strategies.test_resume import goes_on

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # what DeepSpeed imports
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning"),  # what it calls
]

TOLERANCE = 1e-6
ROUNDED = 1e-2
"""Weights after 20 steps of a size of 0.01: a sum in another order now and then rounds to another bfloat16 where Muon's iteration begins,
which enlarges it several hundred times. Two processes of plain DDP are 2e-3 from one."""
MUON: dict[str, Any] = {"optimizer": "muon", "lr": 0.01}


def smooth(gradient: Tensor, coefficients: Any, steps: int, eps: float) -> Tensor:
    """In the place of Muon's iteration: it, too, depends on all of a matrix and on its shape, but keeps small differences small."""
    cubic: Tensor = gradient @ gradient.mT @ gradient
    return cubic / (gradient.norm() ** 3 + eps)


def without_rounding(settings: Mapping[str, Any]) -> None:
    one_run.OBJECTIVES |= dict.fromkeys(("smooth", "nine"), partial(MLM, length=one_run.LENGTH))  # of this rank alone, like the rest
    torch.optim._muon._zeropower_via_newtonschulz = smooth  # type: ignore[attr-defined]
    zero_muon.EXCHANGED = torch.float32
    one_run.main(dict(settings))


@pytest.mark.parametrize(
    "strategy",
    [
        "zero2",
        "zero3",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ("fsdp", "fsdp_tp", "zero1", "zero3_small", "zero2_offload", "zero3_offload")
        ),
    ],
)
def test_two_ranks_train_as_one_process(train: Train, strategy: str) -> None:
    one, two = (
        train("smooth", kind, ranks, micro=micro, main=without_rounding, **MUON)
        for kind, ranks, micro in (("auto", 1, 8), (strategy, 2, 2))
    )
    assert apart(one["state_dict"], two["state_dict"]) < TOLERANCE
    assert structure(one) == structure(two)
    assert apart(moments(one), moments(two)) < TOLERANCE


def nine(settings: Mapping[str, Any]) -> None:
    one_run.GLOBAL_BATCH = 9
    without_rounding(settings)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3_small"])
def test_sizes_that_are_no_multiple_of_the_ranks(train: Train, strategy: str) -> None:
    """Parts of matrices end where nothing is left for the last rank but what fills up."""
    one, three = (train("nine", kind, n, micro=9 // n, main=nine, **MUON) for kind, n in (("auto", 1), (strategy, 3)))
    assert apart(one["state_dict"], three["state_dict"]) < TOLERANCE and apart(moments(one), moments(three)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "ranks"), [("zero1", 1), ("zero2", 4)])
def test_other_numbers_of_ranks(train: Train, strategy: str, ranks: int) -> None:
    """Four share a matrix of which one of two had all; one has all of each."""
    one = train("smooth", "auto", 1, micro=8, main=without_rounding, **MUON)
    several = train("smooth", strategy, ranks, main=without_rounding, **MUON)
    assert apart(one["state_dict"], several["state_dict"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "strategy"),
    [
        *(("mlm", strategy) for strategy in ("fsdp", "zero1", "zero2", "zero3")),
        ("span_corruption", "zero2"),
        ("multitask_contrastive", "zero3"),
    ],
)
def test_as_it_is(train: Train, objective: str, strategy: str) -> None:
    one, two = train(objective, "auto", 1, micro=8, **MUON), train(objective, strategy, **MUON)
    start = train(objective, "auto", 1, micro=8, **MUON, steps=1)
    assert apart(start["state_dict"], one["state_dict"]) > 5 * ROUNDED, "what it has learned is far more"
    assert apart(one["state_dict"], two["state_dict"]) < ROUNDED and structure(one) == structure(two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "ranks", "second", "more"),
    [("auto", 1, "zero3", 2), ("zero3", 2, "zero2", 4), ("zero1", 2, "fsdp", 2)],
)
def test_going_on_otherwise(place: Place, train: Train, first: str, ranks: int, second: str, more: int) -> None:
    goes_on(place, train, first, ranks, second, more, objective="smooth", main=without_rounding, **MUON)


def whole_numbers(seed: int, *shape: int) -> Tensor:
    """Sums and halves of them are exact, in whatever order and type."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


class Three(nn.Module):
    """Laid end to end and cut in half, the second one is on both ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(width, height, bias=False) for height, width in ((4, 6), (5, 3), (8, 2)))


def compare(settings: dict[str, Any]) -> None:
    distributed.init_process_group("gloo", init_method="env://")
    config = OptimizerConfig(name="muon", lr=0.02, momentum=0.5, options=settings, weight_decay=0.25)
    model = Three()
    for number, parameter in enumerate(model.parameters()):
        parameter.data = whole_numbers(number, *parameter.shape)
    [names], whole = [[name for name, _ in model.named_parameters()]], torch.cat([p.detach().flatten() for p in model.parameters()])
    begin = distributed.get_rank() * (size := 28)  # of 55 elements, and one that fills up
    own = torch.zeros(size)
    own[: len(whole[begin : begin + size])] = whole[begin : begin + size]
    ours, end = FlatMuon(config.build(model.named_parameters()), torch.device("cpu")), 0  # type: ignore[arg-type]
    ours.param_groups[0]["params"] = [own]
    for parameter in model.parameters():
        first, last = max(begin, end), min(begin + size, end + parameter.numel())
        there, inside = (SimpleNamespace(start=first - zero, numel=last - first) for zero in (begin, end))
        parameter._hp_mapping = SimpleNamespace(lp_fragment_address=inside, hp_fragment_address=there) if first < last else None  # type: ignore[attr-defined]
        end += parameter.numel()
    ours.find(model, SimpleNamespace(single_partition_of_fp32_groups=[own]), [names])
    theirs = config.build(model.named_parameters())
    calls, all_reduce, iterate = [], distributed.all_reduce, torch.optim._muon._zeropower_via_newtonschulz  # type: ignore[attr-defined]
    zero_muon.distributed.all_reduce = lambda *given: (calls.append("asks"), all_reduce(*given))[1]  # type: ignore[attr-defined]
    for step in range(3):
        gradients = [whole_numbers(10 + 3 * step + i, *p.shape) for i, p in enumerate(model.parameters())]
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        own.grad = nn.functional.pad(torch.cat([gradient.flatten() for gradient in gradients]), (0, 1))[begin : begin + size].clone()
        torch.optim._muon._zeropower_via_newtonschulz = lambda *given: (calls.append("computes"), iterate(*given))[1]  # type: ignore[attr-defined]
        ours.step()
        torch.optim._muon._zeropower_via_newtonschulz = iterate  # type: ignore[attr-defined]
        theirs.step()
        expected = torch.cat([p.detach().flatten() for p in model.parameters()])[begin : begin + size]
        torch.testing.assert_close(own[: len(expected)], expected, rtol=1e-6, atol=1e-6)
        assert not own.equal(whole[begin : begin + size]) and not own[len(expected) :].any()
    assert calls == ["asks", "computes", "computes"] * 3, "no rank waits for what another computes"
    distributed.destroy_process_group()


@pytest.mark.parametrize("settings", [{}, {"nesterov": False}, {"adjust_lr_fn": "original"}], ids=lambda given: next(iter(given), "plain"))
def test_a_matrix_on_two_ranks_gets_the_step_of_a_whole_one(settings: dict[str, Any]) -> None:
    """Muon's own iteration, which nothing is rounded before that would not be rounded there."""
    forked(partial(compare, settings))
