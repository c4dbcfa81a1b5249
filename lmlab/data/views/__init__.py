"""Views: what one example is. Random access to a store, without a copy of it.

Special tokens are not in the store. A view adds them as if they were: where an example begins and what stands in it is computed
from the document offsets, so any view can be had of any store, and opening one costs next to nothing.
"""

from lmlab.data.batch import Feed
from lmlab.data.store import TokenStore
from lmlab.data.views.base import View
from lmlab.data.views.blocks import BlockView
from lmlab.data.views.sentences import SentencePairView, SentenceView
from lmlab.data.views.tuples import TupleView
from lmlab.errors import ConfigError
from lmlab.tokenizer import Tokenizer

__all__ = ["BlockView", "SentencePairView", "SentenceView", "TupleView", "View", "make_view"]


def make_view(store: TokenStore, feed: Feed, tokenizer: Tokenizer) -> View:
    """The view an objective asks for.

    Args:
        store: One split of a tokenised corpus.
        feed: What the objective wants to be fed.
        tokenizer: The one that made the store.

    Raises:
        ConfigError: If the tokenizer is another one, or the feed cannot be.
        DataError: If the text is too short for a single example.
    """
    store.check_tokenizer(tokenizer.fingerprint)
    kinds: dict[str, type[View]] = {
        "blocks": BlockView,
        "sentences": SentenceView,
        "sentence_pairs": SentencePairView,
        "tuples": TupleView,
    }
    if feed.length < 1 or feed.lookahead < 0:
        raise ConfigError(f"an example of {feed.length} tokens is not possible", where="length", remedy="set a positive length")
    if feed.lookahead and feed.view != "blocks":
        raise ConfigError(f"lookahead has no effect in the view {feed.view}", where="lookahead", remedy="leave it out, or use blocks")
    if feed.negatives != "none" and feed.view != "sentence_pairs":
        raise ConfigError(
            f"the view {feed.view} has no pairs to make false", where="negatives", remedy="leave it out, or use sentence_pairs"
        )
    if feed.min_tokens > 1 and feed.view != "sentences":
        raise ConfigError(f"min_tokens has no effect in the view {feed.view}", where="min_tokens", remedy="leave it out, or use sentences")
    return kinds[feed.view](store, feed, tokenizer)
