"""The one place where Lightning's small talk is silenced; what a person should act on still comes through."""

from __future__ import annotations

import logging
import os
import sys
import warnings

NOISE = (
    "litlogger",
    "litmodels",
    "`weights_only` was not set",
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "`Trainer.fit` stopped: `max_epochs",
    "Seed set to",
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
    "LOCAL_RANK:",
    "Initializing distributed:",
    "SLURM auto-requeueing enabled",  # not while training: `Interruption`
    "distributed_backend=",
    "initializing deepspeed distributed",
)
"""Parts of messages that say nothing about the run: lmlab's budget ends it, and its record says what it ran on."""

WARNINGS = (
    "does not have many workers",  # views read from memory, a few workers are right
    "isinstance.treespec, LeafSpec.",  # lightning 2.6 on torch 2.13
    "You defined a `validation_step` but have no `val_dataloader`",
    "The number of training batches",  # the stream has no end
    "Checkpoint directory .* exists and is not empty",
    "Couldn't infer the batch indices",  # predictions are written in order
    "was configured so validation will run",  # the budget says when to validate
    "`torch.distributed.* is deprecated",  # deepspeed 0.19 on torch 2.13
)
LOGGERS = ("", "lightning", "lightning.pytorch", "lightning.fabric")


class _Noise(logging.Filter):
    """Drops records that hold one of the known phrases."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(phrase in record.getMessage() for phrase in NOISE)


class _Plain(logging.Handler):
    """Writes messages as they are, to whatever standard error is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def quiet() -> None:
    """Silences the noise, and lets lmlab's own loggers speak on standard error; to be called once Lightning is imported."""
    # on the handlers: a logger's own filter does not see what comes up from the loggers below it
    for handler in [handler for name in LOGGERS for handler in logging.getLogger(name).handlers]:
        if not any(isinstance(known, _Noise) for known in handler.filters):
            handler.addFilter(_Noise())
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr  # not setStream, which flushes one that may be closed
    for pattern in WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{pattern}")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # they are about Lightning's calls, not about a person's settings
    own = logging.getLogger("lmlab")
    if not any(isinstance(handler, _Plain) for handler in own.handlers):
        own.addHandler(_Plain())
        own.setLevel(logging.INFO)
