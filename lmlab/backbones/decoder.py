"""A causal backbone: every token sees the earlier tokens of its document."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lmlab.backbones.base import Backbone, BackboneConfig
from lmlab.backbones.stack import Stack
from lmlab.config import require
from lmlab.errors import ConfigError
from lmlab.nn.cache import KVCache
from lmlab.nn.init import init_embedding


class Decoder(Backbone):
    """Hidden states for causal language models.

    Args:
        config: Its shape.
        vocab_size: V.
        pad_id: Id of the padding token.
    """

    def __init__(self, config: BackboneConfig, vocab_size: int, pad_id: int) -> None:
        super().__init__(config, vocab_size, pad_id)
        self.stack = Stack(config, config.num_layers, "causal")

    @classmethod
    def check(cls, config: BackboneConfig, lengths: Mapping[str, int] | None = None) -> None:
        """Refuses what `Backbone.check` does, and a depth for a side it does not have."""
        super().check(config, lengths)
        rule = "it is the depth of a decoder beside an encoder, and here is one stack only"
        require(config.num_decoder_layers is None, config, "num_decoder_layers", rule, "leave it out; num_layers is the depth")

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, in the order they run."""
        return self.stack.blocks

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        init_embedding(self.embedding, self.config.init_config())
        self.stack.reset_parameters()

    def flops(self, batch_size: int, length: int, decoder_length: int | None = None) -> int:
        """Multiplications and additions of one forward pass; see `Backbone.flops`."""
        if decoder_length is not None:
            raise ConfigError("a Decoder has one side only", where="decoder_length", remedy="pass its length as `length`")
        return self.stack.flops(batch_size, length)

    def forward(
        self,
        input_ids: Tensor | None,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Reads rows from left to right.

        Args:
            input_ids: (B, T) int64; may be None if `inputs_embeds` is given. With a cache, the new tokens only.
            attention_mask: (B, T) bool, True where a token may be attended; or (B, T, T), for each query separately, on top of the
                causal rule. None if everything earlier may: then no mask is built, which is twice as fast.
            document_ids: (B, T) int64, which document each token belongs to; documents do not see each other. None if a row is one.
            position_ids: (B, T) int64. None is 0..T-1, counted anew in each document; with a cache, counted on.
            token_type_ids: (B, T) int64 segments; None is segment 0.
            inputs_embeds: (B, T, E) token vectors to use instead of looking `input_ids` up.
            cache: Earlier tokens of these rows; these are added to it.

        Returns:
            (B, T, D).
        """
        begun = document_ids is not None or (cache is not None and cache.length > 0)
        return self.stack(
            self.embed(input_ids, inputs_embeds),
            attention_mask=attention_mask,
            document_ids=document_ids,
            position_ids=position_ids if begun else self.count_positions(input_ids, position_ids),
            token_type_ids=token_type_ids,
            cache=cache,
        )
