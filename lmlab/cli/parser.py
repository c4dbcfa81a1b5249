"""The parser of settings: takes nothing that is not written out."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lmlab.cli.suggestions import COMMANDS


class StrictParser(LightningArgumentParser):
    """Takes no abbreviations, also where jsonargparse makes further parsers of this kind for the settings of a class."""

    def __init__(self, *arguments: Any, allow_abbrev: bool = False, **settings: Any) -> None:
        super().__init__(*arguments, allow_abbrev=allow_abbrev, **settings)


def parser_kwargs() -> dict[str, Any]:
    """Arguments for LightningCLI's parsers: raise instead of exit, keep the usage to one line."""
    own = {"exit_on_error": False}
    usage = {name: {**own, "usage": f"lmlab {name} -c CONFIG [-c OVERLAY] [--section.key VALUE]"} for name in COMMANDS}
    return {**own, **usage}
