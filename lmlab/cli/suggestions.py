"""Turns the parser's answer, pages of usage and unions, into a few lines: the wrong setting, where it stands, the right one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lmlab.cli.allowlist import not_allowed
from lmlab.cli.config_file import ConfigFile, texts
from lmlab.errors import ConfigError, LabError, nearest

COMMANDS = ("fit", "validate", "test", "predict")
MAX_CHOICES = 12  # more are not read by anyone
FOREIGN = ("torch.", "transformers.", "deepspeed.", "pytorch_lightning.")  # never offered as the class that was meant

KEY = re.compile(r'^( *)(?:- )?Parser key "([^"]+)":', re.MULTILINE)
GIVEN_CLASS = re.compile(r"^( *)(?:- )?Problem with given class_path '([^']+)':", re.MULTILINE)
GROUP = re.compile(r"Group '([^']+)' does not accept option '([^']+)'")
SUBCOMMAND = re.compile(r"Subcommand '[^']+' does not accept option '([^']+)'")
OPTION = re.compile(r"Option '([^']+)' is not accepted(?! before)")
UNRECOGNIZED = re.compile(r"unrecognized arguments: (\S+)")
BEFORE = re.compile(r"is not accepted before subcommand '(\w+)'")
NO_CLASS = (
    re.compile(r"Expected a dot import path string: (\S+)"),
    re.compile(r"module '[^']+' has no attribute '([^']+)'"),
    re.compile(r"Import path (\S+) does not correspond to a subclass of"),
    re.compile(r"No module named '([^']+)'"),
)
BASE = re.compile(r"<class '([\w.]+)'>|\b((?:\w+\.){2,}\w+)\b")
SUBTYPES = re.compile(r"^ *Subtypes: (\[.*\])$", re.MULTILINE)
EXPECTED = re.compile(r"Expected a (.+?)\. Got value: (.*)")
EXPECTED_UNION = re.compile(r".*^ *Subtypes: (\[[^\n]*\])$.*?^ *Given value: ([^\n]*)", re.MULTILINE | re.DOTALL)  # the innermost one
NOT_A_GROUP = re.compile(r"Unable to load config [\"'](.*?)[\"']")
NESTED = re.compile(r"NestedArg\(key='[^']*', val='?(.*?)'?\)$")
REQUIRED = re.compile(r"the following arguments are required: (.+)|Key \"?([\w.]+)\"? is required")
DENIED = re.compile(r"Importing '([^']+)' is not allowed")


class _Question(NamedTuple):
    """What is known about an error.

    Args:
        text: The parser's message.
        key: Dotted key of the setting it is about, as far as the message tells.
        parser: Parser of the command.
        files: The settings files.
        arguments: The command line.
    """

    text: str
    key: str
    parser: ArgumentParser | None
    files: Sequence[ConfigFile]
    arguments: Sequence[str]


def explain(
    error: Exception | str, parser: ArgumentParser | None = None, files: Sequence[ConfigFile] = (), arguments: Sequence[str] = ()
) -> LabError:
    """Says in a few lines what is wrong with settings that a parser has refused.

    Args:
        error: What the parser raised, or its message.
        parser: The parser; with it, the nearest right setting is named.
        files: The settings files of the command, for file and line.
        arguments: The command line, the command first.

    Returns:
        The error to raise instead.
    """
    own = next((cause for cause in _chain(error) if isinstance(cause, LabError)), None)
    if own is not None:
        return own
    question = _Question(str(error), _key_in(str(error)), _of_command(parser, arguments), files, arguments)
    for answer in (_denied, _before_command, _unknown_setting, _unknown_class, _missing, _wrong_value):
        found = answer(question)
        if found is not None:
            return found
    lines = [line.strip(" -") for line in question.text.splitlines() if line.strip(" -")] or ["the settings cannot be used"]
    return ConfigError(
        lines[0].rstrip(":"), where=_where(question, question.key), why="; ".join(lines[1:4]), remedy="LMLAB_DEBUG=1 shows all of it"
    )


def _chain(error: Exception | str) -> Iterator[BaseException]:
    current: BaseException | None = error if isinstance(error, Exception) else None
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _of_command(parser: ArgumentParser | None, arguments: Sequence[str]) -> ArgumentParser | None:
    for action in getattr(parser, "_actions", []):
        children = getattr(action, "_name_parser_map", None)
        if children and arguments and arguments[0] in children:
            return children[arguments[0]]
    return parser


def _key_in(text: str) -> str:
    """Joins the keys of the message's first branch: each level is indented further than the one that holds it."""
    keys: list[str] = []
    depth = -1
    for match in KEY.finditer(text):
        if len(match[1]) > depth and keys[-1:] != [match[2]]:
            keys.append(match[2])
            depth = len(match[1])
    return ".".join(keys)


def _denied(question: _Question) -> LabError | None:
    """Only what the person wrote is denied to them; the parser also tries names of its own."""
    for match in DENIED.finditer(question.text):
        where = _where_text_is(question, match[1])
        if where:
            return not_allowed(match[1], (), where)
    return None


