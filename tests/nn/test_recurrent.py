"""Recurrences over packed rows against loops over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lmlab.nn.init import InitConfig
from lmlab.nn.recurrent import MinGRU, Recurrence, WindowLayer, documents_of, scan, windows

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64: sums of some hundred terms in another order
IDS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 2, 2, 3, 3, 3], [5, 5, 6, 6, 6, 6, 6, 6]])
DOCUMENTS = [IDS, None]


@pytest.fixture(autouse=True)
def doubles() -> object:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def starts(ids: Tensor | None, row: int, t: int) -> bool:
    return t == 0 or (ids is not None and bool(ids[row, t] != ids[row, t - 1]))


def gradients(outputs: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a scalar in which every element has a weight of its own."""
    generator = torch.Generator().manual_seed(1)
    return torch.autograd.grad((outputs * torch.randn(outputs.shape, generator=generator)).sum(), inputs)


def test_documents_are_cut_out_and_put_back() -> None:
    x, documents = torch.randn(4, 8, 3), documents_of(IDS)
    cut = documents.cut(x)
    wanted = [row[ids == document] for row, ids in zip(x, IDS, strict=True) for document in ids.unique()]
    assert documents.lengths.tolist() == [len(rows) for rows in wanted]
    for got, rows in zip(cut, wanted, strict=True):
        assert torch.equal(got[: len(rows)], rows) and not got[len(rows) :].any()
    assert torch.equal(documents.joined(cut, x), x)


@pytest.mark.parametrize("ids", DOCUMENTS, ids=["documents", "rows"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_torchs_cells_step_by_step(kind: str, num_layers: int, ids: Tensor | None) -> None:
    """The same weights in single cells, whose state is set to zero where a document begins."""
    fused = (nn.LSTM if kind == "lstm" else nn.RNN)(3, 5, num_layers, batch_first=True)
    x = torch.randn(4, 8, 3, requires_grad=True)
    states = x
    for layer in range(num_layers):
        cell = (nn.LSTMCell if kind == "lstm" else nn.RNNCell)(states.shape[-1], 5)
        weights = {name: getattr(fused, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        rows = []
        for row in range(4):
            carried, outs = None, []
            for t in range(8):
                carried = None if starts(ids, row, t) else carried
                carried = torch.func.functional_call(cell, weights, (states[row, t][None], carried))
                outs.append(carried[0][0] if kind == "lstm" else carried[0])
            rows.append(torch.stack(outs))
        states = torch.stack(rows)
    got, inputs = Recurrence(fused)(x, ids), [x, *fused.parameters()]
    torch.testing.assert_close(got, states, **EXACT)
    for mine, theirs in zip(gradients(got, inputs), gradients(states, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


@pytest.mark.parametrize("ids", DOCUMENTS, ids=["documents", "rows"])
def test_mingru_step_by_step(ids: Tensor | None) -> None:
    """The recurrence of the paper, one token after the other, with plain products."""
    module = MinGRU(3, InitConfig(std=1.5))
    x = torch.randn(4, 8, 3, requires_grad=True)
    rows = []
    for row in range(4):
        state, outs = torch.zeros(3), []
        for t in range(8):
            state = torch.zeros(3) if starts(ids, row, t) else state
            z = torch.sigmoid(module.gate(x[row, t]))
            a = module.candidate(x[row, t])
            state = (1 - z) * state + z * torch.where(a >= 0, a + 0.5, torch.sigmoid(a))
            outs.append(state)
        rows.append(torch.stack(outs))
    got, wanted, inputs = module(x, ids), torch.stack(rows), [x, *module.parameters()]
    torch.testing.assert_close(got, wanted, **EXACT)
    for mine, theirs in zip(gradients(got, inputs), gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_a_long_scan_neither_underflows_nor_overflows() -> None:
    """In float32, where what is kept of the beginning is far below the smallest number."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.sigmoid(torch.randn(2, 1000, 4, generator=generator) - 2)
    added = torch.rand(2, 1000, 4, generator=generator) + 0.1
    state, states = torch.zeros(2, 4), []
    for t in range(1000):
        state = kept[:, t] * state + added[:, t]
        states.append(state)
    got = scan(kept.float().log(), added.float().log())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), torch.stack(states, 1), rtol=2e-3, atol=0)  # logarithms near 2000 have errors of 1e-4


@pytest.mark.parametrize("ids", DOCUMENTS, ids=["documents", "rows"])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_windows_are_gathered(size: int, ids: Tensor | None) -> None:
    x, padding = torch.randn(4, 8, 2), torch.randn(2)
    got = windows(x, padding, size, ids)
    for row in range(4):
        for t in range(8):
            begin = max(u for u in range(t + 1) if starts(ids, row, u))
            for slot in range(size):
                u = t - (size - 1 - slot)
                assert torch.equal(got[row, t, slot], x[row, u] if u >= begin else padding)


@pytest.mark.parametrize("direct", ["none", "direct"])
def test_bengios_layer(direct: str) -> None:
    """tanh(d + H x), and x itself behind it."""
    layer = WindowLayer(2, 5, 3, direct, 0.1)  # type: ignore[arg-type]
    x = torch.randn(4, 8, 2)
    got = layer(x, IDS)
    seen = torch.cat([layer.padding_embedding, x[0, 3], x[0, 4]])  # the second token of its document
    hidden = torch.tanh(layer.hidden.bias + layer.hidden.weight @ seen)
    torch.testing.assert_close(got[0, 4], torch.cat([hidden, seen]) if direct == "direct" else hidden)
