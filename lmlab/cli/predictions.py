"""What `lmlab predict` writes: one line of JSON for each example, in the order of the text, however many ranks share it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from lmlab.errors import CheckpointError
from lmlab.objectives.base import Prediction
from lmlab.ranks import data_rank
from lmlab.run.find import find_run

FILE_NAME = "predictions.jsonl"


def predictions_path(checkpoint: Path | None) -> Path:
    """Where predictions belong: into the folder of the run, or else into the current one.

    Args:
        checkpoint: Whose predictions they are; None for an untrained model's.
    """
    try:
        return Path(FILE_NAME) if checkpoint is None else find_run(checkpoint).path / FILE_NAME
    except CheckpointError:  # a file by itself
        return Path(FILE_NAME)


class PredictionWriter(Callback):
    """Writes the predictions of all ranks as they come.

    Args:
        file: Where to; None on ranks other than 0.
    """

    def __init__(self, file: BinaryIO | None) -> None:
        """Writes nothing yet."""
        self.file = file

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[Prediction],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Examples are dealt to ranks in turn (`lmlab.data.plan.deal`), and are taken back in turn. All ranks must call it."""
        shares = [outputs]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(gathered, (data_rank(trainer).rank, outputs))
            shares = [share for _, share in sorted(dict(gathered).items())]  # ranks that share layers have the same
        if self.file is None:
            return
        for prediction in (one for turn in zip_longest(*shares) for one in turn if one is not None):
            self.file.write((json.dumps(prediction._asdict(), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
