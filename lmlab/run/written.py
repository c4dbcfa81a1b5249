"""What the model wrote at several stages of its training, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from lmlab.run.escaping import text
from lmlab.run.numbers import grouped
from lmlab.run.samples import Piece, Sample, given

MAX_STAGES = 6
MAX_TEXTS = 4
MAX_CHARACTERS = 3000  # of one piece


def written(samples: Sequence[Sample]) -> str:
    """What the model wrote at several stages, each text from the first stage to the last."""
    if not samples:
        return ""
    texts: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        texts.setdefault(given(sample), []).append(sample)
    fills = any(piece.truth is not None for sample in samples for piece in sample.pieces)
    key = '<p class="note key text-key"><span><span class="given">Grey</span> is the corpus.</span>' + (
        "<span>Underlined is the model’s choice: <ins>solid</ins> where it hit the corpus, dotted where it missed, with what stood there.</span></p>"
        if fills
        else "<span>Dark is what the model wrote.</span></p>"
    )
    blocks = [_stages(stages) for stages in texts.values()]
    rest = (
        f"<details><summary>{len(blocks) - MAX_TEXTS} more texts</summary>{''.join(blocks[MAX_TEXTS:])}</details>"
        if blocks[MAX_TEXTS:]
        else ""
    )
    return key + "".join(blocks[:MAX_TEXTS]) + rest


def _stages(stages: list[Sample]) -> str:
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
    shown = text(piece.text[:MAX_CHARACTERS] + ("…" if len(piece.text) > MAX_CHARACTERS else ""))
    if piece.by == "corpus":
        return f'<span class="given">{shown}</span>'
    if piece.truth is None:
        return f'<span class="written">{shown}</span>'
    sure = f' title="{piece.probability:.0%} sure"' if piece.probability is not None else ""
    if piece.text.strip() == piece.truth.strip():
        return f'<ins class="right"{sure}>{shown}</ins>'
    return f'<ins class="wrong"{sure}>{shown}</ins><span class="truth">{text(piece.truth.strip()[:MAX_CHARACTERS])}</span>'
