"""Causal language modelling: against loops, against transformers' loss, and in writing."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything

from lmlab.backbones import BackboneConfig, Decoder, Encoder, EncoderDecoder
from lmlab.data.batch import Example
from lmlab.decoding import DecodingConfig
from lmlab.errors import ConfigError
from lmlab.objectives.clm import CLM, CLMCollator, tells_bytes
from lmlab.tokenizer import Tokenizer, TokenizerConfig
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
    assert losses.monitors["bits_per_byte"].sum.item() == pytest.approx(nats / math.log(2), rel=1e-5)


def test_bits_per_byte_divide_by_the_bytes_of_the_text(model: CLM, tok: Tokenizer) -> None:
    """Those of the text itself, whose tokens the labels are; the special token after it stands for none."""
    for text in (TEXT, "Ein Fuchs läßt 狐狸 laufen 🦊"):
        ids = [tok.bos_id, *tok.encode(text), tok.bos_id]
        batch = {"input_ids": torch.tensor([ids[:-1]]), "labels": torch.tensor([ids[1:]]), "counts": {"clm": torch.tensor([len(ids) - 1])}}
        assert model(batch).monitors["bits_per_byte"].count.item() == len(text.encode("utf-8"))


@pytest.mark.parametrize(
    ("config", "tells"),
    [
        ({}, True),
        ({"kind": "bytes"}, True),
        ({"kind": "characters"}, True),
        ({"kind": "unigram"}, True),
        ({"normalization": "none"}, True),
        ({"kind": "wordpiece"}, False),
        ({"case": "lower"}, False),
        ({"normalization": "nfkc"}, False),
        ({"kind": "unigram", "normalization": "nfkc", "case": "lower"}, False),
    ],
)
def test_no_bits_per_byte_where_a_tokenizer_forgets_bytes(config: dict[str, Any], tells: bool) -> None:
    """A number that is not bits per byte must not be called so."""
    made = Tokenizer.train([TEXT] * 3, TokenizerConfig(**{"vocab_size": 500, "num_sentinels": 0} | config))
    texts = ["Two  spaces, Upper case", "ﬁne ① print", "狐狸", "a\tb\nc", "Ünïcode"]
    restored = [made.decode(made.encode(text)) for text in texts]
    counted = [int(made.token_bytes()[made.encode(text)].sum()) for text in texts]
    assert (restored == texts and counted == [len(text.encode()) for text in texts]) is tells
    assert tells_bytes(made) is tells
    built = objective("clm", made)
    built.configure_model()
    assert set(built.eval()(batches("clm", made)[0]).monitors) == ({"bits_per_byte"} if tells else set())


def test_a_space_put_before_each_text_is_not_a_byte_of_it(tok: Tokenizer) -> None:
    """As some loaded tokenizers do."""
    content = json.loads(tok.json)
    assert '"add_prefix_space":false' in tok.json.replace(" ", "")
    prefixed = Tokenizer(tok.json.replace('"add_prefix_space":false', '"add_prefix_space":true'), tok.specials)
    assert json.loads(prefixed.json) != content
    assert tells_bytes(tok) and not tells_bytes(prefixed)


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
    rows = [[model.tokenizer.bos_id, *model.tokenizer.encode(text)] for text in ("The", "dog", "The quick brown fox")]
    for seed in range(5):
        config = DecodingConfig(max_new_tokens=20, temperature=1.0, seed=seed)
        alone = [model.continue_ids([row], config)[0] for row in rows]
        assert model.continue_ids(rows, config) == alone and model.continue_ids(rows[::-1], config) == alone[::-1]


def test_in_the_middle_of_training_it_writes_without_dropout_and_goes_on_training(tok: Tokenizer) -> None:
    made = objective("clm", tok, dropout=0.5)
    made.configure_model()
    assert isinstance(made, CLM)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3)
    config = DecodingConfig(max_new_tokens=12, seed=1)
    examples = [Example(i, i, np.arange(20, 20 + LENGTH + 1), np.zeros(LENGTH + 1, np.int64), LENGTH) for i in range(2)]
    at_rest = made.eval().generate(["The"], config), made.samples(examples, 3)
    made.train()
    made.backbone.blocks[0].eval()
    before = [part.training for part in made.modules()]
    assert (made.generate(["The"], config), made.samples(examples, 3)) == at_rest
    assert [part.training for part in made.modules()] == before


def test_short_blocks_have_samples_and_blocks_of_one_token_are_refused(tok: Tokenizer) -> None:
    config = BackboneConfig(hidden_size=24, num_layers=1, num_heads=2, position="learned", max_length=2)
    made = CLM(tok, config, length=2)
    made.configure_model()
    (sample,) = made.eval().samples([Example(0, 0, np.array([20, 21, 22]), np.zeros(3, np.int64), 2)], 0)
    assert sample.pieces[0].text == tok.decode([20])
    with pytest.raises(ConfigError, match=r"CLM.length = 1"):
        CLM(tok, length=1)


def test_a_table_of_positions_too_short_for_the_blocks_is_refused_before_anything_is_read(tok: Tokenizer) -> None:
    """The shortest table that is accepted is the shortest that a batch fits."""
    short = BackboneConfig(hidden_size=24, num_layers=1, num_heads=2, position="learned", max_length=LENGTH - 1)
    with pytest.raises(ConfigError, match=f"{LENGTH} tokens do not fit into {LENGTH - 1}") as caught:
        CLM(tok, short, length=LENGTH)
    assert "backbone.max_length" in caught.value.where and "length" in caught.value.remedy
    made = CLM(tok, dataclasses.replace(short, max_length=LENGTH), length=LENGTH)
    made.configure_model()
    made(batches("clm", tok)[0])


def test_on_the_weights_of_an_encoder_no_token_sees_what_it_is_to_predict(tok: Tokenizer) -> None:
    made = objective("clm", tok)
    with pytest.raises(ConfigError, match="EncoderDecoder"):
        made.build(EncoderDecoder(made.backbone_config, tok.vocab_size, tok.pad_id))
    lender = Encoder(made.backbone_config, tok.vocab_size, tok.pad_id)
    made.build(lender)
    assert {id(p) for p in made.backbone.parameters()} == {id(p) for p in lender.parameters()}
    (batch,) = batches("clm", tok)
    before = made.states(batch)
    batch["input_ids"][:, -1] = (batch["input_ids"][:, -1] + 1) % tok.vocab_size
    assert torch.equal(made.states(batch)[:, :-1], before[:, :-1])
    shared = Decoder(made.backbone_config, tok.vocab_size, tok.pad_id)
    made.build(shared)
    assert made.backbone is shared


def test_learned_positions_refuse_to_run_out(tok: Tokenizer) -> None:
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
