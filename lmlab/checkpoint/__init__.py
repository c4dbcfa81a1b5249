"""Checkpoints: one file or one folder, written atomically, verified on load, never unpickled."""

from lmlab.checkpoint.files import write_checkpoint
from lmlab.checkpoint.plugin import AtomicCheckpointIO
from lmlab.checkpoint.reading import newest_whole, outline, read_checkpoint, verify
from lmlab.checkpoint.rebuild import FORMAT, described_in, description_of, objective_from, trained_weights

__all__ = [
    "FORMAT",
    "AtomicCheckpointIO",
    "described_in",
    "description_of",
    "newest_whole",
    "objective_from",
    "outline",
    "read_checkpoint",
    "trained_weights",
    "verify",
    "write_checkpoint",
]
