"""Every kind of corpus: documents, where they come from, and errors that name file and line."""

from __future__ import annotations

import builtins
import gzip
import json
import os
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data.corpus import Corpus, EmbeddedCorpus, HuggingFaceCorpus, JsonlCorpus, ParquetCorpus, TextCorpus
from lmlab.errors import ConfigError, DataError


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


def sources(corpus: Corpus) -> list[str]:
    return [document.source.rsplit("/", 1)[-1] for document in corpus.documents()]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "num_documents", "beginning"),
    [("austen", 269, "Emma Woodhouse"), ("sanguo", 140, "滚滚长江"), ("songci", 20480, "气和玉烛"), ("handbook", 2719, "The Debian")],
)
def test_embedded_texts(name: Any, num_documents: int, beginning: str) -> None:
    corpus = EmbeddedCorpus(name=name)
    found = texts(corpus)
    assert len(found) == num_documents
    assert found[0].startswith(beginning)
    assert corpus.describe()["name"] == name


@pytest.mark.parametrize(
    ("separator", "expected", "lines"),
    [
        ("blank_lines", ["a\nb", "c", "d"], [1, 5, 7]),
        ("line", ["a", "b", "c", " ", "d"], [1, 2, 5, 6, 7]),
        ("file", ["a\nb\n\n\nc\n \nd"], [1]),
        ("c\n \n", ["a\nb", "d"], [1, 7]),
        ("c\r\n \r\n", ["a\nb", "d"], [1, 7]),
    ],
)
def test_separators(tmp_path: Path, separator: str, expected: list[str], lines: list[int]) -> None:
    corpus = TextCorpus(paths=(write(tmp_path / "x.txt", "a\nb\n\n\nc\n \nd\n"),), separator=separator)
    assert [text.rstrip("\n") for text in texts(corpus)] == expected
    assert sources(corpus) == [f"x.txt:{line}" for line in lines]


def test_a_separator_with_line_ends_of_windows_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", b"one\r\n--\r\ntwo\r\n--\r\nthree")
    for separator in ("\r\n--\r\n", "\n--\n"):
        assert texts(TextCorpus(paths=(path,), separator=separator)) == ["one", "two", "three"]


def test_line_ends_and_byte_order_mark_are_not_text(tmp_path: Path) -> None:
    corpus = TextCorpus(paths=(write(tmp_path / "x.txt", b"\xef\xbb\xbfa\r\nb\r\n\r\nc"),))
    assert texts(corpus) == ["a\nb", "c"]


