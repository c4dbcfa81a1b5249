"""The store: every token where it belongs, the same however it was built, and refused when it is not whole."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmlab.data.cleaning import CleaningConfig
from lmlab.data.corpus import Corpus, JsonlCorpus, MixtureCorpus, TextCorpus
from lmlab.data.sentences import sentence_starts
from lmlab.data.store import StoreConfig, TokenStore, build_store
from lmlab.data.store import building as building_module
from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from tests.data.conftest import CHINESE, ENGLISH

SMALL = StoreConfig(shard_characters=1024, num_processes=1)


def corpus_of(folder: Path, texts: list[str]) -> JsonlCorpus:
    folder.mkdir(exist_ok=True)
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return JsonlCorpus(paths=(str(path),))


def files_of(stores: dict[str, TokenStore]) -> dict[str, bytes]:
    folder = stores["train"].path.parent
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def corpus(tmp_path: Path) -> JsonlCorpus:
    return corpus_of(tmp_path, ENGLISH + CHINESE)


@pytest.mark.parametrize("kind", ["byte_tokenizer", "bpe_tokenizer", "wordpiece_tokenizer"])
def test_documents_come_back_in_their_order(corpus: Corpus, kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    stores = build_store(corpus, tokenizer, SMALL)
    encoded = [tokenizer.encode(text) for text in ENGLISH + CHINESE]
    places: dict[str, list[int]] = {}
    for name, store in stores.items():
        documents = [store.document(index).tolist() for index in range(store.num_documents)]
        places[name] = [encoded.index(document) for document in documents]
        assert places[name] == sorted(places[name])
        assert store.num_bytes.tolist() == [len((ENGLISH + CHINESE)[place].encode()) for place in places[name]]
        assert store.header.num_bytes == store.num_bytes.sum()
        assert store.header.largest_id == store.tokens.max()
        assert store.tokens.dtype == np.uint16
        assert store.num_tokens == len(store.tokens) == store.offsets[-1]
    assert sorted(itertools.chain.from_iterable(places.values())) == list(range(100))
    assert all(places.values())


@pytest.mark.parametrize("kind", ["byte_tokenizer", "bpe_tokenizer", "wordpiece_tokenizer"])
def test_sentences_begin_at_the_tokens_that_hold_them(corpus: Corpus, kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    store = build_store(corpus, tokenizer, SMALL)["train"]
    texts = {tuple(tokenizer.encode(text)): text for text in ENGLISH + CHINESE}
    for index in range(store.num_documents):
        begin, end = store.offsets[index : index + 2]
        inside = store.sentences[(store.sentences >= begin) & (store.sentences < end)]
        assert inside[0] == begin
        text = texts[tuple(store.document(index).tolist())]
        starts = sentence_starts(text)
        assert len(inside) == len(starts)
        for place, start in zip(inside.tolist(), starts.tolist(), strict=True):
            # all text before the sentence is in the tokens before it, but for the space between them
            before = tokenizer.decode(store.tokens[begin:place])
            expected = tokenizer.decode(tokenizer.encode(text[:start]))
            assert before.strip() == expected.strip()


def test_normalisation_does_not_lose_sentences(tmp_path: Path) -> None:
    """A tokenizer that changes the text has other byte counts than the text; sentences are then found by counting."""
    texts = [f"ﬁrst № {n}. Ｓecond. Third." for n in range(30)]
    tokenizer = Tokenizer.train([], TokenizerConfig(kind="bytes", num_sentinels=0, normalization="nfkc"))
    store = build_store(corpus_of(tmp_path, texts), tokenizer, SMALL)["train"]
    assert len(store.sentences) == 3 * store.num_documents
    begin, end = store.sentences[1:3]
    assert tokenizer.decode(store.tokens[begin:end]).strip() == "Second."


@pytest.mark.slow
def test_wide_tokens_for_a_large_vocabulary(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    large = byte_tokenizer.extend([f"<{n}>" for n in range(66_000)])
    store = build_store(corpus_of(tmp_path, [f"word <{n}>" for n in range(65_000, 65_900)]), large, SMALL)["train"]
    assert store.tokens.dtype == np.uint32
    assert store.header.largest_id > 2**16


def test_the_result_does_not_depend_on_processes_or_shards(corpus: Corpus, bpe_tokenizer: Tokenizer, tmp_path: Path) -> None:
    configs = [
        StoreConfig(num_processes=1),
        StoreConfig(num_processes=1, shard_characters=1024),
        StoreConfig(num_processes=2, shard_characters=1024),
    ]
    built = [files_of(build_store(corpus, bpe_tokenizer, config, cache_dir=tmp_path / str(n))) for n, config in enumerate(configs)]
    assert built[0] == built[1] == built[2]


def test_duplicates_are_dropped_and_never_in_two_splits(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    texts = [f"text {n % 50}" for n in range(300)] + ["text  0"]
    stores = build_store(corpus_of(tmp_path, texts), byte_tokenizer, SMALL)
    assert sum(store.num_documents for store in stores.values()) == 50
    counts = stores["val"].header.counts
    assert (counts.num_read, counts.num_kept, counts.num_duplicates) == (301, 50, 251)
    kept = build_store(corpus_of(tmp_path, texts), byte_tokenizer, SMALL, CleaningConfig(duplicates="keep"))
    assert sum(store.num_documents for store in kept.values()) == 301
    seen = [{tuple(store.document(index)) for index in range(store.num_documents)} for store in kept.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_repeats_of_a_mixture_are_kept_in_their_split(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    large, small = (
        corpus_of(tmp_path / "a", [f"large {n}" for n in range(400)]),
        corpus_of(tmp_path / "b", [f"small {n}" for n in range(20)] * 2),
    )
    mixture = MixtureCorpus(parts={"a": large, "b": small}, weights={"a": 1, "b": 1})
    stores = build_store(mixture, byte_tokenizer, SMALL)
    texts = {name: [byte_tokenizer.decode(store.document(index)) for index in range(store.num_documents)] for name, store in stores.items()}
    small_texts = {name: [text for text in found if text.startswith("small")] for name, found in texts.items()}
    expected = {(document.text, document.repeat) for document in mixture.documents() if document.text.startswith("small")}
    assert sum(map(len, small_texts.values())) == len(expected) > 200  # copies within a pass are dropped
    assert not set(small_texts["train"]) & set(small_texts["val"])


def test_a_store_is_found_again(
    corpus: Corpus, bpe_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = build_store(corpus, bpe_tokenizer, SMALL)
    assert "kept 100 of 100 documents" in caplog.text
    assert f"train: {first['train'].num_documents} documents" in caplog.text
    monkeypatch.setattr(building_module, "_Build", lambda *_: pytest.fail("built again"))
    again = build_store(corpus, bpe_tokenizer, StoreConfig(num_processes=2, verify="full"))
    assert again["train"].path == first["train"].path


def test_another_tokenizer_text_cleaning_or_split_is_another_store(
    tmp_path: Path, bpe_tokenizer: Tokenizer, byte_tokenizer: Tokenizer
) -> None:
    def build(texts: list[str], tokenizer: Tokenizer, **settings: Any) -> TokenStore:
        return build_store(corpus_of(tmp_path, texts), tokenizer, **{"config": SMALL, **settings})["train"]

    stores = [
        build(ENGLISH, bpe_tokenizer),
        build(ENGLISH, byte_tokenizer),
        build(ENGLISH[1:], bpe_tokenizer),
        build(ENGLISH, bpe_tokenizer, cleaning=CleaningConfig(min_characters=3)),
        build(ENGLISH, bpe_tokenizer, config=StoreConfig(split_seed=1)),
    ]
    assert len({store.fingerprint for store in stores}) == len(stores)
    assert stores[1].tokens.max() < 300 < stores[0].tokens.max()
    with pytest.raises(ConfigError, match="made with another tokenizer"):
        stores[0].check_tokenizer(byte_tokenizer.fingerprint)


def test_a_store_travels_as_its_path(corpus: Corpus, bpe_tokenizer: Tokenizer) -> None:
    store = build_store(corpus, bpe_tokenizer, SMALL)["train"]
    assert store.tokens.base is not None  # opened before it travels
    data = pickle.dumps(store)
    assert len(data) < 5000
    assert np.array_equal(pickle.loads(data).tokens, store.tokens)


def test_one_document_leaves_nothing_to_hold_out(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    stores = build_store(corpus_of(tmp_path, ["only one"]), byte_tokenizer, SMALL)
    assert [stores[name].num_documents for name in ("train", "val", "test")] == [1, 0, 0]
    assert len(stores["val"].tokens) == 0
    stores = build_store(corpus_of(tmp_path, ["one", "two"]), byte_tokenizer, SMALL)
    assert [stores[name].num_documents for name in ("train", "val", "test")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda file: file.write_bytes(file.read_bytes()[:-2]),
            r"tokens.npy is truncated[\s\S]*expected [\d,]+ bytes, found [\d,]+[\s\S]*delete",
        ),
        (lambda file: file.write_bytes(file.read_bytes() + b"xx"), r"tokens.npy is longer than written"),
        (lambda file: file.unlink(), r"tokens.npy is missing"),
        (lambda file: (file.parent / "header.json").write_text("{"), r"header of the store is broken"),
        (lambda file: (file.parent / "header.json").write_text('{"format": 0}'), r"of another version"),
        (lambda file: (file.parent / "header.json").unlink(), r"there is no store"),
    ],
)
def test_damage_is_seen_at_opening(corpus: Corpus, bpe_tokenizer: Tokenizer, damage: Any, message: str) -> None:
    path = build_store(corpus, bpe_tokenizer, SMALL)["train"].path
    damage(path / "tokens.npy")
    with pytest.raises(DataError, match=message):
        build_store(corpus, bpe_tokenizer, SMALL)


def test_a_flipped_bit_is_seen_by_a_full_check(corpus: Corpus, bpe_tokenizer: Tokenizer) -> None:
    path = build_store(corpus, bpe_tokenizer, SMALL)["train"].path
    data = bytearray((path / "tokens.npy").read_bytes())
    data[-2] ^= 1  # the lower byte: another token of the vocabulary
    (path / "tokens.npy").write_bytes(data)
    TokenStore.open(path)
    with pytest.raises(DataError, match=r"tokens.npy has changed[\s\S]*sha256"):
        TokenStore.open(path, verify="full")


def test_a_token_outside_the_vocabulary_is_seen_at_opening(corpus: Corpus, bpe_tokenizer: Tokenizer) -> None:
    path = build_store(corpus, bpe_tokenizer, SMALL)["train"].path
    data = bytearray((path / "tokens.npy").read_bytes())
    data[-200:-198] = b"\xff\xff"
    (path / "tokens.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"tokens.npy has changed[\s\S]*65535"):
        build_store(corpus, bpe_tokenizer, SMALL)


def test_splits_do_not_share_documents_that_differ_in_white_space(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    spaces = ["{}", "{} ", "\n {}", "{}\u3000\n"]
    texts = [space.format(f"Document{gap}{n}{gap}says hi.") for n in range(40) for gap in (" ", "  ", "\n") for space in spaces]
    config = StoreConfig(num_processes=1, val_share=0.3, test_share=0.2)
    for duplicates, expected in (("keep", len(texts)), ("drop", 40)):
        stores = build_store(corpus_of(tmp_path, texts), byte_tokenizer, config, CleaningConfig(duplicates=duplicates))  # type: ignore[arg-type]
        found = {
            name: [" ".join(byte_tokenizer.decode(store.document(index)).split()) for index in range(store.num_documents)]
            for name, store in stores.items()
        }
        assert sum(map(len, found.values())) == expected
        assert sum(len(set(split)) for split in found.values()) == 40


def test_a_file_that_changes_while_it_is_tokenised_is_refused(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(tmp_path, [f"old text number {n}" for n in range(20)])
    plain = building_module.cut_shards

    def slow(*given: Any) -> Any:
        corpus_of(tmp_path, [f"new text number {n}" for n in range(20)])
        return plain(*given)

    monkeypatch.setattr(building_module, "cut_shards", slow)
    with pytest.raises(DataError, match=r"has changed while[\s\S]*corpus.jsonl"):
        build_store(corpus, byte_tokenizer, SMALL, cache_dir=tmp_path / "here")
    assert [file.suffix for file in (tmp_path / "here" / "stores").iterdir()] == [".lock"]
    monkeypatch.setattr(building_module, "cut_shards", plain)
    store = build_store(corpus, byte_tokenizer, SMALL, cache_dir=tmp_path / "here")["train"]
    assert byte_tokenizer.decode(store.document(0)).startswith("new")


def test_a_file_whose_name_is_not_utf8(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/n\xff.txt")
    Path(path).write_bytes(b"hello one\n\nhello \xff two")
    store = build_store(TextCorpus(paths=(path,)), byte_tokenizer, SMALL)["train"]
    assert store.header.corpus["paths"] == [path]
    assert store.header.counts.examples == (f"{path}:3, character 7",)
    assert json.loads((store.path / "header.json").read_bytes())["corpus"]["paths"] == [path]


@pytest.mark.parametrize("shard_characters", [1024, 2**23])
def test_invalid_characters_are_judged_over_the_whole_corpus(tmp_path: Path, byte_tokenizer: Tokenizer, shard_characters: int) -> None:
    path = tmp_path / "x.txt"
    for num_good, is_fine in ((40, True), (2, False)):
        path.write_bytes(b"\xff" * 30 + b" hello.\n\n" + b"".join(b"%d: %s\n\n" % (n, b"good text here. " * 60) for n in range(num_good)))
        config = StoreConfig(num_processes=1, shard_characters=shard_characters)
        if is_fine:  # 30 of 38,000
            assert build_store(TextCorpus(paths=(str(path),)), byte_tokenizer, config)["train"].header.counts.num_invalid == 30
        else:
            with pytest.raises(DataError, match=r"not valid UTF-8[\s\S]*x.txt:1"):
                build_store(TextCorpus(paths=(str(path),)), byte_tokenizer, config)


def test_a_wrong_encoding_is_seen_early(tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("".join(f"第{n}回。玄德曰：吾弟何在？\n\n" for n in range(2000)).encode("gb18030"))
    made: list[int] = []
    plain = building_module.ShardWriter.write
    monkeypatch.setattr(
        building_module.ShardWriter, "write", lambda self, raw, encoder: made.append(raw.number) or plain(self, raw, encoder)
    )
    with pytest.raises(DataError, match="not valid UTF-8"):
        build_store(TextCorpus(paths=(str(path),)), byte_tokenizer, SMALL)
    assert 1 <= len(made) < 5


def test_an_added_word_with_spaces_is_one_token_in_the_store(tmp_path: Path, wordpiece_tokenizer: Tokenizer) -> None:
    tokenizer = wordpiece_tokenizer.extend(["Yahoo! Inc", "”then"])
    texts = [f"Chapter {n} was at Yahoo! Inc yesterday. He said 。”then Nobody spoke." for n in range(9)]
    store = build_store(corpus_of(tmp_path, texts), tokenizer, StoreConfig(num_processes=1, val_share=0, test_share=0))["train"]
    assert [store.document(n).tolist() for n in range(9)] == [tokenizer.encode(text) for text in texts]
    assert set(store.tokens[-20:]) >= {tokenizer.id("Yahoo! Inc"), tokenizer.id("”then")}


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_nothing_to_tokenise(tmp_path: Path, byte_tokenizer: Tokenizer, texts: list[str]) -> None:
    with pytest.raises(DataError, match=rf"nothing to tokenise\n +where: {tmp_path}/corpus.jsonl\n"):
        build_store(corpus_of(tmp_path, texts), byte_tokenizer, SMALL, cache_dir=tmp_path / "here")
    assert [file.suffix for file in (tmp_path / "here" / "stores").iterdir()] == [".lock"]


def test_bad_text_is_repaired_and_counted(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"good line\n\nnul \x00 here\n\nbad \xff byte\n\n \n\n")
    stores = build_store(TextCorpus(paths=(str(path),)), byte_tokenizer, SMALL)
    found = {byte_tokenizer.decode(store.document(index)) for store in stores.values() for index in range(store.num_documents)}
    assert found == {"good line", "nul  here", "bad \ufffd byte"}
    counts = stores["train"].header.counts
    assert (counts.num_control, counts.num_invalid, counts.examples) == (1, 1, (f"{path}:5, character 5",))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_broken_line_far_in_leaves_nothing_behind(tmp_path: Path, byte_tokenizer: Tokenizer, num_processes: int) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(900)) + '{"text": ')
    with pytest.raises(DataError, match=r"x.jsonl:901"):
        build_store(
            JsonlCorpus(paths=(str(path),)),
            byte_tokenizer,
            StoreConfig(shard_characters=1024, num_processes=num_processes),
            cache_dir=tmp_path / "here",
        )
    assert [file.suffix for file in (tmp_path / "here" / "stores").iterdir()] == [".lock"]


def test_an_error_in_another_process_arrives_whole(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    texts = [f"line {n} of the text" for n in range(400)]
    texts[300] += " \ud800"
    config = StoreConfig(shard_characters=1024, num_processes=2)
    with pytest.raises(DataError, match=r"corpus.jsonl:301, character 22"):
        build_store(corpus_of(tmp_path, texts), byte_tokenizer, config, CleaningConfig(invalid="fail"))


def test_settings_that_cannot_be() -> None:
    for setting in (
        {"val_share": 0.6},
        {"test_share": -0.1},
        {"val_share": 0.5, "test_share": 0.5},
        {"num_processes": 0},
        {"shard_characters": 1},
        {"verify": "half"},
    ):
        with pytest.raises(ConfigError, match=r"is not (possible|a choice)"):
            StoreConfig(**setting)  # type: ignore[arg-type]
