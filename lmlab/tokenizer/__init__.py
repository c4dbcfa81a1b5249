"""Text to token ids and back, on top of the Hugging Face `tokenizers` library.

`TokenizerConfig` says what is wanted, `resolve_tokenizer` trains it once or loads it, and `Tokenizer` is the value that
travels: immutable, picklable, equal by fingerprint.
"""

from lmlab.tokenizer import fork_safety
from lmlab.tokenizer.config import TokenizerConfig
from lmlab.tokenizer.resolve import resolve_tokenizer
from lmlab.tokenizer.specials import SpecialTokens
from lmlab.tokenizer.tokenizer import Tokenizer

__all__ = ["SpecialTokens", "Tokenizer", "TokenizerConfig", "resolve_tokenizer"]

fork_safety.install()
