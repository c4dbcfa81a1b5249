"""The LightningDataModule for corpora: text in, stamped micro-batches out, from any position."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from lmlab.cache import default_cache_dir
from lmlab.config import Recorded, fingerprint, require, to_plain
from lmlab.data.batch import Batch, Feed
from lmlab.data.cleaning import CleaningConfig
from lmlab.data.corpus import Corpus, open_corpus
from lmlab.data.loader import EvalCollator, EvalLoader, OrderedView, WindowCollator, WindowLoader
from lmlab.data.plan import BatchPlan, deal
from lmlab.data.store import StoreConfig, TokenStore, build_store
from lmlab.data.task_order import TaskOrder, TaskSampling
from lmlab.data.tasks import TaskCollator, TaskEvalLoader, TaskFeeds, TaskViews
from lmlab.data.views import make_view
from lmlab.errors import CheckpointError, ConfigError, nearest
from lmlab.ranks import data_rank
from lmlab.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class CorpusModule(Recorded, LightningDataModule):
    """Feeds an objective from a corpus.

    The position in the text is part of the checkpoint, so a resumed run goes on with the very next example.

    Args:
        corpus: A built-in name (`austen`, `sanguo`, `songci`), a path or glob (.txt, .jsonl, .parquet), `hf:NAME`, or a class path.
        tokenizer: Linked from `tokenizer` on the command line.
        feed: What the objective wants; linked from the objective on the command line. Several by name, where several objectives are
            trained at once.
        corpora: Corpora of single tasks, by name, where an objective trains several; the others read `corpus`. The tokenizer is `corpus`'s.
        global_batch_size: Examples per optimiser step, over all ranks; of each task that the step has.
        micro_batch_size: Examples per forward pass on one rank; gradient accumulation follows from it. None: the whole share of a rank.
        seed: Decides order, corruption and dropout; linked from `seed_everything` on the command line.
        num_workers: Processes that prepare batches ahead.
        eval_examples: Examples of the validation split to use, evenly spread; None for all.
    """

    def __init__(  # noqa: PLR0913  each is a setting of its own on the command line
        self,
        corpus: dict[str, Any] | str | PathLike[str],
        tokenizer: Tokenizer | None = None,
        feed: Feed | TaskFeeds | Mapping[str, Feed] | None = None,
        *,
        corpora: dict[str, str | PathLike[str] | dict[str, Any]] | None = None,
        global_batch_size: int = 32,
        micro_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        eval_examples: int | None = 512,
        cleaning: CleaningConfig = CleaningConfig(),
        store: StoreConfig = StoreConfig(),
        cache_dir: str | None = None,
    ) -> None:
        """Stores the settings; nothing is read before `prepare_data`."""
        super().__init__()
        BatchPlan(global_size=global_batch_size, micro_size=global_batch_size if micro_batch_size is None else micro_batch_size)
        self.tokenizer, self.feed = tokenizer, feed
        self.corpus_spec = fspath(corpus) if isinstance(corpus, PathLike) else corpus
        self.corpora = {task: fspath(spec) if isinstance(spec, PathLike) else spec for task, spec in (corpora or {}).items()}
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.num_workers, self.eval_examples = num_workers, eval_examples
        require(num_workers >= 0, self, "num_workers", "a number of processes is not negative", "0 prepares batches in this process")
        enough = eval_examples is None or eval_examples >= 1
        require(enough, self, "eval_examples", "an evaluation needs an example", "set 1 or more, or none for all")
        self.cleaning, self.store_config = cleaning, store
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        self.seed = seed
        self.windows_done = 0
        self.stores: Mapping[str, TokenStore] = {}
        self._task_stores: dict[str, Mapping[str, TokenStore]] = {}
        if feed is not None:
            self._check_corpora(feed)

    @property
    def corpus(self) -> Corpus:
        """The corpus that `corpus` names."""
        return open_corpus(self.corpus_spec)

    def prepare_data(self) -> None:
        """Tokenises the corpus into the store, once; later runs and other ranks find it there."""
        self._build()

    def setup(self, stage: str) -> None:
        """Opens the stores and tells the trainer how many micro-batches make a step."""
        self._build()
        trainer = self.trainer
        if trainer is not None and stage == "fit":
            num_micro = max(self._plan_of(feed).num_micro for feed in self.feeds.values())
            if trainer.accumulate_grad_batches not in (1, num_micro):
                raise ConfigError(
                    f"trainer.accumulate_grad_batches = {trainer.accumulate_grad_batches} is not yours to set",
                    why="accumulation follows from the batch sizes, so that the loss is normalised over the whole window",
                    remedy="set data.global_batch_size and data.micro_batch_size, and leave trainer.accumulate_grad_batches out",
                )
            trainer.accumulate_grad_batches = num_micro

    @property
    def plan(self) -> BatchPlan:
        """How the global batch is cut on this rank; where there are several tasks, that of one whose loss is over examples."""
        rank, world = data_rank(self.trainer)
        micro = max(1, self.global_batch_size // world) if self.micro_batch_size is None else self.micro_batch_size
        plan = BatchPlan(global_size=self.global_batch_size, micro_size=micro, rank=rank, world_size=world)
        return _fitted(plan, self.feed) if isinstance(self.feed, Feed) else plan

    def train_dataloader(self) -> WindowLoader:
        """Stamped micro-batches from the current position on, without end."""
        view, feeds = self.view("train"), self.feeds
        if isinstance(view, TaskViews):
            plans = tuple(self._plan_of(feed) for feed in feeds.values())
            return WindowLoader(view, TaskCollator(feeds, plans, self._order(view)), self.windows_done, self.num_workers)
        collator = WindowCollator(feeds[""].collate, self.plan, self.seed)
        return WindowLoader(OrderedView(view, seed=self.seed), collator, self.windows_done, self.num_workers)

    def val_dataloader(self) -> EvalLoader | TaskEvalLoader:
        """Validation batches, the same in every run with this corpus and feed."""
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader | TaskEvalLoader:
        """Test batches."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader | TaskEvalLoader:
        """Batches of the test split."""
        return self._eval_loader("test")

    def view(self, split: str, task: str | None = None) -> Any:
        """The examples of a split, before corruption.

        Args:
            split: `train`, `val` or `test`.
            task: Whose, where there are several; None for all of them, as `TaskViews`.
        """
        _, tokenizer = self._fed()
        views = {name: make_view(self.opened(name)[split], feed, tokenizer) for name, feed in self.feeds.items() if task in (None, name)}
        return TaskViews(views, self.seed) if task is None and isinstance(self.feed, Mapping) else next(iter(views.values()))

    def state_dict(self) -> dict[str, Any]:
        """Position, and what must not change when a run goes on."""
        return {"windows_done": self.windows_done, **self._decisive()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the position of a checkpoint.

        Raises:
            CheckpointError: If the text, the tokenizer, the seed, the global batch, or what an example is has changed.
        """
        for key, mine in self._decisive().items():
            if state_dict.get(key) != mine:
                raise CheckpointError(
                    f"the checkpoint was made with {key} = {state_dict.get(key)!r}, this run has {mine!r}",
                    where=f"data.{key}",
                    why="order and corruption are functions of these, so the run could not go on where it stopped",
                    remedy="restore the setting or the file, or start a new run from the weights alone",
                )
        self.windows_done = int(state_dict["windows_done"])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Notes the position that will be reached once the window of this micro-batch is done."""
        if self.trainer is not None and self.trainer.training and "window" in batch:
            tasks = len(self.feed) if isinstance(self.feed, Mapping) and self._sampling().regime == "all" else 1
            self.windows_done = batch["window"].position // (self.global_batch_size * tasks)
        return batch

    def fingerprints(self) -> dict[str, str]:
        """Names of the text and the tokenizer, for run records and checkpoints."""
        _, tokenizer = self._fed()
        texts = {task: next(iter(self.opened(task).values())).fingerprint for task in ("", *self.corpora)}
        return {"tokenizer_fingerprint": tokenizer.fingerprint, "data_fingerprint": fingerprint(texts) if self.corpora else texts[""]}

    def _decisive(self) -> dict[str, Any]:
        """All that decides which example is the n-th, and what stands in it."""
        own = {"global_batch_size": self.global_batch_size, "seed": self.seed, **self.fingerprints()}
        if isinstance(self.feed, Mapping):
            examples = {task: _example_of(feed) for task, feed in self.feeds.items()}
            return {**own, "tasks": examples, "sampling": to_plain(self._sampling())}
        return {**own, **_example_of(self.feeds[""])}

    def opened(self, task: str = "") -> Mapping[str, TokenStore]:
        """The stores of a task's corpus, by split; built if they are not there.

        Args:
            task: Its name; without one, the stores of `corpus`.
        """
        if not self.stores:
            self._build()
        return self._task_stores.get(task, self.stores)

    def _build(self) -> None:
        _, tokenizer = self._fed()

        def build(corpus: Corpus) -> Mapping[str, TokenStore]:
            return build_store(corpus, tokenizer, config=self.store_config, cleaning=self.cleaning, cache_dir=self.cache_dir)

        self.stores = build(self.corpus)
        self._task_stores = {task: build(open_corpus(spec)) for task, spec in self.corpora.items()}

    def _fed(self) -> tuple[Feed | Mapping[str, Feed], Tokenizer]:
        if self.feed is None or self.tokenizer is None:
            raise ConfigError(
                "the data module does not know what to feed",
                where="CorpusModule.feed, CorpusModule.tokenizer",
                why="the command line links both; in Python they are arguments",
                remedy="CorpusModule(corpus, tokenizer, feed=objective.feed())",
            )
        self._check_corpora(self.feed)
        return self.feed, self.tokenizer

    @property
    def feeds(self) -> Mapping[str, Feed]:
        """What each task is fed; the only one is nameless."""
        feed, _ = self._fed()
        return feed if isinstance(feed, Mapping) else {"": feed}

    def _check_corpora(self, feed: Feed | Mapping[str, Feed]) -> None:
        for task in self.corpora:
            if not isinstance(feed, Mapping):
                require(not self.corpora, self, "corpora", "the objective is one task, which reads `corpus`", "leave it out")
            elif task not in feed:
                raise ConfigError(f"there is no task '{task}' to have a corpus", where=f"data.corpora.{task}", remedy=nearest(task, feed))

    def _sampling(self) -> TaskSampling:
        return self.feed.sampling if isinstance(self.feed, TaskFeeds) else TaskSampling()

    def _order(self, views: TaskViews) -> TaskOrder:
        sizes = tuple(len(view) for view in views.views.values())
        return TaskOrder(sampling=self._sampling(), sizes=sizes, global_size=self.global_batch_size, seed=self.seed)

    def _plan_of(self, feed: Feed) -> BatchPlan:
        return _fitted(self.plan, feed)

    def evaluation(self, split: str, task: str = "") -> OrderedView:
        """The examples of a split that evaluation uses, before corruption.

        Args:
            split: `train`, `val` or `test`.
            task: Whose, where there are several.
        """
        return OrderedView(self.view(split, task), seed=None, limit=self.eval_examples)

    def _eval_loader(self, split: str) -> EvalLoader | TaskEvalLoader:
        loaders = {task: self._eval_loader_of(split, task, feed) for task, feed in self.feeds.items()}
        return TaskEvalLoader(loaders) if isinstance(self.feed, Mapping) else loaders[""]

    def _eval_loader_of(self, split: str, task: str, feed: Feed) -> EvalLoader:
        view, plan = self.evaluation(split, task), self._plan_of(feed)
        dealt = [deal(len(view), plan, rank) for rank in range(plan.world_size)]
        mine = dealt[plan.rank]
        # every rank makes as many passes, for sharded models work together
        return EvalLoader(view, EvalCollator(feed.eval_collate), mine, max(map(len, dealt)) - len(mine))


def _fitted(plan: BatchPlan, feed: Feed) -> BatchPlan:
    """The plan as a feed needs it."""
    return dataclasses.replace(plan, loss_over=feed.loss_over, min_examples=feed.min_examples)


def _example_of(feed: Feed) -> dict[str, Any]:
    """What decides what an example is."""
    specials = {"prefix": list(feed.prefix), "suffix": list(feed.suffix)}
    shortest = {"min_tokens": feed.min_tokens} if feed.min_tokens > 1 else {}
    return {"view": feed.view, "length": feed.length, "lookahead": feed.lookahead, **shortest, **specials}
