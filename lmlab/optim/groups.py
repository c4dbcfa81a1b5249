"""What each parameter is, read from its name: the one thing about it that no sharding or flattening changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, get_args

from torch.nn import Parameter

from lmlab.errors import ConfigError

Kind = Literal["bias", "norm", "position", "embedding", "head", "vector", "matrix"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds, in the order in which their patterns are tried."""

PATTERNS: dict[Kind, str] = {
    # relative position biases are tables that are added to attention scores, and count as biases
    "bias": r"bias(_[ih]h_\w+)?(\.|$)",
    "norm": r"norm|(^|[._])ln(_\w+|\d*)(\.|$)",
    "position": r"position|(^|[._])(wpe|pos|relative)(_\w+)?(\.|$)",
    "embedding": r"embed|(^|\.)(wte|shared|tokens|segments)\.weight$|(^|[._])(prompts?|prefix)(\.|$)",
    "head": r"(^|[._])(heads?|cls|classifier|qa_outputs|score|logits)\.",
    "vector": r"(temperature|logit_scale|(^|[._])(scale|scaling|gain|gamma|alpha|beta))$",
    "matrix": r"",
}
"""What marks each kind in a dotted name, case ignored; the first match decides, and what no pattern knows is a hidden matrix."""


class Entry(NamedTuple):
    """One parameter.

    Args:
        name: The first name it was given by.
        parameter: The parameter.
        kind: What it is.
    """

    name: str
    parameter: Parameter
    kind: Kind


def kind_of(name: str, overrides: Mapping[str, Kind] | None = None) -> Kind:
    """Says what a parameter is.

    Args:
        name: Its dotted name. Prefixes that wrappers add do no harm.
        overrides: Regular expression to kind, searched in the name before `PATTERNS`; the first match decides.
    """
    for pattern, kind in (overrides or {}).items():
        if re.search(pattern, name):
            return kind
    return next(kind for kind, pattern in PATTERNS.items() if re.search(pattern, name, re.IGNORECASE))


def list_entries(named_parameters: Iterable[tuple[str, Parameter]], overrides: Mapping[str, Kind] | None = None) -> list[Entry]:
    """Every parameter once, with its kind.

    Args:
        named_parameters: Names and parameters. A tied parameter may come under several names; the kind that `KINDS` lists first
            among theirs is its kind, so an embedding tied to a head is an embedding.
        overrides: As in `kind_of`.

    Returns:
        In the order given.
    """
    found: dict[int, Entry] = {}
    for name, parameter in named_parameters:
        kind = kind_of(name, overrides)
        known = found.get(id(parameter))
        if known is None:
            found[id(parameter)] = Entry(name, parameter, kind)
        elif KINDS.index(kind) < KINDS.index(known.kind):
            found[id(parameter)] = known._replace(kind=kind)
    return list(found.values())


def check_patterns(patterns: Iterable[str], where: str) -> None:
    """Refuses what is not a regular expression.

    Args:
        patterns: The keys of a setting.
        where: Name of the setting.

    Raises:
        ConfigError: If one does not compile.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"'{pattern}' is not a regular expression", where=where, why=str(error), remedy="escape it, or write a plain part of a name"
            ) from error


def check_used(patterns: Iterable[str], names: Iterable[str], where: str) -> None:
    """Refuses a pattern that no parameter's name contains, because it would be a setting without effect.

    Args:
        patterns: Regular expressions.
        names: All parameter names.
        where: Name of the setting.

    Raises:
        ConfigError: Naming the pattern and a few names it might have meant.
    """
    names = list(names)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f"'{pattern}' matches no parameter",
                where=where,
                why="a setting without effect is a mistake",
                remedy=f"parameters are named like {', '.join(names[:: max(1, len(names) // 4)][:4])}",
            )
