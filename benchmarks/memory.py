"""What `lmlab plan` predicts for one process on a CPU, beside the bytes of a real step.

python -m benchmarks.memory [--only clm,mlm,...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lmlab.callbacks import WeightAveraging
from lmlab.data.batch import Batch
from lmlab.data.module import CorpusModule
from lmlab.nn.frozen import Frozen
from lmlab.objectives.base import Objective
from lmlab.optim import ExponentialMovingAverage
from lmlab.planning.cluster import Cluster
from lmlab.planning.devices import device_named
from lmlab.planning.memory import Bytes
from lmlab.planning.prediction import predict

CONFIGS = Path(__file__).parents[1] / "configs"
SMOKE = str(CONFIGS / "debug" / "smoke.yaml")
BF16, TRUE = ["--trainer.precision=bf16-mixed"], ["--trainer.precision=bf16-true"]
BLOCKS = ["--model.backbone.checkpointing=blocks"]
ADAMW, EMA = ["-c", str(CONFIGS / "optim" / "adamw.yaml")], ["-c", str(CONFIGS / "optim" / "ema.yaml")]
CASES: dict[str, tuple[str, list[str]]] = {
    "clm": ("pretrain/clm", []),
    "clm, mini, adamw": ("pretrain/clm", ["-c", str(CONFIGS / "backbones" / "mini.yaml"), *ADAMW]),
    "clm, bf16-mixed": ("pretrain/clm", BF16),
    "clm, bf16-true": ("pretrain/clm", [*TRUE, *ADAMW]),
    "clm, checkpointing": ("pretrain/clm", BLOCKS),
    "clm, adafactor, average": ("pretrain/clm", ["--model.optimizer={name: adafactor}", *EMA]),
    "mlm": ("pretrain/mlm", []),
    "mlm, bf16-mixed": ("pretrain/mlm", BF16),
    "span_corruption": ("pretrain/span_corruption", []),
    "nsp": ("pretrain/nsp", []),
    "contrastive": ("pretrain/contrastive", []),
    "recurrent_lm": ("pretrain/recurrent_lm", []),
    "multitask": ("pretrain/multitask", []),
    "distillation": ("pretrain/distillation", []),
    "tinybert": ("distillation/tinybert", []),
}
TEACHERS = {"distillation": "pretrain/clm", "tinybert": "pretrain/mlm"}


class Case(NamedTuple):
    """One line of the table, in bytes.

    Args:
        name: What is run.
        predicted: By `lmlab plan`.
        measured: Of a real step.
    """

    name: str
    predicted: Bytes
    measured: Bytes


def measure(objective: Objective, batches: list[Batch], precision: str, averages: bool = False) -> Bytes:
    """Takes one step and counts: bytes of tensors, each storage once.

    Args:
        objective: Not built.
        batches: Micro-batches that are differentiated one after the other; activations are those of the largest.
        precision: Of the Trainer.
        averages: Whether weights are averaged.
    """
    objective.configure_model()
    objective.setup("fit")
    if precision == "bf16-true":
        objective.to(torch.bfloat16)
    objective.train()
    optimizer = objective.configure_optimizers()
    average = ExponentialMovingAverage(objective) if averages else None
    most = 0
    for batch in batches:
        sizes: dict[int, int] = {}
        kept: list[Tensor] = []
        own = {p.untyped_storage().data_ptr() for p in objective.parameters()}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes, kept: list[Tensor] = kept, own: set[int] = own) -> Tensor:
            where = tensor.untyped_storage().data_ptr()
            if where not in own:
                sizes[where] = tensor.untyped_storage().nbytes()
                kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                losses = objective(batch)
            most = max(most, sum(sizes.values()))
        # divided here, so that what a division keeps is not counted
        torch.stack([part.sum / part.count.clamp(min=1) for part in losses.parts.values()]).sum().backward()
    optimizer.step()
    guests = [one.module for one in objective.modules() if isinstance(one, Frozen)]
    return Bytes(
        weights=sum(_bytes(t) for one in (objective, *guests) for t in _tensors(one)),
        gradients=sum(_bytes(p.grad) for p in objective.parameters() if p.grad is not None),
        optimizer=sum(_bytes(t) for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)),
        average=sum(_bytes(t) for t in average._averages.values()) if average else 0,
        activations=most,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def run(name: str, extra: list[str]) -> Case:
    """Predicts and measures a shipped config, on its own text.

    Args:
        name: In `CASES`.
        extra: Further settings.
    """
    from lmlab.cli.allowlist import admit
    from lmlab.cli.planning import read_settings

    path, own = CASES[name]
    words = ["fit", "-c", str(CONFIGS / f"{path}.yaml"), *own, *extra]
    planned = read_settings(admit(words))
    precision = str(planned.precision or "32-true")
    cluster = Cluster(device=device_named("cpu"))
    predicted = predict(planned.objective, planned.data, planned.budget, cluster, precision=precision, callbacks=planned.callbacks).rows[0]
    assert predicted.bytes is not None
    averages = any(isinstance(callback, WeightAveraging) for callback in planned.callbacks)
    real = read_settings(admit(words), "trained")
    return Case(name, predicted.bytes, measure(real.objective, first_batches(real.data), precision, averages))


def first_batches(data: CorpusModule) -> list[Batch]:
    """The first micro-batch of a run, a batch for each of its tasks.

    Args:
        data: With a feed.
    """
    batch = {key: value for key, value in next(iter(data.train_dataloader())).items() if key != "window"}
    return [{"tasks": {task: own}} for task, own in batch["tasks"].items()] if "tasks" in batch else [batch]


@contextmanager
def short_teachers(names: list[str]) -> Iterator[None]:
    """Runs of two steps for students to learn from, in a folder that is removed."""
    from lmlab.cli import main

    before = os.environ.get("LMLAB_RUNS")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LMLAB_RUNS"] = folder
        try:
            for path in sorted({TEACHERS[name] for name in names if name in TEACHERS}):
                quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
                assert main(["fit", "-c", str(CONFIGS / f"{path}.yaml"), "-c", SMOKE, *quiet]) == 0
            yield
        finally:
            os.environ.pop("LMLAB_RUNS") if before is None else os.environ.update(LMLAB_RUNS=before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--only", help="names, with semicolons between them")
    parser.add_argument("--json", type=Path, help="write the bytes here, too")
    options = parser.parse_args()
    names = options.only.split(";") if options.only else list(CASES)
    with short_teachers(names):
        cases = [run(name, []) for name in names]
    parts = ("weights", "gradients", "optimizer", "average", "activations")
    table = Table("run", *parts[:4], "activations predicted", "measured", "off by", box=None, pad_edge=False)
    for case in cases:
        exact = ["exact" if getattr(case.predicted, p) == getattr(case.measured, p) else "WRONG" for p in parts[:4]]
        exact = [f"{getattr(case.measured, p) / 2**20:.2f} {e}" for p, e in zip(parts, exact, strict=False)]
        off = case.predicted.activations / case.measured.activations - 1
        table.add_row(case.name, *exact, *(f"{b.activations / 2**20:.1f}" for b in (case.predicted, case.measured)), f"{off:+.1%}")
    Console(highlight=False, soft_wrap=True, width=200).print("in MiB", table)
    if options.json:
        rows: list[Any] = [{"name": c.name, **{k: [getattr(c.predicted, k), getattr(c.measured, k)] for k in parts}} for c in cases]
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
