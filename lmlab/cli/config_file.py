"""Reads a settings file strictly: plain values, no doubled keys, bounded size, and the line each setting stands on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lmlab.config import leaves
from lmlab.errors import ConfigError

MAX_BYTES = 256 * 1024  # the largest config of the project is under 4 KB
MAX_DEPTH = 40
MAX_VALUES = 10_000  # after aliases are followed: ten lines of aliases can stand for a billion values
MAX_NAMES = 12  # in a message
PLAIN = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "value"))


class ConfigFile(NamedTuple):
    """One settings file.

    Args:
        path: Where it is.
        tree: Its content as dicts, lists and scalars.
        lines: Line (from 1) of every dotted key, list items by number: `trainer.callbacks+.0.class_path`.
    """

    path: Path
    tree: dict[str, Any]
    lines: dict[str, int]

    def where(self, key: str) -> str:
        """`file:line` of a dotted key, the file alone if the key is not in it."""
        return f"{self.path}:{self.lines[key]}" if key in self.lines else str(self.path)


def texts(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text in settings, with its dotted key.

    Args:
        value: Settings as dicts, lists and scalars.
        prefix: Dotted key of `value`.
    """
    for key, leaf in leaves(value, prefix):
        if isinstance(leaf, str):
            yield key, leaf


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; dates stay text, as they do in the parser that reads the file later."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - a class attribute of PyYAML's, looked up on the class
        first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_config(path: Path | str) -> ConfigFile:
    """Reads a settings file.

    Args:
        path: A local file in YAML (JSON is a part of YAML).

    Raises:
        ConfigError: If there is no such file, or it is not made of plain settings; the message names file and line.
    """
    if "://" in str(path):
        raise ConfigError(
            f"{path} is not a local file", where="-c", why="settings can run code, so none are fetched", remedy="download and read it"
        )
    path = Path(path)
    text = _text(path)
    lines: dict[str, int] = {}
    try:
        _refuse_deep(text, path)
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{path.name} holds no settings", where=str(path), why="a config is `name: value` lines", remedy="see configs/"
            )
        _check(node, path)
        _note_lines(node, "", lines)
        tree = loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise _broken(path, error) from error
    return ConfigFile(path, tree, lines)


def _text(path: Path) -> str:
    if not path.is_file():
        raise _missing(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(
            f"{path.name} has {size:,} bytes", where=str(path), why=f"a config has at most {MAX_BYTES:,}", remedy="is it data?"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} cannot be read", where=str(path), why=str(error), remedy="save it as UTF-8 text") from error


def _missing(path: Path) -> ConfigError:
    folder = path.parent
    names = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    remedy = f"did you mean '{folder / close[0]}'?" if close else f"there are: {', '.join(names[:MAX_NAMES])}" if names else "see configs/"
    return ConfigError(f"there is no file '{path}'", where="-c", remedy=remedy)


def _broken(path: Path, error: Exception) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    why = getattr(error, "problem", None) or str(error).split("\n")[0]
    return ConfigError(
        f"{path.name} is not valid YAML", where=where, why=why, remedy="check indentation, colons and brackets around this line"
    )


def _refuse_deep(text: str, path: Path) -> None:
    """Looks at nesting before a tree is built, because building one recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            where = f"{path}:{event.start_mark.line + 1}"
            raise ConfigError(f"{path.name} is nested too deeply", where=where, why=f"at most {MAX_DEPTH} levels", remedy="flatten it")


def _check(root: yaml.Node, path: Path) -> None:
    """Refuses tags, doubled keys, and aliases that multiply or contain themselves."""
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node) -> int:
        where = f"{path}:{node.start_mark.line + 1}"
        known = sizes.get(id(node))
        if known == 0:
            raise ConfigError("an alias contains itself", where=where, remedy="write the value out")
        if known is not None:
            return known
        if node.tag not in PLAIN:
            why, remedy = "settings are plain values; tags can run code", "write the plain value, or class_path and init_args"
            raise ConfigError(f"the tag '{node.tag}' is not allowed", where=where, why=why, remedy=remedy)
        sizes[id(node)] = 0
        total = 1
        if isinstance(node, yaml.MappingNode):
            _refuse_doubled(node, path)
            total += sum(size_of(value) for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size_of(value) for value in node.value)
        if total > MAX_VALUES:
            raise ConfigError(
                f"{path.name} stands for too many values",
                where=where,
                why=f"at most {MAX_VALUES:,}, aliases followed",
                remedy="is it data?",
            )
        sizes[id(node)] = total
        return total

    size_of(root)


def _refuse_doubled(node: yaml.MappingNode, path: Path) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
            raise ConfigError(
                f"{shown} is not the name of a setting", where=f"{path}:{line}", why="names are text", remedy="put it in quotes"
            )
        if key.value in seen:
            why = f"it is on line {seen[key.value]} already, and only the last would count"
            raise ConfigError(f"'{key.value}' is set twice", where=f"{path}:{line}", why=why, remedy="keep one of them")
        seen[key.value] = line


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _note_lines_at(f"{prefix}{key.value}", key, value, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _note_lines_at(f"{prefix}{number}", value, value, lines)


def _note_lines_at(name: str, key: yaml.Node, value: yaml.Node, lines: dict[str, int]) -> None:
    lines[name] = key.start_mark.line + 1
    _note_lines(value, f"{name}.", lines)
