"""Views: equal to a stream put together by hand, whatever the lengths, special tokens and documents."""

from __future__ import annotations

import itertools
import timeit
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data.batch import Example
from lmlab.data.corpus import TextCorpus
from lmlab.data.store import TokenStore, build_store
from lmlab.data.views import BlockView, SentencePairView, SentenceView, View, make_view
from lmlab.data.views.sentences import sentence_runs
from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import Tokenizer
from tests.data.memory import MemoryStore, feed

MAX_SECONDS_PER_BLOCK = 400e-6  # some 30 microseconds on an idle core; the bound leaves room for a busy one


DOCUMENTS = st.lists(st.lists(st.lists(st.integers(20, 99), min_size=1, max_size=9), min_size=1, max_size=5), min_size=1, max_size=12)
SPECIALS = st.lists(st.integers(1, 9), max_size=2).map(tuple)


@given(documents=DOCUMENTS, length=st.integers(1, 20), lookahead=st.integers(0, 2), prefix=SPECIALS, suffix=SPECIALS)
@settings(max_examples=150, deadline=None)
def test_blocks_are_pieces_of_the_stream(
    documents: list[list[list[int]]],
    length: int,
    lookahead: int,
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    byte_tokenizer: Tokenizer,
) -> None:
    stream = [
        (token, number)
        for number, document in enumerate(documents)
        for token in itertools.chain(prefix, itertools.chain.from_iterable(document), suffix)
    ]
    size = (len(stream) - lookahead) // length
    store, wanted = MemoryStore(documents), feed("blocks", length, lookahead=lookahead, prefix=prefix, suffix=suffix)
    if size < 1:
        with pytest.raises(DataError, match="too short"):
            BlockView(store, wanted, byte_tokenizer)
        return
    view = BlockView(store, wanted, byte_tokenizer)
    assert len(view) == size
    for index in range(size):
        example = view[index]
        expected = stream[index * length : (index + 1) * length + lookahead]
        assert example.input_ids.tolist() == [token for token, _ in expected]
        assert example.document_ids.tolist() == [number - expected[0][1] for _, number in expected]
        assert example.input_ids.dtype == example.document_ids.dtype == np.int64
        assert example.num_raw_tokens == sum(token >= 20 for token, _ in expected[:length])  # special tokens are below
        assert (example.position, example.index, example.word_starts) == (0, index, None)
    assert view.num_raw_tokens == sum(view[index].num_raw_tokens for index in range(size))
    for outside in (-1, size):
        with pytest.raises(IndexError):
            view[outside]


def test_a_word_begins_where_a_document_does(tmp_path: Path, bpe_tokenizer: Tokenizer) -> None:
    (tmp_path / "x.txt").write_text("\n\n".join(["Mr. Weston came home"] + [f"ay, {n}" for n in range(30)]))
    store = build_store(TextCorpus(paths=(str(tmp_path / "x.txt"),)), bpe_tokenizer, cache_dir=tmp_path)["train"]
    cls, sep = bpe_tokenizer.cls_id, bpe_tokenizer.sep_id
    view = make_view(store, feed("blocks", 60, prefix=(cls,), suffix=(sep,), word_starts="pieces"), bpe_tokenizer)
    example = view[0]
    assert example.word_starts is not None
    after = np.flatnonzero(example.input_ids[:-1] == cls) + 1
    assert example.word_starts[after].all()
    inside = np.ones(60, dtype=bool)
    inside[after] = False
    assert np.array_equal(example.word_starts[inside], bpe_tokenizer.word_starts(example.input_ids)[inside])


@given(
    documents=DOCUMENTS,
    length=st.integers(3, 20),
    prefix=SPECIALS.filter(lambda x: len(x) < 2),
    suffix=SPECIALS.filter(lambda x: len(x) < 2),
)
@settings(max_examples=100, deadline=None)
def test_sentences_one_by_one(
    documents: list[list[list[int]]], length: int, prefix: tuple[int, ...], suffix: tuple[int, ...], byte_tokenizer: Tokenizer
) -> None:
    view = SentenceView(MemoryStore(documents), feed("sentences", length, prefix=prefix, suffix=suffix), byte_tokenizer)
    sentences = [sentence for document in documents for sentence in document]
    room = length - len(prefix) - len(suffix)
    assert [example.input_ids.tolist() for example in every(view)] == [[*prefix, *sentence[:room], *suffix] for sentence in sentences]
    assert [example.num_raw_tokens for example in every(view)] == [min(room, len(sentence)) for sentence in sentences]
    assert view.num_raw_tokens == sum(example.num_raw_tokens for example in every(view))


