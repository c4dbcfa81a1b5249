"""What every run has, whether it is started from the command line or from Python."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import BaseFileLock
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lmlab.budget import BudgetConfig
from lmlab.cache import write_atomic
from lmlab.callbacks.budget import Budget
from lmlab.callbacks.checkpoints import Checkpoints, steps_in
from lmlab.callbacks.csv_logging import MetricsCsvLogger
from lmlab.callbacks.guard import FiniteGuard
from lmlab.callbacks.interruption import Interruption
from lmlab.callbacks.progress import ProgressLine
from lmlab.callbacks.recording import Recording
from lmlab.callbacks.samples import Samples
from lmlab.checkpoint import AtomicCheckpointIO, newest_whole
from lmlab.config import fingerprint, require, to_plain
from lmlab.errors import CheckpointError
from lmlab.objectives.base import Objective
from lmlab.quiet import quiet
from lmlab.run.directory import RunDirectory, create_run
from lmlab.run.environment import git_state, write_environment
from lmlab.run.find import find_run, unfinished
from lmlab.run.record import Record

log = logging.getLogger(__name__)

RUN_VARIABLE = "LMLAB_RUN_FOLDER"  # tells the ranks a launcher starts which folder rank 0 has made

TRAINER_DEFAULTS: dict[str, Any] = {
    "deterministic": True,
    "max_epochs": 1,  # the data is one stream without end; the budget stops the run
    # the budget says when to validate; these two tell callbacks such as EarlyStopping to look after each validation, not after an epoch
    "val_check_interval": 10**9,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
}
"""Trainer settings that differ from Lightning's."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run is written, and how it is told apart from others.

    Args:
        name: Runs of one name belong together.
        question: What you want to know; it heads the report.
        root: Folder of all runs; None takes $LMLAB_RUNS, else ./runs.
        resume: `never` starts anew. `auto` goes on with the newest unfinished run of this name and config, if there is one. `must`
            does the same and refuses to start anew. Anything else names a run to go on with.
        keep: Step checkpoints to keep, besides the best; None keeps all.
        wandb: Whether to log to Weights & Biases: `auto` is online with a configured key, else offline; `off` does not log there.
        project: W&B project.
    """

    name: str = "run"
    question: str = ""
    root: str | None = None
    resume: str = "never"
    keep: int | None = 2
    wandb: Literal["auto", "online", "offline", "off"] = "off"
    project: str = "lmlab"

    def __post_init__(self) -> None:
        """Checks what can be checked without looking at the disk."""
        require(self.keep is None or self.keep >= 1, self, "keep", "the newest checkpoint is always kept", "set 1 or more, or null for all")


@dataclass(frozen=True)
class Session:
    """A run about to start or to go on.

    Args:
        run: Its folder.
        record: Its record so far.
        checkpoint: Where it goes on from; None for a fresh start.
        claim: Held as long as this process works on the run; None on ranks other than 0.
    """

    run: RunDirectory
    record: Record
    checkpoint: Path | None
    claim: BaseFileLock | None = None


def open_session(config: RunConfig, seed: int, settings: dict[str, Any], budget: BudgetConfig) -> Session:
    """Makes the run's folder, or finds the one to go on with.

    Args:
        config: Name and resume rule.
        seed: The run's seed.
        settings: The resolved settings as plain values; they are written to `config.yaml` and hashed.
        budget: For the record.

    Raises:
        CheckpointError: If there is nothing to resume though there must be.
    """
    config_hash = hash_of(settings)
    folder = os.environ.get(RUN_VARIABLE) or _told_by_rank_zero()
    if folder:
        run = RunDirectory(Path(folder))
        return Session(run, Record.load(run.record_path), newest_whole(steps_in(run.checkpoints)))
    run = _run_to_resume(config, config_hash)
    if run is not None:
        claim, checkpoint = run.claim(), newest_whole(steps_in(run.checkpoints))
        if checkpoint is None and config.resume != "auto":
            raise CheckpointError(
                f"the run {run.path.name} has no whole checkpoint to go on from", where=str(run.checkpoints), remedy="start anew"
            )
        log.info("going on with %s from %s", run.path, checkpoint.name if checkpoint else "its beginning")
        _tell_ranks(run)
        return Session(run, Record.load(run.record_path), checkpoint, claim)
    run = create_run(config.root, config.name, seed)
    claim = run.claim()
    record = Record(
        name=config.name,
        seed=seed,
        question=config.question,
        config_hash=config_hash,
        git=git_state(),
        budget={budget.unit: budget.limit},
        corpus=str(settings.get("data", {}).get("init_args", {}).get("corpus", "")),
    )
    write_atomic(run.config_path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
    write_environment(run.environment_path)
    record.save(run.record_path)
    _tell_ranks(run)
    return Session(run, record, None, claim)


def hash_of(settings: dict[str, Any]) -> str:
    """Names what decides a run's result, and not how it is carried out: workers, ranks, micro-batches and names may change on resume.

    Args:
        settings: The resolved settings.
    """
    data = settings.get("data", {})
    arguments = {k: v for k, v in data.get("init_args", {}).items() if k not in ("num_workers", "micro_batch_size", "cache_dir")}
    trainer = {key: settings.get("trainer", {}).get(key) for key in ("precision", "gradient_clip_val", "gradient_clip_algorithm")}
    rest = {key: settings.get(key) for key in ("seed_everything", "tokenizer", "model", "budget")}
    return fingerprint({**rest, "trainer": trainer, "data": {"class_path": data.get("class_path"), "init_args": arguments}})


def _elastic_store() -> Store | None:
    """The key-value store of torch's elastic launcher, if it started this process."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return PrefixStore(f"lmlab/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _tell_ranks(run: RunDirectory) -> None:
    """Makes the folder known to ranks that this process starts, and to those that the elastic launcher started beside it."""
    os.environ[RUN_VARIABLE] = str(run.path)
    store = _elastic_store()
    if store is not None:
        store.set("run", str(run.path.resolve()))


