import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.budget import COUNT_SUFFIXES, UNITS, BudgetConfig, Spent, describe, describe_seconds, parse_amount
from lmlab.config import fingerprint, from_dict, to_plain
from lmlab.errors import BudgetError


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (100, "steps", 100),
        ("1.5k", "steps", 1500),
        ("10M", "tokens", 10_000_000),
        ("10_000", "tokens", 10_000),
        ("2 B", "tokens", 2_000_000_000),
        ("1e15", "flops", 10**15),
        (1e15, "flops", 10**15),
        ("1.5P", "flops", 1_500_000_000_000_000),
        (10**18 + 1, "flops", 10**18 + 1),
        ("2h", "seconds", 7200.0),
        ("90 min", "seconds", 5400.0),
        ("1d", "seconds", 86400.0),
        (0.5, "seconds", 0.5),
    ],
)
def test_amounts_as_a_person_writes_them(value, unit, expected):
    assert parse_amount(value, unit) == expected
    assert type(parse_amount(value, unit)) is type(expected)
    assert BudgetConfig(**{unit: value}).limit == expected


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (0, "steps"),
        (-1, "tokens"),
        ("0", "flops"),
        (0.0, "seconds"),
        (float("nan"), "seconds"),
        (float("inf"), "flops"),
        ("1e999", "flops"),
        ("ten", "tokens"),
        ("10m", "tokens"),
        ("2H", "seconds"),
        (True, "steps"),
        (1.5, "steps"),
        ("0.1", "tokens"),
        ("", "steps"),
    ],
)
def test_amounts_that_cannot_be_spent(value, unit):
    with pytest.raises(BudgetError) as caught:
        BudgetConfig(**{unit: value})
    assert unit in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize("suffix", ["k", "M", "B", "P"])
def test_an_amount_with_two_decimals_is_whole(suffix: str) -> None:
    for hundredths in range(1, 1000):
        written = f"{hundredths // 100}.{hundredths % 100:02}{suffix}"
        assert parse_amount(written, "tokens") == hundredths * COUNT_SUFFIXES[suffix] // 100, written


@pytest.mark.parametrize("amount", ["1__0", "1_M", "_1", "1_", "1.5", "1.0005k", "nan", "inf", "-1", float("nan"), float("inf"), 10**400])
def test_what_is_no_amount_is_refused(amount: str | float) -> None:
    with pytest.raises(BudgetError):
        parse_amount(amount, "tokens")


@pytest.mark.parametrize("limits", [{}, {"steps": 1, "tokens": 1}, {"validations": 3}])
def test_exactly_one_limit(limits):
    with pytest.raises(BudgetError, match="exactly one"):
        BudgetConfig(**limits)


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_milestone_counts_are_counts(count):
    with pytest.raises(BudgetError, match="validations"):
        BudgetConfig(steps=1, validations=count)


def test_config_is_a_value():
    config = BudgetConfig(tokens="10M", validations=3)
    assert from_dict(BudgetConfig, json.loads(json.dumps(to_plain(config)))) == config
    assert fingerprint(config) == fingerprint(BudgetConfig(tokens="10M", validations=3))


@pytest.mark.parametrize("unit", UNITS)
def test_progress_is_the_share_of_the_limit_and_of_nothing_else(unit):
    config = BudgetConfig(**{unit: 200})
    others = {u: 10**6 for u in UNITS if u != unit}
    assert config.progress(Spent(**others)) == 0
    assert config.progress(Spent(**others, **{unit: 50})) == 0.25
    assert not config.is_exhausted(Spent(**others, **{unit: 199}))
    assert config.is_exhausted(Spent(**others, **{unit: 200}))
    assert config.progress(Spent(**others, **{unit: 300})) == 1


def test_spent_adds_up_and_round_trips():
    one = Spent(steps=1, examples=8, tokens=100, supervised_tokens=15, flops=10**18, seconds=0.5)
    both = one + Spent(steps=2, flops=1, seconds=0.25)
    assert both == Spent(steps=3, examples=8, tokens=100, supervised_tokens=15, flops=10**18 + 1, seconds=0.75)
    assert Spent.from_plain(json.loads(json.dumps(to_plain(both)))) == both
    assert both + Spent() == both


@given(limit=st.integers(1, 300), times=st.integers(0, 40), stride=st.integers(1, 7))
def test_every_milestone_falls_in_the_step_that_reaches_it(limit, times, stride):
    config = BudgetConfig(tokens=limit)
    due = []
    for start in range(0, limit, stride):
        if config.is_due(times, Spent(tokens=start), Spent(tokens=start + stride)):
            due.append(start + stride)
    # brute force: milestone k lies at k * limit / times, exactly
    expected = [
        s + stride for s in range(0, limit, stride) if any(s * times < k * limit <= (s + stride) * times for k in range(1, times + 1))
    ]
    assert due == expected
    assert config.milestones(times, Spent(tokens=limit + stride)) == times


def test_seconds_have_milestones_too():
    config = BudgetConfig(seconds="10s", validations=4)
    assert [config.milestones(config.validations, Spent(seconds=s)) for s in (0, 2.4, 2.6, 9.9, 10, 12)] == [0, 0, 1, 3, 4, 4]


def test_description():
    spent = Spent(steps=1200, examples=9, tokens=3_100_000, supervised_tokens=460_000, flops=10**14, seconds=214)
    assert describe(spent) == "1.2 k steps · 3.1 M tokens · 0.46 M supervised · 1.0e14 FLOPs · 3 min 34 s"
    assert describe(Spent(steps=1, tokens=999)) == "1 step · 999 tokens · 0 supervised · 0.0e00 FLOPs · 0.0 s"
    assert "1.0 M tokens" in describe(Spent(tokens=999_990))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.2, "4.2 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.9, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (97300, "1 d 3 h"),
    ],
)
def test_lengths_of_time(seconds, text):
    assert describe_seconds(seconds) == text
