"""A store in memory, and feeds without a collator: for tests of views."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.data.batch import Batch, Feed
from lmlab.data.store import TokenStore
from lmlab.data.store.reading import StoreHeader


def collate(examples: Any, seed: int) -> Batch:
    raise NotImplementedError


def feed(view: Any, length: int, **settings: Any) -> Feed:
    return Feed(view=view, length=length, collate=collate, eval_collate=collate, **settings)


class MemoryStore(TokenStore):
    """A store made of lists: documents of sentences of tokens."""

    def __init__(self, documents: list[list[list[int]]]) -> None:
        flat = [[token for sentence in document for token in sentence] for document in documents]
        sizes = [len(sentence) for document in documents for sentence in document]
        header = {field.name: None for field in dataclasses.fields(StoreHeader)}
        header.update(split="train", num_documents=len(flat), num_tokens=sum(map(len, flat)))
        super().__init__(Path("memory"), StoreHeader(**header))  # type: ignore[arg-type]
        self.__dict__["tokens"] = np.array(list(itertools.chain.from_iterable(flat)), np.uint16)
        self.__dict__["offsets"] = np.cumsum([0, *map(len, flat)])
        self.__dict__["sentences"] = np.cumsum([0, *sizes])[:-1].astype(np.int64)
