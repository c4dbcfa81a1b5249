"""Checkpoints of which each rank writes and reads its own parts, by torch.distributed.checkpoint, as safetensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lmlab.checkpoint.files import broken, not_read
from lmlab.checkpoint.folder import FileSum, Rest, check_sums, read_rest, sum_of, write_rest
from lmlab.checkpoint.optimizer_names import group_names, names_by_number
from lmlab.checkpoint.parts import Kind, dtype_of, find_parts
from lmlab.checkpoint.places import not_written, put_in_place, remove, sync, temporary_for
from lmlab.checkpoint.tree import MARK, cut, join
from lmlab.errors import CheckpointError, LabError
from lmlab.nn.sharded import like, own_part

FULL = "No space left on device"
T = TypeVar("T")


def write_shards(content: dict[str, Any], path: Path) -> None:
    """Writes a folder; at every moment `path` is absent, the old one, or the new one, whole. Every rank must call it.

    Distributed tensors go into a file of each rank, copies of a part into one of them only; the rest is rank 0's.

    Args:
        content: What the ordinary file would hold, with distributed tensors left as they are.
        path: On a file system that all ranks see.

    Raises:
        CheckpointError: On all ranks, if one of them could not write.
    """
    rank = distributed.get_rank()
    temporary: Path = _told_by_first(temporary_for(path))
    rest, tensors = cut(content, lambda value: isinstance(value, DTensor))
    twins: dict[str, str] = _told_by_first(_twins(tensors))
    rest = join(rest, {key: {MARK: twins.get(key, key)} for key in tensors})
    parts = {key: like(tensor, own_part(tensor).contiguous()) for key, tensor in tensors.items() if key not in twins}
    kinds = {key: Kind(tuple(part.shape), str(part.dtype).removeprefix("torch.")) for key, part in parts.items()}
    mine = temporary / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"  # so torch names it
    agree = partial(_agree, otherwise=partial(_not_written, path))
    try:
        agree(lambda: _make_anew(temporary) if rank == 0 else None)
        agree(lambda: save(parts, storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True)))
        own: dict[str, FileSum] = agree(lambda: {mine.name: _sealed(mine)} if mine.exists() else {})
        files: list[dict[str, FileSum]] = [{} for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(files, own)
        everything = Rest(rest, {name: value for of_rank in files for name, value in of_rank.items()}, kinds)
        agree(lambda: _finish(everything, temporary, path) if rank == 0 else None)
    except CheckpointError:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_shards(path: Path, module: LightningModule, optimizers: list[Optimizer]) -> dict[str, Any]:
    """Reads what the ordinary file would hold, each tensor distributed as its parameter is here; none is ever whole.

    Every rank must call it; how many wrote the folder, and how they shared tensors, does not matter.

    Args:
        path: The folder.
        module: Sharded already. Its parameters are not changed.
        optimizers: Whose state is wanted; that of others is left out.

    Raises:
        CheckpointError: On all ranks, if a file is broken, or tensors are not those of the module.
    """
    rank, size = distributed.get_rank(), distributed.get_world_size()
    agree = partial(_agree, otherwise=partial(_not_together, path))
    rest: Rest = agree(lambda: read_rest(path))
    agree(lambda: check_sums(path, rest, rank, size))
    agree(lambda: find_parts(path, list(rest.files), rest.tensors) if rank == 0 else None)
    targets: dict[str, Tensor | None] = agree(lambda: dict(_targets(rest, path, module, optimizers)))
    wanted = {key: tensor for key, tensor in targets.items() if tensor is not None}
    agree(lambda: load(wanted, storage_reader=HuggingFaceStorageReader(str(path))))
    content = {key: value for key, value in rest.content.items() if key != "optimizer_states" or optimizers}
    return agree(lambda: join(content, targets))


def _targets(rest: Rest, path: Path, module: LightningModule, optimizers: list[Optimizer]) -> Iterator[tuple[str, Tensor | None]]:
    """Room for this rank's part of each tensor, by key; None for those that the model has no use for."""
    parameters = module.state_dict()
    owners = _owners(rest, module, optimizers)
    for key, kind in rest.tensors.items():
        kept, _, name = key.partition("/")
        if kept == "optimizer_states" and not optimizers:
            continue
        parameter = parameters.get(owners.get(key, name.removeprefix("averages/")))
        if parameter is None:
            if kept == "state_dict" and not module.strict_loading:
                yield key, None
                continue
            raise _unfit(path, f"there is no '{name}' in the model")
        if tuple(parameter.shape) != kind.shape:
            raise _unfit(path, f"{key} has shape {kind.shape}, and {tuple(parameter.shape)} in the model")
        yield key, torch.empty_like(parameter, dtype=dtype_of(kind))


