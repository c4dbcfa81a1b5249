"""Ranks as training sees them: those that share one batch count once, however many hold parts of its network."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from torch import Tensor


class DataRank(NamedTuple):
    """This process among those that read data of their own.

    Args:
        rank: Its number.
        size: How many there are. Where layers are cut over ranks (tensor parallelism), those of one cut read the same data.
    """

    rank: int
    size: int


def data_rank(trainer: Trainer | None) -> DataRank:
    """Which share of the data is this process's.

    Args:
        trainer: Its strategy knows; None outside a trainer, where there is one process.
    """
    shares: dict[str, Any] | None = None if trainer is None else trainer.distributed_sampler_kwargs
    return DataRank(0, 1) if shares is None else DataRank(shares["rank"], shares["num_replicas"])


def sum_over_data(trainer: Trainer, value: Tensor) -> Tensor:
    """Adds a tensor up over the ranks that read different data, without gradient.

    Args:
        trainer: Its strategy talks to the other ranks.
        value: The same shape on all ranks; on the strategy's device.
    """
    if trainer.world_size == 1:
        return value
    total: Tensor = trainer.strategy.reduce(value, reduce_op="sum")  # type: ignore[assignment]
    copies = trainer.world_size // data_rank(trainer).size
    return total if copies == 1 else (total / copies).to(total.dtype)
