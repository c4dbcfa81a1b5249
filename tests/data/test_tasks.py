"""Several tasks fed at once: what each reads, on any number of ranks and workers, from any window on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.data.batch import Batch, Example
from lmlab.data.module import CorpusModule
from lmlab.data.plan import BatchPlan
from lmlab.data.store import StoreConfig
from lmlab.data.task_order import TaskSampling
from lmlab.data.tasks import TaskFeeds, TaskViews, task_seed
from lmlab.errors import CheckpointError, ConfigError
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.tokenizer import Tokenizer, TokenizerConfig

PARAGRAPHS = [f"Paragraph {n}: " + "the quick brown fox jumps over the lazy dog. " * (1 + n % 4) for n in range(24)]
LENGTHS = {"clm": 16, "mlm": 40}


@dataclasses.dataclass(frozen=True)
class Noting:
    """Collates as another one does, and keeps the indices and positions of the examples."""

    collate: Any

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        places = torch.tensor([[e.position, e.index] for e in examples])
        return {**self.collate(examples, seed), "places": places}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train(PARAGRAPHS, TokenizerConfig(vocab_size=320, num_sentinels=8))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "text.txt"
    path.write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")
    return path


def feeds(tok: Tokenizer, over: str = "examples", **sampling: Any) -> TaskFeeds:
    made = {"clm": CLM(tok, length=LENGTHS["clm"]).feed(), "mlm": MLM(tok, length=LENGTHS["mlm"]).feed()}
    noting = {task: dataclasses.replace(feed, collate=Noting(feed.collate)) for task, feed in made.items()}
    noting["clm"] = dataclasses.replace(noting["clm"], loss_over=over)  # type: ignore[arg-type]
    return TaskFeeds(feeds=noting, sampling=TaskSampling(**sampling))


def module(corpus: Path, tok: Tokenizer, given: Any = None, **settings: Any) -> CorpusModule:
    defaults = {"global_batch_size": 4, "seed": 3, "cache_dir": str(corpus.parent / "cache"), "store": StoreConfig(val_share=0.3)}
    return CorpusModule(str(corpus), tok, feeds(tok) if given is None else given, **{**defaults, **settings})


def windows(data: CorpusModule, num: int) -> list[list[Batch]]:
    """Micro-batches, window by window."""
    found: list[list[Batch]] = []
    for batch in data.train_dataloader():
        if batch["window"].is_first:
            if len(found) == num:
                return found
            found.append([])
        found[-1].append(batch)
    raise AssertionError("the stream has an end")


def plain(value: Any) -> Any:
    """Tensors as lists, so that batches can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (tuple, list)) else value


ONE_EACH = [{"regime": "round_robin"}, {"regime": "temperature", "temperature": 3.0}]


