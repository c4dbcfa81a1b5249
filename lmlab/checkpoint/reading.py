"""Reading a checkpoint, whether it is one file or a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lmlab.checkpoint.files import read_file, verify_file
from lmlab.checkpoint.folder import CONTENT, read_folder, verify_folder
from lmlab.errors import CheckpointError

log = logging.getLogger(__name__)


def verify(path: Path) -> None:
    """Reads a checkpoint through and compares every checksum in it; torch itself does not look at them.

    Args:
        path: The file or folder.

    Raises:
        CheckpointError: If it is missing, truncated, or a byte in it has changed.
    """
    (verify_folder if path.is_dir() else verify_file)(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verifies and loads a checkpoint onto the CPU, whole. No code in it is ever run.

    Args:
        path: The file or folder.

    Raises:
        CheckpointError: If it is missing or broken, or holds anything but tensors and plain values.
    """
    return read_folder(path) if path.is_dir() else read_file(path)


def outline(path: Path) -> dict[str, Any]:
    """What a checkpoint holds besides numbers: tensors of a file have a shape only, those of a folder are marks. Nothing is verified.

    Args:
        path: The file or folder.

    Raises:
        OSError, RuntimeError, UnpicklingError, KeyError: If it cannot be read.
    """
    file = path / CONTENT if path.is_dir() else path
    content = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    return content["content"] if path.is_dir() else content


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
