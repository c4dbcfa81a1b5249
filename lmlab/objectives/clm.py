"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.backbones import BackboneConfig, Decoder
from lmlab.config import require
from lmlab.data.batch import Batch, Example, Feed
from lmlab.data.packing import document_keys, stack
from lmlab.decoding import DecodingConfig, decode
from lmlab.errors import ConfigError
from lmlab.heads import LMHead
from lmlab.losses import Part
from lmlab.nn.cache import KVCache
from lmlab.nn.evaluation import evaluating
from lmlab.objectives.tokens import TokenObjective
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.run.samples import Piece, Sample
from lmlab.tokenizer import Tokenizer

PROBE = "A word,  two spaces\tand a tab\nÉté ﬁ① Ａ ½ \u200b漢字 \U0001f600 \x01" + "".join(
    chr(first) for first in [*range(0x21, 0x7F), *range(0xC0, 0x250), *range(0x3B1, 0x3C9), *range(0x410, 0x450), *range(0x4E00, 0x4E80)]
)
"""What a tokenizer must give back to be trusted with bytes: cases, spaces, compatibility forms, many scripts; all of it in form NFC."""


@dataclass(frozen=True)
class CLMCollator:
    """Labels are the block shifted by one; the block comes with one token of lookahead, so no position is without a label."""

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        """Stacks blocks of T + 1 tokens into inputs (B, T) and labels (B, T)."""
        tokens = stack(examples, "input_ids")
        labels = tokens[:, 1:].contiguous()
        return {
            "input_ids": tokens[:, :-1].contiguous(),
            "labels": labels,
            "counts": {"clm": torch.tensor([labels.numel()])},
            "tokens": torch.tensor([sum(e.num_raw_tokens for e in examples)]),
            **document_keys(np.stack([e.document_ids[:-1] for e in examples])),
        }


