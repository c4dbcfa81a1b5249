"""What travels from the data to an objective: examples, feeds and batches.

Shape legend of the whole project: B batch, T tokens, S source tokens, D hidden, H heads, K head size, F feed-forward,
V vocabulary, L layers, N supervised positions of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from lmlab.config import check_choices

IGNORE_INDEX = -100
"""Label of a position that carries no loss, as in torch and transformers."""

Batch: TypeAlias = dict[str, Any]
"""Tensors by name. Keys every collator writes:

- `input_ids`: (B, T) int64.
- `labels`: int64, `IGNORE_INDEX` where nothing is predicted.
- `counts`: dict from part name to a (1,) int64 tensor, the number of terms in that part's sum.
- `tokens`: (1,) int64, raw corpus tokens consumed: before corruption, without padding or special tokens, each once.

Further keys, where they apply:
- `attention_mask`: (B, T) bool, True where a token may be attended; absent when everything may.
- `document_ids`: (B, T) int64, which document each token belongs to; absent when a row is one document.
- `position_ids`: (B, T) int64, restarting with each document; absent when 0..T-1.
- `decoder_*`: the same for a decoder beside an encoder.
- `token_type_ids`: (B, T) int64, which of two texts in a row a token belongs to.
- `supervised`: (N,) int64, flat indices into B * T of the rows a head must see; absent when all of them.
- `num_labelled`: (1,) int64, labelled tokens; absent when that is the sum of `counts`.
- `window`: written by the loader, see `lmlab.data.loader`.
- `is_filler`: True for an evaluation batch that is computed, because other ranks compute one, but does not count.
"""


class Example(NamedTuple):
    """One example of a view, before corruption.

    Args:
        position: n, how many examples came before it since the start of the run (or its index, in evaluation).
        index: Which example of the view it is; the same in every epoch.
        input_ids: (T,) int64 tokens, special tokens of the view included.
        document_ids: (T,) int64 running number of the document each token belongs to.
        num_raw_tokens: Corpus tokens in `input_ids`, without special tokens.
        word_starts: (T,) bool, True where a token begins a word; None unless the view was asked for it.
        extra: What only some views give, such as the label of a sentence pair.
    """

    position: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  nobody looks an example up in itself
    input_ids: np.ndarray
    document_ids: np.ndarray
    num_raw_tokens: int
    word_starts: np.ndarray | None = None
    extra: dict[str, Any] | None = None

    def cut(self, length: int) -> Example:
        """The first tokens of it.

        Args:
            length: Tokens to keep at most.
        """
        words = None if self.word_starts is None else self.word_starts[:length]
        return self._replace(input_ids=self.input_ids[:length], document_ids=self.document_ids[:length], word_starts=words)


class Collator(Protocol):
    """Turns examples into a batch: a frozen, picklable dataclass, and a pure function of its arguments."""

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        """Corrupts and stacks.

        Args:
            examples: One micro-batch.
            seed: Seed of the run; with `Example.position` and `Example.index` it decides all randomness.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What an objective wants to be fed.

    Args:
        view: What one example is.
        length: Tokens in one example of the view, special tokens included.
        collate: For training.
        eval_collate: For validation and test; its corruption does not change from epoch to epoch.
        prefix: Special token ids put before each document.
        suffix: Special token ids put after each document.
        lookahead: Further tokens at the end of each block, so that the last position has a label (1 for a causal LM).
        word_starts: Whether examples carry the beginnings of words. In Chinese, which writes no spaces, a word is a piece of the
            vocabulary (`pieces`), or what a dictionary says (`words`, needs the extra `zh`).
        negatives: For half of the sentence pairs: the second is one of another document (`document`), or the two are swapped (`order`).
        loss_over: `batch` if the examples of a step are compared with each other. Then a rank's share of the step is handed out as
            one batch, so that the size of a micro-batch does not decide what is compared; the objective cuts it into passes itself.
        min_tokens: Shorter sentences are left out; only for single sentences.
        num_texts: How many texts of a tuple are read; only for tuples, which may have one more.
        min_examples: Fewest examples that a batch, over all ranks, makes sense with: 2 where they are compared with each other.
    """

    view: Literal["blocks", "sentences", "sentence_pairs", "tuples"]
    length: int
    collate: Collator
    eval_collate: Collator
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    lookahead: int = 0
    word_starts: Literal["none", "pieces", "words"] = "none"
    negatives: Literal["none", "document", "order"] = "none"
    loss_over: Literal["examples", "batch"] = "examples"
    min_tokens: int = 1
    num_texts: int = 2
    min_examples: int = 1

    def __post_init__(self) -> None:
        """Checks the choices."""
        check_choices(self)
