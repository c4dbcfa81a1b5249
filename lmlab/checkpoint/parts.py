"""Which part of which tensor lies in which shard of a folder: from the headers of the shards, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

OFFSETS = "DCP_SHARDING_INFO"  # where torch.distributed.checkpoint writes down, in each file, where a part begins


class Kind(NamedTuple):
    """What a whole tensor is.

    Args:
        shape: Of all parts together.
        dtype: Name in torch, such as `bfloat16`.
    """

    shape: tuple[int, ...]
    dtype: str


class Part(NamedTuple):
    """A part of a tensor.

    Args:
        file: The shard it lies in.
        begins: Where it begins in the whole, in each dimension.
        shape: Of the part.
    """

    file: str
    begins: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def place(self) -> tuple[slice, ...]:
        """Where in the whole it belongs."""
        return tuple(slice(begin, begin + size) for begin, size in zip(self.begins, self.shape, strict=True))

    def overlaps(self, other: Part) -> bool:
        """Whether both have the same number of the whole.

        Args:
            other: Of the same tensor.
        """
        return all(a.start < b.stop and b.start < a.stop for a, b in zip(self.place, other.place, strict=True))


def dtype_of(kind: Kind) -> torch.dtype:
    """The type of a tensor's numbers.

    Args:
        kind: From a file, so that its name may be anything.

    Raises:
        ValueError: If torch has no such type.
    """
    dtype = getattr(torch, kind.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'{kind.dtype}' is not a type of numbers")
    return dtype


def find_parts(folder: Path, files: Sequence[str], tensors: Mapping[str, Kind]) -> dict[str, list[Part]]:
    """All parts of all tensors. Only headers are read.

    Args:
        folder: The checkpoint.
        files: Its shards.
        tensors: What they must make up, each number once.

    Raises:
        ValueError: If they do not.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, list[Part]] = {key: [] for key in tensors}
    for name in files:
        try:
            with safe_open(folder / name, framework="pt") as file:
                offsets = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
                for key in file.keys():  # noqa: SIM118  it is not a dict
                    if key not in tensors:
                        raise ValueError(f"{name} holds a {key}, which is not of this checkpoint")
                    part = Part(name, _begins(offsets, key), tuple(file.get_slice(key).get_shape()))
                    dtype = file.get_slice(key)[:0].dtype if part.shape else file.get_tensor(key).dtype
                    _check_fit(key, part, dtype, tensors[key])
                    found[key].append(part)
        except SafetensorError as error:
            raise ValueError(f"{name}: {error}") from error
    for key, parts in found.items():
        _check_whole(key, parts, tensors[key])
    return found


def _begins(offsets: Any, key: str) -> tuple[int, ...]:
    begins = offsets[key]["saved_offsets"] if isinstance(offsets, dict) and key in offsets else None
    if not isinstance(begins, list) or not all(isinstance(begin, int) and begin >= 0 for begin in begins):
        raise ValueError(f"where {key} begins is not said")
    return tuple(begins)


def _check_fit(key: str, part: Part, dtype: torch.dtype, kind: Kind) -> None:
    fits = len(part.begins) == len(part.shape) == len(kind.shape) and dtype == dtype_of(kind)
    if not fits or any(begin + size > whole for begin, size, whole in zip(part.begins, part.shape, kind.shape, strict=True)):
        raise ValueError(f"{key} in {part.file} is of another kind")


def _check_whole(key: str, parts: list[Part], kind: Kind) -> None:
    full = [part for part in sorted(parts, key=lambda part: part.begins) if 0 not in part.shape]
    for number, part in enumerate(full if kind.shape else []):
        for other in full[number + 1 :]:
            if other.begins[0] >= part.place[0].stop:
                break
            if part.overlaps(other):
                raise ValueError(f"{key} is twice in it, in {part.file} and {other.file}")
    there, wanted = sum(torch.Size(part.shape).numel() for part in parts), torch.Size(kind.shape).numel()
    if there != wanted:
        raise ValueError(f"{there} of {wanted} numbers of {key} are there")
