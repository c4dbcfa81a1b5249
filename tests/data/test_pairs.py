"""False pairs: what they are made of, what must not give them away, and the batches made of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from lmlab.data.corpus import TextCorpus
from lmlab.data.masking import MaskingConfig, MLMCollator
from lmlab.data.pairs import PairCollator
from lmlab.data.store import build_store
from lmlab.data.views import SentencePairView
from lmlab.data.views.base import View
from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import Tokenizer
from tests.data.memory import MemoryStore, feed

CLS, SEP, MASK, PAD = 1, 2, 3, 0
FIVE_STANDARD_ERRORS = 5.0


def documents(num: int, seed: int = 0) -> list[list[list[int]]]:
    """Documents of very different lengths; every token says of which document it is."""
    generator = np.random.default_rng(seed)
    return [[[100 + number] * int(generator.integers(3, 14)) for _ in range(generator.integers(2, 40))] for number in range(num)]


def pairs(docs: list[list[list[int]]], tok: Tokenizer, **settings: str) -> SentencePairView:
    return SentencePairView(MemoryStore(docs), feed("sentence_pairs", 40, prefix=(CLS,), suffix=(SEP,), **settings), tok)


def halves(view: View, index: int, position: int, seed: int = 0) -> tuple[list[int], list[int], int | None]:
    example = view.draw(index, position, seed)
    extra = example.extra or {}
    ids, second = example.input_ids.tolist(), extra["second_start"]
    assert (ids[0], ids[second - 1], ids[-1]) == (CLS, SEP, SEP)
    assert example.num_raw_tokens == len(ids) - 3
    assert (example.position, example.index) == (position, index)
    return ids[1 : second - 1], ids[second:-1], extra.get("pair_label")


def test_a_false_second_sentence_is_that_of_a_pair_in_another_document(byte_tokenizer: Tokenizer) -> None:
    docs = documents(30)
    view, true = pairs(docs, byte_tokenizer, negatives="document"), pairs(docs, byte_tokenizer)
    seconds = {tuple(halves(true, index, 0)[1]) for index in range(len(true))}
    labels = []
    for n in range(4 * len(view)):
        index, seed = n % len(view), n // len(view)
        a, b, label = halves(view, index, index, seed)
        whole_a, whole_b, none = halves(true, index, index, seed)
        labels.append(label)
        assert none is None and len(a) + len(b) <= 37
        if label:
            assert set(a) == set(whole_a) and set(b) != set(a), "another document"
            assert tuple(b) in seconds or len(a) + len(b) == 37, "a whole second half, unless it was cut to fit"
        else:
            assert (a, b) == (whole_a, whole_b)
    assert abs(np.mean(labels) - 0.5) < FIVE_STANDARD_ERRORS * 0.5 / len(labels) ** 0.5  # type: ignore[arg-type]


def test_swapped_sentences_are_the_same_two(byte_tokenizer: Tokenizer) -> None:
    docs = [[[10 * s + 20] * (2 + s % 5) for s in range(8)] for _ in range(3)]
    view, true = pairs(docs, byte_tokenizer, negatives="order"), pairs(docs, byte_tokenizer)
    found = set()
    for n in range(20):
        a, b, label = halves(view, n % len(view), n)
        assert (b, a) if label else (a, b) == halves(true, n % len(view), n)[:2]
        assert halves(true, n % len(view), n)[:2] == ((b, a) if label else (a, b))
        found.add(label)
    assert found == {0, 1}
    assert len(pairs(docs[:1], byte_tokenizer, negatives="order")) > 0, "one document is enough"


def test_a_text_that_is_read_again_is_cut_anew(byte_tokenizer: Tokenizer) -> None:
    """From any sentence of a run on, as far as fits: found here by trying all stretches of the document."""
    docs = [[[1000 * d + 10 * s + t for t in range(3 + (5 * s + d) % 7)] for s in range(23)] for d in range(2)]
    view = pairs(docs, byte_tokenizer)
    allowed: set[tuple[int, ...]] = set()
    for sentences in docs:
        for first in range(len(sentences) - 1):
            last = max(end for end in range(first + 2, len(sentences) + 1) if sum(map(len, sentences[first:end])) <= 37)
            allowed.add(tuple(token for sentence in sentences[first:last] for token in sentence))
    beginnings = {sentence[0] for sentences in docs for sentence in sentences}
    fixed = {tuple(a + b) for a, b, _ in (halves(view, index, index) for index in range(len(view)))}
    found = set()
    for n in range(len(view), 60 * len(view)):
        a, b, _ = halves(view, n % len(view), n)
        assert b[0] in beginnings and abs(len(a) - len(b)) <= 9, "divided between sentences, near the middle"
        found.add(tuple(a + b))
    assert fixed < found == allowed


def test_no_second_sentence_is_known_from_false_pairs_alone(byte_tokenizer: Tokenizer) -> None:
    """Where a text is read again, false pairs are cut anew as true ones are: none of the two has sentences that the other never has."""
    docs = [[[150 + 35 * d + s] * 4 for s in range(35)] for d in range(3)]
    view = pairs(docs, byte_tokenizer, negatives="document")
    seconds: dict[int, set[int]] = {0: set(), 1: set()}
    for n in range(len(view), 200 * len(view)):
        _, b, label = halves(view, n % len(view), n)
        seconds[label or 0].add(b[0])
    assert seconds[0] == seconds[1]


def test_lengths_do_not_give_a_false_pair_away(byte_tokenizer: Tokenizer) -> None:
    """Both halves and their sum are as long, and as often cut, in true pairs as in false ones."""
    view = pairs(documents(60, seed=1), byte_tokenizer, negatives="document")
    table: dict[int, list[tuple[int, int, int, bool]]] = {0: [], 1: []}
    for n in range(8 * len(view)):
        a, b, label = halves(view, n % len(view), n)
        table[label or 0].append((len(a), len(b), len(a) + len(b), len(a) + len(b) == 37))
    true, false = (np.array(table[label], float) for label in (0, 1))
    error = np.sqrt(true.var(0) / len(true) + false.var(0) / len(false))
    assert (np.abs(true.mean(0) - false.mean(0)) < FIVE_STANDARD_ERRORS * error).all()


@pytest.mark.parametrize("kind", ["byte_tokenizer", "bpe_tokenizer", "wordpiece_tokenizer"])
@pytest.mark.parametrize("negatives", ["document", "order"])
def test_white_space_does_not_give_a_false_pair_away(negatives: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A document ends without the line break that its other sentences end in, and begins without the space of the others."""
    tok: Tokenizer = request.getfixturevalue(kind)
    (tmp_path / "x.txt").write_text("\n\n".join(f"Fox {n} runs.\nDog {n} sleeps.\u3000 We eat {n}. \nElk {n} is." for n in range(40)))
    store = build_store(TextCorpus(paths=(str(tmp_path / "x.txt"),)), tok, cache_dir=tmp_path)["train"]
    wanted = {"prefix": (tok.cls_id,), "suffix": (tok.sep_id,)}
    view = SentencePairView(store, feed("sentence_pairs", 100, negatives=negatives, **wanted), tok)
    plain = SentencePairView(store, feed("sentence_pairs", 100, **wanted), tok)
    ends: dict[int, set[str]] = {0: set(), 1: set()}
    for n in range(4 * len(view)):
        example, true = view.draw(n % len(view), n, 0), plain.draw(n % len(view), n % len(view), 0)
        label, second = (example.extra or {})["pair_label"], (example.extra or {})["second_start"]
        a, b = example.input_ids[1 : second - 1], example.input_ids[second:-1]
        assert example.num_raw_tokens == len(a) + len(b)
        assert not any(text[:1].isspace() or text[-1:].isspace() for text in map(tok.decode, (a, b)))
        assert not any(tok.decode(half[place : place + 1]).isspace() for half in (a, b) for place in (0, len(half) - 1))
        if n < len(view) and not (label and negatives == "document"):
            middle = (true.extra or {})["second_start"]
            sides = [tok.decode(true.input_ids[1 : middle - 1]).strip(), tok.decode(true.input_ids[middle:-1]).strip()]
            assert [tok.decode(a), tok.decode(b)] == (sides[::-1] if label else sides), "nothing else is left out"
        ends[label] |= {tok.decode(a[:1]), tok.decode(b[:1])}
    assert ends[0] == ends[1]


