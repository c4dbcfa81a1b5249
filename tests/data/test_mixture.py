"""Mixtures: the shares asked for, at any point of the text, and what happens at the end of a part."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lmlab.data.cleaning import CleaningConfig
from lmlab.data.corpus import JsonlCorpus, MixtureCorpus, TextCorpus, open_corpus
from lmlab.data.store import StoreConfig, build_store
from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import Tokenizer


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
    write_rows(tmp_path / "blank.jsonl", ["", "  ", "\n"])
    for nothing in (TextCorpus(paths=(str(tmp_path / "empty"),)), JsonlCorpus(paths=(str(tmp_path / "blank.jsonl"),))):
        empty = {"a": nothing, "b": parts["tiny"]}
        with pytest.raises(DataError, match=r"part 'a' of the mixture holds no documents that are kept"):
            list(MixtureCorpus(parts=empty, weights={"a": 1, "b": 1}).documents())
    same = {name: write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in (("a", ["same", "other"]), ("b", ["same ", " same"]))}
    with pytest.raises(DataError, match=r"part 'b' of the mixture holds no documents that are kept"):
        list(MixtureCorpus(parts=same, weights={"a": 1, "b": 1}).documents())


def write_rows(path: Path, texts: list[str]) -> JsonlCorpus:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return JsonlCorpus(paths=(str(path),))


@pytest.mark.parametrize(("weight", "cleaning"), [(1.0, CleaningConfig()), (3.0, CleaningConfig(min_characters=20))])
def test_shares_hold_in_the_store_whatever_the_cleaning_drops(
    tmp_path: Path, byte_tokenizer: Tokenizer, weight: float, cleaning: CleaningConfig
) -> None:
    copies = [
        text for n in range(20) for text in (f"a same line {n % 5} xxxxxxxxxxxxx", f"a  same line {n % 5} xxxxxxxxxxxxx ", "", "a short")
    ]
    first = write_rows(tmp_path / "a.jsonl", copies)
    second = write_rows(tmp_path / "b.jsonl", [f"b text {n} yyyyyyyyyyyyyyyyyyyy" for n in range(200)])
    mixture = MixtureCorpus(parts={"a": first, "b": second}, weights={"a": weight, "b": 1})
    stores = build_store(mixture, byte_tokenizer, StoreConfig(num_processes=1, val_share=0.2, test_share=0), cleaning)
    sizes: Counter[str] = Counter()
    for store in stores.values():
        found: Counter[str] = Counter()
        for index in range(store.num_documents):
            text = byte_tokenizer.decode(store.document(index))
            found[text[0]] += len(text)
        assert store.header.parts == found
        sizes += found
    assert sizes["b"] >= 200 * 28
    assert abs(sizes["a"] - weight * sizes["b"]) <= 35 * (1 + weight)  # one document of each


def test_shares_need_no_large_numbers(parts: dict[str, TextCorpus]) -> None:
    two = {"long": parts["long"], "short": parts["short"]}
    mixture = MixtureCorpus(parts=two, weights={"long": 2e300, "short": 1e300}, temperature=0.5)
    assert mixture.shares() == pytest.approx({"long": 0.8, "short": 0.2})
    for weights, temperature in (({"long": 200, "short": 1}, 0.001), ({"long": 0.2, "short": 0.1}, 0.001)):
        with pytest.raises(ConfigError, match=r"MixtureCorpus.temperature[\s\S]*leaves 'short' a share of"):
            MixtureCorpus(parts=two, weights=weights, temperature=temperature)
    for bad in (float("inf"), float("nan"), -1, "x", True):
        with pytest.raises(ConfigError, match=r"MixtureCorpus\.weights"):
            MixtureCorpus(parts=two, weights={"long": bad, "short": 1})  # type: ignore[dict-item]


def test_a_mixture_from_a_setting_names_what_is_wrong() -> None:
    for settings, message in [
        ({"parts": ["austen", "sanguo"]}, "MixtureCorpus.parts"),
        ({"parts": {"a": "austen"}, "when_a_part_ends": "stopp"}, "did you mean 'stop'"),
        ({"parts": {"a": "austen"}, "weights": {"a": "x"}}, "MixtureCorpus.weights"),
    ]:
        with pytest.raises(ConfigError, match=message):
            open_corpus({"class_path": "MixtureCorpus", "init_args": settings})
