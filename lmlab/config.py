"""Configs are values: frozen dataclasses that check themselves and have one JSON form."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lmlab.errors import ConfigError, nearest

T = TypeVar("T")

TRUST_VARIABLE = "LMLAB_ALLOW"
_trusted: tuple[str, ...] = ()


def trust(packages: Sequence[str]) -> None:
    """Lets class paths in settings and checkpoints name these packages, for the rest of this process or until it is called again.

    Args:
        packages: Dotted names; what an earlier call trusted is forgotten.
    """
    global _trusted
    _trusted = tuple(packages)


def check_trusted(class_path: str, where: str, also: Sequence[str] = ()) -> None:
    """Refuses a class path outside lmlab and the packages that are trusted; nothing has been imported yet.

    Args:
        class_path: Dotted path of a class.
        where: Who names it, for the message.
        also: Further packages to trust, this once.

    Raises:
        ConfigError: If it lies elsewhere.
    """
    named = [package.strip() for package in os.environ.get(TRUST_VARIABLE, "").split(",") if package.strip()]
    packages = ("lmlab", *dict.fromkeys([*_trusted, *named, *also]))
    if any(class_path.startswith(f"{package}.") for package in packages):
        return
    package = class_path.split(".")[0]
    raise ConfigError(
        f"class path '{class_path}' is not allowed",
        where=where,
        why=f"only these packages may be named: {', '.join(packages)}",
        remedy=f"if you trust it: --allow {package}, {TRUST_VARIABLE}={package}, or lmlab.load(..., allow=('{package}',))",
    )


def require(condition: bool, config: object, field: str, rule: str, remedy: str) -> None:
    """Refuses a config whose field breaks a rule; for use in `__post_init__`.

    Args:
        condition: True when the value is fine.
        config: The config being checked.
        field: Name of the field at fault.
        rule: The rule in words.
        remedy: What to set instead.

    Raises:
        ConfigError: If `condition` is false.
    """
    if not condition:
        name = type(config).__name__
        raise ConfigError(f"{name}.{field} = {getattr(config, field)!r} is not possible", where=f"{name}.{field}", why=rule, remedy=remedy)


def check_choices(config: object) -> None:
    """Refuses a config in which a field annotated with `Literal` holds something else; for use in `__post_init__`.

    Python does not check annotations, so without this a typo would silently mean the last branch of some `if`.

    Args:
        config: The dataclass being checked.

    Raises:
        ConfigError: On the first such field; it names the nearest choice.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        choices, value = _choices(hint), getattr(config, name)
        members = list(value.values()) if isinstance(value, Mapping) else list(value) if isinstance(value, (list, tuple)) else [value]
        for member in members if choices else ():
            if not any(type(member) is type(choice) and member == choice for choice in choices):
                where = f"{type(config).__name__}.{name}"
                remedy = nearest(str(member), [str(choice) for choice in choices])
                raise ConfigError(f"{where} = {member!r} is not a choice", where=where, remedy=remedy)


def _choices(hint: Any) -> tuple[Any, ...]:
    """What a type hint made of `Literal` allows; nothing if it allows other things as well."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return (None,)
    if origin is typing.Literal:
        return inner
    if _is_union(hint):
        parts = [_choices(part) for part in inner]
        return tuple(choice for part in parts for choice in part) if all(parts) and len(inner) > 1 else ()
    if origin in (tuple, list):
        return _choices(inner[0])
    return _choices(inner[1]) if origin is dict else ()


def to_plain(value: Any) -> Any:
    """Turns configs, containers and scalars into JSON values.

    Args:
        value: A config dataclass, a mapping, a sequence, an object with `to_plain()`, or a scalar.

    Returns:
        The same content as dicts, lists, strings, numbers, booleans and None.

    Raises:
        ConfigError: If something inside has no JSON form.
    """
    if hasattr(value, "to_plain"):
        return value.to_plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{value!r} has no JSON form", why="configs hold plain values only", remedy="pass a string, a number or a config")


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar in plain values, with its dotted key.

    Args:
        value: Dicts, lists and scalars.
        prefix: Dotted key of `value`.
    """
    if not isinstance(value, (Mapping, list)):
        yield prefix, value
        return
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from leaves(inner, f"{prefix}.{key}" if prefix else str(key))


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Rebuilds a config dataclass from its JSON form, nested configs included.

    Args:
        cls: The dataclass.
        data: What `to_plain` made of an instance.

    Raises:
        ConfigError: On a key the dataclass does not have.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(f"{cls.__name__} has no setting '{key}'", where=f"{cls.__name__}.{key}", remedy=nearest(key, fields))
    return cls(**{key: _restored(hints[key], value, f"{cls.__name__}.{key}") for key, value in data.items()})


