"""From a checkpoint to a trained objective, with no other knowledge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from lmlab.config import rebuild
from lmlab.errors import CheckpointError
from lmlab.nn.building import after_each_block

FORMAT = 1
"""Version of what an objective writes into a checkpoint."""


def trained_weights(content: dict[str, Any]) -> dict[str, Any]:
    """The weights to use: the averaged ones where weights were averaged, because those were validated.

    Args:
        content: What `read_checkpoint` returned.
    """
    return {**content["state_dict"], **content.get("lmlab_average", {}).get("averages", {})}


def description_of(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a checkpoint says of the objective in it.

    Args:
        content: What `read_checkpoint` returned.
        path: Where it came from, for messages.

    Raises:
        CheckpointError: If lmlab did not write it, or a newer lmlab did.
    """
    mine = content.get("lmlab")
    described = isinstance(mine, dict) and isinstance(mine.get("objective"), dict) and isinstance(mine.get("format"), int)
    if mine is None or not described or not isinstance(content.get("state_dict"), dict):
        why = "it holds no weights, or no description of an objective"
        raise CheckpointError(f"{path.name} was not written by lmlab", where=str(path), why=why, remedy="name a checkpoint of a run")
    if mine["format"] > FORMAT:
        raise CheckpointError(
            f"{path.name} was written by a newer lmlab",
            where=str(path),
            why=f"its format is {mine['format']}, this lmlab reads up to {FORMAT}",
            remedy="update lmlab",
        )
    return mine


def described_in(content: dict[str, Any], path: Path, allow: tuple[str, ...] = ()) -> Any:
    """The objective that a checkpoint describes, not built.

    Args:
        content: What `read_checkpoint` or `outline` returned.
        path: Where it came from, for messages.
        allow: Further top-level packages that a class path may name.

    Raises:
        CheckpointError: If lmlab did not write it, a newer lmlab did, or it describes none.
    """
    mine = description_of(content, path)
    with _described(path):
        return rebuild(mine["objective"], allow)


def objective_from(content: dict[str, Any], path: Path, allow: tuple[str, ...] = ()) -> LightningModule:
    """Makes the objective that a checkpoint describes and gives it the trained weights.

    Args:
        content: What `read_checkpoint` returned.
        path: Where it came from, for messages.
        allow: Further top-level packages that a class path may name.

    Returns:
        The objective in evaluation mode, on the CPU.

    Raises:
        CheckpointError: If lmlab did not write it, a newer lmlab did, or weights and configs do not fit.
    """
    objective = described_in(content, path, allow)
    with _described(path), after_each_block(None):  # a guest of a network that is being built, and shared, stays whole
        objective.configure_model()
    try:
        objective.load_state_dict(trained_weights(content), strict=objective.strict_loading)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path.name} do not fit its own configs", where=str(path), why=str(error)) from error
    return objective.eval()


@contextmanager
def _described(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"the description of the objective in {path.name} is broken"
        raise CheckpointError(what, where=str(path), why=f"{type(error).__name__}: {error}", remedy="use another checkpoint") from error
