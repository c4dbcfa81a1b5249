"""How large the networks and batches of a benchmark are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of one benchmark.

    Args:
        hidden: D; the feed-forward network is 4 D wide.
        layers: L, on each side of an encoder-decoder.
        heads: H.
        vocab: V that the tokenizer is trained to.
        length: T.
        batch: B.
    """

    hidden: int
    layers: int
    heads: int
    vocab: int = 8192
    length: int = 128
    batch: int = 16


SIZES = {
    "mini": Size(hidden=256, layers=4, heads=4),
    "small": Size(hidden=512, layers=4, heads=8),
}
