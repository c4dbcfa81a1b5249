"""Which strategy to take, and what to change where none fits."""

from __future__ import annotations

from dataclasses import dataclass

from lmlab.planning.memory import Bytes, Strategy
from lmlab.planning.prediction import Prediction, Row
from lmlab.planning.weights import MIXED

WORTH: dict[Strategy, str] = {
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
        answer: What was asked about one strategy; empty if nothing was.
        remedies: What would make one fit.
    """

    strategy: Strategy | None
    why: str
    answer: str = ""
    remedies: tuple[str, ...] = ()


def advise(prediction: Prediction, wanted: Strategy | None = None) -> Advice:
    """The simplest strategy that fits, in the order of `memory.STRATEGIES`.

    Args:
        prediction: What a run will take.
        wanted: The one that was asked about.
    """
    several = prediction.cluster.devices > 1
    able: list[Strategy] = [row.strategy for row in prediction.rows if row.fits and not (several and row.strategy == "single")]
    asked = next((row for row in prediction.rows if row.strategy == wanted), None)
    answer = _answer(asked, prediction) if asked else ""
    if able:
        remedies = _remedies(asked, prediction) if asked and asked.bytes and not asked.fits else ()
        return Advice(strategy=able[0], why=WORTH[able[0]], answer=answer, remedies=remedies)
    known = [row for row in prediction.rows if row.bytes is not None]
    least = min(known, key=lambda row: row.bytes.total if row.bytes else 0)
    why = f"no strategy fits into {_gib(prediction.cluster.usable)} a rank; {least.strategy} comes nearest"
    return Advice(strategy=None, why=why, answer=answer, remedies=_remedies(least, prediction))


def _answer(row: Row, prediction: Prediction) -> str:
    if row.bytes is None:
        return f"{row.strategy} cannot be used here: {row.refused}"
    taken = f"takes {_gib(row.bytes.total)} a rank of {_gib(prediction.cluster.usable)} that can be filled"
    return f"{row.strategy} {'fits' if row.fits else 'does not fit'}: it {taken}"


def _remedies(row: Row, prediction: Prediction) -> tuple[str, ...]:
    """What makes the largest shares smaller, the largest first."""
    found = row.bytes
    assert found is not None
    offers = [(found.activations + found.transient, offer) for offer in _smaller_activations(found, prediction)]
    lasting = found.lasting + found.gradients
    if prediction.precision in ("32-true", "64-true"):
        offers.append((lasting // 2, "--trainer.precision bf16-true halves weights, gradients and optimizer state, and rounds all of them"))
    elif prediction.precision in MIXED:
        offers.append((lasting // 2, "--trainer.precision bf16-true needs no copies in half precision and halves the rest, and rounds it"))
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
