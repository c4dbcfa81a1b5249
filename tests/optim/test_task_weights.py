"""Factors of tasks in a loss, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from lmlab.errors import ConfigError
from lmlab.optim import kind_of
from lmlab.optim.task_weights import Seen, TaskWeights
from lmlab.optim.weighting import WeightingConfig

TWO = ("a", "b")


def weights(tasks: tuple[str, ...] = TWO, **given: Any) -> TaskWeights:
    config = WeightingConfig(**given)
    config.check_tasks(tasks)
    return config.build(tasks)


def factors(made: TaskWeights) -> list[float]:
    return [float(torch.as_tensor(made.factor(task)).detach()) for task in made.tasks]


def test_equal_and_static_factors_are_one() -> None:
    for kind in ("equal", "static"):
        made = weights(kind=kind)
        made.begin(0.5, 17)
        assert factors(made) == [1.0, 1.0] and made.penalty("a") is None


def test_a_schedule_is_read_off_between_its_points() -> None:
    made = weights(kind="scheduled", schedule={"a": [(0.0, 1.0), (0.5, 1.0), (1.0, 0.2)]})
    found = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        made.begin(progress, 0)
        found.append(made.factor("a"))
        assert made.factor("b") == 1.0
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.6, 0.2])


def test_learned_noise_ends_where_it_equals_the_loss() -> None:
    """L / (2 e^s) + s / 2 has its minimum at e^s = L; there the factor is 1 / (2 L)."""
    made = weights(kind="uncertainty")
    losses = {"a": 4.0, "b": 0.5}
    optimizer = torch.optim.SGD(made.parameters(), lr=0.5)
    assert factors(made) == [0.5, 0.5]
    for _ in range(400):
        optimizer.zero_grad()
        total = torch.zeros(())
        for task, loss in losses.items():
            penalty = made.penalty(task)
            assert penalty is not None and penalty.shape == ()
            total = total + loss * made.factor(task) + penalty
        total.backward()
        optimizer.step()
    assert factors(made) == pytest.approx([1 / 8, 1.0], rel=1e-3)
    assert float(total.detach()) == pytest.approx(0.5 * (1 + math.log(4.0)) + 0.5 * (1 + math.log(0.5)), rel=1e-4)
    # by its name, a noise is neither decayed nor taken for a hidden matrix
    assert {kind_of(f"weights.{name}") for name, _ in made.named_parameters()} == {"vector"}
    assert {tuple(p.shape) for p in made.parameters()} == {(1,)}


def test_a_loss_that_falls_slowly_counts_more() -> None:
    """Means 4 and 2 in the first period, 2 and 2 in the second: rates 1/2 and 1, at temperature 2 exp(1/4) and exp(1/2)."""
    made = weights(kind="dwa", period=2)
    for number, (a, b) in enumerate([(5.0, 2.0), (3.0, 2.0), (2.5, 1.0), (1.5, 3.0)]):
        assert factors(made) == [1.0, 1.0], f"step {number} is of the first two periods"
        made.end(Seen({"a": a, "b": b}, {}))
    first, second = math.exp(0.25), math.exp(0.5)
    assert factors(made) == pytest.approx([2 * first / (first + second), 2 * second / (first + second)])


def test_a_task_that_was_not_seen_keeps_a_rate_of_one() -> None:
    made = weights(kind="dwa", period=1, temperature=1.0)
    for seen in ({"a": 4.0, "b": 1.0}, {"a": 2.0}):
        made.end(Seen(seen, {}))
    first, second = math.exp(0.5), math.exp(1.0)
    assert factors(made) == pytest.approx([2 * first / (first + second), 2 * second / (first + second)])


def test_gradient_norms_are_brought_together() -> None:
    """Losses fall from 4 to 2 and from 2 to 1.8: shares 0.5 and 0.9, mean 0.7. Norms 3 and 1, mean 2.

    Targets at alpha 1.5: 2 (5/7)^1.5 = 1.2073 and 2 (9/7)^1.5 = 2.9157. So the first norm is too large, the second too small: slopes 3
    and -1, in units of the mean norm 1.5 and -0.5. With lr 0.1: 0.85 and 1.05, which sum to 1.9.
    """
    made = weights(kind="gradnorm", lr=0.1)
    made.end(Seen({"a": 4.0, "b": 2.0}, {"a": 2.0, "b": 2.0}))  # at first all shares are 1, and equal norms are right
    assert factors(made) == [1.0, 1.0]
    made.end(Seen({"a": 2.0, "b": 1.8}, {"a": 3.0, "b": 1.0}))
    assert factors(made) == pytest.approx([2 * 0.85 / 1.9, 2 * 1.05 / 1.9])


def test_a_task_that_lags_behind_may_have_the_larger_norm() -> None:
    """Shares and targets as above; norms 1.3 and 2.7. With alpha 1.5 the first is too large (1.2073), the second too small (2.9157).

    With alpha 1 it would be the other way round (1.4286, 2.5714), as without shares (2, 2). Slopes 0.65 and -1.35: 0.935 and 1.135.
    """
    made = weights(kind="gradnorm", lr=0.1)
    made.end(Seen({"a": 4.0, "b": 2.0}, {"a": 2.0, "b": 2.0}))
    made.end(Seen({"a": 2.0, "b": 1.8}, {"a": 1.3, "b": 2.7}))
    assert factors(made) == pytest.approx([2 * 0.935 / 2.07, 2 * 1.135 / 2.07])


def test_gradient_norms_meet_on_a_quadratic() -> None:
    """Two tasks with gradients of norms 10 w1 and w2 that fall alike: norms are equal at w1 = 2/11, w2 = 20/11."""
    made = weights(kind="gradnorm", lr=0.002)
    for _ in range(1500):
        first, second = factors(made)
        made.end(Seen({"a": 1.0, "b": 1.0}, {"a": 10 * first, "b": second}))
    assert factors(made) == pytest.approx([2 / 11, 20 / 11], abs=0.02)
    assert sum(factors(made)) == pytest.approx(2.0)


def test_gradnorm_takes_the_step_autograd_takes() -> None:
    """Algorithm 1 with autograd: the gradient of the sum of absolute differences with respect to each factor, targets held fixed."""
    made = weights(("a", "b", "c"), kind="gradnorm", lr=0.05, alpha=0.7)
    made.end(Seen({"a": 3.0, "b": 2.0, "c": 5.0}, dict.fromkeys("abc", 1.0)))
    before = torch.tensor(factors(made), dtype=torch.float64, requires_grad=True)
    bare, losses = torch.tensor([4.0, 0.5, 1.5], dtype=torch.float64), torch.tensor([1.0, 1.9, 4.0], dtype=torch.float64)
    norms = before * bare
    shares = losses / torch.tensor([3.0, 2.0, 5.0], dtype=torch.float64)
    target = (norms.mean() * (shares / shares.mean()) ** 0.7).detach()
    ((norms - target).abs().sum() / norms.mean().detach()).backward()
    assert before.grad is not None
    moved = before.detach() - 0.05 * before.grad
    made.end(Seen(dict(zip("abc", losses.tolist(), strict=True)), dict(zip("abc", norms.tolist(), strict=True))))
    assert factors(made) == pytest.approx((3 * moved / moved.sum()).tolist())


def test_random_factors_are_a_function_of_the_draw() -> None:
    made, again = weights(("a", "b", "c"), kind="random"), weights(("a", "b", "c"), kind="random")
    seen = []
    for draw in range(2000):
        made.begin(0.1, draw)
        again.begin(0.9, draw)
        assert factors(made) == factors(again) and sum(factors(made)) == pytest.approx(3.0)
        seen.append(factors(made))
    table = np.array(seen)
    assert np.abs(table.mean(0) - 1).max() < 0.06 and (table.std(0) > 0.5).all() and len(np.unique(table[:, 0])) == 2000


@pytest.mark.parametrize("given", [{"kind": "dwa", "period": 3}, {"kind": "gradnorm"}], ids=lambda g: g["kind"])
def test_what_factors_are_found_from_survives_a_checkpoint(given: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    steps = [Seen({"a": a, "b": b}, {"a": c, "b": d}) for a, b, c, d in rng.uniform(0.5, 2.0, (20, 4))]
    straight, stopped = weights(**given), weights(**given)
    for seen in steps[:7]:
        straight.end(seen)
        stopped.end(seen)
    resumed = weights(**given)
    resumed.recall(json.loads(json.dumps(stopped.memory())))
    for seen in steps[7:]:
        straight.end(seen)
        resumed.end(seen)
    assert factors(straight) == factors(resumed) != [1.0, 1.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "gradient"}, "is not a choice"),
        ({"kind": "equal", "alpha": 1.0}, "WeightingConfig.alpha"),
        ({"kind": "gradnorm", "alpha": -1.0}, "WeightingConfig.alpha"),
        ({"kind": "gradnorm", "temperature": 1.0}, "WeightingConfig.temperature"),
        ({"kind": "dwa", "temperature": 0.0}, "WeightingConfig.temperature"),
        ({"kind": "dwa", "temperature": math.inf}, "WeightingConfig.temperature"),
        ({"kind": "dwa", "period": 0}, "WeightingConfig.period"),
        ({"kind": "dwa", "period": 2.5}, "WeightingConfig.period"),
        ({"kind": "gradnorm", "lr": math.inf}, "WeightingConfig.lr"),
        ({"kind": "gradnorm", "alpha": math.inf}, "WeightingConfig.alpha"),
        ({"kind": "static", "schedule": {"a": [(0.0, 1.0), (1.0, 0.0)]}}, "WeightingConfig.schedule"),
        ({"kind": "scheduled"}, "WeightingConfig.schedule"),
        ({"kind": "scheduled", "schedule": {"a": [(0.0, 1.0), (0.5, 0.0)]}}, "not from 0 to 1"),
        ({"kind": "scheduled", "schedule": {"a": [(0.0, 1.0)]}}, "not from 0 to 1"),
        ({"kind": "scheduled", "schedule": {"a": []}}, "not from 0 to 1"),
        ({"kind": "scheduled", "schedule": {"a": [(0.0, 1.0), (0.5, 1.0), (0.5, 2.0), (1.0, 1.0)]}}, "not from 0 to 1"),
        ({"kind": "scheduled", "schedule": {"a": [(0.0, 1.0), (1.0, -1.0)]}}, "factor that is negative or no number"),
        ({"kind": "scheduled", "schedule": {"a": [(0.0, 1.0), (1.0, math.inf)]}}, "factor that is negative or no number"),
        ({"kind": "scheduled", "schedule": {"a": [(0.0, 1.0), (1.0, math.nan)]}}, "factor that is negative or no number"),
        ({"kind": "scheduled", "schedule": {"a": [(0.0, 1.0), (math.nan, 1.0), (1.0, 1.0)]}}, "not from 0 to 1"),
        ({"kind": "scheduled", "schedule": {"aa": [(0.0, 1.0), (1.0, 0.0)]}}, r"no task 'aa'[\s\S]*did you mean 'a'"),
        ({"kind": "scheduled", "schedule": {"a": [(0.0, 1.0), (1.0, 0.0)], "b": [(0.0, 1.0), (1.0, 0.0)]}}, "all factors are 0 at 1"),
    ],
)
def test_impossible_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weights(("a", "b"), **given)
