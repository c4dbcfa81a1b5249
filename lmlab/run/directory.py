"""The folder of one run, and how it is made.

    runs/<name>/<time>-<seed>-<suffix>/
        config.yaml  tokenizer/  environment.json  metrics.csv  samples.jsonl  record.json  report.html
        checkpoints/{step=N,last,best}.ckpt  plots/*.svg

The folder is fixed once, by the process that launches the ranks, and is continued in place on resume.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import filelock

from lmlab.errors import ConfigError

ROOT_VARIABLE = "LMLAB_RUNS"
NAME_RULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")  # no leading dot (hidden, `..`) or dash (reads as an option)
STEP_FILE = re.compile(r"step=(\d+)\.ckpt")
NUM_SUFFIX_BYTES = 3  # two launches in one second with one seed share a name once in 16 million times, and then try again


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder and the names of what lies in it.

    Args:
        path: The folder; it need not hold everything yet.
    """

    path: Path

    @property
    def name(self) -> str:
        """The run's name, which is the folder above: runs of one name differ in time and seed."""
        return self.path.resolve().parent.name

    @property
    def config_path(self) -> Path:
        """The resolved configuration, `config.yaml`."""
        return self.path / "config.yaml"

    @property
    def tokenizer_path(self) -> Path:
        """Folder of the tokenizer, in Hugging Face layout."""
        return self.path / "tokenizer"

    @property
    def environment_path(self) -> Path:
        """Versions, machine and command line, `environment.json`."""
        return self.path / "environment.json"

    @property
    def metrics_path(self) -> Path:
        """What was logged, one row a step, `metrics.csv`."""
        return self.path / "metrics.csv"

    @property
    def samples_path(self) -> Path:
        """What the model wrote while it was trained, `samples.jsonl`."""
        return self.path / "samples.jsonl"

    @property
    def record_path(self) -> Path:
        """The run in one small file, `record.json`."""
        return self.path / "record.json"

    @property
    def report_path(self) -> Path:
        """The page to look at, `report.html`."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best_path(self) -> Path:
        """The checkpoint with the best score, `checkpoints/best.ckpt`."""
        return self.checkpoints / "best.ckpt"

    @property
    def plots(self) -> Path:
        """Folder of the curves as SVG."""
        return self.path / "plots"

    def claim(self) -> filelock.BaseFileLock:
        """Marks the run as being worked on until the returned lock is released or this process dies.

        Raises:
            ConfigError: If another process works on this run.
        """
        lock = filelock.FileLock(self._lock_path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise ConfigError(
                "this run is still going on in another process",
                where=str(self.path),
                why="two processes would write over each other's metrics and checkpoints",
                remedy="wait for it or stop it; or start a fresh run with --resume never",
            ) from error
        return lock

    def is_claimed(self) -> bool:
        """Whether a living process works on this run; False as well when no process ever claimed it."""
        if not self._lock_path.exists():
            return False
        lock = filelock.FileLock(self._lock_path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return True
        except OSError:  # a folder that may only be read: nobody can be told apart from somebody, so do not stand in the way
            return False
        lock.release()
        return False

    def was_claimed(self) -> bool:
        """Whether any process ever marked the run as its own."""
        return self._lock_path.exists()

    def steps(self) -> dict[int, Path]:
        """Checkpoints by optimiser step, ascending."""
        return step_files(self.checkpoints)

    @property
    def _lock_path(self) -> Path:
        return self.path / ".lock"


def step_files(folder: Path) -> dict[int, Path]:
    """The step checkpoints of a folder by optimiser step, ascending.

    Args:
        folder: A run's `checkpoints`.
    """
    matches = ((STEP_FILE.fullmatch(path.name), path) for path in folder.glob("step=*.ckpt"))
    return dict(sorted((int(match.group(1)), path) for match, path in matches if match))


def runs_root(root: Path | str | None = None) -> Path:
    """Where runs are kept.

    Args:
        root: The user's choice; None asks `$LMLAB_RUNS`, then takes `./runs`. Nothing is created.
    """
    return Path(root or os.environ.get(ROOT_VARIABLE, "").strip() or "runs").expanduser()


def check_name(name: str) -> str:
    """Refuses a run name that could leave the folder of runs or be mistaken for an option.

    Raises:
        ConfigError: If the name breaks the rule.
    """
    if not NAME_RULE.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a run",
            where="name",
            why="a name is 1 to 80 of the characters A-Z a-z 0-9 . _ - and begins with a letter, a digit or _",
            remedy=f"call it '{_tidy(name)}'",
        )
    return name


def create_run(root: Path | str | None, name: str, seed: int) -> RunDirectory:
    """Makes the folder of a new run; two launches never get the same one.

    Args:
        root: Folder of all runs, see `runs_root`.
        name: The run's name.
        seed: The run's seed; it is part of the folder's name.

    Raises:
        ConfigError: If the name is not allowed, leads out of `root`, or the folder cannot be made.
    """
    check_name(name)
    base = runs_root(root).resolve()
    home = base / name
    if home.resolve() != home:
        raise ConfigError(
            f"runs of '{name}' would not lie in {base}", where="name", why=f"{home} links elsewhere", remedy="take another name"
        )
    try:
        while True:
            stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
            path = home / f"{stamp}-{seed}-{secrets.token_hex(NUM_SUFFIX_BYTES)}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not home.is_dir():
                    raise
                continue
            break
        run = RunDirectory(path)
        run.checkpoints.mkdir()
        run.plots.mkdir()
    except OSError as error:
        raise ConfigError(
            "cannot make the run's folder", where=str(home), why=str(error), remedy=f"set {ROOT_VARIABLE} to another folder"
        ) from error
    return run


def _tidy(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "run"
