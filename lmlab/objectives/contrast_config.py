"""What is compared with what, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from lmlab.config import check_choices, require
from lmlab.data.sentence_rows import Positives
from lmlab.nn.info_nce import LARGEST_SCALE
from lmlab.nn.pooling import Pooling


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """What is compared with what, and how.

    Args:
        positives: What belongs to a text: itself under another dropout (SimCSE), also with some tokens twice (`word_repetition`,
            ESimCSE), the passage after it in the document (`neighbours`), or what labelled data says.
        hard_negatives: Texts that do not belong to it, beside those of the other examples: none, or one that labelled data gives.
        hard_negative_weight: How often an example's own hard negative counts in its softmax.
        dup_rate: Most tokens to repeat, as a share of the text; for `word_repetition`.
        min_tokens: Shorter sentences are left out: they say too little to be told apart. None is 5, where sentences are read.
        temperature: Cosines are divided by it; of a learned one, the first value.
        temperature_kind: Whether it is learned, on a log scale and not below 0.01.
        pooling: How a row becomes a vector; `cls` needs an encoder.
        mlp: A dense layer and tanh after pooling: none, in training only, or also where vectors are used.
        mlm_weight: Share of masked language modelling beside; 0 for none. The texts are read once more for it.
        mask_prob: Share of tokens it predicts.

    Source: Gao et al. 2021, "SimCSE", section 3 (eq. 4), section 4 (eq. 5 and the weight of hard negatives), section 6 (pooling, MLM);
    Wu et al. 2022, "ESimCSE", section 3.1; Logeswaran & Lee 2018, "An Efficient Framework for Learning Sentence Representations",
    section 3, and Giorgi et al. 2021, "DeCLUTR", section 3 (neighbours); Radford et al. 2021 (CLIP), section 2.5 (temperature).
    """

    positives: Positives = "dropout"
    hard_negatives: Literal["none", "labelled"] = "none"
    hard_negative_weight: float = 1.0
    dup_rate: float = 0.32
    min_tokens: int | None = None
    temperature: float = 0.05
    temperature_kind: Literal["fixed", "learned"] = "fixed"
    pooling: Pooling = "cls"
    mlp: Literal["none", "train", "always"] = "train"
    mlm_weight: float = 0.0
    mask_prob: float = 0.15

    def __post_init__(self) -> None:
        """Refuses what is impossible, and settings that nothing reads."""
        check_choices(self)
        lowest = 1 / LARGEST_SCALE
        fits = self.temperature >= lowest if self.temperature_kind == "learned" else self.temperature > 0
        rule = f"it is positive and finite, and a learned one at least {lowest}"
        require(fits and self.temperature < math.inf, self, "temperature", rule, "0.05 is SimCSE's")
        require(0 < self.dup_rate <= 1, self, "dup_rate", "it is a share of the tokens", "0.32 is ESimCSE's")
        require(0 < self.hard_negative_weight < math.inf, self, "hard_negative_weight", "it is positive and finite", "1 counts it once")
        require(self.min_tokens is None or self.min_tokens >= 1, self, "min_tokens", "a sentence has a token", "1 keeps all sentences")
        require(0 <= self.mlm_weight < math.inf, self, "mlm_weight", "it is finite and not negative", "0 for none; SimCSE tries 0.1")
        self._needs("dup_rate", self.positives == "word_repetition", "set positives to word_repetition")
        self._needs("hard_negative_weight", self.hard_negatives != "none", "set hard_negatives to labelled")
        self._needs("mask_prob", self.mlm_weight > 0, "set mlm_weight above 0")
        self._needs("min_tokens", self.positives not in ("neighbours", "labelled"), "read single sentences")
        labelled = self.hard_negatives == "none" or self.positives == "labelled"
        require(labelled, self, "hard_negatives", "they come from labelled data, as the positives do", "set positives to labelled")

    @property
    def fewest_tokens(self) -> int:
        """Raw tokens of the shortest sentence that is read."""
        return 1 if self.positives in ("neighbours", "labelled") else 5 if self.min_tokens is None else self.min_tokens

    def _needs(self, name: str, is_read: bool, remedy: str) -> None:
        default = next(field.default for field in fields(self) if field.name == name)
        require(is_read or getattr(self, name) == default, self, name, "nothing reads it", f"leave it out, or {remedy}")
