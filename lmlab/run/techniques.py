"""The table of techniques: what each is, where it is written, and what its shipped config gave, over several seeds."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lmlab.config import leaves
from lmlab.errors import ConfigError
from lmlab.run.directory import RunDirectory
from lmlab.run.find import list_runs
from lmlab.run.numbers import compact
from lmlab.run.record import Record

RULERS = {
    "bits_per_byte": "bits per byte",
    "accuracy": "of the tokens right",
    "pair_accuracy": "of the pairs right",
    "retrieval_accuracy": "of the texts found in their batch",
}
"""Metrics that a reader can make sense of, by the last part of their name, and what is said of their value."""

SHARES = {"accuracy", "pair_accuracy", "retrieval_accuracy"}
"""Those of them that are shares, shown in per cent."""


class Figure(NamedTuple):
    """One measurement of a config, over its runs.

    Args:
        metric: Name without the stage, such as `mlm/accuracy`.
        mean: Over the seeds.
        deviation: Standard deviation over the seeds; None for one.
    """

    metric: str
    mean: float
    deviation: float | None

    def __str__(self) -> str:
        """As it stands in the table."""
        ruler = self.metric.rpartition("/")[2]
        scale, unit = (100, " %") if ruler in SHARES else (1, "")
        digits = 1 if ruler in SHARES else 3
        spread = "" if self.deviation is None else f" ± {self.deviation * scale:.{digits}f}"
        task = self.metric.rpartition("/")[0]
        return f"{f'{task}: ' if task else ''}{self.mean * scale:.{digits}f}{spread}{unit} {RULERS[ruler]}"


@dataclass(frozen=True)
class Technique:
    """A shipped config and the finished runs that were made with it.

    Args:
        path: The YAML file, as it is to be shown.
        title: First line of its header.
        source: The paper, from its header.
        tree: Its content.
        records: Of finished runs, one a seed, by seed.
    """

    path: Path
    title: str
    source: str
    tree: Mapping[str, Any]
    records: Mapping[int, Record]

    @property
    def name(self) -> str:
        """The name of its runs."""
        return str(self.tree["run"]["name"])

    @property
    def code(self) -> str:
        """The file that its objective is written in."""
        return self.tree["model"]["class_path"].rpartition(".")[0].replace(".", "/") + ".py"

    def figures(self) -> list[Figure]:
        """Mean and deviation of each metric with a ruler that all runs have, on the validation text."""
        found = []
        tables = [record.metrics for record in self.records.values()]
        for metric in tables[0] if tables else ():
            stage, _, rest = metric.partition("/")
            if stage == "val" and rest.rpartition("/")[2] in RULERS and all(metric in table for table in tables):
                values = [table[metric] for table in tables]
                found.append(Figure(rest, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None))
        return found


def read_technique(path: Path, root: Path | str | None, shown: Path) -> Technique:
    """Reads a config and finds its runs.

    Args:
        path: The YAML file.
        root: Folder of all runs.
        shown: The path to show.

    Raises:
        ConfigError: If its header lacks a title or a source.
    """
    text = path.read_text(encoding="utf-8")
    header = [line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#")]
    source = next((line.partition(":")[2].strip() for line in header if line.startswith("source:")), "")
    if not header or not source:
        raise ConfigError(
            f"{path.name} has no title or no source", where=str(path), remedy="begin it with `# What it is` and `#   source: ...`"
        )
    tree = yaml.safe_load(text)
    title = re.sub(r",? on Jane Austen's novels$", "", header[0].partition(":")[0].rstrip("."))  # the text of all of them
    return Technique(shown, title, source, tree, _records(tree, root))


def _records(tree: Mapping[str, Any], root: Path | str | None) -> dict[int, Record]:
    """The newest finished run of each seed whose settings are those of the config."""
    found: dict[int, Record] = {}
    for run in list_runs(root, tree["run"]["name"]):
        if not run.record_path.exists() or not _made_with(run, tree):
            continue
        record = Record.load(run.record_path)
        if record.status == "finished":
            found[int(record.seed)] = record
    return dict(sorted(found.items()))


def _made_with(run: RunDirectory, tree: Mapping[str, Any]) -> bool:
    made = dict(leaves(yaml.safe_load(run.config_path.read_text(encoding="utf-8")))) if run.config_path.exists() else {}
    ignored = re.compile(r"seed_everything$|run\.(root|question)$|tokenizer\.path$")
    return all(ignored.match(key) or str(made.get(key)) == str(value) for key, value in leaves(tree))


def markdown(techniques: Sequence[Technique]) -> str:
    """The page: one table of what each gives, and one of where it is from and where it is written.

    Args:
        techniques: In the order in which they are shown. Those with bits per byte come first, the best of them first of all, for these
            figures are of one kind; the others keep their order, for theirs are not.
    """
    bits, others = {}, {}
    for t in techniques:
        figures = {figure.metric: figure for figure in t.figures()}
        bits[t.title] = figures.pop("bits_per_byte", None)
        others[t.title] = list(figures.values())
    ranked = sorted(techniques, key=lambda t: figure.mean if (figure := bits[t.title]) else math.inf)
    lines = ["## What each gives", "", "| technique | config | bits per byte | in units of its own | parameters | tokens | FLOPs | seeds |"]
    lines.append("|---" * 8 + "|")
    for t in ranked:
        likelihood = str(bits[t.title] or "").removesuffix(" bits per byte")
        own = "; ".join(map(str, others[t.title])) if t.records else "not measured yet"
        lines.append(f"| {t.title} | `{t.path}` | {likelihood} | {own} | {_spent(t)} |")
    lines += ["", "## Where each is from, and where it is written", "", "| technique | source | code |", "|---|---|---|"]
    lines += [f"| {t.title} | {t.source} | `{t.code}` |" for t in techniques]
    return "\n".join(lines) + "\n"


def _spent(technique: Technique) -> str:
    """Parameters, tokens and FLOPs of the first run, and how many there are."""
    records = list(technique.records.values())
    if not records:
        return " | | | "
    first = records[0]
    cells = [compact(first.num_parameters or 0), compact(first.spent.get("tokens", 0)), compact(first.spent.get("flops", 0), "si")]
    return " | ".join([*cells, str(len(records))])
