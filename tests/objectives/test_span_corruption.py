"""Span corruption: against transformers' loss form, against unpacked documents, and in filling spans."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything

from lmlab.decoding import DecodingConfig
from lmlab.errors import ConfigError
from lmlab.objectives.span_corruption import SpanCorruption
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, TEXT, batches, objective, tokenizer


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


@pytest.fixture
def model(tok: Tokenizer) -> SpanCorruption:
    seed_everything(0, verbose=False)
    made = objective("span_corruption", tok)
    made.configure_model()
    assert isinstance(made, SpanCorruption)
    return made.eval()


def test_the_loss_is_the_cross_entropy_of_the_targets(model: SpanCorruption, tok: Tokenizer) -> None:
    batch = batches("span_corruption", tok)[0]
    assert batch["input_ids"].shape[1] == model.sizes.inputs <= LENGTH
    logits = model.logits(batch)
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    part = model(batch).parts["span_corruption"]
    assert part.sum.item() == pytest.approx(expected.item(), rel=1e-6)
    assert part.count.item() == batch["labels"].numel()


def test_a_packed_document_is_scored_as_if_it_stood_alone(model: SpanCorruption, tok: Tokenizer) -> None:
    batch = next(
        b for b in batches("span_corruption", tok, num=12, size=1) if len(b.get("decoder_document_ids", torch.zeros(1)).unique()) > 1
    )
    logits = model.logits(batch)[0]
    for document in batch["decoder_document_ids"][0].unique():
        source, target = batch["document_ids"][0] == document, batch["decoder_document_ids"][0] == document
        alone = {"input_ids": batch["input_ids"][:, source], "decoder_input_ids": batch["decoder_input_ids"][:, target]}
        assert torch.allclose(model.logits(alone)[0], logits[target], atol=1e-5)


def test_greedy_filling_equals_a_plain_loop(model: SpanCorruption, tok: Tokenizer) -> None:
    rows = [[*tok.encode("The quick"), tok.sentinel_ids[0], *tok.encode("jumps")], [tok.sentinel_ids[0], *tok.encode(" dog")]]
    together = model.fill(rows, DecodingConfig(temperature=0, max_new_tokens=6))
    for row, filling in zip(rows, together, strict=True):
        written: list[int] = []
        for _ in range(6):
            ids = {"input_ids": torch.tensor([[*row, tok.eos_id]]), "decoder_input_ids": torch.tensor([[tok.pad_id, *written]])}
            logits = model.logits(ids)[0, -1]
            logits[[i for i in tok.special_ids if i != tok.eos_id and i not in tok.sentinel_ids]] = -torch.inf
            if logits.argmax() == tok.eos_id:
                break
            written.append(int(logits.argmax()))
        spans: dict[int, list[int]] = {}
        for token in written:
            if token in tok.sentinel_ids:
                last = spans.setdefault(token, [])
            elif spans:
                last.append(token)
        assert filling == spans


def test_it_learns_to_fill_a_text_it_knows(model: SpanCorruption, tok: Tokenizer) -> None:
    ids = tok.encode(TEXT)[:14]
    source = [*ids[:5], tok.sentinel_ids[0], *ids[8:]]
    target = [tok.sentinel_ids[0], *ids[5:8], tok.eos_id]
    batch = {
        "input_ids": torch.tensor([[*source, tok.eos_id]]),
        "decoder_input_ids": torch.tensor([[tok.pad_id, *target[:-1]]]),
        "labels": torch.tensor([target]),
        "counts": {"span_corruption": torch.tensor([len(target)])},
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(30):
        optimizer.zero_grad()
        model(batch).total(batch["counts"]).backward()
        optimizer.step()
    assert model.eval().fill([source])[0] == {tok.sentinel_ids[0]: ids[5:8]}


def test_too_few_sentinels_are_refused(tok: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"needs 2\d sentinels, the tokenizer has 8"):
        SpanCorruption(tok, length=400).feed()
    for bad in ({"noise_density": 0.0}, {"mean_span": 0.5}):
        with pytest.raises(ConfigError):
            SpanCorruption(tok, **bad)  # type: ignore[arg-type]
