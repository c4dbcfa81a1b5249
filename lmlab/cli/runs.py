"""`lmlab runs`: a table of runs."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console

from lmlab.errors import CheckpointError, nearest
from lmlab.run.directory import ROOT_VARIABLE, runs_root
from lmlab.run.find import known_names, list_runs
from lmlab.run.table import SORTS, print_table, summarise


def main(argv: list[str]) -> int:
    """Prints the runs, finished or not, and those whose record is broken.

    Args:
        argv: Options after `lmlab runs`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: If there is no run of the name asked for.
    """
    parser = argparse.ArgumentParser(prog="lmlab runs", description="A table of runs, oldest first.", allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="only runs of this name")
    parser.add_argument("--root", help=f"folder of all runs (default: ${ROOT_VARIABLE}, else ./runs)")
    parser.add_argument("--sort", choices=SORTS, default="time", help="losses are sorted within one objective and text (default: time)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    options = parser.parse_args(argv)
    rows = [summarise(run) for run in list_runs(options.root, options.name)]
    if options.name is not None and not rows:
        names = known_names(options.root)
        remedy = nearest(options.name, names) if names else "start one with `lmlab fit`"
        raise CheckpointError(f"there is no run '{options.name}'", where=str(runs_root(options.root)), remedy=remedy)
    if options.json:
        print(json.dumps([row.to_plain() for row in rows], indent=2))
        return 0
    if not rows:
        print(f"no runs in {runs_root(options.root)} yet: start one with `lmlab fit`, or set {ROOT_VARIABLE}", file=sys.stderr)
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)  # into a pipe: one run a line, nothing cut off
    print_table(rows, options.sort, console)
    return 0
