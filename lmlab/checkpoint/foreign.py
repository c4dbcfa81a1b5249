"""Folders that other programs write: torch's distributed checkpoints and DeepSpeed's. Both are pickles, which can run code."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmlab.checkpoint.files import write_checkpoint
from lmlab.checkpoint.folder import CONTENT
from lmlab.checkpoint.places import not_written, put_in_place, remove, sync, temporary_for
from lmlab.errors import CheckpointError

Foreign = Literal["torch", "deepspeed"]
MODEL_KEYS = ("state_dict", "model")  # where Lightning's two strategies of sharding keep weights
WRAPPERS = ("_forward_module.", "module.")  # that Lightning and DeepSpeed put around a model


def foreign_kind(folder: Path) -> Foreign | None:
    """Who wrote a folder, by the names of its files: none is opened.

    Args:
        folder: Any.

    Returns:
        None if it looks like neither, or is lmlab's own.
    """
    if (folder / CONTENT).is_file():
        return None
    if (folder / ".metadata").is_file():
        return "torch"
    return "deepspeed" if any(folder.glob("*_optim_states.pt")) or any(folder.glob("*/*_optim_states.pt")) else None


def foreign_weights(folder: Path, kind: Foreign) -> dict[str, Tensor]:
    """Puts the weights of a folder together, on the CPU. Code in the folder is run if there is some: ask before you call this.

    Args:
        folder: The checkpoint.
        kind: Who wrote it.

    Returns:
        Weights by name; float32 master copies, where DeepSpeed has them.

    Raises:
        CheckpointError: If it cannot be read, or holds no weights.
    """
    try:
        weights = _of_torch(folder) if kind == "torch" else _of_deepspeed(folder)
    except Exception as error:  # a pickle may raise anything
        why = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise CheckpointError(f"the folder {folder.name} cannot be put together", where=str(folder), why=why) from error
    if not weights:
        raise CheckpointError(f"there are no weights in {folder.name}", where=str(folder), why="it holds no tensor by name")
    return weights


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Writes weights without a description of their network.

    Args:
        weights: By name.
        path: Ends in `.safetensors`; any other is a file of `torch.save` with the weights under `state_dict`.

    Raises:
        CheckpointError: If it cannot be written.
    """
    if path.suffix != ".safetensors":
        write_checkpoint({"state_dict": weights}, path)
        return
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = temporary_for(path)
    try:
        save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}, temporary)
        sync(temporary)
        put_in_place(temporary, path)
    except (OSError, SafetensorError) as error:
        remove(temporary)
        raise not_written(path, str(error), is_full="No space left" in str(error)) from error


def _of_torch(folder: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    reader = FileSystemReader(folder)
    keys = list(reader.read_metadata().state_dict_metadata)
    top = next((key for key in MODEL_KEYS if any(name.startswith(f"{key}.") for name in keys)), None)
    content: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys=None if top is None else {top})
    _load_state_dict(content, storage_reader=reader, planner=planner, no_dist=True)
    return dict(_tensors(content if top is None else content[top]))


def _of_deepspeed(folder: Path) -> dict[str, Tensor]:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it has found no other
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    tag = None if (folder / "latest").is_file() else folder.name
    with redirect_stdout(io.StringIO()):  # it prints what it does
        found: Any = get_fp32_state_dict_from_zero_checkpoint(str(folder if tag is None else folder.parent), tag)
    return {_bare(name): tensor.detach() for name, tensor in found.items()}


def _bare(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _tensors(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(inner, f"{place}.{key}" if place else str(key))
