"""DDP: each rank has the whole network, and gradients are averaged."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy


class DDP(DDPStrategy):
    """Data parallelism.

    Lightning's own, with a `timeout` in seconds.

    Args:
        timeout: Seconds after which a rank that does not answer ends the job.
        process_group_backend: How ranks talk; None takes nccl on GPUs and gloo on CPUs.
        options: Further keyword arguments of torch's `DistributedDataParallel`.

    Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", section 3.
    """

    def __init__(self, timeout: float = 1800.0, process_group_backend: str | None = None, options: dict[str, Any] | None = None) -> None:
        super().__init__(timeout=timedelta(seconds=timeout), process_group_backend=process_group_backend, **(options or {}))
