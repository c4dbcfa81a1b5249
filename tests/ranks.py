"""Ranks that start in no time: forked from the process of the test, which has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

SECONDS = 120


def forked(job: Callable[[], None], num_ranks: int = 2, exit_code: int = 0) -> None:
    """Runs something on several ranks, which find each other as those of a launcher do.

    Args:
        job: Called on each rank; what it is to leave behind it writes to files.
        num_ranks: Processes.
        exit_code: How each is to end.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def run(rank: int) -> None:
        listener.close()
        torch.set_num_threads(1)  # threads do not live on in a fork
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "forked", "GROUP_RANK": "0"}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        job()

    ranks = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(num_ranks)]
    for rank in ranks:
        rank.start()
    # the parent keeps it, as torch's elastic agent does; only now, for a fork does not take its thread along, but the locks that this holds
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    try:
        for rank in ranks:
            rank.join(SECONDS)
        assert [rank.exitcode for rank in ranks] == [exit_code] * num_ranks
    finally:
        for rank in ranks:
            rank.kill()  # one that waits for another
            rank.join()
        del store  # a failed test is kept, with all it knew; the store's thread must not be there at the next fork


def import_deepspeed() -> None:
    """Imports what each rank would import again, seconds of it: DeepSpeed has torch's compiler imported, when an engine is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it calls of torch is deprecated
        import deepspeed.runtime.zero.muon.muon_optimizer
        import deepspeed.utils  # noqa: F401
