"""Multitask learning: shared weights, sums of losses, rules of gradients, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lmlab.backbones import Decoder, Encoder
from lmlab.config import TRUST_VARIABLE, rebuild
from lmlab.data.batch import Batch, Feed
from lmlab.data.order import rng
from lmlab.data.task_order import TaskSampling
from lmlab.losses import Losses, Part
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.passes import Outcome, Pass, Step
from lmlab.objectives.task_step import PROJECTION_ORDER, GradientsConfig
from lmlab.optim import OptimizerConfig
from lmlab.optim.weighting import WeightingConfig
from lmlab.tokenizer import Tokenizer
from tests.objectives.tasks import ALL_KINDS, PCGRAD, TaskToy, built, multitask, task_batches, tasks, trained
from tests.objectives.toy import LENGTH, tokenizer

FLOAT_NOISE = 1e-6  # float32 sums taken in another order


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


def weights_of(made: Multitask) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in made.state_dict().items()}


def close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = FLOAT_NOISE) -> bool:
    assert first.keys() == second.keys()
    return all(torch.allclose(first[name], second[name], rtol=tolerance, atol=tolerance) for name in first)


# one backbone


def test_weights_are_shared_and_written_down_once(tok: Tokenizer) -> None:
    made = built(tok)
    mlm, clm = made.child("mlm"), made.child("clm")
    assert isinstance(mlm.backbone, Encoder) and isinstance(clm.backbone, Decoder)
    assert mlm.backbone.embedding is clm.backbone.embedding and mlm.backbone.stack is clm.backbone.stack is made.backbone.stack
    names = list(made.state_dict())
    assert len({value.data_ptr() for value in made.state_dict().values()}) == len(names)
    assert {name.split(".")[0] for name in names} == {"backbone", "tasks"}
    assert not any(".backbone." in name for name in names)
    alone = MLM(tok, made.backbone_config, length=LENGTH)
    alone.configure_model()
    own_of_clm = sum(p.numel() for p in clm.parameters())
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in alone.parameters()) + own_of_clm


@pytest.mark.parametrize("first", ["mlm", "clm"])
def test_each_task_computes_what_it_would_compute_alone(tok: Tokenizer, first: str) -> None:
    names = ("mlm", "clm") if first == "mlm" else ("clm", "mlm")
    made = built(tok, given=tasks(*names)).eval()
    batch = task_batches(made, tok)[0]
    found = made(batch)
    for task, kind in (("mlm", MLM), ("clm", CLM)):
        alone = kind(tok, made.backbone_config, length=LENGTH).eval()
        alone.configure_model()
        own = {name.removeprefix(f"tasks.{task}."): value for name, value in made.state_dict().items() if not name.startswith("tasks.")}
        heads = {n.removeprefix(f"tasks.{task}."): v for n, v in made.state_dict().items() if n.startswith(f"tasks.{task}.")}
        alone.load_state_dict({**own, **heads})
        expected = alone(batch["tasks"][task])
        assert torch.equal(found.parts[f"{task}/{task}"].sum, expected.parts[task].sum)
        for name, monitor in expected.monitors.items():
            assert torch.equal(found.monitors[f"{task}/{name}"].sum, monitor.sum)


def stepped(made: Multitask, tok: Tokenizer, micro: int = 8) -> dict[str, Tensor]:
    """The gradients of the first step, pass after pass as the base class takes them."""
    made.zero_grad()
    for batch in islice(TaskToy(made.feed(), tok, 8, micro).train_dataloader(), 8 // micro):
        window = batch.pop("window")
        torch.manual_seed(window.seed)
        for one in made.passes(batch, Step(window, window.counts, 1, lambda value: value)):
            one().loss.backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def of_each_task(made: Multitask, tok: Tokenizer) -> dict[str, dict[str, Tensor]]:
    """The gradient of each task's own loss over the same eight examples, by autograd on one graph."""
    batch = task_batches(made, tok, size=8)[0]
    named = dict(made.named_parameters())
    found = {}
    for task, own in batch["tasks"].items():
        total = made.child(task).losses(own).total(own["counts"])
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        found[task] = {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), gradients, strict=True)}
    return found


# the gradient of a step


