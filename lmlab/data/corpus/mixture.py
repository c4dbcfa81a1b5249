"""Several corpora mixed in given shares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.config import check_choices, fingerprint, require
from lmlab.data.cleaning import CleaningConfig, CleaningCounts, clean, text_hash
from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.order import hash64
from lmlab.errors import DataError

_FORMAT = 2  # raise it when the order of the documents changes, so that old stores are not mistaken for new ones
_LEAST_SHARE = 1e-9  # for less, all other parts would be read more often than anybody waits for


@dataclass(frozen=True, kw_only=True)
class MixtureCorpus(Corpus):
    """Several corpora, interleaved so that each takes its share of the *characters* at any point of the text.

    The next document always comes from the part that is furthest behind its share, so the mixture is the same every time without
    any randomness. Only characters count that are left when the documents are cleaned: what is empty, too short, skipped, or equal
    to a document before it takes nothing from the share of its part. So the shares hold in the store, exact up to one document;
    its header says which ones came out. Telling duplicates takes about 100 bytes of memory a document.

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
        """Checks the parts and shares."""
        check_choices(self)
        by_name = isinstance(self.parts, Mapping) and all(isinstance(part, Corpus) for part in self.parts.values())
        require(by_name, self, "parts", "it has corpora by name", "{name: open_corpus('austen')}, or {name: austen} in YAML")
        require(len(self.parts) > 0, self, "parts", "a mixture has parts", "name at least one corpus")
        above_zero = _is_number(self.temperature) and self.temperature > 0
        require(above_zero, self, "temperature", "shares are powers of 1/T", "1 keeps the weights as they are")
        if self.weights is None:
            require(self.temperature == 1, self, "temperature", "without weights it has no effect", "set weights, or leave it out")
            return
        rule = f"there is one for each of {sorted(self.parts)}"
        require(isinstance(self.weights, Mapping) and set(self.weights) == set(self.parts), self, "weights", rule, "use the same names")
        positive = all(_is_number(weight) and weight > 0 for weight in self.weights.values())
        require(positive, self, "weights", "they are finite numbers above 0", "leave a part out that is not to be read")
        smallest = min(self.shares(), key=self.shares().__getitem__)
        rule = f"it leaves '{smallest}' a share of {self.shares()[smallest]:.1g}, and the least is {_LEAST_SHARE:g}"
        field = "weights" if self.temperature == 1 else "temperature"
        require(self.shares()[smallest] >= _LEAST_SHARE, self, field, rule, "bring the weights closer together, or leave the part out")

    def shares(self) -> dict[str, float]:
        """Share of the characters that each part is to have; they add up to 1. Empty without weights."""
        if self.weights is None:
            return {}
        logs = {name: math.log(self.weights[name]) / self.temperature for name in self.parts}
        largest = max(logs.values())  # powers of the weights themselves may be too large for a number
        scaled = {name: math.exp(value - largest) for name, value in logs.items()}
        return {name: value / sum(scaled.values()) for name, value in scaled.items()}

    def documents(self) -> Iterator[Document]:
        """Documents of all parts, in the shares asked for under the default cleaning."""
        return self.documents_for(CleaningConfig())

    def documents_for(self, cleaning: CleaningConfig) -> Iterator[Document]:
        """Documents of all parts, in the shares asked for.

        Args:
            cleaning: How they will be cleaned.

        Raises:
            DataError: If nothing is left of a part.
        """
        if self.weights is None:
            for name, part in self.parts.items():
                yield from (document._replace(part=name) for document in part.documents_for(cleaning))
            return
        shares, taken = self.shares(), dict.fromkeys(self.parts, 0)
        before_pass = dict(taken)
        readers = {name: _Reader(part, cleaning) for name, part in self.parts.items()}
        size_of = _Sizes(cleaning)
        while True:
            name = min(self.parts, key=lambda part: taken[part] / shares[part])
            document = readers[name].next()
            if document is not None:
                taken[name] += size_of(document)
                yield document._replace(part=name)
            elif taken[name] == before_pass[name]:  # it would be opened again for ever
                raise DataError(
                    f"part '{name}' of the mixture holds no documents that are kept",
                    where=f"parts.{name}",
                    why="all are empty, dropped by the cleaning, or equal to documents before them",
                    remedy="check its files, or leave the part out",
                )
            elif self.when_a_part_ends == "stop" or all(reader.num_passes for reader in readers.values()):
                return
            else:
                before_pass[name] = taken[name]

    def characters_at_most(self) -> float:
        """The sum of the parts; infinity with weights, because parts may be repeated."""
        return sum(part.characters_at_most() for part in self.parts.values()) if self.weights is None else math.inf

    def fingerprint(self) -> str:
        """Fingerprints of the parts, their shares, and what happens at an end."""
        parts = {name: part.fingerprint() for name, part in self.parts.items()}
        return fingerprint(["mixture", _FORMAT, list(parts.items()), list(self.shares().items()), self.when_a_part_ends])

    def describe(self) -> dict[str, Any]:
        """The parts and their shares."""
        parts = {name: part.describe() for name, part in self.parts.items()}
        return {"kind": type(self).__name__, "parts": parts, "shares": self.shares(), "when_a_part_ends": self.when_a_part_ends}


class _Sizes:
    """How many characters the store keeps of each document of a stream."""

    def __init__(self, cleaning: CleaningConfig) -> None:
        self.cleaning = cleaning
        self._seen: set[int] = set()

    def __call__(self, document: Document) -> int:
        """Characters of the next document; 0 if it will be dropped."""
        kept = next(clean([document], self.cleaning, CleaningCounts()), None)
        if kept is None:
            return 0
        if self.cleaning.duplicates == "drop":
            key = hash64(text_hash(kept.text), kept.repeat)
            if key in self._seen:
                return 0
            self._seen.add(key)
        return len(kept.text)


class _Reader:
    """Reads a corpus again and again."""

    def __init__(self, part: Corpus, cleaning: CleaningConfig) -> None:
        self.part, self.cleaning, self.num_passes = part, cleaning, 0
        self._documents = part.documents_for(cleaning)

    def next(self) -> Document | None:
        """The next document; None at the end of a pass, after which the next pass begins."""
        document = next(self._documents, None)
        if document is None:
            self.num_passes += 1
            self._documents = self.part.documents_for(self.cleaning)
            return None
        if not (self.num_passes or document.repeat):
            return document
        # a part may be a mixture with repeats of its own, so both numbers count; 63 bits fit into int64
        return document._replace(repeat=hash64(document.repeat, self.num_passes) >> 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
