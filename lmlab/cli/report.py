"""`lmlab report RUN`: builds a run's page anew."""

from __future__ import annotations

import argparse
import webbrowser

from lmlab.run.directory import ROOT_VARIABLE
from lmlab.run.find import find_run
from lmlab.run.report import write_report


def main(argv: list[str]) -> int:
    """Writes `report.html` from what lies in the run's folder, and prints where it is.

    Args:
        argv: Options after `lmlab report`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: If there is no such run, or its record is broken.
    """
    parser = argparse.ArgumentParser(prog="lmlab report", description="Build a run's report.html anew.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run's folder, one of its .ckpt files, or a name, which is its newest finished run")
    parser.add_argument("--root", help=f"folder of all runs (default: ${ROOT_VARIABLE}, else ./runs)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    options = parser.parse_args(argv)
    path = write_report(find_run(options.run, options.root))
    print(path)
    if options.open:
        webbrowser.open(path.resolve().as_uri())
    return 0
