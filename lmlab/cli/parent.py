"""The parent of ranks on one machine: torch's elastic launcher, which knows how to start and restart, with eyes for who failed first."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from lmlab.cli.launching import LaunchConfig
from lmlab.cli.ranks import PARENT, read_word
from lmlab.cli.verdict import SAVED, Ending, error_of, first_cause
from lmlab.errors import CheckpointError, LabError
from lmlab.job import run_of_job
from lmlab.run.directory import RunDirectory
from lmlab.run.record import Record, now

HOST = "localhost"
LOOK_SECONDS = 0.1  # between two looks at the ranks
REST_SECONDS = 3.0  # for the other ranks to leave by themselves after one has failed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
UNHEARD = (-signal.SIGINT, -signal.SIGTERM, -signal.SIGUSR1)  # of ranks that did not listen to signals yet
SETTINGS_CODE = 2  # settings do not get better by trying again


class RankAgent(LocalElasticAgent):
    """An elastic agent that notes in which order ranks end, and lets none outlive the others.

    torch's own waits 30 seconds before it kills a rank that does not answer, orders failures by whole seconds, and signals whole process
    groups, so that loader workers die before a rank has saved.

    Args:
        spec: What to run, and how often.
        logs: Where each rank's output goes.
        stop_seconds: See `LaunchConfig`.
    """

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, stop_seconds: float) -> None:
        super().__init__(spec, logs)
        self.stop_seconds = stop_seconds
        self.endings: dict[int, Ending] = {}
        self.given_up: set[int] = set()
        self.logs = Path(logs.root_log_dir)
        self.is_asked_to_stop = False

    @property
    def run_folder(self) -> RunDirectory | None:
        """The run that the ranks have told of."""
        group = self.get_worker_group()
        return run_of_job(str(group.master_addr), int(group.master_port)) if group.master_port else None

    def error(self) -> LabError:
        """What a person is to read."""
        return error_of(list(self.failures()), self.num_ranks, self.logs)

    @property
    def num_ranks(self) -> int:
        """How many it starts."""
        return self._worker_group.spec.local_world_size

    def failures(self) -> Iterator[Ending]:
        """Ranks that ended other than well."""
        return (ending for ending in self.endings.values() if ending.code != 0)

    # torch decorates the next three in a way that hides their signatures
    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.endings, self.given_up = {}, set()
        return super()._start_workers(worker_group)  # pyright: ignore[reportCallIssue]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._look()
        if any(True for _ in self.failures()):
            codes = {ending.code for ending in self.failures()}
            self.is_asked_to_stop = bool(codes & SAVED)
            self._wait(self.stop_seconds if self.is_asked_to_stop else REST_SECONDS)
            self._end_the_rest()
            if self.is_asked_to_stop or first_cause(list(self.failures())).code == SETTINGS_CODE:
                self._remaining_restarts = 0
        return super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]

    def _restart_workers(self, worker_group: WorkerGroup) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        maximum = worker_group.spec.max_restarts
        print(f"{self.error().what}; restart {maximum - self._remaining_restarts} of {maximum}", file=sys.stderr, flush=True)
        super()._restart_workers(worker_group)  # pyright: ignore[reportCallIssue]

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """Asks ranks to stop, waits as long as they may take to save, and ends what is left; a second signal ends it at once."""
        self._look()
        running = self._running()
        if running:
            self.is_asked_to_stop = True
            print(
                f"\nranks finish their step and save; the signal once more, or {self.stop_seconds:g} s, ends them",
                file=sys.stderr,
                flush=True,
            )
            for process in running.values():
                _signal(process.pid, death_sig if death_sig == signal.SIGINT else signal.SIGTERM)
            with suppress(SignalException):
                self._wait(self.stop_seconds)
            self._end_the_rest()
        super()._shutdown(death_sig, timeout)

    def _running(self) -> dict[int, Any]:
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return {rank: handler.proc for rank, handler in handlers.items() if handler.proc.poll() is None}

    def _look(self) -> None:
        """Notes who has ended since the last look."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        for rank, handler in handlers.items():
            code = handler.proc.poll()
            if code is not None and rank not in self.endings:
                word = read_word(Path(self._pcontext.error_files[rank]))  # type: ignore[union-attr]
                self.endings[rank] = Ending(rank, code, time.time(), word, rank in self.given_up)
                _signal_group(handler.proc.pid)  # what it has started
                for stream in (handler._stdout, handler._stderr):  # torch closes them with a signal only
                    if stream is not None:
                        stream.close()

    def _wait(self, seconds: float) -> None:
        """Waits until all ranks have ended."""
        end = time.monotonic() + seconds
        while self._running() and time.monotonic() < end:
            time.sleep(LOOK_SECONDS / 2)
            self._look()
        self._look()

    def _end_the_rest(self) -> None:
        for rank, process in self._running().items():
            self.given_up.add(rank)
            _signal_group(process.pid)
        self._wait(REST_SECONDS)


