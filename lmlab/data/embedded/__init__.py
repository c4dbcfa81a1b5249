"""The texts that come with lmlab, so that a first run needs no download; see the README beside this file."""

from __future__ import annotations

from pathlib import Path

from lmlab.errors import ConfigError, nearest

EMBEDDED = {
    "austen": "six novels of Jane Austen, English",
    "sanguo": "三国演义 and 论语, Chinese",
    "songci": "宋词, 20,480 poems of the Song dynasty, Chinese",
    "handbook": "The Debian Administrator's Handbook, 2,719 paragraphs in English and Chinese",
}
"""Names of the embedded texts, and what they are."""


def embedded_path(name: str) -> Path:
    """Where an embedded text lies.

    Args:
        name: A key of `EMBEDDED`.

    Returns:
        A gzipped JSONL file; the README beside this file names its fields.

    Raises:
        ConfigError: If there is no text of that name.
    """
    if name not in EMBEDDED:
        raise ConfigError(f"there is no embedded corpus '{name}'", where="corpus", remedy=nearest(name, EMBEDDED))
    return Path(__file__).parent / f"{name}.jsonl.gz"
