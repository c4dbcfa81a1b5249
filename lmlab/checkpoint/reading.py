"""Reading a checkpoint, whether it is one file or a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmlab.checkpoint.files import broken, load_safely, read_file, readable, verify_file
from lmlab.checkpoint.folder import CONTENT, read_folder, verify_folder
from lmlab.errors import DamagedError

log = logging.getLogger(__name__)


def verify(path: Path) -> None:
    """Reads a checkpoint through and compares every checksum in it; torch itself does not look at them.

    Args:
        path: The file or folder.

    Raises:
        DamagedError: If it is missing, truncated, or a bit in it has changed.
        CheckpointError: If it cannot be read, or was written by a newer lmlab.
    """
    with readable(path):
        (verify_folder if path.is_dir() else verify_file)(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verifies and loads a checkpoint onto the CPU, whole. No code in it is ever run.

    Args:
        path: The file or folder.

    Raises:
        CheckpointError: If it is missing, broken or cannot be read, or holds anything but tensors and plain values.
    """
    with readable(path):
        return read_folder(path) if path.is_dir() else read_file(path)


def outline(path: Path) -> dict[str, Any]:
    """What a checkpoint holds besides numbers: tensors of a file have a shape only, those of a folder are marks. Nothing is verified.

    Args:
        path: The file or folder.

    Raises:
        CheckpointError: If it is missing, broken or cannot be read.
    """
    with readable(path):
        is_folder = path.is_dir()
        content = load_safely(path / CONTENT if is_folder else path, map_location="meta", mmap=True)
    if is_folder:
        content = content.get("content") if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise broken(path, "it does not hold a checkpoint")
    return content


def newest_whole(paths: Iterable[Path]) -> Path | None:
    """The first whole checkpoint of a list, newest first, with a warning for every broken one before it.

    Args:
        paths: Candidates, newest first.

    Returns:
        None if all are damaged.

    Raises:
        CheckpointError: If one cannot be read now, or not by this lmlab: it may be whole, and nobody is to go on from an older one.
    """
    for path in paths:
        try:
            verify(path)
        except DamagedError as error:
            log.warning("%s\n  going back to the checkpoint before it", error)
        else:
            return path
    return None
