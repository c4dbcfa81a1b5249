"""Which layer of a student is to resemble which layer of its teacher, in what, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from lmlab.backbones.base import Backbone
from lmlab.backbones.features import LAST, stacks_of
from lmlab.config import check_choices, require
from lmlab.data.batch import Batch
from lmlab.errors import ConfigError
from lmlab.nn.attention import AttentionConfig

STATES = ("hidden", "embedding")
"""Features that are vectors, one a token; the others are matrices between tokens."""
LOSSES: Mapping[str, tuple[str, ...]] = {
    "hidden": ("mse", "cosine", "pkd"),
    "embedding": ("mse", "cosine", "pkd"),
    "scores": ("mse", "kl"),
    "relation": ("kl",),
}
"""What can be asked of each feature."""


@dataclass(frozen=True, kw_only=True)
class FeatureMatch:
    """One line of a layer map.

    Layers are counted from 1, -1 is the last; in an encoder-decoder through the encoder and on through the decoder.

    Args:
        feature: `hidden`, the states a layer puts out (the last one after the final norm); `embedding`, those that the first layer reads;
            `scores`, attention scores as they enter the softmax, where attention is possible; `relation`, similarities of queries, of
            keys and of values within a row, before rotary positions.
        teacher: Layer of the (first) teacher; not for `embedding`.
        student: Layer of the student; not for `embedding`.
        loss: `mse`, mean over channels, or over the keys that a query may attend and over heads; `cosine`, one minus the cosine; `pkd`,
            squared distance of the vectors divided by their lengths; `kl`, of the student's softmax from the teacher's, mean over heads.
        weight: Share in the total.
        projection: What brings the student's states to the teacher's width: nothing, a learned matrix, or a learned matrix that all
            matches with `shared` have in common (TinyBERT).
        rows: Whether all tokens count, or the first of each row only (where [CLS] is, in views that begin every row with one).
        relation_heads: Heads into which queries, keys and values are cut anew for `relation`; None takes the teacher's.

    Source: Sanh et al. 2019, "DistilBERT", section 2 (cosine of hidden states); Sun et al. 2019, "Patient Knowledge Distillation",
    equation 7 (pkd); Jiao et al. 2020, "TinyBERT", equations 7 to 9 (scores, hidden, embedding); Wang et al. 2021, "MiniLMv2",
    section 3.1 (relation).
    """

    feature: Literal["hidden", "embedding", "scores", "relation"]
    loss: Literal["mse", "cosine", "pkd", "kl"]
    teacher: int | None = None
    student: int | None = None
    weight: float = 1.0
    projection: Literal["none", "linear", "shared"] = "none"
    rows: Literal["all", "first"] = "all"
    relation_heads: int | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be compared, and settings without effect."""
        check_choices(self)
        possible = LOSSES[self.feature]
        require(self.loss in possible, self, "loss", f"{self.feature} is compared by {' or '.join(possible)}", f"choose {possible[0]}")
        require(0 < self.weight < inf, self, "weight", "it says how much the match counts", "set a positive number, or leave the match out")
        for name in ("teacher", "student"):
            layer = getattr(self, name)
            if self.feature == "embedding":
                require(layer is None, self, name, "a network has one embedding", "leave it out")
            else:
                counted = layer is not None and (layer >= 1 or layer == LAST)
                require(counted, self, name, "layers are counted from 1, and -1 is the last", "name a layer")
        is_state = self.feature in STATES
        require(is_state or self.projection == "none", self, "projection", f"{self.feature} has no width to change", "leave it out")
        require(is_state or self.rows == "all", self, "rows", f"{self.feature} is between all tokens of a row", "leave it out")
        cut = self.feature == "relation" or self.relation_heads is None
        require(cut, self, "relation_heads", "only `relation` is cut into heads anew", "leave it out")
        some = self.relation_heads is None or self.relation_heads >= 1
        require(some, self, "relation_heads", "a number of heads is at least 1", "leave it out")

    @property
    def name(self) -> str:
        """Name of its part of the loss."""
        if self.feature == "embedding":
            return f"embedding_{self.loss}"
        return f"{self.feature}_{'last' if self.student == LAST else self.student}_{self.loss}"

    def count(self, batch: Batch, num_encoder_layers: int) -> Tensor:
        """Rows that count in a batch, (1,) int64.

        Args:
            batch: What the student's collator made.
            num_encoder_layers: Layers of the student before its decoder, if it has two stacks.
        """
        real, shape = real_tokens(batch, self.side(batch, num_encoder_layers))
        if self.rows == "first":
            return torch.tensor([shape[0]])
        return torch.tensor([shape[0] * shape[1]]) if real is None else real.sum().view(1)

    def side(self, batch: Batch, num_encoder_layers: int) -> Literal["", "decoder_"]:
        """Prefix of the batch keys of the stack that the student's layer is in.

        Args:
            batch: What the student's collator made.
            num_encoder_layers: Layers of the student before its decoder, if it has two stacks.
        """
        late = self.student is not None and (self.student == LAST or self.student > num_encoder_layers)
        return "decoder_" if "decoder_input_ids" in batch and late else ""


