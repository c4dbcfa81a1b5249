"""`lmlab strategies`: what can be trained under which strategy, and why not where it cannot."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmlab.errors import ConfigError

BEGIN, END = "<!-- strategies -->\n", "<!-- end of strategies -->\n"


def main(argv: list[str]) -> int:
    """Prints or writes the table.

    Args:
        argv: Options after `lmlab strategies`.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="lmlab strategies",
        description="What can be trained under which strategy. All that is not refused here trains what one process would.",
        allow_abbrev=False,
    )
    parser.add_argument("--write", type=Path, help=f"file to put the table into, between its lines `{BEGIN.strip()}` and `{END.strip()}`")
    options = parser.parse_args(argv)
    if options.write is None:
        print(markdown(), end="")
    else:
        text = options.write.read_text(encoding="utf-8") if options.write.exists() else ""
        options.write.write_text(replaced(text, markdown(), str(options.write)), encoding="utf-8")
    return 0


def markdown() -> str:
    """The table, and below it a line for each reason."""
    from lmlab.strategies.refusals import REFUSALS, STRATEGIES, why_not

    techniques, reasons = dict.fromkeys(one.technique for one in REFUSALS), list(dict.fromkeys(one.why for one in REFUSALS))
    lines = [f"| | {' | '.join(STRATEGIES)} |", f"|---|{'---|' * len(STRATEGIES)}"]
    lines.append(f"| everything not named below | {' | '.join('yes' for _ in STRATEGIES)} |")
    for technique in techniques:
        found = [why_not(technique, strategy) for strategy in STRATEGIES]
        lines.append(f"| {technique} | {' | '.join('yes' if why is None else f'no ({reasons.index(why) + 1})' for why in found)} |")
    return "\n".join([*lines, "", *(f"{number}. {why}" for number, why in enumerate(reasons, 1)), ""])


def replaced(text: str, table: str, where: str) -> str:
    """A text with the table in its place.

    Args:
        text: Has the two lines between which it is to stand.
        table: As `markdown` makes it.
        where: The file, for messages.

    Raises:
        ConfigError: If it has not.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        remedy = f"put the lines `{BEGIN.strip()}` and `{END.strip()}` where it is to stand"
        raise ConfigError("there is no place for the table", where=where, remedy=remedy)
    return f"{before}{begin}\n{table}\n{end}{after}"
