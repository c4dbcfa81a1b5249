"""The sections of a run's report, each an HTML string made from plain values; everything that is text is escaped here."""

from __future__ import annotations

import math
import re
from html import escape

from lmlab.run.escaping import text
from lmlab.run.metrics import Metrics
from lmlab.run.numbers import compact, duration, grouped, loss
from lmlab.run.record import Record
from lmlab.run.redaction import redact_text

COSTS = (
    ("steps", "optimiser steps", "count"),
    ("examples", "examples", "count"),
    ("tokens", "corpus tokens", "count"),
    ("supervised_tokens", "supervised tokens", "count"),
    ("flops", "FLOPs", "si"),
    ("seconds", "training time", "time"),
    ("peak_memory_bytes", "peak memory", "bytes"),
)


def section(title: str, content: str) -> str:
    """One titled part of the page; nothing at all if there is no content."""
    return (
        f'<section aria-label="{escape(title)}"><h2>{escape(title)}</h2><div class="content">{content}</div></section>' if content else ""
    )


def header(record: Record, alive: bool) -> str:
    """Name, status, question, and the error of a run that failed.

    Args:
        record: The run.
        alive: Whether a process works on it; a `running` record without one was killed.
    """
    status = record.status if record.status != "running" or alive else "interrupted"
    facts = [f'<span class="status {status}">{status}</span>']
    size = f"{compact(record.num_parameters)} parameters" if record.num_parameters else ""
    facts += [f"<span>{text(fact)}</span>" for fact in (record.objective_name, size, record.corpus and f"on {record.corpus}") if fact]
    facts += [
        f"<span>seed {record.seed}</span>",
        f"<span>{text(record.started[:16].replace('T', ' '))} UTC</span>" if record.started else "",
    ]
    question = f'<p class="question">{text(redact_text(record.question))}</p>' if record.question else ""
    error = f'<p class="error" role="alert">{text(redact_text(record.error))}</p>' if record.error else ""
    return f'<div class="line-above">{"".join(facts)}</div><h1>{text(record.name)}</h1>{question}{error}'


def outcome(record: Record, metrics: Metrics) -> str:
    """A sentence or two on what came out, the key figures, and bits per byte beside the anchors."""
    sentences = " ".join(_sentences(record, metrics))
    parts = [f'<p class="lead">{sentences}</p>' if sentences else ""]
    figures = "".join(
        f'<div class="{"first" if index == 0 else ""}"><dt>{escape(label)}</dt><dd><span class="value">{value}</span>'
        f'<span class="note">{note}</span></dd></div>'
        for index, (label, value, note) in enumerate(_figures(record, metrics))
    )
    parts.append(f'<dl class="figures">{figures}</dl>' if figures else "")
    return "".join(parts) + _anchor_bars(record)


def cost(record: Record) -> str:
    """The budget in every unit, the limiting one marked."""
    rows = []
    for key, label, kind in COSTS:
        if key not in record.spent:
            continue
        value, limit = record.spent[key], record.budget.get(key)
        of = f" of {_amount(limit, kind)}" if limit else ""
        exact = grouped(value) if kind == "count" and value >= 1000 else ""
        rows.append(_row(label, f"{_amount(value, kind)}{of}", exact, "limit" if limit else ""))
    rows += [_row(label, value, note) for label, value, note in _rates(record)]
    if not rows:
        return ""
    share = max((record.spent.get(key, 0) / limit for key, limit in record.budget.items() if limit), default=None)
    meter = ""
    if share is not None and math.isfinite(share):
        percent = f"{min(share, 1):.0%}"
        meter = f'<p class="note">{percent} of the budget</p><div class="meter"><i style="width:{percent}"></i></div>'
    return f'{meter}<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'


def _sentences(record: Record, metrics: Metrics) -> list[str]:
    said = []
    val = metrics.series("val/loss")
    train = metrics.series("train/loss")
    bad = next((x for x, y in zip(*train, strict=True) if not math.isfinite(y)), None)
    if bad is not None:
        said.append(f"The training loss was not a finite number from step {grouped(bad)} on.")
    if len(val.y) > 1 and all(map(math.isfinite, val.y)):
        low = min(range(len(val.y)), key=val.y.__getitem__)
        said.append(f"Validation loss went from {loss(val.y[0])} to {loss(val.y[-1])} in {grouped(val.x[-1])} steps.")
        if low < len(val.y) - 1 and val.y[-1] > val.y[low] * 1.002:
            said.append(f"It was lowest at step {grouped(val.x[low])} with {loss(val.y[low])} and has risen since.")
        elif val.y[-1] < val.y[-2] * 0.998:
            said.append("It was still falling at the end.")
        else:
            said.append("It hardly moved at the end.")
    elif not val.y and len(train.y) > 1 and bad is None:
        said.append(
            f"Training loss went from {loss(train.y[0])} to {loss(train.y[-1])} in {grouped(train.x[-1])} steps. There was no validation."
        )
    own = record.bits_per_byte()
    if own and record.anchors:
        said.append(_placed(own, record.anchors))
    return said


