"""How many ranks are asked for and who starts them; and the parent's eyes, tried on ranks that are a line of Python each."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmlab.cli import parent, ranks
from lmlab.cli.dispatch import exit_code
from lmlab.cli.launching import LaunchConfig, num_devices, ranks_to_start
from lmlab.cli.parent import start_ranks
from lmlab.cli.ranks import PARENT, Word, as_rank, lost_others, read_word
from lmlab.cli.verdict import Ending, error_of, first_cause
from lmlab.errors import ConfigError, DataError, LabError
from lmlab.run.directory import RunDirectory
from lmlab.run.record import Record
from lmlab.session import hashed

ROOT = Path(__file__).parents[2]
RESET = "[../third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:36012: Connection reset by peer"
LATE = "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 8000ms for recv operation to complete"
GONE_SECONDS = 5.0

HEAD = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from lmlab.cli.ranks import as_rank
from lmlab.errors import *
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
open({folder!r} + f"/{{rank}}.pid", "w").write(str(os.getpid()))
def call():
    {body}
    return 0
sys.exit(as_rank(call, lambda error: 2 if type(error) is ConfigError else 1))
"""
WAIT = "time.sleep(60)"
LOSE = f'(time.sleep(0.3), (_ for _ in ()).throw(RuntimeError("{RESET}")))'


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher started these tests."""
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", PARENT, "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def trainer(**given: Any) -> Any:
    return SimpleNamespace(**{"accelerator": "cpu", "devices": "auto", "num_nodes": 1, "strategy": "auto", **given})


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, body: str, num_ranks: int = 2, **launch: Any) -> int:
        program = HEAD.format(root=str(ROOT), folder=str(self.folder), body=body)
        return start_ranks(num_ranks, ["-c", program], LaunchConfig(**launch))

    def pid(self, rank: int) -> int:
        path = self.folder / f"{rank}.pid"
        while not path.exists() or not path.read_text():
            time.sleep(0.02)
        return int(path.read_text())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    there = Place(tmp_path)
    yield there
    for path in tmp_path.glob("*.pid"):
        with pytest.raises(ProcessLookupError):  # nothing is left behind
            os.kill(int(path.read_text()), 0)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 0),
        ({"devices": 1}, 0),
        ({"devices": 2}, 2),
        ({"devices": "3"}, 3),
        ({"devices": 2, "accelerator": "auto"}, 2),
        ({"devices": 2, "strategy": "ddp"}, 2),
    ],
)
def test_ranks_are_started_where_several_are_asked_for(settings: dict[str, Any], count: int) -> None:
    assert ranks_to_start(trainer(**settings), LaunchConfig()) == count


def test_one_rank_may_have_a_parent_too() -> None:
    assert ranks_to_start(trainer(), LaunchConfig(max_restarts=2)) == 1


@pytest.mark.parametrize(("devices", "count"), [("auto", 4), (-1, 4), ("-1", 4), (2, 2), ([1, 3], 2), ("0,1", 2), ("1,", 1)])
def test_gpus_are_counted_as_lightning_counts_them(devices: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.accelerators.CUDAAccelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: 4)
    monkeypatch.setattr("lightning.fabric.utilities.device_parser._get_all_available_gpus", lambda **_: [0, 1, 2, 3])
    assert num_devices("auto", devices) == num_devices("gpu", devices) == count
    assert num_devices("cpu", 2) == 2


def test_who_is_a_rank_already_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks_to_start(trainer(devices=2), LaunchConfig()) == 0
    monkeypatch.setenv(PARENT, "1")
    assert ranks_to_start(trainer(devices=2), LaunchConfig(max_restarts=3)) == 0


def test_torchrun_gives_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    settings = trainer()
    assert ranks_to_start(settings, LaunchConfig()) == 0
    assert (settings.devices, settings.num_nodes) == (2, 2)
    with pytest.raises(ConfigError, match="asks for 3, and torchrun started 2") as caught:
        ranks_to_start(trainer(devices=3), LaunchConfig())
    assert "--nproc-per-node 3" in caught.value.remedy
    with pytest.raises(ConfigError, match="no effect under torchrun") as caught:
        ranks_to_start(trainer(), LaunchConfig(max_restarts=1))
    assert "torchrun --max-restarts" in caught.value.remedy


def test_torchrun_does_not_multiply_what_measures_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="asks for 1, and torchrun started 2"):
        ranks_to_start(trainer(devices=1), None)


def test_looking_after_ranks_is_not_part_of_a_run() -> None:
    settings = {"budget": {"steps": 3}, "launch": {"max_restarts": 0}}
    assert hashed(settings) == hashed({**settings, "launch": {"max_restarts": 5}})


def test_what_nobody_would_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="num_nodes = 2") as caught:
        ranks_to_start(trainer(devices=4, num_nodes=2), LaunchConfig())
    assert "torchrun --nnodes 2 --nproc-per-node 4" in caught.value.remedy
    with pytest.raises(ConfigError, match="ddp_spawn"):
        ranks_to_start(trainer(devices=2, strategy="ddp_spawn"), LaunchConfig())
    with pytest.raises(ConfigError, match="no effect on one device"):
        ranks_to_start(trainer(), LaunchConfig(stop_seconds=5))
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert ranks_to_start(trainer(devices=2), LaunchConfig()) == 2  # inside a batch script
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with pytest.raises(ConfigError, match="one of 8") as caught:
        ranks_to_start(trainer(devices=2), LaunchConfig())
    assert "slurm.sbatch" in caught.value.remedy


@pytest.mark.parametrize("setting", [{"max_restarts": -1}, {"stop_seconds": 0}])
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        LaunchConfig(**setting)


def test_ranks_end_well(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM), dict(os.environ)
    assert place.start("assert os.environ['OMP_NUM_THREADS'] == '1' and os.environ['WORLD_SIZE'] == '3'", num_ranks=3) == 0
    assert (signal.getsignal(signal.SIGTERM), dict(os.environ)) == before


def test_a_killed_rank_is_named_and_not_the_one_that_lost_it(place: Place) -> None:
    started = time.monotonic()
    with pytest.raises(LabError, match=r"rank 1 of 2 was killed by signal 9 \(SIGKILL\)") as caught:
        place.start(f"os.kill(os.getpid(), 9) if rank == 1 else {LOSE}")
    assert "memory" in caught.value.why and time.monotonic() - started < GONE_SECONDS
    assert exit_code(caught.value) == 1


def test_an_exception_is_named_before_what_came_of_it(place: Place) -> None:
    with pytest.raises(LabError, match="rank 1 of 3 failed with KeyError: 'tokens'") as caught:
        place.start("{}['tokens'] if rank == 1 else " + LOSE, num_ranks=3)
    folder = Path(caught.value.remedy.rpartition(" ")[2])
    assert "KeyError: 'tokens'" in (folder / "traceback.txt").read_text()
    assert caught.value.where.endswith(":9")


def test_what_all_ranks_find_is_said_once_as_by_one(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        place.start(
            "raise ConfigError('lr = -1 is not possible', where='optimizer.lr', why='a rule', remedy='set it above 0')", max_restarts=3
        )
    error = caught.value
    assert (error.what, error.where, error.why, error.remedy) == ("lr = -1 is not possible", "optimizer.lr", "a rule", "set it above 0")
    assert exit_code(error) == 2
    assert "restart" not in capsys.readouterr().err  # settings do not get better by trying again


def test_what_one_rank_finds_names_it(place: Place) -> None:
    with pytest.raises(DataError, match=r"^rank 1 of 2: row 3 is broken"):
        place.start(f"if rank == 0: {LOSE}\n    raise DataError('row 3 is broken')")


def test_a_rank_that_hangs_is_killed_and_named(place: Place) -> None:
    started = time.monotonic()
    late = f"(time.sleep(0.5), (_ for _ in ()).throw(RuntimeError({LATE!r})))"
    with pytest.raises(LabError, match="rank 0 of 2 hung") as caught:
        place.start(f"os.kill(os.getpid(), signal.SIGSTOP) if rank == 0 else {late}")
    assert "8000ms" in caught.value.why and "timeout" in caught.value.remedy
    assert time.monotonic() - started < 2 * GONE_SECONDS


def test_a_restart_says_why_and_may_end_well(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.start("os.kill(os.getpid(), 9) if (rank, attempt) == (1, 0) else None", max_restarts=1) == 0
    assert "rank 1 of 2 was killed by signal 9 (SIGKILL); restart 1 of 1" in capsys.readouterr().err
    with pytest.raises(LabError, match="rank 1 of 2 was killed"):
        place.start("os.kill(os.getpid(), 9) if rank == 1 else None", max_restarts=1)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_parent_lets_ranks_save(place: Place, number: signal.Signals, code: int) -> None:
    saves = "signal.signal(n, lambda got, _: (time.sleep(0.5), open({0!r} + f'/{{rank}}.saved', 'w').close(), os._exit(128 + got)))"
    body = f"[{saves.format(str(place.folder))} for n in (2, 15)]\n    open({str(place.folder)!r} + f'/{{rank}}.up', 'w')\n    {WAIT}"
    threading.Thread(target=lambda: (_until(place.folder, "*.up", 2), os.kill(os.getpid(), number)), daemon=True).start()
    assert place.start(body) == code
    assert len(list(place.folder.glob("*.saved"))) == 2


@pytest.mark.parametrize(("stop_seconds", "signals"), [(0.5, 1), (60.0, 2)])
def test_ranks_that_do_not_stop_in_time_are_killed(
    place: Place, stop_seconds: float, signals: int, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f"signal.signal(15, signal.SIG_IGN)\n    open({str(place.folder)!r} + f'/{{rank}}.up', 'w')\n    {WAIT}"

    def ask() -> None:
        _until(place.folder, "*.up", 2)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)

    threading.Thread(target=ask, daemon=True).start()
    started = time.monotonic()
    assert place.start(body, stop_seconds=stop_seconds) == 143
    assert time.monotonic() - started < GONE_SECONDS
    assert "killed before they had saved: rank 0, 1" in capsys.readouterr().err


def test_ranks_that_were_signalled_themselves_are_not_started_again(place: Place) -> None:
    assert place.start("sys.exit(143)", max_restarts=2) == 143


def _until(folder: Path, pattern: str, count: int) -> None:
    while len(list(folder.glob(pattern))) < count:
        time.sleep(0.02)


def test_a_rank_under_torchrun_speaks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(ranks, "follow_parent", lambda: None)
    monkeypatch.setattr(ranks, "LINGER_SECONDS", 0.01)
    monkeypatch.setattr(ranks, "_leave", lambda code: None)
    before = signal.getsignal(signal.SIGTERM)
    for error, code, printed in (
        (ConfigError("no"), 2, ""),
        (ValueError("boom"), 1, "ValueError: boom"),
        (RuntimeError(RESET), 1, "rank 1 lost the others"),
    ):

        def call(error: Exception = error) -> int:
            raise error

        assert as_rank(call, exit_code) == code
        shown = capsys.readouterr().err
        assert printed in shown and bool(shown) == bool(printed)
        word = read_word(tmp_path / "error.json")
        assert word is not None and (word.name, word.what) == (type(error).__name__, str(error))
    signal.signal(signal.SIGTERM, before)
    assert ranks.lost_others(RuntimeError(LATE)) and not lost_others(ValueError(RESET)) and not lost_others(RuntimeError("boom"))


LOST, TOLD = Word("lost", 10.0, "RuntimeError", RESET), Word("other", 11.0, "ValueError", "boom")


@pytest.mark.parametrize(
    ("endings", "rank"),
    [
        ((Ending(0, 1, 10.1, LOST), Ending(1, -9, 12.0)), 1),
        ((Ending(0, 1, 10.1, LOST), Ending(1, 1, 11.1, TOLD)), 1),
        ((Ending(0, 1, 10.1, LOST), Ending(1, -9, 13.0, given_up=True)), 1),
        ((Ending(0, 1, 11.1, TOLD), Ending(1, -9, 13.0, given_up=True)), 0),
        ((Ending(0, 1, 11.1, TOLD), Ending(1, 1, 10.6, TOLD._replace(seconds=10.5))), 1),
        ((Ending(0, 1, 11.1, TOLD), Ending(1, -6, 10.9)), 1),
        ((Ending(0, 1, 11.1, TOLD), Ending(1, -6, 11.2)), 0),
        ((Ending(0, 1, 11.1, TOLD), Ending(1, -9, 11.2)), 1),
        ((Ending(0, 3, 11.1), Ending(1, 1, 10.1, LOST)), 0),
    ],
)
def test_the_first_cause_comes_before_its_consequences(endings: tuple[Ending, ...], rank: int) -> None:
    assert first_cause(endings).rank == first_cause(endings[::-1]).rank == rank


def test_further_endings_have_words_too() -> None:
    assert "left no word" in error_of([Ending(0, 3, 1.0)], 2, Path("logs")).what
    assert "none of them failed" in error_of([Ending(0, 1, 1.0, LOST)], 2, Path("logs")).what
    assert "signal 64" in error_of([Ending(0, -64, 1.0)], 2, Path("logs")).what


def looked_after(folder: Path, endings: list[Ending], is_asked_to_stop: bool = True) -> Any:
    """An agent whose ranks have ended."""
    (folder / "attempts" / "attempt_0").mkdir(parents=True)
    record = Record(name="x", seed=0, status="running")
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    record.save(run.record_path)
    return SimpleNamespace(
        run=lambda: None, failures=lambda: iter(endings), is_asked_to_stop=is_asked_to_stop, num_ranks=2, logs=folder, run_folder=run
    )


def test_a_crash_while_ranks_stop_is_told(tmp_path: Path) -> None:
    agent = looked_after(tmp_path, [Ending(0, 143, 1.0), Ending(1, -11, 2.0)])
    with pytest.raises(LabError, match=r"rank 1 of 2 was killed by signal 11"):
        parent._run(agent, tmp_path / "attempts")
    assert "rank 1" in Record.load(agent.run_folder.record_path).error


@pytest.mark.parametrize(("code", "killed"), [(143, False), (-15, False), (-9, True)])
def test_ranks_that_stop_or_are_too_slow_do_not_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, killed: bool) -> None:
    agent = looked_after(tmp_path, [Ending(0, 143, 1.0), Ending(1, code, 2.0, given_up=killed)])
    assert parent._run(agent, tmp_path / "attempts") == 143
    assert ("killed before they had saved: rank 1" in capsys.readouterr().err) == killed


def test_a_full_disk_does_not_hide_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    agent = looked_after(tmp_path, [Ending(1, -9, 2.0)], is_asked_to_stop=False)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(LabError, match=r"rank 1 of 2 was killed by signal 9"):
        parent._run(agent, tmp_path / "attempts")
    assert "No space left" in capsys.readouterr().err
    assert Record.load(agent.run_folder.record_path).status == "failed"
