"""Keeps the threads of `tokenizers` out of forked processes, where they would hang or complain."""

from __future__ import annotations

import os

PARALLELISM_VARIABLE = "TOKENIZERS_PARALLELISM"

_saved: list[str | None] = []
_installed: list[bool] = []


def install() -> None:
    """Makes every forked process, such as a loader worker, encode on one thread; the parent keeps its threads.

    The thread pool of `tokenizers` does not survive a fork. Some versions then print a warning, others switch to one thread
    silently, and all of them hang when `TOKENIZERS_PARALLELISM=true` is in the environment. The library reads the variable
    while the system forks, so it is set just before and put back just after, in the parent only. Calling this twice is harmless.
    """
    if _installed or not hasattr(os, "register_at_fork"):
        return
    os.register_at_fork(before=_forbid, after_in_parent=_restore)
    _installed.append(True)


def _forbid() -> None:
    _saved.append(os.environ.get(PARALLELISM_VARIABLE))
    os.environ[PARALLELISM_VARIABLE] = "false"


def _restore() -> None:
    value = _saved.pop()
    if value is None:
        os.environ.pop(PARALLELISM_VARIABLE, None)
    else:
        os.environ[PARALLELISM_VARIABLE] = value
