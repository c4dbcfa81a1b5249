import dataclasses
import json
import math
import warnings

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmlab.config import from_dict, to_plain
from lmlab.errors import CheckpointError, ConfigError
from lmlab.optim import OptimizerConfig, ScheduleConfig, set_learning_rate

KINDS = ["cosine", "linear", "inverse_sqrt", "wsd", "constant", "plateau"]
NUM_STEPS, NUM_WARMUP = 200, 20
LINEAR_WSD = {"num_decay_steps": 40, "decay_type": "linear", "min_lr_ratio": 0.1}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        # warm-up 0.2, min_ratio 0.1, decay 0.4, at progress 0.1, 0.2, 0.6, 0.8, 1
        ("cosine", [0.5, 1, 0.55, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2, 0.1]),
        ("linear", [0.5, 1, 0.55, 0.325, 0.1]),
        ("inverse_sqrt", [0.5, 1, math.sqrt(1 / 3), 0.5, math.sqrt(0.2)]),
        ("wsd", [0.5, 1, 1, 0.1 + 0.9 * (1 - math.sqrt(0.5)), 0.1]),
        ("constant", [0.5, 1, 1, 1, 1]),
        ("plateau", [0.5, 1, 1, 1, 1]),
    ],
)
def test_closed_forms(kind, values):
    schedule = ScheduleConfig(kind=kind, warmup=0.2, min_ratio=0.1, **({"decay": 0.4} if kind == "wsd" else {}))
    assert [schedule.factor(p) for p in (0.1, 0.2, 0.6, 0.8, 1)] == pytest.approx(values, abs=1e-12)
    assert schedule.factor(0) == 0


def test_linear_wsd_and_a_floor_for_inverse_sqrt():
    assert ScheduleConfig(kind="wsd", decay=0.5, decay_shape="linear", min_ratio=0).factor(0.75) == pytest.approx(0.5)
    assert ScheduleConfig(kind="inverse_sqrt", warmup=0.01, min_ratio=0.3).factor(1) == 0.3


@pytest.mark.parametrize(
    ("config", "reference", "keywords"),
    [
        ({"kind": "linear", "min_ratio": 0}, "get_linear_schedule_with_warmup", {"num_training_steps": NUM_STEPS}),
        ({"kind": "cosine", "min_ratio": 0}, "get_cosine_schedule_with_warmup", {"num_training_steps": NUM_STEPS}),
        (
            {"kind": "cosine", "min_ratio": 0.1},
            "get_cosine_with_min_lr_schedule_with_warmup",
            {"num_training_steps": NUM_STEPS, "min_lr_rate": 0.1},
        ),
        ({"kind": "constant"}, "get_constant_schedule_with_warmup", {}),
        ({"kind": "inverse_sqrt", "min_ratio": 0}, "get_inverse_sqrt_schedule", {}),
        (
            {"kind": "wsd", "min_ratio": 0},
            "get_wsd_schedule",
            {"num_decay_steps": 40, "num_training_steps": NUM_STEPS, "decay_type": "1-sqrt"},
        ),
        ({"kind": "wsd", "decay_shape": "linear"}, "get_wsd_schedule", {"num_training_steps": NUM_STEPS, **LINEAR_WSD}),
    ],
)
def test_equals_transformers(config, reference, keywords):
    schedule = ScheduleConfig(warmup=NUM_WARMUP / NUM_STEPS, **config)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = getattr(transformers, reference)(optimizer, num_warmup_steps=NUM_WARMUP, **keywords)
    # theirs warms up from the floor where there is one; ours from zero always
    first = NUM_WARMUP if reference == "get_wsd_schedule" else 0
    for step in range(NUM_STEPS):
        if step >= first:
            assert schedule.factor(step / NUM_STEPS) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        scheduler.step()


