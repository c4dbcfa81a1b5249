"""Loading what others wrote: files, folders, families of special tokens, and what transformers makes of ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizerFast, GPT2TokenizerFast

from lmlab.errors import DataError
from lmlab.tokenizer import Tokenizer
from lmlab.tokenizer.specials import ROLES, recognise

from .conftest import KINDS

WORDS = ["the", "cat", "##s", "sat", "[MASK]", "中", "国", ".", "a", "##a"]


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def roles(tokenizer: Tokenizer) -> dict[str, int]:
    return {role: getattr(tokenizer, f"{role}_id") for role in ROLES}


@pytest.mark.parametrize("kind", KINDS)
def test_ours_comes_back_from_file_and_folder(kind: str, tmp_path: Path, trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained(kind)
    tokenizer.save(tmp_path / "folder")
    tokenizer.save(tmp_path / "one.json")
    assert Tokenizer.load(tmp_path / "folder") == Tokenizer.load(tmp_path / "one.json") == tokenizer
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "folder",
        "one.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_ours(kind: str, tmp_path: Path, texts: list[str], trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained(kind)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = texts[0][:500] + texts[-1][:200]
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs("She [MASK]", add_special_tokens=False)["input_ids"] == tokenizer.encode("She [MASK]", parse_special=True)
    assert len(theirs) == tokenizer.vocab_size
    for role in ROLES:
        assert getattr(theirs, f"{role}_token_id") == getattr(tokenizer, f"{role}_id")


def test_bert_vocabulary(tmp_path: Path) -> None:
    folder = write(tmp_path, {"vocab.txt": "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]) + "\n"})
    tokenizer = Tokenizer.load(folder)
    theirs = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    text = "The cats sat. 中国a unbelievable"
    assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert roles(tokenizer) == {"pad": 0, "unk": 1, "cls": 2, "bos": 2, "sep": 3, "eos": 3, "mask": 8}
    assert tokenizer.vocab_size == 14
    assert tokenizer.encode("[MASK]", parse_special=True) == [8]
    assert 8 not in tokenizer.encode("[MASK]")
    assert tokenizer.token_bytes()[[4, 6, 9, 0]].tolist() == [3, 1, 3, 0]
    cased = write(tmp_path / "cased", {"vocab.txt": "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "the"]) + "\n"})
    assert Tokenizer.load(cased).encode("The the") == [5, 6]


def test_gpt2_vocabulary(tmp_path: Path, trained: Callable[[str], Tokenizer]) -> None:
    model = json.loads(trained("bpe").json)["model"]
    specials = trained("bpe").special_ids
    plain = {
        token: i for i, token in enumerate(t for t, index in sorted(model["vocab"].items(), key=lambda kv: kv[1]) if index not in specials)
    }
    plain["<|endoftext|>"] = len(plain)
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]) + "\n"
    folder = write(tmp_path, {"vocab.json": json.dumps(plain), "merges.txt": merges})
    tokenizer = Tokenizer.load(folder, num_sentinels=2)
    end, size = plain["<|endoftext|>"], len(plain)
    theirs = GPT2TokenizerFast(vocab=plain, merges=[tuple(pair) for pair in model["merges"]])
    text = "It isn't 玄德 [MASK] <|endoftext|>".replace("<|endoftext|>", "")
    assert tokenizer.encode(text) == theirs(text)["input_ids"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (end, end)
    assert tokenizer.pad_id not in (tokenizer.eos_id, tokenizer.bos_id)
    appended = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, *tokenizer.sentinel_ids]
    assert appended == list(range(size, size + 7))
    assert end not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.encode("<|endoftext|>", parse_special=True) == [end]


def unigram(vocabulary: list[tuple[str, float]]) -> tokenizers.Tokenizer:
    """As T5's: special tokens are pieces of the model, at score 0, so that the model itself finds them in plain text."""
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, 2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens([token for token, score in vocabulary if score == 0.0])
    return backend