@given(documents=DOCUMENTS, length=st.integers(6, 30))
@settings(max_examples=100, deadline=None)
def test_pairs_are_consecutive_sentences(documents: list[list[list[int]]], length: int, byte_tokenizer: Tokenizer) -> None:
    store, wanted = MemoryStore(documents), feed("sentence_pairs", length, prefix=(1,), suffix=(2,))
    room = length - 3
    runs = greedy_runs(documents, room)
    if not runs:
        with pytest.raises(DataError, match="no document has two sentences"):
            SentencePairView(store, wanted, byte_tokenizer)
        return
    view = SentencePairView(store, wanted, byte_tokenizer)
    assert len(view) == len(runs)
    for example, run in zip(every(view), runs, strict=True):
        ids, second = example.input_ids.tolist(), (example.extra or {})["second_start"]
        assert len(ids) <= length and ids[0] == 1 and ids[-1] == ids[second - 1] == 2
        a, b = ids[1 : second - 1], ids[second:-1]
        assert example.num_raw_tokens == len(a) + len(b)
        joined = flat(run)
        if len(joined) <= room:
            assert a + b == joined
            halves = [len(flat(run[:cut])) for cut in range(1, len(run))]
            assert abs(2 * len(a) - len(joined)) == min(abs(2 * half - len(joined)) for half in halves)
        else:
            assert len(run) == 2 and len(a) + len(b) == room
            assert a == run[0][: len(a)] and b == run[1][: len(b)]
            assert abs(len(a) - len(b)) <= 1 or len(a) == len(run[0]) or len(b) == len(run[1])  # only the longer one is cut
    assert view.num_raw_tokens == sum(example.num_raw_tokens for example in every(view))


@given(documents=DOCUMENTS, room=st.integers(2, 30), stride=st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_runs_do_not_depend_on_how_many_are_looked_at(documents: list[list[list[int]]], room: int, stride: int) -> None:
    store = MemoryStore(documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmlab.data.views.sentences._STRIDE", stride)
        runs = sentence_runs(store.sentences, store.offsets, room)
    sentences = [sentence for document in documents for sentence in document]
    assert [sentences[begin:end] for begin, end in runs.tolist()] == greedy_runs(documents, room)


def greedy_runs(documents: list[list[list[int]]], room: int) -> list[list[list[int]]]:
    """As many whole sentences as fit, at least two, from the beginning of each document; a last one alone is left out."""
    runs = []
    for document in documents:
        run: list[list[int]] = []
        for sentence in document:
            if len(run) >= 2 and len(flat(run)) + len(sentence) > room:
                runs.append(run)
                run = []
            run = [*run, sentence]
        if len(run) >= 2:
            runs.append(run)
    return runs


def flat(run: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(run))


def every(view: View) -> list[Example]:
    return [view[index] for index in range(len(view))]


def test_what_cannot_be_fed(tmp_path: Path, byte_tokenizer: Tokenizer, bpe_tokenizer: Tokenizer) -> None:
    (tmp_path / "x.txt").write_text("A short text.\n\nAnother one.\n\nA third.")
    stores = build_store(TextCorpus(paths=(str(tmp_path / "x.txt"),)), byte_tokenizer, cache_dir=tmp_path)
    with pytest.raises(DataError, match=r"train split is too short[\s\S]*a block takes 501 tokens"):
        make_view(stores["train"], feed("blocks", 500, lookahead=1), byte_tokenizer)
    with pytest.raises(DataError, match=r"val split is too short[\s\S]*store.val_share"):
        make_view(stores["val"], feed("blocks", 500), byte_tokenizer)
    with pytest.raises(DataError, match="no document has two sentences"):
        make_view(stores["train"], feed("sentence_pairs", 50), byte_tokenizer)
    with pytest.raises(ConfigError, match="another tokenizer"):
        make_view(stores["train"], feed("blocks", 4), bpe_tokenizer)
    with pytest.raises(ConfigError, match="leaves no room"):
        make_view(stores["train"], feed("sentences", 2, prefix=(1,), suffix=(2,)), byte_tokenizer)
    with pytest.raises(ConfigError, match="lookahead has no effect"):
        make_view(stores["train"], feed("sentences", 9, lookahead=1), byte_tokenizer)
    with pytest.raises(ConfigError, match="positive length"):
        make_view(stores["train"], feed("blocks", 0), byte_tokenizer)
    with pytest.raises(DataError, match="too short"):
        make_view(build_empty(tmp_path, byte_tokenizer), feed("sentences", 9), byte_tokenizer)


def build_empty(folder: Path, tokenizer: Tokenizer) -> TokenStore:
    (folder / "one.txt").write_text("Only one document.")
    return build_store(TextCorpus(paths=(str(folder / "one.txt"),)), tokenizer, cache_dir=folder)["val"]


def test_blocks_are_fast(byte_tokenizer: Tokenizer) -> None:
    store = MemoryStore([[[50] * 40] * (1 + n % 9) for n in range(3000)])
    view = BlockView(store, feed("blocks", 512, lookahead=1, prefix=(1,), suffix=(2,)), byte_tokenizer)
    order = np.random.default_rng(0).integers(0, len(view), 300).tolist()
    seconds = min(timeit.repeat(lambda: [view[index] for index in order], number=1, repeat=5)) / len(order)
    assert seconds < MAX_SECONDS_PER_BLOCK
