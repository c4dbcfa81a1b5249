"""Texts that a student writes itself, to be told by its teacher what would have been better."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf
from typing import get_type_hints

import torch
from torch import Tensor

from lmlab.backbones.decoder import Decoder
from lmlab.config import require
from lmlab.data.batch import IGNORE_INDEX, Batch
from lmlab.data.loader import Window
from lmlab.data.order import hash64
from lmlab.decoding import DecodingConfig, decode
from lmlab.errors import ConfigError
from lmlab.nn.cache import KVCache
from lmlab.nn.evaluation import evaluating
from lmlab.objectives.clm import CLM
from lmlab.objectives.distillation_losses import DistillationLoss
from lmlab.objectives.tokens import TokenObjective

POLICY = 40  # stream of randomness


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """How much of the training is on the student's own text.

    In an on-policy step each block keeps its beginning, and the student writes the rest of it; only what it wrote counts. Nothing is
    differentiated through the sampling. Special tokens are not written, so that every block is filled.

    Args:
        share: Share of steps that are on-policy (lambda).
        prompt_length: Tokens of each block that are kept.
        temperature: Of the sampling.

    Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models", algorithm 1.
    """

    share: float = 0.5
    prompt_length: int = 32
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        require(0 < self.share <= 1, self, "share", "it is a share of the steps", "0.5 is common; on_policy: null for none")
        require(self.prompt_length >= 1, self, "prompt_length", "a text begins with something", "32 is a good beginning")
        require(0 < self.temperature < inf, self, "temperature", "at 0 the student would only ever see its likeliest text", "1 is common")

    def chooses(self, window: Window) -> bool:
        """Whether a step is on-policy: a function of the run's seed and the step alone, the same on all ranks.

        Args:
            window: The step.
        """
        return hash64(window.draw, POLICY) < self.share * 2**64


def check_policy(config: OnPolicyConfig | None, student: TokenObjective, loss: DistillationLoss) -> None:
    """Refuses a policy that the student cannot follow.

    Args:
        config: The policy; None for none.
        student: Not built yet.
        loss: What counts.

    Raises:
        ConfigError: Then.
    """
    if config is None:
        return
    if not isinstance(student, CLM) or not writes_with_cache(student):
        why = f"a {type(student).__name__} does not continue texts token by token with a cache"
        raise ConfigError("this student cannot be trained on its own text", where="on_policy", why=why, remedy="set on_policy to null")
    if loss.response is None:
        why = "the divergence from the teacher is what counts on the student's own text"
        raise ConfigError("on_policy needs the teacher's answers", where="loss.response", why=why, remedy="set `response: {}`")
    if loss.labels and config.share == 1:
        why = "on its own text it has none, and every step is on its own text"
        raise ConfigError("the student never sees a label", where="loss.labels", why=why, remedy="set labels to 0, or a smaller share")
    rule = f"a block has {student.length} tokens, of which the student is to write some"
    require(config.prompt_length < student.length, config, "prompt_length", rule, "keep fewer tokens")


def num_written(config: OnPolicyConfig, length: int) -> int:
    """Tokens the student writes for a block, the one of lookahead included.

    Args:
        config: How many are kept.
        length: T.
    """
    return length + 1 - config.prompt_length


def writes_with_cache(student: TokenObjective) -> bool:
    """Whether an objective has a decoder that keeps keys and values.

    Args:
        student: Built or not.
    """
    return get_type_hints(type(student)).get("backbone") is Decoder


def continued(student: CLM, batch: Batch, config: OnPolicyConfig, window: Window) -> Batch:
    """The batch, with all but the beginnings of its blocks written by the student.

    What a row's draws are depends on the step and on the row's beginning, not on how the step is cut into micro-batches.

    Args:
        student: Asked without dropout.
        batch: Of packed blocks.
        config: How.
        window: The step.

    Returns:
        A batch of the same shape, labelled where the student wrote.
    """
    inputs, labels, keep = batch["input_ids"], batch["labels"], config.prompt_length
    length = inputs.shape[1]
    documents = batch.get("document_ids", torch.zeros_like(inputs))
    # the document that the beginning ends in is what is continued; others before it are left alone
    real = documents[:, :keep] == documents[:, keep - 1 : keep]
    rows = [row[mask].tolist() for row, mask in zip(inputs[:, :keep], real, strict=True)]
    decoding = DecodingConfig(
        max_new_tokens=num_written(config, length), temperature=config.temperature, seed=hash64(window.draw, POLICY, 1)
    )
    with evaluating(student):
        written = write(student, inputs[:, :keep], real, rows, decoding, stop_ids=())
    new = torch.tensor(written, device=inputs.device)  # (B, T + 1 - keep)
    places = torch.arange(length, device=inputs.device)
    own = {
        "input_ids": torch.cat((inputs[:, :keep], new[:, :-1]), dim=1),
        "labels": torch.cat((torch.full_like(labels[:, : keep - 1], IGNORE_INDEX), new), dim=1),
    }
    if "document_ids" in batch:
        first = (keep - real.sum(1, keepdim=True)).to(places.dtype)  # where that document begins
        later = places >= keep
        own["document_ids"] = torch.where(later, documents[:, keep - 1 : keep], documents)
        own["position_ids"] = torch.where(later, places - first, batch["position_ids"])
    return {**batch, **own}


def write(
    model: CLM, first: Tensor, real: Tensor, keys: Sequence[Sequence[int]], config: DecodingConfig, stop_ids: Collection[int]
) -> list[list[int]]:
    """Continues rows; call it inside `evaluating(model)`.

    Args:
        model: A causal model with a cache.
        first: (B, P) int64, the beginnings, aligned on the right.
        real: (B, P) bool, where they are to be read.
        keys: For each row, what decides its draws, with the seed.
        config: How tokens are chosen.
        stop_ids: What ends a row; other special tokens are never written.

    Returns:
        New tokens of each row.
    """
    cache, padded = KVCache(), not bool(real.all())
    mask = {"attention_mask": real, "position_ids": (real.long().cumsum(1) - 1).clamp(min=0)} if padded else {}

    def logits_of(tokens: Tensor) -> Tensor:
        given = mask if cache.length == 0 else {}
        return model.head(model.backbone(tokens, cache=cache, **given)[:, -1])

    return decode(logits_of, first, keys, config, stop_ids, model.tokenizer.special_ids - set(stop_ids))


def writing_flops(student: CLM, size: int, prompt_length: int, num_new: int) -> int:
    """Multiplications and additions of writing with a cache: each new token attends all before it.

    Args:
        student: The writer.
        size: B.
        prompt_length: P, read at once.
        num_new: Tokens written after it; the last one is not read again.
    """
    backbone = student.backbone
    assert isinstance(backbone, Decoder)
    block = backbone.config.block_config(len(backbone.blocks))
    rows = size * (prompt_length + num_new - 1)
    pairs = size * (prompt_length**2 + sum(range(prompt_length + 1, prompt_length + num_new)))
    layers = len(backbone.blocks) * (block.attention.flops(rows, rows, pairs) + block.feedforward.flops(rows))
    up = 2 * rows * backbone.config.vector_size * backbone.config.hidden_size if backbone.stack.projection is not None else 0
    return layers + up + student.head.flops(size * num_new)
