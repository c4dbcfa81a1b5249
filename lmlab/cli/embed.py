"""`lmlab embed RUN`: vectors of texts, and how near texts are to each other."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lmlab.cache import write_atomic
from lmlab.cli.allowlist import grant
from lmlab.errors import ConfigError, DataError
from lmlab.loading import load, untrained
from lmlab.rulers.text_vectors import text_vectors

MOST_SHOWN = 12
"""Texts up to which a table of cosines can be read."""
SUFFIXES = (".npy", ".jsonl")


def main(argv: list[str]) -> int:
    """Writes vectors of texts to a file, or shows the cosines between them.

    Args:
        argv: Options after `lmlab embed`.
    """
    parser = argparse.ArgumentParser(
        prog="lmlab embed",
        description="Vectors of texts by a trained model: a contrastive model's own, or the mean state of a masked or causal one.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, a .ckpt file, or a name (its newest finished run)")
    parser.add_argument("--text", action="append", help="a text; may be given several times")
    parser.add_argument("--file", help="a file of texts, one a line (default: standard input)")
    parser.add_argument("--output", help="vectors.npy, or vectors.jsonl with the texts; without it a table of cosines is shown")
    parser.add_argument("--weights", choices=("trained", "fresh"), default="trained", help="fresh: the same network untrained, to compare")
    parser.add_argument("--checkpoint", help="best, last or step=N (default: best, else last)")
    parser.add_argument("--allow", metavar="PKG", help="let the checkpoint name classes of a package of yours (also LMLAB_ALLOW=PKG,PKG)")
    options = parser.parse_args(grant(argv)[0])
    output = None if options.output is None else Path(options.output)
    if output is not None and output.suffix not in SUFFIXES:
        raise ConfigError(f"'{output}' is no kind of file to write", where="--output", remedy=f"end it in {' or '.join(SUFFIXES)}")
    texts = _texts(options.text, options.file)
    if output is None and len(texts) > MOST_SHOWN:
        raise ConfigError(f"{len(texts)} texts are too many for a table", where="--output", remedy="name a file: --output vectors.npy")
    objective = load(options.run, options.checkpoint)
    vectors = text_vectors(untrained(objective) if options.weights == "fresh" else objective, texts)
    if output is None:
        _show(texts, vectors)
    else:
        write_atomic(output, _npy(vectors) if output.suffix == ".npy" else _jsonl(texts, vectors))
        print(f"{len(texts)} vectors of {vectors.shape[1]} numbers: {output}", file=sys.stderr)
    return 0


def _texts(given: list[str] | None, file: str | None) -> list[str]:
    if given and file:
        raise ConfigError("texts come from --text or from --file", where="--file", remedy="give one of them")
    if given:
        return given
    try:
        content = Path(file).read_text(encoding="utf-8-sig") if file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        what, where = (f"'{file}'", "--file") if file else ("the text", "standard input")
        raise DataError(f"{what} cannot be read", where=where, why=str(error), remedy="give text in UTF-8") from error
    lines = [line for line in content.split("\n") if line.strip()]  # not at form feeds and the like, which a text may hold
    if not lines:
        raise DataError("there is no text", where=file or "standard input", remedy="write one text a line, or use --text")
    return lines


def _show(texts: Sequence[str], vectors: Tensor) -> None:
    table = Table("", "text", *(str(number) for number in range(1, len(texts) + 1)), box=None, pad_edge=False)
    for number, (text, row) in enumerate(zip(texts, (vectors @ vectors.T).tolist(), strict=True), start=1):
        table.add_row(str(number), Text(text, no_wrap=True, overflow="ellipsis"), *(f"{cosine:.2f}" for cosine in row))
    Console(highlight=False).print(table)


def _npy(vectors: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vectors.numpy(), allow_pickle=False)
    return buffer.getvalue()


def _jsonl(texts: Sequence[str], vectors: Tensor) -> bytes:
    lines = (json.dumps({"text": text, "vector": row}, ensure_ascii=False) for text, row in zip(texts, vectors.tolist(), strict=True))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
