"""The LightningDataModule for corpora: text in, stamped micro-batches out, from any position."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from lmlab.cache import default_cache_dir
from lmlab.config import Recorded, require
from lmlab.data.batch import Batch, Feed
from lmlab.data.cleaning import CleaningConfig
from lmlab.data.corpus import Corpus, open_corpus
from lmlab.data.loader import BatchPlan, EvalCollator, EvalLoader, OrderedView, WindowCollator, WindowLoader, deal
from lmlab.data.store import StoreConfig, TokenStore, build_store
from lmlab.data.views import make_view
from lmlab.errors import CheckpointError, ConfigError
from lmlab.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class CorpusModule(Recorded, LightningDataModule):
    """Feeds an objective from a corpus.

    The position in the text is part of the checkpoint, so a resumed run goes on with the very next example.

    Args:
        corpus: A built-in name (`austen`, `sanguo`), a path or glob (.txt, .jsonl, .parquet), `hf:NAME`, or a class path.
        tokenizer: Linked from `tokenizer` on the command line.
        feed: What the objective wants; linked from the objective on the command line.
        global_batch_size: Examples per optimiser step, over all ranks.
        micro_batch_size: Examples per forward pass on one rank; gradient accumulation follows from it. None: the whole share of a rank.
        seed: Decides order, corruption and dropout; linked from `seed_everything` on the command line.
        num_workers: Processes that prepare batches ahead.
        eval_examples: Examples of the validation split to use, evenly spread; None for all.
    """

    def __init__(  # noqa: PLR0913  each is a setting of its own on the command line
        self,
        corpus: str | PathLike[str] | dict[str, Any],
        tokenizer: Tokenizer | None = None,
        feed: Feed | None = None,
        *,
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

    @property
    def corpus(self) -> Corpus:
        """The corpus that `corpus` names."""
        return open_corpus(self.corpus_spec)

    def prepare_data(self) -> None:
        """Tokenises the corpus into the store, once; later runs and other ranks find it there."""
        self._build()

    def setup(self, stage: str) -> None:
        """Opens the stores and tells the trainer how many micro-batches make a step."""
        self.stores = self._build()
        trainer = self.trainer
        if trainer is not None and stage == "fit":
            if trainer.accumulate_grad_batches not in (1, self.plan.num_micro):
                raise ConfigError(
                    f"trainer.accumulate_grad_batches = {trainer.accumulate_grad_batches} is not yours to set",
                    why="accumulation follows from the batch sizes, so that the loss is normalised over the whole window",
                    remedy="set data.global_batch_size and data.micro_batch_size, and leave trainer.accumulate_grad_batches out",
                )
            trainer.accumulate_grad_batches = self.plan.num_micro

    @property
    def plan(self) -> BatchPlan:
        """How the global batch is cut on this rank."""
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        micro = max(1, self.global_batch_size // world) if self.micro_batch_size is None else self.micro_batch_size
        over = self.feed.loss_over if self.feed else "examples"
        return BatchPlan(global_size=self.global_batch_size, micro_size=micro, rank=rank, world_size=world, loss_over=over)

    def train_dataloader(self) -> WindowLoader:
        """Stamped micro-batches from the current position on, without end."""
        feed, _ = self._fed()
        view = OrderedView(self.view("train"), seed=self.seed)
        return WindowLoader(view, WindowCollator(feed.collate, self.plan, self.seed), self.windows_done, self.num_workers)

    def val_dataloader(self) -> EvalLoader:
        """Validation batches, the same in every run with this corpus and feed."""
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        """Test batches."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """Batches of the test split."""
        return self._eval_loader("test")

    def view(self, split: str) -> Any:
        """The examples of a split, before corruption.

        Args:
            split: `train`, `val` or `test`.
        """
        feed, tokenizer = self._fed()
        return make_view(self._opened()[split], feed, tokenizer)

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
            self.windows_done = batch["window"].position // self.global_batch_size
        return batch

    def fingerprints(self) -> dict[str, str]:
        """Names of the text and the tokenizer, for run records and checkpoints."""
        _, tokenizer = self._fed()
        return {"tokenizer_fingerprint": tokenizer.fingerprint, "data_fingerprint": next(iter(self._opened().values())).fingerprint}

    def _decisive(self) -> dict[str, Any]:
        """All that decides which example is the n-th, and what stands in it."""
        feed, _ = self._fed()
        examples = {"view": feed.view, "length": feed.length, "lookahead": feed.lookahead}
        specials = {"prefix": list(feed.prefix), "suffix": list(feed.suffix)}
        return {"global_batch_size": self.global_batch_size, "seed": self.seed, **examples, **specials, **self.fingerprints()}

    def _opened(self) -> Mapping[str, TokenStore]:
        if not self.stores:
            self.stores = self._build()
        return self.stores

    def _build(self) -> Mapping[str, TokenStore]:
        _, tokenizer = self._fed()
        return build_store(self.corpus, tokenizer, config=self.store_config, cleaning=self.cleaning, cache_dir=self.cache_dir)

    def _fed(self) -> tuple[Feed, Tokenizer]:
        if self.feed is None or self.tokenizer is None:
            raise ConfigError(
                "the data module does not know what to feed",
                where="CorpusModule.feed, CorpusModule.tokenizer",
                why="the command line links both; in Python they are arguments",
                remedy="CorpusModule(corpus, tokenizer, feed=objective.feed())",
            )
        return self.feed, self.tokenizer

    def evaluation(self, split: str) -> OrderedView:
        """The examples of a split that evaluation uses, before corruption.

        Args:
            split: `train`, `val` or `test`.
        """
        return OrderedView(self.view(split), seed=None, limit=self.eval_examples)

    def _eval_loader(self, split: str) -> EvalLoader:
        feed, _ = self._fed()
        view, plan = self.evaluation(split), self.plan
        dealt = [deal(len(view), plan, rank) for rank in range(plan.world_size)]
        mine = dealt[plan.rank]
        # every rank makes as many passes, for sharded models work together
        return EvalLoader(view, EvalCollator(feed.eval_collate), mine, max(map(len, dealt)) - len(mine))