def _placed(own: tuple[str, float], anchors: dict[str, float]) -> str:
    """Where a run stands among its anchors, in a sentence."""
    at = f"At {loss(own[1])} {own[0]} it"
    below = [(value, name) for name, value in anchors.items() if value <= own[1]]
    above = [(value, name) for name, value in anchors.items() if value > own[1]]
    if not above:
        return f"{at} is worse than every anchor, so nothing else here means much."
    worse, beaten = min(above)
    if not below:
        return f"{at} beats every anchor; the best of them, {text(beaten)}, has {loss(worse)}."
    better, ahead = max(below)
    return f"{at} lies between {text(ahead)} ({loss(better)}) and {text(beaten)} ({loss(worse)})."


def _figures(record: Record, metrics: Metrics) -> list[tuple[str, str, str]]:
    found = []
    val = [(y, x) for x, y in zip(*metrics.series("val/loss"), strict=True) if math.isfinite(y)]
    train = [y for y in metrics.series("train/loss").y if math.isfinite(y)]
    if val:
        best, step = min(val)
        last = "the last" if best == val[-1][0] else f"last {loss(val[-1][0])}"
        found.append(("Best validation loss", loss(best), f"at step {grouped(step)}, {last}"))
    elif train:
        found.append(("Training loss", loss(train[-1]), "the last value"))
    own = record.bits_per_byte()
    if own:
        found.append((own[0].capitalize(), loss(own[1]), "lower is better"))
    spent = record.spent
    if "tokens" in spent:
        per = f"{compact(spent['tokens'] / record.num_parameters, digits=2)} per parameter" if record.num_parameters else ""
        found.append(("Tokens", _unit(compact(spent["tokens"])), per))
    if "seconds" in spent:
        rate = f"{compact(record.tokens_per_second)} tokens per second" if record.tokens_per_second else ""
        found.append(("Training time", _unit(duration(spent["seconds"])), rate))
    return found


def _unit(value: str) -> str:
    """The letters of a number a little smaller than its digits."""
    return re.sub(r"[ \u202f]?([^\d.,\s\u202f-]+)", '<span class="unit">\u202f\\1</span>', escape(value))


def _anchor_bars(record: Record) -> str:
    own = record.bits_per_byte()
    rows = [(name, value, "") for name, value in record.anchors.items() if math.isfinite(value)]
    if own is None or not rows or not math.isfinite(own[1]):
        return ""
    rows = sorted([*rows, ("this run", own[1], "own")], key=lambda row: -row[1])
    top = max(value for _, value, _ in rows)
    bars = ""
    for name, value, kind in rows:
        bar = f'<span class="bar" style="width:{82 * value / top:.1f}%"></span>'
        bars += f'<span class="{kind}">{text(name)}</span><span class="track {kind}">{bar}<span class="value">{value:.3f}</span></span>'
    label = own[0].capitalize()
    return (
        f'<h3>{label}</h3><div class="bars">{bars}</div><p class="note">Lower is better. This ruler is the same for every model on '
        "this text; a loss is not: compare losses only between runs of one objective, one tokenizer and one corpus.</p>"
    )


def _row(label: str, value: str, note: str, kind: str = "") -> str:
    return f'<tr class="{kind}"><th scope="row">{label}</th><td class="n">{value}</td><td class="n note">{note}</td></tr>'


def _amount(value: float, kind: str) -> str:
    if kind == "time":
        return duration(value)
    if kind == "bytes":
        return f"{compact(value, 'si')}B"
    return compact(value, "si" if kind == "si" else "count")


def _rates(record: Record) -> list[tuple[str, str, str]]:
    rates = []
    if record.tokens_per_second is not None:
        rates.append(("tokens per second", compact(record.tokens_per_second), "median"))
    if record.flops_utilisation is not None:
        rates.append(("use of the machine", f"{record.flops_utilisation:.0%}", "of its measured matrix speed"))
    if record.num_parameters and record.spent.get("tokens"):
        rates.append(("tokens per parameter", compact(record.spent["tokens"] / record.num_parameters), ""))
    return rates
