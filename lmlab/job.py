"""What the ranks of one job tell each other before they can talk: rank 0 chooses a run's folder and checkpoint, the others ask for them."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lmlab.errors import LabError
from lmlab.run.directory import RunDirectory

RUN_VARIABLE = "LMLAB_RUN"  # tells ranks that Lightning starts from rank 0 what rank 0 has chosen
SECONDS = 1800.0  # rank 0 may have a text to prepare, or checkpoints to read through


class Choice(NamedTuple):
    """What rank 0 has chosen.

    Args:
        run: Its folder.
        checkpoint: Where it goes on from; None for a fresh start.
        step: Optimiser steps behind that checkpoint.
    """

    run: RunDirectory
    checkpoint: Path | None = None
    step: int = 0


def tell_ranks(choice: Choice, number: int) -> None:
    """Makes a choice known to ranks that this process starts, and to those that torch's elastic launcher has started beside it.

    Each of the latter asks under its number until it is told. What ranks asked that are dead by now is forgotten first: their numbers do
    not tell them from those that live, and neither does the launcher's count of restarts, which each node keeps for itself.

    Args:
        choice: Of rank 0, which is this process.
        number: Which run of this process it is, from 1.

    Raises:
        LabError: If a rank does not ask.
    """
    word = json.dumps([str(choice.run.path.resolve()), choice.checkpoint and str(choice.checkpoint.resolve()), choice.step])
    os.environ[RUN_VARIABLE] = word
    store = _elastic_store()
    if store is None:
        return
    store.set(f"run/{number}", str(choice.run.path.resolve()))
    questions = {rank: _question(number, rank) for rank in range(1, int(os.environ["WORLD_SIZE"]))}
    for key in questions.values():
        store.delete_key(key)
    for rank, key in questions.items():
        _until(lambda key=key: store.check([key]), f"rank {rank} has not asked which run it belongs to")
        store.set(store.get(key).decode(), word)


def told_by_rank_zero(number: int) -> Choice | None:
    """Rank 0's choice; None on rank 0 itself, and where there is only one process.

    Args:
        number: Which run of this process it is, from 1.

    Raises:
        LabError: If rank 0 says nothing.
    """
    word = os.environ.get(RUN_VARIABLE) or _asked(number)
    if not word:
        return None
    folder, checkpoint, step = json.loads(word)
    return Choice(RunDirectory(Path(folder)), checkpoint and Path(checkpoint), step)


def forget_run() -> None:
    """What was told to ranks to be started is not to be told to those of the next run."""
    os.environ.pop(RUN_VARIABLE, None)


def run_before_restart(number: int) -> RunDirectory | None:
    """The run that rank 0 had told of before the elastic launcher started all ranks again; the same one then goes on.

    Args:
        number: Which run of this process it is, from 1.
    """
    store = _elastic_store()
    if store is None or not store.check([f"run/{number}"]):
        return None
    if number == 1:
        _forget_addresses(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    return RunDirectory(Path(store.get(f"run/{number}").decode()))


def run_of_job(address: str, port: int) -> RunDirectory | None:
    """The run that the ranks of an elastic launcher work on, if rank 0 has told; the last one, if they had several.

    Args:
        address: Host of the launcher's store.
        port: Its port.
    """
    store, found = _job_store(address, port), None
    number = 1
    while store.check([f"run/{number}"]):
        found = RunDirectory(Path(store.get(f"run/{number}").decode()))
        number += 1
    return found


def _question(number: int, rank: int) -> str:
    return f"run/{number}/asked by/{rank}"


def _asked(number: int) -> str | None:
    store = _elastic_store() if os.environ.get("RANK", "0") != "0" else None
    if store is None:
        return None
    question, answer = _question(number, int(os.environ["RANK"])), f"run/{number}/told/{uuid.uuid4().hex}"

    def is_told() -> bool:
        store.set(question, answer)  # again, for rank 0 forgets what was asked before it came
        return store.check([answer])

    _until(is_told, "rank 0 has not said which run this is")
    return store.get(answer).decode()


def _until(is_so: Callable[[], bool], what_is_wrong: str) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        if time.monotonic() > end:
            raise LabError(what_is_wrong, where="the launcher's store", why=f"nothing came in {SECONDS:.0f} s", remedy="look at its output")
        time.sleep(0.05)


def _job_store(address: str, port: int) -> Store:
    return PrefixStore("lmlab", TCPStore(address, port, is_master=False))


def _elastic_store() -> Store | None:
    """The key-value store of torch's elastic launcher, if it started this process; it lives on when ranks are started again."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return _job_store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def _forget_addresses(address: str, port: int) -> None:
    """Removes the addresses of dead ranks from the launcher's store; the others look there only after rank 0 has told them of the run.

    torch 2.13 keeps one store for all attempts and writes to it under the same names, so that ranks would call dead ones
    ("Gloo connectFullMesh failed").
    """
    store = TCPStore(address, port, is_master=False)
    for key in store.list_keys():
        if key.startswith("default_pg/"):
            store.delete_key(key)
