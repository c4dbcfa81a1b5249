"""What the two backbones of one stack have in common; they differ in the direction in which they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, TypeVar

from torch import nn

from lmlab.backbones.base import Backbone, BackboneConfig
from lmlab.backbones.stack import Stack
from lmlab.config import require
from lmlab.errors import ConfigError
from lmlab.nn.init import init_embedding

S = TypeVar("S", bound="SingleStackBackbone")


class SingleStackBackbone(Backbone):
    """Token embeddings and one stack.

    Args:
        config: Its shape.
        vocab_size: V.
        pad_id: Id of the padding token.
    """

    direction: ClassVar[Literal["bidirectional", "causal"]]

    def __init__(self, config: BackboneConfig, vocab_size: int, pad_id: int) -> None:
        super().__init__(config, vocab_size, pad_id)
        self.stack = Stack(config, config.num_layers, self.direction)

    @classmethod
    def check(cls, config: BackboneConfig, lengths: Mapping[str, int] | None = None) -> None:
        """Refuses what `Backbone.check` does, and a depth for a side it does not have."""
        super().check(config, lengths)
        rule = "it is the depth of a decoder beside an encoder, and here is one stack only"
        require(config.num_decoder_layers is None, config, "num_decoder_layers", rule, "leave it out; num_layers is the depth")

    @classmethod
    def expect(cls: type[S], backbone: nn.Module) -> S:
        """Takes a built backbone to share; one that reads in the other direction lends its weights.

        Args:
            backbone: What something else offers.

        Returns:
            The backbone itself, or one of this kind with the same embedding and stack: parameters are those of the lender.

        Raises:
            ConfigError: If it has two stacks, or positions that mean another thing in the other direction.
        """
        if isinstance(backbone, cls) or not isinstance(backbone, SingleStackBackbone):
            return super().expect(backbone)
        if backbone.config.position == "t5":
            raise ConfigError(
                f"{cls.__name__} and {type(backbone).__name__} cannot share weights",
                where="backbone.position",
                why="a table of T5 positions is learned for one direction",
                remedy="choose rope or another kind of position",
            )
        sharing = cls.__new__(cls)
        nn.Module.__init__(sharing)
        sharing.config, sharing.vocab_size, sharing.pad_id = backbone.config, backbone.vocab_size, backbone.pad_id
        sharing.embedding, sharing.stack = backbone.embedding, backbone.stack
        return sharing

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
            raise ConfigError(
                f"one of kind {type(self).__name__} has no decoder beside it to count", where="decoder_length", remedy="leave it out"
            )
        return self.stack.flops(batch_size, length)
