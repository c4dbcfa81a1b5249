"""Divergences: against torch's distributions, closed forms and autograd; their signs, ends and limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from lmlab.errors import ConfigError
from lmlab.nn.divergences import DivergenceConfig, divergence, log_probs, mixed, with_slope

KINDS = [
    DivergenceConfig(kind="forward_kl", temperature=2.0),
    DivergenceConfig(kind="reverse_kl", temperature=3.0),
    DivergenceConfig(kind="jsd", beta=0.3, temperature=1.5),
]


def logits(rows: int = 5, size: int = 11, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).to(dtype)


def both(temperature: float, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return log_probs(logits(seed=1, dtype=dtype), temperature), log_probs(logits(seed=2, dtype=dtype), temperature)


def test_the_two_kl_are_those_of_torch() -> None:
    p, q = both(2.0)
    first, second = Categorical(logits=logits(seed=1) / 2), Categorical(logits=logits(seed=2) / 2)
    forward = divergence(p, q, DivergenceConfig(kind="forward_kl", temperature=2.0))
    backward = divergence(p, q, DivergenceConfig(kind="reverse_kl", temperature=2.0))
    torch.testing.assert_close(forward, 4 * kl_divergence(first, second))
    torch.testing.assert_close(backward, 4 * kl_divergence(second, first))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_the_jsd_mixes_probabilities_and_weighs_the_two_sides(beta: float) -> None:
    """The mixture is of probabilities, the teacher's with beta; a mixture of logarithms gives another number."""
    p, q = both(1.0)
    wanted = []
    for row_p, row_q in zip(p.exp().tolist(), q.exp().tolist(), strict=True):
        middle = [beta * a + (1 - beta) * b for a, b in zip(row_p, row_q, strict=True)]
        first = sum(a * math.log(a / m) for a, m in zip(row_p, middle, strict=True))
        second = sum(b * math.log(b / m) for b, m in zip(row_q, middle, strict=True))
        wanted.append(beta * first + (1 - beta) * second)
    torch.testing.assert_close(divergence(p, q, DivergenceConfig(kind="jsd", beta=beta)), torch.tensor(wanted, dtype=p.dtype))


def test_the_jsd_is_symmetric_in_the_middle_and_a_kl_at_its_ends() -> None:
    p, q = both(1.0)
    middle = DivergenceConfig(kind="jsd", beta=0.5)
    torch.testing.assert_close(divergence(p, q, middle), divergence(q, p, middle))
    assert (divergence(p, q, middle) < math.log(2)).all()
    forward, backward = (divergence(p, q, DivergenceConfig(kind=kind)) for kind in ("forward_kl", "reverse_kl"))  # type: ignore[arg-type]
    near = 1e-7
    torch.testing.assert_close(divergence(p, q, DivergenceConfig(kind="jsd", beta=near)) / near, forward, rtol=1e-3, atol=0)
    torch.testing.assert_close(divergence(p, q, DivergenceConfig(kind="jsd", beta=1 - near)) / near, backward, rtol=1e-3, atol=0)


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_never_negative_and_zero_where_the_two_are_equal(config: DivergenceConfig, dtype: torch.dtype) -> None:
    close = logits(400, 50, seed=3, dtype=dtype)
    for scale in (0.0, 1e-4, 1e-2, 1.0, 30.0):
        other = (close.float() + scale * logits(400, 50, seed=4, dtype=torch.float32)).to(dtype)
        values = divergence(log_probs(close, config.temperature), log_probs(other, config.temperature), config)
        assert values.dtype == torch.float32 and values.isfinite().all() and (values >= 0).all()
    same = log_probs(close, config.temperature)
    assert not divergence(same, same.clone(), config).any()


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
def test_the_slope_in_closed_form_is_that_of_autograd(config: DivergenceConfig) -> None:
    scores = logits(seed=2).requires_grad_()
    target = log_probs(logits(seed=1), config.temperature)
    softened = log_probs(scores, config.temperature)
    values = divergence(target, softened, config)
    values.sum().backward()
    found = with_slope(target, softened.detach(), config)
    assert scores.grad is not None
    torch.testing.assert_close(found.values, values.detach())
    torch.testing.assert_close(found.slope, scores.grad)


def slope_norm(config: DivergenceConfig) -> float:
    softened = [log_probs(logits(seed=seed), config.temperature) for seed in (1, 2)]
    return with_slope(softened[0], softened[1], config).slope.norm().item()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_the_slope_does_not_depend_on_a_high_temperature(kind: Any) -> None:
    """Hinton et al. 2015, equation 4: in the limit it is the difference of the centred logits, divided by their number."""
    beta = 0.5 if kind == "jsd" else None
    hot = DivergenceConfig(kind=kind, temperature=1e4, beta=beta)
    target, student = logits(seed=1), logits(seed=2)
    found = with_slope(log_probs(target, 1e4), log_probs(student, 1e4), hot).slope
    difference = (student - student.mean(-1, keepdim=True)) - (target - target.mean(-1, keepdim=True))
    share = 0.25 if kind == "jsd" else 1.0  # the second derivative of beta (1 - beta) at one half
    torch.testing.assert_close(found, share * difference / target.shape[1], rtol=1e-2, atol=1e-3)
    warm = [slope_norm(DivergenceConfig(kind=kind, temperature=t, beta=beta)) for t in (20.0, 40.0, 80.0)]
    assert max(warm) / min(warm) < 1.1
    without_square = [norm / t**2 for norm, t in zip(warm, (20.0, 40.0, 80.0), strict=True)]
    assert without_square[0] > 3.5 * without_square[1] > 12 * without_square[2]


def test_teachers_are_averaged_in_probability() -> None:
    each = [log_probs(logits(seed=seed), 2.0) for seed in (1, 2, 3)]
    wanted = sum(share * one.exp() for share, one in zip((0.5, 0.3, 0.2), each, strict=True))
    torch.testing.assert_close(mixed(each, (0.5, 0.3, 0.2)).exp(), wanted)
    assert mixed(each[:1], (1.0,)) is each[0]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"temperature": 0.0}, "logits are divided"),
        ({"kind": "jsd", "beta": 0.0}, "zero whatever"),
        ({"kind": "jsd", "beta": 1.0}, "zero whatever"),
        ({"beta": 0.5}, "only jsd"),
        ({"kind": "kl"}, "not a choice"),
    ],
)
def test_what_is_no_divergence_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        DivergenceConfig(**settings)