def test_t5_family(tmp_path: Path) -> None:
    letters = [(c, -5.0) for c in "▁<>/spadextr_i0123"]
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in (2, 1, 0)]
    backend = unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters, *sentinels])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path, num_sentinels=3)
    size = 3 + len(letters) + 3
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert tokenizer.sentinel_ids == (size - 1, size - 2, size - 3)
    assert (tokenizer.bos_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == tuple(range(size, size + 4))
    for text in ("x <pad> <extra_id_1> </s>", "<pad>"):
        assert not tokenizer.special_ids & set(tokenizer.encode(text)), "a special token was read out of plain text"
    assert tokenizer.sentinel_ids[1] in tokenizer.encode("x <extra_id_1>", parse_special=True)
    assert tokenizer.encode("sea") == backend.encode("sea", add_special_tokens=False).ids


def test_llama_and_roberta_families(tmp_path: Path) -> None:
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    llama = tokenizers.Tokenizer(
        models.BPE({t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *bytes_, "▁", "a"])}, [], byte_fallback=True)
    )
    llama.add_special_tokens(["<unk>", "<s>", "</s>"])
    llama.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    llama.enable_padding()
    llama.enable_truncation(4)
    llama.save(str(tmp_path / "llama.json"))
    tokenizer = Tokenizer.load(tmp_path / "llama.json")
    assert roles(tokenizer) == {"unk": 0, "bos": 1, "eos": 2, "pad": 261, "cls": 262, "sep": 263, "mask": 264}
    assert len(tokenizer.encode("aaaaaaaaaaaa")) == 12, "truncation and template of the file are not ours"
    assert tokenizer.token_bytes()[3:259].tolist() == [1] * 256

    roberta = recognise({"<s>", "<pad>", "</s>", "<unk>", "<mask>", "a"}, {}, 0)
    assert (roberta.cls, roberta.sep, roberta.bos, roberta.eos, roberta.mask) == ("<s>", "</s>", "<s>", "</s>", "<mask>")


def test_names_in_the_files_win(tmp_path: Path) -> None:
    vocabulary = {"<|im_start|>": 0, "<|im_end|>": 1, "<|endoftext|>": 2, "a": 3}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.add_special_tokens(list(vocabulary)[:3])
    backend.save(str(tmp_path / "tokenizer.json"))
    named = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    write(tmp_path, {"tokenizer_config.json": json.dumps(named)})
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert tokenizer.pad_id == 4, "padding that equals the end of text gets a token of its own"


def test_dropout_of_a_saved_tokenizer_is_switched_off(
    tmp_path: Path, trained: Callable[[str], Tokenizer], caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(trained("bpe").json)
    content["model"]["dropout"] = 0.5
    write(tmp_path, {"tokenizer.json": json.dumps(content)})
    with caplog.at_level(logging.WARNING, "lmlab"):
        tokenizer = Tokenizer.load(tmp_path)
    assert "dropout of 0.5 is switched off" in caplog.text
    assert tokenizer == trained("bpe")
    text = "She had not expected it of him. " * 10
    assert {tuple(tokenizer.encode(text)) for _ in range(10)} == {tuple(trained("bpe").encode(text))}


def test_appended_tokens_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizers.Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with caplog.at_level(logging.INFO, "lmlab"):
        Tokenizer.load(tmp_path)
    assert "lacks 7 special tokens" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no tokenizer at"),
        ({}, "holds no tokenizer"),
        ({"spiece.model": "x"}, "save_pretrained"),
        ({"tokenizer.json": "version https://git-lfs.github.com/spec/v1"}, "is not a tokenizer"),
        ({"tokenizer.json": "{}"}, "is not a tokenizer"),
        ({"vocab.json": "{", "merges.txt": ""}, "is not a tokenizer"),
        ({"vocab.txt": "[UNK]\na\n", "tokenizer_config.json": "{"}, "tokenizer_config.json' is not JSON|is not a tokenizer"),
    ],
)
def test_what_is_not_a_tokenizer(files: dict[str, str] | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    if files is not None:
        write(folder, files)
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.load(folder)
    assert caught.value.remedy
    assert caught.value.where.startswith(str(folder))
