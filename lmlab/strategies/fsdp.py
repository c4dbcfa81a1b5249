"""FSDP2: each rank holds a part of every parameter, gradient and optimizer state, and gathers one block at a time."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lmlab.checkpoint.optimizer_names import group_names, named, numbered
from lmlab.errors import ConfigError
from lmlab.nn.block import Block

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism, block by block.

    Checkpoints are the ordinary single file, with whole tensors by name: any other strategy, and any number of ranks, goes on from them.
    Weights are drawn whole on each rank, as on one device, and sharded then.

    Args:
        reshard_after_forward: Whether a block's parameters are let go of between its forward and its backward pass: `always` holds least,
            `never` exchanges a third less.
        timeout: Seconds after which a rank that does not answer ends the job.
        process_group_backend: How ranks talk; None takes nccl on GPUs and gloo on CPUs.

    Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5 (stage 3);
    Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", section 3.
    """

    def __init__(
        self,
        reshard_after_forward: Literal["always", "never"] = "always",
        timeout: float = 1800.0,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout),
        )
        self.reshard_after_forward = reshard_after_forward

    def setup_environment(self) -> None:
        """All ranks share the data: Lightning's default would make them share the layers."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Shards the objective, which is built by now; Lightning then makes the optimizer."""
        assert self.lightning_module is not None
        shard(self.lightning_module, self.device_mesh["data_parallel"], self.reshard_after_forward)
        super().setup(trainer)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights, whole, on rank 0; nothing on the others, which must ask all the same."""
        assert self.lightning_module is not None
        return get_model_state_dict(self.lightning_module, options=WHOLE)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as one process would write it, on rank 0; Lightning numbers parameters in another order than torch does."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.lightning_module is not None
        return numbered(get_optimizer_state_dict(self.lightning_module, plain, options=WHOLE))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Rank 0 writes."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the file, verified, and takes its parts."""
        module = self.lightning_module
        assert module is not None
        content = self.checkpoint_io.load_checkpoint(Path(self.broadcast(checkpoint_path)))
        options = StateDictOptions(full_state_dict=True, strict=module.strict_loading)
        set_model_state_dict(module, content["state_dict"], options=options)
        if module.trainer.state.fn == TrainerFn.FITTING:
            for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
                by_name = named(state, group_names(module, optimizer))
                set_optimizer_state_dict(module, optimizer, by_name, options=options)
        return content


def shard(module: nn.Module, mesh: Any, reshard_after_forward: Literal["always", "never"] = "always") -> None:
    """Shards each block, and then what is left, as one; in place.

    Args:
        module: An objective whose network is built; all its forward passes must go through `module(...)` from now on.
        mesh: The ranks to share it.
        reshard_after_forward: See `FSDP2Strategy`.

    Raises:
        ConfigError: If a parameter remained whole: ranks would train copies that drift apart.
    """
    if isinstance(module, FSDPModule):
        return
    for block in [one for one in module.modules() if isinstance(one, Block)]:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward == "always")
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward == "always")
    left = [name for name, parameter in module.named_parameters() if not isinstance(parameter, DTensor)]
    if left:
        raise ConfigError(
            f"'{left[0]}' was not sharded, nor {len(left) - 1} more",
            where="trainer.strategy",
            why="each rank would train a copy of its own",
            remedy="register it in the objective, once",
        )
