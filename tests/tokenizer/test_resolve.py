"""Once for one corpus: the cache, its keys, its repair, and several processes at once."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlab.tokenizer import Tokenizer, TokenizerConfig, resolve_tokenizer
from lmlab.tokenizer.resolve import cached_file

CONFIG = TokenizerConfig(vocab_size=400, num_sentinels=3)
TEXT = "the cat sat on the mat and the dog sat on the log " * 20


class Opener:
    """Opens a corpus and leaves a mark each time."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def __call__(self) -> Iterator[str]:
        with self.marks.open("a") as file:
            file.write("x")
        yield TEXT

    @property
    def times(self) -> int:
        return len(self.marks.read_text()) if self.marks.exists() else 0


def test_trained_once_then_read(tmp_path: Path) -> None:
    opener = Opener(tmp_path / "marks")
    first = resolve_tokenizer(CONFIG, opener, "corpus", tmp_path)
    assert resolve_tokenizer(CONFIG, opener, "corpus", tmp_path) == first == Tokenizer.train([TEXT], CONFIG)
    assert opener.times == 1


def test_what_is_in_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        cached_file(CONFIG, "corpus", tmp_path),
        cached_file(CONFIG, "other corpus", tmp_path),
        cached_file(TokenizerConfig(vocab_size=401, num_sentinels=3), "corpus", tmp_path),
        cached_file(TokenizerConfig(vocab_size=400, num_sentinels=3, case="lower"), "corpus", tmp_path),
    }
    monkeypatch.setattr("tokenizers.__version__", "9.9.9")
    names.add(cached_file(CONFIG, "corpus", tmp_path))
    assert len(names) == 5
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "elsewhere"))
    assert cached_file(CONFIG, "corpus").is_relative_to(tmp_path / "elsewhere")


@pytest.mark.parametrize("damage", ["truncate", "empty", "other", "letter"])
def test_a_broken_cache_is_trained_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opener = Opener(tmp_path / "marks")
    good = resolve_tokenizer(CONFIG, opener, "corpus", tmp_path)
    path = cached_file(CONFIG, "corpus", tmp_path)
    content = path.read_bytes()
    path.write_bytes(
        {"truncate": content[:-100], "empty": b"", "other": b"[1]", "letter": content.replace(b"Ca", b"Cb", 1).replace(b"th", b"tx", 1)}[
            damage
        ]
    )
    with caplog.at_level(logging.WARNING, "lmlab"):
        assert resolve_tokenizer(CONFIG, opener, "corpus", tmp_path) == good
    assert "is broken" in caplog.text
    assert opener.times == 2
    assert path.read_bytes() == content


def test_a_path_is_loaded_and_idle_settings_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Tokenizer.train([TEXT], CONFIG).save(tmp_path / "it")
    opener = Opener(tmp_path / "marks")
    config = TokenizerConfig(path=str(tmp_path / "it"), vocab_size=50, num_sentinels=5)
    with caplog.at_level(logging.WARNING, "lmlab"):
        tokenizer = resolve_tokenizer(config, opener, "corpus", tmp_path)
    assert len(tokenizer.sentinel_ids) == 5
    assert opener.times == 0
    assert "no effect: vocab_size" in caplog.text


def _resolve(folder: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(resolve_tokenizer(CONFIG, Opener(folder / "marks"), "corpus", folder).fingerprint)


def test_several_processes_train_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_resolve, args=(tmp_path, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    fingerprints = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(timeout=60)
    assert len(fingerprints) == 1
    assert Opener(tmp_path / "marks").times == 1
