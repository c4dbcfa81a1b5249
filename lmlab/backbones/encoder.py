"""A bidirectional backbone: every token sees every token of its document."""

from __future__ import annotations

from torch import Tensor

from lmlab.backbones.single import SingleStackBackbone


class Encoder(SingleStackBackbone):
    """Hidden states for masked language models, ELECTRA, sentence vectors and labelled tasks.

    Args:
        config: Its shape.
        vocab_size: V.
        pad_id: Id of the padding token.
    """

    direction = "bidirectional"

    def forward(
        self,
        input_ids: Tensor | None,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Encodes rows.

        Args:
            input_ids: (B, T) int64; may be None if `inputs_embeds` is given.
            attention_mask: (B, T) bool, True where a token may be attended; or (B, T, T), for each query separately (prefix and
                permutation language models). None if everything may: then no mask is built, which is faster.
            document_ids: (B, T) int64, which document each token belongs to; documents do not see each other. None if a row is one.
            position_ids: (B, T) int64. None is 0..T-1, counted anew in each document.
            token_type_ids: (B, T) int64 segments; None is segment 0.
            inputs_embeds: (B, T, E) token vectors to use instead of looking `input_ids` up.

        Returns:
            (B, T, D).
        """
        return self.stack(
            self.embed(input_ids, inputs_embeds),
            attention_mask=attention_mask,
            document_ids=document_ids,
            position_ids=position_ids if document_ids is not None else self.count_positions(input_ids, position_ids),
            token_type_ids=token_type_ids,
            direction=self.direction,
        )
