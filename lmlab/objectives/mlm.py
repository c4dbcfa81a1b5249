"""Masked language modelling: predict masked tokens from both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.backbones import BackboneConfig, Encoder
from lmlab.config import require
from lmlab.data.batch import IGNORE_INDEX, Batch, Example, Feed
from lmlab.data.masking import MaskingConfig, MLMCollator
from lmlab.errors import DataError
from lmlab.heads import MLMHead
from lmlab.nn.evaluation import evaluating
from lmlab.objectives.tokens import TokenObjective
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.run.samples import Piece, Sample, merge
from lmlab.tokenizer import Tokenizer

READ = ("attention_mask", "document_ids", "position_ids", "token_type_ids")
"""Keys of a batch that an encoder reads besides the tokens."""


class Filling(NamedTuple):
    """One choice for a mask.

    Args:
        text: The token as text.
        probability: Among ordinary tokens, in [0, 1].
    """

    text: str
    probability: float


class MLM(TokenObjective):
    """Masked language modelling over packed blocks, masked anew in every epoch.

    The head runs on the masked positions only.

    Args:
        tokenizer: Gives vocabulary and special ids.
        backbone: Sizes and bricks of the encoder.
        optimizer: How parameters move.
        schedule: Learning rate over the budget.
        length: Tokens in a block, special tokens included.
        mask_prob: Share of tokens to predict.
        masking: What is masked, and by what it is replaced.

    Source: Devlin et al. 2019, "BERT", section 3.1, task 1; Liu et al. 2019, "RoBERTa", section 4.1 (dynamic masking).
    """

    part = "mlm"
    backbone: Encoder

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: BackboneConfig = BackboneConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        length: int = 128,
        mask_prob: float = 0.15,
        masking: MaskingConfig = MaskingConfig(),
    ) -> None:
        """Stores the configs."""
        super().__init__(tokenizer, backbone, optimizer, schedule)
        self.length, self.mask_prob, self.masking = length, mask_prob, masking
        Encoder.check(backbone, {"length": length})
        require(
            0 < mask_prob < 1, self, "mask_prob", "a masking rate lies between 0 and 1", "0.15 is BERT's, 0.3 to 0.4 often learns faster"
        )

    def feed(self) -> Feed:
        """Packed blocks, each document between CLS and SEP; the evaluation masks at a fixed rate, the same positions every time."""
        tokenizer = self.tokenizer
        collate = MLMCollator(
            self.masking, self.mask_prob, tokenizer.mask_id, tokenizer.pad_id, tokenizer.vocab_size, tuple(sorted(tokenizer.special_ids))
        )
        frozen = dataclasses.replace(self.masking, final_prob=None, final_at_examples=None)
        return Feed(
            view="blocks",
            length=self.length,
            collate=collate,
            eval_collate=dataclasses.replace(collate, config=frozen, prob=self.masking.eval_prob),
            prefix=(tokenizer.cls_id,),
            suffix=(tokenizer.sep_id,),
            word_starts=self.masking.chinese if self.masking.unit == "word" else "none",
        )

    def build(self, backbone: nn.Module | None = None) -> None:
        """Builds an encoder and BERT's prediction head, tied if the backbone says so."""
        config, size = self.backbone_config, self.tokenizer.vocab_size
        self.backbone = Encoder(config, size, self.tokenizer.pad_id) if backbone is None else Encoder.expect(backbone)
        self.head = MLMHead(config, vocab_size=size, embedding=self.backbone.embedding)

    def rows_of(self, states: Tensor, batch: Batch) -> Tensor:
        """(N, D) states of the masked positions."""
        return states.flatten(0, 1).index_select(0, batch["supervised"])

    def row_labels(self, batch: Batch) -> Tensor:
        """(N,) what stood at the masked positions."""
        return batch["labels"].flatten().index_select(0, batch["supervised"])

    def predicted_ids(self, batch: Batch) -> Tensor:
        """The likeliest token at each masked position, (B, T) int64; `IGNORE_INDEX` elsewhere."""
        flat = torch.full_like(batch["labels"], IGNORE_INDEX).flatten()
        return flat.index_copy(0, batch["supervised"], self.head(self.rows_of(self.states(batch), batch)).argmax(-1)).view_as(
            batch["labels"]
        )

    def states(self, batch: Batch) -> Tensor:
        """(B, T, D) contextual states."""
        return self.backbone(batch["input_ids"], **{k: batch[k] for k in READ if k in batch})

    def fill(self, text: str, num_choices: int = 5) -> list[list[Filling]]:
        """Fills every mask of a text; without dropout, also in the middle of training.

        Args:
            text: With the mask token, written as the tokenizer spells it, in one or more places.
            num_choices: Likeliest tokens to return for each place.

        Returns:
            Choices for each mask, likeliest first.

        Raises:
            DataError: If there is no mask in the text.
        """
        tokenizer = self.tokenizer
        ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode(text, parse_special=True), tokenizer.sep_id]], device=self.device)
        places = (ids[0] == tokenizer.mask_id).nonzero().squeeze(1)
        if not len(places):
            mask = tokenizer.token(tokenizer.mask_id)
            raise DataError("there is nothing to fill in", where=repr(text[:80]), remedy=f"write {mask} where a token is missing")
        with evaluating(self):
            probs, choices = self._ordinary_probs(self.states({"input_ids": ids})[0, places]).topk(num_choices)
        return [
            [Filling(tokenizer.decode([token]), prob) for token, prob in zip(row.tolist(), chances.tolist(), strict=True)]
            for row, chances in zip(choices, probs, strict=True)
        ]

    def samples(self, examples: Sequence[Example], step: int) -> list[Sample]:
        """Fills the masks of texts, the likeliest token for each.

        Args:
            examples: Blocks; their first 64 tokens are masked as in evaluation.
            step: Optimiser steps behind the model.
        """
        short = [e.cut(min(64, self.length)) for e in examples]
        batch = self.feed().eval_collate(short, 0)
        on_device = {key: batch[key].to(self.device) for key in ("input_ids", *READ) if key in batch}
        with evaluating(self):
            probs, choices = self._ordinary_probs(self.states(on_device)).max(-1)
        samples = []
        for row, example in enumerate(short):
            length = len(example.input_ids)
            masked = batch["labels"][row, :length].numpy() != IGNORE_INDEX
            filled = np.where(masked, choices[row, :length].cpu().numpy(), example.input_ids)
            texts, truths = (self.tokenizer.pieces(ids.tolist()) for ids in (filled, example.input_ids))
            pieces = [  # the corpus's from the corpus: half a character between masks would read otherwise at each stage
                Piece(text=text, by="model", truth=truth, probability=probs[row, i].item()) if masked[i] else Piece(text=truth)
                for i, (text, truth) in enumerate(zip(texts, truths, strict=True))
            ]
            samples.append(Sample(step=step, pieces=merge(pieces)))
        return samples

    def _ordinary_probs(self, states: Tensor) -> Tensor:
        special = torch.tensor(sorted(self.tokenizer.special_ids), device=states.device)
        return self.head(states).float().index_fill(-1, special, -torch.inf).softmax(-1)

    def flops(self, batch: Batch) -> int:
        """Three times the forward pass; the head sees masked rows only."""
        size, length = batch["input_ids"].shape
        return 3 * (self.backbone.flops(size, length) + self.head.flops(len(batch["supervised"])))