class CLM(TokenObjective):
    """Causal language modelling over packed blocks.

    Documents begin with the BOS token, which is also what the last token of the document before must predict, so every token of
    the text is predicted once.

    Args:
        tokenizer: Gives vocabulary and special ids.
        backbone: Sizes and bricks of the decoder.
        optimizer: How parameters move.
        schedule: Learning rate over the budget.
        length: Tokens in a block, at least 2.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.1, equation 1.
    """

    part = "clm"
    backbone: Decoder
    token_bytes: Tensor

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: BackboneConfig = BackboneConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        length: int = 128,
    ) -> None:
        """Stores the configs."""
        super().__init__(tokenizer, backbone, optimizer, schedule)
        self.length = length
        require(length >= 2, self, "length", "a block holds tokens and what comes before them", "128 is a good beginning")
        Decoder.check(backbone, {"length": length})

    def feed(self) -> Feed:
        """Packed blocks with one token of lookahead."""
        collate = CLMCollator()
        return Feed(view="blocks", length=self.length, lookahead=1, prefix=(self.tokenizer.bos_id,), collate=collate, eval_collate=collate)

    def build(self, backbone: nn.Module | None = None) -> None:
        """Builds a decoder and a language-modelling head, tied if the backbone says so."""
        config, size = self.backbone_config, self.tokenizer.vocab_size
        self.backbone = Decoder(config, size, self.tokenizer.pad_id) if backbone is None else Decoder.expect(backbone)
        self.head = LMHead(config, vocab_size=size, embedding=self.backbone.embedding)
        self.register_buffer("token_bytes", torch.from_numpy(self.tokenizer.token_bytes()), persistent=False)
        self._counts_bytes = tells_bytes(self.tokenizer)

    def rows_of(self, states: Tensor, batch: Batch) -> Tensor:
        """(B * T, D) states of every position."""
        return states.flatten(0, 1)

    def row_labels(self, batch: Batch) -> Tensor:
        """(B * T,) the token after each position."""
        return batch["labels"].flatten()

    def monitors(self, rows: Tensor, labels: Tensor, part: Part) -> dict[str, Part]:
        """`bits_per_byte`, if the tokenizer tells how many bytes a text has (`tells_bytes`): those of another text compare with nothing.

        Args:
            rows: (N, D).
            labels: (N,) int64.
            part: The loss.
        """
        return {"bits_per_byte": Part(part.sum.detach() / np.log(2), self.token_bytes[labels].sum())} if self._counts_bytes else {}

    def predicted_ids(self, batch: Batch) -> Tensor:
        """The likeliest token at each position, (B, T) int64."""
        return self.logits(batch).argmax(-1)

    def logits(self, batch: Batch) -> Tensor:
        """(B, T, V) scores of the next token at each position."""
        return self.head(self.states(batch))

    def states(self, batch: Batch) -> Tensor:
        """(B, T, D) states of each position, which know nothing of later ones."""
        keys = ("attention_mask", "document_ids", "position_ids")
        return self.backbone(batch["input_ids"], **{k: batch[k] for k in keys if k in batch})

    def generate(self, prompts: Sequence[str], config: DecodingConfig = DecodingConfig()) -> list[str]:
        """Continues texts; each new token costs one token's work, thanks to a cache of keys and values.

        Args:
            prompts: Beginnings; empty ones begin a document.
            config: How tokens are chosen.

        Returns:
            What was written after each prompt.
        """
        rows = [[self.tokenizer.bos_id, *self.tokenizer.encode(prompt)] for prompt in prompts]
        return [self.tokenizer.decode(new) for new in self.continue_ids(rows, config)]

    def continue_ids(self, rows: Sequence[Sequence[int]], config: DecodingConfig) -> list[list[int]]:
        """Continues rows of tokens, in one batch padded on the left; without dropout, also in the middle of training.

        Args:
            rows: Tokens of each prompt, BOS included.
            config: How tokens are chosen.

        Raises:
            ConfigError: If a learned position table is too short for prompt and continuation.
        """
        width = max(len(row) for row in rows)
        limit = self.backbone_config.max_length
        if self.backbone_config.position == "learned" and width + config.max_new_tokens > limit:
            raise ConfigError(
                f"{width} tokens of prompt and {config.max_new_tokens} new ones do not fit into {limit} positions",
                where="backbone.max_length",
                remedy=f"write at most {max(0, limit - width)} new tokens, or shorten the prompt",
            )
        real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=self.device)
        first = torch.tensor([[self.tokenizer.pad_id] * (width - len(row)) + list(row) for row in rows], device=self.device)
        cache, padded = KVCache(), not bool(real.all())

        def logits_of(tokens: Tensor) -> Tensor:
            begins = cache.length == 0 and padded
            keys = {"attention_mask": real, "position_ids": (real.long().cumsum(1) - 1).clamp(min=0)} if begins else {}
            return self.head(self.backbone(tokens, cache=cache, **keys)[:, -1])

        stop = {self.tokenizer.eos_id, self.tokenizer.bos_id}
        with evaluating(self):
            return decode(logits_of, first, rows, config, stop, self.tokenizer.special_ids - stop)

    def samples(self, examples: Sequence[Example], step: int) -> list[Sample]:
        """Continues the beginnings of texts.

        Args:
            examples: Blocks; the first quarter, from 2 to 32 tokens, is the prompt.
            step: Optimiser steps behind the model.
        """
        cut = min(max(2, min(32, self.length // 4)), self.length - 1)
        config = DecodingConfig(max_new_tokens=min(64, self.length - cut))
        prompts = [e.input_ids[:cut].tolist() for e in examples]
        written = self.continue_ids(prompts, config)
        decode_ids = self.tokenizer.decode
        return [
            Sample(step=step, pieces=(Piece(text=decode_ids(prompt)), Piece(text=decode_ids(new), by="model")))
            for prompt, new in zip(prompts, written, strict=True)
        ]

    def flops(self, batch: Batch) -> int:
        """Three times the forward pass: backward costs twice as much."""
        size, length = batch["input_ids"].shape
        return 3 * (self.backbone.flops(size, length) + self.head.flops(size * length))


def tells_bytes(tokenizer: Tokenizer) -> bool:
    """Whether the bytes of a text can be counted on its tokens, which bits per byte divide by.

    They cannot if text is lost on the way: spaces and unknown characters by `wordpiece`, upper case by `case: lower`, the form of
    characters by `nfkc`. `nfc`, which writes a letter and its accent in the shorter of two ways, loses nothing.

    Args:
        tokenizer: Asked to cut and restore a text that has a bit of everything, rather than believed by its name: a loaded one may
            have any rules.
    """
    ids = tokenizer.encode(PROBE)
    return tokenizer.decode(ids) == PROBE and int(tokenizer.token_bytes()[ids].sum()) == len(PROBE.encode())
