"""`report.html`: a run as one page that opens anywhere, offline, and needs no script to be read."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml

from lmlab.cache import write_atomic
from lmlab.run.charts import STYLE, draw
from lmlab.run.curves import curves, loss_chart, small_charts
from lmlab.run.directory import RunDirectory
from lmlab.run.escaping import text
from lmlab.run.metrics import Metrics, read_metrics
from lmlab.run.numbers import compact
from lmlab.run.record import Record
from lmlab.run.redaction import redact, redact_text
from lmlab.run.samples import read_samples
from lmlab.run.sections import cost, header, outcome, section
from lmlab.run.written import written


def write_report(run: RunDirectory) -> Path:
    """Writes `report.html` and the curves in `plots/` from what lies in the run's folder.

    Parts that are not there yet are left out, so that a running run can be looked at too.

    Args:
        run: The run.

    Returns:
        The page.

    Raises:
        CheckpointError: If the record is missing or broken.
        DataError: If the metrics are broken, or the page cannot be written.
    """
    metrics = read_metrics(run.metrics_path)
    page = render_report(run, metrics)
    write_atomic(run.report_path, page.encode("utf-8"))
    write_plots(run, metrics)
    return run.report_path


def render_report(run: RunDirectory, metrics: Metrics) -> str:
    """The page as text.

    Args:
        run: The run.
        metrics: Its `metrics.csv`.
    """
    record = Record.load(run.record_path)
    alive = run.is_claimed() or not run.was_claimed()
    environment = _environment(run.environment_path)
    samples = read_samples(run.samples_path)
    parts = {
        "What came out": outcome(record, metrics),
        "Curves": curves(metrics),
        **written(samples),
        "What it cost": cost(record),
        "Repeat it": _repeat(run, record, environment),
        "Machine": _machine(environment),
    }
    files = {
        name: (resources.files("lmlab.run") / "page" / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    }
    script = files["page.js"].strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(
        files["page.html"]
    ).substitute(
        title=text(f"{record.name} · lmlab"),
        script_hash=f"sha256-{digest}",  # only this script may run: text that slipped through unescaped could not
        style=files["page.css"] + STYLE,
        script=script,
        header=header(record, alive),
        sections="\n".join(section(title, content) for title, content in parts.items()),
        footer=f"lmlab {text(environment.get('packages', {}).get('lmlab', ''))} · {text('/'.join(run.path.parts[-2:]))}",
    )


def write_plots(run: RunDirectory, metrics: Metrics) -> list[Path]:
    """Writes each curve as an SVG file of its own.

    Args:
        run: The run.
        metrics: Its `metrics.csv`.

    Returns:
        The files.
    """
    large = loss_chart(metrics)
    charts = [("loss", large)] if large else []
    charts += [(chart.title.lower().replace(" ", "_").replace("/", "_"), chart) for _, _, chart in small_charts(metrics)]
    paths = []
    for name, chart in charts:
        svg = draw(chart, 760, 320, alone="file")
        if svg:
            paths.append(run.plots / f"{name}.svg")
            write_atomic(paths[-1], svg.encode("utf-8", "replace"))
    return paths


def _repeat(run: RunDirectory, record: Record, environment: dict[str, Any]) -> str:
    config = _config(run.config_path)
    lines = []
    if record.git:
        lines.append(
            f"git checkout {record.git.commit[:12]}"
            + ("   # there were uncommitted changes, which are not recorded" if record.git.dirty else "")
        )
    package = _package(config)
    if config and package != "__main__":
        allow = "" if package in ("", "lmlab") else f" --allow {shlex.quote(package)}"
        lines.append(f"lmlab fit -c {shlex.quote('/'.join(run.path.parts[-3:]) + '/config.yaml')}{allow}")
    parts = [f'<pre class="command">{text(chr(10).join(lines))}</pre>' if lines else ""]
    if package == "__main__":
        parts.append('<p class="note">Its objective was defined in a script or a notebook: run that again, or move it into a module.</p>')
    threads = environment.get("torch", {}).get("threads")
    if threads:
        parts.append(f'<p class="note" style="margin-top:12px">Bit for bit only on the same machine with {text(threads)} threads.</p>')
    if environment.get("command"):
        called = text(shlex.join(map(str, environment["command"])))
        parts.append(f'<h3>As it was called</h3><pre class="command">{called}</pre>')
    facts = {"configuration": record.config_hash, **record.data, "started from": record.parent}
    rows = "".join(f'<tr><th scope="row">{text(k)}</th><td><code>{text(redact_text(v))}</code></td></tr>' for k, v in facts.items() if v)
    parts.append(f"<details><summary>Fingerprints</summary><table><tbody>{rows}</tbody></table></details>" if rows else "")
    parts.append(f"<details><summary>Configuration</summary><pre>{text(config)}</pre></details>" if config else "")
    return "".join(parts)


def _machine(environment: dict[str, Any]) -> str:
    machine, torch, packages = (environment.get(key) or {} for key in ("machine", "torch", "packages"))
    gpus = ", ".join(f"{gpu.get('name')} ({compact(gpu.get('memory_bytes', 0), 'si')}B)" for gpu in torch.get("gpus", ()))
    memory = machine.get("memory_bytes")
    rows = {
        "processor": machine.get("cpu"),
        "cores": f"{machine.get('usable_cores')} of {machine.get('cores')} usable, {torch.get('threads')} threads"
        if machine.get("cores")
        else "",
        "memory": f"{compact(memory, 'si')}B" if memory else "",
        "accelerators": gpus,
        "system": " ".join(str(machine[key]) for key in ("system", "release", "architecture") if machine.get(key)),
        "Python": environment.get("python"),
        **packages,
    }
    shown = "".join(f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>' for k, v in rows.items() if v)
    return f'<div class="scroll"><table><tbody>{shown}</tbody></table></div>' if shown else ""


def _environment(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):  # a report of the rest is worth more than none
        return {}
    return content if isinstance(content, dict) else {}


def _package(config: str) -> str:
    """The package that the objective of a config belongs to; empty if it does not say."""
    try:
        return str(yaml.safe_load(config)["model"]["class_path"]).split(".")[0]
    except (yaml.YAMLError, KeyError, TypeError):
        return ""


def _config(path: Path) -> str:
    if not path.exists():
        return ""
    source = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = yaml.safe_load(source)
    except yaml.YAMLError:
        return redact_text(source)
    hidden = redact(content)
    return source if hidden == content else yaml.safe_dump(hidden, sort_keys=False, allow_unicode=True)
