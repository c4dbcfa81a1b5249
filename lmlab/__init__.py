"""lmlab: a wind tunnel for language-model training techniques."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "load", "tokenizer_for"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """The names a notebook needs; torch and Lightning are imported only when one is asked for."""
    if name == "load":
        from lmlab.loading import load

        return load
    if name == "fit":
        from lmlab.training import fit

        return fit
    if name == "tokenizer_for":
        from lmlab.data.tokenizer import tokenizer_for

        return tokenizer_for
    raise AttributeError(f"module 'lmlab' has no attribute '{name}'")
