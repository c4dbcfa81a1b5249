"""`record.json`: one run in one small file, and the only thing experiments and tables know of it."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from lmlab.cache import write_atomic
from lmlab.errors import CheckpointError

FORMAT = 1  # rises when an old reader would misunderstand the file; a field that is merely new does not raise it

Status = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Git:
    """State of the source the run was started from.

    Args:
        commit: Full hash.
        dirty: Whether tracked files differed from it.
    """

    commit: str
    dirty: bool


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run was, what it used, and what came out.

    Args:
        name: The run's name.
        seed: Its seed.
        status: How it stands; `running` also after a kill that left no time to write.
        question: What the person wanted to know, in their words.
        objective: Class path of the objective. Losses of different objectives are different units.
        corpus: The corpus as the person named it.
        started: ISO time with zone.
        ended: ISO time with zone; None while it runs.
        config_hash: `lmlab.config.fingerprint` of the resolved configuration.
        data: Fingerprints by part: `corpus`, `tokenizer`, `store`.
        git: Source state, None outside a repository.
        parent: The checkpoint this run started from, empty if from scratch.
        budget: What it may spend, in the one unit that ends it, such as `{"tokens": 1e6}`.
        spent: What it has spent: `steps`, `examples`, `tokens`, `supervised_tokens`, `flops`, `seconds`, `peak_memory_bytes`.
        metrics: Last value of each metric, such as `val/loss`.
        best: Best value of the watched metric: `{"step": N, "<metric>": value}`; empty without validation.
        anchors: Bits per byte of the reference points `uniform`, `unigram`, `bigram`, …
        num_parameters: Parameters of the model, each shared one once.
        tokens_per_second: Median over the run.
        flops_utilisation: Share of the machine's measured matmul speed, in [0, 1] (MFU); None when unknown.
        error: Why it failed, one sentence.
    """

    name: str
    seed: int
    status: Status = "running"
    question: str = ""
    objective: str = ""
    corpus: str = ""
    started: str = ""
    ended: str | None = None
    config_hash: str = ""
    data: dict[str, str] = field(default_factory=dict)
    git: Git | None = None
    parent: str = ""
    budget: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    anchors: dict[str, float] = field(default_factory=dict)
    num_parameters: int | None = None
    tokens_per_second: float | None = None
    flops_utilisation: float | None = None
    error: str = ""

    @property
    def objective_name(self) -> str:
        """The objective's class without its modules."""
        return self.objective.rpartition(".")[2]

    def bits_per_byte(self) -> tuple[str, float] | None:
        """Which of the two rulers the run has, and its value; a pseudo-likelihood keeps its label, for it is another ruler."""
        for ruler in ("bits_per_byte", "pseudo_bits_per_byte"):
            for name in sorted(self.metrics, key=lambda n: not n.startswith("val/")):
                if name.rpartition("/")[2] == ruler:
                    return ruler.replace("_", " "), self.metrics[name]
        return None

    def save(self, path: Path) -> None:
        """Writes the record, whole or not at all.

        Raises:
            DataError: If the disk does not take it.
        """
        content = {"format": FORMAT, **_encode(dataclasses.asdict(self))}
        write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace"))

    @classmethod
    def load(cls, path: Path) -> Record:
        """Reads a record; fields it does not know are passed over, since a newer lmlab may have added them.

        Raises:
            CheckpointError: If the file is missing, broken, or of a newer format.
        """
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            saved = any((path.parent / "checkpoints").glob("*.ckpt"))
            remedy = "its checkpoints are there: name one of them instead of the run" if saved else "it never started; delete the folder"
            raise CheckpointError("this run has no record", where=str(path), remedy=remedy) from error
        except (OSError, ValueError) as error:
            raise _broken(path, str(error)) from error
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise _broken(path, "it has no format number")
        if content["format"] > FORMAT:
            raise CheckpointError(
                "this record was written by a newer lmlab",
                where=str(path),
                why=f"its format is {content['format']}, this version reads up to {FORMAT}",
                remedy="update lmlab",
            )
        try:
            return cls(**{name: _decode(kind, content[name]) for name, kind in typing.get_type_hints(cls).items() if name in content})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _broken(path, str(error)) from error


def now() -> str:
    """The time as records write it: ISO 8601 in UTC, to the microsecond."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError("this record is broken", where=str(path), why=why, remedy="name one of the run's checkpoints instead of the run")


def _encode(value: Any) -> Any:
    """JSON has no NaN and no infinity, and a diverged run has little else: they are written as the strings Python reads back."""
    if isinstance(value, dict):
        return {k: _encode(v) for k, v in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decode(kind: Any, value: Any) -> Any:
    """Checks a value against the field's type, because a hand-edited file must not crash a table of runs."""
    if value is None:
        if type(None) in typing.get_args(kind):
            return None
        raise ValueError("a value is null")
    if kind == dict[str, float]:
        return {str(k): _number(v) for k, v in value.items()}
    if kind == dict[str, str]:
        return {str(k): str(v) for k, v in value.items()}
    if kind == Git | None:
        return Git(commit=str(value["commit"]), dirty=bool(value["dirty"]))
    if kind in (int, int | None, float | None):
        return _number(value)
    if kind == Status and value not in typing.get_args(Status):
        raise ValueError(f"its status is {value!r}")
    return str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r} is not a number")
    return float(value) if isinstance(value, str) else value