@given(
    documents=st.lists(st.text("ab \n", min_size=1, max_size=30), min_size=1, max_size=8),
    separator=st.sampled_from(["<|end|>", "==", "\n--\n"]),
)
@settings(max_examples=60, deadline=None)
def test_a_string_that_separates_is_found_across_reads(
    documents: list[str], separator: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("text") / "x.txt", separator.join(documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmlab.data.corpus.text._READ", 5)
        found = texts(TextCorpus(paths=(path,), separator=separator))
    assert found == [text.rstrip("\n") for text in separator.join(documents).split(separator) if text.rstrip("\n")]


def test_a_long_document_is_cut_at_line_ends_and_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    content = "".join(f"line {n} of a long document without a break\n" for n in range(500)) + "x" * 5000 + " end"
    corpus = TextCorpus(paths=(write(tmp_path / "x.txt", content),), separator="file", max_characters=2048)
    found = list(corpus.documents())
    assert "".join(document.text for document in found) == content
    assert all(len(document.text) <= 2048 for document in found)
    assert found[1].text.startswith("line ")
    lines = [content.count("\n", 0, content.index(document.text)) + 1 for document in found[:8]]
    assert [int(document.source.rsplit(":", 1)[1]) for document in found[:8]] == lines
    assert f"at {len(found) - 1} places" in caplog.text


def test_packed_and_plain_files_are_the_same(tmp_path: Path) -> None:
    plain = JsonlCorpus(paths=(write(tmp_path / "x.jsonl", '{"text": "a"}\n\n{"text": null}\n{"body": 1, "text": "b"}'),))
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress((tmp_path / "x.jsonl").read_bytes()))
    assert texts(plain) == texts(JsonlCorpus(paths=(str(tmp_path / "y.jsonl.gz"),))) == ["a", "", "b"]
    assert sources(plain) == ["x.jsonl:1", "x.jsonl:3", "x.jsonl:4"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"not valid JSON[\s\S]*x.jsonl:2"),
        ('{"txt": "a"}', r"no field 'text'[\s\S]*x.jsonl:2[\s\S]*did you mean 'txt'"),
        ('["a"]', r"expected a JSON object, found an array[\s\S]*x.jsonl:2"),
        ('{"text": 5}', r"holds a number[\s\S]*x.jsonl:2"),
        ("[" * 100_000, r"(nested too deeply|not valid JSON)[\s\S]*x.jsonl:2"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    corpus = JsonlCorpus(paths=(write(tmp_path / "x.jsonl", '{"text": "a"}\n' + line),))
    with pytest.raises(DataError, match=message):
        texts(corpus)


def test_bytes_that_are_no_text_arrive_as_surrogates(tmp_path: Path) -> None:
    line = b'{"text": "a \xff b \\ud800"}'
    assert texts(JsonlCorpus(paths=(write(tmp_path / "x.jsonl", line),))) == ["a \udcff b \ud800"]
    assert texts(TextCorpus(paths=(write(tmp_path / "x.txt", b"a \xff b"),))) == ["a \udcff b"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("a\n".encode("utf-16"), "x.txt", "is UTF-16"),
        (gzip.compress(b"a\n" * 9999)[:-20], "x.txt.gz", "cannot be unpacked"),
        (b"not packed", "x.txt.gz", "cannot be unpacked"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(TextCorpus(paths=(write(tmp_path / name, content),)))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "x.txt", "a")
    with pytest.raises(DataError, match=r"there is no file[\s\S]*holds x.txt"):
        texts(TextCorpus(paths=(str(tmp_path / "y.txt"),)))
    with pytest.raises(DataError, match=r"no file matches[\s\S]*holds x.txt"):
        texts(TextCorpus(paths=(str(tmp_path / "*.jsonl"),)))
    with pytest.raises(DataError, match=r"does not exist either"):
        texts(TextCorpus(paths=(str(tmp_path / "no" / "*.txt"),)))
    with pytest.raises(DataError, match=r"is a folder[\s\S]*/\*.txt"):
        texts(TextCorpus(paths=(str(tmp_path),)))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TextCorpus(paths=()), "paths"),
        (lambda: TextCorpus(paths=("x",), separator=""), "separator"),
        (lambda: TextCorpus(paths=("x",), max_characters=5), "max_characters"),
        (lambda: JsonlCorpus(paths=("x",), field=""), "field"),
        (lambda: EmbeddedCorpus(name="austin"), "did you mean 'austen'"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be(make: Callable[[], Corpus], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        make()


def test_fingerprint_is_of_content_and_settings(tmp_path: Path) -> None:
    first, moved = write(tmp_path / "a.txt", "same"), write(tmp_path / "b.txt", "same")
    assert TextCorpus(paths=(first,)).fingerprint() == TextCorpus(paths=(moved,)).fingerprint()
    others = [
        TextCorpus(paths=(first,), separator="line"),
        TextCorpus(paths=(first,), max_characters=2048),
        TextCorpus(paths=(first, moved)),
        TextCorpus(paths=(write(tmp_path / "c.txt", "same."),)),
        JsonlCorpus(paths=(first,)),
    ]
    assert len({corpus.fingerprint() for corpus in [TextCorpus(paths=(first,)), *others]}) == len(others) + 1
    before = TextCorpus(paths=(moved,)).fingerprint()
    write(tmp_path / "b.txt", "Same")
    assert TextCorpus(paths=(moved,)).fingerprint() != before


def test_the_hash_of_a_large_file_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmlab.data.corpus import files

    monkeypatch.setattr(files, "_REMEMBER_FROM", 1)
    monkeypatch.setattr(files, "_SETTLED_SECONDS", -1.0)
    path = write(tmp_path / "large.txt", "words")
    first = TextCorpus(paths=(path,)).fingerprint()
    files._file_digest.cache_clear()  # another process
    monkeypatch.setattr(files, "_hash_file", lambda path: pytest.fail("read again"))
    assert TextCorpus(paths=(path,)).fingerprint() == first


def test_a_file_written_a_moment_ago_is_hashed_again(tmp_path: Path) -> None:
    path, changed = tmp_path / "x.txt", []
    for content in ("first", "other"):
        path.write_text(content)
        os.utime(path, ns=(1, time.time_ns() if not changed else changed[0]))  # two writes within one tick of the clock
        changed.append(path.stat().st_mtime_ns)
        changed.append(TextCorpus(paths=(str(path),)).fingerprint())
    assert changed[0] == changed[2]
    assert changed[1] != changed[3]


def test_reading_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("word " * 2_000_000)  # one line of 10 MB
    tracemalloc.start()
    total = sum(len(document.text) for document in TextCorpus(paths=(str(path),)).documents())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 10_000_000
    assert peak < 2_000_000


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [f"row {n}" for n in range(600)] + [None]
    parquet.write_table(pyarrow.table({"body": rows, "n": list(range(601))}), tmp_path / "x.parquet", row_group_size=100)
    corpus = ParquetCorpus(paths=(str(tmp_path / "x.parquet"),), field="body")
    assert texts(corpus) == [row or "" for row in rows]
    assert sources(corpus)[299] == "x.parquet row 300"
    with pytest.raises(DataError, match=r"no column 'boddy'[\s\S]*did you mean 'body'"):
        texts(ParquetCorpus(paths=(str(tmp_path / "x.parquet"),), field="boddy"))
    with pytest.raises(DataError, match=r"x.parquet cannot be read"):
        (tmp_path / "x.parquet").write_bytes(b"PAR1" * 10)
        texts(corpus)


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet_with_bytes_that_are_no_text(tmp_path: Path, kind: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    raw = arrow.array([b"good", b"\xff\xfed", None, "三国".encode()], arrow.binary())
    column = raw.view(arrow.string())
    column = column.cast(arrow.large_string()) if kind == "large_string" else column.dictionary_encode() if kind == "dictionary" else column
    parquet.write_table(arrow.table({"text": column}), tmp_path / "x.parquet")
    corpus = ParquetCorpus(paths=(str(tmp_path / "x.parquet"),))
    assert texts(corpus) == ["good", "\udcff\udcfed", "", "三国"]
    parquet.write_table(arrow.table({"text": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"holds a number[\s\S]*x.parquet row 1"):
        texts(corpus)


@pytest.mark.parametrize(
    ("package", "corpus"), [("pyarrow", ParquetCorpus(paths=(__file__,))), ("datasets", HuggingFaceCorpus(name="a/b"))]
)
def test_a_missing_package_is_named(package: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named '{package}'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=rf"needs[\s\S]*{package}[\s\S]*pip install"):
        texts(corpus)


@pytest.mark.slow
def test_hugging_face_data_sets_are_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = write(tmp_path / "x.jsonl", "\n".join(json.dumps({"text": f"row {n}"}) for n in range(50)))
    corpus = HuggingFaceCorpus(name="json", data_files=(path,))
    assert texts(corpus) == [f"row {n}" for n in range(50)]
    assert [document.source for document in corpus.documents()][4] == "hf:json row 5"
    assert re.fullmatch("[0-9a-f]{16}", corpus.fingerprint())


def test_the_content_of_local_files_is_in_the_fingerprint_of_a_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"text": "old"}')
    local = HuggingFaceCorpus(name="json", data_files=(path,))
    folder = HuggingFaceCorpus(name=str(tmp_path))
    hub = HuggingFaceCorpus(name="owner/name", data_files=("x.jsonl",))
    before = [corpus.fingerprint() for corpus in (local, folder, hub)]
    assert len(set(before)) == 3
    write(tmp_path / "x.jsonl", '{"text": "new"}')
    after = [corpus.fingerprint() for corpus in (local, folder, hub)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True]


def test_a_row_of_a_data_set_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        yield {"text": "two"}
        raise RuntimeError("the connection broke")

    monkeypatch.setattr(HuggingFaceCorpus, "_load", lambda self, place: rows())
    found = HuggingFaceCorpus(name="owner/name").documents()
    assert [next(found).text, next(found).text] == ["one", "two"]
    with pytest.raises(DataError, match=r"hf:owner/name row 3[\s\S]*RuntimeError: the connection broke"):
        next(found)


@pytest.mark.slow
def test_a_broken_line_in_a_data_set_is_an_error_of_the_data(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = write(tmp_path / "x.jsonl", '{"text": "a"}\n' * 3 + '{"text": broken\n')
    with pytest.raises(DataError, match="hf:json"):
        texts(HuggingFaceCorpus(name="json", data_files=(path,)))