def _restored(annotation: Any, value: Any, where: str) -> Any:
    try:
        return restore(annotation, value)
    except ConfigError as error:
        raise ConfigError(error.what, where=error.where or where, why=error.why, remedy=error.remedy) from error


def restore(annotation: Any, value: Any) -> Any:
    """Turns a JSON value back into what a parameter's annotation asks for.

    Args:
        annotation: A resolved type hint; dataclasses, classes with `from_plain`, tuples and unions of them are understood.
        value: The JSON value.

    Raises:
        ConfigError: If a number, a text or a truth value is asked for, and it is none.
    """
    candidates = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and isinstance(value, Mapping):
            if hasattr(candidate, "from_plain"):
                return candidate.from_plain(value)  # type: ignore[attr-defined]
            if dataclasses.is_dataclass(candidate):
                return from_dict(candidate, value)
        origin = typing.get_origin(candidate)
        if origin is tuple and isinstance(value, list):
            inner = typing.get_args(candidate)
            return tuple(restore(inner[0] if inner[-1] is Ellipsis else inner[i], v) for i, v in enumerate(value))
        if origin is dict and isinstance(value, Mapping):
            return {k: restore(typing.get_args(candidate)[1], v) for k, v in value.items()}
    scalars = [candidate for candidate in candidates if candidate in _SCALARS]
    if len(scalars) == len(candidates) and not any(_fits(scalar, value) for scalar in scalars):
        wanted = " or ".join("null" if scalar is type(None) else scalar.__name__ for scalar in scalars)
        raise ConfigError(
            f"{value!r} is not a value of kind {wanted}", why=f"it is a {type(value).__name__}", remedy="mind quotes and spelling"
        )
    return value


_SCALARS = (bool, int, float, str, type(None))


def _fits(scalar: type, value: Any) -> bool:
    if scalar in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if scalar is float else scalar)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def fingerprint(value: Any) -> str:
    """A short name for a value: the first 16 hex digits of the SHA-256 of its canonical JSON."""
    text = json.dumps(to_plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


class Recorded:
    """Mixin: an object that remembers the call that made it, so that a file can make it again.

    The class path and the arguments are captured at construction and never read from `type(self)` later:
    sharding changes the class of a module after it was built.
    """

    _recipe: tuple[str, dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Notes class path and arguments, defaults included."""
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {k: v for k, v in bound.arguments.items() if k != "self"}
        object.__setattr__(self, "_recipe", (f"{cls.__module__}.{cls.__qualname__}", arguments))
        return self

    def recipe(self, without: Sequence[str] = ()) -> dict[str, Any]:
        """The JSON form: `{"class_path": ..., "init_args": ...}`, as LightningCLI writes it.

        Args:
            without: Arguments to leave out, because they are given in another way.
        """
        class_path, arguments = self._recipe
        return {"class_path": class_path, "init_args": to_plain({k: v for k, v in arguments.items() if k not in without})}


def rebuild(recipe: Mapping[str, Any], allow: Sequence[str] = ()) -> Any:
    """Makes the object that a `recipe()` describes.

    Args:
        recipe: `{"class_path": ..., "init_args": ...}`.
        allow: Packages a class path may name besides lmlab and what `trust` was told; nothing is imported before it is allowed.

    Raises:
        ConfigError: On a class path outside these, one that does not exist, or an unknown argument.
    """
    class_path = str(recipe["class_path"])
    check_trusted(class_path, "class_path", allow)
    module_name, _, class_name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"class path '{class_path}' does not exist", why=str(error), remedy="was it written by another version?"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Recorded)):
        raise ConfigError(
            f"'{class_path}' is not something a recipe may build", why="it does not record its own arguments", remedy="name an objective"
        )
    hints = typing.get_type_hints(cls.__init__)
    arguments = dict(recipe.get("init_args", {}))
    known = [p for p in inspect.signature(cls.__init__).parameters if p != "self"]
    for key in arguments:
        if key not in known:
            raise ConfigError(f"{cls.__name__} has no setting '{key}'", where=f"{class_path}.{key}", remedy=nearest(key, known))
    return cls(**{k: _restored(hints.get(k, Any), v, f"{class_path}.{k}") for k, v in arguments.items()})