def start_ranks(num_ranks: int, command: Sequence[str], launch: LaunchConfig) -> int:
    """Starts ranks, and looks after them until all have ended.

    Args:
        num_ranks: How many.
        command: What each runs: arguments of this Python.
        launch: How often to start again, how long ranks may take to save.

    Returns:
        Exit code: 0, or 130 or 143 if the ranks were asked to stop and have saved.

    Raises:
        LabError: If a rank failed; it names the first.
    """
    folder = Path(tempfile.mkdtemp(prefix="lmlab-ranks-"))
    rendezvous = RendezvousParameters("c10d", f"{HOST}:0", uuid.uuid4().hex, 1, 1, local_addr=HOST)
    spec = WorkerSpec(
        role="rank",
        local_world_size=num_ranks,
        entrypoint=sys.executable,
        args=tuple(command),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=launch.max_restarts,
        monitor_interval=LOOK_SECONDS,
        local_addr=HOST,
    )
    quiet = dict.fromkeys(range(1, num_ranks), Std.ALL)  # rank 0 speaks for all
    agent = RankAgent(spec, DefaultLogsSpecs(str(folder), redirects=quiet), launch.stop_seconds)
    try:
        with _environment(num_ranks), _signals_given_back():
            return _run(agent, folder)
    finally:
        spec.rdzv_handler.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _run(agent: RankAgent, folder: Path) -> int:
    asked = 0
    try:
        agent.run()
    except SignalException as stop:
        asked = 128 + (signal.SIGINT if stop.sigval == signal.SIGINT else signal.SIGTERM)
    failures = list(agent.failures())
    if not failures:
        return 0
    if asked or agent.is_asked_to_stop:
        left = [ending for ending in failures if ending.code in SAVED]
        crashed = [ending for ending in failures if not ending.given_up and ending.code not in (*SAVED, *UNHEARD)]
        if not crashed:
            return _stopped(failures, asked or (left[0].code if left else 128 + signal.SIGTERM))
        failures = crashed
    error = error_of(failures, agent.num_ranks, agent.logs)
    _note(agent.run_folder, error)
    try:
        logs = _keep(folder, agent.run_folder)
    except (OSError, ValueError) as trouble:  # a full disk must not hide the cause
        print(f"what the ranks printed could not be kept: {trouble}", file=sys.stderr)
        raise error from None
    raise error_of(failures, agent.num_ranks, logs)


def _stopped(failures: Sequence[Ending], code: int) -> int:
    """The exit code of ranks that were asked to stop; says so if one of them did not come to save."""
    killed = [str(ending.rank) for ending in failures if ending.given_up]
    if killed:
        print(f"killed before they had saved: rank {', '.join(killed)}; launch.stop_seconds gives them longer", file=sys.stderr)
    return code


def _keep(folder: Path, run: RunDirectory | None) -> Path:
    """Moves what the ranks printed to the run's folder, if there is one, and returns the place of the last attempt."""
    home = Path(tempfile.mkdtemp(prefix="lmlab-failed-")) if run is None else run.path / "ranks"
    shutil.rmtree(home, ignore_errors=True)
    [attempts] = folder.iterdir()
    for path in attempts.rglob("error.json"):
        _write_trace(path)
    shutil.copytree(attempts, home)
    return max(home.iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))


def _write_trace(path: Path) -> None:
    """Makes a text of the traceback in an error file, which holds it on one line."""
    import json

    with suppress(OSError, ValueError, KeyError, TypeError):
        trace = json.loads(path.read_text(encoding="utf-8"))["message"]["extraInfo"]["py_callstack"]
        path.with_name("traceback.txt").write_text(trace, encoding="utf-8")


def _note(run: RunDirectory | None, error: LabError) -> None:
    """Has the run's record say the first cause; rank 0 may have died, or have seen only a consequence."""
    if run is None:
        return
    with suppress(CheckpointError):
        record = Record.load(run.record_path)
        if record.status in ("running", "failed"):
            replace(record, status="failed", ended=record.ended or now(), error=error.what).save(run.record_path)


@contextmanager
def _environment(num_ranks: int) -> Iterator[None]:
    """What ranks are to find in their environment, and silence of the launcher, whose part this file speaks."""
    before = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ[PARENT] = str(os.getpid())
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in SIGNALS)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // num_ranks)))
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _signals_given_back() -> Iterator[None]:
    """The launcher takes signals over and does not give them back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(pid: int) -> None:
    """Kills a rank and what it has started; each rank leads a process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
