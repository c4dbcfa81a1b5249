"""What a process does that is one rank of several: it dies with its parent, and leaves word of why it failed.

torch's elastic launcher, or `lmlab.cli.parent`, which builds on it, starts the ranks and gives each a file for its last word. The first
cause of a failure must be readable there, so a rank that only lost the others says so, and says it after them.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lmlab.errors import LabError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # set by the elastic launcher, for each rank another
PARENT = "LMLAB_PARENT"  # process id of lmlab's own parent; not set under torchrun
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LINGER_SECONDS = 2.0  # torchrun looks ten times a second; a loaded machine may keep it from doing so
LOST = ("gloo/transport", "connection reset by peer", "connection closed by peer", "connectfullmesh failed", "nccl error", "socket timeout")


class Word(NamedTuple):
    """Why a rank failed, in its own words.

    Args:
        kind: `lab` for an error with a remedy, `lost` if it only lost the others, `other` for any other exception.
        seconds: When, since the epoch.
        name: The exception's class.
        what: Its message.
        where: File and line, or setting.
        why: The rule that was broken.
        remedy: What to do.
        code: The exit code that goes with it.
    """

    kind: str
    seconds: float
    name: str
    what: str
    where: str = ""
    why: str = ""
    remedy: str = ""
    code: int = 1


def as_rank(call: Callable[[], int], code_of: Callable[[Exception], int]) -> int:
    """Runs a command as one rank of several.

    Args:
        call: The command.
        code_of: The exit code of an exception.

    Returns:
        Exit code. What went wrong stands in the launcher's error file, from which the launcher takes it.
    """
    follow_parent()
    faulthandler.enable(sys.__stderr__ or 2)  # a crash in compiled code leaves no other word
    try:
        return call()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        word = word_of(error, code_of(error))
        is_plain = word.kind == "lab" and not os.environ.get("LMLAB_DEBUG")  # says itself all there is to say
        trace = f"{word.name}: {error}" if is_plain else traceback.format_exc()
        if PARENT not in os.environ:
            if word.kind == "lost":
                _linger()
            _print(word, trace)
        write_word(Path(os.environ[ERROR_FILE]), word, trace)
        _leave(word.code)
        return word.code


def word_of(error: Exception, code: int) -> Word:
    """What to say of an exception.

    Args:
        error: The exception.
        code: Its exit code.
    """
    name, seconds = type(error).__name__, time.time()
    if isinstance(error, LabError):
        return Word("lab", seconds, name, error.what, error.where, error.why, error.remedy, code)
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return Word("lost" if lost_others(error) else "other", seconds, name, str(error), where, code=code)


def lost_others(error: BaseException) -> bool:
    """Whether an exception says that another rank does not answer, which is never the first cause.

    Args:
        error: The exception, with those it came from.
    """
    current: BaseException | None = error
    while current is not None:
        named = any(base.__name__ in ("DistNetworkError", "DistBackendError", "DistStoreError") for base in type(current).__mro__)
        if named or (isinstance(current, RuntimeError) and any(phrase in str(current).lower() for phrase in LOST)):
            return True
        current = current.__cause__ or current.__context__
    return False


def write_word(path: Path, word: Word, trace: str) -> None:
    """Writes a rank's last word in the form torch's launcher reads, with what lmlab adds to it.

    Args:
        path: The file the launcher named.
        word: What to say.
        trace: The traceback.
    """
    extra = {"py_callstack": trace, "timestamp": str(int(time.time()))}
    content: dict[str, Any] = {"message": {"message": f"{word.name}: {word.what}", "extraInfo": extra}, "lmlab": word._asdict()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)  # the launcher may look at any moment


def read_word(path: Path) -> Word | None:
    """What a rank left; None if it left nothing, as one that is killed does.

    Args:
        path: Its error file.
    """
    try:
        return Word(**json.loads(path.read_text(encoding="utf-8"))["lmlab"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def follow_parent() -> None:
    """Has the kernel kill this process when its parent dies, and the processes it forks when it dies itself (Linux).

    What it forks, loader workers, leaves its process group: a launcher signals the group, and a worker that dies of the signal would
    keep the rank from finishing its step and saving.
    """
    if not sys.platform.startswith("linux"):
        return
    _die_with_parent()
    parent = os.environ.get(PARENT)
    if parent is not None and os.getppid() != int(parent):  # it died before the kernel was asked
        os._exit(128 + signal.SIGKILL)
    os.register_at_fork(after_in_child=_leave_group)


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):  # a C library of another kind
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _leave(code: int) -> None:
    """Ends this process without tearing down what torch has built, which takes seconds, or waits for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_group() -> None:
    _die_with_parent()
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)


def _linger() -> None:
    """Lets the rank that failed first be seen first: torchrun orders failures by whole seconds."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(LINGER_SECONDS)


def _print(word: Word, trace: str) -> None:
    """Says what torchrun's own block of the first failure may leave out; an error with a remedy stands there as it is."""
    rank = os.environ.get("RANK", "0")
    if word.kind == "lost":
        print(f"rank {rank} lost the others; another rank failed first ({word.name}: {word.what.splitlines()[0]})", file=sys.stderr)
    elif word.kind == "other":
        print(f"rank {rank} failed:\n{trace}", file=sys.stderr)
