"""Files and folders take each other's place, and a kill at any moment leaves the old one or the new one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from lmlab.checkpoint import places
from lmlab.checkpoint.places import link, put_in_place, remove, set_aside, sweep, temporary_for
from lmlab.errors import CheckpointError


def a_file(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def a_folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    for name in ("content.pt", "shard.safetensors"):
        (path / name).write_text(content)
    return path


def read(path: Path) -> str:
    return path.read_text() if path.is_file() else (path / "shard.safetensors").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


KINDS = [a_file, a_folder]


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
def test_either_takes_the_place_of_either(tmp_path: Path, old: Callable[..., Path], new: Callable[..., Path]) -> None:
    target = old(tmp_path / "best.ckpt", "old")
    put_in_place(new(tmp_path / ".new", "new"), target)
    assert read(target) == "new" and names(tmp_path) == ["best.ckpt"]
    link(old(tmp_path / "step=0000002.ckpt", "second"), target)
    remove(tmp_path / "step=0000002.ckpt")
    assert read(target) == "second" and names(tmp_path) == ["best.ckpt"], "the second name outlives the first"
    old(tmp_path / "step=0000003.ckpt.broken", "older")
    set_aside(new(tmp_path / "step=0000003.ckpt", "beyond"))
    assert read(tmp_path / "step=0000003.ckpt.broken") == "beyond" and not (tmp_path / "step=0000003.ckpt").exists()


def test_links_share_their_bytes(tmp_path: Path) -> None:
    link(a_folder(tmp_path / "step=0000001.ckpt", "same"), tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt" / "content.pt").samefile(tmp_path / "step=0000001.ckpt" / "content.pt")


class KilledError(BaseException):
    """Nothing of the writer runs any more."""


@pytest.mark.parametrize("moment", range(4))
def test_a_kill_at_any_rename_leaves_one_of_the_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    target = a_folder(tmp_path / "best.ckpt", "old")
    source = a_folder(tmp_path / "step=0000002.ckpt", "new")
    left = [moment]
    rename, real_replace = Path.rename, Path.replace

    def counted(real: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def call(path: Path, to: Path) -> Path:
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return real(path, to)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(rename))
        patch.setattr(Path, "replace", counted(real_replace))
        try:
            link(source, target)
        except KilledError:
            pass
        else:
            assert moment >= 2, "there are two renames"
    sweep(tmp_path)
    assert read(target) == ("old" if moment < 2 else "new") and read(source) == "new"
    assert names(tmp_path) == ["best.ckpt", "step=0000002.ckpt"]


def test_removing_a_folder_hides_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_folder(tmp_path / "step=0000001.ckpt", "x")

    def killed(folder: Path, **_: object) -> None:
        if not folder.exists():
            return
        (folder / "content.pt").unlink()
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KilledError):
            remove(path)
    assert not path.exists(), "half a folder is not a checkpoint"
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_was_moved_and_linked_is_only_unlinked(tmp_path: Path) -> None:
    elsewhere = a_folder(tmp_path / "elsewhere" / "step=0000001.ckpt", "x")
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for path in (checkpoints / "step=0000001.ckpt", checkpoints / ".step=0000002.ckpt.7.tmp"):
        path.symlink_to(elsewhere)
    remove(checkpoints / "step=0000001.ckpt")
    sweep(checkpoints)
    assert names(checkpoints) == [] and read(elsewhere) == "x"
    (checkpoints / "best.ckpt").symlink_to(elsewhere)
    put_in_place(a_folder(checkpoints / ".new", "new"), checkpoints / "best.ckpt")
    assert read(checkpoints / "best.ckpt") == "new" and read(elsewhere) == "x"


def test_links_that_lead_nowhere_are_in_nobodys_way(tmp_path: Path) -> None:
    """A disk to which a checkpoint was moved, and which is not there now."""
    best, step = tmp_path / "best.ckpt", a_folder(tmp_path / "step=0000001.ckpt", "x")
    best.symlink_to(tmp_path / "nowhere")
    link(step, best)
    assert read(best) == "x" and not best.is_symlink()
    temporary_for(step).symlink_to(tmp_path / "nowhere")
    remove(step)
    step.symlink_to(tmp_path / "nowhere")
    a_folder(tmp_path / f".{step.name}.7.old", "older")
    sweep(tmp_path)
    assert names(tmp_path) == ["best.ckpt", "step=0000001.ckpt"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_that_fails_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[..., Path]
) -> None:
    """Where there are no hard links."""
    source, best = kind(tmp_path / "step=0000002.ckpt", "new"), kind(tmp_path / "best.ckpt", "old")
    synced = list[str]()
    real = places.sync
    monkeypatch.setattr(places, "sync", lambda path: (synced.append(path.name), real(path)))

    def no_links(*_: Path) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    with monkeypatch.context() as patch:

        def full(source: Path, target: Path) -> None:
            target.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("shutil.copyfile", full)
        with pytest.raises(CheckpointError, match="the disk is full"):
            link(source, best)
    assert read(best) == "old" and names(tmp_path) == ["best.ckpt", "step=0000002.ckpt"]
    link(source, best)
    assert read(best) == "new" and len(synced) >= 2, "the copy, and the folder it is in"
