"""A command line as small as can be: LightningCLI parsers around toy classes, which parse and do nothing else."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lmlab.cli.allowlist import Admitted, admit
from lmlab.cli.parser import StrictParser, parser_kwargs
from lmlab.cli.suggestions import explain

NAME = "tests.cli.toy"

BASE = f"""\
model:
  class_path: {NAME}.ToyMLM
  init_args:
    mask_prob: 0.2
    backbone:
      hidden_size: 8
data:
  class_path: {NAME}.ToyData
trainer:
  max_steps: 3
  callbacks:
    - class_path: lightning.pytorch.callbacks.TQDMProgressBar
"""


@dataclass(frozen=True, kw_only=True)
class ToyBackbone:
    hidden_size: int = 16
    num_layers: int = 1
    activation: Literal["gelu", "relu"] = "gelu"


class ToyObjective(LightningModule):
    """What the toy command line can train."""


class ToyMLM(ToyObjective):
    def __init__(
        self,
        backbone: ToyBackbone = ToyBackbone(),
        mask_prob: float = 0.15,
        hook: Callable | None = None,
        extra: Any = None,
        kind: type | None = None,
    ) -> None:
        raise AssertionError("settings are only read here, nothing is built")


class ToyCLM(ToyObjective):
    def __init__(self, backbone: ToyBackbone = ToyBackbone(), length: int = 3) -> None:
        raise AssertionError("settings are only read here, nothing is built")


class ToyData(LightningDataModule):
    def __init__(self, batch_size: int = 2) -> None:
        raise AssertionError("settings are only read here, nothing is built")


class ToyCLI(LightningCLI):
    def __init__(self, admitted: Admitted) -> None:
        self.admitted = admitted
        super().__init__(
            ToyObjective,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=False,
            parser_class=StrictParser,
            parser_kwargs=parser_kwargs(),
            args=admitted.arguments,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(ToyBackbone, "tokenizer")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, ImportError) as error:
            raise explain(error, parser, self.admitted.configs, args) from error

    def instantiate_classes(self) -> None:
        """Builds nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""


def parse(arguments: list[str]) -> Any:
    """The settings of a command, as `lmlab` reads them."""
    cli = ToyCLI(admit([*arguments, "--allow", NAME]))
    return cli.config[cli.subcommand]


def write(folder: Path, name: str, text: str) -> str:
    """Writes a settings file and returns its path."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)
