"""The plugin through which Lightning reads and writes checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from lmlab.checkpoint.files import write_checkpoint
from lmlab.checkpoint.places import remove
from lmlab.checkpoint.reading import read_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Replaces Lightning's own file handling.

    Lightning 2.6 writes its temporary file to another folder, does not fsync, and swallows some errors; a kill at the wrong
    moment leaves a truncated file. It loads URLs with code execution allowed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes atomically."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Verifies, then loads tensors and plain values only, whatever is asked for."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint."""
        remove(Path(path))
