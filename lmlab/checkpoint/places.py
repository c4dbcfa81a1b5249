"""Files and folders in a checkpoint folder: put in place, given a second name, removed, swept; never seen half done."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from lmlab.errors import CheckpointError

FULL = (errno.ENOSPC, errno.EDQUOT)


def not_written(path: Path, why: str, is_full: bool) -> CheckpointError:
    """What to raise when a checkpoint could not be written.

    Args:
        path: Its name.
        why: What the system says.
        is_full: Whether the disk is full.
    """
    return CheckpointError(
        f"the checkpoint {path.name} could not be written",
        where=str(path),
        why="the disk is full" if is_full else why,
        remedy="free some space and resume: earlier checkpoints are untouched" if is_full else "check the folder's permissions",
    )


def temporary_for(path: Path) -> Path:
    """Where to prepare what will be at `path`: in the same folder, because a rename is atomic only within a file system.

    Args:
        path: A checkpoint.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def put_in_place(source: Path, target: Path) -> None:
    """Renames a file or a folder; what was at the target is gone afterwards.

    A file takes the place of a file at once. No system call does that with folders that hold something: there the old one is put aside for
    a moment, and `sweep` brings it back if the writer dies in this moment.

    Args:
        source: In the same folder as the target.
        target: May exist.
    """
    if os.path.lexists(target) and (source.is_dir() or target.is_dir()):  # also a link to a disk that is not there
        aside = target.with_name(f".{target.name}.{os.getpid()}.old")
        remove(aside)
        target.rename(aside)
        source.rename(target)
        remove(aside)
    else:
        source.replace(target)
    sync(target.parent)


def link(source: Path, target: Path) -> None:
    """Gives a checkpoint a second name, without a second copy of its bytes where the file system can.

    Args:
        source: A file, or a folder of files.
        target: In the same folder; may exist.

    Raises:
        CheckpointError: If it cannot; the target is what it was.
    """
    temporary = temporary_for(target)
    try:
        remove(temporary)
        if source.is_dir():
            temporary.mkdir()
            for file in source.iterdir():
                _link_file(file, temporary / file.name)
            sync(temporary)
        else:
            _link_file(source, temporary)
        put_in_place(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            remove(temporary)
        raise not_written(target, str(error), is_full=error.errno in FULL) from error


def remove(path: Path) -> None:
    """Deletes a checkpoint; a folder is hidden first, so that a killed process leaves no part of one under its name.

    Args:
        path: A file or a folder; it need not exist.
    """
    if path.is_symlink() or not path.is_dir():  # what a link leads to is not this program's
        path.unlink(missing_ok=True)
        return
    hidden = path if path.name.startswith(".") else temporary_for(path)
    if hidden != path:
        remove(hidden)
        path.rename(hidden)
    shutil.rmtree(hidden)


def set_aside(path: Path) -> None:
    """Renames a checkpoint that must not be used any more.

    Args:
        path: A file or a folder.
    """
    put_in_place(path, path.with_name(f"{path.name}.broken"))


def sweep(folder: Path) -> None:
    """Removes what killed writers left in a checkpoint folder; call it only when no writer is at work.

    Args:
        folder: Where checkpoints are.
    """
    for aside in folder.glob(".*.old"):
        place = folder / aside.name[1:].rsplit(".", 2)[0]
        if os.path.lexists(place):
            remove(aside)
        else:
            aside.rename(place)
    for stray in folder.glob(".*.tmp"):
        remove(stray)


def sync(path: Path) -> None:
    """Has the system write down what a file holds, or which files a folder has.

    Args:
        path: A file, or a folder of files that are synced themselves.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_file(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)
