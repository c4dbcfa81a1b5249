"""A run's folder: made for a new run, found for one that goes on, told to every rank."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml
from filelock import BaseFileLock
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lmlab.budget import BudgetConfig
from lmlab.cache import write_atomic
from lmlab.checkpoint import newest_whole, outline
from lmlab.checkpoint.places import set_aside
from lmlab.config import check_choices, fingerprint, leaves, require
from lmlab.errors import CheckpointError, ConfigError, LabError
from lmlab.run.directory import RunDirectory, create_run
from lmlab.run.environment import git_state, write_environment
from lmlab.run.find import find_run, unfinished
from lmlab.run.record import Record, now
from lmlab.tokenizer import Tokenizer

log = logging.getLogger(__name__)

RUN_VARIABLE = "LMLAB_RUN_FOLDER"  # tells the ranks a launcher starts which folder rank 0 has made
RELEASE_SECONDS = 30.0  # loader workers look every five seconds whether their parent lives
_num_opened = 0  # runs that this process has opened: the ranks of a script open the same ones in the same order


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
        check_choices(self)
        require(self.keep is None or self.keep >= 1, self, "keep", "the newest checkpoint is always kept", "set 1 or more, or null for all")


@dataclass(frozen=True)
class Session:
    """A run about to start or to go on; a context that lets go of the run's folder at its end.

    Args:
        run: Its folder.
        record: Its record so far.
        checkpoint: Where it goes on from; None for a fresh start.
        step: Optimiser steps behind that checkpoint.
        claim: Held as long as this process works on the run; None on ranks other than 0.
    """

    run: RunDirectory
    record: Record
    checkpoint: Path | None = None
    step: int = 0
    claim: BaseFileLock | None = None

    def __enter__(self) -> Session:
        """Has been opened."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Lets go, so that the next run of this process may go on with it; what failed before training began is noted."""
        os.environ.pop(RUN_VARIABLE, None)
        if self.claim is None:
            return
        if isinstance(error, Exception) and (record := Record.load(self.run.record_path)).status == "running":
            what = error.what if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
            dataclasses.replace(record, status="failed", ended=now(), error=what).save(self.run.record_path)
        self.claim.release()


def open_session(config: RunConfig, seed: int, settings: dict[str, Any], budget: BudgetConfig, tokenizer: Tokenizer) -> Session:
    """Makes the run's folder, or finds the one to go on with.

    Args:
        config: Name and resume rule.
        seed: The run's seed.
        settings: The resolved settings as plain values; they are written to `config.yaml` and hashed.
        budget: For the record.
        tokenizer: Saved in the folder. Settings that do not say where it comes from (`tokenizer: null`) are made to name that copy.

    Raises:
        CheckpointError: If there is nothing to resume though there must be, or the run to resume has other settings.
    """
    global _num_opened
    _num_opened += 1
    config_hash = hash_of(settings, tokenizer)
    folder = os.environ.get(RUN_VARIABLE) or _told_by_rank_zero()
    if folder:
        run = RunDirectory(Path(folder))
        return Session(run, Record.load(run.record_path), *_newest(run, is_verified=True))
    restarted = _run_before_restart()
    if restarted is not None:
        return _go_on(restarted, _claim_from_the_dead(restarted))
    run = _run_to_resume(config, config_hash, settings)
    if run is not None:
        return _go_on(run, run.claim(), must_have_checkpoint=config.resume != "auto")
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
    write_atomic(run.config_path, yaml.safe_dump(written, sort_keys=False, allow_unicode=True).encode("utf-8", "backslashreplace"))
    write_environment(run.environment_path)
    record.save(run.record_path)
    _tell_ranks(run)
    return Session(run, record, claim=claim)


def _claim_from_the_dead(run: RunDirectory) -> BaseFileLock:
    """Claims a run whose last owner is dead or dying: the system lets go of its lock when the last process it forked is gone, too."""
    end = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            return run.claim()
        except ConfigError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _go_on(run: RunDirectory, claim: BaseFileLock, must_have_checkpoint: bool = False) -> Session:
    """Takes a run up at its newest whole checkpoint; what lies beyond it is put aside, for it is about to be done again."""
    checkpoint, reached = _newest(run)
    if checkpoint is None and must_have_checkpoint:
        claim.release()
        raise CheckpointError(
            f"the run {run.path.name} has no whole checkpoint to go on from", where=str(run.checkpoints), remedy="start anew"
        )
    for step, path in run.steps().items():
        if step > reached or checkpoint is None:
            set_aside(path)
    if checkpoint is None:
        if run.best_path.exists():
            set_aside(run.best_path)
        run.metrics_path.unlink(missing_ok=True)
        run.samples_path.unlink(missing_ok=True)
    log.info("going on with %s from %s", run.path, checkpoint.name if checkpoint else "its beginning")
    _tell_ranks(run)
    record = dataclasses.replace(Record.load(run.record_path), error="")  # of the attempt before
    return Session(run, record, checkpoint, reached, claim)


def _newest(run: RunDirectory, is_verified: bool = False) -> tuple[Path | None, int]:
    """The newest whole checkpoint and its step; the best, which is kept for longer, if no other is whole.

    Args:
        run: To look into.
        is_verified: Whether rank 0 has looked already, and put aside what is broken, so that other ranks need not read it all.
    """
    steps = {path: step for step, path in reversed(run.steps().items())}
    best = [run.best_path] if run.best_path.exists() else []
    path = next(iter([*steps, *best]), None) if is_verified else newest_whole(steps) or newest_whole(best)
    if path is None:
        return None, 0
    return path, steps[path] if path in steps else int(outline(path)["global_step"])