@pytest.mark.parametrize("sampling", [{"regime": "all"}, *ONE_EACH], ids=lambda s: s["regime"])
def test_every_example_of_a_task_is_read_once_in_each_of_its_epochs(corpus: Path, tok: Tokenizer, sampling: dict[str, Any]) -> None:
    data = module(corpus, tok, feeds(tok, **sampling))
    views = data.view("train")
    assert isinstance(views, TaskViews) and len(views) == sum(len(view) for view in views.views.values())
    read: dict[str, list[list[int]]] = {"clm": [], "mlm": []}
    for window in windows(data, 120):
        assert {task for batch in window for task in batch["tasks"]} <= read.keys()
        for batch in window:
            for task, own in batch["tasks"].items():
                read[task] += own["places"].tolist()
    for task, places in read.items():
        size = len(views.views[task])
        assert [position for position, _ in places] == list(range(len(places))), "a task goes on where it stopped"
        assert len(places) > 2 * size
        for epoch in range(len(places) // size):
            assert sorted(index for _, index in places[epoch * size : (epoch + 1) * size]) == list(range(size))


@pytest.mark.parametrize("sampling", [{"regime": "all"}, *ONE_EACH], ids=lambda s: s["regime"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_as_it_would_have(corpus: Path, tok: Tokenizer, sampling: dict[str, Any], workers: int) -> None:
    straight = windows(module(corpus, tok, feeds(tok, **sampling), micro_batch_size=2), 12)
    data = module(corpus, tok, feeds(tok, **sampling), micro_batch_size=2, num_workers=workers)
    data.windows_done = 5
    assert plain(windows(data, 7)) == plain(straight[5:])


@pytest.mark.parametrize("sampling", [{"regime": "all"}, ONE_EACH[1]], ids=lambda s: s["regime"])
def test_ranks_share_the_same_windows(corpus: Path, tok: Tokenizer, sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = windows(module(corpus, tok, feeds(tok, **sampling), micro_batch_size=2), 10)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(CorpusModule, "plan", BatchPlan(global_size=4, micro_size=2, rank=rank, world_size=2))
        ranks.append(windows(module(corpus, tok, feeds(tok, **sampling)), 10))
    for number, window in enumerate(alone):
        shares = [share[number] for share in ranks]
        assert [len(share) for share in shares] == [1, 1]
        for index, batch in enumerate(window):
            other = shares[index][0]
            assert list(batch["tasks"]) == list(other["tasks"])
            assert plain(batch["tasks"]) == plain(other["tasks"])
            assert (batch["window"].draw, batch["window"].seed) == (other["window"].draw, other["window"].seed)
    draws = [window[0]["window"].draw for window in alone]
    assert len(set(draws)) == len(draws)
    seeds = [batch["window"].seed for window in alone for batch in window]
    assert len(set(seeds)) == len(seeds) == 20, "dropout is another in each micro-batch"


def test_a_task_reads_what_it_reads_alone_with_a_seed_of_its_own(corpus: Path, tok: Tokenizer) -> None:
    together = windows(module(corpus, tok), 4)
    single = module(corpus, tok, feeds(tok)["mlm"], seed=task_seed(3, "mlm"))
    for window, batch in zip(together, single.train_dataloader(), strict=False):
        assert plain(window[0]["tasks"]["mlm"]["input_ids"]) == plain(batch["input_ids"])


def test_accounts_are_sums_over_tasks(corpus: Path, tok: Tokenizer) -> None:
    for window in windows(module(corpus, tok, micro_batch_size=2), 5):
        stamp = window[0]["window"]
        owns = [own for batch in window for own in batch["tasks"].values()]
        assert stamp.micro_size == 2, "what a task cuts its own passes by"
        assert stamp.tokens == sum(int(own["tokens"]) for own in owns)
        assert stamp.supervised == sum(int((own["labels"] != -100).sum()) for own in owns)
        for task in ("clm", "mlm"):
            labels = sum(int((batch["tasks"][task]["labels"] != -100).sum()) for batch in window)
            assert int(stamp.counts[f"{task}/{task}"]) == labels
        assert stamp.position % 8 == 0, "four examples of each of two tasks"


def test_a_loss_over_the_whole_batch_has_it_in_the_first_micro_batch(corpus: Path, tok: Tokenizer) -> None:
    together = windows(module(corpus, tok, feeds(tok, over="batch"), micro_batch_size=1), 2)
    for window in together:
        assert [sorted(batch["tasks"]) for batch in window] == [["clm", "mlm"], ["mlm"], ["mlm"], ["mlm"]]
        assert len(window[0]["tasks"]["clm"]["input_ids"]) == 4
    one_each = windows(module(corpus, tok, feeds(tok, over="batch", regime="round_robin"), micro_batch_size=1), 2)
    assert [[list(batch["tasks"]) for batch in window] for window in one_each] == [[["clm"], [], [], []], [["mlm"]] * 4]
    assert all(window[0]["window"].size == 4 for window in one_each), "accumulation is the same in every step"


@pytest.mark.parametrize("world", [1, 2])
def test_evaluation_is_that_of_each_task_alone(corpus: Path, tok: Tokenizer, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = set()
    for rank in range(world):
        monkeypatch.setattr(CorpusModule, "plan", BatchPlan(global_size=4, micro_size=4 // world, rank=rank, world_size=world))
        loader = module(corpus, tok, eval_examples=5).val_dataloader()
        nested = list(loader)
        assert len(loader) == len(nested)
        passes.add(tuple(tuple(batch["tasks"]) for batch in nested))
        for task in ("clm", "mlm"):
            alone = list(module(corpus, tok, feeds(tok)[task], eval_examples=5).val_dataloader())
            mine = [batch for batch in nested if task in batch["tasks"]]
            assert plain([batch["tasks"][task] for batch in mine]) == plain(alone)
            assert ["is_filler" in batch for batch in mine] == ["is_filler" in batch for batch in alone]
    assert len(passes) == 1, "all ranks evaluate the same tasks in the same order"


def test_a_task_may_read_a_corpus_of_its_own(corpus: Path, tok: Tokenizer, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"Number {n} of the zebras, zebras, zebras." for n in range(60)), encoding="utf-8")
    data = module(corpus, tok, corpora={"mlm": str(other)})
    texts = {task: tok.decode(view[0].input_ids.tolist()) for task, view in data.view("train").views.items()}
    assert "zebras" in texts["mlm"] and "zebras" not in texts["clm"]
    assert "zebras" in tok.decode(data.evaluation("val", "mlm")[0].input_ids.tolist())
    assert data.fingerprints() != module(corpus, tok).fingerprints()


def test_what_cannot_be_fed_is_refused_at_once(corpus: Path, tok: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"there is no task 'mml'[\s\S]*did you mean 'mlm'"):
        module(corpus, tok, corpora={"mml": "austen"})
    with pytest.raises(ConfigError, match=r"CorpusModule.corpora[\s\S]*one task"):
        module(corpus, tok, CLM(tok, length=16).feed(), corpora={"clm": "austen"})


@pytest.mark.parametrize("change", ["sampling", "tasks"])
def test_what_decides_the_order_must_not_have_changed(corpus: Path, tok: Tokenizer, change: str) -> None:
    state = module(corpus, tok).state_dict()
    given = feeds(tok, regime="equal")
    if change == "tasks":
        given = TaskFeeds(feeds={task: dataclasses.replace(feed, length=24) for task, feed in feeds(tok).items()})
    with pytest.raises(CheckpointError, match=f"with {change} = "):
        module(corpus, tok, given).load_state_dict(state)
    again = module(corpus, tok)
    again.load_state_dict(state)


def test_a_plain_mapping_means_all_tasks_in_every_step(corpus: Path, tok: Tokenizer) -> None:
    stream = islice(module(corpus, tok, dict(feeds(tok))).train_dataloader(), 3)
    assert all(list(batch["tasks"]) == ["clm", "mlm"] for batch in stream)
