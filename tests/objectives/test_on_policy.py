"""Training on the student's own text: what is written, what it depends on, what it costs, and what is learnt from it."""

from __future__ import annotations

import dataclasses
from itertools import islice
from math import inf
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch.distributions import Categorical, kl_divergence
from torch.utils.flop_counter import FlopCounterMode

from lmlab.backbones import BackboneConfig
from lmlab.data.batch import Batch
from lmlab.data.loader import Window
from lmlab.errors import ConfigError
from lmlab.objectives.clm import CLM
from lmlab.objectives.distillation import Distillation
from lmlab.objectives.distillation_losses import DistillationLoss, ResponseConfig
from lmlab.objectives.on_policy import OnPolicyConfig, continued, num_written
from lmlab.objectives.passes import Step
from lmlab.tokenizer import Tokenizer
from tests.objectives.teaching import EVERYTHING, taught
from tests.objectives.test_distillation import fit
from tests.objectives.toy import LENGTH, Toy, tokenizer

KEEP = 6
ALWAYS = OnPolicyConfig(share=1.0, prompt_length=KEEP)
LOSS = DistillationLoss(labels=0.0, response=ResponseConfig())


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


def windows(made: Distillation, tok: Tokenizer, num: int, micro: int = 4) -> list[Batch]:
    return list(islice(Toy(made.feed(), tok, 4, micro).train_dataloader(), num))  # type: ignore[arg-type]


def writer(made: Distillation) -> CLM:
    assert isinstance(made.student, CLM)
    return made.student


def test_steps_are_chosen_by_their_draw_in_the_given_share() -> None:
    def chosen(share: float) -> list[bool]:
        policy = OnPolicyConfig(share=share)
        stamps = [Window({}, 0, 0, 0, 1, 0, 0, 0, draw=draw * 0x9E3779B97F4A7C15 % 2**64) for draw in range(2000)]
        return [policy.chooses(stamp) for stamp in stamps]

    assert sum(chosen(0.3)) == pytest.approx(600, abs=60) and all(chosen(1.0))
    assert chosen(0.3) == chosen(0.3)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_the_text_is_what_the_student_says_token_by_token(position: Any, tok: Tokenizer) -> None:
    """Almost without temperature, each written token is the likeliest one, given its document, as the training pass sees it."""
    cold = OnPolicyConfig(share=1.0, prompt_length=KEEP, temperature=1e-4)
    made = taught(
        "clm", tok, LOSS, BackboneConfig(hidden_size=24, num_layers=2, num_heads=2, position=position, init_std=0.2), on_policy=cold
    )
    special = torch.tensor(sorted(tok.special_ids))
    seen = 0
    for stamped in windows(made, tok, 6):
        own = continued(writer(made), stamped, cold, stamped["window"])
        assert torch.equal(own["input_ids"][:, :KEEP], stamped["input_ids"][:, :KEEP])
        assert own["input_ids"].shape == stamped["input_ids"].shape and own["labels"].shape == stamped["labels"].shape
        assert (own["labels"][:, : KEEP - 1] == -100).all() and torch.equal(own["labels"][:, KEEP - 1 : -1], own["input_ids"][:, KEEP:])
        assert not torch.isin(own["labels"], special).any()
        logits = writer(made).logits(own).index_fill(-1, special, -torch.inf)
        assert torch.equal(logits.argmax(-1)[:, KEEP - 1 :], own["labels"][:, KEEP - 1 :])
        if "document_ids" in own:
            seen += int((own["document_ids"][:, 0] != own["document_ids"][:, KEEP - 1]).sum())
            assert (own["document_ids"][:, KEEP:] == own["document_ids"][:, KEEP - 1 : KEEP]).all()
    assert seen, "some beginnings hold two documents"


