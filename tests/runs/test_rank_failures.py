"""Ranks that are killed, hang, raise or are asked to stop: the run ends within seconds, names the first cause, and goes on from there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.cli import main
from lmlab.run.find import list_runs
from lmlab.run.record import Record
from tests.runs.conftest import REPOSITORY, Place
from tests.runs.launches import TORCHRUN, Launch, write_config

GONE_SECONDS = 5.0
TIMEOUT_SECONDS = 4
LONG = 2000
Start = Callable[..., Launch]

pytestmark = pytest.mark.distributed


@pytest.fixture
def start() -> Iterator[Start]:
    launches: list[Launch] = []

    def begin(config: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> Launch:
        launches.append(Launch(config, *arguments, launcher=launcher))
        return launches[-1]

    yield begin
    for launch in launches:
        launch.end()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_ranks_train_and_the_death_of_one_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which is not a rank: the ranks are processes of their own."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert main(["fit", "-c", str(write_config(place, "named", LONG, step=4, rank=1)), "--allow", "tests"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1 and "error: rank 1 of 2 was killed by signal 9 (SIGKILL)" in printed
    [run] = list_runs(place.folder / "launches", "named")
    assert {2, 4} >= set(run.steps()) >= {2}
    record = Record.load(run.record_path)
    assert record.status == "failed" and "SIGKILL" in record.error


@pytest.mark.slow
def test_two_ranks_of_the_command_line_survive_the_death_of_one(place: Place, start: Start) -> None:
    launch = start(write_config(place, "survives", steps=6, step=4, rank=1), "--launch.max_restarts", "1")
    assert launch.wait() == 0, launch.printed()
    assert "rank 1 of 2 was killed by signal 9 (SIGKILL); restart 1 of 1" in launch.printed()
    assert "Traceback" not in launch.printed()
    record = launch.record()
    assert (record.status, record.spent["steps"], record.error) == ("finished", 6, "")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_rank_ends_the_run_within_seconds_and_is_named(place: Place, start: Start, rank: int, workers: int) -> None:
    launch = start(write_config(place, f"killed-{rank}-{workers}", LONG, pause=0.02), f"--data.num_workers={workers}")
    launch.until_step(LONG // 1000 * 2)
    os.kill(launch.rank(rank), signal.SIGKILL)
    assert launch.seconds_until_gone() < GONE_SECONDS
    assert launch.process.returncode == 1
    printed = launch.printed()
    assert printed.count("error:") == 1 and f"error: rank {rank} of 2 was killed by signal 9 (SIGKILL)" in printed
    assert "Traceback" not in printed and "reset" not in printed
    assert launch.record().status == "failed" and "SIGKILL" in launch.record().error


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_do_not_outlive_their_parent(place: Place, start: Start, workers: int) -> None:
    launch = start(write_config(place, f"orphans-{workers}", LONG, pause=0.02), f"--data.num_workers={workers}")
    launch.until_step(2)
    launch.process.kill()
    assert launch.seconds_until_gone() < GONE_SECONDS


@pytest.mark.slow
def test_an_exception_of_one_rank_is_the_one_that_is_shown(place: Place, start: Start) -> None:
    launch = start(write_config(place, "raises", LONG, step=3, rank=1, how="raise"))
    assert launch.wait() == 1
    assert "error: rank 1 of 2 failed with ValueError: boom" in launch.printed() and "failing.py:" in launch.printed()
    assert "boom" in (next((launch.run().path / "ranks").rglob("1/traceback.txt"))).read_text()
    assert launch.record().error.endswith("ValueError: boom")


@pytest.mark.slow
def test_a_rank_that_hangs_is_found_by_the_timeout(place: Place, start: Start) -> None:
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"timeout": f"0:00:{TIMEOUT_SECONDS:02d}"}}
    launch = start(write_config(place, "hangs", LONG, {"strategy": strategy}, pause=0.02))
    launch.until_step(2)
    os.kill(launch.rank(1), signal.SIGSTOP)
    assert launch.seconds_until_gone() < TIMEOUT_SECONDS + 2 * GONE_SECONDS
    assert "error: rank 1 of 2 hung" in launch.printed()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "launcher", "everyone"),
    [
        (signal.SIGTERM, (), False),
        (signal.SIGINT, (), False),
        (signal.SIGTERM, TORCHRUN, False),
        (signal.SIGTERM, (), True),
        (signal.SIGUSR1, (), True),
        (signal.SIGTERM, TORCHRUN, True),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_weights(
    place: Place, start: Start, number: signal.Signals, launcher: tuple[str, ...], everyone: bool
) -> None:
    """Of the parent alone, or of every process of the job, loader workers too, as SLURM and systemd send it."""
    name = f"asked-{number.name}-{len(launcher)}-{everyone}"
    config = write_config(place, name, 40, pause=0.2)
    more = ("--resume", "auto", "--data.num_workers=2")
    first = start(config, *more, launcher=launcher)
    first.until_step(2)
    for pid in sorted(first.alive()) if everyone else [first.process.pid]:
        os.kill(pid, number)
    code = first.wait()
    assert code == (1 if launcher else 130 if number == signal.SIGINT else 143), first.printed()
    assert first.record().status == "interrupted"
    assert max(first.run().steps()) == first.record().spent["steps"] < 40
    again = start(config, *more, launcher=launcher)
    assert again.wait() == 0, again.printed()
    straight = start(write_config(place, f"{name}-straight", 40), "--data.num_workers=2")
    assert straight.wait() == 0, straight.printed()
    assert again.record().status == "finished" and same(again.weights(), straight.weights())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("launcher", "more"), [((), ("--launch.max_restarts=3",)), ((*TORCHRUN, "--max-restarts", "3"), ("--resume", "auto"))]
)
def test_a_killed_rank_is_started_again_and_ends_at_the_same_weights(
    place: Place, start: Start, rank: int, launcher: tuple[str, ...], more: tuple[str, ...]
) -> None:
    name = f"again-{rank}-{len(launcher)}"
    launch = start(write_config(place, name, step=13, rank=rank), *more, "--data.num_workers=2", launcher=launcher)
    assert launch.wait() == 0, launch.printed()
    straight = start(write_config(place, f"{name}-straight"), "--data.num_workers=2")
    assert straight.wait() == 0, straight.printed()
    assert launch.record().spent["steps"] == 20 and same(launch.weights(), straight.weights())


@pytest.mark.slow
def test_a_single_rank_without_a_checkpoint_begins_anew_in_the_same_folder(place: Place, start: Start) -> None:
    launch = start(write_config(place, "early", steps=6, step=1, rank=0), "--launch.max_restarts=2", "--trainer.devices=1")
    assert launch.wait() == 0, launch.printed()
    assert launch.record().spent["steps"] == 6  # of the one run there is


@pytest.mark.slow
def test_torchrun_names_the_killed_rank_first(place: Place, start: Start) -> None:
    launch = start(write_config(place, "torchrun", LONG, step=3, rank=1), launcher=TORCHRUN)
    assert launch.wait() == 1
    root = launch.printed().partition("Root Cause")[2]
    assert "rank      : 1" in root and "SIGKILL" in root


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN])
def test_a_bad_setting_is_said_once(place: Place, start: Start, launcher: tuple[str, ...]) -> None:
    more: dict[str, Any] = {"launcher": launcher}
    launch = start(write_config(place, f"bad-{len(launcher)}"), "--data.global_batch_size=7", **more)
    assert launch.wait() == (1 if launcher else 2)
    printed = launch.printed().partition("Root Cause")[2] if launcher else launch.printed()
    assert printed.count("rror: a global batch of 7 cannot be cut") == 1 and printed.count("set data.global_batch_size to 6") == 1
    assert "Traceback" not in printed
