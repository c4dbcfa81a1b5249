"""Which run a person means, and which of its checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

from lmlab.errors import CheckpointError, nearest
from lmlab.run.directory import NAME_RULE, ROOT_VARIABLE, RunDirectory, check_name, runs_root
from lmlab.run.record import Record

STAMP = re.compile(r"\d{8}T\d{6}Z-\d+-[0-9a-f]+")


def list_runs(root: Path | str | None = None, name: str | None = None) -> list[RunDirectory]:
    """All runs below `root`, oldest first, whatever their state.

    Args:
        root: Folder of all runs, see `runs_root`.
        name: Only runs of this name; None for all.

    Raises:
        ConfigError: If `name` is not a name.
    """
    base = runs_root(root)
    homes = [base / check_name(name)] if name is not None else sorted(p for p in _folders(base) if not p.name.startswith("."))
    runs = [RunDirectory(p) for home in homes for p in _folders(home) if STAMP.fullmatch(p.name)]
    return sorted(runs, key=_started)


def known_names(root: Path | str | None = None) -> list[str]:
    """Names that have at least one run.

    Args:
        root: Folder of all runs, see `runs_root`.
    """
    return sorted(p.name for p in _folders(runs_root(root)) if _is_home(p))


def find_run(spec: str | Path, root: Path | str | None = None) -> RunDirectory:
    """The run a person means.

    Args:
        spec: A run's folder, one of its `.ckpt` files, a name (its newest finished run), or `name/folder`.
        root: Folder of all runs, see `runs_root`.

    Raises:
        CheckpointError: If there is no such run; the message names the nearest.
    """
    path = Path(spec).expanduser()
    if path.suffix == ".ckpt":
        return _run_of_checkpoint(path)
    base = runs_root(root)
    for candidate in (path, base / path):
        if is_run(candidate):
            return RunDirectory(candidate)
    name = path.name if _is_home(path) else str(spec)
    home = path if _is_home(path) else base / name
    if not NAME_RULE.fullmatch(name) or not _is_home(home):
        names = known_names(base)
        remedy = nearest(name, names) if names else f"no runs in {base} yet: start one with `lmlab fit`, or set {ROOT_VARIABLE}"
        raise CheckpointError(f"there is no run '{spec}'", where=str(base), why="it is neither a folder of a run nor a name", remedy=remedy)
    runs = list_runs(home.parent, name)
    finished = [run for run in runs if _status(run) == "finished"]
    if not finished:
        raise CheckpointError(
            f"no run of '{name}' has finished",
            where=str(home),
            why=f"{len(runs)} unfinished, the newest is {runs[-1].path.name}",
            remedy=f"name the folder itself: {runs[-1].path}",
        )
    return finished[-1]


def find_checkpoint(spec: str | Path | RunDirectory, which: str | None = None, root: Path | str | None = None) -> Path:
    """The checkpoint a person means.

    Args:
        spec: A run as in `find_run`; a `.ckpt` file stands for itself.
        which: `best`, `last` or `step=N`; None takes the file named by `spec`, else the best, else the last.
        root: Folder of all runs, see `runs_root`.

    Raises:
        CheckpointError: If it is not there; the message names those that are.
    """
    if which is None and not isinstance(spec, RunDirectory) and Path(spec).suffix == ".ckpt":
        path = Path(spec).expanduser()
        if not path.exists():
            raise _no_checkpoint(path.name, path.parent)
        return path
    run = spec if isinstance(spec, RunDirectory) else find_run(spec, root)
    if which is not None and not re.fullmatch(r"best|last|step=\d+", which):
        raise CheckpointError(f"'{which}' is not a checkpoint", where="--checkpoint", remedy="say best, last or step=N")
    steps = run.steps()
    newest = next(reversed(steps.values()), None)
    if which in (None, "best") and run.best_path.exists():
        return run.best_path
    if which in (None, "last") and newest is not None:
        return newest
    if which is not None and which.startswith("step=") and int(which[5:]) in steps:
        return steps[int(which[5:])]
    raise _no_checkpoint(which or "checkpoint", run.checkpoints)


def unfinished(name: str, config_hash: str, root: Path | str | None = None) -> RunDirectory | None:
    """The run that `--resume auto` continues.

    Args:
        name: The run's name.
        config_hash: Hash of the resolved configuration; a run with another one is another run.
        root: Folder of all runs, see `runs_root`.

    Returns:
        The newest run of that name and configuration that has not finished, has a checkpoint, and is not being worked on by
        a living process; None if there is none.
    """
    for run in reversed(list_runs(root, name)):
        try:
            record = Record.load(run.record_path)
        except CheckpointError:
            continue
        same = record.config_hash == config_hash and record.status != "finished"
        has_some = any(run.checkpoints.glob("*.ckpt")) or any(run.checkpoints.glob(".*.old"))  # see lmlab.checkpoint.places
        if same and has_some and not run.is_claimed():
            return run
    return None


def is_run(path: Path) -> bool:
    """Whether a folder is one run's: it has a record, or at least the name that `create_run` gives."""
    return path.is_dir() and (STAMP.fullmatch(path.name) is not None or (path / "record.json").exists())


def _run_of_checkpoint(path: Path) -> RunDirectory:
    if not path.exists():
        raise _no_checkpoint(path.name, path.parent)
    parent = path.resolve().parent
    folder = parent.parent if parent.name == "checkpoints" else parent
    if not is_run(folder):
        raise CheckpointError(f"{path.name} does not lie in a run", where=str(path), remedy="name a file in the checkpoints/ of a run")
    return RunDirectory(folder)


def _no_checkpoint(wanted: str, folder: Path) -> CheckpointError:
    there = sorted(p.stem for p in folder.glob("*.ckpt")) if folder.is_dir() else []
    remedy = nearest(wanted.removesuffix(".ckpt"), there) if there else "the run has not saved anything yet"
    return CheckpointError(f"there is no {wanted} here", where=str(folder), remedy=remedy)


def _is_home(path: Path) -> bool:
    return any(STAMP.fullmatch(p.name) for p in _folders(path))


def _folders(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []


def _status(run: RunDirectory) -> str:
    try:
        return Record.load(run.record_path).status
    except CheckpointError:
        return "broken"


def _started(run: RunDirectory) -> tuple[str, str]:
    """Sorts by the second in the folder's name, then by the exact time in the record."""
    try:
        exact = Record.load(run.record_path).started
    except CheckpointError:
        exact = ""
    return run.path.name.split("-")[0], exact
