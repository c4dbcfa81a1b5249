"""The data module: its position goes on only where nothing that decides the order has changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lmlab.data.loader import BatchPlan
from lmlab.data.module import CorpusModule
from lmlab.errors import CheckpointError, ConfigError
from lmlab.objectives.clm import CLM
from lmlab.tokenizer import Tokenizer, TokenizerConfig

PARAGRAPHS = [f"Paragraph {n}: " + "the quick brown fox jumps over the lazy dog. " * 3 for n in range(30)]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train(PARAGRAPHS, TokenizerConfig(vocab_size=320, num_sentinels=8))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")
    return path


def module(corpus: Path, tok: Tokenizer, length: int = 16, **given: Any) -> CorpusModule:
    settings = {"global_batch_size": 8, "seed": 1, "cache_dir": str(corpus.parent / "cache"), **given}
    return CorpusModule(str(corpus), tok, CLM(tok, length=length).feed(), **settings)


def test_the_position_is_taken_up(corpus: Path, tok: Tokenizer) -> None:
    first, second = module(corpus, tok), module(corpus, tok)
    stream = iter(first.train_dataloader())
    batches = [next(stream) for _ in range(6)]
    first.windows_done = 4
    second.load_state_dict(first.state_dict())
    again = next(iter(second.train_dataloader()))
    assert torch.equal(again["input_ids"], batches[4]["input_ids"]) and again["window"].seed == batches[4]["window"].seed


@pytest.mark.parametrize("change", ["global_batch_size", "seed", "length", "tokenizer", "text"])
def test_what_decides_the_order_must_not_have_changed(corpus: Path, tok: Tokenizer, change: str) -> None:
    before = module(corpus, tok)
    before.setup("predict")
    state = before.state_dict()
    given: dict[str, Any] = {"global_batch_size": {"global_batch_size": 4}, "seed": {"seed": 2}, "length": {"length": 24}}.get(change, {})
    if change == "tokenizer":
        tok = Tokenizer.train(PARAGRAPHS, TokenizerConfig(vocab_size=310, num_sentinels=8))
    if change == "text":
        corpus.write_text(corpus.read_text() + "\n\nOne paragraph more, of a few words.")
    after = module(corpus, tok, **given)
    with pytest.raises(CheckpointError) as caught:
        after.load_state_dict(state)
    assert {"text": "data_fingerprint", "tokenizer": "tokenizer_fingerprint"}.get(change, change) in caught.value.what
    assert after.windows_done == 0


@pytest.mark.parametrize(
    ("field", "value"), [("view", "sentences"), ("lookahead", 0), ("prefix", (4,)), ("suffix", (2, 3)), ("word_starts", "pieces")]
)
def test_an_example_must_not_have_become_another_one(corpus: Path, tok: Tokenizer, field: str, value: object) -> None:
    before, after = module(corpus, tok), module(corpus, tok)
    before.windows_done = 3
    assert before.feed is not None
    after.feed = dataclasses.replace(before.feed, **({"lookahead": 0} if field == "view" else {}), **{field: value})  # type: ignore[arg-type]
    if field == "word_starts":  # says no more than where words begin
        after.load_state_dict(before.state_dict())
        assert after.windows_done == 3
        return
    with pytest.raises(CheckpointError, match=rf"the checkpoint was made with {field} = [\s\S]*this run has"):
        after.load_state_dict(before.state_dict())


def test_names_are_known_before_the_set_up(corpus: Path, tok: Tokenizer) -> None:
    early, late = module(corpus, tok), module(corpus, tok)
    late.setup("predict")
    assert early.fingerprints() == late.fingerprints()


@pytest.mark.parametrize(("field", "value"), [("eval_examples", 0), ("eval_examples", -1), ("num_workers", -1)])
def test_impossible_settings_name_themselves(corpus: Path, tok: Tokenizer, field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"CorpusModule.{field} = {value}"):
        module(corpus, tok, **{field: value})


def test_a_feed_of_an_unknown_view_is_refused(tok: Tokenizer) -> None:
    for wrong in ({"view": "lines"}, {"word_starts": "jieba"}):
        with pytest.raises(ConfigError, match="is not a choice"):
            dataclasses.replace(CLM(tok, length=16).feed(), **wrong)  # type: ignore[arg-type]


def test_what_does_not_decide_the_order_may_change(corpus: Path, tok: Tokenizer) -> None:
    before, after = module(corpus, tok), module(corpus, tok, micro_batch_size=2)
    stream = iter(before.train_dataloader())
    batches = [next(stream) for _ in range(4)]
    before.windows_done = 3
    after.load_state_dict(before.state_dict())
    again = iter(after.train_dataloader())
    assert torch.equal(torch.cat([next(again)["input_ids"] for _ in range(4)]), batches[3]["input_ids"])


def test_accumulation_is_derived_and_not_to_be_set(corpus: Path, tok: Tokenizer) -> None:
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    for given, expected in (({"micro_batch_size": 2}, 4), ({}, 1)):
        data = module(corpus, tok, **given)
        data.trainer = Trainer(**quiet)
        data.setup("fit")
        assert data.trainer.accumulate_grad_batches == expected
    data = module(corpus, tok, micro_batch_size=2)
    data.trainer = Trainer(**quiet, accumulate_grad_batches=3)
    with pytest.raises(ConfigError, match="not yours to set"):
        data.setup("fit")


def test_a_module_without_a_feed_says_what_is_missing(corpus: Path, tok: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="does not know what to feed") as caught:
        CorpusModule(str(corpus), tok).train_dataloader()
    assert "feed=objective.feed()" in str(caught.value)


@pytest.mark.parametrize(("world", "examples", "micro"), [(2, 7, 2), (3, 7, 1), (4, 3, 2), (2, 1, 8)])
def test_ranks_share_the_evaluation_without_loss_and_make_as_many_passes(
    corpus: Path, tok: Tokenizer, world: int, examples: int, micro: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, seen = set(), []
    for rank in range(world):
        data = module(corpus, tok, length=4, eval_examples=examples, global_batch_size=world * micro)
        plan = BatchPlan(global_size=world * micro, micro_size=micro, rank=rank, world_size=world)
        monkeypatch.setattr(CorpusModule, "plan", plan)
        batches = list(data.val_dataloader())
        passes.add(len(batches))
        seen += [tuple(row.tolist()) for batch in batches if "is_filler" not in batch for row in batch["input_ids"]]
        assert len(data.val_dataloader()) == len(batches)
    view = module(corpus, tok, length=4, eval_examples=examples).evaluation("val")
    assert len(passes) == 1
    assert sorted(seen) == sorted(tuple(view[i].input_ids[:-1].tolist()) for i in range(examples))


def test_evaluation_is_the_same_on_every_pass_and_limited(corpus: Path, tok: Tokenizer) -> None:
    data = module(corpus, tok, eval_examples=3)
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert sum(len(b["input_ids"]) for b in first) == 3
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))
