"""Two stacks: an encoder reads a source, a causal decoder reads its own tokens and the encoder's states."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lmlab.backbones.base import Backbone, BackboneConfig
from lmlab.backbones.stack import Stack
from lmlab.config import require
from lmlab.errors import ConfigError
from lmlab.nn import mask
from lmlab.nn.block import Memory
from lmlab.nn.cache import KVCache
from lmlab.nn.init import init_embedding
from lmlab.nn.mask import Visibility


class EncoderDecoder(Backbone):
    """Hidden states of a decoder, for span corruption and tasks from text to text. Both sides share the token embeddings.

    Args:
        config: Its shape.
        vocab_size: V.
        pad_id: Id of the padding token.
    """

    def __init__(self, config: BackboneConfig, vocab_size: int, pad_id: int) -> None:
        super().__init__(config, vocab_size, pad_id)
        self.encoder = Stack(config, config.num_layers, "bidirectional")
        self.decoder = Stack(config, config.num_decoder_layers or config.num_layers, "causal", reads="memory")

    @classmethod
    def check(cls, config: BackboneConfig, lengths: Mapping[str, int] | None = None) -> None:
        """Refuses what `Backbone.check` does, and segments, which neither side is told."""
        super().check(config, lengths)
        require(config.num_segments == 0, config, "num_segments", "rows of an encoder-decoder have no segments", "leave it out")

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers of both stacks, in the order they run."""
        return nn.ModuleList([*self.encoder.blocks, *self.decoder.blocks])

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        init_embedding(self.embedding, self.config.init_config())
        self.encoder.reset_parameters()
        self.decoder.reset_parameters()

    def flops(self, batch_size: int, length: int, decoder_length: int | None = None) -> int:
        """Multiplications and additions of one forward pass; see `Backbone.flops`."""
        if decoder_length is None:
            raise ConfigError(
                "an EncoderDecoder reads two rows", where="decoder_length", why="it was None", remedy="pass the target's length"
            )
        return self.encoder.flops(batch_size, length) + self.decoder.flops(batch_size, decoder_length, length)

    def encode(
        self,
        input_ids: Tensor | None,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Reads the source only.

        Args:
            input_ids: (B, S) int64; may be None if `inputs_embeds` is given.
            attention_mask: (B, S) bool, True where a token may be attended.
            document_ids: (B, S) int64, which document each token belongs to.
            position_ids: (B, S) int64.
            inputs_embeds: (B, S, E) token vectors to use instead of looking `input_ids` up.

        Returns:
            (B, S, D).
        """
        return self.encoder(
            self.embed(input_ids, inputs_embeds),
            attention_mask=attention_mask,
            document_ids=document_ids,
            position_ids=position_ids if document_ids is not None else self.count_positions(input_ids, position_ids),
        )

    def forward(  # noqa: PLR0913  the keys of a batch for two sides
        self,
        input_ids: Tensor | None,
        decoder_input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_document_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        encoder_states: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Reads source and target.

        Args:
            input_ids: (B, S) int64 source; may be None if `encoder_states` is given, or once a cache has been used.
            decoder_input_ids: (B, T) int64 target; with a cache, the new tokens only.
            attention_mask: (B, S) bool, True where a source token may be attended, by both sides. None if all may.
            document_ids: (B, S) int64, which document each source token belongs to. None if a row is one document.
            position_ids: (B, S) int64 of the source.
            decoder_attention_mask: (B, T) bool, the same for the target.
            decoder_document_ids: (B, T) int64; a target token sees the source tokens of the same document only.
            decoder_position_ids: (B, T) int64 of the target.
            encoder_states: (B, S, D) from `encode`, to read the source once for many targets.
            cache: Earlier target tokens of these rows; it keeps what is needed of the source as well.

        Returns:
            (B, T, D) states of the decoder.
        """
        if (document_ids is None) != (decoder_document_ids is None):
            missing = "document_ids" if document_ids is None else "decoder_document_ids"
            raise ConfigError(f"{missing} is missing", why="documents are packed on one side only", remedy="pass both, or neither")
        vectors = self.embed(decoder_input_ids, None)
        begun = cache is not None and cache.length > 0
        if cache is not None and begun:
            states, attention_mask = vectors, cache.memory_mask  # only the cached keys and values are read
        elif encoder_states is not None:
            states = encoder_states
        else:
            states = self.encode(input_ids, attention_mask=attention_mask, document_ids=document_ids, position_ids=position_ids)
        if cache is not None:
            cache.memory_mask = attention_mask
        own = begun or decoder_document_ids is not None
        return self.decoder(
            vectors,
            attention_mask=decoder_attention_mask,
            document_ids=decoder_document_ids,
            position_ids=decoder_position_ids if own else self.count_positions(decoder_input_ids, decoder_position_ids),
            memory=Memory(states, _across(vectors, attention_mask, document_ids, decoder_document_ids)),
            cache=cache,
        )


def _across(vectors: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None, decoder_document_ids: Tensor | None) -> Visibility:
    """Which source tokens each target token may attend."""
    allowed = [] if attention_mask is None else [mask.unpadded(attention_mask)]
    if document_ids is not None and decoder_document_ids is not None:
        allowed.append(mask.same_document(decoder_document_ids, document_ids))
    return Visibility(scores=mask.scores(allowed, None, mask.compute_dtype(vectors)))
