"""Ranks are told of the run that rank 0 has chosen now, whatever ranks before them had asked or were told."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path

import pytest
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lmlab import job
from lmlab.errors import LabError
from lmlab.job import Choice, forget_run, run_before_restart, run_of_job, tell_ranks, told_by_rank_zero
from lmlab.run.directory import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
SECONDS = 30


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrefixStore]:
    """That of an elastic launcher with three ranks; this process is rank 0."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    settings = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    for name, value in {**settings, "WORLD_SIZE": "3", "RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(job.RUN_VARIABLE, "")  # is set by what is tested, and put back by this
    yield PrefixStore("lmlab", server)


@pytest.fixture
def others(store: PrefixStore) -> Iterator[Pool]:
    """Processes that can be ranks 1 and 2."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        yield pool


def asks(rank: int, restarts: int) -> Choice | None:
    os.environ |= {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(restarts), job.RUN_VARIABLE: ""}
    return told_by_rank_zero(1)


def ask(others: Pool, restarts: int = 0) -> list[AsyncResult[Choice | None]]:
    return [others.apply_async(asks, (rank, restarts)) for rank in (1, 2)]


def choice(folder: Path, step: int) -> Choice:
    return Choice(RunDirectory(folder.resolve()), folder.resolve() / f"step={step}.ckpt" if step else None, step)


def test_all_ranks_get_the_same_folder_checkpoint_and_step(store: PrefixStore, others: Pool, tmp_path: Path) -> None:
    assert told_by_rank_zero(1) is None, "this is rank 0"
    asked = ask(others)
    tell_ranks(choice(tmp_path, 3), 1)
    assert [one.get(SECONDS) for one in asked] == [choice(tmp_path, 3)] * 2
    assert told_by_rank_zero(1) == choice(tmp_path, 3), "as a rank that this process starts"
    forget_run()
    assert told_by_rank_zero(1) is None


def test_a_second_attempt_is_not_told_of_the_first_choice(store: PrefixStore, others: Pool, tmp_path: Path) -> None:
    """The count of restarts may be another one on another node, and need not have changed."""
    asked = ask(others)
    tell_ranks(choice(tmp_path, 0), 1)
    assert [one.get(SECONDS) for one in asked] == [choice(tmp_path, 0)] * 2
    assert run_of_job(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])) == run_before_restart(1) == choice(tmp_path, 0).run
    for restarts in (0, 1):
        asked = ask(others, restarts)  # before rank 0 comes
        tell_ranks(choice(tmp_path, 7 + restarts), 1)
        assert [one.get(SECONDS) for one in asked] == [choice(tmp_path, 7 + restarts)] * 2


def test_what_the_dead_had_asked_is_not_answered(store: PrefixStore, others: Pool, tmp_path: Path) -> None:
    store.set("run/1/asked by/1", "run/1/told/the dead")
    asked = ask(others)
    tell_ranks(choice(tmp_path, 2), 1)
    assert [one.get(SECONDS) for one in asked] == [choice(tmp_path, 2)] * 2


def test_silence_ends(store: PrefixStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(job, "SECONDS", 0.2)
    with pytest.raises(LabError, match="rank 1 has not asked"):
        tell_ranks(choice(tmp_path, 2), 1)
    forget_run()
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(LabError, match="rank 0 has not said"):
        told_by_rank_zero(1)
