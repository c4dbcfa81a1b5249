"""`lmlab tokenizer`: train a tokenizer on a corpus, or look at one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import get_type_hints

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmlab.data.corpus import open_corpus
from lmlab.data.tokenizer import training_texts
from lmlab.errors import DataError
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from lmlab.tokenizer.specials import ROLES

SAMPLE = "She hadn't expected it, of course. 却说玄德访孔明两次不遇，欲再往访之。"
NUM_SAMPLE_DOCUMENTS = 20
COLOURS = ("black on bright_cyan", "black on bright_yellow")


def main(argv: list[str]) -> int:
    """Runs `train` or `show`.

    Args:
        argv: What follows `lmlab tokenizer`.

    Returns:
        0, the exit status of success; failures are raised as `LabError`.
    """
    options = _parser().parse_args(argv)
    console = Console(highlight=False)
    if options.command == "train":
        _train(options, console)
    else:
        _show(Tokenizer.load(options.path), options.text, list(_samples(options)), console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lmlab tokenizer", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    default, hints = TokenizerConfig(), get_type_hints(TokenizerConfig)
    train = commands.add_parser("train", help="learn a vocabulary from a corpus", allow_abbrev=False)
    train.add_argument("corpus", help="austen, sanguo, songci, a file or a glob, or hf:NAME")
    train.add_argument("--out", type=Path, required=True, help="folder to write (opens with transformers too), or a .json file")
    for name in ("kind", "normalization", "case"):
        choices = hints[name].__args__
        train.add_argument(f"--{name}", choices=choices, default=getattr(default, name), help=f"default: {getattr(default, name)}")
    for name in ("vocab_size", "num_sentinels", "min_frequency", "train_characters"):
        value = getattr(default, name)
        train.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, metavar="N", help=f"default: {value}")
    show = commands.add_parser("show", help="print what a tokenizer is and how it cuts a text", allow_abbrev=False)
    show.add_argument("path", type=Path, help="a tokenizer.json, or a folder that holds one")
    for command in (train, show):
        command.add_argument("--text", default=SAMPLE, help="a text to cut into tokens")
    show.add_argument("--corpus", help="measure compression on the first documents of a corpus instead of on the text")
    return parser


def _train(options: argparse.Namespace, console: Console) -> None:
    config = TokenizerConfig(
        kind=options.kind,
        vocab_size=options.vocab_size,
        num_sentinels=options.num_sentinels,
        normalization=options.normalization,
        case=options.case,
        min_frequency=options.min_frequency,
        train_characters=options.train_characters,
    )
    tokenizer = Tokenizer.train(lambda: _texts(options.corpus), config)
    tokenizer.save(options.out)
    _show(tokenizer, options.text, list(_samples(options)), console)
    console.print(f"written to {options.out}", markup=False)


def _texts(corpus: str) -> Iterator[str]:
    """The documents as training sees them: cleaned by the default rules."""
    return training_texts(open_corpus(corpus))


def _samples(options: argparse.Namespace) -> Iterator[str]:
    return islice(_texts(options.corpus), NUM_SAMPLE_DOCUMENTS) if options.corpus else iter([options.text])


def _show(tokenizer: Tokenizer, text: str, samples: list[str], console: Console) -> None:
    content = json.loads(tokenizer.json)
    ids = [tokenizer.encode(sample) for sample in samples]
    num_tokens, num_bytes = sum(map(len, ids)), sum(len(tokenizer.normalize(sample).encode()) for sample in samples)
    if not num_tokens:
        raise DataError("there is no text to measure on", why="it has no tokens", remedy="give another --text or --corpus")
    unknown = sum(part.count(tokenizer.unk_id) for part in ids)
    num_sentinels, num_special = len(tokenizer.sentinel_ids), len(tokenizer.special_ids)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "model": content["model"]["type"],
        "vocabulary": f"{tokenizer.vocab_size:,} tokens, {num_special} of them special ({num_sentinels} sentinels)",
        "special": "  ".join(f"{role} {getattr(tokenizer.specials, role)}={getattr(tokenizer, f'{role}_id')}" for role in ROLES),
        "fingerprint": tokenizer.fingerprint,
        "compression": f"{num_bytes / num_tokens:.2f} bytes a token ({num_bytes:,} bytes, {num_tokens:,} tokens)",
        "unknown": f"{unknown:,} tokens ({unknown / num_tokens:.2%})",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console.print(table)
    _show_split(tokenizer, text, console)


def _show_split(tokenizer: Tokenizer, text: str, console: Console) -> None:
    """The text with each token on its own ground, then the tokens with their ids; a bar stands before each word."""
    ids = tokenizer.encode(text)
    line, listing = Text(), Text()
    for number, (index, start) in enumerate(zip(ids, tokenizer.word_starts(ids), strict=True)):
        content = tokenizer.decode([index])
        whole = content and "\ufffd" not in content  # a part of a character is shown as the vocabulary spells it
        shown = content.replace("\n", "⏎").replace(" ", "␣") if whole else tokenizer.token(index)
        line.append(content.replace("\n", "⏎") if whole else tokenizer.token(index), style=COLOURS[number % 2])
        listing.append("| " if start else "").append(shown).append(f"={index} ", style="dim")
    console.print(line)
    console.print(listing)
