"""Causal language modelling: against loops, against transformers' loss, and in writing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything

from lmlab.data.batch import Example
from lmlab.decoding import DecodingConfig
from lmlab.errors import ConfigError
from lmlab.objectives.clm import CLM, CLMCollator
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, TEXT, batches, objective, tokenizer


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


@pytest.fixture
def model(tok: Tokenizer) -> CLM:
    seed_everything(0, verbose=False)
    made = objective("clm", tok)
    made.configure_model()
    assert isinstance(made, CLM)
    return made.eval()


def test_labels_are_the_next_tokens() -> None:
    import numpy as np

    example = Example(0, 0, np.arange(10, 19), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2]), 7)
    batch = CLMCollator()([example], 0)
    assert batch["input_ids"].tolist() == [list(range(10, 18))]
    assert batch["labels"].tolist() == [list(range(11, 19))]
    assert batch["document_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]
    assert batch["tokens"].item() == 7 and batch["counts"]["clm"].item() == 8


def test_the_loss_is_the_negative_log_likelihood_token_by_token(model: CLM, tok: Tokenizer) -> None:
    batch = batches("clm", tok)[0]
    losses = model(batch)
    probs = model.logits(batch).softmax(-1)
    size, length = batch["labels"].shape
    nats = -sum(math.log(probs[b, t, batch["labels"][b, t]].item()) for b in range(size) for t in range(length))
    assert losses.parts["clm"].sum.item() == pytest.approx(nats, rel=1e-5)
    num_bytes = sum(
        len(tok.decode([i]).encode())
        for i in batch["labels"].flatten().tolist()
        if tok.token_bytes()[i] and "\ufffd" not in tok.decode([i])
    )
    monitor = losses.monitors["bits_per_byte"]
    assert monitor.sum.item() == pytest.approx(nats / math.log(2), rel=1e-5)
    assert monitor.count.item() >= num_bytes


def test_no_token_sees_what_comes_after_it_or_another_document(model: CLM, tok: Tokenizer) -> None:
    batch = next(b for b in batches("clm", tok, num=8, size=1) if "document_ids" in b)
    logits = model.logits(batch)
    cut = int((batch["document_ids"][0] == batch["document_ids"][0, 0]).sum())
    changed = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    changed["input_ids"][0, cut:] = changed["input_ids"][0, cut:].flip(0)
    assert torch.allclose(model.logits(changed)[0, :cut], logits[0, :cut])
    changed["input_ids"] = batch["input_ids"].clone()
    changed["input_ids"][0, :cut] = changed["input_ids"][0, :cut].roll(1)
    assert torch.allclose(model.logits(changed)[0, cut:], logits[0, cut:])


def test_greedy_decoding_with_a_cache_equals_a_plain_loop(model: CLM, tok: Tokenizer) -> None:
    prompts = ["The quick", "The dog sleeps on, and", ""]
    config = DecodingConfig(max_new_tokens=8, temperature=0)
    written = model.continue_ids([[tok.bos_id, *tok.encode(p)] for p in prompts], config)
    for prompt, new in zip(prompts, written, strict=True):
        ids = [tok.bos_id, *tok.encode(prompt)]
        for token in new:
            logits = model.logits({"input_ids": torch.tensor([ids])})[0, -1]
            logits[[i for i in tok.special_ids if i not in (tok.eos_id, tok.bos_id)]] = -torch.inf
            assert logits.argmax().item() == token
            ids.append(token)


def test_a_seed_decides_the_text_and_the_text_does_not_depend_on_its_company(model: CLM) -> None:
    config = DecodingConfig(max_new_tokens=6, temperature=1.0, seed=4)
    assert model.generate(["The fox"], config) == model.generate(["The fox"], config)
    assert model.generate(["The fox"], config) != model.generate(["The fox"], DecodingConfig(max_new_tokens=6, temperature=1.0, seed=5))
    greedy = DecodingConfig(max_new_tokens=6, temperature=0)
    assert model.generate(["The fox", "The quick brown fox jumps over"], greedy)[0] == model.generate(["The fox"], greedy)[0]


def test_learned_positions_refuse_to_run_out(tok: Tokenizer) -> None:
    import dataclasses

    made = objective("clm", tok)
    made.backbone_config = dataclasses.replace(made.backbone_config, position="learned", max_length=16)
    made.configure_model()
    with pytest.raises(ConfigError, match="do not fit into 16 positions"):
        made.generate(["The fox"], DecodingConfig(max_new_tokens=20))  # type: ignore[attr-defined]


def test_it_learns_one_text_by_heart(model: CLM, tok: Tokenizer) -> None:
    ids = [tok.bos_id, *tok.encode(TEXT)][: LENGTH + 1]
    batch = {"input_ids": torch.tensor([ids[:-1]]), "labels": torch.tensor([ids[1:]]), "counts": {"clm": torch.tensor([len(ids) - 1])}}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model(batch).total(batch["counts"]).backward()
        optimizer.step()
    model.eval()
    start = tok.decode(ids[1:5])
    written = model.continue_ids([ids[:5]], DecodingConfig(max_new_tokens=8, temperature=0))[0]
    assert written == ids[5:13], f"{start!r} should go on as in the text"
    assert F.cross_entropy(model.logits(batch).flatten(0, 1), batch["labels"].flatten()).item() < 0.05