def test_what_is_drawn_is_a_function_of_seed_position_and_index(byte_tokenizer: Tokenizer) -> None:
    view = pairs(documents(12), byte_tokenizer, negatives="document")
    first = [halves(view, i, i) for i in range(len(view))]
    assert [halves(view, i, i) for i in reversed(range(len(view)))] == first[::-1]
    for position, seed in ((len(view), 0), (0, 1)):
        assert [halves(view, i, position + i, seed) for i in range(len(view))] != first
    assert [view[i].input_ids.tolist() for i in range(len(view))] == [view.draw(i, i, 0).input_ids.tolist() for i in range(len(view))]


def test_a_false_pair_looks_at_a_few_runs_only(byte_tokenizer: Tokenizer) -> None:
    """A gather of the beginnings of all runs would take megabytes, and as much longer as the corpus is larger."""
    num = 500_000
    store = MemoryStore([[[150] * 10, [151] * 10]])
    bounds = {"tokens": np.full(20 * num, 150, np.uint16), "offsets": np.arange(0, 20 * num + 1, 20)}
    store.__dict__.update(bounds, sentences=np.arange(0, 20 * num, 10))
    store.header.__dict__["num_tokens"] = 20 * num
    view = SentencePairView(store, feed("sentence_pairs", 40, prefix=(CLS,), suffix=(SEP,), negatives="document"), byte_tokenizer)
    tracemalloc.start()
    try:
        labels = {(view.draw(n, n, 0).extra or {})["pair_label"] for n in range(50)}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert labels == {0, 1} and peak < 200_000


