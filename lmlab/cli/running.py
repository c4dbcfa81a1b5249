"""LightningCLI with a tokenizer, a budget and a run directory: what `lmlab fit|validate|test|predict` run."""

from __future__ import annotations

import gc
from argparse import ArgumentError
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lmlab.budget import BudgetConfig
from lmlab.cache import atomic_file
from lmlab.checkpoint import AtomicCheckpointIO, description_of, read_checkpoint, trained_weights
from lmlab.cli.allowlist import Admitted
from lmlab.cli.launching import LaunchConfig, ranks_to_start
from lmlab.cli.parser import StrictParser, parser_kwargs
from lmlab.cli.predictions import PredictionWriter, predictions_path
from lmlab.cli.suggestions import COMMANDS, explain, where_written
from lmlab.data.cleaning import CleaningConfig
from lmlab.data.tokenizer import tokenizer_for
from lmlab.errors import CheckpointError, ConfigError, LabError
from lmlab.objectives.base import Objective
from lmlab.run.find import find_checkpoint
from lmlab.session import RunConfig, Session, open_session
from lmlab.strategies import check_strategy
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from lmlab.trainer_settings import TRAINER_DEFAULTS, check_seed, check_trainer
from lmlab.training import all_callbacks, check_callbacks, standard_loggers

# one value for the parser, not a group of settings: it is linked in, never written in a YAML
register_type(Tokenizer, serializer=lambda tokenizer: tokenizer.fingerprint, deserializer=Tokenizer.load, fail_already_registered=False)


