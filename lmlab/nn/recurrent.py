"""Recurrences over packed rows: cutting rows into documents and back, a window over tokens, and minGRU's scan."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lmlab.nn.init import InitConfig, init_linear


class Documents(NamedTuple):
    """Where the documents of packed rows lie.

    Args:
        number: (B * T,) int64, running number of the document of each token, over all rows.
        place: (B * T,) int64, its place in the document.
        lengths: (N,) int64, tokens in each document.
    """

    number: Tensor
    place: Tensor
    lengths: Tensor

    def cut(self, x: Tensor) -> Tensor:
        """Gives each document a row of its own.

        Args:
            x: (B, T, D).

        Returns:
            (N, S, D), 0 behind the end of shorter documents.
        """
        rows = x.new_zeros(len(self.lengths), int(self.lengths.max()), x.shape[-1])
        return rows.index_put((self.number, self.place), x.flatten(0, 1))

    def joined(self, rows: Tensor, like: Tensor) -> Tensor:
        """Puts documents back where they were.

        Args:
            rows: (N, S, D).
            like: (B, T, any), of the shape to restore.

        Returns:
            (B, T, D).
        """
        return rows[self.number, self.place].view(*like.shape[:2], -1)


def documents_of(document_ids: Tensor) -> Documents:
    """Finds the documents of packed rows; the same number in two rows is two documents.

    Args:
        document_ids: (B, T) int64, non-decreasing along a row.
    """
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = starts.flatten()
    number = starts.cumsum(0) - 1
    index = torch.arange(len(number), device=number.device)
    return Documents(number, index - index[starts][number], torch.bincount(number))


class Recurrence(nn.Module):
    """torch's RNN or LSTM, which starts anew with each document.

    Args:
        cell: A recurrent module with `batch_first`.
    """

    def __init__(self, cell: nn.RNN | nn.LSTM) -> None:
        super().__init__()
        self.cell = cell

    def reset_parameters(self) -> None:
        """Draws the weights anew, as torch does: uniformly up to 1 / sqrt(D)."""
        self.cell.reset_parameters()

    def forward(self, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Reads rows from left to right.

        Args:
            x: (B, T, E).
            document_ids: (B, T) int64; None if each row is one document.

        Returns:
            (B, T, D) states of the last layer.
        """
        if document_ids is None:
            return self.cell(x)[0]
        documents = documents_of(document_ids)
        packed = pack_padded_sequence(documents.cut(x), documents.lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.cell(packed)[0], batch_first=True)
        return documents.joined(states, x)

    def flops(self, rows: int) -> int:
        """Multiplications and additions of a forward pass over `rows` tokens."""
        return 2 * rows * sum(w.numel() for name, w in self.cell.named_parameters() if name.startswith("weight"))


def windows(x: Tensor, padding: Tensor, size: int, document_ids: Tensor | None = None) -> Tensor:
    """The latest tokens at each position, oldest first.

    Args:
        x: (B, T, E).
        padding: (E,), stands for tokens before the row or the document.
        size: How many tokens, the present one included.
        document_ids: (B, T) int64; None if each row is one document.

    Returns:
        (B, T, size, E).
    """
    batch_size, length, width = x.shape
    place = documents_of(document_ids).place.view(batch_size, length) if document_ids is not None else torch.arange(length, device=x.device)
    before = padding.to(x.dtype).expand(batch_size, size - 1, width)
    seen = torch.cat([before, x], dim=1).unfold(1, size, 1).transpose(2, 3)  # (B, T, size, E)
    age = torch.arange(size - 1, -1, -1, device=x.device)
    return torch.where((age <= place[..., None])[..., None], seen, padding.to(x.dtype)) if document_ids is not None else seen


