"""DeepSpeed's ZeRO, on GPUs and on CPUs."""

from __future__ import annotations

import logging
import math
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from lmlab.callbacks.guard import not_finite
from lmlab.checkpoint.optimizer_names import group_names, named, numbered
from lmlab.config import check_choices, require
from lmlab.errors import ConfigError
from lmlab.nn.block import Block
from lmlab.nn.building import after_each_block
from lmlab.nn.sharded import full_shape
from lmlab.optim import MuonWithAdamW
from lmlab.strategies.zero_building import bring_along, take_apart
from lmlab.strategies.zero_kernels import torch_groups, with_kernels
from lmlab.strategies.zero_muon import FlatMuon
from lmlab.strategies.zero_order import GradientOrder
from lmlab.strategies.zero_state import read_optimizer, read_weights, write_optimizer, write_weights


class ZeRO(DeepSpeedStrategy):
    """Data parallelism whose ranks share optimizer state (stage 1), gradients too (2), parameters too (3), by DeepSpeed.

    torch's optimizers do the step, and nothing is compiled, unless `kernels` says otherwise. Checkpoints are the ordinary single file, with
    whole tensors by name: any other strategy, and any number of ranks, goes on from them. DeepSpeed's folders, which are pickles, are
    neither written nor read, and there is no sharded format: a model whose checkpoint does not fit one host is for FSDP. Each rank draws
    all weights, as one device does: stages 1 and 2 keep them; stage 3 keeps its part of a block before it draws the next, and never holds
    more than its parts, one block, and what is in no block.

    bf16-mixed means bfloat16 weights beside a float32 master copy here, not autocast as elsewhere.

    Args:
        stage: What is shared.
        offload: What is kept in the memory of the host: nothing, the optimizer's state, or (stage 3) parameters, too.
        persistence: Stage 3 keeps parameters of fewer elements together on all ranks.
        bucket: Elements that are exchanged at once; no more than the network has.
        kernels: Whose steps: `torch`, or `deepspeed` for its Adam on GPUs, and on CPUs or offloaded; it is compiled when first used.
        timeout: Seconds after which a rank that does not answer ends the job.
        process_group_backend: How ranks talk; None takes nccl on GPUs and gloo on CPUs.

    Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload: Literal["none", "optimizer", "all"] = "none",
        persistence: int = 100_000,
        bucket: int = 50_000_000,
        kernels: Literal["torch", "deepspeed"] = "torch",
        timeout: float = 1800.0,
        process_group_backend: str | None = None,
    ) -> None:
        """Makes DeepSpeed's config."""
        self.stage, self.offload, self.persistence, self.bucket = stage, offload, persistence, bucket
        self.kernels: Literal["torch", "deepspeed"] = kernels
        check_choices(self)
        require(
            offload != "all" or stage == 3, self, "offload", "parameters are shared at stage 3 only", "set it to optimizer, or stage to 3"
        )
        require(persistence >= 0, self, "persistence", "it is a number of elements", "0 keeps nothing together")
        require(bucket >= 1, self, "bucket", "it is a number of elements", "50_000_000 is a good one")
        _load()
        config: dict[str, Any] = {
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "train_micro_batch_size_per_gpu": 1,  # for its clocks only
            "zero_optimization": {
                "stage": stage,
                "overlap_comm": False,  # it needs streams
                "reduce_bucket_size": bucket,
                **({"allgather_bucket_size": bucket} if stage < 3 else {}),
                **({"stage3_param_persistence_threshold": persistence, "stage3_prefetch_bucket_size": bucket} if stage == 3 else {}),
                **({"offload_optimizer": {"device": "cpu"}} if offload != "none" else {}),
                **({"offload_param": {"device": "cpu"}} if offload == "all" else {}),
            },
        }
        super().__init__(
            config=config, timeout=timedelta(seconds=timeout), process_group_backend=process_group_backend, logging_level=logging.ERROR
        )
        self._names: list[list[str]] = []
        self._order: GradientOrder | None = None
        self._groups: list[Mapping[str, Any]] = []  # of torch's optimizer, as they were at first

    # what keeps Lightning's strategy from running on CPUs

    def setup_environment(self) -> None:
        """Like any other parallel strategy; Lightning's insists on CUDA."""
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        """Without the check of device numbers, which CPUs have none of."""
        if self.root_device.type != "cpu":
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Stage 3 takes each block of a network that is built inside apart at once; what is in no block waits for the engine.

        DeepSpeed's own way, `zero.Init` around it all, would take each layer apart before its weights are drawn.
        """
        self._init_config_if_needed()
        with after_each_block(self._take_apart if self.stage == 3 else None):
            yield

    def _take_apart(self, block: nn.Module) -> None:
        assert isinstance(self.config, dict)
        take_apart(block, self.config, self.precision_plugin.precision)

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None) -> Any:
        """Makes DeepSpeed's engine."""
        assert self.lightning_module is not None and optimizer is not None and isinstance(self.config, dict)
        self._names = group_names(self.lightning_module, optimizer)
        self._groups = [{**group, "params": []} for group in optimizer.param_groups]
        if self.kernels == "deepspeed":
            optimizer = with_kernels(optimizer, self.root_device if self.offload == "none" else torch.device("cpu"))
        if isinstance(optimizer, MuonWithAdamW):
            optimizer = FlatMuon(optimizer, self.root_device)
        trained = [p for p in model.parameters() if p.requires_grad]
        self._order = GradientOrder(trained, self.root_device) if self.stage > 1 else None
        engine, sharing = self._initialize(self.config, model, optimizer)
        if isinstance(optimizer, FlatMuon):
            optimizer.find(self.lightning_module, sharing, self._names)
        # Lightning has divided the loss by the accumulation already
        engine.backward = partial(engine.backward, scale_wrt_gas=False)
        return engine, sharing

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        """Without optimizer there is nothing to share but parameters."""
        assert isinstance(self.config, dict)
        if self.stage < 3:
            self.model = model.to(self.root_device)
            return
        config = {key: value for key, value in self.config.items() if key not in ("gradient_accumulation_steps", "gradient_clipping")}
        self.model, _ = self._initialize(config, model, None)

    def _initialize(self, config: dict[str, Any], model: nn.Module, optimizer: Optimizer | None) -> Any:
        import deepspeed

        trained: Any = [p for p in model.parameters() if p.requires_grad] if optimizer is not None else []
        if self.stage == 3:
            bring_along(model, self.root_device, self.precision_plugin.precision)
        device = self.root_device.index if self.root_device.index is not None else self.local_rank
        size = sum(full_shape(parameter).numel() for parameter in model.parameters())
        engine, sharing, _, _ = deepspeed.initialize(
            args=Namespace(device_rank=device),
            config=config | {"zero_optimization": _with_buckets_within(config["zero_optimization"], size)},
            model=model,
            model_parameters=trained,
            optimizer=optimizer,
            dist_init_required=False,
        )
        if self.stage == 3:
            # an objective reads embeddings, heads and factors in methods of its own: they come with it, as under FSDP
            for parameter in outside_blocks(model):
                deepspeed.zero.register_external_parameter(model, parameter)
        return engine, sharing

    def optimizer_step(self, optimizer: Any, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        """A step; gradients are where no callback finds them, so their norm is looked at here.

        Raises:
            LabError: If it was not finite. Weights are spoilt by now, but no checkpoint is. If gradients came in different orders.
        """

        def watched() -> Any:
            outcome = closure()
            if self._order is not None and self.deepspeed_engine.is_gradient_accumulation_boundary():
                self._order.check()
            return outcome

        result = super().optimizer_step(optimizer, watched, model, **kwargs)
        norm = self.deepspeed_engine.get_global_grad_norm()
        if norm is not None and not math.isfinite(norm):
            assert self.lightning_module is not None
            raise not_finite("gradient norm", float(norm), self.lightning_module.trainer.global_step)
        return result

    # one portable checkpoint

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights, whole and in float32 where a master copy has them, on rank 0; the others ask all the same."""
        assert self.lightning_module is not None
        return read_weights(self.lightning_module, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """The state as one process would write it, on rank 0."""
        assert self.lightning_module is not None
        state = read_optimizer(self.lightning_module, _plain(optimizer), self._names, keep=self.is_global_zero)
        if state:
            groups = zip(torch_groups(state["param_groups"], self._groups), self._names, strict=True)
            state["param_groups"] = [{**group, "params": names} for group, names in groups]
        return numbered(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Rank 0 writes."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the file, verified, and takes its parts."""
        module = self.lightning_module
        assert module is not None
        content = self.checkpoint_io.load_checkpoint(Path(self.broadcast(checkpoint_path)))
        write_weights(module, content["state_dict"])
        if module.trainer.state.fn == TrainerFn.FITTING:
            [state] = content["optimizer_states"]
            write_optimizer(module, _plain(self.optimizers[0]), named(state, self._names))
        return content

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Has been done."""

    def setup(self, trainer: Trainer) -> None:
        """Refuses precisions that a CPU has not."""
        if self.root_device.type == "cpu" and "16" in trainer.precision and "bf16" not in trainer.precision:
            what, remedy = f"precision {trainer.precision} does not run on CPUs", "set trainer.precision: bf16-mixed, or 32-true"
            raise ConfigError(what, where="trainer.precision", remedy=remedy)
        super().setup(trainer)


def _with_buckets_within(sharing: Mapping[str, Any], size: int) -> dict[str, Any]:
    """DeepSpeed allocates buckets whole, and anew in each backward pass, however few parameters fill them; and it wants even ones."""
    buckets = {key: min(value, max(size, 1)) for key, value in sharing.items() if key.endswith("bucket_size")}
    return {**sharing, **{key: elements + elements % 2 for key, elements in buckets.items()}}


def _plain(optimizer: Any) -> Any:
    return optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _load() -> None:
    """Imports DeepSpeed without its kernels: it does not look for a compiler, nor compile its way of talking over shared memory."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it has found no other
    try:
        import deepspeed.ops
        from deepspeed.ops.op_builder.all_ops import ALL_OPS
    except ImportError as error:
        what, remedy = "ZeRO needs DeepSpeed", "pip install 'lmlab[deepspeed]'"
        raise ConfigError(what, where="trainer.strategy", why=str(error), remedy=remedy) from error
    deepspeed.ops.__compatible_ops__ = dict.fromkeys(ALL_OPS, False)  # type: ignore[attr-defined]


def outside_blocks(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that belong to no block.

    Args:
        module: An objective whose network is built.
    """
    inside = {id(p) for block in module.modules() if isinstance(block, Block) for p in block.parameters()}
    return [p for p in module.parameters() if id(p) not in inside]
