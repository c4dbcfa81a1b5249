"""Contrastive learning: texts that belong together get vectors that are near each other, and far from those of other texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lmlab.backbones import BackboneConfig, Decoder, Encoder
from lmlab.config import require
from lmlab.data.batch import Batch, Example, Feed
from lmlab.data.loader import EVAL_SEED
from lmlab.data.masking import MLMCollator
from lmlab.data.sentence_rows import SentenceRows, chunk
from lmlab.losses import Losses, Means, Part
from lmlab.nn.evaluation import with_dropout
from lmlab.nn.gathering import gather, rank_and_size
from lmlab.nn.info_nce import LARGEST_SCALE, excluded, info_nce, log_scale_of
from lmlab.nn.init import init_linear
from lmlab.nn.pooling import pool
from lmlab.nn.vector_quality import effective_rank, moments, potentials, squared_distances
from lmlab.objectives.base import Objective
from lmlab.objectives.contrast_config import ContrastConfig
from lmlab.objectives.embedding import ROWS, embed_rows, nearest, rows_of_texts
from lmlab.objectives.grad_cache import VectorObjective
from lmlab.objectives.mlm import MLM, READ
from lmlab.objectives.nested import build_on
from lmlab.objectives.passes import Pass, Step
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.run.samples import Piece, Sample
from lmlab.tokenizer import Tokenizer

DROPOUTS = ("dropout", "embedding_dropout", "attention_dropout", "feedforward_dropout", "output_dropout")
SHOWN_NEIGHBOURS = 3


class Contrastive(VectorObjective):
    """Contrastive learning of sentence vectors, on an encoder or a decoder.

    Each text must find the one that belongs to it among those of the whole global batch, all ranks together. Where the same text is in the
    batch twice, the other copies, and what belongs to them, are left out of the comparison. In an evaluation the batch of one rank is
    compared; two views that differ in nothing but dropout are then drawn with dropout too, always the same.

    Args:
        tokenizer: Gives vocabulary and special ids.
        backbone: Sizes and bricks of the network.
        optimizer: How parameters move.
        schedule: Learning rate over the budget.
        length: Longest text in tokens, special tokens included.
        family: Whether texts are read by an encoder, or by a decoder, whose `last` state has seen all of a text.
        contrast: What is compared with what, and how.

    Source: Gao et al. 2021, "SimCSE: Simple Contrastive Learning of Sentence Embeddings", section 3, equation 4, and section 4,
    equation 5; the others in `ContrastConfig`.
    """

    texts_per_sample: ClassVar[int] = 100

    backbone: Encoder | Decoder

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: BackboneConfig = BackboneConfig(dropout=0.1),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        length: int = 64,
        family: Literal["encoder", "decoder"] = "encoder",
        contrast: ContrastConfig = ContrastConfig(),
    ) -> None:
        """Stores the configs."""
        super().__init__(tokenizer, backbone, optimizer, schedule)
        self.length, self.family, self.contrast = length, family, contrast
        require(family in ("encoder", "decoder"), self, "family", "there are two", "choose encoder or decoder")
        require(length >= 3, self, "length", "a text stands between two special tokens", "64 holds most sentences")
        decoder = family == "decoder"
        rule = "the first token of a decoder sees no other"
        require(not decoder or contrast.pooling != "cls", contrast, "pooling", rule, "set it to last or mean, or family to encoder")
        rule = "a decoder sees no masked gaps from both sides"
        require(not decoder or contrast.mlm_weight == 0, contrast, "mlm_weight", rule, "set it to 0, or family to encoder")
        drops = contrast.positives != "dropout" or any(getattr(backbone, name) for name in DROPOUTS)
        rule = "the two views of a text differ in nothing else, so there would be nothing to learn"
        require(drops, backbone, "dropout", rule, "0.1 is SimCSE's; or choose other positives")
        (Decoder if decoder else Encoder).check(backbone, {"length": length})
        masked = {"length": length, "mask_prob": contrast.mask_prob}
        self.mlm = MLM(tokenizer, backbone, optimizer, schedule, **masked) if contrast.mlm_weight else None

    def feed(self) -> Feed:
        """Sentences, or pairs of passages that follow each other; the loss is over the whole batch."""
        contrast, masked = self.contrast, self.mlm.feed() if self.mlm is not None else None
        pairs = contrast.positives == "neighbours"

        def collator(masking: object) -> SentenceRows:
            return SentenceRows(
                contrast.positives,
                contrast.hard_negatives,
                self.length,
                *self._specials,
                self.tokenizer.pad_id,
                contrast.dup_rate,
                masking if isinstance(masking, MLMCollator) else None,
            )

        return Feed(
            view="sentence_pairs" if pairs else "tuples" if contrast.positives == "labelled" else "sentences",
            # a pair has one prefix, and room for two texts
            length=2 * self.length - len(self._specials[0]) if pairs else self.length,
            collate=collator(masked and masked.collate),
            eval_collate=collator(masked and masked.eval_collate),
            prefix=self._specials[0],
            suffix=self._specials[1],
            min_tokens=contrast.fewest_tokens,
            num_texts=2 if contrast.hard_negatives == "none" else 3,
            loss_over="batch",
            min_examples=2,
        )

    @property
    def _specials(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tokenizer = self.tokenizer
        return ((tokenizer.cls_id,), (tokenizer.sep_id,)) if self.family == "encoder" else ((tokenizer.bos_id,), (tokenizer.eos_id,))

    def build(self, backbone: nn.Module | None = None) -> None:
        """Builds the backbone, and what the settings ask for: the layer after pooling, a temperature, a masked-language-model head."""
        config, contrast = self.backbone_config, self.contrast
        kind = Encoder if self.family == "encoder" else Decoder
        self.backbone = kind(config, self.tokenizer.vocab_size, self.tokenizer.pad_id) if backbone is None else kind.expect(backbone)
        self.projector = nn.Linear(config.hidden_size, config.hidden_size) if contrast.mlp != "none" else None
        if self.projector is not None:
            init_linear(self.projector, config.init_config())
        learned = contrast.temperature_kind == "learned"
        self.logit_scale = nn.Parameter(torch.tensor([log_scale_of(contrast.temperature)])) if learned else None
        if self.mlm is not None:
            build_on(self.mlm, self.backbone)

    @property
    def products(self) -> tuple[Objective, ...]:
        """Itself, and the masked language model beside it if there is one, which can fill gaps."""
        return (self,) if self.mlm is None else (self, self.mlm)

    def pooled(self, batch: Batch) -> Tensor:
        """One vector for each row, before the layer after pooling: (R, D)."""
        states = self.backbone(batch["input_ids"], **{k: batch[k] for k in READ if k in batch})
        return pool(states, batch.get("attention_mask"), self.contrast.pooling)

    def resting(self, pooled: Tensor) -> Tensor:
        """The vectors that are used after the training, (R, D), of pooled states."""
        return self._projected(pooled) if self.contrast.mlp == "always" else pooled

    def vectors(self, batch: Batch) -> Tensor:
        """The vectors that the loss compares, (B, V, D)."""
        return self._projected(self.pooled(batch)).unflatten(0, batch["texts"].shape)

    def _projected(self, pooled: Tensor) -> Tensor:
        return pooled if self.projector is None else torch.tanh(self.projector(pooled))

    def compare(self, vectors: Tensor, batch: Batch) -> Losses:
        """InfoNCE of each text against all candidates; in training those of all ranks.

        Args:
            vectors: (B, V, D): the text, its positive, its hard negative if there is one.
            batch: The whole batch.

        Returns:
            The part `contrastive`, in nats; outside training the share of texts that found theirs.
        """
        texts, size, device = batch["texts"], len(vectors), vectors.device
        rank, others, all_texts = 0, vectors[:, 1:], texts
        if self.training:
            rank, others, all_texts = rank_and_size()[0], gather(others), gather(texts)
        candidates = others.transpose(0, 1).flatten(0, 1)  # all positives, then all hard negatives
        own = rank * size + torch.arange(size, device=device)
        log_weights = torch.zeros(size, len(candidates), device=device)
        if self.contrast.hard_negatives != "none":
            log_weights[torch.arange(size, device=device), len(others) + own] = math.log(self.contrast.hard_negative_weight)
        log_weights.masked_fill_(excluded(texts, all_texts, own), -torch.inf)
        scale = self._scale(device)
        found = info_nce(vectors[:, 0], candidates, own, scale, log_weights)
        count = batch["counts"]["contrastive"]
        monitors = {} if self.training else {"retrieval_accuracy": Part(found.is_right.sum(), count)}
        if self.training and self.logit_scale is not None:
            monitors["temperature"] = Part(1 / scale.detach().squeeze(), torch.ones_like(count))
        return Losses({"contrastive": Part(found.nats.sum(), count)}, monitors)

    def _scale(self, device: torch.device) -> Tensor:
        if self.logit_scale is None:
            return torch.full((1,), 1 / self.contrast.temperature, device=device)
        return self.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp()

    def comparing(self) -> list[nn.Parameter]:
        """The temperature, if it is learned."""
        return [] if self.logit_scale is None else [self.logit_scale]

    def beside(self, batch: Batch) -> Losses:
        """Masked language modelling of the same texts, if it has a weight."""
        if self.mlm is None:
            return Losses({}, {})
        losses = self.mlm.losses(batch["mlm"])
        part = losses.parts["mlm"]._replace(weight=self.contrast.mlm_weight)
        return Losses({"mlm": part}, {f"mlm/{name}": monitor for name, monitor in losses.monitors.items()})

    def chunks(self, batch: Batch, size: int) -> list[Batch]:
        """Cuts a batch into chunks of `size` examples."""
        return [chunk(batch, first, first + size) for first in range(0, len(batch["texts"]), size)]

    def passes(self, batch: Batch, step: Step) -> list[Pass]:
        """See `VectorObjective`; a learned temperature is kept in its range, as CLIP does after each step."""
        if self.logit_scale is not None:
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        return super().passes(batch, step)

    def losses(self, batch: Batch) -> Losses:
        """The loss of a batch; outside training also what its vectors are like."""
        return super().losses(batch) if self.training else self._measured(batch)

    def _measured(self, batch: Batch) -> Losses:
        views = batch["texts"].shape[1]
        chunks = self.chunks(batch, max(ROWS // views, 1))  # an evaluation has no passes, and its batch may be a large one
        with with_dropout(self.backbone, EVAL_SEED) if self.contrast.positives == "dropout" else nullcontext():
            pooled = torch.cat([self.pooled(some) for some in chunks])
        first = pooled[::views]
        if self.contrast.positives == "dropout":
            still = [{key: some[key][::views] for key in ("input_ids", *READ) if key in some} for some in chunks]
            first = torch.cat([self.pooled(some) for some in still])
        compared = self.compare(self._projected(pooled).unflatten(0, batch["texts"].shape), batch)
        other = reduce(_added, [self.beside(some) for some in chunks])
        pairs, alone = self.resting(pooled).unflatten(0, batch["texts"].shape), self.resting(first)
        count = batch["counts"]["contrastive"]
        spread, sums = potentials(alone), moments(alone)
        monitors = {
            "alignment": Part(squared_distances(pairs[:, 0], pairs[:, 1]).sum(), count),
            "uniformity": Part(spread.sum(), torch.full_like(count, len(spread))),
            "mean_vector": Part(sums.first, count),
            "mean_product": Part(sums.second, count),
        }
        return Losses({**compared.parts, **other.parts}, {**compared.monitors, **monitors, **other.monitors})

    def summary(self, means: Means) -> Means:
        """Makes `uniformity` of the mean potential, and `effective_rank` of the mean vector and the mean product."""
        shown = dict(means)
        if "uniformity" in shown:
            mean, product = shown.pop("mean_vector"), shown.pop("mean_product")
            shown["uniformity"] = math.log(shown["uniformity"])
            if isinstance(mean, Tensor) and isinstance(product, Tensor):
                shown["effective_rank"] = effective_rank(mean, product)
        return shown

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts, as they are used after the training.

        Args:
            texts: Longer ones than `length` are cut.

        Returns:
            (N, D) float32 of length 1: products are cosines.
        """
        return self._embed(rows_of_texts(self, texts, self.length, *self._specials))

    def _embed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return embed_rows(self, rows, lambda batch: self.resting(self.pooled(batch)))

    def samples(self, examples: Sequence[Example], step: int) -> list[Sample]:
        """Looks for the nearest neighbours of a few texts among many.

        Args:
            examples: The texts; one in `texts_per_sample` is looked at.
            step: Optimiser steps behind the model.
        """
        collate = self.feed().eval_collate
        assert isinstance(collate, SentenceRows)
        rows = list(dict.fromkeys(tuple(collate.texts(example)[0].tolist()) for example in examples))
        prefix, suffix = self._specials
        vectors = self._embed([[*prefix, *row, *suffix] for row in rows])
        texts = [" ".join(self.tokenizer.decode(list(row)).split()) for row in rows]
        return [
            Sample(step=step, pieces=(Piece(text=texts[query]), *nearest(query, vectors, texts, SHOWN_NEIGHBOURS)))
            for query in range(0, len(rows), max(self.texts_per_sample, 1))
        ]

    def flops(self, batch: Batch) -> int:
        """Three times the forward pass of all views, of the comparison with the candidates of all ranks, and of what is beside."""
        rows, length = batch["input_ids"].shape
        size, views = batch["texts"].shape
        width = self.backbone_config.hidden_size
        candidates = (views - 1) * size * rank_and_size()[1]
        forward = self.backbone.flops(rows, length) + 2 * size * candidates * width
        if self.projector is not None:
            forward += 2 * rows * width**2
        return 3 * forward + (self.mlm.flops(batch["mlm"]) if self.mlm is not None else 0)


def _added(a: Losses, b: Losses) -> Losses:
    """The losses of two chunks, which have the same parts, together."""

    def both(x: dict[str, Part], y: dict[str, Part]) -> dict[str, Part]:
        return {name: part._replace(sum=part.sum + y[name].sum, count=part.count + y[name].count) for name, part in x.items()}

    return Losses(both(a.parts, b.parts), both(a.monitors, b.monitors))
