"""From counts to probabilities: interpolated smoothing, by which no token is impossible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from lmlab.data.ngrams import NONE, Counts, find

Smoothing: TypeAlias = Literal["witten_bell", "kneser_ney"]
"""How probability is taken from what was seen and given to what was not."""

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Where a text is too small to estimate discounts, because no n-gram occurs just once, twice, three or four times (KenLM's choice)."""


class Level(NamedTuple):
    """What a level adds to the one before: P(w | h) = share(h w) + rest(h) P(w | h without its first token).

    Args:
        shares: (rows of this level + 1,) float64, 0 for an n-gram without a count; the last is 0, for `NONE`.
        rests: (rows of the level before + 1,) float64, 1 for a context without a count; the last is 1, for `NONE`.
    """

    shares: np.ndarray
    rests: np.ndarray


@dataclass(frozen=True)
class Smoothed:
    """An n-gram model. Below its lowest level is the uniform distribution, so that no probability is 0.

    Args:
        counts: Knows which n-grams there are.
        levels: One for each length of n-grams.
    """

    counts: Counts
    levels: tuple[Level, ...]

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """How probable each token is after those before it in its row and document.

        Args:
            tokens: (R, W) int64.

        Returns:
            (R, W - 1) float64: of every token but the first.
        """
        following = tokens[:, 1:]
        probs = np.full(following.shape, 1 / self.counts.vocab_size)
        for context, keys, level in zip(self.counts.contexts(tokens), self.counts.keys, self.levels, strict=True):
            context = context[:, :-1]
            at = find(keys, context, following, self.counts.vocab_size)
            probs = level.shares[at] + level.rests[context] * probs
        return probs

    def distributions(self, tokens: np.ndarray) -> np.ndarray:
        """The probabilities of the whole vocabulary after each token.

        Args:
            tokens: (R, W) int64.

        Returns:
            (R, W, V) float64; each adds up to one.
        """
        vocab_size = self.counts.vocab_size
        probs = np.full((tokens.size, vocab_size), 1 / vocab_size)
        for context, keys, level in zip(self.counts.contexts(tokens), self.counts.keys, self.levels, strict=True):
            [known] = np.nonzero(context.ravel() != NONE)
            context = context.ravel()[known]
            probs[known] *= level.rests[context][:, None]
            first, last = np.searchsorted(keys, context * vocab_size), np.searchsorted(keys, (context + 1) * vocab_size)
            sizes = last - first
            rows = np.arange(sizes.sum()) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)
            probs[np.repeat(known, sizes), keys[rows] % vocab_size] += level.shares[rows]
        return probs.reshape(*tokens.shape, vocab_size)


def smooth(counts: Counts, smoothing: Smoothing) -> Smoothed:
    """Estimates an n-gram model.

    Args:
        counts: Of the text.
        smoothing: `witten_bell`: what was seen k times after a context that has been followed by n different tokens in N places has
            the share k / (N + n), and the rest is n / (N + n). `kneser_ney`: modified Kneser-Ney, interpolated: a discount for n-grams
            that occur once, twice, and more often is taken from each. At its lower levels an n-gram counts as often as there are
            different tokens before it; one that begins a document, which has none, as often as it occurs.

    Source: `witten_bell`: Witten & Bell 1991, "The Zero-Frequency Problem", method C; interpolated as in Chen & Goodman 1998, "An
    Empirical Study of Smoothing Techniques for Language Modeling", section 2.5. `kneser_ney`: the same, section 2.7 for the lower levels
    and section 3 for the three discounts; beginnings of documents: Heafield et al. 2013, "Scalable Modified Kneser-Ney Language Model
    Estimation", section 3.2 (adjusted counts).
    """
    used = _adjusted(counts) if smoothing == "kneser_ney" else counts.counts
    levels, num_contexts = [], 1
    for level, number in enumerate(used, start=1):
        parents = counts.parents(level)
        taken = _discounts(number)[np.minimum(number, 3)] if smoothing == "kneser_ney" else (number > 0).astype(float)
        total, rest = (np.bincount(parents, weights=x, minlength=num_contexts) for x in (number, taken))
        if smoothing == "kneser_ney":
            kept = number - taken
        else:
            kept, total = number, total + rest
        some = np.maximum(total, 1)
        levels.append(Level(np.append(kept / some[parents], 0.0), np.append(np.where(total > 0, rest / some, 1.0), 1.0)))
        num_contexts = len(number)
    return Smoothed(counts, tuple(levels))


def _adjusted(counts: Counts) -> list[np.ndarray]:
    """Counts by which Kneser-Ney estimates each level: different tokens before an n-gram, and plain ones in the last level."""
    found = []
    for level, (suffixes, firsts) in enumerate(zip(counts.suffixes(), counts.first_tokens()[:-1], strict=True), start=1):
        seen = counts.counts[level] > 0
        before = np.bincount(suffixes[seen], minlength=len(counts.keys[level - 1]))
        begins = (firsts == counts.begin_id) & (level > 1)  # a token alone has others before it, also the one that begins documents
        found.append(np.where(begins, counts.counts[level - 1], before))
    return [*found, counts.counts[-1]]


def _discounts(number: np.ndarray) -> np.ndarray:
    """What is taken from an n-gram that occurs 0, 1, 2, and 3 or more times, (4,) float64.

    Source: Chen & Goodman 1998, section 3.
    """
    one, two, three, four = (int((number == times).sum()) for times in (1, 2, 3, 4))
    found = FALLBACK_DISCOUNTS
    if one and two and three and four:
        share = one / (one + 2 * two)
        estimated = (1 - 2 * share * two / one, 2 - 3 * share * three / two, 3 - 4 * share * four / three)
        # a text with odd repetitions may ask for less than nothing
        found = estimated if all(0 < value < times for times, value in enumerate(estimated, start=1)) else found
    return np.array([0.0, *found])
