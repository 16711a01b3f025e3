"""Diagnostics by the design: exact in small cases, of the right size where tails are heavy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from uplift.data import FloatArray, Schema, TrainingSet
from uplift.diagnostics import (
    NOT_RUN,
    PASS,
    STOP,
    WARN,
    balance,
    draw_units,
    judge_balance,
    placebo,
    srm,
    tail_bound,
)

SHARES = np.array([0.5, 0.3, 0.2])


def experiment(
    frame: pd.DataFrame,
    rng: np.random.Generator,
    assignment: FloatArray | None = None,
    arm: Any = None,
    **more: Any,
) -> TrainingSet:
    """Rows with the features of `frame`, arms drawn with `assignment` (n, K + 1)."""
    n = len(frame)
    e = np.tile(SHARES, (n, 1)) if assignment is None else assignment
    if arm is None:
        arm = (rng.random(n)[:, None] > np.cumsum(e, axis=1)).sum(axis=1)
    schema = Schema.learn(frame)
    zeros = np.zeros(n)
    given: dict[str, Any] = {
        "schema": schema,
        "arms": tuple(f"a{k}" for k in range(1, e.shape[1])),
        "X": schema.encode(frame),
        "arm": np.asarray(arm, dtype=np.int64),
        "y": zeros,
        "reward": zeros,
        "cost": zeros,
        "converted": zeros,
        "assignment": e,
        "cluster": np.arange(n),
        "customer": np.array([f"k{i}" for i in range(n)], dtype=object),
        "assigned_at": np.zeros(n, dtype="datetime64[us]"),
    }
    return TrainingSet(**(given | more))


def normal_frame(n: int, d: int, rng: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame(rng.normal(size=(n, d)), columns=[f"x{i}" for i in range(d)])


def test_with_an_arm_for_good_customers_count_and_not_their_rows() -> None:
    rng = np.random.default_rng(0)
    once = experiment(normal_frame(500, 1, rng), rng)
    four = once.rows(np.repeat(np.arange(500), 4))
    assert len(np.unique(draw_units(four))) == 500
    assert srm(four, draw_units(four)) == pytest.approx(srm(once))
    assert srm(four)[0] == pytest.approx(4 * srm(once)[0])
    z = [b.z for b in balance(once)]
    assert [b.z for b in balance(four)] == pytest.approx(z)
    assert [b.z for b in balance(four, np.arange(2000))] == pytest.approx(2 * np.array(z))


def test_the_sample_ratio_test_is_of_its_size() -> None:
    """4,000 draws with probabilities that vary by row: 4% to 6% at 5%, and few at one in 1,000."""
    rng = np.random.default_rng(13)
    frame = normal_frame(300, 1, rng)
    e = rng.dirichlet([6, 3, 2], 300)
    data = experiment(frame, rng, e)
    p = []
    for _ in range(4000):
        arm = (rng.random(300)[:, None] > np.cumsum(e, axis=1)).sum(axis=1)
        p.append(srm(replace(data, arm=arm.astype(np.int64)))[1])
    assert 0.04 < np.mean(np.array(p) < 0.05) < 0.06
    assert np.mean(np.array(p) < 0.001) < 0.003


def test_arms_drawn_anew_in_each_wave_or_row_are_draws_of_their_own() -> None:
    rng = np.random.default_rng(1)
    waves = np.repeat(np.array([0, 1], dtype="datetime64[us]"), 200)
    households = np.tile(np.repeat(np.arange(100), 2), 2)
    arm = np.repeat(rng.integers(0, 3, 200), 2)
    frame = normal_frame(400, 1, rng)
    data = experiment(frame, rng, arm=arm, cluster=households, assigned_at=waves)
    assert len(np.unique(draw_units(data))) == 200
    data = experiment(frame, rng, cluster=households, assigned_at=waves)
    assert len(np.unique(draw_units(data))) == 400


def test_z_is_the_difference_of_means_over_its_error() -> None:
    rng = np.random.default_rng(2)
    data = experiment(normal_frame(4000, 2, rng), rng)
    found = {(b.feature, b.arm): b for b in balance(data)}
    for j, k in itertools.product((0, 1), (1, 2)):
        x = data.X[:, j].astype(float)
        treated, control = x[data.arm == k], x[data.arm == 0]
        apart = treated.mean() - control.mean()
        b = found[f"x{j}", f"a{k}"]
        spread = np.sqrt((treated.var() + control.var()) / 2)
        assert b.difference == pytest.approx(apart / spread)
        error = np.sqrt(treated.var() / len(treated) + control.var() / len(control))
        assert b.z == pytest.approx(apart / error, rel=0.03, abs=0.02)
        assert b.p == pytest.approx(2 * stats.norm.sf(abs(b.z)))


def test_balance_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(3)
    data = experiment(normal_frame(300, 3, rng), rng)
    mixed = data.rows(rng.permutation(300))
    assert [(b.feature, b.arm) for b in balance(mixed)] == [
        (b.feature, b.arm) for b in balance(data)
    ]
    assert [b.z for b in balance(mixed)] == pytest.approx([b.z for b in balance(data)])


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_lies_above_the_exact_tail_and_near_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 12
    p, a = rng.uniform(0.05, 0.6, n), rng.lognormal(0, 1, n) - 1
    draws = np.array(list(itertools.product((0, 1), repeat=n)))
    chance = np.prod(np.where(draws == 1, p, 1 - p), axis=1)
    value = (draws - p) @ a
    for total in (0.5 * value.max(), 0.8 * value.max(), 0.7 * value.min()):
        one_sided = float(chance[value * np.sign(total) >= abs(total) - 1e-12].sum())
        bound = tail_bound(a, p, float(total))
        assert bound >= min(1.0, 2 * one_sided) * (1 - 1e-6)
        assert bound <= 60 * one_sided + 1e-6


def test_the_bound_is_chernoffs_where_the_sum_is_normal() -> None:
    rng = np.random.default_rng(4)
    a, p = rng.normal(size=20_000), np.full(20_000, 0.4)
    deviation = float(np.sqrt(0.24 * a @ a))
    for z in (4.0, 6.0, -5.0):
        assert tail_bound(a, p, z * deviation) == pytest.approx(2 * np.exp(-(z**2) / 2), rel=0.05)


def test_heavy_tails_and_a_rare_arm_raise_no_false_alarm() -> None:
    """Lognormal columns and a 4% arm: with normal tails more than ten differences would
    stop their experiment; with the bound none of 300 does."""
    rng = np.random.default_rng(5)
    e = np.tile([0.96, 0.04], (500, 1))
    stopped = by_normal = 0
    for _ in range(300):
        frame = pd.DataFrame(rng.lognormal(0, 2.5, (500, 6)), columns=list("abcdef"))
        found = balance(experiment(frame, rng, e))
        stopped += judge_balance(found, True).outcome == STOP
        by_normal += max(2 * stats.norm.sf(abs(b.z)) * len(found) <= 0.001 for b in found)
    assert by_normal > 10
    assert stopped == 0


def test_normal_z_is_of_its_size() -> None:
    rng = np.random.default_rng(6)
    x = pd.DataFrame({"x": rng.normal(size=400), "c": rng.choice(list("uv"), 400)})
    # Probabilities that follow the features: without the weights every z would be far off.
    odds = np.exp(np.column_stack([np.zeros(400), 0.8 * x["x"], (x["c"] == "u") * 0.7]))
    e = odds / odds.sum(axis=1, keepdims=True)
    z = np.array([[b.z for b in balance(experiment(x, rng, e))] for _ in range(500)])
    rate = (np.abs(z) > 1.96).mean(axis=0)
    assert z.shape[1] == 6  # x, c=u, c=v in two arms
    assert np.all(np.abs(rate - 0.05) < 3.5 * np.sqrt(0.05 * 0.95 / 500))
    assert np.all(np.abs(z.mean(axis=0)) < 3.5 / np.sqrt(500))


def test_rows_that_could_not_get_an_arm_do_not_speak_about_it() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=3000)
    e = np.where((x > 0)[:, None], [[0.4, 0.3, 0.3]], [[0.6, 0.4, 0.0]])
    data = experiment(pd.DataFrame({"x": x}), rng, e)
    check = judge_balance(balance(data), True)
    assert check.outcome == PASS
    assert check.number is not None
    assert check.number > 0.01


def test_a_column_written_down_after_the_assignment_is_named() -> None:
    rng = np.random.default_rng(8)
    frame = normal_frame(2000, 6, rng)
    arm = rng.choice(3, 2000, p=SHARES)
    frame["delivered"] = np.where(arm == 2, rng.random(2000) < 0.3, 0.0)
    frame["opened_at"] = np.where(arm > 0, rng.normal(size=2000), np.nan)
    check = judge_balance(balance(experiment(frame, rng, arm=arm)), True)
    assert check.outcome == STOP
    assert set(check.culprits) == {"delivered", "opened_at missing"}
    assert "written down after the assignment" in check.text
    observed = judge_balance(balance(experiment(frame, rng, arm=arm)), False)
    assert observed.outcome == WARN
    assert set(observed.culprits) == {"delivered", "opened_at missing"}


def test_customers_dropped_from_one_arm_are_seen() -> None:
    rng = np.random.default_rng(9)
    frame = normal_frame(4000, 4, rng)
    data = experiment(frame, rng)
    kept = ~((data.arm == 1) & (data.X[:, 2] > 1) & (rng.random(4000) < 0.9))
    check = judge_balance(balance(data.rows(kept)), True)
    assert check.outcome == STOP
    assert check.culprits == ("x2",)


def test_nothing_that_varies_is_no_verdict() -> None:
    rng = np.random.default_rng(10)
    data = experiment(pd.DataFrame({"x": np.ones(100)}), rng)
    assert judge_balance(balance(data), True).outcome == NOT_RUN


def test_the_placebo_is_the_effect_on_what_was_before() -> None:
    rng = np.random.default_rng(11)
    before = rng.lognormal(0, 1, 5000)
    data = experiment(pd.DataFrame({"x": before}), rng)
    assert placebo(data, np.arange(5000), before, "spend").outcome == PASS
    moved = before + 0.4 * (data.arm == 2)
    check = placebo(data, np.arange(5000), moved, "spend")
    assert check.outcome == STOP
    assert check.culprits == ("a2",)
    told = check.text.split("a2 ")[1].split("]")[0]
    low, high = (float(v) for v in told.split("[")[1].split(", "))
    assert low < 0.4 < high
    assert low > 0


def test_the_placebo_stops_one_clean_experiment_in_a_thousand() -> None:
    """Size at a tenth: z at the threshold that the check would use for 10% comes out as often."""
    rng = np.random.default_rng(12)
    before = rng.gamma(0.5, 20, 600)
    frame = pd.DataFrame({"x": before})
    p = []
    for _ in range(400):
        check = placebo(experiment(frame, rng), np.arange(600), before, "spend")
        assert check.outcome == PASS
        p.append(check.number)
    # The least of two p-values that share their control, by Bonferroni at 10%.
    share = np.mean(np.array(p, dtype=float) <= 0.05)
    assert 0.05 < share < 0.14
