"""From what a user writes to a corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.data.corpus import EmbeddedCorpus, HuggingFaceCorpus, JsonlCorpus, MixtureCorpus, ParquetCorpus, TextCorpus, open_corpus
from lmlab.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.txt", "b.txt", "c.jsonl", "d.jsonl.gz", "e.parquet", "f.pdf", "plain"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_names_paths_and_globs(folder: Path) -> None:
    assert open_corpus("austen") == EmbeddedCorpus(name="austen")
    assert open_corpus(f"{folder}/a.txt") == TextCorpus(paths=(f"{folder}/a.txt",))
    assert open_corpus(f"{folder}/*.txt") == TextCorpus(paths=(f"{folder}/*.txt",))
    assert open_corpus(f"{folder}/*.jsonl*") == JsonlCorpus(paths=(f"{folder}/*.jsonl*",))
    assert open_corpus(f"{folder}/e.parquet") == ParquetCorpus(paths=(f"{folder}/e.parquet",))
    assert open_corpus("hf:owner/name:wiki") == HuggingFaceCorpus(name="owner/name", config="wiki")
    corpus = TextCorpus(paths=("x",))
    assert open_corpus(corpus) is corpus


def test_class_paths(folder: Path) -> None:
    spec = {"class_path": "lmlab.data.corpus.TextCorpus", "init_args": {"paths": f"{folder}/plain", "separator": "line"}}
    assert open_corpus(spec) == TextCorpus(paths=(f"{folder}/plain",), separator="line")
    assert open_corpus({"class_path": "EmbeddedCorpus", "init_args": {"name": "sanguo"}}) == EmbeddedCorpus(name="sanguo")
    mixture = open_corpus(
        {
            "class_path": "MixtureCorpus",
            "init_args": {
                "parts": {"a": "austen", "b": {"class_path": "TextCorpus", "init_args": {"paths": ["x"]}}},
                "weights": {"a": 1, "b": 3},
            },
        }
    )
    assert mixture == MixtureCorpus(parts={"a": EmbeddedCorpus(name="austen"), "b": TextCorpus(paths=("x",))}, weights={"a": 1, "b": 3})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("austin", "did you mean 'austen'"),
        ({"class_path": "os.system", "init_args": {}}, "not allowed"),
        ({"class_path": "lmlab.data.nowhere.X"}, "does not exist"),
        ({"class_path": "TxtCorpus"}, "did you mean 'TextCorpus'"),
        ({"class_path": "lmlab.data.corpus.Document"}, "is not a corpus"),
        ({"class_path": "TextCorpus", "init_args": {"path": "x"}}, "did you mean 'paths'"),
        ({"class_path": "TextCorpus"}, "cannot be made[\\s\\S]*paths"),
        ({"class": "TextCorpus"}, "no setting 'class'"),
    ],
)
def test_what_means_nothing_is_refused(spec: str | dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_corpus(spec)


def test_files_that_do_not_go_together(folder: Path) -> None:
    with pytest.raises(ConfigError, match="several kinds"):
        open_corpus(f"{folder}/[ac]*")
    with pytest.raises(ConfigError, match=r"ends in '.pdf'[\s\S]*class_path"):
        open_corpus(f"{folder}/f.pdf")
    with pytest.raises(DataError, match="there is no file"):
        open_corpus(f"{folder}/g.txt")
    with pytest.raises(DataError, match="no file matches"):
        open_corpus("*.nothing")