def _before_command(question: _Question) -> LabError | None:
    match = BEFORE.search(question.text)
    return (
        None
        if match is None
        else ConfigError("settings come after the command", where="command line", remedy=f"lmlab {match[1]} -c CONFIG ...")
    )


def _unknown_setting(question: _Question) -> LabError | None:
    text = question.text
    class_path = ""
    if found := UNRECOGNIZED.search(text):
        key = found[1].lstrip("-").partition("=")[0]
        key = f"{question.key}.{key}" if question.key else key
        if not found[1].startswith("-"):
            return ConfigError(
                f"'{found[1]}' is not understood", where="command line", why="a setting begins with --", remedy="--section.key VALUE"
            )
    elif found := SUBCOMMAND.search(text):
        key = found[1]
    elif found := GROUP.search(text):
        key = f"{question.key}.{found[1]}.{found[2]}"
    elif found := OPTION.search(text):
        key = f"{question.key}.{found[1]}"
    else:
        return None
    classes = [match[2] for match in GIVEN_CLASS.finditer(text, 0, found.start())]
    class_path = classes[-1] if classes else ""
    written = _plain(key)
    valid = {_plain(k) for k in _keys_of(question.parser)} | _keys_of_class(class_path, question.key)
    where = _where(question, key) or "command line"
    what = f"there is no setting '{written}'" + (f" in {class_path.rpartition('.')[2]}" if class_path else "")
    return ConfigError(what, where=where, remedy=_suggest(written, valid))


def _unknown_class(question: _Question) -> LabError | None:
    found = next((match for rule in NO_CLASS if (match := rule.search(question.text))), None)
    if found is None:
        return None
    before = question.text[: found.start()]
    classes = [match[2] for match in GIVEN_CLASS.finditer(before)]
    given = classes[-1] if classes and classes[-1].endswith(f".{found[1]}") else found[1]
    names = sorted(_subclasses(before))
    short = {name.rpartition(".")[2]: name for name in names}
    where = _where_text_is(question, given) or _where(question, question.key)
    what = f"there is no class '{given}' that fits {_plain(question.key) or 'here'}"
    hint = nearest(given.rpartition(".")[2], short) if short else "check the spelling; --allow PKG names a package of your own"
    for name in sorted(short, key=len, reverse=True):
        hint = hint.replace(f"'{name}'", f"'{short[name]}'")
    return ConfigError(
        what, where=where, why=f"there are: {', '.join(short)}" if "did you" in hint and len(short) <= MAX_CHOICES else "", remedy=hint
    )


def _missing(question: _Question) -> LabError | None:
    found = REQUIRED.search(question.text)
    if found is None:
        return None
    keys = [key.strip() for key in (found[1] or found[2]).split(",")]
    classes = [match[2] for match in GIVEN_CLASS.finditer(question.text, 0, found.start())]
    if classes:
        written, name = _plain(question.key), classes[-1].rpartition(".")[2]
        remedy = f"add --{written}.{keys[0]} VALUE, or {keys[0]}: VALUE to its init_args"
        where = _where_text_is(question, classes[-1]) or _where_text_is(question, name) or _where(question, question.key)
        return ConfigError(f"{name} needs the setting: {', '.join(keys)}", where=where, why="it has no default", remedy=remedy)
    command = question.arguments[0] if question.arguments else "fit"
    return ConfigError(
        f"the settings do not say: {', '.join(key.removeprefix(f'{command}.') for key in keys)}",
        where=", ".join(str(file.path) for file in question.files) or "command line",
        why="an overlay changes a base config and is not enough by itself" if question.files else "",
        remedy=f"begin with a whole config: lmlab {command} -c configs/pretrain/mlm.yaml",
    )


def _wrong_value(question: _Question) -> LabError | None:
    if (group := NOT_A_GROUP.search(question.text)) and question.key:
        written = _plain(question.key)
        why, remedy = "it is a group of settings", f"--{written}.NAME VALUE"
        return ConfigError(f"{written} = {group[1]!r} is not possible", where=_where(question, question.key), why=why, remedy=remedy)
    found = EXPECTED.search(question.text) or EXPECTED_UNION.search(question.text)
    if found is None or not question.key:
        return None
    written, value, expected = _plain(question.key), NESTED.sub(r"\1", found[2].strip()), _readable(found[1])
    choices = re.findall(r"'([^']*)'", found[1]) if "Literal" in found[1] else []
    remedy = nearest(value, choices) if choices else "lmlab fit -c CONFIG --print_config shows the settings and their values"
    return ConfigError(
        f"{written} = {value!r} is not possible", where=_where(question, question.key), why=f"it takes {expected}", remedy=remedy
    )


