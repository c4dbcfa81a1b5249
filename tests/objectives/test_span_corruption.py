"""Span corruption: against transformers' loss form, against unpacked documents, and in filling spans."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything

from lmlab.backbones import BackboneConfig, Decoder, Encoder, EncoderDecoder
from lmlab.decoding import DecodingConfig
from lmlab.errors import ConfigError
from lmlab.objectives.span_corruption import SpanCorruption
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, TEXT, Blocks, batches, objective, tokenizer


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
    feed = SpanCorruption(tok, length=LENGTH, noise_density=0.4, mean_span=1.5).feed()  # several spans, so that several documents have one
    made = [feed.collate([Blocks(feed, tok)[i]._replace(position=i)], 0) for i in range(12)]
    batch = next(b for b in made if len(b.get("decoder_document_ids", torch.zeros(1)).unique()) > 1)
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


def test_accuracy_counts_the_right_ones(model: SpanCorruption, tok: Tokenizer) -> None:
    """Labels that agree with the model at every third place, and nowhere else."""
    batch = batches("span_corruption", tok)[0]
    said = model.logits(batch).argmax(-1)
    agree = torch.arange(said.numel()).view_as(said) % 3 == 0
    batch["labels"] = torch.where(agree, said, (said + 1) % tok.vocab_size)
    accuracy = model(batch).monitors["accuracy"]
    assert (accuracy.sum.item(), accuracy.count.item()) == (agree.sum().item(), said.numel())


def test_a_row_is_filled_the_same_in_any_company(model: SpanCorruption, tok: Tokenizer) -> None:
    """What pads shorter rows is not read: with weights that make each token count, it would change the answer."""
    _redraw(model)
    rows = [[*tok.encode(text), tok.sentinel_ids[0]] for text in ("The", "The quick brown fox jumps over", "dog sleeps", "wood")]
    for config in (DecodingConfig(temperature=0, max_new_tokens=12), DecodingConfig(temperature=1.0, max_new_tokens=12, seed=2)):
        alone = [model.fill([row], config)[0] for row in rows]
        assert model.fill(rows, config) == alone
        assert model.fill(rows[::-1], config) == alone[::-1]


def test_in_the_middle_of_training_it_fills_without_dropout_and_goes_on_training(tok: Tokenizer) -> None:
    made = objective("span_corruption", tok, dropout=0.5)
    made.configure_model()
    assert isinstance(made, SpanCorruption)
    _redraw(made)
    row, examples = [*tok.encode("The quick"), tok.sentinel_ids[0]], [Blocks(made.feed(), tok)[i]._replace(position=i) for i in range(3)]
    at_rest = made.eval().fill([row]), made.samples(examples, 3)
    made.train()
    seen: list[bool] = []
    for part in (made.head, *made.backbone.blocks):  # the few spans written by chance could agree with dropout as well
        part.register_forward_hook(lambda part, *_: seen.append(part.training))
    assert (made.fill([row]), made.samples(examples, 3)) == at_rest
    assert seen and not any(seen)
    assert all(part.training for part in made.modules())


@pytest.mark.parametrize("noise_density", [0.15, 0.6])
def test_a_table_of_positions_too_short_for_either_side_is_refused_before_anything_is_read(tok: Tokenizer, noise_density: float) -> None:
    """At a high density the targets are the longer side; the shortest table that is accepted is the shortest that works."""
    config = BackboneConfig(hidden_size=24, num_layers=1, num_heads=2)
    made = SpanCorruption(tok, config, length=LENGTH, noise_density=noise_density)
    longer = max(made.sizes.inputs, made.sizes.targets)
    assert (made.sizes.targets > made.sizes.inputs) is (noise_density > 0.5)
    learned = dataclasses.replace(config, position="learned", max_length=longer)
    with pytest.raises(ConfigError, match=f"{longer} tokens do not fit into {longer - 1}") as caught:
        SpanCorruption(tok, dataclasses.replace(learned, max_length=longer - 1), length=LENGTH, noise_density=noise_density)
    assert "backbone.max_length" in caught.value.where and "length" in caught.value.where
    made = SpanCorruption(tok, learned, length=LENGTH, noise_density=noise_density)
    made.configure_model()
    examples = [Blocks(made.feed(), tok)[0]]
    made(made.feed().collate(examples, 0))
    made.eval().samples(examples, 0)


def test_learned_positions_refuse_to_run_out_while_filling(tok: Tokenizer) -> None:
    config = BackboneConfig(hidden_size=24, num_layers=1, num_heads=2, position="learned", max_length=LENGTH)
    made = SpanCorruption(tok, config, length=LENGTH)
    made.configure_model()
    row = [20] * (LENGTH - 1)
    made.fill([row], DecodingConfig(temperature=0, max_new_tokens=LENGTH))
    for rows, new in (([row], LENGTH + 1), ([[20], [*row, 21]], 2)):
        with pytest.raises(ConfigError, match=f"do not fit into {LENGTH} positions") as caught:
            made.fill(rows, DecodingConfig(temperature=0, max_new_tokens=new))
        assert caught.value.where == "backbone.max_length"


def test_only_an_encoder_decoder_may_be_shared(tok: Tokenizer) -> None:
    made = objective("span_corruption", tok)
    for kind in (Decoder, Encoder):
        with pytest.raises(ConfigError, match=kind.__name__):
            made.build(kind(made.backbone_config, tok.vocab_size, tok.pad_id))
    shared = EncoderDecoder(made.backbone_config, tok.vocab_size, tok.pad_id)
    made.build(shared)
    assert made.backbone is shared


def _redraw(model: SpanCorruption) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)


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
