"""Next-sentence and sentence-order prediction: against transformers, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import seed_everything
from transformers import BertConfig, BertForPreTraining

from lmlab.backbones import BackboneConfig
from lmlab.backbones.pretrained import config_from_hugging_face, convert_state_dict
from lmlab.data.corpus import TextCorpus
from lmlab.data.module import CorpusModule
from lmlab.errors import ConfigError
from lmlab.objectives.mlm import MLM
from lmlab.objectives.nsp import NextSentence
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, Blocks, batches, objective, tokenizer

RTOL, ATOL = 1e-4, 2e-5  # float32 sums taken in another order
REDRAW_STD = 0.3


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


@pytest.fixture
def model(tok: Tokenizer) -> NextSentence:
    seed_everything(0, verbose=False)
    made = objective("nsp", tok)
    made.configure_model()
    assert isinstance(made, NextSentence)
    return made


@pytest.mark.filterwarnings("ignore")
def test_heads_losses_and_gradients_are_those_of_transformers(tok: Tokenizer) -> None:
    """Every parameter redrawn, biases and norms too; rows of several lengths."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56}
    config = BertConfig(
        **sizes, vocab_size=tok.vocab_size, max_position_embeddings=LENGTH, pad_token_id=tok.pad_id, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    theirs = BertForPreTraining(config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, REDRAW_STD)
    ours = NextSentence(tok, config_from_hugging_face(config.to_dict()), length=LENGTH)
    ours.configure_model()
    copies = {"bert.pooler.dense": "pair_head.pooler", "cls.seq_relationship": "pair_head.classifier"}

    def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pair_head = {f"{new}.{leaf}": weights[f"{old}.{leaf}"] for old, new in copies.items() for leaf in ("weight", "bias")}
        return {**convert_state_dict("bert", weights, ours.backbone_config), **pair_head}

    ours.load_state_dict(renamed(theirs.state_dict()))
    (batch,) = batches("nsp", tok, size=6)
    assert "attention_mask" in batch and set(batch["pair_labels"].tolist()) == {0, 1}
    keys = ("input_ids", "token_type_ids", "labels")
    out = theirs(**{k: batch[k] for k in keys}, attention_mask=batch["attention_mask"].long(), next_sentence_label=batch["pair_labels"])
    losses = ours(batch)
    torch.testing.assert_close(losses.total(batch["counts"]), out.loss, rtol=RTOL, atol=0.0)
    states = ours.states(batch)
    torch.testing.assert_close(ours.pair_head(states[:, 0]), out.seq_relationship_logits, rtol=RTOL, atol=ATOL)
    losses.total(batch["counts"]).backward()
    out.loss.backward()
    expected = renamed({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=RTOL, atol=ATOL, msg=lambda m, n=name: f"{n}: {m}")


def test_each_part_is_divided_by_its_own_count(model: NextSentence, tok: Tokenizer) -> None:
    (batch,) = batches("nsp", tok)
    losses = model(batch)
    mlm, nsp = losses.parts["mlm"], losses.parts["nsp"]
    assert (mlm.count.item(), nsp.count.item()) == ((batch["labels"] != -100).sum().item(), 4)
    counts = {"mlm": torch.tensor([100]), "nsp": torch.tensor([8])}
    assert losses.total(counts).item() == pytest.approx(mlm.sum.item() / 100 + nsp.sum.item() / 8)


def test_pair_accuracy_counts_the_right_ones(model: NextSentence, tok: Tokenizer) -> None:
    (batch,) = batches("nsp", tok, size=8)
    model.eval()
    said = model.pair_head(model.states(batch)[:, 0]).argmax(-1)
    batch["pair_labels"] = torch.where(torch.arange(8) < 5, said, 1 - said)
    monitors = model(batch).monitors
    assert (monitors["pair_accuracy"].sum.item(), monitors["pair_accuracy"].count.item()) == (5, 8)
    assert "accuracy" in monitors
    model.train()
    assert model(batch).monitors == {}


def test_it_learns_to_tell_pairs_apart_on_one_batch(model: NextSentence, tok: Tokenizer) -> None:
    (batch,) = batches("nsp", tok, size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        model(batch).total(batch["counts"]).backward()
        optimizer.step()
    means = {name: part.sum.item() / part.count.item() for name, part in model(batch).parts.items()}
    assert means["nsp"] < 0.01 and means["mlm"] < 0.1


def test_it_fills_gaps_like_a_masked_model(model: NextSentence, tok: Tokenizer) -> None:
    assert isinstance(model, MLM)
    assert len(model.fill(f"The {tok.token(tok.mask_id)} fox", 2)[0]) == 2
    view = Blocks(model.feed(), tok)
    samples = model.samples([view[i]._replace(position=i) for i in range(3)], step=1)
    assert len(samples) == 3 and all(any(piece.by == "model" for piece in sample.pieces) for sample in samples)


def test_orders_have_a_part_of_their_own_name(tok: Tokenizer) -> None:
    made = NextSentence(tok, BackboneConfig(hidden_size=24, num_layers=1, num_heads=2, num_segments=2), length=LENGTH, pairs="sop")
    feed = made.feed()
    assert (feed.view, feed.negatives) == ("sentence_pairs", "order")
    made.configure_model()
    view = Blocks(feed, tok)
    assert made(feed.collate([view[0], view[1]], 0)).parts.keys() == {"mlm", "sop"}


def test_impossible_settings_are_refused(tok: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="num_segments"):
        NextSentence(tok, BackboneConfig())
    with pytest.raises(ConfigError, match="pairs"):
        NextSentence(tok, pairs="next")  # type: ignore[arg-type]


def test_a_text_without_two_sentences_is_refused_before_training(tok: Tokenizer, tmp_path) -> None:
    (tmp_path / "x.txt").write_text("\n\n".join(f"no sentence ends here {n}" for n in range(50)))
    made = NextSentence(tok, length=64)
    data = CorpusModule(
        {"class_path": f"{TextCorpus.__module__}.TextCorpus", "init_args": {"paths": [str(tmp_path / "x.txt")]}}, tok, made.feed()
    )
    with pytest.raises(Exception, match="two sentences"):
        data.setup("fit")
        data.train_dataloader()