def hashed(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides a run's result, and not how it is carried out: workers, ranks, micro-batches and names may change on resume.

    Args:
        settings: The resolved settings.
    """
    data, trainer = settings.get("data", {}), settings.get("trainer", {})
    arguments = {k: v for k, v in data.get("init_args", {}).items() if k not in ("num_workers", "micro_batch_size", "cache_dir")}
    deciding = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "callbacks", "limit_val_batches")
    rest = {key: settings.get(key) for key in ("seed_everything", "tokenizer", "model", "budget")}
    chosen = {key: trainer.get(key) for key in deciding if trainer.get(key) is not None}
    return {**rest, "trainer": chosen, "data": {"class_path": data.get("class_path"), "init_args": arguments}}


def hash_of(settings: dict[str, Any], tokenizer: Tokenizer) -> str:
    """A short name of what decides a run's result.

    Args:
        settings: The resolved settings.
        tokenizer: Stands for itself where the settings only say which file it is read from.
    """
    config = settings.get("tokenizer")
    is_read = config is None or config.get("path")
    return fingerprint({**hashed(settings), "tokenizer": tokenizer.fingerprint if is_read else config})


def run_of_job(address: str, port: int) -> RunDirectory | None:
    """The run that the ranks of an elastic launcher work on, if rank 0 has told; the last one, if they had several.

    Args:
        address: Host of the launcher's store.
        port: Its port.
    """
    store, found = _job_store(address, port), None
    number = 1
    while store.check([f"run/{number}"]):
        found = RunDirectory(Path(store.get(f"run/{number}").decode()))
        number += 1
    return found


def _job_store(address: str, port: int) -> Store:
    return PrefixStore("lmlab", TCPStore(address, port, is_master=False))


def _elastic_store() -> Store | None:
    """The key-value store of torch's elastic launcher, if it started this process; it lives on when ranks are started again."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return _job_store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def _tell_ranks(run: RunDirectory) -> None:
    """Makes the folder known to ranks that this process starts, and to those that the elastic launcher started beside it."""
    os.environ[RUN_VARIABLE] = str(run.path)
    store = _elastic_store()
    if store is not None:
        for key in (f"run/{_num_opened}", _now_key()):
            store.set(key, str(run.path.resolve()))


def _told_by_rank_zero() -> str | None:
    """Waits for rank 0's folder; None on rank 0 and outside the elastic launcher."""
    store = _elastic_store() if os.environ.get("RANK", "0") != "0" else None
    return None if store is None else store.get(_now_key()).decode()


def _now_key() -> str:
    """Where rank 0 writes its word to the ranks that were started along with it."""
    return f"run/{_num_opened}/attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _run_before_restart() -> RunDirectory | None:
    """The run that rank 0 had told of before the elastic launcher started all ranks again; the same one then goes on."""
    store = _elastic_store()
    if store is None or not store.check([f"run/{_num_opened}"]):
        return None
    if _num_opened == 1:
        _forget_addresses(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    return RunDirectory(Path(store.get(f"run/{_num_opened}").decode()))


def _forget_addresses(address: str, port: int) -> None:
    """Removes the addresses of dead ranks from the launcher's store; the others look there only after rank 0 has told them of the run.

    torch 2.13 keeps one store for all attempts and writes to it under the same names, so that ranks would call dead ones
    ("Gloo connectFullMesh failed").
    """
    store = TCPStore(address, port, is_master=False)
    for key in store.list_keys():
        if key.startswith("default_pg/"):
            store.delete_key(key)


def _run_to_resume(config: RunConfig, config_hash: str, settings: dict[str, Any]) -> RunDirectory | None:
    if config.resume == "never":
        return None
    if config.resume not in ("auto", "must"):
        run = find_run(config.resume, config.root)
        _check_same(run, config_hash, settings)
        return run
    run = unfinished(config.name, config_hash, config.root)
    if run is None and config.resume == "must":
        raise CheckpointError(
            f"there is no unfinished run of '{config.name}' with this config that no other process holds",
            where="run.resume",
            remedy="`lmlab runs` lists the runs; run.resume: auto starts anew when there is none",
        )
    return run


def _check_same(run: RunDirectory, config_hash: str, settings: dict[str, Any]) -> None:
    record = Record.load(run.record_path)
    if record.config_hash != config_hash:
        was = yaml.safe_load(run.config_path.read_text(encoding="utf-8")) if run.config_path.exists() else {}
        before, after = dict(leaves(hashed(was))), dict(leaves(hashed(settings)))
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key) and key != "tokenizer.path"]
        shown = ", ".join(f"{key} ({before.get(key)} -> {after.get(key)})" for key in changed[:4])
        raise CheckpointError(
            f"the run {run.path.name} has other settings",
            where="run.resume",
            why=f"changed: {shown or 'the tokenizer'}; one run is one setting from its beginning to its end",
            remedy=f"go on with its own: -c {run.config_path}; or start a new run with --resume never",
        )
    if record.status == "finished":
        what, remedy = f"the run {run.path.name} has finished", "start a new run, with a larger budget if you want to train for longer"
        raise CheckpointError(what, where="run.resume", why="its budget is spent", remedy=remedy)
