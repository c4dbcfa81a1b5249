"""How a batch is cut: into micro-batches, and over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How the global batch is cut: `global_size = micro_size * world_size * micro-batches per window`.

    Args:
        global_size: Examples per optimiser step, over all ranks.
        micro_size: Examples per forward pass on one rank.
        rank: This rank among the data-parallel ranks.
        world_size: Data-parallel ranks.
        loss_over: `batch` keeps this rank's share of a window in one piece.
        min_examples: Fewest examples that a batch makes sense with, over all ranks.
    """

    global_size: int
    micro_size: int
    rank: int = 0
    world_size: int = 1
    loss_over: Literal["examples", "batch"] = "examples"
    min_examples: int = 1

    def __post_init__(self) -> None:
        """Checks that the cut comes out even."""
        per_pass = self.micro_size * self.world_size
        if min(self.global_size, self.micro_size) < 1 or self.global_size % per_pass:
            raise ConfigError(
                f"a global batch of {self.global_size} cannot be cut into micro-batches of {self.micro_size} on {self.world_size} rank(s)",
                where="data.global_batch_size, data.micro_batch_size",
                why="global_batch_size must be a multiple of micro_batch_size times the number of ranks",
                remedy=f"set data.global_batch_size to {max(1, round(self.global_size / max(1, per_pass))) * max(1, per_pass)}",
            )
        if self.global_size < self.min_examples:
            raise ConfigError(
                f"a global batch of {self.global_size} is too small here",
                where="data.global_batch_size",
                why=f"the examples of a batch are compared with each other, so it has at least {self.min_examples}",
                remedy="set data.global_batch_size to 64, or more; data.micro_batch_size decides the memory",
            )

    @property
    def num_micro(self) -> int:
        """Batches per window on each rank: the gradient accumulation."""
        return self.global_size // (self.batch_size * self.world_size)

    @property
    def batch_size(self) -> int:
        """Examples in one of them."""
        return self.micro_size if self.loss_over == "examples" else self.global_size // self.world_size

    def positions(self, window: int) -> list[int]:
        """Positions of this rank's examples in a window, in the order in which they are consumed.

        Args:
            window: Running number of the window, which is the optimiser step.
        """
        start, stride = window * self.global_size, self.micro_size * self.world_size
        first = range(start + self.rank * self.micro_size, start + self.global_size, stride)
        return [n for begin in first for n in range(begin, begin + self.micro_size)]


def deal(num_examples: int, plan: BatchPlan, rank: int) -> list[list[int]]:
    """Which evaluation examples a rank sees in which batch.

    Where the loss is over a batch, batches are those of one rank alone, whole ones only, dealt out in turn: then the number of ranks
    does not decide what is compared.

    Args:
        num_examples: Of the evaluation.
        plan: How batches are cut.
        rank: Of the data-parallel ranks.

    Raises:
        ConfigError: If there are fewer than a batch needs.
    """
    if num_examples < plan.min_examples:
        raise ConfigError(
            f"an evaluation of {num_examples} example(s) is too small here",
            where="data.eval_examples",
            why=f"the examples of a batch are compared with each other, so it has at least {plan.min_examples}",
            remedy="raise data.eval_examples, or hold out more text: data.store.val_share",
        )
    if plan.loss_over == "batch":
        whole = max(num_examples // plan.global_size, 1) * plan.global_size
        batches = [list(range(i, min(i + plan.global_size, num_examples))) for i in range(0, whole, plan.global_size)]
        return batches[rank :: plan.world_size]
    share = range(rank, num_examples, plan.world_size)
    return [list(share[i : i + plan.micro_size]) for i in range(0, len(share), plan.micro_size)]
