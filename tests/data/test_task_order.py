"""Which tasks a step has: chances against their formulas, and positions against counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmlab.data import task_order
from lmlab.data.task_order import TaskOrder, TaskSampling
from lmlab.errors import ConfigError

SIZES = (1000, 100, 10)


def order(seed: int = 5, sizes: tuple[int, ...] = SIZES, **sampling: Any) -> TaskOrder:
    return TaskOrder(sampling=TaskSampling(**sampling), sizes=sizes, global_size=8, seed=seed)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"regime": "equal"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"regime": "proportional"}, [1000 / 1110, 100 / 1110, 10 / 1110]),
        ({"regime": "proportional", "cap": 200}, [200 / 310, 100 / 310, 10 / 310]),
        # square roots: 31.623, 10, 3.1623; their sum is 44.785
        ({"regime": "temperature", "temperature": 2.0}, [0.70610, 0.22329, 0.07061]),
        # of 400, 100 and 10: 20, 10 and 3.1623
        ({"regime": "temperature", "temperature": 2.0, "cap": 400}, [0.60310, 0.30155, 0.09536]),
    ],
)
def test_tasks_are_drawn_as_often_as_the_formula_says(sampling: dict[str, Any], expected: list[float]) -> None:
    num = 40_000
    found = np.bincount(order(**sampling).drawn(np.arange(num)), minlength=3) / num
    noise = np.sqrt(np.array(expected) * (1 - np.array(expected)) / num)
    assert (np.abs(found - expected) < 4 * noise + 1e-5).all()


def test_the_draws_are_independent_of_each_other() -> None:
    drawn = order(regime="equal", sizes=(5, 5)).drawn(np.arange(40_000))
    for lag in (1, 2, 7):
        assert abs((drawn[lag:] == drawn[:-lag]).mean() - 0.5) < 4 * 0.5 / 200


def test_annealing_moves_the_exponent_linearly() -> None:
    annealed = order(regime="annealed", temperature=1.0, final_temperature=4.0, final_at_examples=800)
    chances = annealed.chances(np.array([0, 50, 100, 5000]))  # 8 examples a window: at 50 halfway, from 100 on at the end
    for row, exponent in zip(chances, (1.0, 0.625, 0.25, 0.25), strict=True):
        powers = np.array(SIZES, float) ** exponent
        assert row == pytest.approx(powers / powers.sum())


@pytest.mark.parametrize("sampling", [{"regime": "all"}, {"regime": "round_robin"}, {"regime": "equal"}, {"regime": "proportional"}])
def test_the_position_of_a_task_is_what_counting_gives(sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_order, "_STRIDE", 7)
    found = order(**sampling)
    counted = [0, 0, 0]
    for window in range(40):
        assert found.done(window) == counted
        for task in found.tasks(window):
            counted[task] += 1
    assert sum(counted) == 40 * (3 if sampling["regime"] == "all" else 1)


def test_in_turn_means_in_turn_and_seeds_differ() -> None:
    assert [order(regime="round_robin").tasks(window) for window in range(4)] == [[0], [1], [2], [0]]
    several = [tuple(order(seed, regime="equal").drawn(np.arange(30))) for seed in range(10)]
    assert len(set(several)) == 10


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"regime": "random"}, "regime"),
        ({"regime": "temperature"}, "temperature"),
        ({"regime": "temperature", "temperature": 0.0}, "temperature"),
        ({"regime": "proportional", "temperature": 2.0}, "temperature"),
        ({"regime": "all", "cap": 10}, "cap"),
        ({"regime": "equal", "cap": 10}, "cap"),
        ({"regime": "proportional", "cap": 0}, "cap"),
        ({"regime": "annealed", "temperature": 1.0}, "final_temperature"),
        ({"regime": "annealed", "temperature": 1.0, "final_temperature": 5.0}, "final_at_examples"),
        ({"regime": "temperature", "temperature": 1.0, "final_temperature": 5.0}, "final_temperature"),
        ({"regime": "annealed", "temperature": 1.0, "final_temperature": 5.0, "final_at_examples": 0}, "final_at_examples"),
    ],
)
def test_impossible_sampling_names_its_setting(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"TaskSampling.{field}"):
        TaskSampling(**given)
