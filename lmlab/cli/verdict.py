"""From how ranks ended to the one error a person reads: who failed first, how, and where to read on."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lmlab import errors
from lmlab.cli.ranks import Word
from lmlab.errors import LabError

SAVED = frozenset({128 + signal.SIGINT, 128 + signal.SIGTERM})
"""How ranks leave that were asked to, and have saved."""

AHEAD_SECONDS = 2.0  # a rank whose neighbour is killed may speak of it before the parent looks
WHY = {
    signal.SIGKILL: "the kernel kills like this when memory runs out (`dmesg` tells); so does `kill -9`",
    signal.SIGSEGV: "compiled code reached for memory that is not its own",
    signal.SIGBUS: "compiled code reached for memory that is not there; shared memory (/dev/shm) may be full",
    signal.SIGABRT: "compiled code gave up; a timeout of NCCL looks like this, too",
    signal.SIGTERM: "somebody ended it before it could save",
}


class Ending(NamedTuple):
    """How one rank ended.

    Args:
        rank: Its number.
        code: Exit code, the negative number of a signal for one that was killed.
        seconds: When the parent saw it, since the epoch.
        word: What it left.
        given_up: Whether it was still there when the others had failed, and the parent ended it.
    """

    rank: int
    code: int
    seconds: float
    word: Word | None = None
    given_up: bool = False


def first_cause(endings: Sequence[Ending]) -> Ending:
    """The rank that failed first.

    A lost connection is a consequence; if nothing but lost connections is told, a rank that was alive to the end is what they waited for.

    Args:
        endings: Those of all ranks that ended other than well, one at least.
    """

    def order(ending: Ending) -> tuple[int, float]:
        if ending.given_up:
            return 1, ending.seconds
        if ending.word is None:
            return 0, ending.seconds - (AHEAD_SECONDS if ending.code < 0 and ending.code != -signal.SIGABRT else 0)
        return (2 if ending.word.kind == "lost" else 0), ending.word.seconds

    return min(endings, key=order)


def error_of(endings: Sequence[Ending], num_ranks: int, logs: Path) -> LabError:
    """The error to show.

    Args:
        endings: Those of all ranks that ended other than well, one at least.
        num_ranks: How many ranks there were.
        logs: Folder with the output of each rank, by its number.
    """
    first = first_cause(endings)
    name, word, where = f"rank {first.rank} of {num_ranks}", first.word, str(logs / str(first.rank))
    read = f"its full traceback and output: {where}"
    if first.given_up:
        waited = next((e.word for e in endings if e.word is not None and e.word.kind == "lost"), None)
        why = f"the others waited for it until their time was up: {_line(waited.what)}" if waited else "the others had failed"
        remedy = "the strategy's `timeout` says how long ranks wait for each other; go on with --resume auto"
        return LabError(f"{name} hung: it was alive and did not answer", where=where, why=why, remedy=remedy)
    if word is None and first.code < 0:
        number = -first.code
        what = f"{name} was killed by signal {number} ({_name(number)})"
        return LabError(what, where=where, why=WHY.get(number, ""), remedy="go on from the last checkpoint with --resume auto")  # type: ignore[call-overload]
    if word is None:
        return LabError(f"{name} ended with exit code {first.code} and left no word", where=where, remedy="read its output there")
    if word.kind == "lab":
        told = [e.word.what for e in endings if e.word is not None and e.word.kind == "lab"]
        what = word.what if first.rank == 0 or told == [word.what] * num_ranks else f"{name}: {word.what}"
        return _class(word)(what, where=word.where, why=word.why, remedy=word.remedy)
    if word.kind == "lost":
        return LabError(f"{name} lost the others, and none of them failed", where=word.where, why=_line(word.what), remedy=read)
    return LabError(f"{name} failed with {word.name}: {word.what}", where=word.where, remedy=read)


def _class(word: Word) -> type[LabError]:
    found = getattr(errors, word.name, None)
    if isinstance(found, type) and issubclass(found, LabError):
        return found
    return LabError if word.code == 1 else errors.ConfigError


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
