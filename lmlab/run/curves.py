"""The curves of a run: which metrics share a chart, and how the charts lie on the page."""

from __future__ import annotations

from html import escape

from lmlab.run.charts import Chart, Line, draw
from lmlab.run.escaping import text
from lmlab.run.metrics import Metrics
from lmlab.run.numbers import grouped, loss

WIDE, NARROW, SMALL = (816, 300), (380, 250), (380, 190)
MAX_VALIDATIONS = 200  # rows of the table

VIEWS = (
    ("steps", "step", "linear"),
    ("steps, log scale", "step", "log"),
    ("tokens", "budget/tokens", "linear"),
    ("seconds", "budget/seconds", "linear"),
)
"""What the losses are plotted over: label, column, scale."""

TITLES = {
    "train/learning_rate": ("Learning rate", ""),
    "perf/tokens_per_second": ("Throughput", "corpus tokens per second"),
    "perf/flops_per_second": ("Speed", "FLOPs per second"),
}
"""Names that say more than the metric's own: title and note."""


def curves(metrics: Metrics) -> str:
    """The losses over steps, tokens and time, and every other metric as a small chart."""
    views = []
    for label, column, scale in VIEWS:
        chart = loss_chart(metrics, column, label.split(",")[0], scale)  # type: ignore[arg-type]
        if chart and (column == "step" or column in metrics.columns):
            views.append((label, _both_widths(chart)))
    parts = []
    if views:
        tabs = "".join(
            f'<input type="radio" name="x" id="x{i}"{" checked" if i == 0 else ""}><label for="x{i}">{escape(label)}</label>'
            for i, (label, _) in enumerate(views)
        )
        panes = "".join(f'<div class="view">{svg}</div>' for _, svg in views)
        parts.append(f'<figure class="views" role="group" aria-label="Loss, by">{tabs}{panes}</figure>')
    small = "".join(_small_multiple(title, note, chart) for title, note, chart in small_charts(metrics))
    parts.append(f'<div class="multiples">{small}</div>' if small else "")
    parts.append(_validation_table(metrics))
    return "".join(parts)


def loss_chart(metrics: Metrics, x: str = "step", x_label: str = "steps", x_scale: str = "linear") -> Chart | None:
    """Training and validation loss; None without either."""
    train, val = metrics.series("train/loss", x), metrics.series("val/loss", x)
    lines = []
    if train.x:
        lines.append(Line(label="train", series=train, role="train", smooth="average" if len(train.x) > 30 else "raw"))
    if val.x:
        lines.append(Line(label="validation", series=val, role="val", dots="each"))
    return Chart(title=f"Loss over {x_label}", lines=lines, x_label=x_label, x_scale=x_scale) if lines else None  # type: ignore[arg-type]


def small_charts(metrics: Metrics) -> list[tuple[str, str, Chart]]:
    """Title, note and chart of every metric that is neither a loss in the large chart nor a clock."""
    names = [n for n in metrics.columns if not n.startswith("budget/") and n not in ("step", "train/loss", "val/loss")]
    charts = []
    done: set[str] = set()
    for name in sorted(names, key=lambda n: (not n.startswith("val/"), n.startswith("perf/"), n)):
        stage, _, quantity = name.partition("/")
        pair = [f"{s}/{quantity}" for s in ("train", "val") if f"{s}/{quantity}" in names] if stage in ("train", "val") else [name]
        if name in done:
            continue
        done.update(pair)
        lines = []
        for member in pair:
            series = metrics.series(member)
            smooth = "average" if len(series.x) > 30 and "learning_rate" not in member and not member.startswith("lr-") else "raw"
            role = "val" if member.startswith("val/") else "train" if member.startswith("train/") else "quiet"
            label = {"val": "validation", "train": "train"}.get(role, "") if len(pair) > 1 else ""
            lines.append(Line(label=label, series=series, role=role, smooth=smooth, dots="each" if role == "val" else "none"))  # type: ignore[arg-type]
        title, note = TITLES.get(name, (quantity.replace("_", " ").capitalize() or name, "" if len(pair) > 1 else stage))
        zero = "include" if name.startswith(("perf/", "train/learning_rate", "lr-")) else "free"
        prefixes = "si" if "flops" in name else "count"
        charts.append((title, note, Chart(title=title, lines=lines, y_zero=zero, prefixes=prefixes)))  # type: ignore[arg-type]
    return charts


def _both_widths(chart: Chart) -> str:
    return f'<div class="wide">{draw(chart, *WIDE)}</div><div class="narrow">{draw(chart, *NARROW)}</div>'


def _small_multiple(title: str, note: str, chart: Chart) -> str:
    svg = draw(chart, *SMALL)
    return f"<figure><figcaption>{text(title)} <small>{text(note)}</small></figcaption>{svg}</figure>" if svg else ""


def _validation_table(metrics: Metrics) -> str:
    names = [name for name in metrics.columns if name.startswith("val/")]
    rows = [row for row in metrics.rows if any(name in row for name in names)][-MAX_VALIDATIONS:]
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in ("step", *names))
    cells = ""
    for row in rows:
        values = "".join(f"<td>{loss(row[name]) if name in row else ''}</td>" for name in names)
        cells += f"<tr><td>{grouped(row['step'])}</td>{values}</tr>"
    return (
        f"<details><summary>Validations as a table</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div></details>'
    )
