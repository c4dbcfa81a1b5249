"""Folders to which each rank writes its parts: what is in them, who goes on from them, what happens when something breaks."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors import safe_open
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

import lmlab
from lmlab.checkpoint import read_checkpoint
from lmlab.cli.dispatch import main
from lmlab.errors import CheckpointError, DamagedError
from lmlab.strategies import shards
from tests.checkpoint.test_folder import HALF, MOMENT, WHOLE, a_folder
from tests.ranks import forked
from tests.runs import one_run
from tests.runs.conftest import Place
from tests.strategies.conftest import Train
from tests.strategies.test_resume import RANKS, goes_on

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # what DeepSpeed imports
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning"),  # what it calls
    pytest.mark.filterwarnings("ignore:.*sync_dist=True"),  # Lightning's, where FSDP has one rank
]

SHORT: dict[str, Any] = {"steps": 3, "checkpoints": 3, "averaged": True}
AS_FILE = {"fsdp": 2, "hsdp": 4, "fsdp_tp": 4}


class Plain(LightningModule):
    """What the folders that are written by hand are of."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(5, 3))
        self.register_buffer("tied", self.w.detach())


def checkpoints(place: Place, name: str) -> list[Path]:
    [folder] = (place.folder / "runs" / name).iterdir()
    return sorted((folder / "checkpoints").glob("step=*.ckpt"))


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Everything a checkpoint holds, by the way to it."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if pairs is None:
        return {place: value}
    return {way: leaf for key, inner in pairs for way, leaf in leaves(inner, f"{place}/{key}").items()}


def differing(a: Any, b: Any) -> list[str]:
    one, other = leaves(a), leaves(b)
    assert list(one) == list(other), "the same things in the same order"
    same = {
        k: torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype if isinstance(one[k], Tensor) else one[k] == other[k]
        for k in one
    }
    return [k for k, v in same.items() if not v and "/seconds" not in k and "_time" not in k]


def parts_of(path: Path) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the parts of each tensor, of all files."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                found.setdefault(key, []).append(tuple(opened.get_slice(key).get_shape()))
    return found


