"""Masked language modelling over sentence pairs: do the two belong together, and in this order?"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.backbones import BackboneConfig
from lmlab.config import require
from lmlab.data.batch import Batch, Feed
from lmlab.data.masking import MaskingConfig
from lmlab.data.pairs import PairCollator
from lmlab.heads import PairHead
from lmlab.losses import Losses, Part
from lmlab.objectives.mlm import MLM
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.tokenizer import Tokenizer

NEGATIVES: dict[str, Literal["document", "order"]] = {"nsp": "document", "sop": "order"}
"""What a false pair is."""


class NextSentence(MLM):
    """Next-sentence or sentence-order prediction beside masked language modelling.

    Half of the pairs are false: the second sentence is from another document (`nsp`), or the two are swapped (`sop`). What is called
    a sentence is a stretch of whole sentences, so that two of them fill a row. The loss is the mean over masked tokens plus the mean
    over pairs, each over the whole step.

    Args:
        tokenizer: Gives vocabulary and special ids.
        backbone: Sizes and bricks of the encoder; it needs two segments.
        optimizer: How parameters move.
        schedule: Learning rate over the budget.
        length: Longest row, special tokens included.
        mask_prob: Share of tokens to predict.
        masking: What is masked, and by what it is replaced.
        pairs: `nsp` (BERT) or `sop` (ALBERT).

    Source: Devlin et al. 2019, "BERT", section 3.1, task 2, and appendix A.2; Lan et al. 2020, "ALBERT", section 3.1 (inter-sentence
    coherence loss).
    """

    pair_head: PairHead

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: BackboneConfig = BackboneConfig(num_segments=2),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        length: int = 128,
        mask_prob: float = 0.15,
        masking: MaskingConfig = MaskingConfig(),
        pairs: Literal["nsp", "sop"] = "nsp",
    ) -> None:
        """Stores the configs."""
        super().__init__(tokenizer, backbone, optimizer, schedule, length, mask_prob, masking)
        self.pairs = pairs
        require(pairs in NEGATIVES, self, "pairs", "there are two kinds of false pairs", "choose nsp or sop")
        require(backbone.num_segments >= 2, backbone, "num_segments", "the two sentences of a pair are two segments", "set it to 2")

    def feed(self) -> Feed:
        """Sentence pairs, CLS A SEP B SEP, half of them false."""
        alone = super().feed()
        return dataclasses.replace(
            alone,
            view="sentence_pairs",
            negatives=NEGATIVES[self.pairs],
            collate=PairCollator(alone.collate, self.pairs),  # type: ignore[arg-type]
            eval_collate=PairCollator(alone.eval_collate, self.pairs),  # type: ignore[arg-type]
        )

    def build(self, backbone: nn.Module | None = None) -> None:
        """Builds an encoder, BERT's prediction head, and a head that reads the CLS state."""
        super().build(backbone)
        self.pair_head = PairHead(self.backbone_config)

    def losses_of(self, states: Tensor, batch: Batch, nats: Tensor | None = None) -> Losses:
        """Cross-entropies of the masked tokens and of the pairs.

        Returns:
            Parts `mlm` and `nsp` or `sop`, in nats; outside training, monitors `accuracy` and `pair_accuracy`.
        """
        masked = super().losses_of(states, batch, nats)
        logits, labels = self.pair_head(states[:, 0]).float(), batch["pair_labels"]
        part = Part(F.cross_entropy(logits, labels, reduction="sum"), batch["counts"][self.pairs])
        monitors = masked.monitors
        if not self.training:
            monitors = {**monitors, "pair_accuracy": Part((logits.argmax(-1) == labels).sum(), part.count)}
        return Losses({**masked.parts, self.pairs: part}, monitors)

    def flops(self, batch: Batch) -> int:
        """Those of masked language modelling, and of the pairs' head."""
        return super().flops(batch) + 3 * self.pair_head.flops(len(batch["pair_labels"]))
