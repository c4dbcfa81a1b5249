"""One tokenizer for one corpus: trained once, whoever asks first, and found again by everybody else."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers

from lmlab.cache import default_cache_dir, locked, write_atomic
from lmlab.config import fingerprint
from lmlab.errors import LabError
from lmlab.tokenizer.config import TokenizerConfig
from lmlab.tokenizer.tokenizer import Tokenizer

log = logging.getLogger(__name__)

FORMAT = 3  # raise it when training changes, so that old files are not mistaken for new ones
FOLDER = "tokenizers"


def resolve_tokenizer(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]], corpus_fingerprint: str, cache_dir: Path | None = None
) -> Tokenizer:
    """Loads the tokenizer, or trains it on the corpus unless that was done before.

    Several processes may ask at once: one trains under a lock, the others wait and read its file.

    Args:
        config: Which tokenizer.
        texts: Opens the corpus; called only when there is something to train.
        corpus_fingerprint: Name of the corpus's content.
        cache_dir: Where trained tokenizers are kept; None for `lmlab.cache.default_cache_dir()`.

    Raises:
        DataError: If the path is not a tokenizer, or the corpus has no text.
    """
    if config.path is not None:
        _warn_of_idle_settings(config)
        return Tokenizer.load(config.path, config.num_sentinels)
    path = cached_file(config, corpus_fingerprint, cache_dir)
    found = _read(path)
    if found is not None:
        return found
    with locked(path):
        found = _read(path)  # another process may have finished while this one waited
        if found is not None:
            return found
        log.info("training a %s tokenizer of %d tokens", config.kind, config.vocab_size)
        trained = Tokenizer.train(texts, config)
        content = {"format": FORMAT, "fingerprint": trained.fingerprint, "tokenizer": trained.to_plain()}
        write_atomic(path, json.dumps(content, ensure_ascii=False).encode())
        return trained


def cached_file(config: TokenizerConfig, corpus_fingerprint: str, cache_dir: Path | None = None) -> Path:
    """Where the tokenizer of this config and corpus is kept, whether or not it is there yet."""
    key = fingerprint({"format": FORMAT, "config": config, "corpus": corpus_fingerprint, "library": tokenizers.__version__})
    return (cache_dir or default_cache_dir()) / FOLDER / f"{config.kind}-{key}.json"


def _read(path: Path) -> Tokenizer | None:
    try:
        content = json.loads(path.read_bytes())
        tokenizer = Tokenizer.from_plain(content["tokenizer"])
        if tokenizer.fingerprint != content["fingerprint"]:
            raise ValueError("its content does not match its fingerprint")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, LabError) as error:
        log.warning("the cached tokenizer %s is broken (%s); it will be trained again", path, error)
        return None
    return tokenizer


def _warn_of_idle_settings(config: TokenizerConfig) -> None:
    default = TokenizerConfig()
    idle = [f.name for f in dataclasses.fields(config) if f.name not in ("path", "num_sentinels")]
    changed = [name for name in idle if getattr(config, name) != getattr(default, name)]
    if changed:
        log.warning("tokenizer.path is set, so these settings have no effect: %s", ", ".join(changed))
