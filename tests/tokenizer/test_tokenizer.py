"""The value: round trips, special tokens in text, bytes, long texts, pickling, extension, forked workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.config import restore, to_plain
from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from lmlab.tokenizer.cutting import cut, parts_lines

from .conftest import KINDS

LOSSLESS = ("bpe", "bytes", "characters", "unigram")
SPECIAL_WORDS = ("[MASK]", "[PAD]", "[UNK]", "<extra_id_3>", "<0x41>", "Ġ", "a▁b", "▁", "##ing", "\0", "</s>")

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
lively_text = st.lists(st.one_of(any_text, st.sampled_from([*SPECIAL_WORDS, "刘备曰：", " the ", "\n\n", "  ", "don't"])), max_size=8).map(
    "".join
)


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=lively_text)
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(kind: str, text: str, trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained(kind)
    ids = tokenizer.encode(text)
    normal = unicodedata.normalize("NFC", text)
    if kind == "unigram":
        normal = normal.replace("▁", " ")  # SentencePiece writes spaces with this sign, and cannot tell the two apart
    assert tokenizer.normalize(text) == normal
    assert tokenizer.decode(ids, skip_special=False) == tokenizer.decode(ids) == normal
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.token_bytes()[ids].sum() == len(normal.encode())
    assert tokenizer.word_starts(ids).shape == (len(ids),)


@given(text=lively_text)
@settings(max_examples=60, deadline=None)
def test_wordpiece_follows_bert(text: str, trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained("wordpiece")
    ids = tokenizer.encode(text)
    assert set(ids) & tokenizer.special_ids <= {tokenizer.unk_id}
    assert tokenizer.token_bytes()[ids].sum() <= len(tokenizer.normalize(text).encode())


def test_none_leaves_text_as_it_is(texts: list[str]) -> None:
    tokenizer = Tokenizer.train(texts[:1], TokenizerConfig(vocab_size=500, normalization="none"))
    decomposed = "e\u0301 ﬁ"
    assert tokenizer.decode(tokenizer.encode(decomposed)) == decomposed
    folded = Tokenizer.train(texts[:1], TokenizerConfig(vocab_size=500, normalization="nfkc"))
    assert folded.decode(folded.encode(decomposed)) == "é fi"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_only_on_demand(kind: str, trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained(kind)
    text = "She was [MASK] to <extra_id_0> him."
    assert not {tokenizer.mask_id, tokenizer.sentinel_ids[0]} & set(tokenizer.encode(text))
    ids = tokenizer.encode(text, parse_special=True)
    assert ids.count(tokenizer.mask_id) == ids.count(tokenizer.sentinel_ids[0]) == 1
    assert "[MASK]" not in tokenizer.decode(ids)
    assert "[MASK]" in tokenizer.decode(ids, skip_special=False)
    assert not {tokenizer.mask_id} & set(tokenizer.encode(text)), "parsing once must not leave a trace"


def test_nul_is_kept_and_a_lone_surrogate_is_replaced(trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained("bpe")
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"
    joined = tokenizer.encode_batch(["fine", "a\udfffb", "fine"])
    assert [tokenizer.decode(ids) for ids in joined] == ["fine", "a\ufffdb", "fine"]
    with pytest.raises(DataError, match="not text"):
        tokenizer.encode_batch(["a", None])  # type: ignore[list-item]


def test_a_batch_equals_its_texts(texts: list[str], trained: Callable[[str], Tokenizer]) -> None:
    for kind in KINDS:
        tokenizer = trained(kind)
        batch = ["", *texts, "", "end"]
        encoded = tokenizer.encode_batch(batch)
        assert [ids.tolist() for ids in encoded] == [tokenizer.encode(text) for text in batch]
        assert {ids.dtype for ids in encoded} == {np.dtype(np.int32)}
    assert tokenizer.encode_batch([]) == []


@given(
    parts=st.lists(st.sampled_from(["word", "it's", " ", "  ", "\n", "刘备", "，", "!?", "1st", "_x", "e\u0301"]), max_size=60),
    limit=st.integers(24, 60),
)
@settings(max_examples=60, deadline=None)
def test_cuts_do_not_change_tokens(parts: list[str], limit: int, trained: Callable[[str], Tokenizer]) -> None:
    text = "".join(f"{part} " if i % 5 == 0 else part for i, part in enumerate(parts))
    pieces = list(cut(text, limit))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces)
    for kind in KINDS:
        tokenizer = trained(kind)
        assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text), kind


LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""The pattern of Llama 3's published tokenizer.json; that of GPT-4 treats line ends alike."""