def test_what_is_written_depends_on_step_and_beginning_only(tok: Tokenizer) -> None:
    made = taught("clm", tok, LOSS, on_policy=ALWAYS)
    whole, halves = windows(made, tok, 2, 4), windows(made, tok, 4, 2)
    texts = [continued(writer(made), b, ALWAYS, b["window"])["labels"] for b in whole]
    parts = [continued(writer(made), b, ALWAYS, b["window"])["labels"] for b in halves]
    assert torch.equal(texts[0], torch.cat(parts[:2])) and torch.equal(texts[1], torch.cat(parts[2:]))
    state = torch.get_rng_state()
    again = continued(writer(made), whole[0], ALWAYS, whole[0]["window"])["labels"]
    assert torch.equal(again, texts[0]) and torch.equal(torch.get_rng_state(), state)
    other = continued(writer(made), whole[0], ALWAYS, whole[1]["window"])["labels"]
    assert not torch.equal(other, texts[0]), "another step, another text"


def test_the_loss_is_the_mean_divergence_on_written_tokens_without_gradient_through_the_sampling(tok: Tokenizer) -> None:
    made = taught("clm", tok, LOSS, on_policy=ALWAYS)
    guide = made.teachers[0].module  # type: ignore[union-attr]
    stamped = windows(made, tok, 1)[0]
    batch = {key: value for key, value in stamped.items() if key != "window"}
    step = Step(stamped["window"], batch["counts"], 1, lambda x: x)
    [one] = made.passes(batch, step)
    outcome = one()
    outcome.loss.backward()
    found = [p.grad for p in made.parameters()]
    made.zero_grad(set_to_none=True)
    own = continued(writer(made), batch, ALWAYS, stamped["window"])
    student, teacher = (net.logits(own)[:, KEEP - 1 :] for net in (writer(made), guide))
    wanted = kl_divergence(Categorical(logits=teacher.detach()), Categorical(logits=student)).mean()
    wanted.backward()
    torch.testing.assert_close(outcome.loss, wanted, rtol=1e-4, atol=1e-5)
    for mine, parameter in zip(found, made.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-6)
    assert outcome.report is not None and outcome.report.parts.keys() == {"response"}


@pytest.mark.parametrize("keep", [1, KEEP, LENGTH - 1])
def test_flops_are_those_torch_counts_writing_included(keep: int, tok: Tokenizer) -> None:
    policy = OnPolicyConfig(share=1.0, prompt_length=keep)
    made = taught("clm", tok, dataclasses.replace(EVERYTHING, labels=0.0), on_policy=policy)
    stamped = windows(made, tok, 1)[0]
    batch = {key: value for key, value in stamped.items() if key != "window"}
    [one] = made.passes(batch, Step(stamped["window"], batch["counts"], 1, lambda x: x))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        one().loss.backward()
    assert num_written(policy, LENGTH) == LENGTH + 1 - keep
    assert made.flops(stamped) == counter.get_total_flops()
    assert made.flops(batch) != made.flops(stamped), "a batch of an evaluation is not written"


def test_both_kinds_of_steps_are_taken_whatever_the_micro_batch(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[bool] = []
    chooses = OnPolicyConfig.chooses

    def noted(self: OnPolicyConfig, window: Window) -> bool:
        kinds.append(chooses(self, window))
        return kinds[-1]

    monkeypatch.setattr(OnPolicyConfig, "chooses", noted)
    weights = []
    for micro in (8, 2):
        kinds.clear()
        made = taught("clm", tok, dataclasses.replace(LOSS, labels=1.0), on_policy=OnPolicyConfig(share=0.4, prompt_length=KEEP))
        fit(made, tok, micro, steps=6)
        assert set(kinds) == {True, False}
        weights.append({k: v.clone() for k, v in made.state_dict().items()})
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-5, atol=1e-5)


def test_dropout_rests_while_writing_and_returns(tok: Tokenizer) -> None:
    made = taught("clm", tok, LOSS, BackboneConfig(hidden_size=24, num_layers=2, num_heads=2, dropout=0.5), on_policy=ALWAYS)
    stamped = windows(made, tok, 1)[0]
    made.train()
    first, second = (continued(writer(made), stamped, ALWAYS, stamped["window"])["labels"] for _ in range(2))
    assert torch.equal(first, second) and made.student.training and made.student.backbone.training  # type: ignore[union-attr]


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"share": 1.5}, {"prompt_length": 0}, {"temperature": 0.0}, {"temperature": inf}])
def test_impossible_policies_are_refused(settings: dict[str, Any]) -> None:
    seed_everything(0, verbose=False)
    with pytest.raises(ConfigError):
        OnPolicyConfig(**settings)