def _owners(rest: Rest, module: LightningModule, optimizers: list[Optimizer]) -> dict[str, str]:
    """The parameter to which each tensor of an optimizer's state belongs, by key."""
    owners = {}
    for index, optimizer in enumerate(optimizers):
        names = names_by_number(rest.content["optimizer_states"][index], group_names(module, optimizer))
        for number, name in names.items():
            start = f"optimizer_states/{index}/state/{number}/"
            owners |= {key: name for key in rest.tensors if key.startswith(start)}
    return owners


def _twins(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tied weights are one tensor with several names, and are written once: the first name of each further one."""
    first: dict[tuple[int, ...], str] = {}
    known = {key: first.setdefault((own_part(t).data_ptr(), *own_part(t).shape, *own_part(t).stride()), key) for key, t in tensors.items()}
    return {key: name for key, name in known.items() if key != name}


def _make_anew(folder: Path) -> None:
    remove(folder)
    folder.mkdir(parents=True)


def _sealed(path: Path) -> FileSum:
    """On the disk, and what it must be from now on."""
    sync(path)
    return sum_of(path)


def _finish(rest: Rest, folder: Path, path: Path) -> None:
    missing = [name for name in rest.files if not (folder / name).exists()]
    if missing:
        raise OSError(f"rank 0 does not see {missing[0]}, which another rank wrote: all hosts must share the run's folder")
    write_rest(rest, folder)
    sync(folder)
    put_in_place(folder, path)


def _unfit(path: Path, why: str) -> CheckpointError:
    remedy = "go on with the settings of the run that wrote it"
    return CheckpointError(f"the tensors in {path.name} are not those of the model", where=str(path), why=why, remedy=remedy)


def _not_written(path: Path, error: BaseException) -> CheckpointError:
    reason = _reason(error)
    return not_written(path, reason, is_full=FULL in reason)


def _not_together(path: Path, error: BaseException) -> CheckpointError:
    cause = _first(error)
    return not_read(path, cause) if isinstance(cause, OSError) else broken(path, f"its parts do not fit together: {_reason(cause)}")


def _first(error: BaseException) -> BaseException:
    """What went wrong first; torch wraps what went wrong on each rank."""
    causes = list(error.failures.values()) if isinstance(error, CheckpointException) else []
    return causes[0][0] if causes else error


def _reason(error: BaseException) -> str:
    return str(_first(error)).strip() or type(error).__name__


def _told_by_first(value: T) -> T:
    told = [value]
    distributed.broadcast_object_list(told, src=0)
    return told[0]


def _agree(work: Callable[[], T], otherwise: Callable[[BaseException], CheckpointError]) -> T:
    """Does something on each rank; if one fails, all do, and none waits for another."""
    result, failure = None, None
    try:
        result = work()
    except LabError as error:
        failure = error
    except (CheckpointException, Exception) as error:  # the former is none of the latter
        failure = otherwise(error)
    failures: list[LabError | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(failures, failure)
    for error in (failure, *failures):
        if error is not None:
            raise error
    return cast("T", result)