def test_one_document_has_no_other_one(byte_tokenizer: Tokenizer) -> None:
    for docs in (documents(1), [*documents(1), [[5, 6]]]):  # a document of one sentence has no pairs
        with pytest.raises(DataError, match="one document") as caught:
            pairs(docs, byte_tokenizer, negatives="document")
        assert "sop" in caught.value.remedy
    with pytest.raises(ConfigError, match="negatives"):
        pairs(documents(2), byte_tokenizer, negatives="documents")


def test_a_batch_has_segments_labels_and_masks(byte_tokenizer: Tokenizer) -> None:
    view = pairs(documents(12), byte_tokenizer, negatives="document")
    examples = [view.draw(i, i, 0) for i in range(8)]
    masking = MLMCollator(MaskingConfig(), 0.15, MASK, PAD, 200, (PAD, CLS, SEP, MASK))
    batch = PairCollator(masking, "nsp")(examples, 7)
    width = max(len(e.input_ids) for e in examples)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["token_type_ids"].shape == (8, width)
    for row, example in enumerate(examples):
        length, second = len(example.input_ids), (example.extra or {})["second_start"]
        restored = torch.where(batch["labels"][row] == -100, batch["input_ids"][row], batch["labels"][row])
        assert restored[:length].tolist() == example.input_ids.tolist()
        assert (batch["input_ids"][row, length:] == PAD).all() and (batch["labels"][row, length:] == -100).all()
        assert batch["attention_mask"][row].tolist() == [True] * length + [False] * (width - length)
        assert batch["token_type_ids"][row].tolist() == [0] * second + [1] * (length - second) + [0] * (width - length)
        assert batch["pair_labels"][row] == (example.extra or {})["pair_label"]
        assert (batch["labels"][row] != -100).sum() == max(1, round(0.15 * length))
    masked = (batch["labels"] != -100).sum()
    assert batch["counts"] == {"mlm": masked, "nsp": torch.tensor([8])} and batch["num_labelled"] == masked
    assert batch["tokens"].item() == sum(e.num_raw_tokens for e in examples)
    again = masking(examples, 7)
    assert torch.equal(again["input_ids"], batch["input_ids"]), "masked as single texts are"
