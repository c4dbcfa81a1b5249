"""Networks that turn tokens into hidden states: one set of bricks, one config, every family."""

from lmlab.backbones.base import Backbone, BackboneConfig
from lmlab.backbones.decoder import Decoder
from lmlab.backbones.encoder import Encoder
from lmlab.backbones.encoder_decoder import EncoderDecoder
from lmlab.backbones.recurrent import Recurrent, RecurrentConfig
from lmlab.nn.cache import KVCache

__all__ = ["Backbone", "BackboneConfig", "Decoder", "Encoder", "EncoderDecoder", "KVCache", "Recurrent", "RecurrentConfig"]
