"""A run's folder: made for a new run, found for one that goes on, told to every rank."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml
from filelock import BaseFileLock

from lmlab.budget import BudgetConfig
from lmlab.cache import write_atomic
from lmlab.checkpoint import newest_whole, outline
from lmlab.checkpoint.places import set_aside, sweep
from lmlab.config import check_choices, fingerprint, leaves, require
from lmlab.errors import CheckpointError, ConfigError, LabError
from lmlab.job import Choice, forget_run, run_before_restart, tell_ranks, told_by_rank_zero
from lmlab.run.directory import RunDirectory, create_run
from lmlab.run.environment import git_state, write_environment
from lmlab.run.find import find_run, unfinished
from lmlab.run.record import Record, now
from lmlab.tokenizer import Tokenizer

log = logging.getLogger(__name__)

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
        forget_run()
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
    chosen = told_by_rank_zero(_num_opened)
    if chosen is not None:
        return Session(chosen.run, Record.load(chosen.run.record_path), chosen.checkpoint, chosen.step)
    restarted = run_before_restart(_num_opened)
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
    tell_ranks(Choice(run), _num_opened)
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
    try:
        sweep(run.checkpoints)
        checkpoint, reached = _newest(run)
        if checkpoint is None and (must_have_checkpoint or any(run.checkpoints.glob("*.ckpt"))):
            raise CheckpointError(
                f"the run {run.path.name} has no whole checkpoint to go on from",
                where=str(run.checkpoints),
                remedy="start anew: --resume never; nothing here was changed",
            )
    except CheckpointError:
        claim.release()
        raise
    for step, path in run.steps().items():
        if step > reached or (step == reached and path != checkpoint):
            set_aside(path)
    if checkpoint is None:
        run.metrics_path.unlink(missing_ok=True)
        run.samples_path.unlink(missing_ok=True)
    log.info("going on with %s from %s", run.path, checkpoint.name if checkpoint else "its beginning")
    tell_ranks(Choice(run, checkpoint, reached), _num_opened)
    record = dataclasses.replace(Record.load(run.record_path), error="")  # of the attempt before
    return Session(run, record, checkpoint, reached, claim)


def _newest(run: RunDirectory) -> tuple[Path | None, int]:
    """The newest whole checkpoint and its step; the best, which is kept for longer, if no other is whole."""
    steps = {path: step for step, path in reversed(run.steps().items())}
    path = newest_whole(steps)
    if path is not None:
        return path, steps[path]
    best = newest_whole(p for p in (run.best_path,) if p.exists())
    return (best, int(outline(best)["global_step"])) if best else (None, 0)


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
