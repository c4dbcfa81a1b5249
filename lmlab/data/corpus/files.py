"""Finding, opening and fingerprinting the local files of a corpus."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from lmlab.cache import default_cache_dir, write_atomic
from lmlab.config import to_plain
from lmlab.errors import DataError

_REMEMBER_FROM = 64 * 2**20  # bytes; smaller files are hashed faster than the note about them is found
_SETTLED_SECONDS = 2.0  # a file changed later than this could change again within one tick of its time stamp
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def find_files(paths: Sequence[str]) -> list[Path]:
    """Expands paths and globs to files.

    Args:
        paths: Files, or globs with `*`, `?`, `[...]` and `**`; `~` is the home folder.

    Returns:
        Existing files; those of one glob sorted by name, so that the order is the same everywhere.

    Raises:
        DataError: If a file is missing, is a folder, or a glob matches nothing.
    """
    found: list[Path] = []
    for path in map(os.path.expanduser, paths):
        if Path(path).is_file():
            found.append(Path(path))
        elif glob.has_magic(path):
            matches = sorted(match for match in glob.glob(path, recursive=True) if Path(match).is_file())  # noqa: PTH207
            if not matches:
                raise DataError(f"no file matches '{path}'", where=path, why=f"seen from {Path.cwd()}", remedy=_look_at(path))
            found += map(Path, matches)
        elif Path(path).is_dir():
            remedy = f"say which files in it: '{path.rstrip('/')}/*.txt' or '{path.rstrip('/')}/**/*.jsonl'"
            raise DataError(f"'{path}' is a folder", where=path, why="a corpus is made of files", remedy=remedy)
        else:
            raise DataError(f"there is no file '{path}'", where=path, why=f"seen from {Path.cwd()}", remedy=_look_at(path))
    return found


@contextlib.contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading and unpacks `.gz` on the way; errors while reading name the file.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read, or is UTF-16.
    """
    try:
        with cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
            if file.read(2) in _UTF16_MARKS:
                remedy = f"convert it: iconv -f UTF-16 -t UTF-8 {path.name}"
                raise DataError(f"{path.name} is UTF-16", where=f"{path}:1", why="texts are read as UTF-8", remedy=remedy)
            file.seek(0)
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path.name} cannot be unpacked", where=str(path), why=str(error), remedy="fetch the file again") from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read", where=str(path), why=str(error), remedy="check the file and its rights") from error


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Opens a file as UTF-8 text: line ends become a newline, a byte order mark is dropped, invalid bytes become lone surrogates.

    Args:
        path: The file, perhaps with `.gz`.

    Raises:
        DataError: If it cannot be read, or is UTF-16.
    """
    with open_binary(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape") as text:
        yield text


def most_characters(files: Sequence[Path]) -> float:
    """A number of characters that the text in files cannot exceed: a character has at least one byte. Infinity if one is packed.

    Args:
        files: Existing files of text, not of Parquet.
    """
    return math.inf if any(path.suffix == ".gz" for path in files) else sum(path.stat().st_size for path in files)


def files_fingerprint(files: Sequence[Path]) -> str:
    """A hash of the content of files, in their order.

    Args:
        files: Existing files.
    """
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        hash_of = _file_digest if _is_settled(stat.st_mtime_ns) else _file_digest.__wrapped__
        digest.update(bytes.fromhex(hash_of(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)))
    return digest.hexdigest()[:16]


def forget_file_hashes() -> None:
    """Makes this process hash files again that it has hashed before, to see whether they have changed."""
    _file_digest.cache_clear()


def _is_settled(changed_ns: int) -> bool:
    return time.time() - changed_ns / 1e9 > _SETTLED_SECONDS


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, changed_ns: int) -> str:
    if size < _REMEMBER_FROM:
        return _hash_file(path)
    note = default_cache_dir() / "hashes" / f"{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(note.read_text())
        if (known["size"], known["changed_ns"]) == (size, changed_ns):
            return known["sha256"]
    digest = _hash_file(path)
    if _is_settled(changed_ns):
        with contextlib.suppress(DataError):  # the note only saves time
            write_atomic(note, json.dumps({"path": path, "size": size, "changed_ns": changed_ns, "sha256": digest}).encode())
    return digest


def _hash_file(path: str) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(2**20))
    with Path(path).open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _look_at(path: str) -> str:
    parent = Path(glob.escape(path) if not glob.has_magic(path) else path).parent
    while glob.has_magic(str(parent)):
        parent = parent.parent
    if not parent.is_dir():
        return f"the folder '{parent}' does not exist either: check the path"
    names = sorted(p.name for p in parent.iterdir())[:5]
    return f"'{parent}' holds " + (", ".join(names) + (", ..." if len(names) == 5 else "") if names else "nothing") + ": check the path"


def path_tuple(paths: str | Sequence[str]) -> tuple[str, ...]:
    """Lets one path stand for a list of one, as people write it in YAML.

    Args:
        paths: A path or several.
    """
    return (str(paths),) if isinstance(paths, (str, os.PathLike)) else tuple(str(path) for path in paths)


def describe_files(config: object, paths: Sequence[str]) -> dict[str, Any]:
    """The entry of a file corpus in a run record.

    Args:
        config: The corpus.
        paths: Its files or globs.

    Returns:
        Kind, settings, number of files and bytes on disk.
    """
    files = find_files(paths)
    return {"kind": type(config).__name__, **to_plain(config), "num_files": len(files), "num_bytes": sum(f.stat().st_size for f in files)}
