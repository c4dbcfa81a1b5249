"""`lmlab.load`: a trained objective from a run or a checkpoint, with no other knowledge."""

from __future__ import annotations

from pathlib import Path

import torch

from lmlab.checkpoint import objective_from, read_checkpoint
from lmlab.config import rebuild
from lmlab.objectives.base import Objective
from lmlab.run.directory import RunDirectory
from lmlab.run.find import find_checkpoint


def load(run: str | Path | RunDirectory, checkpoint: str | None = None, allow: tuple[str, ...] = ()) -> Objective:
    """Loads a trained objective: network, weights and tokenizer.

    Args:
        run: What `lmlab.fit` returned, a run's folder, a `.ckpt` file, or a name, which stands for its newest finished run.
        checkpoint: `best`, `last` or `step=N`; None takes the best, else the last.
        allow: Further packages a class path in the checkpoint may name; code of theirs runs when they are imported.

    Returns:
        The objective in evaluation mode, on the CPU. `objective.tokenizer` is the one it was trained with.

    Raises:
        CheckpointError: If there is no such run, or its checkpoint is broken or not lmlab's.
    """
    path = find_checkpoint(run.path if isinstance(run, RunDirectory) else run, checkpoint)
    made = objective_from(read_checkpoint(path), path, allow)
    assert isinstance(made, Objective)  # nothing else writes a description of itself
    return made


def untrained(objective: Objective, seed: int = 0) -> Objective:
    """The same network without training: what a trained one is compared with.

    Args:
        objective: Of any run.
        seed: Draws the weights, as it does those of a run with this seed; the caller's own stream of random numbers stays where it is.

    Returns:
        In evaluation mode, on the CPU.
    """
    fresh: Objective = rebuild(objective.recipe())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.configure_model()
    return fresh.eval()
