"""Recurrent language models as objectives: loss, learning, writing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from lmlab.backbones import BackboneConfig, Encoder
from lmlab.backbones.recurrent import RecurrentConfig
from lmlab.decoding import DecodingConfig
from lmlab.errors import ConfigError
from lmlab.objectives.recurrent_lm import RecurrentLM
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, batches, tokenizer

CELLS: dict[str, dict[str, Any]] = {
    "bengio": {"cell": "bengio", "window": 3},
    "bengio_direct": {"cell": "bengio", "window": 3, "direct": "direct", "tie": "untied"},
    "rnn": {"cell": "rnn"},
    "lstm": {"cell": "lstm"},
    "mingru": {"cell": "mingru", "num_layers": 2},
}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


def built(name: str, tok: Tokenizer) -> RecurrentLM:
    seed_everything(0, verbose=False)
    made = RecurrentLM(tok, RecurrentConfig(hidden_size=24, embedding_size=16, init_std=0.1, **CELLS[name]), length=LENGTH)
    made.configure_model()
    return made


@pytest.mark.parametrize("name", CELLS)
def test_the_loss_is_the_negative_log_likelihood_token_by_token(name: str, tok: Tokenizer) -> None:
    """Each token from the tokens of its document before it, which are read alone."""
    made = built(name, tok).eval()
    batch = next(b for b in batches("clm", tok, num=8, size=2) if "document_ids" in b)
    nats = 0.0
    for ids, labels, documents in zip(batch["input_ids"], batch["labels"], batch["document_ids"], strict=True):
        for t in range(LENGTH):
            seen = ids[: t + 1][documents[: t + 1] == documents[t]]
            probs = made.logits({"input_ids": seen[None]})[0, -1].softmax(-1)
            nats -= math.log(probs[labels[t]].item())
    losses = made(batch)
    assert losses.parts["clm"].sum.item() == pytest.approx(nats, rel=1e-5)
    assert losses.monitors["bits_per_byte"].sum.item() == pytest.approx(nats / math.log(2), rel=1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_it_learns_a_batch_by_heart(name: str, tok: Tokenizer) -> None:
    """All but what a window cannot tell apart."""
    made, batch = built(name, tok), batches("clm", tok, size=2)[0]
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.02, weight_decay=0.0)
    first = made(batch).total(batch["counts"]).item()
    for _ in range(120):
        optimizer.zero_grad()
        loss = made(batch).total(batch["counts"])
        loss.backward()
        optimizer.step()
    assert first > 5 and loss.item() < 0.2


@pytest.mark.parametrize("name", CELLS)
def test_greedy_decoding_equals_a_plain_loop(name: str, tok: Tokenizer) -> None:
    made = built(name, tok).eval()
    prompts = [[tok.bos_id, *tok.encode(text)] for text in ("The quick", "The dog sleeps on, and", "")]
    written = made.continue_ids(prompts, DecodingConfig(max_new_tokens=6, temperature=0))
    for prompt, new in zip(prompts, written, strict=True):
        ids = list(prompt)
        assert new
        for token in new:
            logits = made.logits({"input_ids": torch.tensor([ids])})[0, -1]
            logits[[i for i in tok.special_ids if i not in (tok.eos_id, tok.bos_id)]] = -torch.inf
            assert logits.argmax().item() == token
            ids.append(token)


def test_a_seed_decides_the_text(tok: Tokenizer) -> None:
    made = built("lstm", tok).train()
    texts = [made.generate(["The fox"], DecodingConfig(max_new_tokens=6, temperature=1.0, seed=seed)) for seed in (4, 4, 5)]
    assert texts[0] == texts[1] != texts[2] and made.training


def test_another_kind_of_backbone_is_refused(tok: Tokenizer) -> None:
    made = built("lstm", tok)
    with pytest.raises(ConfigError, match="cannot be shared"):
        made.build(Encoder(BackboneConfig(hidden_size=16, num_layers=1, num_heads=2), tok.vocab_size, tok.pad_id))
    shared = made.backbone
    other = RecurrentLM(tok, made.recurrent_config, length=LENGTH)
    other.build(shared)
    assert other.backbone is shared and other.head.weight is shared.embedding.weight
    with pytest.raises(ConfigError, match="length"):
        RecurrentLM(tok, length=1)