@pytest.mark.parametrize("micro", [8, 2])
def test_a_step_has_the_sum_of_the_tasks_gradients(tok: Tokenizer, micro: int) -> None:
    made = built(tok, given=tasks("mlm", "clm", clm=0.25), weighting=WeightingConfig(kind="static"))
    found, own = stepped(made, tok, micro), of_each_task(made, tok)
    assert close(found, {name: own["mlm"][name] + 0.25 * own["clm"][name] for name in found}, 1e-5)
    assert set(found) == {name for name, _ in made.named_parameters()}, "every parameter has a gradient"
    assert all(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("micro", [8, 2])
def test_conflicting_gradients_are_projected_as_the_algorithm_says(tok: Tokenizer, micro: int) -> None:
    """Yu et al. 2020, algorithm 1, on the flattened gradients of the backbone; heads keep their own gradient."""
    names = ("mlm", "clm", "mlm_b", "clm_b")
    made = built(tok, given=tasks(*names), gradients=PCGRAD)
    with torch.no_grad():  # an untrained network has no conflicts to speak of
        for index, p in enumerate(made.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(index)) * 0.4)
    found, own = stepped(made, tok, micro), of_each_task(made, tok)
    shared = [name for name in found if name.startswith("backbone.")]
    vectors = [torch.cat([own[task][name].flatten() for name in shared]) for task in names]
    draw = next(iter(TaskToy(made.feed(), tok, 8, micro).train_dataloader()))["window"].draw
    order, conflicts = rng(draw, PROJECTION_ORDER), 0
    total = torch.zeros_like(vectors[0])
    for task in range(4):
        projected = vectors[task].clone()
        for other in order.permutation(4):
            product = torch.dot(projected, vectors[other])
            if other != task and product < 0:
                projected -= product / vectors[other].norm() ** 2 * vectors[other]
                conflicts += 1
        total += projected
    assert conflicts > 0
    flat = torch.cat([found[name].flatten() for name in shared])
    assert torch.allclose(flat, total, rtol=1e-3, atol=1e-4 * float(total.abs().max()))
    assert (flat - sum(vectors)).norm() > 0.01 * flat.norm(), "it is not the sum"
    for name in set(found) - set(shared):
        assert torch.allclose(found[name], own[name.split(".")[1]][name], rtol=1e-4, atol=1e-6)


