"""Checkpoints: one file, written atomically, verified on load, never unpickled."""

from lmlab.checkpoint.files import newest_whole, read_checkpoint, verify, write_checkpoint
from lmlab.checkpoint.plugin import AtomicCheckpointIO
from lmlab.checkpoint.rebuild import FORMAT, description_of, objective_from, trained_weights

__all__ = [
    "FORMAT",
    "AtomicCheckpointIO",
    "description_of",
    "newest_whole",
    "objective_from",
    "read_checkpoint",
    "trained_weights",
    "verify",
    "write_checkpoint",
]
