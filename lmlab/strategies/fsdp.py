"""FSDP2: each rank holds a part of every parameter, gradient and optimizer state, and gathers one block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lmlab.checkpoint.optimizer_names import group_names, named, numbered
from lmlab.config import check_choices, require
from lmlab.errors import ConfigError
from lmlab.nn.block import Block
from lmlab.nn.building import after_each_block
from lmlab.nn.sharded import norm_of, own_part
from lmlab.strategies.shards import read_shards, write_shards
from lmlab.strategies.tensor_parallel import cut_block, cut_layers

WHOLE, PARTS = StateDictOptions(full_state_dict=True, cpu_offload=True), StateDictOptions()
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
"""Blocks are gathered in bfloat16, for autocast to find: left to itself, it would keep a copy of each matrix until the backward pass."""


class FSDP(ModelParallelStrategy):
    """Fully sharded data parallelism, block by block; in groups that are copies of each other, and with layers cut, if wanted.

    Checkpoints are the ordinary single file, with whole tensors by name, or a folder to which each rank writes its parts: any other
    strategy, and any number of ranks, goes on from both. Each rank draws all weights, as one device does, block by block, and keeps its
    part of a block before it draws the next: no rank ever holds more than its parts, one block, and what is in no block. bf16-mixed
    gathers them in bfloat16, norms too; gradients are reduced and weights stepped in float32.

    Args:
        replicas: Groups of ranks; each holds all parameters, shared among its ranks (HSDP). Set it to the number of nodes where the
            network between nodes is slow.
        tensor_parallel: Ranks that compute each layer together, each some of its heads and features. They read the same data.
        reshard_after_forward: Whether a block's parameters are let go of between its forward and its backward pass: `always` holds least,
            `never` exchanges a third less.
        checkpoint: `file`: rank 0 puts it together and writes it. `sharded`: each rank writes its parts into a folder, which all hosts must
            see; for models that do not fit one host.
        timeout: Seconds after which a rank that does not answer ends the job.
        process_group_backend: How ranks talk; None takes nccl on GPUs and gloo on CPUs.

    Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5 (stage 3);
    Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", section 3.
    """

    def __init__(
        self,
        replicas: int = 1,
        tensor_parallel: int = 1,
        reshard_after_forward: Literal["always", "never"] = "always",
        checkpoint: Literal["file", "sharded"] = "file",
        timeout: float = 1800.0,
        process_group_backend: str | None = None,
    ) -> None:
        """Stores the settings."""
        self.replicas, self.tensor_parallel = replicas, tensor_parallel
        self.reshard_after_forward: Literal["always", "never"] = reshard_after_forward
        self.checkpoint: Literal["file", "sharded"] = checkpoint
        check_choices(self)
        for name in ("replicas", "tensor_parallel"):
            require(getattr(self, name) >= 1, self, name, "it is a number of ranks or groups", "1 is none")
        super().__init__(
            tensor_parallel_size=tensor_parallel,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout),
        )
        self._mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Lays the ranks out: those that share layers are neighbours, then those that share parameters, then the copies."""
        world = self.num_processes * self.num_nodes
        if world % (self.replicas * self.tensor_parallel):
            raise ConfigError(
                f"{world} rank(s) cannot be {self.replicas} copies of a network whose layers {self.tensor_parallel} ranks share",
                where="trainer.strategy",
                why="replicas x tensor_parallel divides the number of ranks",
                remedy=f"set trainer.devices to a multiple of {self.replicas * self.tensor_parallel}",
            )
        self._data_parallel_size = world // self.tensor_parallel
        super().setup_environment()
        self._mesh = self._sharding_mesh()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Each block of a network that is built inside is cut and sharded at once; what is in no block waits for `setup`."""
        with after_each_block(self._share_block):
            yield

    def _share_block(self, block: nn.Module) -> None:
        if self.tensor_parallel > 1:
            cut_block(block, self.device_mesh["tensor_parallel"])
        self._shard_units(block)

    def _shard_units(self, module: nn.Module) -> None:
        assert self._mesh is not None
        policy = HALF if self.precision_plugin.precision == "bf16-mixed" else MixedPrecisionPolicy()
        shard(module, self._mesh, self.reshard_after_forward, policy)

    def setup(self, trainer: Trainer) -> None:
        """Cuts and shards the objective, which is built by now; Lightning then makes the optimizer."""
        assert self.lightning_module is not None
        if self.tensor_parallel > 1:
            cut_layers(self.lightning_module, self.device_mesh["tensor_parallel"])
        self._shard_units(self.lightning_module)
        super().setup(trainer)
        # Lightning's own, and kernels over many tensors, need them all to lie on the same ranks
        self.precision_plugin.clip_grad_by_norm = _clip_by_norm
        self.precision_plugin.clip_grad_by_value = _clip_by_value
        if self.tensor_parallel > 1:
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group.update({key: False for key in ("fused", "foreach") if key in group})

    def _sharding_mesh(self) -> DeviceMesh:
        if self.replicas == 1:
            return self.device_mesh["data_parallel"]
        sizes = (self.replicas, self.world_size // self.replicas // self.tensor_parallel, self.tensor_parallel)
        mesh = init_device_mesh(self.root_device.type, sizes, mesh_dim_names=("replicas", "shards", "layers"))
        return mesh["replicas", "shards"]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights, whole, on rank 0; nothing on the others, which must ask all the same. If sharded, each rank's parts."""
        assert self.lightning_module is not None
        return get_model_state_dict(self.lightning_module, options=WHOLE if self.checkpoint == "file" else PARTS)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Likewise, as one process would write it; Lightning numbers parameters in another order than torch does."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.lightning_module is not None
        options = WHOLE if self.checkpoint == "file" else PARTS
        return numbered(get_optimizer_state_dict(self.lightning_module, plain, options=options))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Rank 0 writes a file, or all ranks a folder."""
        if self.checkpoint == "sharded":
            write_shards(checkpoint, Path(filepath))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the file, verified, and takes its parts; of a folder it reads no more than those."""
        module = self.lightning_module
        assert module is not None
        path = Path(self.broadcast(checkpoint_path))
        is_folder = path.is_dir()
        wanted = self.optimizers if module.trainer.state.fn == TrainerFn.FITTING else []
        content = read_shards(path, module, wanted) if is_folder else self.checkpoint_io.load_checkpoint(path)
        options = StateDictOptions(full_state_dict=not is_folder, strict=module.strict_loading)
        set_model_state_dict(module, content["state_dict"], options=options)
        for optimizer, state in zip(wanted, content["optimizer_states"], strict=True) if wanted else ():
            set_optimizer_state_dict(module, optimizer, named(state, group_names(module, optimizer)), options=options)
        return content


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    reshard_after_forward: Literal["always", "never"] = "always",
    policy: MixedPrecisionPolicy = MixedPrecisionPolicy(),
) -> None:
    """Shards each block that is not sharded yet, and then what is left, as one; in place.

    Args:
        module: An objective whose network is built, or a block; all its forward passes must go through `module(...)` from now on.
        mesh: The ranks to share it, of one dimension; of two for copies, and the ranks that share each.
        reshard_after_forward: See `FSDP`.
        policy: In what precision parameters are gathered and gradients reduced.

    Raises:
        ConfigError: If a parameter remained whole: ranks would train copies that drift apart.
    """
    if isinstance(module, FSDPModule):
        return
    blocks = (one for one in module.modules() if isinstance(one, Block) and not isinstance(one, FSDPModule))
    for unit in dict.fromkeys([*blocks, module]):
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward == "always", mp_policy=policy)
    left = [name for name, parameter in module.named_parameters() if not isinstance(parameter, DTensor)]
    if left:
        raise ConfigError(
            f"'{left[0]}' was not sharded, nor {len(left) - 1} more",
            where="trainer.strategy",
            why="each rank would train a copy of its own",
            remedy="register it in the objective, once",
        )


def _clip_by_norm(optimizer: Optimizer, clip_val: float) -> None:
    gradients = _gradients(optimizer)
    if gradients:
        factor = (clip_val / (norm_of(gradients) + 1e-6)).clamp(max=1.0)  # as torch's
        for gradient in gradients:
            own_part(gradient).mul_(factor)


def _clip_by_value(optimizer: Optimizer, clip_val: float) -> None:
    for gradient in _gradients(optimizer):
        own_part(gradient).clamp_(-clip_val, clip_val)


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
