"""`lmlab generate RUN` and `lmlab fill RUN`: let a trained model write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmlab.cli.allowlist import grant
from lmlab.decoding import DecodingConfig
from lmlab.errors import ConfigError
from lmlab.loading import load
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.objectives.span_corruption import SpanCorruption


def generate_main(argv: list[str]) -> int:
    """Continues texts with a causal model.

    Args:
        argv: Options after `lmlab generate`.
    """
    parser = _parser("generate", "Continue a text with a trained causal language model.")
    parser.add_argument(
        "--prompt", action="append", help="beginning of the text; may be given several times (default: read standard input)"
    )
    parser.add_argument("--max_new_tokens", type=int, default=100, help="most tokens to write (default: 100)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time (default: 0.8)")
    parser.add_argument("--top_k", type=int, default=0, help="draw from the k likeliest tokens only; 0 for all (default: 0)")
    parser.add_argument("--top_p", type=float, default=0.95, help="draw from the fewest tokens with this probability (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: 0)")
    parser.add_argument("--plain", action="store_true", help="print the text only, without colour")
    options = parser.parse_args(grant(argv)[0])
    config = DecodingConfig(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    prompts: list[str] = options.prompt or [sys.stdin.read().rstrip("\n")]
    objective = _of_kind(load(options.run, options.checkpoint), CLM)
    if not isinstance(objective, CLM):
        raise _wrong(options.run, type(objective).__name__, "continue a text", "`lmlab fill` lets it fill gaps")
    console = Console(highlight=False, soft_wrap=True)
    for prompt, written in zip(prompts, objective.generate(prompts, config), strict=True):
        console.print(prompt + written, markup=False) if options.plain else console.print(Text.assemble(prompt, (written, "bold cyan")))
    return 0


def fill_main(argv: list[str]) -> int:
    """Fills gaps with a masked model, or with a span-corruption model.

    Args:
        argv: Options after `lmlab fill`.
    """
    parser = _parser("fill", "Fill the gaps of a text with a trained masked or span-corruption model.")
    parser.add_argument(
        "--text", action="append", help="with [MASK] for each missing token, or <extra_id_0>, <extra_id_1>, ... for missing spans"
    )
    parser.add_argument("--num_choices", type=int, default=5, help="choices to show for each [MASK] (default: 5)")
    options = parser.parse_args(grant(argv)[0])
    texts: list[str] = options.text or [sys.stdin.read().rstrip("\n")]
    objective = _of_kind(load(options.run, options.checkpoint), MLM, SpanCorruption)
    console = Console(highlight=False)
    if isinstance(objective, MLM):
        _fill_masks(console, objective, texts, options.num_choices)
    elif isinstance(objective, SpanCorruption):
        _fill_spans(console, objective, texts)
    else:
        raise _wrong(options.run, type(objective).__name__, "fill gaps", "`lmlab generate` lets it continue a text")
    return 0


def _fill_masks(console: Console, objective: MLM, texts: Sequence[str], num_choices: int) -> None:
    for text in texts:
        table = Table("gap", *(f"{n}." for n in range(1, num_choices + 1)), box=None, pad_edge=False)
        for number, choices in enumerate(objective.fill(text, num_choices), start=1):
            table.add_row(
                str(number), *(Text(f"{choice.text.strip() or repr(choice.text)} {choice.probability:.0%}") for choice in choices)
            )
        console.print(Text(text))
        console.print(table)


def _fill_spans(console: Console, objective: SpanCorruption, texts: Sequence[str]) -> None:
    tokenizer = objective.tokenizer
    rows = [tokenizer.encode(text, parse_special=True) for text in texts]
    sentinels = set(tokenizer.sentinel_ids)
    for text, row, filling in zip(texts, rows, objective.fill(rows), strict=True):
        if not sentinels & set(row):
            raise ConfigError(f"there is no gap in {text[:60]!r}", where="--text", remedy="write <extra_id_0> where a span is missing")
        parts = [(tokenizer.decode(filling.get(t, [])), "bold cyan") if t in sentinels else tokenizer.decode([t]) for t in row]
        console.print(Text.assemble(*parts))


def _of_kind(loaded: Objective, *kinds: type[Objective]) -> Objective:
    """What was trained that is of a kind; where nothing is, what was trained first."""
    return next((product for product in loaded.products if isinstance(product, kinds)), loaded.products[0])


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"lmlab {command}", description=description, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run's folder, a .ckpt file, or a name (its newest finished run)")
    parser.add_argument("--checkpoint", help="best, last or step=N (default: best, else last)")
    parser.add_argument("--allow", metavar="PKG", help="let the checkpoint name classes of a package of yours (also LMLAB_ALLOW=PKG,PKG)")
    return parser


def _wrong(run: str, objective: str, what: str, remedy: str) -> ConfigError:
    return ConfigError(f"the run '{run}' cannot {what}", where=run, why=f"it was trained with {objective}", remedy=remedy)
