"""Checkpoint files: whole or absent, verified to the byte, and never able to run code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.checkpoint import newest_whole, outline, read_checkpoint, verify, write_checkpoint
from lmlab.checkpoint.places import sweep
from lmlab.checkpoint.seal import what_is_damaged
from lmlab.errors import CheckpointError, DamagedError

CONTENT = {"weights": {"a": torch.arange(2000.0)}, "step": 3, "text": "中文"}


def written(folder: Path, name: str = "step=0000003.ckpt") -> Path:
    path = folder / name
    write_checkpoint(CONTENT, path)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = read_checkpoint(written(tmp_path / "new" / "folder"))
    assert torch.equal(content["weights"]["a"], CONTENT["weights"]["a"])  # type: ignore[index]
    assert (content["step"], content["text"]) == (3, "中文")
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["step=0000003.ckpt"]


@pytest.mark.parametrize("fault", ["truncated", "flipped", "empty", "text", "missing"])
def test_every_fault_is_found_and_named(tmp_path: Path, fault: str) -> None:
    path = written(tmp_path)
    data = bytearray(path.read_bytes())
    if fault == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif fault == "flipped":
        at = data.find(torch.tensor([1000.0]).numpy().tobytes())
        data[at + 1] ^= 1
        path.write_bytes(data)
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "text":
        path.write_text("not a checkpoint")
    else:
        path.unlink()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert path.name in str(caught.value) and "do:" in str(caught.value)


def test_every_changed_bit_is_found(tmp_path: Path) -> None:
    """Also in the archive's directory, which no sum of torch's is of, and in the checksum itself."""
    path = tmp_path / "step=0000001.ckpt"
    write_checkpoint({"a": torch.arange(10.0)}, path)
    whole, missed = path.read_bytes(), []
    verify(path)
    assert whole[-20:-8] == b"lmlab crc32 "
    for at in range(8 * len(whole)):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        if what_is_damaged(io.BytesIO(data)) is None:
            missed.append(at)
    assert not missed


@pytest.mark.parametrize("size", [1, 10, 21, 22, 500, -1, -8, -20, -22])
def test_every_cut_is_found(tmp_path: Path, size: int) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedError):
        verify(path)


def test_what_torch_and_zip_programs_write_and_read(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "torch.ckpt")
    assert read_checkpoint(tmp_path / "torch.ckpt")["step"] == 3
    path = written(tmp_path)
    for given in ({}, {"mmap": True}):
        assert torch.equal(torch.load(path, weights_only=True, **given)["weights"]["a"], CONTENT["weights"]["a"])  # type: ignore[index]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_no_changed_bit_of_a_file_of_torchs_is_loaded(tmp_path: Path) -> None:
    """Which has no checksum of the whole: in its directory, what is not found is what no reader looks at."""
    path = tmp_path / "torch.ckpt"
    torch.save({"a": torch.arange(10.0)}, path)
    whole = path.read_bytes()
    for at in range(8 * whole.find(b"PK\1\2"), 8 * len(whole), 5):  # all bits of a byte in turn
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)
        with contextlib.suppress(DamagedError):
            assert torch.equal(read_checkpoint(path)["a"], torch.arange(10.0)), at


def failing(monkeypatch: pytest.MonkeyPatch, call: str, broken: Path, error: OSError) -> None:
    real = getattr(Path, call)

    def fails(self: Path, *given: Any, **more: Any) -> Any:
        if self == broken:
            raise error
        return real(self, *given, **more)

    monkeypatch.setattr(Path, call, fails)


@pytest.mark.parametrize("call", ["open", "stat"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_what_cannot_be_read_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    older, newer = written(tmp_path, "step=0000001.ckpt"), written(tmp_path, "step=0000002.ckpt")
    failing(monkeypatch, call, newer, OSError(number, os.strerror(number)))
    for reads in (lambda path: newest_whole([path, older]), read_checkpoint):
        with pytest.raises(CheckpointError, match="cannot be read") as caught:
            reads(newer)
        assert not isinstance(caught.value, DamagedError)


def test_what_vanishes_while_it_is_read_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = written(tmp_path, "step=0000001.ckpt"), written(tmp_path, "step=0000002.ckpt")
    failing(monkeypatch, "open", newer, FileNotFoundError(errno.ENOENT, "No such file", str(newer)))
    assert newest_whole([newer, older]) == older
    assert newest_whole([tmp_path / "step=0000003.ckpt", older]) == older


@pytest.mark.parametrize("kind", ["list", "code", "empty", "nothing"])
def test_an_outline_raises_one_kind_of_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "step=0000001.ckpt"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind != "nothing":
        torch.save([1] if kind == "list" else {"x": Evil(tmp_path / "was-run")}, path)
    with pytest.raises(CheckpointError) as caught:
        outline(path)
    assert "do:" in str(caught.value) and "likely succeed" not in str(caught.value) and not (tmp_path / "was-run").exists()


def test_a_broken_newest_one_falls_back_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = written(tmp_path, "step=0000001.ckpt"), written(tmp_path, "step=0000002.ckpt")
    bad.write_bytes(bad.read_bytes()[:-300])
    with caplog.at_level("WARNING"):
        assert newest_whole([bad, good]) == good
    assert "step=0000002.ckpt is broken" in caplog.text
    assert newest_whole([bad]) is None


class Evil:
    """Unpickling this would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "was-run"
    torch.save({"x": Evil(marker)}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        read_checkpoint(tmp_path / "evil.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="TORCH_FORCE"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not marker.exists()


def test_a_folder_that_cannot_be_written_to_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_checkpoint(CONTENT, tmp_path / "file" / "step=0000001.ckpt")
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises((CheckpointError, TypeError, AttributeError)):
        write_checkpoint({"x": (n for n in range(3))}, path)
    assert path.read_bytes() == before


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / ".step=0000004.ckpt.123.tmp").write_bytes(b"half")
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import sys, torch
from pathlib import Path
from typing import Any
from lmlab.checkpoint import write_checkpoint
path, n = Path(sys.argv[1]), 0
while True:
    n += 1
    write_checkpoint({"w": torch.full((2_000_000,), float(n)), "n": n}, path)
    print(n, flush=True)
"""


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_whole_file(tmp_path: Path) -> None:
    shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path  # another file system than /tmp, where renames are not moves
    path = shared / f"lmlab-kill-{os.getpid()}" / "last.ckpt"
    generator = random.Random(0)
    try:
        for _ in range(6):
            process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(generator.random() * 0.4)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            verify(path)
            content = read_checkpoint(path)
            assert (content["w"] == content["n"]).all()
    finally:
        for left in path.parent.glob("*") if path.parent.is_dir() else ():
            left.unlink()
        for left in path.parent.glob(".*") if path.parent.is_dir() else ():
            left.unlink()
        if path.parent.is_dir():
            path.parent.rmdir()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_disk_without_room_is_said_to_be_full_and_the_old_file_stays(tmp_path: Path) -> None:
    """A limit on the size of files stops a write as a full disk does; torch's writer notices only that the file did not grow."""
    path = written(tmp_path)
    before = path.read_bytes()
    script = f"""
import resource, signal, torch
from pathlib import Path
from typing import Any
from lmlab.checkpoint import write_checkpoint
from lmlab.errors import CheckpointError, DamagedError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    write_checkpoint({{"w": torch.rand(200_000)}}, Path({str(path)!r}))
except CheckpointError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "the disk is full" in said and "free some space" in said
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