class LabCLI(LightningCLI):
    """LightningCLI with lmlab's groups: `tokenizer`, `budget`, `run`, `launch`.

    Args:
        admitted: The command line, looked at.
    """

    def __init__(self, admitted: Admitted) -> None:
        """Parses and runs."""
        self.admitted = admitted
        self.session: Session | None = None
        self.measured: Path | None = None
        self._content: dict[str, Any] | None = None
        with ExitStack() as self._open:  # the run's folder is let go of whatever happens
            super().__init__(
                Objective,
                LightningDataModule,
                parser_class=StrictParser,
                subclass_mode_model=True,
                subclass_mode_data=True,
                trainer_defaults=dict(TRAINER_DEFAULTS),
                seed_everything_default=0,
                save_config_callback=None,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={key: value for key, value in parser_kwargs().items() if key not in COMMANDS or key == admitted.arguments[0]},
                args=admitted.arguments,
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that was asked for: a parser takes a tenth of a second to make."""
        command = self.admitted.arguments[0]
        return {command: LightningCLI.subcommands()[command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the groups, and links what must agree."""
        parser.add_class_arguments(TokenizerConfig, "tokenizer")
        parser.add_class_arguments(BudgetConfig, "budget")
        parser.add_class_arguments(RunConfig, "run")
        parser.add_class_arguments(LaunchConfig, "launch")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        for target in ("model", "data"):
            parser.link_arguments("tokenizer", f"{target}.init_args.tokenizer", compute_fn=self._tokenizer, apply_on="instantiate")
        parser.link_arguments("model", "data.init_args.feed", compute_fn=_feed_of, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; what the parser refuses is explained in a few lines."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, ImportError) as error:  # the parser's own list denies with an ImportError
            raise explain(error, parser, self.admitted.configs, args) from error
        check_seed(self.config[str(self.config.subcommand)].seed_everything)

    def _parse_ckpt_path(self) -> None:
        """Takes no settings from a checkpoint: lmlab's hold none that the parser could use, and the file is not verified yet."""

    def before_instantiate_classes(self) -> None:
        """Refuses settings that are lmlab's own; starts ranks, if several are asked for; reads the checkpoint to measure."""
        config = self._chosen
        check_trainer(config.trainer, self._where)
        self._start_ranks()
        if self.subcommand != "fit":
            if "verbose" in config:
                config.verbose = False  # the command prints its own table
            if config.ckpt_path is not None:
                self.measured = find_checkpoint(config.ckpt_path)
                self._content = read_checkpoint(self.measured)
                description_of(self._content, self.measured)  # refused now if lmlab did not write it
                config.ckpt_path = None  # loaded below, as `lmlab.load` does, and not with the state of callbacks and data
            return
        if config.ckpt_path is not None:
            why, remedy = "the run's own checkpoints are found by its folder", "use --resume auto, or --resume RUN"
            raise self._refused("ckpt_path", config.ckpt_path, why, remedy)

    def _start_ranks(self) -> None:
        """Becomes the parent of several ranks if they are asked for, and ends with them."""
        launch = None
        if self.subcommand == "fit":
            _ = self._budget, self._run_config  # refused now rather than by each rank, or after a tokenizer was trained
            launch = LaunchConfig(**self._chosen.launch.as_dict())
        num_ranks = ranks_to_start(self._chosen.trainer, launch, self._where)
        if num_ranks:
            from lmlab.cli.parent import start_ranks

            gc.freeze()  # the parent needs nothing of what it has imported, and Python would look through it for seconds before it ends
            allowed = [f"--allow={package}" for package in self.admitted.packages]
            raise SystemExit(start_ranks(num_ranks, ["-m", "lmlab", *self.admitted.arguments, *allowed], launch or LaunchConfig()))

    def instantiate_classes(self) -> None:
        """Makes the objects; what a config says about itself comes out as it was said, not wrapped in the parser's words."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            known = explain(error, self.parser, self.admitted.configs, self.admitted.arguments)
            if known in _causes(error):
                raise known from None
            raise

    def after_instantiate_classes(self) -> None:
        """Gives a model to be measured its weights."""
        if self._content is None:
            return
        self.model.configure_model()
        try:
            self.model.load_state_dict(trained_weights(self._content), strict=self.model.strict_loading)
        except RuntimeError as error:
            why = " ".join(str(error).split("\n")[1:2]).strip()
            what, remedy = f"the weights in {self.measured} do not fit the model", "leave the model's settings as the run has them"
            raise CheckpointError(what, where="model", why=why, remedy=remedy) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Opens the run, now that model and data could be made, and adds what every run has to what the config asks for."""
        config = self._get(self.config_init, "trainer", default={})
        callbacks = list(config.get("callbacks") or [])
        check_callbacks(callbacks)
        if self.subcommand == "fit":
            check_strategy(self.model, {**config, "callbacks": callbacks})
            seed = int(self._chosen.seed_everything)
            opened = open_session(self._run_config, seed, self._settings(), self._budget, self.model.tokenizer)
            self.session = self._open.enter_context(opened)
            self.config_init[str(self.subcommand)].ckpt_path = None if self.session.checkpoint is None else str(self.session.checkpoint)
        plugins = config.get("plugins") or []
        own: dict[str, Any] = {"plugins": [AtomicCheckpointIO(), *(plugins if isinstance(plugins, list) else [plugins])], "logger": False}
        if self.session is not None:
            own["logger"] = standard_loggers(self.session, self._run_config, self._settings())
            shown = config.get("enable_progress_bar", True) is not False
            own["callbacks"] = all_callbacks(self.session, self._budget, self._run_config, callbacks, shown)
        else:
            own["enable_checkpointing"] = False
        try:
            return super().instantiate_trainer(**{**own, **kwargs})
        except (MisconfigurationException, RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, LabError):
                raise
            what = "Lightning cannot make a trainer of these settings"
            raise ConfigError(what, where="trainer", why=str(error).strip(), remedy="change that setting") from error

    def predict(self, **kwargs: Any) -> None:
        """Writes predictions as they come; the file is there when all are."""
        with atomic_file(self.predictions) if self.trainer.is_global_zero else nullcontext() as file:
            self.trainer.callbacks.append(PredictionWriter(file))  # type: ignore[attr-defined]
            self.trainer.predict(**{**kwargs, "return_predictions": False})

    @property
    def predictions(self) -> Path:
        """Where `predict` writes."""
        return predictions_path(self.measured)

    @property
    def _chosen(self) -> Any:
        """The settings of the command."""
        return self.config[str(self.subcommand)]

    @property
    def _run_config(self) -> RunConfig:
        return RunConfig(**self._chosen.run.as_dict())

    @property
    def _budget(self) -> BudgetConfig:
        return BudgetConfig(**self._chosen.budget.as_dict())

    def _settings(self) -> dict[str, Any]:
        """The resolved settings as plain values, without those that only say where things are written."""
        dumped = self._parser(self.subcommand).dump(self._chosen, skip_none=False, format="yaml", skip_validation=True)
        settings = yaml.safe_load(dumped)
        for key in ("ckpt_path", "config", "verbose", "weights_only", "return_predictions"):
            settings.pop(key, None)
        return settings

    def _tokenizer(self, config: TokenizerConfig) -> Tokenizer:
        """The checkpoint's own, or what the settings describe, trained from the run's corpus if it must be."""
        if self._content is not None:
            return Tokenizer.from_plain(self._content["lmlab"]["objective"]["init_args"]["tokenizer"])
        data = self._chosen.data.init_args
        cleaning = data.get("cleaning")
        rules = CleaningConfig(**cleaning.as_dict()) if cleaning else CleaningConfig()
        return tokenizer_for(data.corpus, config, rules, data.get("cache_dir"))

    def _refused(self, key: str, value: Any, why: str, remedy: str) -> ConfigError:
        return ConfigError(f"{key} = {value!r} is not yours to set", where=self._where(key) or key, why=why, remedy=remedy)

    def _where(self, key: str) -> str | None:
        return where_written(key, self.admitted.configs, self.admitted.arguments)


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _feed_of(objective: Objective) -> Any:
    return objective.feed()
