"""N-gram models as objectives: a run by counting is a run like any other."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lmlab
from lmlab.budget import BudgetConfig
from lmlab.data.batch import Example
from lmlab.data.module import CorpusModule
from lmlab.data.smoothing import smooth
from lmlab.decoding import DecodingConfig
from lmlab.errors import BudgetError, ConfigError
from lmlab.objectives.ngram import NGram, NGramCollator
from lmlab.run.directory import RunDirectory
from lmlab.run.record import Record
from lmlab.session import RunConfig
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from lmlab.training import fit
from tests.data.test_ngrams import as_tuples, grams

FLOAT_NOISE = 1e-6  # the loss is reported in float32
LENGTH = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of a few sentences about several places."""
    path = tmp_path_factory.mktemp("ngram") / "text.txt"
    generator = np.random.default_rng(0)
    names = ["Highbury", "Hartfield", "Randalls", "Donwell", "London"]
    lines = [
        " ".join(f"She went to {generator.choice(names)} and came back from {generator.choice(names)}." for _ in range(6))
        for _ in range(80)
    ]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tok(text: Path) -> Tokenizer:
    return Tokenizer.train([text.read_text(encoding="utf-8")], TokenizerConfig(vocab_size=320, num_sentinels=0))


def counted(
    text: Path, tok: Tokenizer, folder: Path, *, steps: int, workers: int = 0, micro: int | None = None, **given: Any
) -> tuple[NGram, CorpusModule, RunDirectory]:
    objective = NGram(tok, length=LENGTH, **given)
    data = CorpusModule(
        str(text),
        tok,
        objective.feed(),
        global_batch_size=8,
        micro_batch_size=micro,
        num_workers=workers,
        eval_examples=None,
        cache_dir=str(folder),
    )
    budget = BudgetConfig(steps=steps, validations=2, checkpoints=2)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False}
    return objective, data, fit(objective, data, budget, RunConfig(name="ngram", root=str(folder / "runs")), trainer=trainer)


