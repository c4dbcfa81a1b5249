"""Several corpora mixed in given shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.config import fingerprint, require
from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.order import hash64
from lmlab.errors import DataError


@dataclass(frozen=True, kw_only=True)
class MixtureCorpus(Corpus):
    """Several corpora, interleaved so that each takes its share of the *characters* at any point of the text.

    The next document always comes from the part that is furthest behind its share, so the mixture is the same every time without
    any randomness, and its shares are exact up to one document.

    When a part ends:
    - with `when_a_part_ends: repeat` it starts again from its beginning, until every part has been read once. A small part
      with a large weight is seen several times; these repeats are no duplicates, and go to the same split as the first reading.
    - with `when_a_part_ends: stop` the mixture ends with it. Nothing is repeated, and the rest of the larger parts is not used.
    - without `weights` every part is read exactly once, one after the other.

    Args:
        parts: Corpora by name.
        weights: Weight of each part, above 0; None to join the parts without weighting.
        temperature: T in share_i ~ weight_i^(1/T): 1 keeps the weights, larger values bring them closer together.
        when_a_part_ends: `repeat` or `stop`.

    Source: Conneau & Lample 2019, "Cross-lingual Language Model Pretraining", section 3.1; Raffel et al. 2020, "Exploring the Limits of
    Transfer Learning", section 3.5.2 (temperature-scaled mixing; alpha there is 1/T).
    """

    parts: Mapping[str, Corpus]
    weights: Mapping[str, float] | None = None
    temperature: float = 1.0
    when_a_part_ends: Literal["repeat", "stop"] = "repeat"

    def __post_init__(self) -> None:
        """Checks the shares."""
        require(len(self.parts) > 0, self, "parts", "a mixture has parts", "name at least one corpus")
        require(self.temperature > 0, self, "temperature", "shares are powers of 1/T", "1 keeps the weights as they are")
        if self.weights is None:
            require(self.temperature == 1, self, "temperature", "without weights it has no effect", "set weights, or leave it out")
        else:
            require(
                set(self.weights) == set(self.parts),
                self,
                "weights",
                f"there is one for each of {sorted(self.parts)}",
                "use the same names",
            )
            require(min(self.weights.values()) > 0, self, "weights", "a part without weight is not read", "leave the part out")

    def shares(self) -> dict[str, float]:
        """Share of the characters that each part is to have; they add up to 1. Empty without weights."""
        scaled = {name: weight ** (1 / self.temperature) for name, weight in (self.weights or {}).items()}
        return {name: scaled[name] / sum(scaled.values()) for name in self.parts if scaled}

    def documents(self) -> Iterator[Document]:
        """Documents of all parts, in the shares asked for."""
        if self.weights is None:
            for part in self.parts.values():
                yield from part.documents()
            return
        shares, taken = self.shares(), dict.fromkeys(self.parts, 0)
        readers = {name: _Reader(part) for name, part in self.parts.items()}
        while True:
            name = min(self.parts, key=lambda part: taken[part] / shares[part])
            document = readers[name].next()
            if document is not None:
                taken[name] += max(1, len(document.text))  # an empty document moves on too
                yield document
            elif not taken[name]:
                raise DataError(f"part '{name}' of the mixture holds no documents", where=f"parts.{name}", remedy="leave the part out")
            elif self.when_a_part_ends == "stop" or all(reader.num_passes for reader in readers.values()):
                return

    def fingerprint(self) -> str:
        """Fingerprints of the parts, their shares, and what happens at an end."""
        parts = {name: part.fingerprint() for name, part in self.parts.items()}
        return fingerprint(["mixture", list(parts.items()), list(self.shares().items()), self.when_a_part_ends])

    def describe(self) -> dict[str, Any]:
        """The parts and their shares."""
        parts = {name: part.describe() for name, part in self.parts.items()}
        return {"kind": type(self).__name__, "parts": parts, "shares": self.shares(), "when_a_part_ends": self.when_a_part_ends}


class _Reader:
    """Reads a corpus again and again."""

    def __init__(self, part: Corpus) -> None:
        self.part, self.num_passes = part, 0
        self._documents = part.documents()

    def next(self) -> Document | None:
        """The next document; None at the end of a pass, after which the next pass begins."""
        document = next(self._documents, None)
        if document is None:
            self.num_passes += 1
            self._documents = self.part.documents()
            return None
        if not (self.num_passes or document.repeat):
            return document
        # a part may be a mixture with repeats of its own, so both numbers count; 63 bits fit into int64
        return document._replace(repeat=hash64(document.repeat, self.num_passes) >> 1)
