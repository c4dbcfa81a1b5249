"""The tokenizer as a value: its JSON and the roles of its special tokens are all there is to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from lmlab.config import fingerprint
from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import cutting, encoding, loading, training, words
from lmlab.tokenizer.config import TokenizerConfig
from lmlab.tokenizer.specials import ROLES, SpecialTokens


class Tokenizer:
    """Text to ids and back. Immutable; pickles as its JSON; equal and hashed by fingerprint.

    Text is data: `[MASK]` inside it is six characters, unless `parse_special` says that a person typed it on purpose.
    A lone surrogate becomes U+FFFD; NUL is kept (by `wordpiece` it is dropped, as BERT does).

    Args:
        json: Content of a Hugging Face tokenizer.json, in canonical form.
        specials: How the special tokens are spelled.
    """

    json: str
    specials: SpecialTokens

    def __init__(self, json: str, specials: SpecialTokens) -> None:
        """Takes content that `train`, `load` or `to_plain` made."""
        self.__dict__.update(json=json, specials=specials)  # not a dataclass: the command line would offer its fields as settings

    @classmethod
    def train(cls, texts: Iterable[str] | Callable[[], Iterable[str]], config: TokenizerConfig) -> Tokenizer:
        """Learns a vocabulary.

        Args:
            texts: The corpus, read as a stream; or a function that opens it again, which spares a temporary copy where a kind
                reads twice (`wordpiece`, `unigram`).
            config: What to train.

        Raises:
            DataError: If there is no text in it.
        """
        specials = training.special_tokens(config)
        return cls(training.train(texts, config, specials), specials)

    @classmethod
    def load(cls, path: str | Path, num_sentinels: int = 0) -> Tokenizer:
        """Reads a tokenizer.json, or a folder in Hugging Face layout (also vocab.txt of BERT, vocab.json + merges.txt of GPT-2).

        Special tokens the file lacks are appended to the vocabulary; no existing id changes.

        Args:
            path: File or folder.
            num_sentinels: How many `<extra_id_*>` tokens there must be at least.

        Raises:
            DataError: If it is not there, or not a tokenizer.
        """
        loaded = loading.load(Path(path), num_sentinels)
        return cls(loaded.json, loaded.specials)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Tokenizer:
        """Rebuilds what `to_plain` made."""
        values = dict(plain["specials"])
        values["sentinels"] = tuple(values.get("sentinels", ()))
        return cls(str(plain["json"]), SpecialTokens(**values))

    def to_plain(self) -> dict[str, Any]:
        """The JSON form that checkpoints and caches carry."""
        roles = {role: getattr(self.specials, role) for role in ROLES}
        return {"json": self.json, "specials": {**roles, "sentinels": list(self.specials.sentinels)}}

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json, or a folder that transformers' `AutoTokenizer` opens.

        Args:
            path: A file ending in `.json`, or a folder.
        """
        loading.save(Path(path), self.json, self.specials)

    @cached_property
    def fingerprint(self) -> str:
        """A short name for the value: equal exactly when ids and roles are."""
        return fingerprint({"json": json.loads(self.json), "specials": self.to_plain()["specials"]})

    @cached_property
    def vocab_size(self) -> int:
        """V: one more than the largest id."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    @property
    def pad_id(self) -> int:
        """Fills rows up."""
        return self._ids_of_roles["pad"]

    @property
    def unk_id(self) -> int:
        """Stands for the inexpressible."""
        return self._ids_of_roles["unk"]

    @property
    def bos_id(self) -> int:
        """Begins a text."""
        return self._ids_of_roles["bos"]

    @property
    def eos_id(self) -> int:
        """Ends a text."""
        return self._ids_of_roles["eos"]

    @property
    def cls_id(self) -> int:
        """Stands for the whole input."""
        return self._ids_of_roles["cls"]

    @property
    def sep_id(self) -> int:
        """Ends a sentence of a pair."""
        return self._ids_of_roles["sep"]

    @property
    def mask_id(self) -> int:
        """Hides a token."""
        return self._ids_of_roles["mask"]

    @cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        """Ids of `<extra_id_0>`, `<extra_id_1>`, ... in this order."""
        return tuple(self.id(token) for token in self.specials.sentinels)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Every id that is not text: the roles, the sentinels, and what a loaded file declares special."""
        declared = {index for index, token in self._backend.get_added_tokens_decoder().items() if token.special}
        return frozenset(declared | {self.id(token) for token in self.specials.all()})

    def id(self, token: str) -> int:
        """Id of a token as the vocabulary spells it.

        Raises:
            DataError: If there is none.
        """
        found = self._backend.token_to_id(token)
        if found is None:
            raise DataError(f"the vocabulary has no token {token!r}", remedy="encode() cuts text into tokens it has; extend() adds one")
        return found

    def token(self, index: int) -> str:
        """How the vocabulary spells an id; `decode` gives its text.

        Raises:
            DataError: If the id is outside the vocabulary.
        """
        self._check(np.array([index]))
        return self._backend.id_to_token(int(index)) or ""

    def normalize(self, text: str) -> str:
        """The text as the model sees it, before it is cut into tokens; `decode(encode(text))` gives it back for all but `wordpiece`.

        A vocabulary that writes spaces as `▁` cannot tell that sign from a space, so here it is one.
        """
        normalizer = self._backend.normalizer
        text = cutting.sanitise(text)
        text = normalizer.normalize_str(text) if normalizer else text
        return text.replace("▁", " ") if self._spelling == "metaspace" else text

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Ids of one text, without special tokens around it.

        Args:
            text: Any text of any length.
            parse_special: Whether `[MASK]` inside the text means the token. Where a space belongs to the word after it (`bpe`,
                `unigram`), a gap takes the space before it along, as the tokens do that are masked in training.

        Raises:
            DataError: If it is not a string.
        """
        return self._encode([text], self._parsing if parse_special else self._backend)[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of many texts, on all cores; special tokens are neither added nor parsed.

        Args:
            texts: N texts of any length.

        Returns:
            N arrays, int32.

        Raises:
            DataError: If one is not a string.
        """
        return self._encode(texts, self._backend)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """Text of ids.

        Args:
            ids: (T,) ids.
            skip_special: Whether special tokens leave no trace.

        Raises:
            DataError: If an id is outside the vocabulary.
        """
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        self._check(array)
        parts: list[str] = []
        run: list[int] = []
        for index in array.tolist():
            content = self._verbatim.get(index)
            if content is None:
                run.append(index)
                continue
            parts += [self._backend.decode(run, skip_special_tokens=skip_special), content]
            run = []
        parts.append(self._backend.decode(run, skip_special_tokens=skip_special))
        return "".join(parts)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, such that together they are the text of all.

        A token that ends in the middle of a character gives its share to the token that completes it.

        Args:
            ids: (T,) ids.
        """
        text = self.decode(ids)
        ends = [len(self.decode(ids[:i]).rstrip("\ufffd")) for i in range(len(ids))] + [len(text)]
        return [text[max(ends[:i]) : max(ends[: i + 1])] for i in range(1, len(ends))]

    def token_bytes(self) -> np.ndarray:
        """How many bytes of UTF-8 text each id stands for: what bits per byte are counted in.

        Returns:
            (V,) int64; 0 for special tokens. They add up to the normalised text for every kind but `wordpiece`, which forgets
            spaces (and for unknown tokens, which forget everything).
        """
        return self._table.num_bytes.copy()

    def word_starts(self, ids: Sequence[int] | np.ndarray, chinese: Literal["pieces", "words"] = "pieces") -> np.ndarray:
        """Which tokens begin a word, for whole-word masking; see `lmlab.tokenizer.words` for what a word is.

        Args:
            ids: (T,) ids.
            chinese: `pieces` takes each piece of the vocabulary for a word, so that several characters in one piece are one
                word; `words` asks a dictionary (the `zh` extra) and groups pieces by it.

        Returns:
            (T,) bool.

        Raises:
            ConfigError: If `chinese` is `words` and the extra is not installed.
            DataError: If an id is outside the vocabulary.
        """
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        self._check(array)
        starts = words.word_starts(array, self._table)
        return words.by_dictionary(array, self._table, starts) if chinese == "words" else starts

    def extend(self, tokens: Sequence[str]) -> Tokenizer:
        """A tokenizer with further tokens after the existing ids; they are recognised wherever they stand in a text.

        Args:
            tokens: New words. Those the vocabulary already has are left as they are.

        Raises:
            ConfigError: If a token is empty or all spaces.
        """
        if any(not token.strip() for token in tokens):
            raise ConfigError("an empty token cannot be added", why="it would be found everywhere", remedy="pass words")
        known = self._backend.get_vocab(with_added_tokens=True)
        backend = tokenizers.Tokenizer.from_str(self.json)
        backend.add_tokens([token for token in dict.fromkeys(tokens) if token not in known])
        return Tokenizer(training.canonical(backend.to_str()), self.specials)

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self.json)
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _parts_lines(self) -> bool:
        return cutting.parts_lines(json.loads(self.json))

    @cached_property
    def _spelling(self) -> words.Spelling:
        return words.spelling(json.loads(self.json))

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.json)  # a second one: the switch is not safe to flip between threads

    @cached_property
    def _ids_of_roles(self) -> dict[str, int]:
        return {role: self.id(getattr(self.specials, role)) for role in ROLES}

    @cached_property
    def _table(self) -> words.PieceTable:
        pieces = [self._backend.id_to_token(index) or "" for index in range(self.vocab_size)]
        added = {index: token.content for index, token in self._backend.get_added_tokens_decoder().items()}
        return words.piece_table(pieces, added, self.special_ids, self._spelling)

    @cached_property
    def _verbatim(self) -> dict[int, str]:
        """Added words that a byte-level decoder would take for bytes: it reads the é of an added 'café' as byte 0xE9."""
        if self._spelling != "byte_level":
            return {}
        added = self._backend.get_added_tokens_decoder().items()
        return {index: token.content for index, token in added if not token.special and not token.content.isascii()}

    @cached_property
    def _forbidden(self) -> np.ndarray:
        """Special ids a Unigram model finds in plain text, because they are pieces of its vocabulary; (V,) bool."""
        forbidden = np.zeros(self.vocab_size, dtype=bool)
        if json.loads(self.json)["model"]["type"] == "Unigram":
            forbidden[list(self.special_ids - {self.unk_id})] = True
        return forbidden

    def _encode(self, texts: Sequence[str], backend: tokenizers.Tokenizer) -> list[np.ndarray]:
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for number, piece, ids in encoding.encode_pieces(texts, backend, self._parts_lines):
            spelled_out = backend is self._backend and self._forbidden[ids].any()
            parts[number].append(self._without_specials(piece) if spelled_out else ids)
        return [np.concatenate(part) if part else np.zeros(0, dtype=np.int32) for part in parts]

    def _without_specials(self, piece: str) -> np.ndarray:
        """Encodes text in which a special token is spelled out, by cutting each of them after its first character."""
        piece = self.normalize(piece)
        for token in sorted((self.token(int(index)) for index in np.flatnonzero(self._forbidden)), key=len, reverse=True):
            if len(token) > 1 and token in piece:
                before, _, after = piece.partition(token)
                return np.concatenate(self._encode([before + token[0], token[1:] + after], self._backend))
        ids = np.array(self._backend.encode(piece, add_special_tokens=False).ids, dtype=np.int32)
        return np.where(self._forbidden[ids], np.int32(self.unk_id), ids)

    def _check(self, ids: np.ndarray) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            bad = int(ids[(ids < 0) | (ids >= self.vocab_size)][0])
            raise DataError(f"id {bad} is not a token", why=f"ids go from 0 to {self.vocab_size - 1}", remedy="was it another tokenizer?")

    def __setattr__(self, name: str, value: object) -> None:
        """Refuses: ids that changed under a store or a model would go unnoticed."""
        raise AttributeError(f"a Tokenizer cannot be changed ({name}); extend() makes another one")

    def __eq__(self, other: object) -> bool:
        """By content."""
        return isinstance(other, Tokenizer) and (self.json, self.specials) == (other.json, other.specials)

    def __hash__(self) -> int:
        """By fingerprint."""
        return hash(self.fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        """Only the value travels; what is derived from it is made again."""
        return {"json": self.json, "specials": self.specials}

    def __repr__(self) -> str:
        """Size and fingerprint, not a megabyte of JSON."""
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint})"
