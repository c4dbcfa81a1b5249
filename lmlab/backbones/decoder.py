"""A causal backbone: every token sees the earlier tokens of its document."""

from __future__ import annotations

from torch import Tensor

from lmlab.backbones.single import SingleStackBackbone
from lmlab.nn.cache import KVCache


class Decoder(SingleStackBackbone):
    """Hidden states for causal language models.

    Args:
        config: Its shape.
        vocab_size: V.
        pad_id: Id of the padding token.
    """

    direction = "causal"

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
            direction=self.direction,
            cache=cache,
        )