def real_tokens(batch: Batch, side: str) -> tuple[Tensor | None, tuple[int, int]]:
    """(B, T) bool, where tokens are no padding, None if there is no padding; and B and T.

    Args:
        batch: What a collator made.
        side: Prefix of the keys.
    """
    size, length = batch[f"{side}input_ids"].shape
    return batch.get(f"{side}attention_mask"), (size, length)


def check_names(matches: Sequence[FeatureMatch]) -> None:
    """Refuses two lines that are one: neither could be told from the other in the logs.

    Args:
        matches: The map.

    Raises:
        ConfigError: Then.
    """
    names = [match.name for match in matches]
    for name in names:
        if names.count(name) > 1:
            why = "the two differ at most in the teacher's layer, and pull the same states two ways"
            raise ConfigError(f"the layer map has '{name}' twice", where="loss.features", why=why, remedy="leave one of them out")


def resolve(layer: int | None, depth: int) -> int:
    """The number of a layer: -1 is the last.

    Args:
        layer: As in a layer map; None is what the first layer reads, 0.
        depth: Layers of the network.
    """
    return 0 if layer is None else depth if layer == LAST else layer


def check_map(matches: Sequence[FeatureMatch], teacher: Backbone, student: Backbone) -> None:
    """Refuses a layer map that the two networks do not have.

    Args:
        matches: The map.
        teacher: The teacher's network.
        student: The student's.

    Raises:
        ConfigError: On a layer that is not there, on layers of which one reads the source and one the target, on states of different widths
            without a projection, on scores of different numbers of heads, on heads that cannot be cut.
    """
    for number, match in enumerate(matches):
        where = f"loss.features[{number}]"
        for who, layer, network in (("teacher", match.teacher, teacher), ("student", match.student, student)):
            depth = len(network.blocks)
            if resolve(layer, depth) > depth:
                raise ConfigError(
                    f"the {who} has no layer {layer}",
                    where=f"{where}.{who}",
                    why=f"it has {depth}, counted from 1",
                    remedy="-1 is the last",
                )
        if _is_late(match.teacher, teacher) != _is_late(match.student, student):
            raise ConfigError(
                "a layer of an encoder cannot be compared with one of a decoder",
                where=where,
                why="they read different rows",
                remedy="layers are counted through the encoder, and on through the decoder; name two of one side",
            )
        if match.feature in STATES:
            _check_widths(match, teacher, student, where)
        else:
            _check_heads(match, attention_of(teacher), attention_of(student), where)


def attention_of(backbone: Backbone) -> AttentionConfig:
    """Sizes of its attentions.

    Args:
        backbone: Any.
    """
    return backbone.config.block_config(len(stacks_of(backbone)[0].blocks)).attention


def _is_late(layer: int | None, network: Backbone) -> bool:
    """Whether a layer comes after the first stack."""
    return resolve(layer, len(network.blocks)) > len(stacks_of(network)[0].blocks)


def _check_widths(match: FeatureMatch, teacher: Backbone, student: Backbone, where: str) -> None:
    wide, narrow = teacher.config.hidden_size, student.config.hidden_size
    if match.projection == "none" and wide != narrow:
        raise ConfigError(
            f"states of width {narrow} cannot be compared with states of width {wide}",
            where=f"{where}.projection",
            why=f"the student's hidden_size is {narrow}, the teacher's {wide}",
            remedy="set projection to linear or shared, or match `relation`, which has no width",
        )


def _check_heads(match: FeatureMatch, teacher: AttentionConfig, student: AttentionConfig, where: str) -> None:
    if match.feature == "scores" and teacher.num_heads != student.num_heads:
        raise ConfigError(
            f"scores of {student.num_heads} heads cannot be compared with scores of {teacher.num_heads}",
            where=f"{where}.feature",
            why="each head of the student is to resemble the teacher's head of the same number",
            remedy=f"give the student {teacher.num_heads} heads, or match `relation`, which cuts heads anew",
        )
    if match.feature == "relation":
        heads = match.relation_heads or teacher.num_heads
        for who, config in (("teacher", teacher), ("student", student)):
            for kind, num in (("queries", config.num_heads), ("keys and values", config.num_kv_heads)):
                if num * config.head_size % heads:
                    raise ConfigError(
                        f"the {who}'s {kind} cannot be cut into {heads} relation heads",
                        where=f"{where}.relation_heads",
                        why=f"they have {num * config.head_size} channels",
                        remedy="choose a divisor",
                    )
