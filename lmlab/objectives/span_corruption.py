"""Span corruption: write down the spans that were dropped from the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmlab.backbones import BackboneConfig, EncoderDecoder
from lmlab.config import require
from lmlab.data.batch import Batch, Example, Feed
from lmlab.data.spans import SpanCollator, SpanLengths, span_lengths
from lmlab.decoding import DecodingConfig, decode
from lmlab.errors import ConfigError
from lmlab.heads import LMHead
from lmlab.nn.cache import KVCache
from lmlab.nn.evaluation import evaluating
from lmlab.objectives.tokens import TokenObjective
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.run.samples import Piece, Sample, merge
from lmlab.tokenizer import Tokenizer


class SpanCorruption(TokenObjective):
    """T5's denoising objective over packed blocks.

    The length of the raw text is chosen so that input and target come out full, without padding.

    Args:
        tokenizer: Gives vocabulary and sentinels.
        backbone: Sizes and bricks of encoder and decoder.
        optimizer: How parameters move.
        schedule: Learning rate over the budget.
        length: Tokens the encoder sees, EOS included.
        noise_density: Share of tokens dropped.
        mean_span: Mean tokens in a dropped span.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", sections
    3.1.4 and 3.3.4 (15 %, mean span 3).
    """

    part = "span_corruption"
    backbone: EncoderDecoder

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: BackboneConfig = BackboneConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        length: int = 128,
        noise_density: float = 0.15,
        mean_span: float = 3.0,
    ) -> None:
        """Stores the configs."""
        super().__init__(tokenizer, backbone, optimizer, schedule)
        self.length, self.noise_density, self.mean_span = length, noise_density, mean_span
        require(0 < noise_density < 1, self, "noise_density", "a share lies between 0 and 1", "0.15 is T5's")
        require(mean_span >= 1, self, "mean_span", "a span has at least one token", "3.0 is T5's")
        sizes = span_lengths(length, noise_density, mean_span)
        EncoderDecoder.check(backbone, {"length": sizes.inputs, "length (by the targets that follow from it)": sizes.targets})

    @property
    def sizes(self) -> SpanLengths:
        """Lengths of text, input and target."""
        sizes = span_lengths(self.length, self.noise_density, self.mean_span)
        if sizes.spans > len(self.tokenizer.sentinel_ids):
            raise ConfigError(
                f"an input of {self.length} tokens needs {sizes.spans} sentinels, the tokenizer has {len(self.tokenizer.sentinel_ids)}",
                where="tokenizer.num_sentinels",
                remedy=f"set tokenizer.num_sentinels to {sizes.spans} or more, or a longer mean_span",
            )
        return sizes

    def feed(self) -> Feed:
        """Packed blocks without special tokens; the collator adds sentinels and EOS."""
        sizes, tokenizer = self.sizes, self.tokenizer
        collate = SpanCollator(sizes, tokenizer.sentinel_ids, tokenizer.eos_id, tokenizer.pad_id)
        return Feed(view="blocks", length=sizes.raw, collate=collate, eval_collate=collate)

    def build(self, backbone: nn.Module | None = None) -> None:
        """Builds an encoder-decoder and a language-modelling head, tied if the backbone says so."""
        config, size = self.backbone_config, self.tokenizer.vocab_size
        self.backbone = EncoderDecoder(config, size, self.tokenizer.pad_id) if backbone is None else EncoderDecoder.expect(backbone)
        self.head = LMHead(config, vocab_size=size, embedding=self.backbone.embedding)

    def rows_of(self, states: Tensor, batch: Batch) -> Tensor:
        """(B * T, D) states of the decoder at each target position."""
        return states.flatten(0, 1)

    def row_labels(self, batch: Batch) -> Tensor:
        """(B * T,) the target tokens."""
        return batch["labels"].flatten()

    def predicted_ids(self, batch: Batch) -> Tensor:
        """The likeliest token at each position, (B, T) int64."""
        return self.logits(batch).argmax(-1)

    def logits(self, batch: Batch) -> Tensor:
        """(B, T, V) scores of each target token."""
        return self.head(self.states(batch))

    def states(self, batch: Batch) -> Tensor:
        """(B, T, D) states of the decoder at each target position."""
        keys = ("attention_mask", "document_ids", "position_ids", "decoder_attention_mask", "decoder_document_ids", "decoder_position_ids")
        return self.backbone(batch["input_ids"], batch["decoder_input_ids"], **{k: batch[k] for k in keys if k in batch})

    def fill(self, rows: Sequence[Sequence[int]], config: DecodingConfig = DecodingConfig(temperature=0)) -> list[dict[int, list[int]]]:
        """Writes the spans that sentinels stand for; without dropout, also in the middle of training.

        Args:
            rows: Tokens with sentinels, without EOS.
            config: How tokens are chosen.

        Returns:
            For each row the tokens written for each sentinel.

        Raises:
            ConfigError: If a learned position table is too short for a row or for what is to be written.
        """
        tokenizer = self.tokenizer
        width, limit = max(len(row) for row in rows) + 1, self.backbone_config.max_length
        if self.backbone_config.position == "learned" and max(width, config.max_new_tokens) > limit:
            raise ConfigError(
                f"{width} tokens to read and {config.max_new_tokens} to write do not fit into {limit} positions each",
                where="backbone.max_length",
                remedy=f"write at most {limit} new tokens, and shorten the text to {limit - 1} tokens",
            )
        ids = torch.tensor([[*row, tokenizer.eos_id, *[tokenizer.pad_id] * (width - 1 - len(row))] for row in rows], device=self.device)
        mask = torch.arange(width, device=self.device) < torch.tensor([[len(row) + 1] for row in rows], device=self.device)
        padded = None if bool(mask.all()) else mask
        cache = KVCache()

        def logits_of(tokens: Tensor) -> Tensor:
            return self.head(self.backbone(None, tokens, encoder_states=states, attention_mask=padded, cache=cache)[:, -1])

        start = torch.full((len(rows), 1), tokenizer.pad_id, device=self.device)
        banned = tokenizer.special_ids - {tokenizer.eos_id, *tokenizer.sentinel_ids}
        with evaluating(self):
            states = self.backbone.encode(ids, attention_mask=padded)
            written = decode(logits_of, start, rows, config, {tokenizer.eos_id}, banned)
        return [_by_sentinel(row, tokenizer.sentinel_ids) for row in written]

    def samples(self, examples: Sequence[Example], step: int) -> list[Sample]:
        """Fills the gaps of texts, greedily.

        Args:
            examples: Blocks, corrupted as in evaluation; the first 64 tokens of the input are shown.
            step: Optimiser steps behind the model.
        """
        batch = self.feed().eval_collate(examples, 0)
        sentinels, decode_ids = set(self.tokenizer.sentinel_ids), self.tokenizer.decode
        rows = [row[:-1].tolist()[:64] for row in batch["input_ids"]]
        truths = [_by_sentinel(row[:-1].tolist(), self.tokenizer.sentinel_ids) for row in batch["labels"]]
        fillings = self.fill(rows, DecodingConfig(temperature=0, max_new_tokens=self.sizes.targets))
        samples = []
        for row, truth, filling in zip(rows, truths, fillings, strict=True):
            pieces = [
                Piece(text=decode_ids(filling.get(token, [])), by="model", truth=decode_ids(truth[token]))
                if token in sentinels
                else Piece(text=decode_ids([token]))
                for token in row
            ]
            samples.append(Sample(step=step, pieces=merge(pieces)))
        return samples

    def flops(self, batch: Batch) -> int:
        """Three times the forward pass of both stacks."""
        size, source = batch["input_ids"].shape
        target = batch["labels"].shape[1]
        return 3 * (self.backbone.flops(size, source, target) + self.head.flops(size * target))


def _by_sentinel(tokens: Sequence[int], sentinel_ids: Sequence[int]) -> dict[int, list[int]]:
    """Splits a target at its sentinels; what stands before the first is dropped."""
    known = set(sentinel_ids)
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in tokens:
        if token in known:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return spans
