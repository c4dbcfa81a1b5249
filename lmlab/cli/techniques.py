"""`lmlab techniques`: trains every shipped config with several seeds, and writes the table of what came out."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from lmlab.errors import ConfigError, LabError
from lmlab.run.directory import ROOT_VARIABLE
from lmlab.run.techniques import Technique, markdown, read_technique

FOLDERS = ("pretrain", "anchors", "contrastive", "distillation", "multitask")
"""Folders of configs that are complete runs of a technique."""


def main(argv: list[str]) -> int:
    """Prints or writes the table; trains first what has not been trained, if asked to.

    Args:
        argv: Options after `lmlab techniques`.

    Returns:
        The exit code.

    Raises:
        LabError: If a run fails.
    """
    parser = argparse.ArgumentParser(
        prog="lmlab techniques",
        description="A table of all techniques and anchors, from the newest finished run of each shipped config and seed.",
        allow_abbrev=False,
    )
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="folder of the configs (default: configs)")
    parser.add_argument("--root", help=f"folder of all runs (default: ${ROOT_VARIABLE}, else ./runs)")
    parser.add_argument("--train", action="store_true", help="train what has no finished run yet; this takes hours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to train with (default: 0 1 2)")
    parser.add_argument("--write", type=Path, help="file to put the table into, below its line `<!-- table -->`")
    options = parser.parse_args(argv)
    paths = [path for folder in FOLDERS for path in sorted((options.configs / folder).glob("*.yaml"))]
    if not paths:
        raise ConfigError("there are no configs", where=str(options.configs), remedy="call it in lmlab's own folder, or name --configs")
    techniques = [_read(path, options) for path in paths]
    if options.train:
        for technique in techniques:
            _train(technique, options)
        techniques = [_read(path, options) for path in paths]
    table = markdown(techniques)
    if options.write is None:
        print(table, end="")
    else:
        _write(options.write, table)
    return 0


def _read(path: Path, options: argparse.Namespace) -> Technique:
    return read_technique(path, options.root, Path("configs") / path.relative_to(options.configs))


def _train(technique: Technique, options: argparse.Namespace) -> None:
    """One process a run, so that none inherits anything of another."""
    for seed in options.seeds:
        if seed in technique.records:
            continue
        print(f"{technique.name}, seed {seed}", file=sys.stderr)
        config = options.configs / technique.path.relative_to("configs")
        command = [sys.executable, "-m", "lmlab", "fit", "-c", str(config), "--seed_everything", str(seed), "--resume", "auto"]
        command += [f"--run.root={options.root}"] if options.root else []
        done = subprocess.run([*command, "--trainer.enable_progress_bar=false"], check=False)
        if done.returncode:
            raise LabError(
                f"{technique.name} with seed {seed} has failed", where=str(config), remedy="see the message above; call this again"
            )


def _write(path: Path, table: str) -> None:
    mark = "<!-- table -->\n"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if mark not in text:
        raise ConfigError(f"{path} has no place for the table", where=str(path), remedy=f"put a line `{mark.strip()}` where it is to stand")
    path.write_text(text.partition(mark)[0] + mark + "\n" + table, encoding="utf-8")
