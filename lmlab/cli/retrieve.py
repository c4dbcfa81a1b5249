"""`lmlab retrieve RUN ...`: do the vectors of runs tell which halves of a passage belong together?"""

from __future__ import annotations

import argparse
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from lmlab.cli.allowlist import grant
from lmlab.config import restore
from lmlab.data.cleaning import CleaningConfig
from lmlab.data.module import CorpusModule
from lmlab.data.store.reading import StoreConfig
from lmlab.errors import ConfigError
from lmlab.loading import load, untrained
from lmlab.objectives.base import Objective
from lmlab.rulers.retrieval import Retrieval, find_other_halves, halves
from lmlab.rulers.text_vectors import text_vectors
from lmlab.run.find import find_run


def main(argv: list[str]) -> int:
    """Prints a table, with the first run's network before its training as its anchor.

    Args:
        argv: Options after `lmlab retrieve`.
    """
    parser = argparse.ArgumentParser(
        prog="lmlab retrieve",
        description="Passages of held-out text are cut in two, and each half is looked for among all other halves, by the cosine of their "
        "vectors. All runs are asked for the same passages. A masked or causal model gives the mean of its states.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="runs' folders, .ckpt files, or names (the newest finished run of each)")
    parser.add_argument("--corpus", help="where the passages are from (default: what the first run was trained on)")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="held-out text to take (default: val)")
    parser.add_argument("--length", type=int, default=256, help="most tokens of a passage (default: 256)")
    parser.add_argument("--limit", type=int, help="use only so many passages, evenly spread (default: all)")
    parser.add_argument("--checkpoint", help="best, last or step=N of each run (default: best, else last)")
    parser.add_argument("--allow", metavar="PKG", help="let the checkpoint name classes of a package of yours (also LMLAB_ALLOW=PKG,PKG)")
    options = parser.parse_args(grant(argv)[0])
    if options.limit is not None and options.limit < 2:
        raise ConfigError(f"{options.limit} passages are too few to search", where="--limit", remedy="set 2 or more")
    models = [load(run, options.checkpoint) for run in options.runs]
    passages = halves(_text(options, models[0]), options.split, options.length, options.limit)
    table = Table("", "found first", "mean of 1 / rank", box=None, pad_edge=False)
    table.add_row("chance", f"{1 / len(passages):.1%}", "")
    for name, model in [(f"{options.runs[0]}, untrained", untrained(models[0])), *zip(options.runs, models, strict=True)]:
        table.add_row(name, *_shown(find_other_halves(passages, lambda texts, model=model: text_vectors(model, texts))))
    Console(highlight=False).print(f"{len(passages)} passages of up to {options.length} tokens, {options.split} text\n", table, sep="")
    return 0


def _shown(found: Retrieval) -> tuple[str, str]:
    return f"{found.accuracy:.1%}", f"{found.reciprocal_rank:.3f}"


def _text(options: argparse.Namespace, model: Objective) -> CorpusModule:
    """The text that the run did not train on: its own corpus, split as it was; or another one, split in lmlab's way."""
    feed = model.products[0].feed()
    if options.corpus is not None:
        return CorpusModule(options.corpus, model.tokenizer, feed)
    path = find_run(options.runs[0]).config_path
    settings: dict[str, Any] = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}).get("data", {})
    settings = settings.get("init_args", settings)
    if settings.get("corpus") is None:
        raise ConfigError("the run does not say what text it had", where=str(path), remedy="name one: --corpus austen")
    made = {"cleaning": CleaningConfig, "store": StoreConfig}
    return CorpusModule(settings["corpus"], model.tokenizer, feed, **{k: restore(kind, settings.get(k) or {}) for k, kind in made.items()})