def llama_3(texts: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated")
    as_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, as_bytes])  # type: ignore[arg-type]
    backend.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    return backend


@pytest.mark.parametrize("line", ["天下大势，分久必合，合久必分。\n", "“Well!”\n\nIt was 1813.\r\n\tYes\n"])
def test_line_ends_are_not_torn_from_punctuation_that_they_belong_to(line: str, tmp_path: Path) -> None:
    backend = llama_3([line * 50])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    text = line * (600_000 // len(line))  # more than two pieces
    assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids
    assert any("\n" in tokenizer.decode([index]) and len(tokenizer.decode([index])) > 1 for index in set(tokenizer.encode(line)))


def test_which_tokenizers_part_lines(trained: Callable[[str], Tokenizer]) -> None:
    known = {kind: parts_lines(json.loads(trained(kind).json)) for kind in KINDS}
    assert known == {"bpe": True, "wordpiece": True, "unigram": True, "characters": False, "bytes": True}


def test_long_texts_are_cut_without_a_trace(texts: list[str], trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained("bpe")
    english, chinese = texts[0].replace("\n", " ") * 60, texts[-1].replace("\n", "") * 120
    whole = tokenizers.Tokenizer.from_str(tokenizer.json)
    for text in (english, chinese):
        assert len(text) > 1 << 18
        assert tokenizer.encode(text) == whole.encode(text, add_special_tokens=False).ids


def test_half_a_million_characters_without_a_border(trained: Callable[[str], Tokenizer]) -> None:
    text = "a" * 300_000 + "龘e\u0301" * 100_000
    assert all(unicodedata.is_normalized("NFC", p) or p == unicodedata.normalize("NFD", p) for p in cut(text, 1000))
    for kind in ("bpe", "characters"):
        assert trained(kind).decode(trained(kind).encode(text)) == unicodedata.normalize("NFC", text)


def test_bytes_of_tokens_by_hand(trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained("bpe")
    num_bytes = tokenizer.token_bytes()
    assert num_bytes.shape == (tokenizer.vocab_size,)
    assert num_bytes[list(tokenizer.special_ids)].sum() == 0
    assert (num_bytes[17 : 17 + 256] == 1).all()
    assert num_bytes[tokenizer.id("Ġthe")] == 4
    assert trained("unigram").token_bytes()[trained("unigram").id("▁the")] == 4
    assert trained("characters").token_bytes()[trained("characters").id("曰")] == 3


def test_value_semantics(trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained("bpe")
    tokenizer.encode("warm")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    assert hash(copy) == hash(tokenizer)
    assert copy != trained("bytes")
    assert copy.encode("玄德 said") == tokenizer.encode("玄德 said")
    assert len(pickle.dumps(tokenizer)) < 1.5 * len(tokenizer.json.encode()) + 1000
    plain = json.loads(json.dumps(to_plain({"tokenizer": tokenizer})))["tokenizer"]
    assert restore(Tokenizer | None, plain) == tokenizer
    assert restore(Tokenizer, plain).fingerprint == tokenizer.fingerprint
    with pytest.raises(AttributeError):
        tokenizer.json = "{}"  # type: ignore[misc]
    assert "3000" in repr(tokenizer)
    assert len(repr(tokenizer)) < 100


@pytest.mark.parametrize("kind", KINDS)
def test_extension_keeps_ids_and_adds_words(kind: str, trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained(kind)
    extended = tokenizer.extend(["café☕", "诸葛亮", "café☕", "[MASK]"])
    size = tokenizer.vocab_size
    assert extended.vocab_size == size + 2
    assert (extended.id("café☕"), extended.id("诸葛亮")) == (size, size + 1)
    assert [extended.token(i) for i in range(size)] == [tokenizer.token(i) for i in range(size)]
    assert extended.encode("the end.") == tokenizer.encode("the end.")
    ids = extended.encode("a café☕ 诸葛亮曰")
    assert {size, size + 1} <= set(ids)
    assert extended.token_bytes()[[size, size + 1]].tolist() == [len("café☕".encode()), 9]
    assert extended.fingerprint != tokenizer.fingerprint
    if kind != "wordpiece":
        assert extended.decode(ids) == "a café☕ 诸葛亮曰"
    assert extended.specials == tokenizer.specials
    with pytest.raises(ConfigError, match="empty"):
        tokenizer.extend([" "])


def test_ids_outside_the_vocabulary(trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained("bpe")
    for bad in ([5, 3000], [-1]):
        with pytest.raises(DataError, match="is not a token"):
            tokenizer.decode(bad)
        with pytest.raises(DataError, match="is not a token"):
            tokenizer.word_starts(bad)
    with pytest.raises(DataError, match="no token"):
        tokenizer.id("nonesuchtoken")


def _encode_in_child(tokenizer: Tokenizer, results: Any) -> None:
    results.put((sum(map(len, tokenizer.encode_batch(["many words here"] * 2000))), os.environ.get("TOKENIZERS_PARALLELISM")))


FORK = """
import multiprocessing, os
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from tests.tokenizer.test_tokenizer import _encode_in_child
if __name__ == "__main__":
    tokenizer = Tokenizer.train([], TokenizerConfig(kind="bytes"))
    tokenizer.encode_batch(["many words here"] * 2000)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_encode_in_child, args=(tokenizer, results))
    child.start()
    print(*results.get(timeout=20), os.environ.get("TOKENIZERS_PARALLELISM"))
    child.join()
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.parametrize("wish", [None, "true"])
def test_forked_workers_encode_silently(wish: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"} | {"PYTHONPATH": os.pathsep.join(["", *sys.path])}
    environment |= {"TOKENIZERS_PARALLELISM": wish} if wish else {}
    done = subprocess.run([sys.executable, "-c", FORK], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["30000", "false", str(wish)]
    assert done.stderr == ""


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=st.text(alphabet="ab 中国é😀.", min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_the_pieces_are_the_text(kind: str, text: str, trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained(kind)
    ids = tokenizer.encode(text)
    for some in (ids, ids[:-1]):  # the second may end inside a character
        pieces = tokenizer.pieces(some)
        assert len(pieces) == len(some)
        assert "".join(pieces) == tokenizer.decode(some)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", ["[MASK]", "<extra_id_0>"])
def test_a_gap_stands_where_a_whole_token_was(kind: str, gap: str, trained: Callable[[str], Tokenizer]) -> None:
    """Masking replaces tokens, spaces included; a gap that a person writes must look the same to the model."""
    tokenizer = trained(kind)
    text = "She was the first to see him."
    ids = tokenizer.encode(text)
    pieces = tokenizer.pieces(ids)
    place = next(i for i in range(len(ids)) if "".join(pieces[: i + 1]).rstrip().endswith("She was the first"))
    word = pieces[place].strip()
    hidden = [*ids[:place], tokenizer.id(gap), *ids[place + 1 :]]
    before, after = "".join(pieces[:place]), "".join(pieces[place + 1 :])
    spelled = before.rstrip() + (" " if pieces[place].startswith(" ") or before.endswith(" ") else "") + gap + after
    assert word and tokenizer.encode(spelled, parse_special=True) == hidden
