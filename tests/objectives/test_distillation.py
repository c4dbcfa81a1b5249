"""Distillation: against losses written out, FLOPs as torch counts them, accumulation; and that a teacher is a guest."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from torch.utils.flop_counter import FlopCounterMode

from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.callbacks import Budget, WeightAveraging
from lmlab.config import rebuild
from lmlab.errors import CheckpointError, ConfigError
from lmlab.objectives.distillation import Distillation
from lmlab.objectives.distillation_losses import DistillationLoss, ResponseConfig
from lmlab.objectives.layer_map import FeatureMatch
from lmlab.objectives.nested import ObjectiveConfig
from lmlab.objectives.nsp import NextSentence
from lmlab.objectives.on_policy import OnPolicyConfig
from lmlab.objectives.teachers import TeacherConfig
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.tokenizer import Tokenizer
from tests.objectives.teaching import EVERYTHING, KINDS, STUDENT, TEACHER, batches, described, student, taught, teacher
from tests.objectives.toy import LENGTH, Toy, tokenizer

FLOAT_NOISE = 1e-5  # float32 sums taken in another order, over a few steps
RESPONSE = DistillationLoss(labels=2.0, response=ResponseConfig(temperature=2.0, weight=5.0))
FEATURES = DistillationLoss(features=EVERYTHING.features)
NEIGHBOURS = {"contrast": {"positives": "neighbours"}}
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


def test_the_parts_are_those_written_out(tok: Tokenizer) -> None:
    """DistilBERT's three terms, from the two networks' logits and states."""
    loss = DistillationLoss(
        labels=2.0,
        response=ResponseConfig(temperature=2.0, weight=5.0),
        features=(FeatureMatch(feature="hidden", teacher=-1, student=-1, loss="cosine"),),
    )
    seed_everything(0, verbose=False)
    made = student("mlm", tok, loss, BackboneConfig(hidden_size=32, num_layers=2, num_heads=2))
    guide = teacher("mlm", tok)
    made.learn_from([guide])
    batch = batches(made, tok)[0]
    losses = made(batch)
    theirs, ours = guide.states(batch), made.student.states(batch)
    masked = batch["supervised"]
    p, q = ((net.head(x).flatten(0, 1)[masked] / 2).softmax(-1) for net, x in ((guide, theirs), (made.student, ours)))
    kl = 4 * (p * (p / q).log()).sum()
    nats = F.cross_entropy(made.student.head(ours).flatten(0, 1)[masked], batch["labels"].flatten()[masked], reduction="sum")
    cosine = (1 - F.cosine_similarity(theirs, ours, dim=-1)).sum()
    torch.testing.assert_close(losses.parts["response"].sum, kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.parts["mlm"].sum, nats, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.parts["hidden_last_cosine"].sum, cosine, rtol=1e-4, atol=1e-5)
    total = 5 * kl / len(masked) + 2 * nats / len(masked) + cosine / theirs[..., 0].numel()
    torch.testing.assert_close(losses.total(batch["counts"]), total, rtol=1e-4, atol=1e-5)
    losses.total(batch["counts"]).backward()
    found = {name: parameter.grad for name, parameter in made.named_parameters()}
    made.zero_grad()
    total.backward()
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_torch_counts(kind: str, tok: Tokenizer) -> None:
    silent = DistillationLoss(labels=0.0, features=EVERYTHING.features[2:3])
    others = (RESPONSE, silent, DistillationLoss(labels=0.0, response=ResponseConfig())) if kind == "mlm" else ()
    for loss in (EVERYTHING, *others):
        made = taught(kind, tok, loss)
        batch = batches(made, tok)[0]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            made(batch).total(batch["counts"]).backward()
        assert made.flops(batch) == counter.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_and_the_teacher_none(kind: str, tok: Tokenizer) -> None:
    made = taught(kind, tok)
    guide = made.teachers[0].module  # type: ignore[union-attr]
    batch = batches(made, tok)[0]
    made(batch).total(batch["counts"]).backward()
    bad = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()]
    assert bad == []
    assert all(p.grad is None and not p.requires_grad for p in guide.parameters())


def test_a_teacher_is_a_guest(tok: Tokenizer) -> None:
    """In no parameters, no state, no average; always at rest; moved with its owner."""
    alone, made = student("mlm", tok, RESPONSE), taught("mlm", tok, RESPONSE)
    alone.configure_model()
    assert made.state_dict().keys() == alone.state_dict().keys()
    assert [n for n, _ in made.named_parameters()] == [n for n, _ in alone.named_parameters()]
    guide = made.teachers[0].module  # type: ignore[union-attr]
    made.train()
    assert made.student.training and not guide.training and not any(part.training for part in guide.modules())
    made.double()
    assert {p.dtype for p in guide.parameters()} == {torch.float64}
    owned = {id(p) for group in made.configure_optimizers().param_groups for p in group["params"]}
    assert owned.isdisjoint(id(p) for p in guide.parameters())
    before = [p.clone() for p in guide.parameters()]
    averaging, trained = WeightAveraging(0.9), taught("mlm", tok, RESPONSE)
    guide = trained.teachers[0].module  # type: ignore[union-attr]
    fit(trained, tok, callbacks=[averaging])
    assert averaging.average is not None
    assert not [name for name in averaging.average.state_dict()["averages"] if "teacher" in name]
    assert all(torch.equal(a.float(), b) for a, b in zip(before, guide.parameters(), strict=True))


def fit(made: Distillation, tok: Tokenizer, micro: int = 4, steps: int = 5, callbacks: Any = ()) -> Trainer:
    made.optimizer_config, made.schedule_config = OptimizerConfig(name="sgd", lr=0.1, momentum=0.0), ScheduleConfig(warmup=0.0)
    seed_everything(0, verbose=False)
    trainer = Trainer(**QUIET, callbacks=[Budget(BudgetConfig(steps=steps, validations=0, checkpoints=0)), *callbacks])
    trainer.fit(made, Toy(made.feed(), tok, 8, micro))  # type: ignore[arg-type]
    assert trainer.global_step == steps
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_equals_one_big_batch(kind: str, tok: Tokenizer) -> None:
    weights = []
    for micro in (8, 2):
        made = taught(kind, tok)
        fit(made, tok, micro, steps=3)
        weights.append({k: v.clone() for k, v in made.state_dict().items()})
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=FLOAT_NOISE, atol=FLOAT_NOISE)


def test_it_overfits_one_batch(tok: Tokenizer) -> None:
    made = taught("clm", tok, RESPONSE)
    batch = batches(made, tok)[0]
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        losses.append(made(batch).total(batch["counts"]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    assert made(batch).parts["response"].sum >= 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tok: Tokenizer) -> None:
    loss = DistillationLoss(
        labels=0.0,
        response=ResponseConfig(temperature=3.0),
        features=(
            FeatureMatch(feature="embedding", loss="mse"),
            FeatureMatch(feature="hidden", teacher=2, student=2, loss="pkd"),
            FeatureMatch(feature="scores", teacher=1, student=1, loss="kl"),
            FeatureMatch(feature="relation", teacher=-1, student=-1, loss="kl", relation_heads=8),
        ),
    )
    made = student("clm", tok, loss, TEACHER, teachers=(TeacherConfig(run="nobody", lends=(1, 2, 3)),))
    made.learn_from([teacher("clm", tok)])
    assert {name: part.sum.item() for name, part in made(batches(made, tok)[0]).parts.items()} == dict.fromkeys(
        ["response", "embedding_mse", "hidden_2_pkd", "scores_1_kl", "relation_last_kl"], 0.0
    )


def test_relations_and_states_by_brute_force_on_rows_with_padding(tok: Tokenizer) -> None:
    """The student has fewer heads than its teacher, whose number decides; padding is neither a query nor a key."""
    seed_everything(0, verbose=False)
    shape: dict[str, Any] = {"num_segments": 2, "position": "learned", "init_std": 0.3}
    guide = NextSentence(tok, BackboneConfig(hidden_size=32, num_layers=3, num_heads=4, **shape), length=LENGTH)
    features = (
        FeatureMatch(feature="relation", teacher=-1, student=-1, loss="kl", weight=0.3),
        FeatureMatch(feature="hidden", teacher=2, student=1, loss="mse", projection="linear"),
        FeatureMatch(feature="hidden", teacher=2, student=1, loss="pkd", projection="linear", rows="first"),
    )
    made = Distillation(
        tok,
        BackboneConfig(hidden_size=24, num_layers=2, num_heads=2, **shape),
        student=ObjectiveConfig(objective="lmlab.objectives.nsp.NextSentence", settings={"length": LENGTH}),
        teachers=(TeacherConfig(run="x"),),
        loss=DistillationLoss(features=features),
    )
    guide.configure_model()
    made.learn_from([guide.eval()])
    noted: dict[tuple[str, str], torch.Tensor] = {}
    for who, network, layer in (("teacher", guide.backbone, 1), ("student", made.student.backbone, 0)):
        for name in "qkv":
            projection = getattr(network.blocks[-1].attention, name)  # type: ignore[union-attr,index]
            projection.register_forward_hook(lambda _, __, out, key=(who, name): noted.update({key: out.detach()}))
        network.blocks[layer].register_forward_hook(lambda _, __, out, key=(who, "x"): noted.update({key: out.detach()}))  # type: ignore[union-attr,index]
    batch = batches(made, tok)[0]
    parts, lengths = made(batch).parts, batch["attention_mask"].sum(1).tolist()
    assert min(lengths) < LENGTH
    relation = 0.0
    for name in "qkv":
        for row, length in enumerate(lengths):
            for head in range(4):
                ours, theirs = (noted[who, name][row, :length].chunk(4, dim=-1)[head] for who in ("student", "teacher"))
                q, p = ((x @ x.t() / x.shape[1] ** 0.5).softmax(-1) for x in (ours, theirs))
                relation += (p * (p / q).log()).sum() / 4
    torch.testing.assert_close(parts["relation_last_kl"].sum.detach(), relation, rtol=1e-4, atol=1e-5)
    assert made.projections is not None
    ours = made.projections["hidden_1_mse"](noted["student", "x"])
    squares = sum((ours - noted["teacher", "x"])[row, :length].square().mean(-1).sum() for row, length in enumerate(lengths))
    torch.testing.assert_close(parts["hidden_1_mse"].sum, squares, rtol=1e-4, atol=1e-5)
    first = (F.normalize(x[:, 0], dim=-1) for x in (made.projections["hidden_1_pkd"](noted["student", "x"]), noted["teacher", "x"]))
    torch.testing.assert_close(parts["hidden_1_pkd"].sum, (next(first) - next(first)).square().sum(), rtol=1e-4, atol=1e-5)
    counted = [(parts[name].count.item(), parts[name].weight) for name in ("relation_last_kl", "hidden_1_mse", "hidden_1_pkd")]
    assert counted == [(sum(lengths), 0.3), (sum(lengths), 1.0), (len(lengths), 1.0)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_supervised_once_however_many_parts_it_has(kind: str, tok: Tokenizer) -> None:
    stamped = next(iter(Toy(student(kind, tok).feed(), tok, 4, 4).train_dataloader()))  # type: ignore[arg-type]
    assert stamped["window"].supervised == (stamped["labels"] != -100).sum()


def test_several_teachers_are_averaged_by_weight(tok: Tokenizer) -> None:
    made = student(
        "clm", tok, DistillationLoss(response=ResponseConfig()), teachers=tuple(TeacherConfig(run="x", weight=w) for w in (1.0, 3.0))
    )
    guides = [teacher("clm", tok, seed=seed) for seed in (1, 2)]
    made.learn_from(guides)
    batch = batches(made, tok)[0]
    with torch.no_grad():
        p = sum(share * guide.head(guide.states(batch)).softmax(-1) for share, guide in zip((0.25, 0.75), guides, strict=True))
        q = made.student.head(made.student.states(batch)).log_softmax(-1)
        wanted = (p * (p.log() - q)).sum()
    torch.testing.assert_close(made(batch).parts["response"].sum.detach(), wanted, rtol=1e-4, atol=1e-4)


def test_labels_without_weight_are_reported_only(tok: Tokenizer) -> None:
    for loss in (DistillationLoss(labels=0.0, response=ResponseConfig()), DistillationLoss(labels=0.0, features=EVERYTHING.features[1:2])):
        made = taught("mlm", tok, loss)
        losses = made.eval()(batches(made, tok)[0])
        assert "mlm" not in losses.parts and {"mlm", "accuracy"} <= losses.monitors.keys()


def test_it_is_rebuilt_from_its_json_and_predicts_without_a_teacher(tok: Tokenizer) -> None:
    made = taught("mlm", tok)
    again = rebuild(json.loads(json.dumps(made.recipe())))
    again.configure_model()
    again.load_state_dict(made.state_dict())
    batch = batches(made, tok)[0]
    assert torch.equal(again.predicted_ids(batch), made.predicted_ids(batch))
    assert again.recipe() == made.recipe() and again.product is again.student
    with pytest.raises(ConfigError, match="no teacher yet"):
        again(batch)
    again.learn_from([teacher("mlm", tok)])
    assert torch.equal(again(batch).total(batch["counts"]), made(batch).total(batch["counts"])), "projections come with the state"


def test_a_run_goes_on_with_the_teacher_it_began_with(tok: Tokenizer) -> None:
    """A name stands for the newest finished run, which may be another one by then."""
    content: dict[str, Any] = {}
    taught("mlm", tok, RESPONSE).on_save_checkpoint(content)
    taught("mlm", tok, RESPONSE).on_load_checkpoint(content)
    student("mlm", tok, RESPONSE).on_load_checkpoint(content)  # only to predict
    other = student("mlm", tok, RESPONSE)
    other.learn_from([teacher("mlm", tok, seed=1)])
    with pytest.raises(CheckpointError, match=r"'nobody' is not the teacher that this run began with[\s\S]*teachers\[0\].run"):
        other.on_load_checkpoint(content)


def test_projections_for_another_teacher_are_refused(tok: Tokenizer) -> None:
    again = student("mlm", tok)
    again.configure_model()
    again.load_state_dict(taught("mlm", tok).state_dict())
    wide = dataclasses.replace(TEACHER, hidden_size=40)
    with pytest.raises(ConfigError, match=r"another teacher than the run's[\s\S]*40 channels"):
        again.learn_from([teacher("mlm", tok, wide)])


def test_a_copy_or_a_pickle_knows_by_itself_whether_it_was_loaded(tok: Tokenizer) -> None:
    made = student("mlm", tok, RESPONSE)
    made.configure_model()
    again = pickle.loads(pickle.dumps(made))
    again.load_state_dict(made.state_dict())
    assert again._has_weights and not made._has_weights


def test_projections_are_drawn_from_the_seed_alone(tok: Tokenizer) -> None:
    states = []
    for noise in (0, 100):
        seed_everything(3, verbose=False)
        torch.rand(noise)
        made = student("mlm", tok)
        guide = teacher("mlm", tok)
        seed_everything(3, verbose=False)
        torch.rand(noise)
        made.learn_from([guide])
        states.append(made.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_half_precision_runs(tok: Tokenizer) -> None:
    made = taught("clm", tok)
    batch = batches(made, tok)[0]
    with torch.autocast("cpu", torch.bfloat16):
        losses = made(batch)
        total = losses.total(batch["counts"])
    total.backward()
    assert total.dtype == torch.float32 and all(part.sum >= 0 for part in losses.parts.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_an_adapted_head_is_called_and_not_bypassed(tok: Tokenizer) -> None:
    """Whoever wraps the vocabulary matrix gets the same loss and gradients."""
    config = BackboneConfig(hidden_size=24, num_layers=1, num_heads=2, tie="untied", logit_scale=0.3, init_std=0.5)
    two = tuple(TeacherConfig(run="x", weight=weight) for weight in (1.0, 3.0))
    plain, wrapped = (student("clm", tok, RESPONSE, config, teachers=two) for _ in range(2))
    for made in (plain, wrapped):
        seed_everything(0, verbose=False)
        made.learn_from([teacher("clm", tok, seed=seed) for seed in (1, 2)])
    batch = batches(plain, tok)[0]

    class Wrapped(torch.nn.Linear):
        pass

    wrapped.student.head.decoder.__class__ = Wrapped  # type: ignore[assignment]
    totals = [made(batch).total(batch["counts"]) for made in (plain, wrapped)]
    torch.testing.assert_close(*totals)
    for total in totals:
        total.backward()
    for mine, theirs in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"student": ObjectiveConfig(objective="lmlab.objectives.mlm.MLN")}, "does not exist"),
        ({"student": ObjectiveConfig(objective="lmlab.objectives.mlm.MLM", settings={"lenght": 16})}, "no setting 'lenght'"),
        ({"student": ObjectiveConfig(objective="os.path.join")}, "not allowed"),
        ({"student": ObjectiveConfig(objective="lmlab.objectives.recurrent_lm.RecurrentLM")}, "inside another objective"),
        ({"student": ObjectiveConfig(objective="lmlab.objectives.contrastive.Contrastive", settings=NEIGHBOURS)}, "what predicts tokens"),
        ({"teachers": ()}, "nobody to learn from"),
        ({"teachers": (TeacherConfig(run="a", weight=2.0),)}, "only teacher has no effect"),
        ({"teachers": (TeacherConfig(run="a", lends=(1,)), TeacherConfig(run="b", lends=(1,)))}, "start from one teacher"),
        ({"teachers": (TeacherConfig(run="a"), TeacherConfig(run="b")), "loss": FEATURES}, "no say"),
        ({"on_policy": OnPolicyConfig()}, "does not continue texts"),
        ({"student": described("clm"), "on_policy": OnPolicyConfig(prompt_length=16)}, "keep fewer"),
        ({"student": described("clm"), "on_policy": OnPolicyConfig(prompt_length=4, share=1.0)}, "never sees a label"),
        ({"student": described("clm"), "on_policy": OnPolicyConfig(prompt_length=4), "loss": FEATURES}, "needs the teacher's answers"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_at_once(settings: dict[str, Any], why: str, tok: Tokenizer) -> None:
    given = {"student": described("mlm"), "teachers": (TeacherConfig(run="a"),), "loss": EVERYTHING} | settings
    with pytest.raises(ConfigError, match=why):
        Distillation(tok, STUDENT, **given)
