"""Files that outlive a run: where they lie, how they are written whole or not at all, and who may write them."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import filelock

from lmlab.errors import ConfigError, DataError

log = logging.getLogger(__name__)

CACHE_VARIABLE = "LMLAB_CACHE"
SECONDS_BEFORE_NOTICE = 5.0  # a lock that is free again sooner is not worth a line in the log


def default_cache_dir() -> Path:
    """Where tokenizers and stores are kept unless a caller says otherwise.

    Returns:
        `$LMLAB_CACHE`, else `~/.cache/lmlab`. Nothing is created.
    """
    chosen = os.environ.get(CACHE_VARIABLE, "").strip()
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "lmlab"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that appears at `path` only when the block has ended well.

    The bytes go to a temporary file in the same folder (a rename across file systems is not atomic), are forced to the
    disk, and take the place of `path` in one step. A reader sees the old file or the new one, never a part of it.

    Args:
        path: The file to make or replace; its folder is made if need be.

    Yields:
        A binary file, open for writing and reading.

    Raises:
        DataError: If the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"cannot write {path.name}", where=str(path), why=str(error), remedy=f"free the disk, or set {CACHE_VARIABLE} to another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone already, or its folder is no folder; the error to report is another one
            temporary.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a whole file, so that a crash leaves the old content or the new one.

    Args:
        path: The file to make or replace.
        data: Its content.

    Raises:
        DataError: If it cannot be written.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def locked(path: Path, timeout_seconds: float = -1.0) -> Iterator[None]:
    """Lets one process at a time work on `path`; the system frees the lock when its holder dies.

    The lock is a file `<path>.lock` beside it, which stays: removing it would let two processes hold two locks.

    Args:
        path: The file or folder to be made; it need not exist yet.
        timeout_seconds: How long to wait for the holder; negative waits for ever.

    Raises:
        ConfigError: If the lock cannot be made, or is still held when the time is over.
    """
    path = Path(path)
    lock_path = path.parent / f"{path.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(lock_path)
        _acquire(lock, timeout_seconds)
    except filelock.Timeout as error:
        raise ConfigError(
            f"another process still works on {path.name}",
            where=str(lock_path),
            why=f"the lock was not free after {timeout_seconds:g} seconds",
            remedy="wait for that process, or end it",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot lock {path.name}", where=str(lock_path), why=str(error), remedy=f"set {CACHE_VARIABLE} to a folder you may write"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: filelock.BaseFileLock, timeout_seconds: float) -> None:
    first = SECONDS_BEFORE_NOTICE if timeout_seconds < 0 else min(SECONDS_BEFORE_NOTICE, timeout_seconds)
    try:
        lock.acquire(timeout=first)
    except filelock.Timeout:
        if 0 <= timeout_seconds <= first:
            raise
        log.info("waiting for another process that holds %s", lock.lock_file)
        lock.acquire(timeout=timeout_seconds if timeout_seconds < 0 else timeout_seconds - first)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # folders cannot be opened elsewhere, and need not be
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
