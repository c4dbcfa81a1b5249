"""Writing and reading checkpoints that are one file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lmlab.checkpoint.places import FULL, not_written, put_in_place, temporary_for
from lmlab.checkpoint.seal import Summing, seal, what_is_damaged
from lmlab.errors import CheckpointError, DamagedError


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that at every moment `path` is either absent, the old file, or the new one, whole.

    Args:
        content: What `torch.save` can write and `torch.load(weights_only=True)` can read.
        path: Target.

    Raises:
        CheckpointError: If the disk is full or the folder cannot be written to; nothing half-written is left.
    """
    temporary = temporary_for(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            summing = Summing(file)
            torch.save(content, summing)  # type: ignore[arg-type]  # it asks for no more of a file
            seal(summing)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        # torch's writer notices by a file that did not grow, and says nothing of the disk
        full = (isinstance(error, OSError) and error.errno in FULL) or "unexpected pos" in str(error)
        raise not_written(path, str(error), full) from error


def verify_file(path: Path) -> None:
    """Reads a checkpoint through and compares its checksum; torch itself does not look at any.

    Args:
        path: The file.

    Raises:
        DamagedError: If it is missing, truncated, or a bit in it has changed.
        OSError: If it cannot be read now.
    """
    if not path.is_file():
        raise DamagedError(f"there is no checkpoint {path.name}", where=str(path), remedy="`lmlab runs` lists the runs and what they hold")
    with path.open("rb") as file:
        damage = what_is_damaged(file)
    if damage is not None:
        raise broken(path, damage)


def read_file(path: Path) -> dict[str, Any]:
    """Verifies and loads a checkpoint onto the CPU. No code in the file is ever run.

    Args:
        path: The file.

    Raises:
        DamagedError: If it is missing or broken.
        CheckpointError: If it holds anything but tensors and plain values.
        OSError: If it cannot be read now.
    """
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise CheckpointError(
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set",
            why="it would let a checkpoint run code on this machine",
            remedy="unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
        )
    verify_file(path)
    content = load_safely(path, map_location="cpu")
    if not isinstance(content, dict):
        raise broken(path, "it does not hold a checkpoint")
    return content


def load_safely(path: Path, *, map_location: str, mmap: bool = False) -> Any:
    """Loads a file of which nothing is known. No code in it is ever run.

    Args:
        path: The file.
        map_location: As for `torch.load`.
        mmap: As for `torch.load`.

    Raises:
        CheckpointError: If it holds anything but tensors and plain values.
        OSError: If it cannot be read now.
    """
    try:
        return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of a file that others made: unpickling raises whatever its bytes lead to
        reasons = [line.strip() for line in str(error).splitlines() if line.strip() and "`weights_only`" not in line]  # how to run its code
        why = reasons[0] if reasons else type(error).__name__
        raise CheckpointError(
            f"{path.name} cannot be loaded safely", where=str(path), why=why, remedy="load only checkpoints that lmlab wrote"
        ) from error


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Says which checkpoint it was that could not be read.

    Args:
        path: Its name.

    Raises:
        CheckpointError: Then.
    """
    try:
        yield
    except OSError as error:
        raise not_read(path, error) from error


def not_read(path: Path, error: OSError) -> CheckpointError:
    """What to raise when a checkpoint cannot be read now; it may be whole, unless it has vanished.

    Args:
        path: Its name.
        error: What the system says.
    """
    if isinstance(error, FileNotFoundError):
        return broken(path, f"{Path(error.filename or path).name} is gone")
    remedy = "look whether its file system is there, and try again"
    return CheckpointError(f"the checkpoint {path.name} cannot be read", where=str(path), why=str(error), remedy=remedy)


def broken(path: Path, why: str) -> DamagedError:
    """What to raise when a checkpoint is not whole.

    Args:
        path: Its name.
        why: What is wrong in it.
    """
    return DamagedError(f"the checkpoint {path.name} is broken", where=str(path), why=why, remedy="use an earlier one: --checkpoint step=N")
