"""From what a user writes after `--data.corpus` to a corpus."""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.config import check_trusted, from_dict
from lmlab.data.corpus.base import Corpus
from lmlab.data.corpus.embedded import EmbeddedCorpus
from lmlab.data.corpus.files import find_files
from lmlab.data.corpus.huggingface import HuggingFaceCorpus
from lmlab.data.corpus.jsonl import JsonlCorpus
from lmlab.data.corpus.mixture import MixtureCorpus
from lmlab.data.corpus.parquet import ParquetCorpus
from lmlab.data.corpus.text import TextCorpus
from lmlab.data.embedded import EMBEDDED
from lmlab.errors import ConfigError, nearest

_BY_SUFFIX: dict[str, type[TextCorpus] | type[JsonlCorpus] | type[ParquetCorpus]] = {
    ".txt": TextCorpus,
    ".text": TextCorpus,
    ".md": TextCorpus,
    ".jsonl": JsonlCorpus,
    ".ndjson": JsonlCorpus,
    ".json": JsonlCorpus,
    ".parquet": ParquetCorpus,
}
_PACKED = (".txt", ".text", ".md", ".jsonl", ".ndjson", ".json")  # kinds that may carry a further .gz


def open_corpus(spec: str | os.PathLike[str] | Mapping[str, Any] | Corpus) -> Corpus:
    """The corpus a setting names.

    Args:
        spec: An embedded name (`austen`, ...); a path or glob of .txt, .jsonl or .parquet files, the first two also with .gz;
            `hf:NAME` or `hf:NAME:CONFIG`; or `{class_path: ..., init_args: {...}}`, where the class of `lmlab.data.corpus` may be
            named without its package; a class of your own must be trusted first, see `lmlab.config.trust`. A corpus is returned as it is.

    Returns:
        A corpus. Its files are looked up, but not read.

    Raises:
        ConfigError: On a name, suffix or class that means nothing.
        DataError: If a file is missing, or a glob matches nothing.
    """
    if isinstance(spec, Corpus):
        return spec
    if isinstance(spec, Mapping):
        return _from_mapping(spec)
    spec = os.fspath(spec)
    if spec in EMBEDDED:
        return EmbeddedCorpus(name=spec)  # type: ignore[arg-type]
    if spec.startswith("hf:"):
        name, _, config = spec.removeprefix("hf:").partition(":")
        return HuggingFaceCorpus(name=name, config=config or None)
    if not any(mark in spec for mark in "./\\~") and not glob.has_magic(spec) and not Path(spec).exists():
        remedy = f"{nearest(spec, EMBEDDED)}; or give a path or glob, hf:NAME, or a class path"
        raise ConfigError(f"there is no corpus '{spec}'", where="corpus", why="it is no embedded name and no file", remedy=remedy)
    files = find_files((spec,))
    kinds = {_kind(path) for path in files}
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        remedy = "use a narrower glob, or join several with MixtureCorpus"
        raise ConfigError(f"'{spec}' matches files of several kinds", where="corpus", why=f"they would need {names}", remedy=remedy)
    return kinds.pop()(paths=(spec,))


def _kind(path: Path) -> type[TextCorpus] | type[JsonlCorpus] | type[ParquetCorpus]:
    suffix = path.suffix.lower()
    if suffix == ".gz" and path.with_suffix("").suffix.lower() in _PACKED:
        suffix = path.with_suffix("").suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise ConfigError(
            f"'{path.name}' ends in '{suffix}', which says nothing about its content",
            where=str(path),
            why=f"known endings: {', '.join(_BY_SUFFIX)}, text and JSON lines also with .gz",
            remedy="say it: {class_path: TextCorpus, init_args: {paths: [...]}}",
        )
    return _BY_SUFFIX[suffix]


def _from_mapping(spec: Mapping[str, Any]) -> Corpus:
    for key in spec:
        if key not in ("class_path", "init_args"):
            remedy = "write {class_path: ..., init_args: {...}}"
            raise ConfigError(f"a corpus has no setting '{key}' at this level", where=f"corpus.{key}", remedy=remedy)
    class_path = str(spec.get("class_path", ""))
    cls = _find_class(class_path)
    settings = dict(spec.get("init_args") or {})
    if cls is MixtureCorpus and isinstance(settings.get("parts"), Mapping):
        settings["parts"] = {name: open_corpus(part) for name, part in settings["parts"].items()}
    try:
        return from_dict(cls, settings)
    except TypeError as error:  # a setting without default is missing
        raise ConfigError(
            f"{cls.__name__} cannot be made", where=f"corpus.{class_path}", why=str(error), remedy="add the setting"
        ) from error


def _find_class(class_path: str) -> type[Corpus]:
    full = class_path if "." in class_path else f"lmlab.data.corpus.{class_path}"
    check_trusted(full, "corpus.class_path")
    module_name, _, class_name = full.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise ConfigError(f"class path '{class_path}' does not exist", where="corpus.class_path", why=str(error)) from error
    if not (isinstance(cls, type) and issubclass(cls, Corpus) and cls is not Corpus):
        known = [kind.__name__ for kind in Corpus.__subclasses__()]
        raise ConfigError(f"'{class_path}' is not a corpus", where="corpus.class_path", remedy=nearest(class_name, known))
    return cls
