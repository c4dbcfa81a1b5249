"""What the model wrote, or found, at several stages of its training, as HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lmlab.run.escaping import text
from lmlab.run.numbers import grouped
from lmlab.run.samples import Piece, Sample, origin

MAX_STAGES = 6
MAX_TEXTS = 4
MAX_CHARACTERS = 3000  # of one piece
NOTHING = "∅"  # an underline below nothing would not be seen


def written(samples: Sequence[Sample]) -> dict[str, str]:
    """What the model wrote, and what it finds alike: a section each, by heading, if there is any.

    Args:
        samples: By stage; each text is shown from its first stage to its last.
    """
    own = [sample for sample in samples if not _searches(sample)]
    found = [sample for sample in samples if _searches(sample)]
    parts = ['<span class="given">Grey</span> is the corpus.']
    if any(piece.truth is not None for sample in own for piece in sample.pieces):
        parts.append(
            "<ins>Underlined</ins> is the model’s choice: solid where it hit the corpus, dotted where it missed, with what stood there."
        )
    if any(piece.by == "model" and piece.truth is None for sample in own for piece in sample.pieces):
        parts.append("Dark is what the model wrote.")
    alike = 'Below each <span class="given">text</span> those whose vectors are nearest, with the cosine, at each stage.'
    kinds = {"What it wrote": (" ".join(parts), own), "What it finds alike": (alike, found)}
    return {heading: _section(key, chosen) for heading, (key, chosen) in kinds.items() if chosen}


def _searches(sample: Sample) -> bool:
    return any(piece.by == "search" for piece in sample.pieces)


def _section(key: str, samples: Sequence[Sample]) -> str:
    texts: dict[str, list[Sample]] = {}
    for sample in samples:
        texts.setdefault(origin(sample), []).append(sample)
    blocks = [_stages(stages) for stages in texts.values()]
    rest = (
        f"<details><summary>{len(blocks) - MAX_TEXTS} more texts</summary>{''.join(blocks[MAX_TEXTS:])}</details>"
        if blocks[MAX_TEXTS:]
        else ""
    )
    return f'<p class="note key">{key}</p>' + "".join(blocks[:MAX_TEXTS]) + rest


def _stages(stages: list[Sample]) -> str:
    if _searches(stages[0]):  # the text that was looked for stands once above all stages, not once in each
        asked = "".join(_piece(piece) for piece in stages[0].pieces if piece.by == "corpus")
        found = [dataclasses.replace(stage, pieces=tuple(p for p in stage.pieces if p.by == "search")) for stage in stages]
        return f'<div class="text asked" dir="auto">{asked}</div>' + _list(found)
    return _list(stages)


def _list(stages: list[Sample]) -> str:
    chosen = stages
    if len(stages) > MAX_STAGES:
        chosen = [stages[round(i * (len(stages) - 1) / (MAX_STAGES - 1))] for i in range(MAX_STAGES)]
    items = "".join(_stage(stage) for stage in chosen)
    rest = [stage for stage in stages if stage not in chosen]
    more = (
        f'<details><summary>{len(rest)} stages between</summary><ol class="stages">{"".join(map(_stage, rest))}</ol></details>'
        if rest
        else ""
    )
    return f'<ol class="stages">{items}</ol>{more}'


def _stage(sample: Sample) -> str:
    body = "".join(_piece(piece) for piece in sample.pieces)
    return f'<li><span class="step">step {grouped(sample.step)}</span><div class="text" dir="auto">{body}</div></li>'


def _piece(piece: Piece) -> str:
    whole = _shown(piece.text)
    if piece.by == "search":
        cosine = "" if piece.cosine is None else f"{piece.cosine:.2f}".replace("-", "\N{MINUS SIGN}")
        return f'<div class="found"><span class="cosine">{cosine}</span><span>{whole}</span></div>'
    if piece.by == "corpus":
        return f'<span class="given">{whole}</span>'
    if piece.truth is None:
        return f'<span class="written">{whole}</span>'
    word = piece.text.strip()
    space = piece.text[: len(piece.text) - len(piece.text.lstrip())] if word else ""
    sure = f' title="{piece.probability:.0%} sure"' if piece.probability is not None else ""
    if word == piece.truth.strip():
        return f'{space}<ins class="right"{sure}>{_shown(word)}</ins>'
    return f'{space}<ins class="wrong"{sure}>{_shown(word) or NOTHING}</ins><span class="truth">{_shown(piece.truth.strip())}</span>'


def _shown(value: str) -> str:
    return text(value[:MAX_CHARACTERS] + ("…" if len(value) > MAX_CHARACTERS else ""))
