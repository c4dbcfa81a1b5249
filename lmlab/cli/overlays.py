"""How settings files add up: `-c base.yaml -c overlay.yaml`, merged from left to right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.cli.config_file import ConfigFile, read_config
from lmlab.errors import ConfigError


def check_overlays(paths: Sequence[Path | str]) -> None:
    """Refuses combinations of settings files that would not mean what they say.

    A base names its objective (`model.class_path`); a file that does not is an overlay, and comes after its base. An overlay
    changes settings but no class, because a new class silently drops the settings of the old one; it adds callbacks with
    `callbacks+:`, because `callbacks:` drops those of the files before it.

    Args:
        paths: The files in the order they are merged.

    Raises:
        ConfigError: On the first combination that does not add up, with file and line.
    """
    check_order([read_config(path) for path in paths])


def check_order(files: Sequence[ConfigFile]) -> None:
    """As `check_overlays`, for files that have been read.

    Args:
        files: In the order they are merged.

    Raises:
        ConfigError: On the first combination that does not add up.
    """
    classes: dict[str, tuple[str, ConfigFile]] = {}
    first = next((i for i, file in enumerate(files) if is_base(file)), 0)
    if first > 0:
        overlay, base = files[0].path, files[first].path
        raise ConfigError(
            f"the overlay {overlay.name} comes before its base {base.name}",
            where=str(overlay),
            why="files are merged from left to right, so the base would undo the overlay",
            remedy=f"-c {base} -c {overlay}",
        )
    for position, file in enumerate(files):
        for key, path in class_paths(file.tree):
            known = classes.setdefault(key, (path, file))
            if not _same_class(known[0], path):
                raise _changed_class(file, key, path, known)
        if position > 0:
            _refuse_replaced_callbacks(file)


def check_base(files: Sequence[ConfigFile], arguments: Sequence[str] = ()) -> None:
    """Refuses overlays without a base.

    Args:
        files: In the order they are merged.
        arguments: The command line, which may name the objective itself.

    Raises:
        ConfigError: If there are files, and nothing names an objective.
    """
    named = any(argument.partition("=")[0] in ("--model", "--model.class_path") for argument in arguments)
    if files and not named and not any(is_base(file) for file in files):
        path = files[0].path
        raise ConfigError(
            f"{path.name} is an overlay, and there is no base",
            where=str(path),
            why="an overlay changes a whole config; it names no objective (model.class_path) itself",
            remedy=f"-c configs/pretrain/mlm.yaml -c {path}",
        )


def is_base(file: ConfigFile) -> bool:
    """Whether a file names the objective to train, and so can stand alone or begin a combination."""
    return any(key == "model" for key, _ in class_paths(file.tree))


def class_paths(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every class that settings choose, with the dotted key of the setting it is chosen for; items of lists are left out.

    Args:
        value: Settings as dicts, lists and scalars.
        prefix: Dotted key of `value`.
    """
    if prefix in ("model", "data") and isinstance(value, str):
        yield prefix, value
    if not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        full = f"{prefix}.{key}" if prefix else str(key)
        if full.endswith("class_path") and isinstance(inner, str):
            yield full.removesuffix(".class_path"), inner
        else:
            yield from class_paths(inner, full)


def _same_class(one: str, other: str) -> bool:
    """A name without its package is a short form of the class path."""
    short = "." not in one or "." not in other
    return one == other or (short and one.rpartition(".")[2] == other.rpartition(".")[2])


def _changed_class(file: ConfigFile, key: str, path: str, known: tuple[str, ConfigFile]) -> ConfigError:
    two = (key == "model" and is_base(known[1])) or key == "trainer.strategy"
    return ConfigError(
        f"{file.path.name} changes the class of {key} from {known[0]} to {path}",
        where=file.where(f"{key}.class_path") if f"{key}.class_path" in file.lines else file.where(key),
        why=f"the settings {known[1].path.name} has for {known[0].rpartition('.')[2]} would be dropped",
        remedy="give only one of the two configs" if two else "write a base config of its own for this class",
    )


def _refuse_replaced_callbacks(file: ConfigFile) -> None:
    if "trainer.callbacks" in file.lines:
        raise ConfigError(
            f"{file.path.name} replaces the list of callbacks",
            where=file.where("trainer.callbacks"),
            why="`callbacks:` drops the callbacks of the files before it",
            remedy="write `callbacks+:`, which adds to them",
        )
