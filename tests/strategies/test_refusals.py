"""What is refused, is refused before anything begins, with the sentence of the table; the rest of the table is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lmlab.backbones import BackboneConfig, RecurrentConfig
from lmlab.callbacks import Compile, WeightAveraging
from lmlab.data.task_order import TaskSampling
from lmlab.errors import ConfigError
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.contrast_config import ContrastConfig
from lmlab.objectives.contrastive import Contrastive
from lmlab.objectives.distillation import Distillation
from lmlab.objectives.distillation_losses import DistillationLoss
from lmlab.objectives.layer_map import FeatureMatch
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.ngram import NGram
from lmlab.objectives.recurrent_lm import RecurrentLM
from lmlab.objectives.task_config import TaskConfig
from lmlab.objectives.task_step import GradientsConfig
from lmlab.objectives.teachers import TeacherConfig
from lmlab.optim import OptimizerConfig
from lmlab.optim.weighting import WeightingConfig
from lmlab.strategies import DDP, FSDP, ZeRO, check_strategy
from lmlab.strategies.refusals import REFUSALS, STRATEGIES, kind_of, why_not
from tests.objectives.toy import tokenizer

MADE: dict[str, Any] = {
    "single": "auto",
    "ddp": DDP(),
    "fsdp": FSDP(),
    "hsdp": FSDP(replicas=2),
    "fsdp_tp": FSDP(tensor_parallel=2),
    **{f"zero{stage}": partial(ZeRO, stage=stage) for stage in (1, 2, 3)},
}


def strategy(kind: str) -> Any:
    made = MADE[kind]
    return made() if isinstance(made, partial) else made


def tasks(**settings: Any) -> Objective:
    two = {kind: TaskConfig(objective=f"lmlab.objectives.{kind}.{kind.upper()}") for kind in ("mlm", "clm")}
    return Multitask(tokenizer(), BackboneConfig(num_heads=2, hidden_size=32), tasks=two, **settings)


def taught(feature: Any) -> Objective:
    loss = DistillationLoss(features=(FeatureMatch(feature=feature, teacher=1, student=1, loss="mse"),))
    return Distillation(tokenizer(), teachers=(TeacherConfig(run="any"),), loss=loss)


ALLOWED: list[Callable[[], Objective]] = [
    lambda: CLM(tokenizer()),
    tasks,
    lambda: tasks(weighting=WeightingConfig(kind="uncertainty")),
    lambda: tasks(weighting=WeightingConfig(kind="dwa", period=2)),
    lambda: taught("hidden"),
    lambda: CLM(tokenizer(), optimizer=OptimizerConfig(name="sgd", lr=0.1)),
    lambda: CLM(tokenizer(), optimizer=OptimizerConfig(name="muon")),
]
"""What goes with every strategy."""

EXAMPLES: dict[str, list[Callable[[], Objective]]] = {
    "multitask: PCGrad, GradNorm, cosines": [
        lambda: tasks(gradients=GradientsConfig(rule="pcgrad")),
        lambda: tasks(gradients=GradientsConfig(cosines="on")),
        lambda: tasks(weighting=WeightingConfig(kind="gradnorm")),
    ],
    "multitask: one task a step": [
        lambda: tasks(sampling=TaskSampling(regime="temperature", temperature=2.0)),
        lambda: tasks(sampling=TaskSampling(regime="round_robin")),
    ],
    "contrastive": [lambda: Contrastive(tokenizer(), contrast=ContrastConfig(positives="word_repetition"))],
    "distillation: attention maps": [lambda: taught("scores")],
    "T5 and ALiBi positions": [lambda: CLM(tokenizer(), BackboneConfig(position="alibi"))],
    "recurrent networks": [lambda: RecurrentLM(tokenizer(), RecurrentConfig())],
    "n-gram models": [lambda: NGram(tokenizer())],
    "Adafactor": [lambda: CLM(tokenizer(), optimizer=OptimizerConfig(name="adafactor"))],
    "clipping gradients by value": [lambda: CLM(tokenizer())],
    "Compile": [lambda: CLM(tokenizer())],
}
"""What does not, by its row in the table."""

TRAINER: dict[str, dict[str, Any]] = {
    "clipping gradients by value": {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
    "Compile": {"callbacks": [Compile()]},
}
"""Settings of the trainer that a row is about."""


def test_each_refusal_has_an_example() -> None:
    assert EXAMPLES.keys() == {refusal.technique for refusal in REFUSALS}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_table_is_true(kind: str) -> None:
    made = strategy(kind)
    assert kind_of(made) == kind
    for make in ALLOWED:
        check_strategy(make(), {"strategy": made, "gradient_clip_val": 1.0, "callbacks": [WeightAveraging(0.9)]})
        check_strategy(make(), {"strategy": made, "gradient_clip_val": None, "gradient_clip_algorithm": "value"})
    for technique, examples in EXAMPLES.items():
        why = why_not(technique, kind)
        for example in examples:
            if why is None:
                check_strategy(example(), {"strategy": made, **TRAINER.get(technique, {})})
            else:
                with pytest.raises(ConfigError, match=f"{technique} cannot be trained with {kind}") as caught:
                    check_strategy(example(), {"strategy": made, **TRAINER.get(technique, {})})
                assert caught.value.why == why and caught.value.remedy


def test_what_is_inside_an_objective_counts() -> None:
    inside = TaskConfig(objective="lmlab.objectives.contrastive.Contrastive", settings={"contrast": {"positives": "word_repetition"}})
    both = Multitask(tokenizer(), tasks={"mlm": TaskConfig(objective="lmlab.objectives.mlm.MLM"), "near": inside})
    with pytest.raises(ConfigError, match="contrastive cannot be trained with fsdp_tp"):
        check_strategy(both, {"strategy": strategy("fsdp_tp")})


@pytest.mark.parametrize("theirs", ["fsdp", "deepspeed_stage_2", FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_lightnings_own_are_sent_to_ours(theirs: Any) -> None:
    made = theirs if isinstance(theirs, str) else theirs()
    with pytest.raises(ConfigError, match="Lightning's own") as caught:
        check_strategy(CLM(tokenizer()), {"strategy": made})
    assert "lmlab.strategies" in caught.value.remedy
    for fine in ("auto", "ddp", "ddp_fork", DDPStrategy()):
        check_strategy(CLM(tokenizer()), {"strategy": fine})


def test_impossible_settings_are_refused() -> None:
    given: list[tuple[Any, str, Any]] = [
        (FSDP, "replicas", 0),
        (FSDP, "tensor_parallel", 0),
        (ZeRO, "offload", "all"),
        (ZeRO, "persistence", -1),
    ]
    for kind, setting, value in given:
        with pytest.raises(ConfigError, match=setting):
            kind(**{setting: value})
