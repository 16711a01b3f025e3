"""Metrics of response models against independent computations, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from features.errors import ConfigError
from training.responses import auc, calibration, calibration_error, deciles, lift_at, measure
from training.targets import TARGETS, check_targets, time_cut

RNG = np.random.default_rng


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    p = rng.beta(1, 6, n).round(2).clip(0.01, 0.99)
    return (rng.random(n) < p).astype(float), p


def test_auc_is_that_of_scikit_learn_with_ties() -> None:
    y, p = draw(RNG(1), 2000)
    assert auc(y, p, np.arange(2000)).value == pytest.approx(roc_auc_score(y, p), abs=1e-12)


def test_auc_interval_covers() -> None:
    rng = RNG(2)
    y, p = draw(rng, 200_000)
    truth = roc_auc_score(y, p)
    inside = 0
    for _ in range(300):
        rows = rng.integers(0, len(y), 600)
        e = auc(y[rows], p[rows], np.arange(600))
        inside += e.lo <= truth <= e.hi
    assert 0.91 <= inside / 300 <= 0.99


def test_calibration_interval_covers_one_and_zero() -> None:
    rng = RNG(3)
    inside = np.zeros(2)
    for _ in range(150):
        y, p = draw(rng, 800)
        slope, intercept = calibration(y, p, np.arange(800))
        inside += [slope.lo <= 1 <= slope.hi, intercept.lo <= 0 <= intercept.hi]
    assert (inside / 150 >= 0.9).all()
    assert (inside / 150 <= 0.993).all()


def test_calibration_error_is_small_when_calibrated_and_right_when_not() -> None:
    y, p = draw(RNG(4), 50_000)
    assert calibration_error(y, p) < 0.01
    assert calibration_error(y, np.clip(p + 0.1, 0, 1)) == pytest.approx(0.1, abs=0.01)


def test_clusters_widen_the_interval() -> None:
    y, p = draw(RNG(5), 500)
    alone = auc(y, p, np.arange(500)).se
    copies = auc(np.repeat(y, 4), np.repeat(p, 4), np.repeat(np.arange(500), 4)).se
    naive = auc(np.repeat(y, 4), np.repeat(p, 4), np.arange(2000)).se
    assert copies == pytest.approx(alone, rel=0.02)
    assert naive < 0.6 * alone


def test_lift_and_deciles_by_hand() -> None:
    y = np.array([1.0] * 5 + [0.0] * 5 + [1.0] * 2 + [0.0] * 88)
    p = np.linspace(0.9, 0.1, 100)
    assert lift_at(y, p, 0.1) == pytest.approx(0.5 / 0.07)
    rows = deciles(y, p)
    assert rows[0]["observed"] == 0.5
    assert sum(r["observed"] for r in rows) / 10 == pytest.approx(0.07)


def test_every_metric_has_an_interval() -> None:
    y, p = draw(RNG(6), 1000)
    for name, estimate in measure(y, p, np.arange(1000), RNG(0)).items():
        assert estimate.se > 0, name


def test_last_campaigns_are_held_out_whole() -> None:
    days = np.array(
        ["2026-01-01"] * 50 + ["2026-02-01"] * 30 + ["2026-03-01"] * 20, "datetime64[D]"
    )
    assert time_cut(days, 0.3) == np.datetime64("2026-03-01")
    assert time_cut(days, 0.5) == np.datetime64("2026-02-01")
    assert time_cut(days, 0.05) == np.datetime64("2026-03-01")
    assert time_cut(days[:10], 0.3) is None


def test_every_target_is_known_to_these_tests() -> None:
    assert set(TARGETS) == {"response", "redemption"}, "test the new target's label below"


def test_labels_of_the_targets() -> None:
    class Data:
        arm = np.array([0, 1, 2, 0])
        converted = np.array([1.0, 0.0, 1.0, 0.0])

    class Set:
        training = Data()
        redeemed = np.array([0.0, 1.0, 0.0, 0.0])

    use, label = TARGETS["response"](Set())  # type: ignore[arg-type]
    assert label[use].tolist() == [1, 0]
    use, label = TARGETS["redemption"](Set())  # type: ignore[arg-type]
    assert label[use].tolist() == [1, 0]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"or response, found return"):
        check_targets(["response", "churn", "return"])
