"""One training step of lmlab, and the same step of the transformers model of the same architecture and size, on the same batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn

from benchmarks.sizes import Size
from lmlab.backbones import BackboneConfig
from lmlab.backbones.pretrained import config_from_hugging_face
from lmlab.data.batch import Batch
from lmlab.data.module import CorpusModule
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.objectives.span_corruption import SpanCorruption
from lmlab.optim import OptimizerConfig
from lmlab.tokenizer import Tokenizer

Kind = Literal["mlm", "clm", "span_corruption"]
OBJECTIVES: dict[Kind, Callable[..., Objective]] = {"mlm": MLM, "clm": CLM, "span_corruption": SpanCorruption}
NUM_BATCHES = 4
ONE_DOCUMENT = ("document_ids", "position_ids", "decoder_document_ids", "decoder_position_ids")
"""Left out of the batches: the peers cannot keep packed documents apart, so neither side does."""


def peer(kind: Kind, size: Size, vocab_size: int) -> Any:
    """The transformers model, without dropout (its attention kernel has none) and with the attention it chooses by itself."""
    tokens = {"vocab_size": vocab_size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    inner = 4 * size.hidden
    if kind == "mlm":
        shape = {
            "hidden_size": size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "intermediate_size": inner,
        }
        free = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": size.length}
        return transformers.BertForMaskedLM(transformers.BertConfig(**tokens, **shape, **free))
    if kind == "clm":
        shape = {"n_embd": size.hidden, "n_layer": size.layers, "n_head": size.heads, "n_positions": size.length}
        free = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False, "loss_type": "ForCausalLM"}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**tokens, **shape, **free))
    shape = {"d_model": size.hidden, "num_layers": size.layers, "num_heads": size.heads, "d_kv": size.hidden // size.heads, "d_ff": inner}
    config = transformers.T5Config(**tokens, **shape, dropout_rate=0.0, use_cache=False)
    return transformers.T5ForConditionalGeneration(config)


def peer_batch(kind: Kind, batch: Batch) -> dict[str, Any]:
    """The same batch in the peer's words; no padding mask, since nothing is padded."""
    keys = ("input_ids", "decoder_input_ids", "labels")
    given = {key: batch[key] for key in keys if key in batch}
    return given | {"shift_labels": batch["labels"]} if kind == "clm" else given  # lmlab's labels are shifted already


def objective(kind: Kind, backbone: BackboneConfig, tokenizer: Tokenizer, size: Size) -> Objective:
    """The side of lmlab, built."""
    made = OBJECTIVES[kind](tokenizer, backbone, length=size.length)
    made.configure_model()
    return made.train()


def batches(made: Objective, corpus: str, tokenizer: Tokenizer, size: Size) -> list[Batch]:
    """Some batches of real text, made beforehand."""
    data = CorpusModule(corpus, tokenizer, made.feed(), global_batch_size=size.batch)
    found = itertools.islice(data.train_dataloader(), NUM_BATCHES)
    return [{key: value for key, value in batch.items() if key not in ("window", *ONE_DOCUMENT)} for batch in found]


@dataclass
class Step:
    """A training step in bf16 autocast: forward, backward, fused AdamW, zero_grad.

    Args:
        module: What is trained.
        loss: From a batch to the mean loss.
        batches: Taken in turn.
    """

    module: nn.Module
    loss: Callable[[Batch], torch.Tensor]
    batches: Sequence[Batch]
    done: int = 0

    def __post_init__(self) -> None:
        named = self.module.named_parameters()
        self.optimizer = OptimizerConfig(lr=1e-4).build(named)  # torch's fused AdamW, the same for both sides

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(self.batches[self.done % len(self.batches)])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1


def lmlab_loss(made: Objective, batch: Batch) -> torch.Tensor:
    """The mean over the batch."""
    losses = made(batch)
    return losses.total({name: part.count for name, part in losses.parts.items()})


@dataclass
class Pair:
    """The peer, lmlab with the peer's architecture, and lmlab with its own.

    Args:
        kind: Objective.
        theirs: The peer's step.
        ours: lmlab's, of equal architecture.
        modern: lmlab's default backbone of the same D, L and H.
        tokens: Of the text, in a batch.
        flops: Of lmlab's step, by name of the side.
    """

    kind: Kind
    theirs: Step
    ours: Step
    modern: Step
    tokens: int
    flops: dict[str, int]


def pair(kind: Kind, corpus: str, tokenizer: Tokenizer, size: Size) -> Pair:
    """Builds all sides of one comparison."""
    torch.manual_seed(0)
    theirs = peer(kind, size, tokenizer.vocab_size).train()
    equal = objective(kind, config_from_hugging_face(theirs.config.to_dict()), tokenizer, size)
    own = objective(kind, BackboneConfig(hidden_size=size.hidden, num_layers=size.layers, num_heads=size.heads), tokenizer, size)
    made = batches(equal, corpus, tokenizer, size)
    return Pair(
        kind,
        Step(theirs, lambda batch: theirs(**peer_batch(kind, batch)).loss, made),
        Step(equal, lambda batch: lmlab_loss(equal, batch), made),
        Step(own, lambda batch: lmlab_loss(own, batch), made),
        int(made[0]["tokens"]),
        {"ours": equal.flops(made[0]), "modern": own.flops(made[0])},
    )
