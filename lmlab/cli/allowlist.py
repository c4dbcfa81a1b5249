"""Which code settings may name. Everything is looked at before the parser sees it, and nothing is imported before it is allowed.

A config is a program: `class_path` imports a module and calls what it finds there. So a config from a stranger may name lmlab's own
classes, Lightning's building blocks and torch's optimizers; `--allow PKG`, or LMLAB_ALLOW=PKG,PKG, adds packages of your own.

There are two lines of defence. `admit` reads files and arguments itself and gives errors with file and line. jsonargparse's own list,
which `admit` sets too, also sees what only a parser can know: a function given where a parameter asks for a callable, or an allowed
name that leads to a forbidden object (`lmlab.cache.os.system`).
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lmlab.cli.config_file import ConfigFile, read_config, texts
from lmlab.cli.overlays import check_order
from lmlab.config import TRUST_VARIABLE, trust
from lmlab.errors import ConfigError
from lmlab.run.directory import check_name

ALLOWED = (
    "lmlab",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lightning.fabric.plugins",  # where Lightning defines what its plugins package offers
    "torch.optim",
)
"""Packages that settings may name without asking; of Lightning only what is made to be named."""

CLASS_SETTINGS = frozenset({"model", "data", "optimizer", "lr_scheduler"})
TRAINER_CLASS_SETTINGS = frozenset({"accelerator", "callbacks", "logger", "plugins", "precision", "profiler", "strategy"})
PLACE_ENDINGS = ("path", "paths", "dir", "root", "file", "config")  # settings whose value says where something is read or written
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


_granted: set[str] = set()  # by this process's commands so far


class Admitted(NamedTuple):
    """A command line that has been looked at.

    Args:
        arguments: For the parser, `--allow` taken out.
        configs: The settings files, in order.
        packages: What the person has allowed besides `ALLOWED`.
    """

    arguments: list[str]
    configs: tuple[ConfigFile, ...]
    packages: tuple[str, ...]


def admit(argv: Sequence[str]) -> Admitted:
    """Checks everything a command line would read, and tells jsonargparse what may be imported.

    Args:
        argv: Arguments, the command first.

    Raises:
        ConfigError: On a class outside the allowed packages, an address instead of a file, a file that is not plain settings, or
            files that do not add up.
    """
    arguments, packages = grant(argv)
    pairs = list(_pairs(arguments))
    files = tuple(read_config(value) for key, value in pairs if key == "config")
    for file in files:
        scan(file.tree, packages, file)
    for key, value in pairs:
        if key != "config":
            scan(_nested(key, _parsed(value)), packages)
    check_order(files)
    _tell_parser(packages)
    return Admitted(arguments, files, packages)


def scan(settings: Mapping[str, Any], packages: Sequence[str] = (), file: ConfigFile | None = None) -> None:
    """Refuses settings that name code or places they may not.

    Args:
        settings: As dicts, lists and scalars.
        packages: What is allowed besides `ALLOWED`.
        file: Where the settings come from, for messages; None for the command line.

    Raises:
        ConfigError: On the first such setting.
    """
    for key, value in texts(settings):
        where = file.where(key) if file else f"--{key}"
        if _names_class(key):
            _check_class(value, packages, where)
            if "." not in value and {"corpus", "corpora"} & set(_parts(key)):  # the parser knows no short names of what is built later
                raise ConfigError(f"'{value}' is no class path", where=where, remedy=f"write lmlab.data.corpus.{value}")
        leaf = _parts(key)[-1]
        if leaf.endswith(PLACE_ENDINGS) and leaf != "class_path" and SCHEME.match(value):
            raise ConfigError(
                f"{value} is not a local file",
                where=where,
                why="nothing is fetched from or written to addresses",
                remedy="use a local path",
            )
        if key == "run.name":
            _check_run_name(value, where)


def _check_run_name(value: str, where: str) -> None:
    try:
        check_name(value)
    except ConfigError as error:
        raise ConfigError(error.what, where=where, why=error.why, remedy=error.remedy) from error


def allowed(class_path: str, packages: Sequence[str] = ()) -> bool:
    """Whether settings may name this class.

    Args:
        class_path: Dotted path.
        packages: What is allowed besides `ALLOWED`.
    """
    inside = any(class_path == package or class_path.startswith(f"{package}.") for package in (*ALLOWED, *packages))
    return inside and not any(part.startswith("_") for part in class_path.split("."))


def not_allowed(class_path: str, packages: Sequence[str], where: str) -> ConfigError:
    """The error for code that settings may not name.

    Args:
        class_path: What they name.
        packages: What is allowed besides `ALLOWED`.
        where: Who names it.
    """
    package = class_path.split(".")[0]
    remedy = f"if you trust it: --allow {package}"
    if package in sys.stdlib_module_names:
        remedy = "name a class of lmlab, or of a package of your own"
    elif package == "pytorch_lightning":
        remedy = f"write lightning.pytorch.{class_path.partition('.')[2]}"
    why = f"settings may name {', '.join(('lmlab', 'torch.optim', *packages))}, and Lightning's callbacks, plugins and the like"
    return ConfigError(f"class path '{class_path}' is not allowed", where=where, why=why, remedy=remedy)


def _check_class(value: str, packages: Sequence[str], where: str) -> None:
    if value.endswith((".yaml", ".yml", ".json")) or SCHEME.match(value):
        raise ConfigError(
            f"{value} is not a class", where=where, why="settings are read from files given with -c only", remedy=f"-c {value}"
        )
    if "." in value and not allowed(value, packages):
        raise not_allowed(value, packages, where)


def _names_class(key: str) -> bool:
    parts = _parts(key)
    if parts[-1] in ("class_path", "help"):  # `--model.help CLASS` imports the class to describe it
        return True
    if len(parts) == 1:
        return parts[0] in CLASS_SETTINGS
    return parts[0] == "trainer" and len(parts) == 2 and parts[1] in TRAINER_CLASS_SETTINGS


def _parts(key: str) -> list[str]:
    """The names in a dotted key, without the numbers of list items and the sign that adds to a list."""
    return [part.rstrip("+") for part in key.split(".") if not part.isdigit()] or [""]


def grant(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Takes `--allow` out of a command line, and trusts what it and LMLAB_ALLOW name as long as the command runs.

    Args:
        argv: Arguments.

    Returns:
        The other arguments, and the packages.

    Raises:
        ConfigError: If a package is not there, or could run anything.
    """
    rest: list[str] = []
    named = [p for p in os.environ.get(TRUST_VARIABLE, "").split(",") if p.strip()]
    tokens = iter(argv)
    for token in tokens:
        if token == "--allow" or token.startswith("--allow="):
            value = token.partition("=")[2] if "=" in token else next(tokens, "")
            named += value.split(",")
        else:
            rest.append(token)
    packages = tuple(dict.fromkeys(p.strip() for p in named))
    for package in packages:
        _check_package(package)
    trust(packages)
    return rest, packages


