"""How long a budget takes, from a utilisation that the user states: nothing here is measured."""

from __future__ import annotations

from dataclasses import dataclass

from lmlab.budget import BudgetConfig

RECOMPUTATION = 4 / 3
"""FLOPs of a step with each layer recomputed, over those without: forward, forward again, and backward of twice that (Chen et al. 2016)."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step does.

    Args:
        tokens: Raw corpus tokens of a step, over all ranks.
        flops: Forward and backward of a step, over all ranks, without recomputation.
        recomputes: Factor on `flops` for what is computed twice.
    """

    tokens: int
    flops: int
    recomputes: float = 1.0

    @property
    def flops_per_token(self) -> float:
        """Forward and backward, without recomputation."""
        return self.flops / self.tokens


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """A budget in every unit that can be told.

    Args:
        steps: Of the optimiser.
        tokens: Raw corpus tokens.
        flops: Without recomputation.
        seconds: None without a speed.
    """

    steps: float
    tokens: float
    flops: float
    seconds: float | None


def tokens_per_second(cost: Cost, peak_flops: float, utilisation: float, devices: int) -> float:
    """Raw corpus tokens a second, over all devices.

    Args:
        cost: Of a step.
        peak_flops: Of a device, a second.
        utilisation: Share of that peak which is reached, all FLOPs counted, recomputed ones too; in (0, 1].
        devices: How many.

    Source: Chowdhery et al. 2022, "PaLM", appendix B (utilisation of the hardware's FLOPs).
    """
    return devices * peak_flops * utilisation / (cost.flops_per_token * cost.recomputes)


def amounts(budget: BudgetConfig, cost: Cost, speed: float | None) -> Amounts | None:
    """The budget in steps, tokens, FLOPs and seconds.

    Args:
        budget: When the run ends.
        cost: Of a step.
        speed: Tokens a second; None if unknown.

    Returns:
        None if the budget is in seconds and no speed is known, or in FLOPs and the objective takes none.
    """
    if budget.unit == "seconds":
        tokens = None if speed is None else budget.limit * speed
    elif budget.unit == "flops":
        tokens = budget.limit / cost.flops_per_token if cost.flops else None
    else:
        tokens = float(budget.limit) * (cost.tokens if budget.unit == "steps" else 1)
    if tokens is None:
        return None
    seconds = tokens / speed if speed else None
    return Amounts(steps=tokens / cost.tokens, tokens=tokens, flops=tokens * cost.flops_per_token, seconds=seconds)
