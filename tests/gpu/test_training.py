"""Training on GPUs: one against the CPU, several against one, under every strategy, and the memory that a plan foretells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.data.module import CorpusModule
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.planning.cluster import Cluster
from lmlab.planning.devices import device_named
from lmlab.planning.prediction import predict
from lmlab.session import RunConfig
from lmlab.tokenizer import Tokenizer
from lmlab.training import fit
from tests.runs import taught_run
from tests.runs.conftest import Place, place, start  # noqa: F401  a fixture
from tests.strategies.conftest import PLAIN, apart, last

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900), pytest.mark.skipif(GPUS == 0, reason="needs CUDA")]
several = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")

ONE, MANY, HALF = 1e-3, 1e-5, 2e-2
"""Weights may be so far apart after 20 steps: on other hardware; on as many of the same kind; in half precision."""


SGD = {"optimizer": "sgd", "lr": 0.1}


@pytest.fixture
def taught(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:  # noqa: F811
    """A place with a teacher, in which every process that is started trains students."""
    trained(place, "clm", "auto", accelerator="cpu", name="guide")
    monkeypatch.setenv("LMLAB_RUNS", str(place.folder / "runs"))
    monkeypatch.setattr("tests.runs.conftest.SCRIPT", Path(taught_run.__file__))
    return place


def trained(place: Place, objective: str, strategy: str, ranks: int = 1, **given: Any) -> dict[str, torch.Tensor]:  # noqa: F811
    name = given.pop("name", "-".join(map(str, (objective, strategy, ranks, *given.values()))))
    settings = {**PLAIN, "micro": 8 // ranks, "objective": objective, "strategy": strategy, "devices": ranks, "accelerator": "gpu", **given}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    if not (place.folder / "runs" / name).exists():
        start(place.settings(name, name=name, **settings), launcher if ranks > 1 else ())
    return last(place, name)["state_dict"]


@pytest.mark.parametrize("objective", ["clm", "mlm", "span_corruption", "nsp", "contrastive", "recurrent_lm", "multitask"])
def test_a_gpu_trains_as_a_cpu(place: Place, objective: str) -> None:  # noqa: F811
    assert apart(trained(place, objective, "auto", accelerator="cpu", **SGD), trained(place, objective, "auto", **SGD)) < ONE


@pytest.mark.parametrize("objective", ["distillation", "on_policy"])
def test_a_gpu_teaches_as_a_cpu(taught: Place, objective: str) -> None:
    assert apart(trained(taught, objective, "auto", accelerator="cpu", **SGD), trained(taught, objective, "auto", **SGD)) < ONE


@several
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_several_gpus_teach_as_one(taught: Place, strategy: str) -> None:
    assert apart(trained(taught, "distillation", "auto", **SGD), trained(taught, "distillation", strategy, 2, **SGD)) < MANY


@several
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp_tp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_several_gpus_train_as_one(place: Place, strategy: str) -> None:  # noqa: F811
    assert apart(trained(place, "mlm", "auto"), trained(place, "mlm", strategy, 2)) < MANY


@several
@pytest.mark.parametrize("strategy", ["zero2_kernels", "zero3_kernels"])
def test_kernels_of_deepspeed(place: Place, strategy: str) -> None:  # noqa: F811
    assert apart(trained(place, "mlm", "auto"), trained(place, "mlm", strategy, 2)) < MANY


@several
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_half_precision_on_several_gpus(place: Place, strategy: str) -> None:  # noqa: F811
    half = {"precision": "bf16-mixed"}
    assert apart(trained(place, "mlm", "auto", **half), trained(place, "mlm", strategy, 2, **half)) < HALF


@several
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_compiled_on_several_gpus(place: Place, strategy: str) -> None:  # noqa: F811
    assert apart(trained(place, "clm", "auto"), trained(place, "clm", strategy, 2, compiled=True)) < MANY


@pytest.mark.skipif(GPUS < 4, reason="needs four GPUs")
@pytest.mark.parametrize("strategy", ["hsdp", "fsdp_tp"])
def test_four_gpus_train_as_one(place: Place, strategy: str) -> None:  # noqa: F811
    assert apart(trained(place, "mlm", "auto"), trained(place, "mlm", strategy, 4)) < MANY


class Peak(Callback):
    """The most memory that was allocated in any step."""

    bytes = 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bytes = torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("kind", [CLM, MLM])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_plan_foretells_the_peak(place: Place, tmp_path: Path, kind: type[CLM | MLM], precision: Any) -> None:  # noqa: F811
    backbone = BackboneConfig(hidden_size=512, num_layers=8, num_heads=8)
    tokenizer, peak = Tokenizer.load(place.tokenizer), Peak()
    objective = kind(tokenizer, backbone, OptimizerConfig(name="adamw", lr=1e-4), ScheduleConfig(), length=256)
    data = CorpusModule(place.corpus, tokenizer, objective.feed(), global_batch_size=8, cache_dir=str(tmp_path / "cache"))
    budget = BudgetConfig(steps=3, validations=0, checkpoints=0)
    [row, *_] = predict(objective, data, budget, Cluster(device=device_named("h100")), precision=precision).rows
    torch.cuda.reset_peak_memory_stats()
    fit(
        objective,
        data,
        budget,
        RunConfig(name="peak", root=str(tmp_path)),
        precision=precision,
        callbacks=[peak],
        trainer={"accelerator": "gpu", "devices": 1, "enable_progress_bar": False},
    )
    assert row.bytes is not None and 0.75 < row.bytes.total / peak.bytes < 1.25
