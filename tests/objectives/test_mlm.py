"""Masked language modelling: against a full head, against transformers' loss form, and in filling gaps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything

from lmlab.backbones import BackboneConfig, Decoder, Encoder, EncoderDecoder
from lmlab.data.batch import Example
from lmlab.data.masking import MaskingConfig
from lmlab.errors import ConfigError, DataError
from lmlab.objectives.mlm import MLM
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from tests.objectives.toy import LENGTH, TEXT, Blocks, batches, objective, tokenizer


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


@pytest.fixture
def model(tok: Tokenizer) -> MLM:
    seed_everything(0, verbose=False)
    made = objective("mlm", tok)
    made.configure_model()
    assert isinstance(made, MLM)
    return made.eval()


def test_a_head_on_masked_rows_gives_the_loss_of_a_head_on_all_rows(model: MLM, tok: Tokenizer) -> None:
    batch = batches("mlm", tok)[0]
    losses = model(batch)
    logits = model.head(model.states(batch))
    everywhere = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum")
    assert losses.parts["mlm"].sum.item() == pytest.approx(everywhere.item(), rel=1e-6)
    masked = batch["labels"] != -100
    right = (logits.argmax(-1)[masked] == batch["labels"][masked]).sum().item()
    assert losses.monitors["accuracy"].sum.item() == right
    assert torch.equal(model.predicted_ids(batch)[masked], logits.argmax(-1)[masked])
    grads = []
    for loss in (losses.parts["mlm"].sum, everywhere):
        model.zero_grad()
        loss.backward(retain_graph=True)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-5)


def test_accuracy_counts_the_right_ones(model: MLM, tok: Tokenizer) -> None:
    """Labels that agree with the model at every third masked place, and nowhere else."""
    batch = batches("mlm", tok)[0]
    masked = (batch["labels"] != -100).nonzero()
    said = model.head(model.states(batch)).argmax(-1)
    for number, (row, place) in enumerate(masked.tolist()):
        batch["labels"][row, place] = said[row, place] if number % 3 == 0 else (said[row, place] + 1) % tok.vocab_size
    accuracy = model(batch).monitors["accuracy"]
    assert accuracy.sum.item() == len(range(0, len(masked), 3)) > 0
    assert accuracy.count.item() == len(masked)


def test_in_the_middle_of_training_it_fills_without_dropout_and_goes_on_training(tok: Tokenizer) -> None:
    made = objective("mlm", tok, dropout=0.5)
    made.configure_model()
    assert isinstance(made, MLM)
    text = f"The {tok.token(tok.mask_id)} fox"
    examples = [Blocks(made.feed(), tok)[i]._replace(position=i) for i in range(3)]
    at_rest = made.eval().fill(text), made.samples(examples, 3)
    made.train()
    assert (made.fill(text), made.samples(examples, 3)) == at_rest
    assert all(part.training for part in made.modules())


def test_a_table_of_positions_too_short_for_the_blocks_is_refused_before_anything_is_read(tok: Tokenizer) -> None:
    short = BackboneConfig(hidden_size=24, num_layers=1, num_heads=2, position="learned", max_length=LENGTH - 1)
    with pytest.raises(ConfigError, match=f"{LENGTH} tokens do not fit into {LENGTH - 1}") as caught:
        MLM(tok, short, length=LENGTH)
    assert "backbone.max_length" in caught.value.where
    made = MLM(tok, dataclasses.replace(short, max_length=LENGTH), length=LENGTH)
    made.configure_model()
    made(batches("mlm", tok)[0])


def test_a_shared_backbone_is_read_in_both_directions(tok: Tokenizer) -> None:
    made = objective("mlm", tok)
    with pytest.raises(ConfigError, match="EncoderDecoder"):
        made.build(EncoderDecoder(made.backbone_config, tok.vocab_size, tok.pad_id))
    lender = Decoder(made.backbone_config, tok.vocab_size, tok.pad_id)
    made.build(lender)
    assert isinstance(made.backbone, Encoder)
    assert {id(p) for p in made.backbone.parameters()} == {id(p) for p in lender.parameters()}
    ids = torch.randint(tok.vocab_size, (2, LENGTH))
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % tok.vocab_size
    assert torch.equal(lender(ids)[:, :-1], lender(changed)[:, :-1])
    assert not torch.allclose(made.backbone(ids)[:, 0], made.backbone(changed)[:, 0])
    alone = Encoder(made.backbone_config, tok.vocab_size, tok.pad_id)
    alone.load_state_dict(lender.state_dict())
    assert torch.equal(alone(ids), made.backbone(ids))


def test_a_table_learned_for_one_direction_is_not_lent(tok: Tokenizer) -> None:
    made = MLM(tok, BackboneConfig(hidden_size=24, num_layers=1, num_heads=2, position="t5"), length=LENGTH)
    with pytest.raises(ConfigError, match="cannot share weights"):
        made.build(Decoder(made.backbone_config, tok.vocab_size, tok.pad_id))


def test_evaluation_masks_are_frozen_and_independent_of_the_training_rate(tok: Tokenizer) -> None:
    feeds = [MLM(tok, length=LENGTH, mask_prob=p).feed() for p in (0.15, 0.5)]
    examples = [Blocks(feeds[0], tok)[i]._replace(position=i) for i in range(4)]
    first, second = (feed.eval_collate(examples, 0) for feed in feeds)
    assert torch.equal(first["labels"], second["labels"])
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert feeds[1].collate(examples, 0)["counts"]["mlm"] > feeds[0].collate(examples, 0)["counts"]["mlm"]


def test_a_schedule_does_not_reach_the_evaluation(tok: Tokenizer) -> None:
    feed = MLM(tok, length=LENGTH, mask_prob=0.5, masking=MaskingConfig(final_prob=0.1, final_at_examples=10)).feed()
    example = Blocks(feed, tok)[0]
    at = [feed.eval_collate([example._replace(position=n)], 0)["counts"]["mlm"].item() for n in (0, 1000)]
    assert at == [round(0.15 * LENGTH)] * 2


def test_filling_returns_probabilities_of_the_softmax(model: MLM, tok: Tokenizer) -> None:
    mask = tok.token(tok.mask_id)
    first, second = model.fill(f"The quick {mask} fox jumps over the {mask} dog", num_choices=3)
    assert len(first) == len(second) == 3
    ids = [tok.cls_id, *tok.encode(f"The quick {mask} fox jumps over the {mask} dog", parse_special=True), tok.sep_id]
    logits = model.head(model.states({"input_ids": torch.tensor([ids])}))[0, ids.index(tok.mask_id)]
    logits[sorted(tok.special_ids)] = -torch.inf
    best = logits.softmax(-1).topk(3)
    assert [c.probability for c in first] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert [c.text for c in first] == [tok.decode([i]) for i in best.indices.tolist()]
    with pytest.raises(DataError, match="nothing to fill in"):
        model.fill("no gap here")


def test_it_learns_to_fill_a_text_it_knows(model: MLM, tok: Tokenizer) -> None:
    ids = [tok.cls_id, *tok.encode(TEXT)[: LENGTH - 2], tok.sep_id]
    places = torch.arange(1, len(ids) - 1)
    rows = torch.arange(len(places))
    original = torch.tensor([ids] * len(places))
    labels = torch.full_like(original, -100)
    labels[rows, places] = original[rows, places]
    masked = original.clone()
    masked[rows, places] = tok.mask_id
    batch = {"input_ids": masked, "labels": labels, "supervised": rows * len(ids) + places, "counts": {"mlm": torch.tensor([len(places)])}}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(110):
        optimizer.zero_grad()
        model(batch).total(batch["counts"]).backward()
        optimizer.step()
    model.eval()
    mask, checked = tok.token(tok.mask_id), 0
    for place in range(1, len(ids) - 1):
        text = tok.decode(ids[1:place]) + mask + tok.decode(ids[place + 1 : -1])
        if tok.encode(text, parse_special=True) == [*ids[1:place], tok.mask_id, *ids[place + 1 : -1]]:  # pieces may join across a gap
            checked += 1
            assert model.fill(text, 1)[0][0].text == tok.decode([ids[place]])
    assert checked >= 3


@pytest.mark.parametrize(
    ("text", "chinese"), [("The quickest foxes jumped overnight into woodlands", "pieces"), ("却说玄德引军来到城下，众将皆惊", "words")]
)
def test_whole_words_in_english_and_chinese(text: str, chinese: str) -> None:
    tok = Tokenizer.train([text] * 2, TokenizerConfig(kind="characters", vocab_size=400, num_sentinels=0))  # a piece is a character
    ids = np.asarray(tok.encode(text))
    starts = tok.word_starts(ids, chinese)  # type: ignore[arg-type]
    assert 3 <= starts.sum() < len(ids), "there are words of several characters"
    made = MLM(tok, length=len(ids), mask_prob=0.4, masking=MaskingConfig(unit="word", chinese=chinese))  # type: ignore[arg-type]
    assert made.feed().word_starts == chinese
    for n in range(20):
        example = Example(n, n, ids, np.zeros(len(ids), np.int64), len(ids), starts)
        masked = made.feed().collate([example], 0)["labels"][0].numpy() != -100
        for word in np.split(np.arange(len(ids)), np.flatnonzero(starts)[1:]):
            assert masked[word].all() or not masked[word].any()


def test_impossible_rates_are_refused(tok: Tokenizer) -> None:
    for bad in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match="mask_prob"):
            MLM(tok, mask_prob=bad)
