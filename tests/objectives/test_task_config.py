"""What multitask learning refuses, before anything is built."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lmlab.data.task_order import TaskSampling
from lmlab.errors import ConfigError
from lmlab.objectives.task_config import TaskConfig
from lmlab.objectives.task_step import GradientsConfig
from lmlab.optim.weighting import WeightingConfig
from lmlab.tokenizer import Tokenizer
from tests.objectives.tasks import PATHS, multitask, tasks
from tests.objectives.toy import tokenizer

PCGRAD = GradientsConfig(rule="pcgrad")
OFF = WeightingConfig(kind="scheduled", schedule={"mlm": [(0.0, 1.0), (0.5, 0.0), (1.0, 0.0)]})


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"given": {}}, "there are no tasks"),
        ({"given": {"m-l": TaskConfig(objective="lmlab.objectives.mlm.MLM")}}, "letters, digits"),
        ({"given": {"keys": TaskConfig(objective="lmlab.objectives.mlm.MLM")}}, "something else has this name"),
        ({"given": {"head": TaskConfig(objective="lmlab.objectives.mlm.MLM")}}, "of kind head"),
        ({"given": {"a": TaskConfig(objective="lmlab.objectives.mlm.MML")}}, r"tasks.a[\s\S]*"),
        ({"given": {"a": TaskConfig(objective="lmlab.data.module.CorpusModule", settings={"corpus": "x"})}}, r"tasks.a"),
        ({"given": {"a": TaskConfig(objective="os.path.Popen")}}, "not allowed"),
        ({"given": {"a": TaskConfig(objective="lmlab.objectives.mlm.MLM", settings={"mask_pob": 0.3})}}, "did you mean 'mask_prob'"),
        ({"given": tasks("mlm", clm=0.5, mlm=0.5)}, r"TaskConfig.weight = 0.5[\s\S]*set weighting.kind to static"),
        (
            {"given": {**tasks("mlm"), "s": TaskConfig(objective="lmlab.objectives.span_corruption.SpanCorruption")}},
            "cannot share a backbone",
        ),
        ({"weighting": WeightingConfig(kind="scheduled", schedule={"mml": [(0, 1), (1, 0)]})}, "did you mean 'mlm'"),
        ({"gradients": PCGRAD, "sampling": TaskSampling(regime="equal")}, "gradients.rule = pcgrad is not possible"),
        ({"gradients": GradientsConfig(cosines="on"), "sampling": TaskSampling(regime="equal")}, "gradients.cosines = on is not possible"),
        ({"weighting": WeightingConfig(kind="gradnorm"), "sampling": TaskSampling(regime="equal")}, "weighting.kind = gradnorm is not"),
        ({"given": tasks("mlm"), "gradients": PCGRAD}, "gradients.rule = pcgrad is not possible"),
        ({"given": tasks("mlm"), "weighting": WeightingConfig(kind="dwa")}, "one task has nothing to be weighed against"),
        ({"given": tasks("mlm"), "sampling": TaskSampling(regime="round_robin")}, r"TaskSampling.regime[\s\S]*a single task"),
        ({"weighting": OFF, "sampling": TaskSampling(regime="round_robin")}, "'mlm' has steps of its own while its factor is 0"),
    ],
)
def test_what_cannot_be_is_refused(tok: Tokenizer, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        multitask(tok, **given)


def test_a_task_may_end_at_nothing(tok: Tokenizer) -> None:
    """In steps it shares it may be off for long; in steps of its own its factor may fall to 0, but not stay there."""
    multitask(tok, weighting=OFF)
    fading = WeightingConfig(kind="scheduled", schedule={"mlm": [(0.0, 1.0), (1.0, 0.0)]})
    multitask(tok, weighting=fading, sampling=TaskSampling(regime="round_robin"))


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_is_positive(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"TaskConfig.weight = [\s\S]*positive"):
        TaskConfig(objective="lmlab.objectives.mlm.MLM", weight=weight)


def test_a_child_gets_its_backbone_from_the_parent() -> None:
    with pytest.raises(ConfigError, match="cannot have a backbone of its own"):
        TaskConfig(objective="lmlab.objectives.mlm.MLM", settings={"backbone": {"hidden_size": 8}})


def test_tasks_within_tasks_are_refused(tok: Tokenizer) -> None:
    inner = TaskConfig(objective="lmlab.objectives.multitask.Multitask", settings={"tasks": {"mlm": {"objective": PATHS["mlm"]}}})
    with pytest.raises(ConfigError, match="is itself several tasks"):
        multitask(tok, given={"both": inner}).feed()
