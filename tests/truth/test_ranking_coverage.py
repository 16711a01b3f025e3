"""Intervals of ranking metrics and of gain over cost hold the truth as often as they say, whatever
the treated share, and tests over folds reject as often as they say.

The experiment is that of `test_coverage`: tau_1 = .2 + .4 x0, tau_2 = -.1 + .3 x1, means by a wrong
straight line out of fold, known probabilities. A score that has correlation rho with the normal
tau_1 has AUTOC = .9032 * .4 rho, QINI = .4 rho / (2 sqrt(pi)) and uplift at q = .2 + .4 rho
phi(z_q) / q. The gain at a budget of .1 per row is .14116 (+- .00005) by the true effects of 12
million rows at the shadow price that spends .1; the rival sends arm 1, at cost .4 or .6, by x2,
which says nothing: .2 times the sixth of the rows that .1 pays for.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from tests.truth.test_coverage import coverage, lines_out_of_fold, meets, simulate
from uplift.calibration import calibration_error
from uplift.data import FloatArray, IntArray, draw_folds
from uplift.gain_curve import gain_curve, ranked_curve
from uplift.inference import half_sample_errors, sequential_folds
from uplift.nuisances import doubly_robust
from uplift.ranking import rank_rows
from uplift.scores import Estimate, ScoreMatrix

NORMAL_AUTOC = quad(lambda z: norm.pdf(z) ** 2 / norm.sf(z), -np.inf, 30)[0]
BUDGET = 0.1


def mean_of_top(rho: float, q: float) -> float:
    return float(0.2 + 0.4 * rho * norm.pdf(norm.isf(q)) / q)


TRUTH = {
    "AUTOC": NORMAL_AUTOC * 0.4 * 0.8,
    "QINI": 0.4 * 0.8 / (2 * math.sqrt(math.pi)),
    "paired AUTOC": NORMAL_AUTOC * 0.4 * 0.8,
    "paired QINI": 0.4 * 0.8 / (2 * math.sqrt(math.pi)),
    "uplift at .1": mean_of_top(0.8, 0.1),
    "uplift at .3": mean_of_top(0.8, 0.3),
    "uplift at .3, perfect score": mean_of_top(1.0, 0.3),
    "TOC at .3": mean_of_top(0.8, 0.3) - 0.2,
    "Qini curve at .6": 0.6 * mean_of_top(0.8, 0.6),
    "paired uplift at .3": mean_of_top(0.8, 0.3) - 0.2,
    "gain at budget": 0.14116,
    "paired gain at budget": 0.14116 - 0.2 / 6,
    "gain at realised spend": 0.14116,
    "paired gain at realised spend": 0.14116 - 0.2 / 6,
}


def tenths(score: FloatArray) -> FloatArray:
    """Ten equally likely levels of a standard normal score."""
    return np.floor(10 * norm.cdf(score))


def _autoc_of_tenths() -> float:
    """A tie is treated in part at a cut, so TOC is that of the steps' mean effects."""
    edges = norm.isf(np.linspace(0, 1, 11))
    means = 10 * 0.4 * 0.8 * np.diff(norm.pdf(edges))
    gain = np.concatenate([[0.0], np.cumsum(means) / 10])
    area = 0.0
    for j in range(10):
        low, high = j / 10, (j + 1) / 10
        # Q(q) = intercept + slope q on the step; TOC is Q / q.
        intercept = gain[j] - means[j] * low
        area += means[j] * (high - low)
        area += intercept * math.log(high / low) if j else 0.0
    return area


TRUTH["AUTOC of a score in tenths"] = _autoc_of_tenths()