def test_noise_learns_from_the_loss_of_its_task(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """At s = 0 the factor is 1/2, and the derivative of L / (2 e^s) + s / 2 is (1 - L) / 2; a weight multiplies both terms."""
    monkeypatch.setenv(TRUST_VARIABLE, "tests")
    given = tasks("mlm", "clm", clm=0.25)
    given["mlm"] = dataclasses.replace(given["mlm"], objective=f"{__name__}.Sized")
    made = built(tok, given=given, weighting=WeightingConfig(kind="uncertainty"))
    batch = task_batches(made, tok, size=8)[0]
    losses = {task: float(made.child(task).losses(own).total(own["counts"]).detach()) for task, own in batch["tasks"].items()}
    for micro in (8, 2):
        found, own = stepped(made, tok, micro), of_each_task(made, tok)
        for task, loss in losses.items():
            assert found[f"weights.noise.{task}.log_squared_scale"].tolist() == pytest.approx(
                [given[task].weight * (1 - loss) / 2], rel=1e-5
            )
        name = "backbone.stack.blocks.0.attention.q.weight"
        assert torch.allclose(found[name], (own["mlm"][name] + 0.25 * own["clm"][name]) / 2, rtol=1e-4, atol=1e-7)


class Halved(MLM):
    """Has passes of its own, whose losses are surrogates: the same gradient in two halves, and a constant that means nothing."""

    def passes(self, batch: Batch, step: Step) -> list[Pass]:
        def first() -> Outcome:
            return Outcome(step.total(self(batch)) / 2 + 17.0)

        def second() -> Outcome:
            losses = self(batch)
            return Outcome(step.total(losses) / 2 - 3.0, losses)

        return [first, second]


class Sized(Halved):
    """Has a second part, of small weight."""

    def losses(self, batch: Batch) -> Losses:
        found = super().losses(batch)
        size = Part(torch.full((), 50.0), torch.ones(1, dtype=torch.int64), 0.01)
        return Losses({**found.parts, "size": size}, found.monitors)


@pytest.mark.parametrize("weighting", [WeightingConfig(kind="static"), WeightingConfig(kind="uncertainty")], ids=lambda w: w.kind)
@pytest.mark.parametrize("gradients", [GradientsConfig(), PCGRAD], ids=lambda g: g.rule)
def test_a_task_may_have_passes_of_its_own(
    tok: Tokenizer, weighting: WeightingConfig, gradients: GradientsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tasks("mlm", "clm", mlm=0.7)
    plain = built(tok, given=given, weighting=weighting, gradients=gradients)
    expected = stepped(plain, tok, 4)
    monkeypatch.setenv(TRUST_VARIABLE, "tests")
    halved = {**given, "mlm": dataclasses.replace(given["mlm"], objective=f"{__name__}.Halved")}
    made = built(tok, given=halved, weighting=weighting, gradients=gradients)
    assert close(stepped(made, tok, 4), expected, 1e-5)


class Whole(Halved):
    """Its loss is over a whole batch, so that it is in one micro-batch of a step, whatever the others need; a penalty belongs to it."""

    def feed(self) -> Feed:
        return dataclasses.replace(super().feed(), loss_over="batch")

    def losses(self, batch: Batch) -> Losses:
        found = super().losses(batch)
        size = sum((p**2).sum() for p in self.head.parameters())
        return Losses({**found.parts, "size": Part(torch.as_tensor(size), torch.ones(1, dtype=torch.int64), 0.01)}, found.monitors)


# whole steps


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_accumulation_equals_one_big_batch(tok: Tokenizer, kind: str) -> None:
    found = []
    for micro in (8, 2):
        made = multitask(tok, **ALL_KINDS[kind])
        trainer = trained(made, tok, 4, micro)
        assert trainer.global_step == 4
        found.append(weights_of(made))
    assert close(*found, 1e-5)


def test_a_loss_over_a_batch_is_the_same_however_the_others_are_cut(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "tests")
    given = tasks("mlm", "clm", mlm=0.7)
    given["mlm"] = dataclasses.replace(given["mlm"], objective=f"{__name__}.Whole")
    found = []
    for micro in (8, 2):
        made = multitask(tok, given=given, weighting=WeightingConfig(kind="uncertainty"))
        trained(made, tok, 4, micro)
        found.append(weights_of(made))
    assert close(*found, 1e-5)


def test_kinds_differ(tok: Tokenizer) -> None:
    """Else a test that compares a kind with itself would show nothing."""
    found = {}
    for kind, given in ALL_KINDS.items():
        made = multitask(tok, **given)
        trained(made, tok, 4)
        found[kind] = made.state_dict()["backbone.stack.blocks.0.attention.q.weight"].clone()
    kinds = sorted(found)
    same = [(a, b) for a in kinds for b in kinds if a < b and torch.allclose(found[a], found[b], rtol=1e-4, atol=1e-7)]
    assert same in ([], [("equal", "pcgrad")])  # where no gradients oppose each other, there is nothing to project


def test_looking_at_angles_changes_no_bit(tok: Tokenizer) -> None:
    found = []
    for cosines in ("off", "on"):
        made = multitask(tok, dropout=0.1, gradients=GradientsConfig(cosines=cosines), optimizer=OptimizerConfig(lr=1e-2))  # type: ignore[arg-type]
        trained(made, tok, 4, 2, log_every_n_steps=1)
        found.append(weights_of(made))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_reported_angles_are_those_of_the_gradients(tok: Tokenizer) -> None:
    made = built(tok, gradients=GradientsConfig(cosines="on"))
    own = of_each_task(made, tok)
    shared = [name for name in own["mlm"] if name.startswith("backbone.")]
    first, second = (torch.cat([own[task][name].flatten() for name in shared]) for task in ("mlm", "clm"))
    for micro in (8, 2):
        reports = []
        for part in islice(TaskToy(made.feed(), tok, 8, micro).train_dataloader(), 8 // micro):
            window = part.pop("window")
            for one in made.passes(part, Step(window, window.counts, 1, lambda value: value)):
                outcome = one()
                outcome.loss.backward()
                reports.append(outcome.report)
        made.zero_grad()
        angle = reports[-1].monitors["cosine/mlm-clm"]  # type: ignore[union-attr]
        assert float(angle.sum) == pytest.approx(float(torch.cosine_similarity(first, second, dim=0)), rel=1e-4)


def test_what_belongs_to_an_absent_task_rests(tok: Tokenizer) -> None:
    """AdamW with decay: a parameter without a gradient neither decays nor goes on by its momentum."""
    made = multitask(
        tok, sampling=TaskSampling(regime="round_robin"), optimizer=OptimizerConfig(lr=0.01), weighting=WeightingConfig(kind="uncertainty")
    )
    diary: list[dict[str, Tensor]] = []

    class Noting(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            diary.append(weights_of(pl_module))

    trained(made, tok, 4, 8, Noting())
    for before, after, task in zip(diary, diary[1:], ("clm", "mlm", "clm"), strict=False):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert {name.split(".")[1] for name in moved if name.startswith("tasks.")} <= {task}
        assert {name.split(".")[2] for name in moved if name.startswith("weights.")} == {task}
        assert any(name.startswith("backbone.") for name in moved)
    assert any(name.startswith("tasks.mlm") for name in made.state_dict())


def test_it_overfits_a_batch(tok: Tokenizer) -> None:
    """Both tasks, by projected gradients, on two examples each."""
    made = built(tok, gradients=PCGRAD)
    stamped = next(iter(TaskToy(made.feed(), tok, 2, 2).train_dataloader()))
    window, batch = stamped["window"], {key: value for key, value in stamped.items() if key != "window"}
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        for one in made.passes(batch, Step(window, window.counts, 1, lambda value: value)):
            one().loss.backward()
        optimizer.step()
    assert all(float((part.sum / part.count).detach()) < 0.5 for part in made(batch).parts.values())


# what is written down


def test_it_is_rebuilt_from_its_json(tok: Tokenizer) -> None:
    made = built(tok, **ALL_KINDS["static"], gradients=PCGRAD)
    again = rebuild(json.loads(json.dumps(made.recipe())))
    again.configure_model()
    again.load_state_dict(made.state_dict())
    batch = task_batches(made, tok)[0]
    assert torch.equal(again(batch).total(batch["counts"]), made(batch).total(batch["counts"]))
    assert again.recipe() == made.recipe()
