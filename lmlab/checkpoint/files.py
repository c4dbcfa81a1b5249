"""Writing and reading checkpoint files."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lmlab.errors import CheckpointError

log = logging.getLogger(__name__)


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that at every moment `path` is either absent, the old file, or the new one, whole.

    The temporary file lies in the target's own folder: a rename is atomic only within a file system.

    Args:
        content: What `torch.save` can write and `torch.load(weights_only=True)` can read.
        path: Target.

    Raises:
        CheckpointError: If the disk is full or the folder cannot be written to; nothing half-written is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        # torch's writer notices by a file that did not grow, and says nothing of the disk
        full = (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "unexpected pos" in str(error)
        raise CheckpointError(
            f"the checkpoint {path.name} could not be written",
            where=str(path),
            why="the disk is full" if full else str(error),
            remedy="free some space and resume: earlier checkpoints are untouched" if full else "check the folder's permissions",
        ) from error


def verify(path: Path) -> None:
    """Reads a checkpoint through and compares every checksum in it; torch itself does not look at them.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is missing, truncated, or a byte in it has changed.
    """
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path.name}", where=str(path), remedy="`lmlab runs` lists the runs and what they hold"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise _broken(path, "it is not a whole archive: truncated, or another kind of file") from error
    if broken is not None:
        raise _broken(path, f"the checksum of '{broken}' in it is wrong")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verifies and loads a checkpoint onto the CPU. No code in the file is ever run.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is missing or broken, or holds anything but tensors and plain values.
    """
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise CheckpointError(
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set",
            why="it would let a checkpoint run code on this machine",
            remedy="unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
        )
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path.name} cannot be loaded safely", where=str(path), why=why, remedy="load only checkpoints that lmlab wrote"
        ) from error
    if not isinstance(content, dict):
        raise _broken(path, "it does not hold a checkpoint")
    return content


def newest_whole(paths: Iterable[Path]) -> Path | None:
    """The first whole checkpoint of a list, newest first, with a warning for every broken one before it.

    Args:
        paths: Candidates, newest first.

    Returns:
        None if none is whole.
    """
    for path in paths:
        try:
            verify(path)
        except CheckpointError as error:
            log.warning("%s\n  going back to the checkpoint before it", error)
        else:
            return path
    return None


def sweep(folder: Path) -> None:
    """Removes what killed writers left in a checkpoint folder; call it only when no writer is at work.

    Args:
        folder: Where checkpoints are.
    """
    for stray in folder.glob(".*.tmp"):
        stray.unlink(missing_ok=True)


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path.name} is broken", where=str(path), why=why, remedy="use an earlier one: --checkpoint step=N"
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
