"""Divergence from states: against plain operations on all scores at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmlab.nn import linear_divergence as module
from lmlab.nn.divergences import DivergenceConfig, divergence, log_probs, mixed
from lmlab.nn.linear_divergence import Scores, linear_divergence

ROWS, SIZE, VOCAB = 23, 7, 31
CONFIGS = [
    DivergenceConfig(kind="forward_kl", temperature=2.0),
    DivergenceConfig(kind="reverse_kl"),
    DivergenceConfig(kind="jsd", beta=0.2, temperature=3.0),
]


def scores(seed: int, size: int = SIZE, bias: bool = True, grad: bool = False) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((ROWS, size), (VOCAB, size), (VOCAB,))]
    for part in parts:
        part.requires_grad_(grad)
    return Scores(parts[0], parts[1], parts[2] if bias else None)


def labels() -> torch.Tensor:
    wanted = torch.randint(VOCAB, (ROWS,), generator=torch.Generator().manual_seed(9))
    wanted[::5] = -100
    return wanted


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
@pytest.mark.parametrize("label_share", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_plain_operations(
    config: DivergenceConfig, label_share: float, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_AT_LEAST", 4)  # several chunks, the last of them short
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 4 * VOCAB)
    teachers, shares = [scores(1, size=5), scores(2, bias=False)], [0.7, 0.3]
    fused, plain = scores(3, bias=bias, grad=True), scores(3, bias=bias, grad=True)
    found = linear_divergence(fused, teachers, shares, labels(), config, label_share)
    (found.divergence * 2.5).backward()
    logits = F.linear(*plain)
    target = mixed([log_probs(F.linear(*one), config.temperature) for one in teachers], shares)
    value = divergence(target, log_probs(logits, config.temperature), config).sum()
    nats = F.cross_entropy(logits, labels(), reduction="sum")
    ((value + label_share * nats) * 2.5).backward()
    torch.testing.assert_close(found.divergence.detach(), value.detach())
    torch.testing.assert_close(found.nats, nats.detach())
    for mine, theirs in zip(fused, plain, strict=True):
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine.grad, theirs.grad)
    assert not found.nats.requires_grad and teachers[0].vectors.grad is None


def test_nothing_is_kept_without_gradients() -> None:
    with torch.no_grad():
        found = linear_divergence(scores(3, grad=True), [scores(1)], [1.0], labels(), CONFIGS[0], 1.0)
    assert not found.divergence.requires_grad and found.divergence > 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_half_precision_compares_in_full(config: DivergenceConfig) -> None:
    student = Scores(*(None if part is None else part.float().requires_grad_() for part in scores(1)))  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        same = linear_divergence(student, [student], [1.0], labels(), config, 0.0)
    same.divergence.backward()
    assert same.divergence.dtype == torch.float32 and same.divergence.item() == 0.0
    assert student.weight.grad is not None and student.weight.grad.dtype == torch.float32
    assert student.weight.grad.abs().max() < 1e-5
