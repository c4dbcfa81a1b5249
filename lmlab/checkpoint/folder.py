"""Checkpoints that are folders: tensors in safetensors files, one of each rank, and the rest in one ordinary file.

    step=0000010.ckpt/
        content.pt                                      all but big tensors; sizes and checksums of the files below
        shard-00001-model-00001-of-00001.safetensors    parts of tensors, and where in the whole each lies
        shard-00002-model-00001-of-00001.safetensors    ...

A tensor's key is its way in the ordinary checkpoint: `state_dict/NAME`, `optimizer_states/0/state/NUMBER/exp_avg`,
`lmlab_average/averages/NAME`. Nothing here needs ranks, or knows who wrote the folder; no file of it is ever unpickled freely.
"""

from __future__ import annotations

import re
import zlib
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmlab.checkpoint.files import broken, read_file, write_checkpoint
from lmlab.checkpoint.parts import Kind, dtype_of, find_parts
from lmlab.checkpoint.tree import join
from lmlab.errors import CheckpointError, DamagedError

CONTENT = "content.pt"
SHARD_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,200}\.safetensors", re.ASCII)
FORMAT = 1
CHUNK = 1 << 22


class FileSum(NamedTuple):
    """What a file must be.

    Args:
        size: Bytes.
        crc32: As in zip archives.
    """

    size: int
    crc32: int


class Rest(NamedTuple):
    """A folder without its big tensors.

    Args:
        content: With marks where tensors belong.
        files: Shards by name.
        tensors: By key.
    """

    content: dict[str, Any]
    files: dict[str, FileSum]
    tensors: dict[str, Kind]


def sum_of(path: Path) -> FileSum:
    """Reads a file through.

    Args:
        path: A shard.
    """
    size, crc = 0, 0
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            size, crc = size + len(data), zlib.crc32(data, crc)
    return FileSum(size, crc)


def write_rest(rest: Rest, folder: Path) -> None:
    """Writes the ordinary file of a folder whose shards are there already.

    Args:
        rest: What belongs into it.
        folder: Is not seen by others yet.
    """
    files, tensors = ({name: tuple(value) for name, value in given.items()} for given in (rest.files, rest.tensors))
    write_checkpoint({"lmlab_folder": FORMAT, "files": files, "tensors": tensors, "content": rest.content}, folder / CONTENT)


def read_rest(folder: Path) -> Rest:
    """Reads the ordinary file, and looks whether the shards it names are there; they are not read.

    Args:
        folder: The checkpoint.

    Raises:
        DamagedError: If it is not a folder that lmlab wrote, or a file is missing, strange or of another size.
        CheckpointError: If it was written by a newer lmlab.
        OSError: If it cannot be read now.
    """
    if not (folder / CONTENT).is_file():
        why = f"it has no {CONTENT}"
        remedy = "lmlab checkpoint consolidate takes weights out of folders of torch's and DeepSpeed's; else name a checkpoint of a run"
        raise DamagedError(f"the folder {folder.name} is no checkpoint of lmlab's", where=str(folder), why=why, remedy=remedy)
    written = read_file(folder / CONTENT)
    number = written.get("lmlab_folder")
    if isinstance(number, int) and number > FORMAT:
        why = f"its format is {number}, this lmlab reads up to {FORMAT}"
        raise CheckpointError(f"{folder.name} was written by a newer lmlab", where=str(folder), why=why, remedy="update lmlab")
    try:
        rest = Rest(
            dict(written["content"]),
            {str(name): FileSum(*map(index, value)) for name, value in written["files"].items()},
            {str(key): Kind(tuple(map(index, shape)), str(dtype)) for key, (shape, dtype) in written["tensors"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise broken(folder, f"{CONTENT} does not say which shards there are") from error
    if number != FORMAT:
        raise broken(folder, f"{CONTENT} is not of a folder")
    for name, expected in rest.files.items():
        if not SHARD_NAME.fullmatch(name):
            raise broken(folder, f"'{name}' is not the name of a shard")
        if not (folder / name).is_file():
            raise broken(folder, f"{name} is missing")
        if (folder / name).stat().st_size != expected.size:
            raise broken(folder, f"{name} has {(folder / name).stat().st_size} bytes instead of {expected.size}")
    strange = sorted({path.name for path in folder.glob("*.safetensors")} - rest.files.keys())
    if strange:
        raise broken(folder, f"{strange[0]} does not belong to it")
    return rest


def check_sums(folder: Path, rest: Rest, part: int = 0, parts: int = 1) -> None:
    """Compares the checksum of every shard.

    Args:
        folder: The checkpoint.
        rest: Of the same.
        part: Only every `parts`-th shard from this one on: ranks share the work.
        parts: How many ranks share it.

    Raises:
        DamagedError: If a byte has changed.
        OSError: If one cannot be read now.
    """
    for name in sorted(rest.files)[part::parts]:
        if sum_of(folder / name) != rest.files[name]:
            raise broken(folder, f"the checksum of {name} is wrong")


def verify_folder(folder: Path) -> None:
    """Reads a folder through.

    Args:
        folder: The checkpoint.

    Raises:
        DamagedError: If a file is missing, of another size, strange, or a byte in one has changed.
        CheckpointError: If it was written by a newer lmlab.
        OSError: If it cannot be read now.
    """
    check_sums(folder, read_rest(folder))


def read_folder(folder: Path) -> dict[str, Any]:
    """Puts all of a checkpoint together, as the single file would hold it; it must fit this host.

    Args:
        folder: The checkpoint.

    Raises:
        DamagedError: If it is broken.
        CheckpointError: If it was written by a newer lmlab, or does not fit this host.
        OSError: If it cannot be read now.
    """
    rest = read_rest(folder)
    check_sums(folder, rest)
    try:
        return join(rest.content, _whole_tensors(folder, rest))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise broken(folder, f"its parts do not fit together: {error}") from error


def _whole_tensors(folder: Path, rest: Rest) -> dict[str, Tensor]:
    from safetensors import safe_open

    parts = find_parts(folder, list(rest.files), rest.tensors)
    try:
        whole = {key: torch.empty(kind.shape, dtype=dtype_of(kind)) for key, kind in rest.tensors.items()}
    except RuntimeError as error:
        what, remedy = f"{folder.name} does not fit the memory of this host", "read it on a larger one"
        raise CheckpointError(what, where=str(folder), why=str(error).splitlines()[0], remedy=remedy) from error
    for name in rest.files:
        with safe_open(folder / name, framework="pt") as file:
            for key, part in ((key, part) for key, of_key in parts.items() for part in of_key if part.file == name):
                whole[key][part.place].copy_(file.get_tensor(key))
    return whole
