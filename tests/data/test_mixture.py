"""Mixtures: the shares asked for, at any point of the text, and what happens at the end of a part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lmlab.data.corpus import MixtureCorpus, TextCorpus
from lmlab.errors import ConfigError, DataError


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, TextCorpus]:
    sizes = {"long": (40, 100), "short": (200, 10), "tiny": (3, 50)}
    for name, (number, length) in sizes.items():
        (tmp_path / name).write_text("\n".join(f"{name} {n} ".ljust(length, name[0]) for n in range(number)))
    return {name: TextCorpus(paths=(str(tmp_path / name),), separator="line") for name in sizes}


def test_shares_hold_at_every_point(parts: dict[str, TextCorpus]) -> None:
    two = {"long": parts["long"], "short": parts["short"]}
    taken: Counter[str] = Counter()
    for document in MixtureCorpus(parts=two, weights={"long": 3, "short": 1}, when_a_part_ends="stop").documents():
        taken[document.text.split()[0]] += len(document.text)
        assert abs(taken["long"] - 0.75 * taken.total()) <= 100  # one document
    assert taken["long"] == 4000
    assert taken["short"] == pytest.approx(4000 / 3, abs=100)


def test_temperature_evens_shares_out(parts: dict[str, TextCorpus]) -> None:
    weights = {"long": 8.0, "short": 1.0, "tiny": 1.0}
    assert MixtureCorpus(parts=parts, weights=weights).shares() == pytest.approx({"long": 0.8, "short": 0.1, "tiny": 0.1})
    assert MixtureCorpus(parts=parts, weights=weights, temperature=3).shares() == pytest.approx({"long": 0.5, "short": 0.25, "tiny": 0.25})


def test_a_part_that_ends_is_repeated_until_all_were_read(parts: dict[str, TextCorpus]) -> None:
    mixture = MixtureCorpus(parts=parts, weights={"long": 1, "short": 1, "tiny": 1})
    found = list(mixture.documents())
    originals = {document.text for document in found if document.repeat == 0}
    assert originals == {document.text for part in parts.values() for document in part.documents()}
    assert len({(document.text, document.repeat) for document in found}) == len(found)
    tiny = [document for document in found if document.text.startswith("tiny")]
    assert sum(len(document.text) for document in tiny) == pytest.approx(4000, abs=100)
    assert found == list(mixture.documents())


def test_without_weights_parts_are_joined(parts: dict[str, TextCorpus]) -> None:
    joined = [document.text for document in MixtureCorpus(parts=parts).documents()]
    assert joined == [document.text for part in parts.values() for document in part.documents()]


def test_mixtures_of_mixtures_keep_repeats_apart(parts: dict[str, TextCorpus]) -> None:
    inner = MixtureCorpus(parts={"tiny": parts["tiny"], "short": parts["short"]}, weights={"tiny": 1, "short": 1})
    outer = MixtureCorpus(parts={"inner": inner, "long": parts["long"]}, weights={"inner": 9, "long": 1})
    found = list(outer.documents())
    assert len({(document.text, document.repeat) for document in found}) == len(found)


def test_fingerprint_knows_parts_and_shares(parts: dict[str, TextCorpus]) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"weights": {"long": 1, "short": 1, "tiny": 1}},
        {"weights": {"long": 2, "short": 1, "tiny": 1}},
        {"weights": {"long": 2, "short": 1, "tiny": 1}, "temperature": 2},
        {"weights": {"long": 2, "short": 1, "tiny": 1}, "when_a_part_ends": "stop"},
    ]
    mixtures = [MixtureCorpus(parts=parts, **setting) for setting in settings]
    assert len({mixture.fingerprint() for mixture in mixtures}) == len(mixtures)
    assert mixtures[2].describe()["shares"]["long"] == 0.5


def test_mixtures_that_cannot_be(parts: dict[str, TextCorpus], tmp_path: Path) -> None:
    for setting, field in [
        ({"parts": {}}, "parts"),
        ({"parts": parts, "weights": {"long": 1}}, "weights"),
        ({"parts": parts, "weights": {"long": 0, "short": 1, "tiny": 1}}, "weights"),
        ({"parts": parts, "temperature": 2}, "temperature"),
        ({"parts": parts, "weights": {"long": 1, "short": 1, "tiny": 1}, "temperature": 0}, "temperature"),
    ]:
        with pytest.raises(ConfigError, match=field):
            MixtureCorpus(**setting)  # type: ignore[arg-type]
    (tmp_path / "empty").write_text("")
    empty = {"a": TextCorpus(paths=(str(tmp_path / "empty"),)), "b": parts["tiny"]}
    with pytest.raises(DataError, match="part 'a' of the mixture holds no documents"):
        list(MixtureCorpus(parts=empty, weights={"a": 1, "b": 1}).documents())
