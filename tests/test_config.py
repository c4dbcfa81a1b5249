"""Configs as values: choices, trust, recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from lmlab.config import Recorded, check_choices, check_trusted, to_plain, trust
from lmlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Some:
    """One field of each kind that holds choices."""

    plain: Literal["a", "b"] = "a"
    number: Literal[1, 2] = 1
    maybe: Literal["on", "off"] | None = None
    free: Literal["known"] | str = "known"
    several: tuple[Literal["x", "y"], ...] = ()
    named: dict[str, Literal["x", "y"]] | None = None
    other: int = 0

    def __post_init__(self) -> None:
        check_choices(self)


@pytest.mark.parametrize(
    "given", [{"plain": "b"}, {"number": 2}, {"maybe": "on"}, {"free": "anything"}, {"several": ("x", "y", "x")}, {"other": 7}]
)
def test_what_is_listed_is_fine(given: dict) -> None:
    Some(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"plain": "c"}, "Some.plain = 'c' is not a choice"),
        ({"plain": None}, "Some.plain = None"),
        ({"number": "1"}, "Some.number = '1'"),
        ({"number": True}, "Some.number = True"),
        ({"maybe": "onn"}, "did you mean 'on'"),
        ({"several": ("x", "z")}, "Some.several = 'z'"),
    ],
)
def test_what_is_not_listed_is_refused(given: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Some(**given)
    assert said in str(caught.value)


def test_only_what_is_trusted_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMLAB_ALLOW", raising=False)
    trust(())
    check_trusted("lmlab.objectives.clm.CLM", "here")
    for path in ("os.system", "lmlab_evil.X", "lmlab", "mine.X"):
        with pytest.raises(ConfigError, match="not allowed"):
            check_trusted(path, "here")
    check_trusted("mine.X", "here", also=("mine",))
    trust(("mine.part",))
    check_trusted("mine.part.X", "here")
    with pytest.raises(ConfigError):
        check_trusted("mine.X", "here")
    trust(())
    with pytest.raises(ConfigError):
        check_trusted("mine.part.X", "here")
    monkeypatch.setenv("LMLAB_ALLOW", "other, mine")
    check_trusted("mine.X", "here")


class Thing(Recorded):
    def __init__(self, path: Path, size: int = 3) -> None:
        self.size = size


def test_a_recipe_is_plain_and_can_leave_things_out(tmp_path: Path) -> None:
    assert Thing(tmp_path).recipe()["init_args"] == {"path": str(tmp_path), "size": 3}
    assert Thing(tmp_path).recipe(without=("path",))["init_args"] == {"size": 3}
    with pytest.raises(ConfigError, match="no JSON form"):
        to_plain(object())
