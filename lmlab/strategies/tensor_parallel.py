"""Layers cut over ranks: each computes some heads and some of the inner features of a block."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from lmlab.errors import ConfigError
from lmlab.nn.attention import Attention
from lmlab.nn.block import Block
from lmlab.nn.feedforward import FeedForward
from lmlab.nn.position import RelativeBias


def cut_layers(module: nn.Module, mesh: DeviceMesh) -> None:
    """Cuts attention by heads and feed-forward networks by inner features, in place; the rest is the same on all ranks of the mesh.

    The first projections of a part are cut along their outputs and the last along its inputs, so that a part exchanges one sum.

    Args:
        module: An objective whose network is built.
        mesh: The ranks that share each layer, of one dimension.

    Raises:
        ConfigError: If the layers cannot be cut into as many parts.

    Source: Shoeybi et al. 2019, "Megatron-LM", section 3.
    """
    blocks = [one for one in module.modules() if isinstance(one, Block)]
    if not blocks:
        raise _refused("this network has no transformer blocks to cut", "use strategies/fsdp.yaml")
    if any(isinstance(one, RelativeBias) for one in module.modules()) or _uses_alibi(module):
        raise _refused("positions that are added to attention scores are not cut by heads", "use rope or learned positions")
    for block in blocks:
        cut_block(block, mesh)


def cut_block(block: nn.Module, mesh: DeviceMesh) -> None:
    """Cuts the layers of one block, in place; a part that was cut before is left alone.

    Args:
        block: Its weights are drawn, and not shared otherwise yet.
        mesh: The ranks that share each layer, of one dimension.

    Raises:
        ConfigError: If the layers cannot be cut into as many parts.
    """
    for part in block.children():
        if isinstance(part, Attention) and not isinstance(part.q.weight, DTensor):
            _cut_attention(part, mesh)
        elif isinstance(part, FeedForward) and not isinstance(part.fc1.weight, DTensor):
            _cut_feedforward(part, mesh)


def _cut_attention(attention: Attention, mesh: DeviceMesh) -> None:
    parts = mesh.size()
    (heads, size), (kv_heads, _) = attention.query_shape, attention.key_shape
    if heads % parts or kv_heads % parts:
        raise _refused(f"{heads} heads over {kv_heads} keys do not divide among {parts} ranks", "set num_heads to a multiple")
    plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in "qkv"}
    parallelize_module(attention, mesh, {**plan, "o": RowwiseParallel()})
    attention.query_shape, attention.key_shape = (heads // parts, size), (kv_heads // parts, size)


def _cut_feedforward(feedforward: FeedForward, mesh: DeviceMesh) -> None:
    if feedforward.config.inner_size % mesh.size():
        what = f"{feedforward.config.inner_size} inner features do not divide among {mesh.size()} ranks"
        raise _refused(what, "set feedforward_size to a multiple")
    plan: dict[str, ParallelStyle] = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}
    if feedforward.gate is not None:
        plan["gate"] = ColwiseParallel()
    parallelize_module(feedforward, mesh, plan)


def _uses_alibi(module: nn.Module) -> bool:
    return any(getattr(getattr(one, "config", None), "position", None) == "alibi" for one in module.modules())


def _refused(what: str, remedy: str) -> ConfigError:
    return ConfigError(what, where="trainer.strategy.tensor_parallel", why="each rank computes some heads and features", remedy=remedy)