def _check_package(package: str) -> None:
    top = package.split(".")[0]
    if not all(part.isidentifier() for part in package.split(".")):
        raise ConfigError(f"'{package}' is not the name of a package", where="--allow", remedy="for example --allow mypackage")
    if top in sys.stdlib_module_names or top in sys.builtin_module_names or top == "jsonargparse":
        why = "with it, a config could run any command"
        raise ConfigError(f"'{package}' cannot be allowed", where="--allow", why=why, remedy="wrap what you need in a class of your own")
    if importlib.util.find_spec(top) is None:  # an installed command does not look into the current folder by itself
        sys.path.append(str(Path.cwd()))
        importlib.invalidate_caches()
        if importlib.util.find_spec(top) is None:
            sys.path.pop()
            remedy = "install it, or start lmlab in the folder it lies in"
            raise ConfigError(f"there is no package '{top}'", where="--allow", remedy=remedy)


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options without their dashes, with their values; `-c X`, `-cX` and `-c=X` are `config`."""
    # no token is skipped as the value of another: better looked at twice than not at all
    for token, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = token.partition("=")
        if token.startswith("-c"):
            name, value = "--config", token[2:].removeprefix("=") or following
        elif not name.startswith("--"):
            continue
        elif not equals:
            value = following
        yield name[2:], value


def _parsed(value: str) -> Any:
    """The value as the parser would see it: the text of an argument may hold whole settings."""
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, (dict, list)) else value


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _tell_parser(packages: Sequence[str]) -> None:
    from jsonargparse import set_parsing_settings

    # the parser's list is the process's and only ever added to: what an earlier command was granted is taken back
    _granted.update(packages)
    set_parsing_settings(
        import_path_denylist=["*", *sorted(_granted.difference(packages))],
        import_path_allowlist=[*ALLOWED, *packages],
        instantiate_subclass_spec_in_any=False,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
    )