def _readable(annotation: str) -> str:
    """A type as a person says it: `[<class 'int'>, <class 'NoneType'>]` is `int or null`."""
    if literals := re.findall(r"Literal\[([^\]]*)\]", annotation):
        return f"one of {literals[0]}"
    names = annotation.strip("[]").replace("<class 'NoneType'>", "null")
    names = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", names).replace("typing.", "")
    said = {"Callable": "a function", "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    return " or ".join(said.get(name, name) for name in names.split(", "))


def _plain(key: str) -> str:
    """A key as a person writes it on the command line: without `init_args`, numbers of list items and `+`."""
    return ".".join(part for part in key.replace("+", "").split(".") if part != "init_args" and not part.isdigit())


def where_written(key: str, files: Sequence[ConfigFile] = (), arguments: Sequence[str] = ()) -> str:
    """Where a setting was given.

    Args:
        key: Dotted, with or without `init_args`.
        files: The settings files, in the order they are merged.
        arguments: The command line.

    Returns:
        The argument, else `file:line` in the last file that has it, else an empty text.
    """
    wanted = _plain(key)
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and wanted and _plain(name[2:]) == wanted:
            return name
    for file in reversed(files):
        for written in file.lines:
            if _plain(written) == wanted:
                return file.where(written)
    return ""


def _where(question: _Question, key: str) -> str:
    return where_written(key, question.files, question.arguments)


def _where_text_is(question: _Question, text: str) -> str:
    """`file:line` of a text, or the argument that gives it."""
    for position, argument in enumerate(question.arguments):
        name, _, value = argument.partition("=")
        if text in value:
            return name
        if text in argument:
            return question.arguments[max(position - 1, 0)]
    for file in reversed(question.files):
        for key, value in texts(file.tree):
            if value == text:
                return file.where(key)
    return ""


def _keys_of(parser: Any) -> set[str]:
    """All settings a parser knows without looking into a class."""
    if parser is None:
        return set()
    actions = getattr(parser, "_actions", [])
    return {action.dest for action in actions if action.dest and action.option_strings} - {"help"}


def _keys_of_class(class_path: str, prefix: str) -> set[str]:
    """All settings of a class, those of its nested configs too, below `prefix`."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if cls is None:
        return set()
    from jsonargparse import ArgumentParser as Parser

    parser = Parser(exit_on_error=False)
    try:
        parser.add_class_arguments(cls, "x", fail_untyped=False)
        names = {key.removeprefix("x.") for key in _keys_of(parser) if key.startswith("x.")}
    except ValueError:  # a class the parser cannot describe: its parameters are known all the same
        names = set(inspect.signature(cls.__init__).parameters) - {"self"}
    return {f"{_plain(prefix)}.{key}" for key in names}


def _suggest(written: str, valid: Iterable[str]) -> str:
    """The nearest setting: first among its neighbours, then one of the same name elsewhere, then anywhere."""
    valid = set(valid)
    section, _, name = written.rpartition(".")
    rest = ""
    while section and not any(key.startswith(f"{section}.") for key in valid):  # the section itself is misspelt
        rest = f".{name}{rest}"
        section, _, name = section.rpartition(".")
    start = f"{section}." if section else ""
    neighbours = {key.removeprefix(start).split(".")[0] for key in valid if key.startswith(start)}
    hint = nearest(name, neighbours)
    if hint.startswith("did you mean"):
        return f"did you mean '{start}{hint.split(chr(39))[1]}{rest}'?"
    leaf = written.rpartition(".")[2]
    elsewhere = sorted(key for key in valid if key.rpartition(".")[2] == leaf)
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    return hint if len(neighbours) <= MAX_CHOICES else "lmlab fit -c CONFIG --print_config shows the settings there are"


def _subclasses(text: str) -> set[str]:
    """Class paths that would have fitted, from the innermost types in the parser's message."""
    found: set[str] = set()
    for match in BASE.finditer(next(reversed(SUBTYPES.findall(text)), "")):
        module, _, name = (match[1] or match[2]).rpartition(".")
        base = getattr(sys.modules.get(module), name, None)
        if isinstance(base, type) and base.__module__ != "builtins":
            _import_siblings(module)
            found |= {_shortest(cls) for cls in _descendants(base)}
    return {path for path in found if not path.startswith(FOREIGN)}


def _import_siblings(module: str) -> None:
    """Imports the modules beside lmlab's own base class, so that its subclasses are known; they register nowhere."""
    package = sys.modules.get(module.rpartition(".")[0])
    if package is not None and module.startswith("lmlab."):
        for info in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{info.name}")


def _descendants(base: type) -> Iterator[type]:
    for cls in base.__subclasses__():
        if not cls.__name__.startswith("_") and not inspect.isabstract(cls):
            yield cls
        yield from _descendants(cls)


def _shortest(cls: type) -> str:
    """The shortest package that offers a class: `lightning.pytorch.callbacks.Timer`, not `….timer.Timer`."""
    parts = cls.__module__.split(".")
    for end in range(2, len(parts)):
        package = ".".join(parts[:end])
        if getattr(sys.modules.get(package), cls.__name__, None) is cls:
            return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__name__}"