def _told_by_rank_zero() -> str | None:
    """Waits for rank 0's folder; None on rank 0 and outside the elastic launcher."""
    store = _elastic_store() if os.environ.get("RANK", "0") != "0" else None
    return None if store is None else store.get("run").decode()


def _run_to_resume(config: RunConfig, config_hash: str) -> RunDirectory | None:
    if config.resume == "never":
        return None
    if config.resume not in ("auto", "must"):
        return find_run(config.resume, config.root)
    run = unfinished(config.name, config_hash, config.root)
    if run is None and config.resume == "must":
        raise CheckpointError(
            f"there is no unfinished run of '{config.name}' with this config",
            where="run.resume",
            remedy="`lmlab runs` lists the runs; run.resume: auto starts anew when there is none",
        )
    return run


def standard_callbacks(session: Session, budget: BudgetConfig, config: RunConfig, shows_progress: bool = True) -> list[Callback]:
    """The callbacks every run has; the clock comes first.

    Args:
        session: The run.
        budget: When it ends.
        config: What to keep.
        shows_progress: The trainer's `enable_progress_bar`.
    """
    checkpoints = Checkpoints(session.run.checkpoints, times=budget.checkpoints, keep=config.keep)
    return [
        Budget(budget),
        FiniteGuard(),
        Samples(session.run),
        Recording(session.run, session.record),
        Interruption(checkpoints),
        *([ProgressLine()] if shows_progress else []),
        checkpoints,
    ]


def standard_loggers(session: Session, config: RunConfig, settings: dict[str, Any]) -> list[Any]:
    """`metrics.csv`, and W&B if it is asked for; a resumed run forgets the rows after its checkpoint.

    Args:
        session: The run.
        config: Whether to use W&B.
        settings: For W&B's config table.
    """
    table = MetricsCsvLogger(session.run)
    if session.checkpoint is not None:
        table.resume(int(session.checkpoint.stem.removeprefix("step=")))
    loggers: list[Any] = [table]
    if config.wandb != "off":
        from lmlab.callbacks.wandb_logging import make_wandb_logger

        loggers.append(make_wandb_logger(session.run, settings, mode=config.wandb, project=config.project))
    return loggers


def fit(
    objective: Objective,
    data: LightningDataModule,
    budget: BudgetConfig,
    run: RunConfig = RunConfig(),
    *,
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true",
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
) -> RunDirectory:
    """Trains an objective from Python, the way `lmlab fit` does from the command line.

    Args:
        objective: What to learn; afterwards it holds the trained weights.
        data: What to learn from.
        budget: When to stop.
        run: Name, question, resume rule.
        precision: Lightning's name of the number format.
        callbacks: Further callbacks.
        seed: Of the weights; give the data module the same.
        trainer: Further arguments of Lightning's Trainer.

    Returns:
        The run's folder, with metrics, checkpoints, samples and `report.html`.
    """
    os.environ.pop(RUN_VARIABLE, None)
    quiet()
    seed_everything(seed, verbose=False)
    arguments = {**TRAINER_DEFAULTS, "precision": precision, **(trainer or {})}
    settings = {"seed_everything": seed, "trainer": json.loads(json.dumps(arguments, default=str)), "model": _short(objective.recipe())}
    settings |= {"data": {"init_args": _plain_attributes(data)}, "budget": to_plain(budget)}
    session = open_session(run, seed, settings, budget)
    trained = Trainer(
        **arguments,
        logger=standard_loggers(session, run, settings),
        plugins=[AtomicCheckpointIO()],
        callbacks=[*standard_callbacks(session, budget, run, arguments.get("enable_progress_bar", True) is not False), *callbacks],
    )
    try:
        trained.fit(objective, data, ckpt_path=session.checkpoint)
    finally:
        os.environ.pop(RUN_VARIABLE, None)
    return session.run


def _short(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the tokenizer named by its fingerprint instead of spelled out."""
    arguments = {**recipe["init_args"], "tokenizer": fingerprint(recipe["init_args"]["tokenizer"])}
    return {**recipe, "init_args": arguments}


def _plain_attributes(data: LightningDataModule) -> dict[str, Any]:
    names = ("corpus_spec", "global_batch_size", "micro_batch_size", "seed", "num_workers", "eval_examples")
    found = {name: getattr(data, name) for name in names if hasattr(data, name)}
    return {"corpus": str(found.pop("corpus_spec", "")), **found}
