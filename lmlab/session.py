"""A run's folder: made for a new run, found for one that goes on, told to every rank."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import BaseFileLock
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lmlab.budget import BudgetConfig
from lmlab.cache import write_atomic
from lmlab.callbacks.checkpoints import steps_in
from lmlab.checkpoint import newest_whole
from lmlab.config import fingerprint, require
from lmlab.errors import CheckpointError
from lmlab.run.directory import RunDirectory, create_run
from lmlab.run.environment import git_state, write_environment
from lmlab.run.find import find_run, unfinished
from lmlab.run.record import Record
from lmlab.tokenizer import Tokenizer

log = logging.getLogger(__name__)

RUN_VARIABLE = "LMLAB_RUN_FOLDER"  # tells the ranks a launcher starts which folder rank 0 has made


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


def open_session(config: RunConfig, seed: int, settings: dict[str, Any], budget: BudgetConfig, tokenizer: Tokenizer) -> Session:
    """Makes the run's folder, or finds the one to go on with.

    Args:
        config: Name and resume rule.
        seed: The run's seed.
        settings: The resolved settings as plain values; they are written to `config.yaml` and hashed.
        budget: For the record.
        tokenizer: Saved in the folder. Settings that do not say where it comes from (`tokenizer: null`) are made to name that copy.

    Raises:
        CheckpointError: If there is nothing to resume though there must be.
    """
    config_hash = hash_of(settings if settings.get("tokenizer") else {**settings, "tokenizer": tokenizer.fingerprint})
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
    tokenizer.save(run.tokenizer_path)
    copy = {"path": str(run.tokenizer_path), "num_sentinels": len(tokenizer.sentinel_ids)}
    written = {key: copy if key == "tokenizer" and value is None else value for key, value in settings.items()}
    write_atomic(run.config_path, yaml.safe_dump(written, sort_keys=False, allow_unicode=True).encode())
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