@given(
    kind=st.sampled_from(KINDS),
    warmup=st.floats(0.01, 0.5),
    min_ratio=st.floats(0, 1),
    decay=st.floats(0.01, 0.5),
    shape=st.sampled_from(["one_minus_sqrt", "linear"]),
    one=st.floats(0, 1),
    two=st.floats(0, 1),
)
def test_rises_to_one_and_falls_to_the_floor(kind, warmup, min_ratio, decay, shape, one, two):
    effective = {"wsd": {"decay": decay, "decay_shape": shape}, "constant": {"min_ratio": 0.1}}.get(kind, {})
    schedule = ScheduleConfig(**{"kind": kind, "warmup": warmup, "min_ratio": min_ratio} | effective)
    min_ratio = schedule.min_ratio
    early, late = sorted((one, two))
    if late <= warmup:
        assert schedule.factor(early) <= schedule.factor(late) <= 1
    if early >= warmup:
        assert min_ratio - 1e-12 <= schedule.factor(late) <= schedule.factor(early) <= 1
    assert schedule.factor(warmup) == 1


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "inverse_sqrt"])
def test_no_warmup_starts_at_the_full_rate(kind):
    assert ScheduleConfig(kind=kind, warmup=0).factor(0) == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"kind": "cosinus"},
        {"warmup": 1.0},
        {"warmup": -0.1},
        {"min_ratio": 1.5},
        {"kind": "wsd", "decay": 0},
        {"kind": "inverse_sqrt", "warmup": 0},
        {"kind": "wsd", "warmup": 0.5, "decay": 0.6},
        {"kind": "wsd", "decay_shape": "cosine"},
        {"kind": "plateau", "plateau_factor": 1.0},
        {"kind": "plateau", "patience": -1},
        {"kind": "plateau", "threshold": 1.0},
    ],
)
def test_impossible_schedules_are_refused(setting):
    with pytest.raises(ConfigError) as caught:
        ScheduleConfig(**setting)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("cosine", {"decay": 0.5}),
        ("cosine", {"decay_shape": "linear"}),
        ("constant", {"min_ratio": 0.5}),
        ("linear", {"patience": 9}),
        ("linear", {"plateau_factor": 0.9}),
        ("inverse_sqrt", {"threshold": 0.1}),
        ("plateau", {"decay": 0.9}),
        ("wsd", {"patience": 9}),
    ],
)
def test_settings_without_effect_are_refused(kind, setting):
    """With the setting or without, the rate would be the same all the way; at its default a setting is no wish."""
    (name,) = setting
    with pytest.raises(ConfigError) as caught:
        ScheduleConfig(kind=kind, **setting)
    assert caught.value.where == f"ScheduleConfig.{name}" and f"kind {kind} " in caught.value.why
    assert ScheduleConfig(kind=kind, **{name: getattr(ScheduleConfig(), name)}) == ScheduleConfig(kind=kind)


def test_config_is_a_value():
    config = ScheduleConfig(kind="wsd", decay=0.3)
    assert from_dict(ScheduleConfig, json.loads(json.dumps(to_plain(config)))) == config


def test_learning_rate_is_a_function_of_progress_and_of_nothing_else():
    config = OptimizerConfig(lr=0.02, lr_scale={"head": 0.5})
    named = [("head.weight", nn.Parameter(torch.ones(1, 1))), ("fc.weight", nn.Parameter(torch.ones(1, 1)))]
    optimizer, schedule = config.build(named), ScheduleConfig(warmup=0)
    for progress in (0.3, 0.9, 0.3):
        set_learning_rate(optimizer, schedule.factor(progress))
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {"decay": 0.02 * schedule.factor(progress), "decay_x0.5": 0.01 * schedule.factor(progress)}
    other = config.build(named)
    other.load_state_dict(optimizer.state_dict())
    set_learning_rate(other, 1.0)
    assert [g["lr"] for g in other.param_groups] == [0.02, 0.01]


@given(
    losses=st.lists(st.floats(0.5, 2) | st.just(float("nan")), max_size=40),
    patience=st.integers(0, 3),
    threshold=st.sampled_from([0, 0.01, 0.2]),
)
def test_plateau_equals_torchs(losses, patience, threshold):
    config = ScheduleConfig(kind="plateau", patience=patience, threshold=threshold, plateau_factor=0.5, min_ratio=0.05)
    ours = config.plateau_state()
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, threshold=threshold, min_lr=0.05)
    for loss in losses:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step(loss)
        ours.step(torch.tensor(loss, dtype=torch.float64))
        assert ours.factor == pytest.approx(optimizer.param_groups[0]["lr"])
        # a resumed run goes on from the state alone
        resumed = config.plateau_state()
        resumed.load_state_dict(json.loads(json.dumps(ours.state_dict())))
        ours = resumed


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "plateau"])
def test_other_kinds_ignore_the_validation_loss(kind):
    state = dataclasses.replace(ScheduleConfig(), kind=kind).plateau_state()
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
        state.step(loss)
    assert state.factor == 1


def test_a_plateau_without_a_loss_or_with_half_a_state():
    state = ScheduleConfig(kind="plateau", patience=0).plateau_state()
    state.step(None)
    assert state.factor == 1
    with pytest.raises(CheckpointError, match="best, num_bad"):
        state.load_state_dict({"factor": 1.0})