def predictions(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rewards and costs of two arms, as a model that is somewhat wrong would say."""
    reward = np.column_stack([0.25 + 0.3 * x[:, 0] + 0.1 * x[:, 2], 0.05 + 0.4 * x[:, 1]])
    cost = np.column_stack([0.4 + 0.2 * (x[:, 2] > 0), 0.3 + 0.1 * np.abs(x[:, 0])])
    return reward, cost


def scored(
    customers: int, waves: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, IntArray]:
    """x, scores, clusters of one experiment."""
    x, arm, y, assignment, cluster = simulate(customers, waves, rng)
    fold = rng.integers(0, 2, customers)[cluster]
    return x, doubly_robust(lines_out_of_fold(x, arm, y, fold), assignment, arm, y), cluster


def one_run(
    customers: int, waves: int, rng: np.random.Generator, clustered: bool = True
) -> dict[str, Estimate]:
    x, gamma, cluster = scored(customers, waves, rng)
    scores = ScoreMatrix(gamma, cluster if clustered else np.arange(len(x)))
    contrast = scores.contrast(1)

    def by(score: FloatArray):
        return rank_rows(score, contrast, scores.cluster)

    good, perfect, useless = by(0.8 * x[:, 0] + 0.6 * x[:, 2]), by(x[:, 0]), by(x[:, 2])
    reward, cost = predictions(x)
    # What was paid is right on average and noisy, as it is when a few redeem.
    redeemed = (rng.random(cost.shape) < 0.3) / 0.3
    noise = redeemed * rng.normal(0.0, 0.3, cost.shape)
    paid = ScoreMatrix(np.column_stack([np.zeros(len(x)), cost + noise]), scores.cluster)
    path = gain_curve(scores, reward, cost, spend=paid)
    rival = ranked_curve(scores, x[:, 2], 1, cost, spend=paid)
    made = {
        "AUTOC": good.autoc(),
        "QINI": good.qini(),
        "AUTOC of a score in tenths": by(tenths(0.8 * x[:, 0] + 0.6 * x[:, 2])).autoc(),
        "paired AUTOC": good.autoc() - useless.autoc(),
        "paired QINI": good.qini() - useless.qini(),
        "uplift at .1": good.uplift_at(0.1),
        "uplift at .3": good.uplift_at(0.3),
        "uplift at .3, perfect score": perfect.uplift_at(0.3),
        "TOC at .3": good.toc(0.3),
        "Qini curve at .6": good.qini_at(0.6),
        "paired uplift at .3": good.uplift_at(0.3) - useless.uplift_at(0.3),
        "gain at budget": path.at(BUDGET),
        "paired gain at budget": path.at(BUDGET) - rival.at(BUDGET),
        "gain at realised spend": path.at_spend(BUDGET),
        "paired gain at realised spend": path.at_spend(BUDGET) - rival.at_spend(BUDGET),
    }
    return {name: influence.estimate for name, influence in made.items()}


def test_the_gain_at_the_budget_is_the_true_one() -> None:
    x = np.random.default_rng(99).standard_normal((200_000, 3))
    tau = np.column_stack([np.zeros(len(x)), 0.2 + 0.4 * x[:, 0], -0.1 + 0.3 * x[:, 1]])
    scores = ScoreMatrix(tau, np.arange(len(x)))
    reward, cost = predictions(x)
    path, rival = gain_curve(scores, reward, cost), ranked_curve(scores, x[:, 2], 1, cost)
    for name, made in (
        ("gain at budget", path.at(BUDGET)),
        ("paired gain at budget", path.at(BUDGET) - rival.at(BUDGET)),
    ):
        assert abs(made.value - TRUTH[name]) < 3.3 * made.estimate.se
        assert made.estimate.se < 0.002


def test_coverage_small() -> None:
    for name, (held, width) in coverage(lambda rng: one_run(500, 1, rng), 300, 11, TRUTH).items():
        assert 0.91 <= held <= 0.99, name
        assert 0.85 <= width <= 1.25, name


@pytest.mark.slow
def test_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    runs = 4000
    found = coverage(lambda rng: one_run(1000, 1, rng), runs, 2, TRUTH)
    with capsys.disabled():
        print("\ncoverage, width:", {k: (round(a, 4), round(b, 3)) for k, (a, b) in found.items()})
    for name, (held, width) in found.items():
        assert meets(held, runs), name
        assert width <= 1.25, name


@pytest.mark.slow
def test_coverage_of_four_waves_with_a_fixed_arm(capsys: pytest.CaptureFixture[str]) -> None:
    runs, truth = 4000, TRUTH
    found = coverage(lambda rng: one_run(400, 4, rng), runs, 3, truth)
    naive = coverage(lambda rng: one_run(400, 4, rng, clustered=False), 600, 4, truth)
    with capsys.disabled():
        print("\nclustered:", {k: (round(a, 4), round(b, 3)) for k, (a, b) in found.items()})
        print("unclustered:", {k: round(v[0], 4) for k, v in naive.items()})
    for name, (held, width) in found.items():
        assert meets(held, runs), name
        assert width <= 1.25, name
        assert naive[name][0] < 0.85, name


@pytest.mark.slow
def test_coverage_of_half_samples(capsys: pytest.CaptureFixture[str]) -> None:
    """Deciles, and the gain at a budget with the path solved anew on every half."""
    runs = 700
    edges = norm.isf(np.linspace(0, 1, 11))
    deciles = 0.2 + 10 * 0.4 * 0.8 * np.diff(norm.pdf(edges))
    truth = {f"decile {j + 1}": float(deciles[j]) for j in range(10)}
    truth["gain at budget"] = TRUTH["gain at budget"]

    def run(rng: np.random.Generator) -> dict[str, Estimate]:
        x, gamma, cluster = scored(600, 1, rng)
        scores = ScoreMatrix(gamma, cluster)
        made = rank_rows(0.8 * x[:, 0] + 0.6 * x[:, 2], scores.contrast(1), cluster)
        path = gain_curve(scores, *predictions(x))
        out = {
            f"decile {row['part']}": Estimate(row["value"], row["se"])
            for row in made.deciles(x[:, 0], rng)
        }
        se = half_sample_errors(lambda keep: path.subset(keep).value(BUDGET), cluster, rng)
        return out | {"gain at budget": Estimate(float(path.value(BUDGET)), float(se))}

    found = coverage(run, runs, 5, truth)
    with capsys.disabled():
        print("\nhalf-samples:", {k: (round(a, 3), round(b, 3)) for k, (a, b) in found.items()})
    for name, (held, width) in found.items():
        assert meets(held, runs), name
        assert width <= 1.25, name


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_treated_share_does_not_move_the_metrics(share: float) -> None:
    """Same truth, 200 experiments: the means lie within 3 Monte Carlo errors of it."""
    rng = np.random.default_rng(6)
    truth = [NORMAL_AUTOC * 0.4, 0.4 / (2 * math.sqrt(math.pi)), mean_of_top(1.0, 0.2)]
    found = np.empty((200, 3))
    for r in range(200):
        x = rng.standard_normal(1000)
        treated = (rng.random(1000) < share).astype(np.int64)
        y = np.sin(x) + (0.2 + 0.4 * x) * treated + rng.standard_normal(1000)
        e = np.tile([1 - share, share], (1000, 1))
        gamma = doubly_robust(np.zeros((1000, 2)), e, treated, y)
        made = rank_rows(x, gamma[:, 1] - gamma[:, 0], np.arange(1000))
        found[r] = made.autoc().value, made.qini().value, made.uplift_at(0.2).value
    error = found.std(axis=0, ddof=1) / np.sqrt(200)
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - truth), 3 * error)


def fold_tests(runs: int, rows: int, seed: int) -> dict[str, float]:
    """Share of runs without an effect whose AUTOC is found at 5%, over 5 folds: each fold judged
    by a score learned on the earlier ones, and by one learned on all others."""
    rng = np.random.default_rng(seed)
    sequential, naive = np.empty(runs), np.empty(runs)
    for r in range(runs):
        x = rng.standard_normal((rows, 5))
        contrast = rng.standard_normal(rows)
        fold = draw_folds(np.arange(rows), np.zeros(rows, dtype=np.int64), 5, rng)

        def learned(seen: np.ndarray, held: np.ndarray, x=x, contrast=contrast) -> Estimate:
            slopes = np.linalg.lstsq(x[seen], contrast[seen], rcond=None)[0]
            each = np.flatnonzero(held)
            return rank_rows(x[held] @ slopes, contrast[held], each).autoc().estimate

        sequential[r] = sequential_folds(fold, learned).z
        parts = [learned(fold != f, fold == f) for f in range(5)]
        naive[r] = sum(p.value / p.se for p in parts) / math.sqrt(5)
    return {
        "sequential": float(np.mean(np.abs(sequential) > 1.959964)),
        "naive": float(np.mean(np.abs(naive) > 1.959964)),
    }


def test_sequential_folds_small() -> None:
    found = fold_tests(300, 1000, 7)
    assert 0.015 <= found["sequential"] <= 0.09
    assert found["naive"] > 0.09


@pytest.mark.slow
def test_sequential_folds_reject_as_often_as_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    found = fold_tests(4000, 2500, 8)
    with capsys.disabled():
        print("\nrejected without an effect:", found)
    assert 0.035 <= found["sequential"] <= 0.065
    assert found["naive"] > 0.1


@pytest.mark.slow
def test_calibration_error_of_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole experiment, four waves, arm fixed per customer: nothing on average, and with pairs
    of one customer's rows left in, clearly more."""
    rng = np.random.default_rng(9)
    debiased, by_rows = np.empty(2000), np.empty(2000)
    for r in range(2000):
        x, gamma, cluster = scored(300, 4, rng)
        tau, contrast = 0.2 + 0.4 * x[:, 0], gamma[:, 1] - gamma[:, 0]
        debiased[r] = calibration_error(tau, contrast, cluster).value
        by_rows[r] = calibration_error(tau, contrast, np.arange(len(x))).value
    error = debiased.std(ddof=1) / math.sqrt(2000)
    with capsys.disabled():
        print(f"\ndebiased {debiased.mean():.5f} +- {error:.5f}, by rows {by_rows.mean():.5f}")
    assert abs(debiased.mean()) < 3 * error
    assert by_rows.mean() > 30 * error
