"""Tokenizers of other people: read from what the Hugging Face ecosystem writes, and written so that it can read ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lmlab.cache import write_atomic
from lmlab.errors import DataError
from lmlab.tokenizer.specials import ROLES, SpecialTokens, added_tokens, recognise
from lmlab.tokenizer.training import canonical

log = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
NAME_FILES = ("special_tokens_map.json", "tokenizer_config.json")  # the first that names a role wins
SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


class Loaded(NamedTuple):
    """A tokenizer that has every special token.

    Args:
        json: Canonical tokenizer.json.
        specials: The roles.
    """

    json: str
    specials: SpecialTokens


def load(path: Path, num_sentinels: int) -> Loaded:
    """Reads a file or folder and completes its special tokens.

    Args:
        path: A tokenizer.json, or a folder.
        num_sentinels: How many `<extra_id_*>` tokens there must be.

    Raises:
        DataError: If there is nothing, or nothing that can be understood.
    """
    if not path.exists():
        raise DataError(f"there is no tokenizer at '{path}'", where=str(path), remedy="give a tokenizer.json or a folder that holds one")
    backend = _from_folder(path) if path.is_dir() else _from_file(path)
    specials = recognise(backend.get_vocab(with_added_tokens=True), _named(path) if path.is_dir() else {}, num_sentinels)
    _append_missing(backend, specials, path)
    return Loaded(canonical(backend.to_str()), specials)


def save(path: Path, content: str, specials: SpecialTokens) -> None:
    """Writes a tokenizer.json, or a folder that transformers opens with the same special tokens.

    Args:
        path: A file ending in `.json`, or a folder.
        content: Canonical tokenizer.json.
        specials: The roles.
    """
    if path.suffix == ".json":
        write_atomic(path, content.encode())
        return
    write_atomic(path / TOKENIZER_FILE, content.encode())
    names = {f"{role}_token": getattr(specials, role) for role in ROLES}
    write_atomic(path / NAME_FILES[0], _pretty(names))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": int(1e30)}
    write_atomic(path / NAME_FILES[1], _pretty({**names, **settings}))


def _pretty(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def _from_folder(folder: Path) -> tokenizers.Tokenizer:
    if (folder / TOKENIZER_FILE).exists():
        return _from_file(folder / TOKENIZER_FILE)
    if (folder / "vocab.txt").exists():
        return _readable(folder / "vocab.txt", lambda: _bert(folder))
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _readable(folder / "vocab.json", lambda: _gpt2(folder))
    remedy = "a tokenizer folder holds tokenizer.json, or vocab.txt, or vocab.json and merges.txt"
    if any((folder / name).exists() for name in SENTENCEPIECE_FILES):
        remedy = "convert the SentencePiece model once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) with transformers"
    raise DataError(f"'{folder}' holds no tokenizer", where=str(folder), remedy=remedy)


def _from_file(path: Path) -> tokenizers.Tokenizer:
    return _readable(path, lambda: tokenizers.Tokenizer.from_file(str(path)))


def _readable(path: Path, read: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    try:
        return read()
    except Exception as error:  # the library raises bare Exception for anything it cannot parse
        raise DataError(
            f"'{path.name}' is not a tokenizer",
            where=str(path),
            why=str(error),
            remedy="download it again; a pointer of git-lfs is not the file",
        ) from error


def _bert(folder: Path) -> tokenizers.Tokenizer:
    vocabulary = models.WordPiece.read_file(str(folder / "vocab.txt"))
    settings = _json(folder / NAME_FILES[1])
    cased = any(token.isascii() and token.isalpha() and not token.islower() for token in vocabulary)
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=str(settings.get("unk_token", "[UNK]"))))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", not cased)),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    if "[CLS]" in vocabulary and "[SEP]" in vocabulary:
        backend.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return backend


def _gpt2(folder: Path) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    prefix = bool(_json(folder / NAME_FILES[1]).get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    return backend


def _named(folder: Path) -> dict[str, str]:
    """Role to token, from the files beside the vocabulary."""
    found: dict[str, str] = {}
    for name in NAME_FILES:
        content = _json(folder / name)
        for role in ROLES:
            token = content.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token and role not in found:
                found[role] = str(token)
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"'{path.name}' is not JSON", where=str(path), why=str(error), remedy="repair or remove it") from error
    return content if isinstance(content, dict) else {}


def _append_missing(backend: tokenizers.Tokenizer, specials: SpecialTokens, path: Path) -> None:
    declared = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [token for token in specials.all() if backend.token_to_id(token) is None]
    undeclared = [token for token in specials.all() if token not in declared]
    backend.add_special_tokens(added_tokens(undeclared, backend.get_vocab(), specials))
    if missing:
        shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        log.info("%s lacks %d special tokens, appended to its vocabulary: %s", path.name, len(missing), shown)
