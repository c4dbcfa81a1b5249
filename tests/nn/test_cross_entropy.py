"""The fused loss against torch's, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmlab.data.batch import IGNORE_INDEX
from lmlab.errors import DataError
from lmlab.nn import cross_entropy
from lmlab.nn.cross_entropy import linear_cross_entropy

N, D, V = 23, 6, 11
HALF_ERROR = 2**-7  # two roundings to eight bits of mantissa


@pytest.fixture(params=[False, True], ids=["one chunk", "many chunks"])
def chunked(request, monkeypatch) -> None:
    if request.param:
        monkeypatch.setattr(cross_entropy, "SCORES_AT_ONCE", 5 * V)
        monkeypatch.setattr(cross_entropy, "ROWS_AT_LEAST", 1)
        monkeypatch.setattr(cross_entropy, "SOFTMAX_AT_ONCE", 2 * V)


def _inputs(bias: bool, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, D), (V, D), *([(V,)] if bias else [])]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def _labels() -> torch.Tensor:
    labels = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1))
    labels[::4] = IGNORE_INDEX
    return labels


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.usefixtures("chunked")
def test_equals_projection_and_loss(bias: bool) -> None:
    """Rows without a label count for nothing; the gradient scales with what comes from above."""
    inputs, labels = _inputs(bias, torch.float32), _labels()
    loss = linear_cross_entropy(inputs[0], inputs[1], inputs[2] if bias else None, labels)
    expected = F.cross_entropy(F.linear(*inputs), labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs))


def test_frozen_matrix() -> None:
    """Only what needs a gradient gets one; without any, none is made."""
    vectors, weight = _inputs(False, torch.float32)
    loss = linear_cross_entropy(vectors, weight.detach(), None, _labels())
    expected = F.cross_entropy(F.linear(vectors, weight.detach()), _labels(), reduction="sum")
    torch.testing.assert_close(torch.autograd.grad(loss, vectors), torch.autograd.grad(expected, vectors))
    assert not linear_cross_entropy(vectors.detach(), weight.detach(), None, _labels()).requires_grad


@pytest.mark.usefixtures("chunked")
def test_autocast() -> None:
    """Products in bfloat16, loss and gradients of the weights in float32."""
    inputs, labels = _inputs(True, torch.float32), _labels()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(*inputs, labels)
    expected = F.cross_entropy(F.linear(*inputs), labels, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=HALF_ERROR, atol=0.0)
    for mine, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 2 * HALF_ERROR * theirs.norm()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.usefixtures("chunked")
def test_no_gradient_is_made_that_nobody_will_ask_for(mode, monkeypatch) -> None:
    """Validation: the same loss, and no product but that of the scores."""
    inputs, labels = _inputs(True, torch.float32), _labels()
    expected = F.cross_entropy(F.linear(*inputs), labels, reduction="sum")
    made = []
    monkeypatch.setattr(cross_entropy._Gradients, "add", lambda *_: made.append(1))
    with mode():
        torch.testing.assert_close(linear_cross_entropy(*inputs, labels), expected.detach())
    assert not made
    linear_cross_entropy(*inputs, labels)
    assert made


@pytest.mark.usefixtures("chunked")
def test_double_precision_is_kept() -> None:
    """Value and gradients as exact as torch's, which float32 anywhere on the way would not be."""
    inputs, labels = _inputs(True), _labels()
    loss = linear_cross_entropy(*inputs, labels)
    expected = F.cross_entropy(F.linear(*inputs), labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("label", [-5, -1, V, V + 3])
def test_a_label_outside_the_vocabulary_is_refused(label) -> None:
    """As by torch; only the ignored label may be negative."""
    inputs, labels = _inputs(False, torch.float32), _labels()
    labels[3] = label
    with pytest.raises((IndexError, RuntimeError)):
        F.cross_entropy(F.linear(*inputs), labels, reduction="sum")
    with pytest.raises(DataError, match=f"label {label} is not in the vocabulary"):
        linear_cross_entropy(*inputs, None, labels)


@pytest.mark.usefixtures("chunked")
def test_a_row_without_a_label_may_hold_anything() -> None:
    """What padding computes must not reach the loss, as with torch."""
    inputs, labels = _inputs(False, torch.float32), _labels()
    expected = F.cross_entropy(F.linear(*inputs), labels, reduction="sum")
    vectors = inputs[0].detach().clone()
    vectors[labels == IGNORE_INDEX] = torch.nan
    vectors.requires_grad_()
    loss = linear_cross_entropy(vectors, inputs[1].detach(), None, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, vectors)[0], torch.autograd.grad(expected, inputs[0])[0])
