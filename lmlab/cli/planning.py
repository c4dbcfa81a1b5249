"""Reads settings as `lmlab fit` does, for objects that are only asked what they would take."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from lightning.pytorch import Callback, Trainer

from lmlab.budget import BudgetConfig
from lmlab.cli.allowlist import Admitted
from lmlab.cli.running import LabCLI
from lmlab.data.cleaning import CleaningConfig
from lmlab.data.module import CorpusModule
from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.planning.devices import Device
from lmlab.planning.memory import ZERO_BUCKET, Strategy
from lmlab.planning.prediction import Cluster
from lmlab.planning.vocabulary import known_tokenizer, planned_tokenizer
from lmlab.strategies import FSDP, ZeRO
from lmlab.strategies.refusals import kind_of
from lmlab.tokenizer import Tokenizer, TokenizerConfig

UNCOUNTED = "trainer.devices leaves the number of devices to the machine of the run; this is a plan for one in each node: say --devices N"

HALF_OFFLOADED = "the config offloads the optimizer alone: what its row has under `optimizer` is in the memory of the host instead"


class Planned(NamedTuple):
    """What a plan is made of.

    Args:
        objective: Not built.
        data: Nothing is read.
        budget: When the run would end.
        precision: Of the Trainer.
        callbacks: Of the Trainer.
        devices: Of the Trainer, in each node; 1 where it does not say.
        nodes: Of the Trainer.
        strategy: Of the Trainer; None where it is left to lmlab.
        replicas: Of that strategy, if it is HSDP.
        tensor_parallel: Of that strategy, if it is FSDP.
        gathered: What its `reshard_after_forward` comes to.
        bucket: Of ZeRO.
        notes: What the reader should know of these settings.
    """

    objective: Objective
    data: CorpusModule
    budget: BudgetConfig
    precision: str | int | None
    callbacks: tuple[Callback, ...]
    devices: int
    nodes: int
    strategy: Strategy | None = None
    replicas: int | None = None
    tensor_parallel: int = 1
    gathered: Literal["in_turn", "all"] = "in_turn"
    bucket: int = ZERO_BUCKET
    notes: tuple[str, ...] = ()

    def cluster(
        self, device: Device, devices: int | None, nodes: int | None, utilisation: float | None, wanted: Strategy | None = None
    ) -> Cluster:
        """What the run is to be spread over: as asked for, or as the Trainer's settings say.

        Args:
            device: Of one kind.
            devices: In all; None for the Trainer's.
            nodes: None for the Trainer's.
            utilisation: Stated.
            wanted: The strategy that is asked about: with `fsdp_tp`, two devices compute layers together where no setting says how many.
        """
        nodes = self.nodes if nodes is None else nodes
        devices = self.devices * nodes if devices is None else devices
        cut = max(2, self.tensor_parallel) if wanted == "fsdp_tp" else 1
        return Cluster(device=device, devices=devices, nodes=nodes, utilisation=utilisation, replicas=self.replicas, tensor_parallel=cut)


class _PlanCLI(LabCLI):
    """Makes objective and data, and no trainer."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """None: nothing is run."""
        return None  # type: ignore[return-value]

    def _start_ranks(self) -> None:
        """None are started: how many there would be is what a plan is about."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""

    def _tokenizer(self, config: TokenizerConfig) -> Tokenizer:
        """The tokenizer that the settings name or that an earlier run has trained, else one that only has its size."""
        data = self._chosen.data.init_args
        cleaning = data.get("cleaning")
        rules = CleaningConfig(**cleaning.as_dict()) if cleaning else CleaningConfig()
        return known_tokenizer(data.corpus, config, rules, data.get("cache_dir")) or planned_tokenizer(config)


class _MakingCLI(_PlanCLI):
    """The same with a tokenizer that can be used."""

    def _tokenizer(self, config: TokenizerConfig) -> Tokenizer:
        return LabCLI._tokenizer(self, config)


def read_settings(admitted: Admitted, tokenizer: Literal["known", "trained"] = "known") -> Planned:
    """The objects of a run that is not to be run.

    Args:
        admitted: The command line, `fit` first, looked at.
        tokenizer: `known` trains none: where there is none yet, one stands in that only has its size.

    Raises:
        ConfigError: On settings that `lmlab fit` refuses as well.
    """
    cli = _PlanCLI(admitted) if tokenizer == "known" else _MakingCLI(admitted)
    trainer = cli._get(cli.config_init, "trainer", default={})
    if not isinstance(cli.datamodule, CorpusModule):
        what = f"{type(cli.datamodule).__name__} cannot be planned"
        raise ConfigError(what, where="data", why="its batch sizes are unknown here", remedy="use lmlab.data.module.CorpusModule")
    devices, strategy = trainer.get("devices"), trainer.get("strategy") or "auto"
    return Planned(
        objective=cli.model,  # type: ignore[arg-type]  # the parser takes objectives only
        data=cli.datamodule,
        budget=cli._budget,
        precision=trainer.get("precision"),
        callbacks=tuple(trainer.get("callbacks") or ()),
        devices=num_planned(devices),
        nodes=int(trainer.get("num_nodes") or 1),
        strategy=planned_strategy(strategy),
        replicas=strategy.replicas if isinstance(strategy, FSDP) and strategy.replicas > 1 else None,
        tensor_parallel=strategy.tensor_parallel if isinstance(strategy, FSDP) else 1,
        gathered="all" if isinstance(strategy, FSDP) and strategy.reshard_after_forward == "never" else "in_turn",
        bucket=strategy.bucket if isinstance(strategy, ZeRO) else ZERO_BUCKET,
        notes=(
            *((UNCOUNTED,) if devices in ("auto", -1, "-1") else ()),
            *((HALF_OFFLOADED,) if isinstance(strategy, ZeRO) and strategy.offload == "optimizer" else ()),
        ),
    )


def planned_strategy(strategy: Any) -> Strategy | None:
    """The row of a plan that a trainer's strategy stands in.

    Args:
        strategy: An object, or a name as Lightning has it.

    Returns:
        None where it is left to lmlab.

    Raises:
        ConfigError: If it is one of Lightning's own that lmlab replaces.
    """
    if strategy == "auto":
        return None
    kind = "zero3_offload" if isinstance(strategy, ZeRO) and strategy.offload == "all" else kind_of(strategy)
    return kind  # type: ignore[return-value]  # the columns of refusals are rows of the plan


def num_planned(devices: Any) -> int:
    """How many devices of a node a trainer's setting means.

    Args:
        devices: A number, a list of devices, as text as well, or `auto`, which is 1 where nothing is to be run.
    """
    if isinstance(devices, str) and "," in devices:
        devices = [one for one in devices.split(",") if one.strip()]
    if isinstance(devices, (list, tuple)):
        return len(devices)
    try:
        return max(1, int(devices))
    except (TypeError, ValueError):
        return 1
