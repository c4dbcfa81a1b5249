"""One run with a diary of every micro-batch, in a process of its own or on two ranks; may kill itself inside a window.

Called by the tests of this folder: `python one_run.py '{"objective": "mlm", "root": ..., "corpus": ..., "out": ..., ...}'`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmlab.backbones import BackboneConfig, RecurrentConfig
from lmlab.budget import BudgetConfig
from lmlab.callbacks import Compile, WeightAveraging
from lmlab.data.module import CorpusModule
from lmlab.data.store import StoreConfig
from lmlab.data.task_order import TaskSampling
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.contrast_config import ContrastConfig
from lmlab.objectives.contrastive import Contrastive
from lmlab.objectives.mlm import MLM
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.ngram import NGram
from lmlab.objectives.nsp import NextSentence
from lmlab.objectives.recurrent_lm import RecurrentLM
from lmlab.objectives.span_corruption import SpanCorruption
from lmlab.objectives.task_config import TaskConfig
from lmlab.objectives.task_step import GradientsConfig
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.optim.weighting import WeightingConfig
from lmlab.session import RunConfig
from lmlab.tokenizer import Tokenizer
from lmlab.training import fit

LENGTH, GLOBAL_BATCH = 32, 8
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    # called with tokenizer, backbone, optimizer and schedule
    "clm": partial(CLM, length=LENGTH),
    "mlm": partial(MLM, length=LENGTH),
    "span_corruption": partial(SpanCorruption, length=LENGTH),
    "nsp": partial(NextSentence, length=LENGTH),
    "recurrent_lm": lambda tok, backbone, *rest: RecurrentLM(tok, RecurrentConfig(hidden_size=32, dropout=backbone.dropout), *rest, LENGTH),
}
ALONE: dict[str, Callable[..., Objective]] = {"ngram": lambda tok, *_: NGram(tok, length=LENGTH)}
"""Not trained by several ranks."""

OVER_BATCH: dict[str, Callable[..., Objective]] = {
    "contrastive": partial(
        Contrastive, length=LENGTH, contrast=ContrastConfig(positives="word_repetition", temperature=0.5, temperature_kind="learned")
    ),
    "contrastive_mlm": partial(
        Contrastive, length=LENGTH, contrast=ContrastConfig(positives="neighbours", temperature=0.5, mlp="none", mlm_weight=0.5)
    ),
}
"""A rank's share of a step is one batch. The temperature is mild: a sharp one multiplies what is rounded from step to step."""


def _multitask(kinds: Sequence[str], **settings: Any) -> Callable[..., Objective]:
    """A factory like those above; heads have weights of their own."""
    paths = {"mlm": MLM, "clm": CLM, "contrastive": Contrastive}
    further: dict[str, dict[str, Any]] = {"contrastive": {"contrast": {"positives": "word_repetition", "temperature": 0.5}}}
    tasks = {
        kind: TaskConfig(objective=f"{paths[kind].__module__}.{paths[kind].__name__}", settings={"length": LENGTH, **further.get(kind, {})})
        for kind in kinds
    }

    def make(tokenizer: Tokenizer, backbone: BackboneConfig, *rest: Any) -> Objective:
        return Multitask(tokenizer, replace(backbone, mlm_transform="dense", head_bias=True), *rest, tasks=tasks, **settings)

    return make


MULTITASK: dict[str, Callable[..., Objective]] = {
    "multitask": _multitask(("mlm", "clm"), weighting=WeightingConfig(kind="uncertainty"), gradients=GradientsConfig(rule="pcgrad")),
    "multitask_norms": _multitask(("clm", "mlm"), weighting=WeightingConfig(kind="gradnorm")),
    "multitask_turns": _multitask(
        ("mlm", "clm"), sampling=TaskSampling(regime="temperature", temperature=2.0), weighting=WeightingConfig(kind="dwa", period=2)
    ),
    "multitask_rests": _multitask(
        ("mlm", "clm"), sampling=TaskSampling(regime="round_robin"), weighting=WeightingConfig(kind="uncertainty")
    ),
    "multitask_contrastive": _multitask(("mlm", "contrastive"), weighting=WeightingConfig(kind="uncertainty")),
}
"""Several tasks on one backbone: one of them in turn, or all of them, of which one may have passes of its own."""


