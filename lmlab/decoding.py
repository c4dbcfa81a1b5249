"""From logits to tokens: greedy decoding and sampling."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.config import fingerprint, require


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How the next token is chosen.

    Args:
        max_new_tokens: Most tokens to write.
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_k: Draw from the k likeliest tokens only; 0 for all.
        top_p: Draw from the fewest tokens that together have this probability; 1 for all.
        seed: Same seed and same prompt, same text, whatever else is in the batch. For several texts from one prompt, take several
            seeds.

    Source: Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.1 (top-k); Holtzman et al. 2020, "The Curious Case
    of Neural Text Degeneration", section 3.1 (top-p).
    """

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks ranges."""
        require(self.max_new_tokens >= 1, self, "max_new_tokens", "at least one token is written", "set 1 or more")
        require(self.temperature >= 0, self, "temperature", "a temperature is not negative", "0 is greedy, 1 leaves the logits as they are")
        require(self.top_k >= 0, self, "top_k", "it counts tokens", "0 draws from all tokens")
        require(0 < self.top_p <= 1, self, "top_p", "it is a probability", "1 draws from all tokens")


def restrict(logits: Tensor, config: DecodingConfig) -> Tensor:
    """Applies temperature, top-k and top-p.

    Args:
        logits: (B, V) float.
        config: With a temperature above 0.

    Returns:
        (B, V) logits, -inf for tokens that may not be drawn; at least one is left in each row.
    """
    logits = logits.float() / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if config.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        beyond = probs.cumsum(-1) - probs >= config.top_p  # what comes before it suffices already
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    return logits


def next_tokens(logits: Tensor, config: DecodingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Chooses one token for each row.

    Args:
        logits: (B, V) float.
        config: How.
        generators: One for each row, so that a row's draws do not depend on the others; on the CPU, so that a seed gives the same
            text on every device.

    Returns:
        (B,) int64.
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    probs = restrict(logits, config).softmax(-1).cpu()
    chosen = [torch.multinomial(row, 1, generator=generator) for row, generator in zip(probs, generators, strict=True)]
    return torch.cat(chosen).to(logits.device)


def row_generator(seed: int, row: Sequence[int]) -> torch.Generator:
    """A source of randomness that a seed and the content of a row decide.

    Args:
        seed: Of the decoding.
        row: Its tokens, without padding.
    """
    return torch.Generator().manual_seed(int(fingerprint([seed, *map(int, row)]), 16))


def decode(
    logits_of: Callable[[Tensor], Tensor],
    first: Tensor,
    rows: Sequence[Sequence[int]],
    config: DecodingConfig,
    stop_ids: Collection[int],
    banned_ids: Collection[int] = (),
) -> list[list[int]]:
    """Writes token after token until each row has stopped.

    Args:
        logits_of: Takes new tokens (B, n) and returns the logits (B, V) after the last of them; it keeps the past itself.
        first: (B, n) int64, what to read before the first new token.
        rows: What each row is to be written for, without padding; with the seed, it decides the draws.
        config: How tokens are chosen.
        stop_ids: A row ends before the first of these.
        banned_ids: Tokens that are never written.

    Returns:
        New tokens of each row.
    """
    generators = [row_generator(config.seed, row) for row in rows]
    written: list[list[int]] = [[] for _ in rows]
    running = [True] * len(rows)
    banned = torch.tensor(sorted(banned_ids), dtype=torch.long, device=first.device)
    tokens = first
    for _ in range(config.max_new_tokens):
        logits = logits_of(tokens).index_fill(1, banned, -torch.inf)
        chosen = next_tokens(logits, config, generators)
        for row, token in enumerate(chosen.tolist()):
            running[row] = running[row] and token not in stop_ids
            if running[row]:
                written[row].append(token)
        if not any(running):
            break
        tokens = chosen[:, None]
    return written
