"""What tokenizer is wanted: trained from the corpus, or loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmlab.config import check_choices, require
from lmlab.tokenizer.specials import ROLES

NUM_BYTES = 256
SPARE_PIECES = 128  # printable ASCII, plus something to learn: less than this is not worth calling a vocabulary


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer to train, or one to load.

    Args:
        kind: `bpe` cuts bytes into frequent sequences and loses nothing in any language. `wordpiece` follows BERT: `##` pieces,
            Chinese characters one by one, unknown characters become one `[UNK]`; what the merges of other scripts leave of the
            vocabulary goes to the most frequent characters. `unigram` follows SentencePiece, with bytes for unknown characters.
            `characters` has the most frequent characters, with bytes for the rest. `bytes` needs no training.
        vocab_size: Size of the vocabulary, special tokens and sentinels included; an upper limit where the text is too short to
            fill it, and for `bytes`, whose size is fixed.
        num_sentinels: How many `<extra_id_0>`, `<extra_id_1>`, ... there are for span corruption.
        path: A tokenizer.json, or a folder in Hugging Face layout, to be loaded instead of training.
        normalization: Unicode form that text is brought to first; `nfkc` also folds full-width forms, and cannot be undone.
        case: `lower` folds upper case (for `wordpiece` it strips accents too, as BERT does).
        min_frequency: Pairs rarer than this are not merged (`bpe`, `wordpiece`).
        train_characters: Training reads this many characters of the corpus, from its beginning, and no more; the counts that
            training keeps in memory are bounded by it.
    """

    kind: Literal["bpe", "wordpiece", "unigram", "characters", "bytes"] = "bpe"
    vocab_size: int = 8192
    num_sentinels: int = 100
    path: str | None = None
    normalization: Literal["none", "nfc", "nfkc"] = "nfc"
    case: Literal["keep", "lower"] = "keep"
    min_frequency: int = 2
    train_characters: int = 200_000_000

    def __post_init__(self) -> None:
        """Checks the choices, and that the vocabulary has room for what it must hold."""
        check_choices(self)
        require(self.num_sentinels >= 0, self, "num_sentinels", "a number of tokens is not negative", "100 is T5's choice; 0 if unused")
        require(self.min_frequency >= 1, self, "min_frequency", "a pair occurs at least once", "2 is customary")
        require(self.train_characters >= 1, self, "train_characters", "there must be text to learn from", "leave the default")
        least = self.smallest_vocab_size()
        rule = f"special tokens, sentinels and the alphabet of '{self.kind}' alone take up to {least}"
        require(
            self.path is not None or self.vocab_size >= least, self, "vocab_size", rule, f"set at least {least}, or fewer num_sentinels"
        )

    def smallest_vocab_size(self) -> int:
        """The least `vocab_size` this kind can be trained with."""
        fixed = len(ROLES) + self.num_sentinels
        room = {"bpe": NUM_BYTES, "wordpiece": SPARE_PIECES, "unigram": NUM_BYTES + SPARE_PIECES, "characters": NUM_BYTES + 1, "bytes": 1}
        return fixed + room[self.kind]