def digest(value: Any) -> str:
    """A short hash of tensors, in containers or not."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    if isinstance(value, dict):
        return hashlib.sha256("".join(f"{k}:{digest(v)}" for k, v in sorted(value.items())).encode()).hexdigest()[:16]
    return str(value)


class Diary(Callback):
    """Writes batch, loss and learning rate of every micro-batch, and dies where it is told to, or asks the run to stop after a step."""

    def __init__(self, path: str, kill_at: int | None, stop_at: int | None = None) -> None:
        self.path, self.kill_at, self.stop_at = Path(path), kill_at, stop_at

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        window = batch["window"]
        key = (window.position, window.index)
        line = {
            "key": list(key),
            "batch": digest({k: v for k, v in batch.items() if k not in ("window",)}),
            "loss": outputs["loss"].item().hex(),
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]).hex(),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.kill_at is not None and window.position // GLOBAL_BATCH == self.kill_at and (not window.is_last or window.size == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if window.is_last and trainer.global_step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


DEFAULTS: dict[str, Any] = {
    "name": "run",
    "resume": "never",
    "steps": 6,
    "checkpoints": 6,
    "validations": 3,
    "micro": 4,
    "num_workers": 0,
    "dropout": 0.1,
    "optimizer": "adamw",
    "lr": 1e-2,
    "devices": 1,
    "precision": "32-true",
    "strategy": None,
    "kill_at": None,
    "stop_at": None,
    "compiled": False,
    "averaged": False,
    "diary": os.devnull,
    "log_every": 50,
    "clip": "norm",
    "clip_at": 1.0,
    "accelerator": "cpu",
}


def strategy(name):
    from lmlab.strategies import DDP, FSDP, ZeRO

    made = {"ddp": partial(DDP, timeout=60), "fsdp": partial(FSDP, timeout=60), "hsdp": partial(FSDP, replicas=2, timeout=60)}
    made |= {"fsdp_tp": partial(FSDP, tensor_parallel=2, timeout=60)}
    made |= {f"{name}_sharded": partial(made[name], checkpoint="sharded") for name in ("fsdp", "hsdp", "fsdp_tp")}
    made |= {f"zero{stage}": partial(ZeRO, stage=stage, timeout=60, persistence=0) for stage in (1, 2, 3)}
    made |= {f"zero{stage}_offload": partial(made[f"zero{stage}"], offload=what) for stage, what in ((2, "optimizer"), (3, "all"))}
    made |= {"zero2_kernels": partial(made["zero2"], kernels="deepspeed")}
    made |= {"zero3_kernels": partial(made["zero3_offload"], kernels="deepspeed")}
    made |= {f"zero{stage}_small": partial(_small, made[f"zero{stage}"]) for stage in (1, 2, 3)}
    return made[name]() if name in made else name


def _small(make: Callable[..., Any]) -> Any:
    """Limits that are small beside the network, as they are beside one of billions of parameters: it takes many of each, some overfull."""
    limits = {"sub_group_size": 3000, "stage3_max_live_parameters": 9000, "stage3_max_reuse_distance": 1000}
    sharing = make(bucket=1000, persistence=100)  # of vectors, not of matrices
    sharing.config["zero_optimization"] |= limits if sharing.stage == 3 else {}
    return sharing


def main(given: dict[str, Any]) -> None:
    """Trains, and writes the final weights and what the run was to `out`."""
    settings = DEFAULTS | given
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(settings["tokenizer"])
    dropout = settings["dropout"]
    objective = (OBJECTIVES | ALONE | OVER_BATCH | MULTITASK)[settings["objective"]](
        tokenizer,
        BackboneConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            dropout=dropout,
            attention_dropout=dropout,
            num_segments=2 if settings["objective"] == "nsp" else 0,
        ),
        OptimizerConfig(name=settings["optimizer"], lr=settings["lr"]),
        ScheduleConfig(kind="cosine", warmup=0.2),
    )
    data = CorpusModule(
        settings["corpus"],
        tokenizer,
        objective.feed(),
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=settings["micro"],
        num_workers=settings["num_workers"],
        seed=3,
        eval_examples=8,
        store=StoreConfig(val_share=0.3),  # several documents, so that there are pairs of two
        cache_dir=settings["cache"],
    )
    run = fit(
        objective,
        data,
        BudgetConfig(steps=settings["steps"], validations=settings["validations"], checkpoints=settings["checkpoints"]),
        RunConfig(name=settings["name"], root=settings["root"], resume=settings["resume"], keep=None),
        callbacks=[
            Diary(settings["diary"], settings["kill_at"], settings["stop_at"]),
            *([Compile()] if settings["compiled"] else []),
            *([WeightAveraging(0.9)] if settings["averaged"] else []),
        ],
        precision=settings["precision"],
        seed=3,
        trainer={
            "enable_progress_bar": False,
            "log_every_n_steps": settings["log_every"],
            "gradient_clip_algorithm": settings["clip"],
            "gradient_clip_val": settings["clip_at"],
            "accelerator": settings["accelerator"],
            "devices": settings["devices"],
            "strategy": strategy(settings["strategy"] or ("ddp" if settings["devices"] > 1 else "auto")),
        },
    )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        weights = {name: value.detach().clone() for name, value in objective.state_dict().items()}
        torch.save({"weights": weights, "run": str(run.path), "examples": len(data.view("train"))}, settings["out"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