@pytest.mark.parametrize(
    "strategy", ["fsdp", pytest.param("hsdp", marks=pytest.mark.slow), pytest.param("fsdp_tp", marks=pytest.mark.slow)]
)
def test_a_folder_holds_what_the_file_would(place: Place, train: Train, strategy: str) -> None:
    ranks = AS_FILE[strategy]
    micro = 8 // ranks if strategy != "fsdp_tp" else 4
    file = train("mlm", strategy, ranks, micro=micro, name=f"file-{strategy}", **SHORT)
    folder = train("mlm", f"{strategy}_sharded", ranks, micro=micro, name=f"folder-{strategy}", **SHORT)
    assert differing(file, folder) == []
    path = checkpoints(place, f"folder-{strategy}")[-1]
    written, wholes = parts_of(path), leaves({k: folder[k] for k in ("state_dict", "optimizer_states", "lmlab_average")})
    for key, shapes in written.items():
        whole = wholes[f"/{key}"]
        assert sum(torch.Size(shape).numel() for shape in shapes) == whole.numel(), "each number once"
        assert max(torch.Size(shape).numel() for shape in shapes) <= -(-whole.shape[0] // 2) * whole[0].numel(), "no part is the whole"
    big = {way[1:] for way, leaf in wholes.items() if isinstance(leaf, Tensor) and leaf.ndim}
    assert big == written.keys(), "weights, moments and averages"


def test_consolidated_it_is_the_file(place: Place, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    file = train("mlm", "fsdp", 2, micro=4, name="file-fsdp", **SHORT)
    train("mlm", "fsdp_sharded", 2, micro=4, name="folder-fsdp", **SHORT)
    path = checkpoints(place, "folder-fsdp")[-1]
    assert main(["checkpoint", "consolidate", str(path)]) == 0
    whole = path.with_name("step=0000003-whole.ckpt")
    assert str(whole) in capsys.readouterr().out
    assert differing(file, torch.load(whole, weights_only=True)) == []
    with pytest.raises(AssertionError):
        assert main(["checkpoint", "consolidate", str(path)]) == 0  # it exists now
    by_folder, by_file, by_run = (lmlab.load(one).state_dict() for one in (path, whole, path.parents[1]))
    for name, average in file["lmlab_average"]["averages"].items():
        assert torch.equal(by_folder[name], average) and torch.equal(by_file[name], average)
    assert by_run.keys() == by_folder.keys(), "the best"
    whole.unlink()


RESIZED = [
    ("fsdp_sharded", 2, "fsdp_sharded", 1),
    ("fsdp_sharded", 2, "fsdp_sharded", 2),
    ("fsdp_sharded", 2, "fsdp_sharded", 4),
    ("fsdp_sharded", 2, "hsdp_sharded", 4),
    ("hsdp_sharded", 4, "fsdp_sharded", 2),
    ("fsdp_tp_sharded", 4, "fsdp_sharded", 2),
    ("fsdp_sharded", 2, "fsdp_tp_sharded", 4),
    ("fsdp", 2, "fsdp_sharded", 2),
    ("fsdp_sharded", 2, "fsdp", 2),
]


@pytest.mark.slow
def test_another_strategy_goes_on_from_a_folder(place: Place, train: Train) -> None:
    goes_on(place, train, "fsdp_sharded", 2, "auto", 1)


@pytest.mark.slow
@pytest.mark.parametrize("second", [name for name in RANKS if name != "auto"])
def test_every_strategy_goes_on_from_a_folder(place: Place, train: Train, second: str) -> None:
    goes_on(place, train, "fsdp_sharded", 2, second, RANKS[second])


@pytest.mark.slow
@pytest.mark.parametrize(("first", "ranks", "second", "more"), RESIZED)
def test_going_on_with_other_ranks(place: Place, train: Train, first: str, ranks: int, second: str, more: int) -> None:
    goes_on(place, train, first, ranks, second, more)


def counting(settings: Mapping[str, Any]) -> None:
    """Goes on, and writes down the largest piece of a tensor that this rank has read; none may be put together."""
    largest = 0

    def refused(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("a tensor is put together")

    def read(self: Any, file: Any, request: Any, planner: Any) -> None:
        nonlocal largest
        largest = max(largest, torch.Size(request.lengths).numel())
        real(self, file, request, planner)

    reader = shards.HuggingFaceStorageReader
    real = reader._process_read_request
    reader._process_read_request = read
    whole, DTensor.full_tensor = DTensor.full_tensor, refused
    one_run.main(dict(settings))
    DTensor.full_tensor = whole
    Path(f"{settings['out']}.largest{os.environ['RANK']}").write_text(str(largest))


@pytest.mark.slow
def test_no_rank_reads_or_writes_a_whole_tensor(place: Place, train: Train) -> None:
    given: dict[str, Any] = {"steps": 4, "checkpoints": 2, "averaged": True, "name": "counted", "micro": 2}
    train("mlm", "fsdp_sharded", 2, stop_at=2, **given)
    end = train("mlm", "fsdp_sharded", 4, resume="must", main=counting, **given)
    assert end["global_step"] == 4
    sizes = sorted((v.numel() for v in end["state_dict"].values()), reverse=True)
    for rank in range(4):
        [written] = place.folder.glob(f"*.largest{rank}")
        assert 0 < int(written.read_text()) <= sizes[0] // 4 + 32, "a quarter, up to one row"


def alone(job: Callable[[], None]) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    job()


SECOND: list[tuple[dict[str, tuple[list[int], Tensor]], str]] = [
    ({"state_dict/w": ([4, 0], WHOLE[4:]), MOMENT: ([0], HALF)}, "12 of 15 numbers"),  # the fourth row would be what was in memory
    ({"state_dict/w": ([2, 0], WHOLE[3:]), MOMENT: ([0], HALF)}, "twice"),
    ({"state_dict/w": ([3, 0], WHOLE[3:].double()), MOMENT: ([0], HALF)}, "of another kind"),
]


@pytest.mark.parametrize("case", range(len(SECOND)))
def test_parts_that_do_not_make_up_a_tensor_are_refused(tmp_path: Path, case: int) -> None:
    second, said = SECOND[case]
    path = a_folder(tmp_path / "step=0000003.ckpt", second=second)

    def job() -> None:
        with pytest.raises(DamagedError, match=said):
            shards.read_shards(path, Plain(), [])

    forked(partial(alone, job), num_ranks=1)


def test_a_shard_that_cannot_be_read_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_folder(tmp_path / "step=0000003.ckpt")

    def stale(*_: Any, **__: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    def job() -> None:
        assert torch.equal(shards.read_shards(path, Plain(), [])["state_dict"]["w"], WHOLE)
        for place, name in ((shards, "check_sums"), (shards.HuggingFaceStorageReader, "read_data")):
            with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="cannot be read") as caught:
                patch.setattr(place, name, stale)
                shards.read_shards(path, Plain(), [])
            assert not isinstance(caught.value, DamagedError)

    forked(partial(alone, job), num_ranks=1)


def test_a_broken_shard_is_found_and_the_checkpoint_before_it_taken(place: Place, train: Train) -> None:
    given: dict[str, Any] = {"steps": 4, "checkpoints": 4, "name": "broken"}
    train("mlm", "fsdp_sharded", 2, stop_at=3, **given)
    newest = checkpoints(place, "broken")[-1]
    file = newest / "shard-00002-model-00001-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.unlink()  # best.ckpt may have the same bytes by another name
    file.write_bytes(data)
    end = train("mlm", "fsdp_sharded", 2, resume="must", **given)
    assert end["global_step"] == 4
    assert newest.with_name(f"{newest.name}.broken").is_dir() and newest.is_dir(), "put aside, and written anew"
    assert read_checkpoint(newest)["global_step"] == 3
    best = newest.with_name("best.ckpt")
    assert best.is_dir() and best.joinpath("content.pt").stat().st_nlink == 2, "not a second copy"


MOMENTS = ("sum_of", "_finish", "put_in_place")


def killed(settings: Mapping[str, Any]) -> None:
    """Dies while the third checkpoint is written."""
    done = 0
    real = getattr(shards, settings["moment"])

    def dies(*args: Any) -> Any:
        nonlocal done
        done += 1
        if done == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(shards, settings["moment"], dies)
    one_run.main({key: value for key, value in settings.items() if key != "moment"})


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_writer_leaves_the_checkpoint_before(place: Place, train: Train, moment: str) -> None:
    name = f"killed-{moment}"
    given: dict[str, Any] = {"steps": 4, "checkpoints": 4, "name": name}
    with pytest.raises(AssertionError):  # of the exit codes
        train("mlm", "fsdp_sharded", 2, main=killed, moment=moment, **given)
    assert [path.name for path in checkpoints(place, name)] == ["step=0000001.ckpt", "step=0000002.ckpt"]
    folder = checkpoints(place, name)[0].parent
    assert [*folder.glob(".*.tmp")], "half of the third"
    end = train("mlm", "fsdp_sharded", 2, resume="must", **given)
    assert end["global_step"] == 4 and not [*folder.glob(".*.tmp")]


def unwritable(settings: Mapping[str, Any]) -> None:
    """One rank cannot write: both say so, and none waits for the other."""

    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    if os.environ["RANK"] == "1":
        shards.sum_of = full
    try:
        one_run.main(dict(settings))
    except CheckpointError as error:
        Path(f"{settings['out']}.said{os.environ['RANK']}").write_text(str(error))
        raise SystemExit(128 + signal.SIGTERM) from error


def test_a_rank_that_cannot_write_stops_all_with_one_sentence(place: Place, train: Train) -> None:
    with pytest.raises(IndexError):  # there is no checkpoint
        train("mlm", "fsdp_sharded", 2, steps=2, checkpoints=2, name="full", main=unwritable, stop_at=99)
    said = [path.read_text() for path in sorted(place.folder.glob("*.said?"))]
    assert len(said) == 2 and all("the disk is full" in text for text in said)
    assert not [*(place.folder / "runs" / "full").glob("*/checkpoints/.*")]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["clm", "recurrent_lm", "contrastive"])
def test_other_networks(place: Place, train: Train, objective: str) -> None:
    """Tied weights; a temperature of one number, and rows that ranks do not share evenly."""
    file = train(objective, "fsdp", 2, **SHORT)
    folder = train(objective, "fsdp_sharded", 2, **SHORT)
    assert differing(file, folder) == []
