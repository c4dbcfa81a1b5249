"""A folder of parts: put together as it was taken apart, and every fault in it found. Written here by hand, without ranks."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lmlab.checkpoint import folder, newest_whole, outline, read_checkpoint, verify, write_checkpoint
from lmlab.checkpoint.tree import cut, join
from lmlab.errors import CheckpointError, DamagedError

WHOLE = torch.arange(15.0).reshape(5, 3)
HALF = torch.arange(4, dtype=torch.bfloat16)
MOMENT = "optimizer_states/0/state/0/m"


def shard(path: Path, parts: dict[str, tuple[list[int], Tensor]]) -> None:
    offsets = {key: {"saved_offsets": begins} for key, (begins, _) in parts.items()}
    save_file({key: part.contiguous() for key, (_, part) in parts.items()}, path, metadata={"DCP_SHARDING_INFO": json.dumps(offsets)})


def a_folder(path: Path, **changed: Any) -> Path:
    """Two shards; one tensor is cut by rows and by columns, and one lies whole in the second."""
    path.mkdir(parents=True)
    shard(path / "shard-1.safetensors", {"state_dict/w": ([0, 0], WHOLE[:3])})
    second = {"state_dict/w": ([3, 0], WHOLE[3:]), "optimizer_states/0/state/0/m": ([0], HALF)}
    shard(path / "shard-2.safetensors", changed.pop("second", second))
    files = {p.name: (p.stat().st_size, zlib.crc32(p.read_bytes())) for p in path.iterdir()}
    mark: dict[str, Any] = {"lmlab_shard": "state_dict/w"}
    state = {0: {"step": torch.tensor(3.0), "m": {"lmlab_shard": "optimizer_states/0/state/0/m"}}}
    content = {"state_dict": {"w": mark, "tied": mark}, "optimizer_states": [{"state": state}], "global_step": 3}
    tensors = {"state_dict/w": ((5, 3), "float32"), "optimizer_states/0/state/0/m": ((4,), "bfloat16")}
    write_checkpoint({"lmlab_folder": 1, "files": files, "tensors": tensors, "content": content, **changed}, path / "content.pt")
    return path


def test_parts_are_put_together(tmp_path: Path) -> None:
    content = read_checkpoint(a_folder(tmp_path / "step=0000003.ckpt"))
    assert torch.equal(content["state_dict"]["w"], WHOLE) and content["state_dict"]["tied"] is content["state_dict"]["w"]
    moment = content["optimizer_states"][0]["state"][0]["m"]
    assert torch.equal(moment, HALF) and moment.dtype == torch.bfloat16
    assert content["global_step"] == 3 and content["optimizer_states"][0]["state"][0]["step"] == 3


def test_an_outline_reads_no_shard(tmp_path: Path) -> None:
    path = a_folder(tmp_path / "step=0000003.ckpt")
    (path / "shard-1.safetensors").unlink()
    assert outline(path)["global_step"] == 3


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.find(torch.tensor(3.0).numpy().tobytes())  # the optimizer's step in one file, a weight in the other
    data[at + 2] ^= 1
    path.write_bytes(data)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped": (lambda path: flipped(path / "shard-1.safetensors"), "checksum of shard-1.safetensors"),
    "flipped content": (lambda path: flipped(path / "content.pt"), "content.pt"),
    "missing": (lambda path: (path / "shard-2.safetensors").unlink(), "shard-2.safetensors is missing"),
    "truncated": (lambda path: os.truncate(path / "shard-2.safetensors", 40), "40 bytes instead of"),
    "strange": (lambda path: (path / "shard-9.safetensors").write_bytes(b"x"), "shard-9.safetensors does not belong"),
    "no content": (lambda path: (path / "content.pt").unlink(), "no content.pt"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_named(tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = a_folder(tmp_path / "step=0000002.ckpt"), a_folder(tmp_path / "step=0000003.ckpt")
    spoil, said = FAULTS[fault]
    spoil(bad)
    for read in (verify, read_checkpoint):
        with pytest.raises(CheckpointError, match=said):
            read(bad)
    assert newest_whole([bad, good]) == good and "step=0000003.ckpt" in caplog.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"second": {"state_dict/w": ([4, 0], WHOLE[3:])}}, "of another kind"),  # runs over the end
        ({"second": {"state_dict/w": ([3, 0], WHOLE[3:])}}, "0 of 4 numbers"),
        ({"second": {"state_dict/w": ([4, 0], WHOLE[4:]), MOMENT: ([0], HALF)}}, "12 of 15 numbers"),  # a row is missing
        ({"second": {"state_dict/w": ([2, 0], WHOLE[3:]), MOMENT: ([0], HALF)}}, "twice"),  # one is there twice, and one is missing
        ({"second": {"state_dict/w": ([-2, 0], WHOLE[3:]), MOMENT: ([0], HALF)}}, "is not said"),
        ({"second": {"state_dict/w": (["3", 0], WHOLE[3:]), MOMENT: ([0], HALF)}}, "is not said"),
        ({"second": {"state_dict/w": ([3, 0], WHOLE[3:].double())}}, "of another kind"),
        ({"second": {"state_dict/w": ([3], WHOLE[3])}}, "of another kind"),
        ({"second": {"else": ([0, 0], WHOLE)}}, "not of this checkpoint"),
        ({"tensors": {"state_dict/w": ((5, 3), "load"), MOMENT: ((4,), "load")}}, "not a type"),
        ({"tensors": 3}, "does not say"),
        ({"files": {"../shard-1.safetensors": (3, 4)}}, "not the name of a shard"),
        ({"tensors": {"state_dict/w": ((5, 3), 7), MOMENT: ((4,), 7)}}, "not a type"),
        ({"files": {3: (3, 4)}}, "not the name of a shard"),
        ({"files": {"shard-1.safetensors": (3, "four")}}, "does not say"),
        ({"files": {"shard-1.safetensors": (float("inf"), 4)}}, "does not say"),
        ({"files": {f"{'a' * 300}.safetensors": (3, 4)}}, "not the name of a shard"),
        ({"tensors": {"state_dict/w": ("53", "float32")}}, "does not say"),
        ({"tensors": {"state_dict/w": ((10**14, 3), "float32"), MOMENT: ((4,), "bfloat16")}}, "15 of 300000000000000 numbers"),
        ({"content": [3]}, "does not say"),
        ({"content": {"state_dict": {"lost": {"lmlab_shard": "state_dict/lost"}}}}, "do not fit together.*state_dict/lost"),
        ({"lmlab_folder": 2}, "newer lmlab"),
        ({"lmlab_folder": "99"}, "not of a folder"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(a_folder(tmp_path / "step=0000003.ckpt", **changed))


def test_a_folder_that_is_larger_than_memory_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_folder(tmp_path / "step=0000003.ckpt")

    def full(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(folder, "torch", SimpleNamespace(empty=full))
    with pytest.raises(CheckpointError, match="does not fit the memory") as caught:
        read_checkpoint(path)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("content", [[1], {}, {"content": [1]}])
def test_an_outline_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "content.pt")
    with pytest.raises(CheckpointError, match="does not hold a checkpoint"):
        outline(tmp_path)


def test_cutting_and_joining_are_inverse() -> None:
    content = {"a": {"b": WHOLE, 3: [HALF, (1, WHOLE + 1)]}, "c": (1, 2), "d": "text"}
    rest, tensors = cut(content, lambda value: isinstance(value, Tensor))
    assert list(tensors) == ["a/b", "a/3/0", "a/3/1/1"] and rest["c"] == (1, 2)
    back = join(rest, tensors)
    assert back["a"]["b"] is WHOLE and back["a"][3][0] is HALF and torch.equal(back["a"][3][1][1], WHOLE + 1)
    assert join(rest, {**tensors, "a/b": None})["a"].keys() == {3}, "None is left out"
    with pytest.raises(KeyError):
        join(rest, {"a/3/0": HALF, "a/3/1/1": WHOLE})


class Evil:
    """Unpickling this would make a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_folder_does_not_run(tmp_path: Path) -> None:
    path = a_folder(tmp_path / "step=0000003.ckpt")
    torch.save({"lmlab_folder": 1, "content": Evil(tmp_path / "was-run")}, path / "content.pt")
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        read_checkpoint(path)
    assert not (tmp_path / "was-run").exists()
