"""Processes that tokenise shards: started afresh, fed through a pipe, and gone as soon as their parent is.

Plain subprocesses instead of `multiprocessing`: forking is unsafe once the thread pool of the tokenizer is warm, and spawning
imports the user's main script again, which breaks scripts without an `if __name__ == "__main__"`. A worker that waits for its
next shard reads from a pipe, so even the kill of its parent ends it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from lmlab.data.cleaning import CleaningCounts
from lmlab.data.store.encoding import Encoder
from lmlab.data.store.shards import InterruptedBuildError, RawShard, ShardWriter
from lmlab.errors import DataError, LabError


class WorkerPool:
    """A few processes that write shards.

    Args:
        writer: What each of them does.
        num_processes: How many.
    """

    def __init__(self, writer: ShardWriter, num_processes: int) -> None:
        self._workers = [_Worker(writer) for _ in range(num_processes)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="shards")  # each waits for one process

    def submit(self, raw: RawShard) -> Future[CleaningCounts]:
        """Hands a shard to the next free process.

        Args:
            raw: The documents; kept until a process takes them, so submit only a few more than there are processes.
        """
        return self._threads.submit(self._run, raw)

    def __enter__(self) -> WorkerPool:
        """Is its own context."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the processes; at once after an error."""
        if error is not None:
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _run(self, raw: RawShard) -> CleaningCounts:
        worker = self._idle.get()
        try:
            return worker.ask(raw)
        finally:
            self._idle.put(worker)


class _Worker:
    def __init__(self, writer: ShardWriter) -> None:
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        # one thread each: the processes already fill the cores
        environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-c", "from lmlab.data.store.workers import serve; serve()"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self._writer: ShardWriter | None = writer  # sent with the first shard, when the process is up

    def ask(self, raw: RawShard) -> CleaningCounts:
        try:
            if self._writer is not None:
                pickle.dump(self._writer, self.input)
                self._writer = None
            pickle.dump(raw, self.input, protocol=pickle.HIGHEST_PROTOCOL)
            self.input.flush()
            reply = pickle.load(self.output)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise InterruptedBuildError(
                "a process that tokenised the corpus has died",
                where=f"{raw.documents[0].source} and the {len(raw.documents) - 1} documents after it",
                why=f"exit code {self._exit_code()}; -9 usually means that memory ran out",
                remedy="start again: finished parts are kept; set store.num_processes or store.shard_characters lower",
            ) from error
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def kill(self) -> None:
        self.process.kill()

    def _exit_code(self) -> int | None:
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it lives, but does not answer in a way that can be read
            self.kill()
            return None

    def close(self) -> None:
        for pipe in (self.input, self.output):
            with contextlib.suppress(OSError):  # the process went first
                pipe.close()
        self.process.wait()


def serve() -> None:
    """What a worker process does: reads shards from its standard input until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land among the replies
    requests = sys.stdin.buffer
    try:
        writer: ShardWriter = pickle.load(requests)
        encoder = Encoder(writer.tokenizer)
        while True:
            pickle.dump(_reply(writer, pickle.load(requests), encoder), replies)
            replies.flush()
    except (EOFError, BrokenPipeError):  # the parent is done, or dead
        return


def _reply(writer: ShardWriter, raw: RawShard, encoder: Encoder) -> Any:
    try:
        return writer.write(raw, encoder)
    except LabError as error:
        return error
    except Exception as error:  # the parent must know, whatever it is
        place = f"{raw.documents[0].source} and the {len(raw.documents) - 1} documents after it"
        remedy = "find the document; if it is sound, this is a bug"
        return DataError("a part of the corpus cannot be tokenised", where=place, why=f"{type(error).__name__}: {error}", remedy=remedy)
