"""Distillation by text: a causal teacher writes a corpus, from which any student learns, whatever its vocabulary.

The n-th document is a function of the teacher, the settings and n. So a corpus that was interrupted is gone on with as if nothing had
happened, and one that was begun with other settings is noticed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lmlab.backbones.decoder import Decoder
from lmlab.config import require
from lmlab.data.loader import OrderedView
from lmlab.decoding import DecodingConfig
from lmlab.errors import ConfigError, DataError
from lmlab.nn.evaluation import evaluating
from lmlab.objectives.clm import CLM
from lmlab.objectives.on_policy import write

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CorpusWritingConfig:
    """What is written, and how.

    Args:
        tokens: Written tokens after which the corpus is long enough; whole batches are written.
        length: Tokens of a document at most, its beginning included; the teacher knows texts of its training length.
        prompt_length: Tokens of a real text that each document begins with, where beginnings are given.
        temperature: Of the sampling.
        top_k: Draw from the k likeliest tokens only; 0 for all.
        top_p: Draw from the fewest tokens that together have this probability; 1 for all.
        seed: Another seed, another text.
        batch_size: Documents written at a time.

    Source: Kim & Rush 2016, "Sequence-Level Knowledge Distillation", section 3.2; samples take the place of the likeliest sequences, since
    nothing but a beginning is given.
    """

    tokens: int
    length: int = 128
    prompt_length: int = 32
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("tokens", "prompt_length", "batch_size"):
            require(getattr(self, name) >= 1, self, name, "it is a number of things", "set 1 or more")
        require(self.length > self.prompt_length, self, "length", f"{self.prompt_length} tokens are given already", "set a larger one")
        require(self.temperature > 0, self, "temperature", "at 0 the same text would come again and again", "1 is the teacher's own")
        self.decoding(1)

    def decoding(self, given: int) -> DecodingConfig:
        """How tokens are chosen.

        Args:
            given: Tokens that are there already.
        """
        return DecodingConfig(
            max_new_tokens=self.length - given, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed
        )


class Written(NamedTuple):
    """A document.

    Args:
        text: Of the beginning and of what was written.
        tokens: Written.
    """

    text: str
    tokens: int


def write_corpus(teacher: CLM, output: Path, config: CorpusWritingConfig, prompts: OrderedView | None = None) -> int:
    """Writes a corpus in JSON lines; goes on with one that was interrupted.

    Args:
        teacher: Writes.
        output: The file, `.jsonl`; until it is long enough it is called `output.part`.
        config: How much and how.
        prompts: Blocks of real text whose beginnings are continued; None begins documents from nothing.

    Returns:
        Written tokens.

    Raises:
        ConfigError: If the teacher cannot write, or not that much, or the file is there or was begun with other settings.
        DataError: If the teacher ends every document at once.
    """
    if not isinstance(getattr(teacher, "backbone", None), Decoder):
        raise ConfigError(
            f"a {type(teacher).__name__} cannot write a corpus", where="RUN", why="it does not keep keys and values", remedy="name a CLM"
        )
    Decoder.check(teacher.backbone_config, {"length": config.length})
    if output.suffix != ".jsonl":
        raise ConfigError(
            f"a corpus cannot be called {output.name}",
            where=str(output),
            why="a document is a line of JSON, and the end of a name says how a file is read",
            remedy="choose a name that ends in .jsonl",
        )
    if output.exists():
        raise ConfigError(f"{output.name} is there already", where=str(output), remedy="choose another name, or remove it")
    part = output.with_name(f"{output.name}.part")
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = _whole_batches(part, config.batch_size)
    size = config.batch_size
    if lines and [_line(document) for document in write_documents(teacher, config, 0, prompts)] != lines[:size]:
        raise ConfigError(
            f"{part.name} was begun with another teacher or other settings",
            where=str(part),
            why="its first documents would be written differently now",
            remedy="remove it, or give the settings it was begun with",
        )
    written = sum(int(json.loads(line)["tokens"]) for line in lines)
    part.touch()
    os.truncate(part, sum(len(line.encode()) for line in lines))
    with part.open("a", encoding="utf-8") as file:
        while written < config.tokens:
            documents = list(write_documents(teacher, config, len(lines) // size, prompts))
            if not any(document.tokens for document in documents):
                raise DataError(
                    "the teacher has nothing to write", where=str(part), why="it ends every text at once", remedy="give prompts"
                )
            new = [_line(document) for document in documents]
            file.writelines(new)
            file.flush()
            lines += new
            written += sum(document.tokens for document in documents)
            log.info("%d of %d tokens written", written, config.tokens)
    part.replace(output)
    return written


def write_documents(teacher: CLM, config: CorpusWritingConfig, batch: int, prompts: OrderedView | None) -> Iterator[Written]:
    """The documents of one batch.

    Args:
        teacher: Writes.
        config: How.
        batch: Which, from 0.
        prompts: Blocks whose beginnings are continued, or None.
    """
    tokenizer = teacher.tokenizer
    numbers = range(batch * config.batch_size, (batch + 1) * config.batch_size)
    if prompts is None:
        beginnings = [[tokenizer.bos_id]] * len(numbers)
    else:
        beginnings = [_beginning(prompts, number, config.prompt_length) for number in numbers]
    width = max(len(row) for row in beginnings)
    first = torch.tensor([[tokenizer.pad_id] * (width - len(row)) + row for row in beginnings], device=teacher.device)
    real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in beginnings], device=teacher.device)
    with evaluating(teacher):
        # the number of a document decides its draws: many begin alike
        stop = {tokenizer.bos_id, tokenizer.eos_id}
        written = write(teacher, first, real, [[number] for number in numbers], config.decoding(width), stop)
    for row, new in zip(beginnings, written, strict=True):
        yield Written(tokenizer.decode([*row, *new]), len(new))


def _beginning(prompts: OrderedView, number: int, length: int) -> list[int]:
    """The first tokens of a block, of the document that they end in."""
    example = prompts[number].cut(length)
    return example.input_ids[example.document_ids == example.document_ids[-1]].tolist()


def _line(document: Written) -> str:
    return json.dumps(document._asdict(), ensure_ascii=False) + "\n"


def _whole_batches(part: Path, size: int) -> list[str]:
    """What an interrupted writer left, but for a batch that is not whole: those after it depend on where batches begin."""
    if not part.exists():
        return []
    *whole, _ = part.read_text(encoding="utf-8", errors="replace").split("\n")  # other ends of lines may stand in a text
    lines = [f"{line}\n" for line in whole]
    return lines[: len(lines) // size * size]
