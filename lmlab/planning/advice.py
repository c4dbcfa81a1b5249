"""Which strategy to take, and what to change where none fits."""

from __future__ import annotations

from dataclasses import dataclass

from lmlab.planning.memory import Bytes, Strategy
from lmlab.planning.prediction import Prediction, Row

WORTH = {
    "single": "one device holds it all",
    "ddp": "each device holds the whole model, and nothing is exchanged but gradients",
    "fsdp": "weights, gradients and optimizer state have to be divided among the devices",
    "hsdp": "they have to be divided, and dividing them within a node is enough",
    "fsdp_tp": "they have to be divided",
    "zero1": "the optimizer's state has to be divided",
    "zero2": "the optimizer's state and the gradients have to be divided",
    "zero3": "weights, gradients and optimizer state have to be divided",
    "zero3_offload": "weights and optimizer state have to be moved to the machine's own memory, which costs time at every step",
}
"""What a strategy is needed for, where no simpler one fits."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do.

    Args:
        strategy: The one to take; None if none fits.
        why: One sentence.
        remedies: What would make one fit, or use the devices better.
    """

    strategy: Strategy | None
    why: str
    remedies: tuple[str, ...] = ()


def advise(prediction: Prediction, wanted: Strategy | None = None) -> Advice:
    """The simplest strategy that fits, in the order of `memory.STRATEGIES`; or whether the wanted one does.

    Args:
        prediction: What a run will take.
        wanted: The one that was asked for.
    """
    rows: dict[Strategy, Row] = {row.strategy: row for row in prediction.rows}
    able = [row for row in prediction.rows if row.fits and (row.strategy != "single" or prediction.cluster.devices == 1)]
    if wanted is not None:
        return _about(rows[wanted], able, prediction)
    if not able:
        least = _least(prediction)
        why = f"no strategy fits into {_gib(prediction.cluster.usable)} a rank"
        return Advice(strategy=None, why=why, remedies=_remedies(least, prediction) if least else ())
    return Advice(strategy=able[0].strategy, why=WORTH[able[0].strategy], remedies=_idle(rows.get("single"), prediction))


def _about(row: Row, able: list[Row], prediction: Prediction) -> Advice:
    simplest = able[0].strategy if able else None
    if row.bytes is None:
        return Advice(strategy=simplest, why=f"{row.strategy} cannot be used here: {row.refused}")
    if not row.fits:
        why = f"{row.strategy} takes {_gib(row.bytes.total)} a rank, and {_gib(prediction.cluster.usable)} can be filled"
        return Advice(strategy=simplest, why=why, remedies=_remedies(row, prediction))
    simpler = row in able and simplest != row.strategy
    why = f"{row.strategy} fits" + (f"; {simplest} does as well, and is simpler" if simpler else "")
    return Advice(strategy=row.strategy, why=why)


def _least(prediction: Prediction) -> Row | None:
    known = [row for row in prediction.rows if row.bytes is not None]
    return min(known, key=lambda row: row.bytes.total if row.bytes else 0, default=None)


def _idle(single: Row | None, prediction: Prediction) -> tuple[str, ...]:
    """What one device says where there are several."""
    enough = prediction.cluster.devices > 1 and single is not None and single.fits
    return ("one device would hold it all: the others save time, and no memory is needed",) if enough else ()


def _remedies(row: Row, prediction: Prediction) -> tuple[str, ...]:
    """What makes the largest shares smaller, the largest first."""
    found = row.bytes
    assert found is not None
    offers = [(found.activations + found.transient, offer) for offer in _smaller_activations(found, prediction)]
    lasting = found.lasting + found.gradients
    if prediction.precision in ("32-true", "64-true"):
        offers.append((lasting // 2, "--trainer.precision bf16-true halves weights, gradients and optimizer state, and rounds all of them"))
    if row.strategy in ("single", "ddp"):
        offers.append((lasting, "more devices, and a strategy that divides what they hold (fsdp)"))
    else:
        offers.append((lasting, "more devices: what lasts is divided among them"))
    return tuple(offer for _, offer in sorted(offers, key=lambda one: -one[0]))


def _smaller_activations(found: Bytes, prediction: Prediction) -> list[str]:
    offers, batches = [], prediction.batches
    if prediction.cost.recomputes == 1.0:
        offers.append(
            f"--model.backbone.checkpointing blocks keeps a fraction of the activations ({_gib(found.activations)}) for a third more time"
        )
    if batches.micro_size > 1:
        offers.append(f"--data.micro_batch_size {batches.micro_size // 2} halves the activations; the result stays the same")
    return offers


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