class WindowLayer(nn.Module):
    """Bengio's hidden layer: tanh of a projection of the latest tokens, side by side.

    Before a row or document stands a learned vector.

    Args:
        width: E.
        size: D.
        window: How many tokens it sees, the present one included.
        direct: Whether the window follows the hidden layer in what is returned, so that a head connects both with the output.
        init_std: Standard deviation of the fresh padding vector.

    Source: Bengio et al. 2003, "A Neural Probabilistic Language Model", section 2, equation 1: H and d. Its U, b and, for direct
    connections, W are the head's.
    """

    def __init__(self, width: int, size: int, window: int, direct: Literal["none", "direct"], init_std: float) -> None:
        super().__init__()
        self.window, self.direct, self.init_std = window, direct, init_std
        self.padding_embedding = nn.Parameter(torch.empty(width))
        self.hidden = nn.Linear(window * width, size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew, those of the projection as torch does."""
        nn.init.normal_(self.padding_embedding, std=self.init_std)
        self.hidden.reset_parameters()

    def forward(self, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Reads windows.

        Args:
            x: (B, T, E).
            document_ids: (B, T) int64; None if each row is one document.

        Returns:
            (B, T, D), or (B, T, D + window * E).
        """
        seen = windows(x, self.padding_embedding, self.window, document_ids).flatten(2)
        states = torch.tanh(self.hidden(seen))
        return torch.cat([states, seen.to(states.dtype)], dim=-1) if self.direct == "direct" else states

    def flops(self, rows: int) -> int:
        """Multiplications and additions of a forward pass over `rows` tokens."""
        return 2 * rows * self.hidden.weight.numel()


def scan(log_kept: Tensor, log_added: Tensor) -> Tensor:
    """The states h_t = kept_t * h_{t-1} + added_t from h_0 = 0, all at once; products are sums of logarithms, so none underflows.

    Args:
        log_kept: (B, T, D) float, logarithm of what is kept of the state before.
        log_added: (B, T, D) float, logarithm of what is added, which therefore is positive.

    Returns:
        (B, T, D).

    Source: Feng et al. 2024, "Were RNNs All We Needed?", appendix B (log-space parallel scan); Heinsen 2023, "Efficient
    Parallelization of a Ubiquitous Sequential Computation".
    """
    log_product = log_kept.cumsum(1)
    return (log_product + torch.logcumsumexp(log_added - log_product, dim=1)).exp()


class MinGRU(nn.Module):
    """A gated recurrence whose gate and candidate look at the present token only, which makes it a scan.

    h_t = (1 - z_t) * h_{t-1} + z_t * g(W x_t), z_t = sigmoid(U x_t); g(a) is a + 0.5 from 0 on and sigmoid(a) below, so that it is
    positive. The state begins at 0 in each document.

    Args:
        size: D.
        init: How to draw weights.

    Source: Feng et al. 2024, section 3.1 and appendix B (log-space version).
    """

    def __init__(self, size: int, init: InitConfig) -> None:
        super().__init__()
        self.init = init
        self.gate, self.candidate = nn.Linear(size, size), nn.Linear(size, size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        init_linear(self.gate, self.init)
        init_linear(self.candidate, self.init)

    def forward(self, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Reads rows from left to right.

        Args:
            x: (B, T, D).
            document_ids: (B, T) int64; None if each row is one document.

        Returns:
            (B, T, D).
        """
        gate, candidate = self.gate(x), self.candidate(x)
        wide = torch.promote_types(gate.dtype, torch.float32)  # sums of logarithms need their digits under autocast
        gate, candidate = gate.to(wide), candidate.to(wide)
        # the slope of relu keeps the branch that is not taken from making NaN of the gradient
        log_candidate = torch.where(candidate >= 0, (F.relu(candidate) + 0.5).log(), F.logsigmoid(candidate))
        log_kept, log_added = F.logsigmoid(-gate), F.logsigmoid(gate) + log_candidate
        if document_ids is None:
            return scan(log_kept, log_added).to(x.dtype)
        documents = documents_of(document_ids)
        return documents.joined(scan(documents.cut(log_kept), documents.cut(log_added)), x).to(x.dtype)

    def flops(self, rows: int) -> int:
        """Multiplications and additions of a forward pass over `rows` tokens."""
        return 2 * rows * (self.gate.weight.numel() + self.candidate.weight.numel())
