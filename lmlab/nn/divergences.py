"""How far one distribution over a vocabulary is from another, and the slope of that in the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lmlab.config import check_choices, require


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig:
    """Which divergence of a student Q from a teacher P, both softened by a temperature.

    All are multiplied by the square of the temperature. The slope in the logits falls with it, so that otherwise another temperature would
    be another weight as well.

    Args:
        kind: `forward_kl` is KL(P || Q), which wants Q wherever P is; `reverse_kl` is KL(Q || P), which wants Q nowhere else; `jsd` is
            beta KL(P || M) + (1 - beta) KL(Q || M) with the mixture M = beta P + (1 - beta) Q.
        temperature: Logits of both are divided by it.
        beta: Of `jsd`, between 0 and 1; None is 0.5, the Jensen-Shannon divergence.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2 (temperature, and its square); Agarwal et al.
    2024, "On-Policy Distillation of Language Models", section 2 (the generalised JSD).
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    temperature: float = 1.0
    beta: float | None = None

    def __post_init__(self) -> None:
        """Refuses what is no divergence."""
        check_choices(self)
        require(0 < self.temperature < math.inf, self, "temperature", "logits are divided by it", "1 leaves them as they are, 2 is common")
        used = self.kind == "jsd" or self.beta is None
        require(used, self, "beta", "only jsd mixes the two", "leave it out, or set kind to jsd")
        rule = "at 0 and at 1 the generalised JSD is zero whatever the student does"
        require(0 < self.mixing < 1, self, "beta", rule, "0.5 is common; set kind to forward_kl or reverse_kl for the two ends")

    @property
    def mixing(self) -> float:
        """Share of the teacher in the mixture of `jsd`."""
        return 0.5 if self.beta is None else self.beta


class Divergence(NamedTuple):
    """What `with_slope` gives.

    Args:
        values: (N,), the square of the temperature included.
        slope: (N, V), in the student's logits.
    """

    values: Tensor
    slope: Tensor


def log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities in float32 whatever the logits are in: in half precision a divergence of two close ones is noise of any sign.

    Args:
        logits: (N, V).
        temperature: They are divided by it.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(wide if temperature == 1.0 else wide / temperature, dim=-1)


def mixed(log_probs_of_each: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Log of the weighted mean of several teachers' probabilities: the arithmetic mean, in which each keeps its say.

    Args:
        log_probs_of_each: (N, V) for each teacher.
        shares: Of each; they add up to 1.

    Source: Hinton et al. 2015, section 1 names the arithmetic and the geometric mean of an ensemble's distributions; this is the first.
    """
    if len(log_probs_of_each) == 1:
        return log_probs_of_each[0]
    return torch.stack([one + math.log(share) for one, share in zip(log_probs_of_each, shares, strict=True)]).logsumexp(0)


def divergence(teacher: Tensor, student: Tensor, config: DivergenceConfig) -> Tensor:
    """The divergence of each row, by operations that autograd knows; never negative, and zero where the two are equal.

    Args:
        teacher: (N, V) log-probabilities.
        student: (N, V) log-probabilities.
        config: Which.

    Returns:
        (N,), the square of the temperature included.
    """
    if config.kind == "forward_kl":
        values = (teacher.exp() * (teacher - student)).sum(-1)
    elif config.kind == "reverse_kl":
        values = (student.exp() * (student - teacher)).sum(-1)
    else:
        above_teacher, above_student = _middle(teacher, student, config.mixing)
        values = -(config.mixing * teacher.exp() * above_teacher + (1 - config.mixing) * student.exp() * above_student).sum(-1)
    return values.clamp(min=0.0) * config.temperature**2  # rounding may put a sum of many terms just below zero


def with_slope(teacher: Tensor, student: Tensor, config: DivergenceConfig) -> Divergence:
    """The divergence of each row and its slope, in closed form: for losses that make their gradient on the way forward.

    Args:
        teacher: (N, V) log-probabilities.
        student: (N, V) log-probabilities, of logits that were divided by the temperature.
        config: Which.
    """
    values, probs = divergence(teacher, student, config), student.exp()
    if config.kind == "forward_kl":
        return Divergence(values, (probs - teacher.exp()) * config.temperature)
    backward = config.kind == "reverse_kl"
    outer = student - teacher if backward else -(1 - config.mixing) * _middle(teacher, student, config.mixing)[1]
    # through the softmax: what is the same for all tokens has no effect
    return Divergence(values, probs * (outer - (probs * outer).sum(-1, keepdim=True)) * config.temperature)


def _middle(teacher: Tensor, student: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Log of the mixture of *probabilities*, minus the log-probabilities of teacher and student; a mean of logarithms would be another.

    Written so that both are exactly zero where the two agree, and finite however far they are apart.
    """
    gap = student - teacher
    closer = torch.where(gap > 0, -gap, gap).expm1()  # in (-1, 0]
    above = torch.where(gap > 0, torch.log1p(beta * closer), torch.log1p((1 - beta) * closer))  # above the larger of the two
    return torch.where(gap > 0, above + gap, above), torch.where(gap > 0, above, above - gap)
