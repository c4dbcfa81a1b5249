"""What happens inside a backbone: states between layers, queries, keys and values, and who may attend whom.

Hooks note it down while a forward pass goes on, and are gone afterwards: a backbone that nobody looks into pays nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lmlab.backbones.base import Backbone
from lmlab.backbones.stack import Stack
from lmlab.nn.attention import Attention
from lmlab.nn.block import Block
from lmlab.nn.mask import Visibility, not_ahead
from lmlab.nn.position import Rotary, rotate

LAST = -1
"""Stands for the last layer."""


class AttentionFeatures(NamedTuple):
    """What one self-attention works with.

    Args:
        query: (B, T, H, K), not turned by positions yet.
        key: (B, T, G, K), not turned by positions yet.
        value: (B, T, G, K).
        allowed: Broadcastable to (B, H, T, T) bool, True where attention is possible; None if it is everywhere.
        bias: Broadcastable to (B, H, T, T), what positions add to the scores; None for nothing.
        scale: Factor on the products.
        rotary: What turns queries and keys; None for nothing.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    allowed: Tensor | None
    bias: Tensor | None
    scale: float
    rotary: Rotary | None = None


@dataclass
class Features:
    """What was noted down in one forward pass.

    Args:
        embedding: (B, T, D), what the first layer reads.
        hidden: By layer, from 1: (B, T, D), what it puts out; of the last layer of a stack, after the final norm.
        attention: By layer, what its self-attention works with.
    """

    embedding: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, AttentionFeatures] = field(default_factory=dict)


def stacks_of(backbone: Backbone) -> list[Stack]:
    """The stacks of a backbone, in the order they run: layers are counted through them.

    Args:
        backbone: With one or two.
    """
    return [child for child in backbone.children() if isinstance(child, Stack)]


@contextmanager
def noting(
    backbone: Backbone, hidden: Collection[int] = (), attention: Collection[int] = (), embedding: bool = False
) -> Iterator[Features]:
    """Notes what happens in the forward pass inside a `with`.

    Args:
        backbone: To look into.
        hidden: Layers whose output is wanted, from 1.
        attention: Layers whose queries, keys and values are wanted.
        embedding: Whether what the first layer reads is wanted.

    Yields:
        Filled once the pass is over.
    """
    found = Features()
    notes: dict[int, _Note] = {}
    with ExitStack() as hooks:
        number = 0
        for stack in stacks_of(backbone):
            for block in stack.blocks:
                number += 1
                assert isinstance(block, Block)
                if number in attention:
                    _note_attention(hooks, block.attention, notes, number)
                if number in hidden:
                    # a stack puts out what its last block does, after the final norm
                    source: nn.Module = stack if block is stack.blocks[-1] else block
                    _hook(hooks, source.register_forward_hook(_output_to(found.hidden, number)))
                if number == 1 and embedding:
                    _hook(hooks, block.register_forward_pre_hook(lambda _, inputs: setattr(found, "embedding", inputs[0])))
        yield found
    # not in the hooks: a layer that is computed again in the backward pass must do then what it did before
    found.attention.update({number: _attention_features(*note) for number, note in notes.items()})


class _Note(NamedTuple):
    """What the hooks of one attention have seen."""

    attention: Attention
    parts: dict[int, Tensor]
    visible: Visibility
    rotary: Rotary | None


def _hook(hooks: ExitStack, handle: Any) -> None:
    hooks.callback(handle.remove)


def _output_to(into: dict[int, Any], key: int) -> Any:
    def note(_: nn.Module, __: Any, output: Any) -> None:
        into[key] = output

    return note


def _note_attention(hooks: ExitStack, attention: Attention, into: dict[int, _Note], number: int) -> None:
    """The projections are called as modules, so what they put out need not be computed a second time."""
    parts: dict[int, Tensor] = {}
    for index, projection in enumerate((attention.q, attention.k, attention.v)):
        _hook(hooks, projection.register_forward_hook(_output_to(parts, index)))

    def note(_: nn.Module, inputs: tuple[Any, ...], __: Tensor) -> None:
        into[number] = _Note(attention, parts, inputs[1], inputs[2])

    _hook(hooks, attention.register_forward_hook(note))


def _attention_features(attention: Attention, parts: dict[int, Tensor], visible: Visibility, rotary: Rotary | None) -> AttentionFeatures:
    lead = parts[0].shape[:2]
    shapes = (attention.query_shape, attention.key_shape, attention.key_shape)
    query, key, value = (parts[index].view(*lead, *shape) for index, shape in enumerate(shapes))
    scale, config = attention.config.scale, attention.config
    allowed, bias = _rules(visible, lead[0], lead[1], query.device)
    return AttentionFeatures(query, key, value, allowed, bias, config.head_size**-0.5 if scale is None else scale, rotary)


def _rules(visible: Visibility, size: int, length: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Who may attend whom, and what is added to the scores; each None where it says nothing."""
    if visible.scores is not None:
        allowed = visible.scores != -torch.inf
        return allowed, visible.scores.masked_fill(~allowed, 0.0)
    allowed = not_ahead(length, 0, device) if visible.causal else None
    if visible.segments is not None:
        bounds = visible.segments.bounds[1:].long()
        documents = torch.searchsorted(bounds, torch.arange(size * length, device=device), right=True).view(size, length)
        same = (documents[:, :, None] == documents[:, None, :])[:, None]
        allowed = same if allowed is None else allowed & same
    return allowed, None


def attention_scores(of: AttentionFeatures) -> Tensor:
    """Scores before the softmax: products of queries and keys, scaled, with what positions add; nothing is masked yet.

    Args:
        of: One self-attention.

    Returns:
        (B, H, T, T) float32 or wider.
    """
    query, key = (of.query, of.key) if of.rotary is None else (rotate(of.query, of.rotary), rotate(of.key, of.rotary))
    shared = query.shape[2] // key.shape[2]
    key = key.repeat_interleave(shared, dim=2) if shared > 1 else key
    scores = ((query * of.scale).transpose(1, 2) @ key.permute(0, 2, 3, 1)).to(torch.promote_types(query.dtype, torch.float32))
    return scores if of.bias is None else scores + of.bias


def relation_scores(of: AttentionFeatures, num_heads: int) -> Iterator[Tensor]:
    """How similar the tokens of a row are to each other as queries, as keys, and as values, before the softmax.

    The vectors of all heads are laid end to end and cut anew, so that networks with other numbers of heads can be compared. They are not
    turned by rotary positions: a cut through the pairs that are turned together would leave relations that depend on where a text stands.

    Args:
        of: One self-attention.
        num_heads: Relation heads, R.

    Yields:
        Three times (B, R, T, T) float32 or wider, scaled by the square root of the new head size.

    Source: Wang et al. 2021, "MiniLMv2", section 3.1 (multi-head self-attention relations).
    """
    for vectors in (of.query, of.key, of.value):
        cut = vectors.flatten(2).unflatten(2, (num_heads, -1)).transpose(1, 2)  # (B, R, T, width / R)
        products = (cut * cut.shape[-1] ** -0.5) @ cut.transpose(2, 3)
        yield products.to(torch.promote_types(products.dtype, torch.float32))
