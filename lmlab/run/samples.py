"""`samples.jsonl`: what the model wrote at several stages of its training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Author = Literal["corpus", "model", "search"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of text by one hand.

    Args:
        text: The text, spaces at its ends included.
        by: Who wrote it; `search` for a text of the corpus that the model finds like the one before.
        truth: What the corpus has in this place, if it is known.
        probability: What the model gave its choice, in [0, 1].
        cosine: Of the vectors of a text that was found and the one it was found for, in [-1, 1].
    """

    text: str
    by: Author = "corpus"
    truth: str | None = None
    probability: float | None = None
    cosine: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One text, written or filled in by the model, or what it finds like it.

    A continuation is a piece of the corpus and one of the model; a filled-in text alternates; a search is a piece of the corpus and those
    found for it, the nearest first. Samples that go back to the same
    text of the corpus are shown as stages of one text.

    Args:
        step: Optimiser steps behind the model.
        pieces: The text in order.
    """

    step: int
    pieces: tuple[Piece, ...]


def append_samples(path: Path, samples: list[Sample]) -> None:
    """Adds samples to the file.

    Args:
        path: The run's `samples.jsonl`.
        samples: Of one stage of the training.
    """
    lines = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)  # ASCII: half a character of a lone surrogate stays writable
    with path.open("ab") as file:
        file.write(lines.encode("ascii"))


def read_samples(path: Path) -> list[Sample]:
    """Reads the file, oldest first; a line that a crash has torn is passed over.

    After a resume a stage may be there twice; the later writing counts.

    Args:
        path: The run's `samples.jsonl`; a missing one reads as empty.
    """
    latest: dict[tuple[int, str], Sample] = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            content = json.loads(line)
            sample = Sample(step=int(content["step"]), pieces=tuple(_piece(p) for p in content["pieces"]))
        except (ValueError, KeyError, TypeError):
            continue
        latest[sample.step, origin(sample)] = sample
    return sorted(latest.values(), key=lambda sample: sample.step)


def merge(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Joins neighbouring pieces by the corpus; those by the model stay apart, each with its own truth.

    Args:
        pieces: In order.
    """
    merged: list[Piece] = []
    for piece in pieces:
        if merged and piece.by == merged[-1].by == "corpus":
            merged[-1] = Piece(text=merged[-1].text + piece.text)
        else:
            merged.append(piece)
    return tuple(merged)


def origin(sample: Sample) -> str:
    """The text as the corpus has it, as far as it is known, by which the stages of one text know each other."""
    return "".join(piece.text if piece.by == "corpus" else piece.truth or "" for piece in sample.pieces)


def _piece(content: dict[str, object]) -> Piece:
    truth, by = content.get("truth"), content.get("by")
    return Piece(
        text=str(content["text"]),
        by="model" if by == "model" else "search" if by == "search" else "corpus",
        truth=None if truth is None else str(truth),
        probability=_number(content.get("probability")),
        cosine=_number(content.get("cosine")),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
