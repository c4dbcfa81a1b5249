"""What a step of several tasks reports: its FLOPs, its losses by name, and when they are logged."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch.utils.flop_counter import FlopCounterMode

from lmlab.data.loader import Window
from lmlab.data.task_order import TaskSampling
from lmlab.data.tasks import nested_batch
from lmlab.losses import Losses, Tally
from lmlab.objectives.passes import Step
from lmlab.optim.weighting import WeightingConfig
from lmlab.tokenizer import Tokenizer
from tests.objectives.tasks import ALL_KINDS, TaskToy, built, multitask, task_batches, tasks, trained
from tests.objectives.toy import tokenizer


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


@pytest.mark.parametrize("kind", ["equal", "pcgrad", "gradnorm", "uncertainty"])
def test_flops_are_those_torch_counts(tok: Tokenizer, kind: str) -> None:
    """Over all passes of a step: rules and factors take no matrix product, and no task is differentiated twice."""
    made = built(tok, **ALL_KINDS[kind])
    for batch in islice(TaskToy(made.feed(), tok, 4, 4).train_dataloader(), 1):
        window = batch.pop("window")
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for one in made.passes(batch, Step(window, window.counts, 1, lambda value: value)):
                one().loss.backward()
        assert made.flops(batch) == counter.get_total_flops()


def test_an_empty_micro_batch_is_harmless(tok: Tokenizer) -> None:
    made = built(tok, **ALL_KINDS["dwa"])
    batch = nested_batch({})
    assert made.flops(batch) == 0 and int(batch["tokens"]) == 0
    window = Window({}, 0, 0, 0, 2, 8, 4, 0)
    outcomes = [one() for one in made.passes(batch, Step(window, {}, 1, lambda value: value))]
    assert [float(outcome.loss.detach()) for outcome in outcomes] == [0.0]
    outcomes[-1].loss.backward()


def test_each_task_reports_under_its_name(tok: Tokenizer) -> None:
    """Training: the weighted sum is differentiated. Evaluation: without factors. In both, a task's loss is the one it would have alone."""
    weighting = WeightingConfig(kind="uncertainty")
    made = built(tok, given=tasks("mlm", "clm", clm=0.5), weighting=weighting)
    batch = task_batches(made, tok, size=8)[0]

    def means(losses: Losses) -> dict[str, float]:
        tally = Tally()
        tally.add(losses)
        return tally.means(lambda table: table, made.summary)

    with torch.no_grad():
        training, at_rest = means(made.train()(batch)), means(made.eval()(batch))
    own = {task: float(made.child(task).losses(b).total(b["counts"]).detach()) for task, b in batch["tasks"].items()}
    assert set(training) == {"loss", "mlm/loss", "mlm/weight", "clm/loss", "clm/weight"}
    assert {"loss", "mlm/loss", "mlm/accuracy", "clm/loss"} <= set(at_rest)
    for task, loss in own.items():
        assert at_rest[f"{task}/loss"] == pytest.approx(training[f"{task}/loss"]) == pytest.approx(loss, rel=1e-6)
    assert (training["mlm/weight"], training["clm/weight"]) == (0.5, 0.25)
    assert training["loss"] == pytest.approx(0.5 * own["mlm"] + 0.25 * own["clm"], rel=1e-6)
    assert at_rest["loss"] == pytest.approx(own["mlm"] + 0.5 * own["clm"], rel=1e-6)


def test_one_task_in_a_window_is_reported_alone(tok: Tokenizer) -> None:
    made = built(tok, sampling=TaskSampling(regime="round_robin"))
    tally = Tally()
    for batch, task in zip(task_batches(made, tok, 3), ("mlm", "clm", "mlm"), strict=True):
        tally.add(made(batch))
        found = tally.means(lambda table: table, made.summary)
        assert set(found) == {"loss", f"{task}/loss"} and all(map(math.isfinite, found.values()))


class Noted(Logger):
    """Keeps what is logged, by step."""

    name, version = "noted", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, set[str]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, set()).update(metrics)

    def log_hyperparams(self, *args: Any) -> None: ...


def test_tasks_that_take_turns_are_all_logged(tok: Tokenizer) -> None:
    """Every fourth step is one of the second task, so the step after it is logged for the first."""
    noted = Noted()
    trained(multitask(tok, sampling=TaskSampling(regime="round_robin")), tok, 9, 8, logger=noted, log_every_n_steps=4)
    losses = {step: {name for name in names if name.endswith("loss")} for step, names in noted.rows.items()}
    whole, mlm, clm = "train/loss", "train/mlm/loss", "train/clm/loss"
    assert losses == {1: {mlm}, 4: {whole, clm}, 5: {mlm}, 8: {whole, clm}, 9: {whole, mlm}}
