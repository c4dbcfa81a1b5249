"""A stack of layers with everything around them: positions, segments, masks, the final norm. Every backbone is one or two of these."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmlab.backbones.base import ABSOLUTE, BackboneConfig
from lmlab.errors import ConfigError
from lmlab.nn import mask, position, varlen
from lmlab.nn.block import Block, Memory
from lmlab.nn.building import built
from lmlab.nn.cache import KVCache
from lmlab.nn.init import init_embedding, init_linear
from lmlab.nn.mask import Visibility
from lmlab.nn.norm import build_norm


class Stack(nn.Module):
    """Token vectors in, hidden states out.

    Args:
        config: Of the backbone.
        num_layers: How many layers this stack has.
        direction: `causal` if a token sees only earlier ones.
        reads: `memory` if the layers also attend an encoder's states.
    """

    def __init__(
        self,
        config: BackboneConfig,
        num_layers: int,
        direction: Literal["bidirectional", "causal"],
        reads: Literal["self", "memory"] = "self",
    ) -> None:
        super().__init__()
        self.config, self.causal = config, direction == "causal"
        self.embedding_dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        size, norm = config.vector_size, config.norm_config()
        block = config.block_config(num_layers)
        self.positions = nn.Embedding(config.position_offset + config.max_length, size) if config.position == "learned" else None
        self.segments = nn.Embedding(config.num_segments, size) if config.num_segments else None
        self.embedding_norm = build_norm(norm, size) if config.embedding_norm == "norm" else None
        self.projection = nn.Linear(size, config.hidden_size, bias=config.feedforward_bias) if size != config.hidden_size else None
        self.relative_bias = (
            position.RelativeBias(
                config.num_heads,
                config.relative_buckets,
                config.relative_max_distance,
                direction,
                std=config.hidden_size**-0.5 if config.init == "t5" else config.init_std,
            )
            if config.position == "t5"
            else None
        )
        self.blocks = nn.ModuleList(built(Block(block, reads)) for _ in range(num_layers))  # one after the other
        final = config.final_norm == "norm" or (config.final_norm == "auto" and config.norm_position == "pre")
        self.final_norm = build_norm(norm, config.hidden_size) if final else None
        self._reset_inputs()

    def _reset_inputs(self) -> None:
        init = self.config.init_config()
        for table in (self.positions, self.segments):
            if table is not None:
                init_embedding(table, init)
        if self.projection is not None:
            init_linear(self.projection, init)

    def reset_parameters(self) -> None:
        """Draws all weights of the stack anew."""
        self._reset_inputs()
        for part in (self.embedding_norm, self.relative_bias, *self.blocks, self.final_norm):
            if part is not None:
                part.reset_parameters()  # type: ignore[operator]  # blocks are typed as plain modules by ModuleList

    def forward(
        self,
        vectors: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        memory: Memory | None = None,
        cache: KVCache | None = None,
        direction: Literal["bidirectional", "causal"] | None = None,
    ) -> Tensor:
        """Applies the layers.

        Args:
            vectors: (B, T, E) token embeddings.
            attention_mask: (B, T) or (B, T, T) bool, True where a token may be attended. None if all may: then no mask is built.
            document_ids: (B, T) int64; tokens of different documents do not see each other. None if a row is one document.
            position_ids: (B, T) int64. None is 0..T-1, counted anew in each document.
            token_type_ids: (B, T) int64 segments; None is segment 0.
            memory: The encoder's states, if the layers read them.
            cache: Earlier tokens of the same rows; the other arguments are about the new ones.
            direction: How to read this once; None is the stack's own way. Backbones of two kinds may share one stack.

        Returns:
            (B, T, D).
        """
        length, past = vectors.shape[1], 0
        if cache is not None:
            past, attention_mask, position_ids = self._continue(cache, vectors, attention_mask, document_ids, position_ids)
        elif position_ids is None:
            restarts = document_ids is not None and self.config.position in ABSOLUTE  # others see no difference
            position_ids = position.restarting_positions(document_ids) if restarts else torch.arange(length, device=vectors.device)  # type: ignore[arg-type]
        x = self._enter(vectors, position_ids, token_type_ids, past)
        dtype = mask.compute_dtype(x)
        causal = self.causal if direction is None else direction == "causal"
        visible = self._visibility(x, dtype, attention_mask, document_ids, past, causal)
        rope = self.config.position == "rope"
        table = position.rotary(position_ids, self.config.head_width, self.config.rope_base, dtype) if rope else None
        recompute = self.config.checkpointing == "blocks" and self.training and torch.is_grad_enabled() and cache is None
        for index, block in enumerate(self.blocks):
            if recompute:
                x = checkpoint(block, x, visible, table, memory, use_reentrant=False)
            else:
                x = block(x, visible, table, memory, cache.layer(index) if cache is not None else None)
        if cache is not None:
            cache.length += length
        if self.final_norm is not None:
            x = self.final_norm(x)
        return F.dropout(x, self.config.output_dropout, self.training)

    def flops(self, batch_size: int, length: int, memory_length: int = 0) -> int:
        """Multiplications and additions of a forward pass.

        Args:
            batch_size: B.
            length: T.
            memory_length: S, if the layers read an encoder's states.
        """
        block = self.config.block_config(len(self.blocks))
        rows, memory_rows = batch_size * length, batch_size * memory_length
        layer = block.attention.flops(rows, rows, rows * length) + block.feedforward.flops(rows)
        if memory_length:
            layer += block.attention.flops(rows, memory_rows, rows * memory_length)
        up = 2 * rows * self.config.vector_size * self.config.hidden_size if self.projection is not None else 0
        return up + len(self.blocks) * layer

    def _continue(
        self, cache: KVCache, vectors: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None, position_ids: Tensor | None
    ) -> tuple[int, Tensor | None, Tensor]:
        if document_ids is not None or (attention_mask is not None and attention_mask.dim() != 2):
            what = "document_ids" if document_ids is not None else "a (B, T, T) attention_mask"
            raise ConfigError(f"{what} cannot be used with a cache", why="a cached row is one document", remedy="pass a (B, T) mask only")
        batch_size, length = vectors.shape[:2]
        mask_so_far = cache.extend_mask(attention_mask, batch_size, length, vectors.device)
        return cache.length, mask_so_far, cache.positions(position_ids, length, vectors.device)

    def _enter(self, vectors: Tensor, position_ids: Tensor, token_type_ids: Tensor | None, past: int) -> Tensor:
        config = self.config
        x = vectors if config.embedding_scale == 1.0 else vectors * config.embedding_scale
        if self.segments is not None:
            x = x + (self.segments.weight[0] if token_type_ids is None else self.segments(token_type_ids))
        elif token_type_ids is not None:
            raise ConfigError(
                "token_type_ids were given to a backbone without segments", where="num_segments", remedy="set num_segments to 2"
            )
        if self.positions is not None:
            if past + vectors.shape[1] > config.max_length:
                what = f"a row of {past + vectors.shape[1]} tokens is longer than the {config.max_length} learned positions"
                raise ConfigError(what, where="max_length", remedy="shorten the rows, raise max_length, or use relative positions")
            x = x + self.positions(position_ids + config.position_offset if config.position_offset else position_ids)
        elif config.position == "sinusoidal":
            x = x + position.sinusoids(position_ids, config.vector_size, x.dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = F.dropout(x, self.embedding_dropout, self.training)
        return x if self.projection is None else self.projection(x).to(x.dtype)  # autocast must not narrow the residual stream

    def _visibility(
        self, x: Tensor, dtype: torch.dtype, attention_mask: Tensor | None, document_ids: Tensor | None, past: int, causal: bool
    ) -> Visibility:
        length = x.shape[1]
        ahead = causal and length > 1
        free = attention_mask is None and self.config.position not in ("t5", "alibi")
        if free and document_ids is None and (past == 0 or not ahead):
            return Visibility(causal=ahead)
        dropout = self.config.attention_dropout if self.training else 0.0
        if free and document_ids is not None and varlen.applicable(x, dtype, dropout):
            return Visibility(causal=causal, segments=varlen.segments(document_ids))
        allowed = [] if attention_mask is None else [mask.unpadded(attention_mask)]
        if document_ids is not None:
            allowed.append(mask.same_document(document_ids, document_ids))
        if ahead:
            allowed.append(mask.not_ahead(length, past, x.device))
        return Visibility(scores=mask.scores(allowed, self._bias(length, past, x.device), dtype))

    def _bias(self, length: int, past: int, device: torch.device) -> Tensor | None:
        if self.relative_bias is not None:
            return self.relative_bias(length, past)
        return position.alibi(self.config.num_heads, length, past, device) if self.config.position == "alibi" else None
