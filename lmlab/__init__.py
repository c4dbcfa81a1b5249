"""lmlab: a wind tunnel for language-model training techniques."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "load"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """`lmlab.load` and `lmlab.fit` import torch and Lightning only when they are asked for."""
    if name == "load":
        from lmlab.loading import load

        return load
    if name == "fit":
        from lmlab.training import fit

        return fit
    raise AttributeError(f"module 'lmlab' has no attribute '{name}'")
