"""`lmlab fit|validate|test|predict`: LightningCLI with a tokenizer, a budget and a run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import register_type
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lmlab.budget import BudgetConfig
from lmlab.cache import default_cache_dir
from lmlab.checkpoint import AtomicCheckpointIO
from lmlab.data.cleaning import CleaningConfig, CleaningCounts, clean
from lmlab.data.corpus import Corpus, open_corpus
from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.run.find import find_checkpoint
from lmlab.tokenizer import Tokenizer, TokenizerConfig, resolve_tokenizer
from lmlab.training import TRAINER_DEFAULTS, RunConfig, Session, open_session, standard_callbacks, standard_loggers

# one value for the parser, not a group of settings: it is linked in, never written in a YAML
register_type(Tokenizer, serializer=lambda tokenizer: tokenizer.fingerprint, deserializer=Tokenizer.load, fail_already_registered=False)

OWN_LIMITS = {"max_steps": -1, "max_epochs": 1, "max_time": None, "min_steps": None, "min_epochs": None, "accumulate_grad_batches": 1}
"""Trainer settings that lmlab answers for, with their only value."""


class LabCLI(LightningCLI):
    """LightningCLI with lmlab's groups: `tokenizer`, `budget`, `run`."""

    session: Session | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the groups, and links what must agree."""
        parser.add_class_arguments(TokenizerConfig, "tokenizer")
        parser.add_class_arguments(BudgetConfig, "budget")
        parser.add_class_arguments(RunConfig, "run")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        for target in ("model", "data"):
            parser.link_arguments("tokenizer", f"{target}.init_args.tokenizer", compute_fn=self._tokenizer, apply_on="instantiate")
        parser.link_arguments("model", "data.init_args.feed", compute_fn=_feed_of, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Checks the trainer's limits and opens the run."""
        config = self.config[self.subcommand]
        for name, value in OWN_LIMITS.items():
            if config.trainer.get(name, value) not in (value, None):
                raise ConfigError(
                    f"trainer.{name} = {config.trainer[name]!r} is not yours to set",
                    where=f"trainer.{name}",
                    why="the budget ends a run, and accumulation follows from the batch sizes",
                    remedy="set budget.steps, tokens, flops or seconds; data.global_batch_size and data.micro_batch_size",
                )
        if self.subcommand == "fit":
            if config.ckpt_path is not None:
                raise ConfigError("--ckpt_path does not resume a run", where="ckpt_path", remedy="use --run.resume auto, or --run.resume RUN")
            self.session = open_session(self._run_config, int(config.seed_everything), self._settings(), self._budget)
            config.ckpt_path = None if self.session.checkpoint is None else str(self.session.checkpoint)
        elif config.ckpt_path is not None:
            config.ckpt_path = str(find_checkpoint(config.ckpt_path))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what every run has to what the config asks for."""
        own: dict[str, Any] = {"plugins": [AtomicCheckpointIO()], "logger": False}
        config = self._get(self.config_init, "trainer", default={})
        callbacks = list(config.get("callbacks") or [])
        if self.session is not None:
            own["logger"] = standard_loggers(self.session, self._run_config, self._settings())
            own["callbacks"] = [*standard_callbacks(self.session, self._budget, self._run_config), *callbacks]
        else:
            own["enable_checkpointing"] = False
        return super().instantiate_trainer(**{**own, **kwargs})

    @property
    def _run_config(self) -> RunConfig:
        return RunConfig(**self.config[self.subcommand].run.as_dict())

    @property
    def _budget(self) -> BudgetConfig:
        return BudgetConfig(**self.config[self.subcommand].budget.as_dict())

    def _settings(self) -> dict[str, Any]:
        """The resolved settings as plain values, without those that only say where things are written."""
        dumped = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False, format="yaml", skip_validation=True)
        settings = yaml.safe_load(dumped)
        for key in ("ckpt_path", "config", "verbose", "weights_only", "return_predictions"):
            settings.pop(key, None)
        return settings

    def _tokenizer(self, config: TokenizerConfig) -> Tokenizer:
        """The tokenizer that the settings describe, trained from the run's corpus if it must be."""
        data = self.config[self.subcommand].data.init_args
        return tokenizer_for(config, data.corpus, data.get("cleaning"), data.get("cache_dir"))


def tokenizer_for(config: TokenizerConfig, corpus: Any, cleaning: Any = None, cache_dir: str | None = None) -> Tokenizer:
    """Loads a tokenizer, or trains it on a corpus, once.

    Args:
        config: Which.
        corpus: As in `data.corpus`.
        cleaning: As in `data.cleaning`.
        cache_dir: Where trained ones are kept; None for the default.
    """
    source: Corpus = open_corpus(corpus)
    rules = cleaning if isinstance(cleaning, CleaningConfig) else CleaningConfig(**(cleaning.as_dict() if cleaning else {}))

    def texts() -> Iterator[str]:
        return (document.text for document in clean(source.documents(), rules, CleaningCounts()))

    return resolve_tokenizer(config, texts, source.fingerprint(), Path(cache_dir) if cache_dir else default_cache_dir())


def _feed_of(objective: Objective) -> Any:
    return objective.feed()


def run_training(arguments: list[str], parser_kwargs: Mapping[str, Any] | None = None, after: Callable[[LabCLI], None] | None = None) -> LabCLI:
    """Parses and runs one subcommand.

    Args:
        arguments: Subcommand first.
        parser_kwargs: For the parsers of the subcommands.
        after: Called with the finished CLI.
    """
    cli = LabCLI(
        Objective,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_defaults=dict(TRAINER_DEFAULTS),
        seed_everything_default=0,
        save_config_callback=None,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs=dict(parser_kwargs or {}),
        args=arguments,
    )
    if after:
        after(cli)
    return cli