@pytest.fixture(scope="module")
def whole(text: Path, tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[NGram, CorpusModule, RunDirectory]:
    """A run over the text and a good part of it again."""
    return counted(text, tok, tmp_path_factory.mktemp("whole"), steps=70)


def stream(data: CorpusModule) -> list[int]:
    view = data.view("train")
    blocks = [view[i].input_ids for i in range(len(view))]
    return np.concatenate([*(b[:-1] for b in blocks), blocks[-1][-1:]]).tolist()


def test_a_run_counts_each_token_of_the_text_once(whole: tuple[NGram, CorpusModule, RunDirectory], tok: Tokenizer) -> None:
    objective, data, _ = whole
    assert len(data.view("train")) < 70 * 8, "the run must come to a second pass to show anything"
    assert as_tuples(objective.table.counts()) == dict(grams([stream(data)], 5, tok.bos_id))


def test_a_run_is_recorded_like_any_other_and_reaches_the_ruler(whole: tuple[NGram, CorpusModule, RunDirectory]) -> None:
    _, _, run = whole
    record = Record.load(run.record_path)
    assert (record.status, record.num_parameters, record.spent["steps"], record.spent["flops"]) == ("finished", 0, 70, 0)
    # the ruler reads longer blocks, and so a little less of the end of the text
    assert record.metrics["val/bits_per_byte"] == pytest.approx(record.anchors["kneser_ney"], rel=1e-2)
    assert record.anchors["kneser_ney"] < record.anchors["bigram"] < record.anchors["unigram"]
    assert (run.path / "report.html").is_file() and (run.path / "samples.jsonl").is_file()


def test_it_loads_and_measures_the_same(whole: tuple[NGram, CorpusModule, RunDirectory]) -> None:
    objective, data, run = whole
    loaded = lmlab.load(run.path, "last")
    assert isinstance(loaded, NGram)
    mine, theirs = objective.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    nats = count = 0.0
    for batch in data.val_dataloader():
        part = loaded(batch).parts["clm"]
        nats, count = nats + part.sum.item(), count + part.count.item()
    assert nats / count == pytest.approx(Record.load(run.record_path).metrics["val/loss"], rel=FLOAT_NOISE)


def test_the_loss_is_the_negative_log_likelihood_token_by_token(whole: tuple[NGram, CorpusModule, RunDirectory]) -> None:
    objective, data, _ = whole
    batch = next(iter(data.val_dataloader()))
    probs = objective.logits(batch).double().exp()
    chosen = probs.gather(2, batch["labels"][..., None])
    losses = objective(batch)
    assert losses.parts["clm"].sum.item() == pytest.approx(-chosen.log().sum().item(), rel=1e-5)
    assert losses.monitors["bits_per_byte"].sum.item() == pytest.approx(losses.parts["clm"].sum.item() / math.log(2), rel=FLOAT_NOISE)
    assert probs.sum(-1).allclose(torch.ones(probs.shape[:2], dtype=torch.float64), atol=1e-5)
    assert torch.equal(objective.predicted_ids(batch), probs.argmax(-1))


def test_workers_and_micro_batches_make_no_difference(
    whole: tuple[NGram, CorpusModule, RunDirectory], text: Path, tok: Tokenizer, tmp_path: Path
) -> None:
    short = [counted(text, tok, tmp_path / str(n), steps=12, workers=w, micro=m)[0] for n, (w, m) in enumerate([(0, None), (2, 2)])]
    one, other = (objective.state_dict() for objective in short)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_greedy_writing_follows_the_likeliest_token(whole: tuple[NGram, CorpusModule, RunDirectory], tok: Tokenizer) -> None:
    objective = whole[0]
    prompts = [[tok.bos_id, *tok.encode(words)] for words in ("She went", "")]
    written = objective.continue_ids(prompts, DecodingConfig(max_new_tokens=8, temperature=0))
    for prompt, new in zip(prompts, written, strict=True):
        ids = list(prompt)
        for token in new:
            probs = objective.model.distributions(np.array([ids]))[0, -1]
            probs[[i for i in tok.special_ids if i not in (tok.eos_id, tok.bos_id)]] = 0
            assert probs.argmax() == token
            ids.append(token)
    assert objective.generate(["She went"], DecodingConfig(max_new_tokens=3, temperature=0))[0].startswith(" to ")


def test_before_it_has_counted_every_token_is_alike(tok: Tokenizer) -> None:
    objective = NGram(tok, length=LENGTH)
    objective.configure_model()
    batch = NGramCollator()([Example(0, 3, np.arange(LENGTH + 1), np.zeros(LENGTH + 1, np.int64), LENGTH)], 0)
    assert objective(batch).parts["clm"].sum.item() == pytest.approx(LENGTH * math.log(tok.vocab_size), rel=FLOAT_NOISE)
    assert batch["index"].tolist() == [3]


def test_what_cannot_be_is_refused(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, where in (
        ({"order": 0}, "order"),
        ({"order": 6}, "order"),
        ({"smoothing": "laplace"}, "smoothing"),
        ({"length": 4}, "length"),
    ):
        with pytest.raises(ConfigError) as error:
            NGram(tok, **given)  # type: ignore[arg-type]
        assert error.value.where == f"NGram.{where}" and error.value.remedy
    objective = NGram(tok, length=LENGTH)
    with pytest.raises(ConfigError, match="no backbone"):
        objective.build(torch.nn.Linear(2, 2))
    objective.configure_model()
    with pytest.raises(ConfigError, match="no hidden states"):
        objective.states({})
    monkeypatch.setattr(NGram, "trainer", SimpleNamespace(world_size=2))
    with pytest.raises(ConfigError, match="2 ranks"):
        objective.setup("fit")


def test_a_budget_in_flops_is_refused(text: Path, tok: Tokenizer, tmp_path: Path) -> None:
    """It would never be spent."""
    objective = NGram(tok, length=LENGTH)
    data = CorpusModule(str(text), tok, objective.feed(), global_batch_size=8, cache_dir=str(tmp_path))
    with pytest.raises(BudgetError, match="FLOPs"):
        fit(objective, data, BudgetConfig(flops=1000), RunConfig(name="flops", root=str(tmp_path)), trainer={"accelerator": "cpu"})


@pytest.mark.parametrize("smoothing", ["witten_bell", "kneser_ney"])
def test_the_smoothing_is_the_one_asked_for(whole: tuple[NGram, CorpusModule, RunDirectory], tok: Tokenizer, smoothing: Any) -> None:
    counts = whole[0].table.counts()
    other = NGram(tok, length=LENGTH, smoothing=smoothing)
    other.configure_model()
    other.load_state_dict(whole[0].state_dict())
    ids = np.array([tok.encode("She went to Highbury and")])
    assert other.model.probabilities(ids) == pytest.approx(smooth(counts, smoothing).probabilities(ids))
