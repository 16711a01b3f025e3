"""Leaks: areas against brute force, and columns that know too much."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.uplift.test_diagnostics import experiment, normal_frame
from uplift.diagnostics import NOT_RUN, PASS, STOP, WARN
from uplift.leaks import arm_classifier, leak_scan, single_feature_auc, weighted_auc


def by_pairs(positive: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    s1, w1 = score[positive], weight[positive]
    s0, w0 = score[~positive], weight[~positive]
    wins = (s1[:, None] > s0) + 0.5 * (s1[:, None] == s0)
    return float((wins * np.outer(w1, w0)).sum() / (w1.sum() * w0.sum()))


def test_the_area_is_the_weighted_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    positive, weight = rng.random(200) < 0.3, rng.uniform(0.5, 4, 200)
    score = np.round(rng.normal(size=200) + positive, 1)  # with ties
    area, psi = weighted_auc(positive, score, weight)
    assert area == pytest.approx(by_pairs(positive, score, weight))
    assert psi.sum() == pytest.approx(0, abs=1e-9)
    plain = single_feature_auc(score, positive)
    assert plain == pytest.approx(by_pairs(positive, score, np.ones(200)))
    assert single_feature_auc(-score, positive) == pytest.approx(plain)


def test_the_error_of_the_area_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    areas, errors = [], []
    for _ in range(600):
        positive = rng.random(300) < 0.4
        weight = np.where(rng.random(300) < 0.3, 4.0, 1.0)
        area, psi = weighted_auc(positive, rng.normal(size=300) + 0.5 * positive, weight)
        areas.append(area)
        errors.append(np.sqrt(psi @ psi) / 300)
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.1)


@pytest.mark.parametrize(("noise", "outcome"), [(0.02, STOP), (0.35, WARN), (1.0, PASS)])
def test_a_feature_next_to_the_outcome_warns_and_then_stops(noise: float, outcome: str) -> None:
    rng = np.random.default_rng(2)
    converted = (rng.random(4000) < 0.2).astype(float)
    frame = normal_frame(4000, 3, rng)
    frame["order_value"] = converted + noise * rng.normal(size=4000)
    data = experiment(frame, rng, converted=converted, y=converted)
    check = leak_scan(data, rng)
    assert check.outcome == outcome
    if outcome != PASS:
        assert check.culprits == ("order_value",)
        assert "order_value" in check.text


def test_leaks_through_missing_values_categories_and_amounts_are_named() -> None:
    rng = np.random.default_rng(3)
    y = rng.gamma(2, 10, 3000)
    converted = (y > 12).astype(float)
    frame = normal_frame(3000, 2, rng)
    frame["ordered_at"] = np.where(converted > 0, rng.normal(size=3000), np.nan)
    frame["status"] = np.where(converted > 0, "paid", "none")
    frame["total"] = y * rng.normal(1, 0.001, 3000)
    # A name of its own for each customer separates any outcome on the rows it was learned from.
    frame["nickname"] = [f"n{i // 2}" for i in range(3000)]
    check = leak_scan(experiment(frame, rng, converted=converted, y=y), rng)
    assert check.outcome == STOP
    assert set(check.culprits) == {"ordered_at missing", "status", "total"}


def test_few_conversions_separate_by_luck_and_are_no_leak() -> None:
    rng = np.random.default_rng(4)
    converted = np.zeros(2000)
    converted[:3] = 1
    frame = normal_frame(2000, 1, rng)
    frame["lucky"] = converted
    data = experiment(frame, rng, converted=converted, y=converted)
    assert leak_scan(data, rng).outcome == NOT_RUN


def test_the_classifier_sees_what_means_do_not() -> None:
    rng = np.random.default_rng(5)
    frame = normal_frame(6000, 3, rng)
    # In the arms x0 and x1 have one sign; each alone has the same distribution everywhere.
    same = (frame["x0"] * frame["x1"] > 0).to_numpy()
    arm = np.where(rng.random(6000) < np.where(same, 0.7, 0.3), rng.integers(1, 3, 6000), 0)
    data = experiment(frame, rng, np.tile([0.5, 0.25, 0.25], (6000, 1)), arm=arm)
    found, check = arm_classifier(data, np.arange(6000), rng, 1, 1)
    assert check.outcome == STOP
    assert found is not None
    assert found.value > 0.6


def test_arms_drawn_by_a_policy_pass_the_classifier_by_their_weights() -> None:
    rng = np.random.default_rng(6)
    frame = normal_frame(8000, 3, rng)
    e1 = 1 / (1 + np.exp(-1.5 * frame["x0"].to_numpy()))
    data = experiment(frame, rng, np.column_stack([1 - e1, e1]))
    found, check = arm_classifier(data, np.arange(8000), rng, 1, 1)
    assert found is not None
    assert found.lo < 0.5 < found.hi
    assert check.outcome == PASS
    wrong = experiment(frame, rng, np.full((8000, 2), 0.5), arm=data.arm)
    assert arm_classifier(wrong, np.arange(8000), rng, 1, 1)[1].outcome == STOP


def test_a_fair_draw_passes_the_classifier_as_often_as_it_says() -> None:
    """z of the area about .5 over 100 experiments: no bias, no more spread than its error."""
    rng = np.random.default_rng(7)
    z = []
    for _ in range(100):
        data = experiment(normal_frame(1000, 4, rng), rng)
        found, check = arm_classifier(data, np.arange(1000), rng, 1, 1)
        assert check.outcome == PASS
        assert found is not None
        z.append((found.value - 0.5) / found.se)
    assert abs(np.mean(z)) < 3.5 / np.sqrt(100)
    assert np.std(z) < 1.25
