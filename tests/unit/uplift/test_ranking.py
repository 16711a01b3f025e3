"""Ranking metrics: analytic areas, an oracle by definition, identities and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from tests.truth import oracle
from uplift.data import FloatArray
from uplift.errors import DesignError
from uplift.inference import half_sample_errors
from uplift.ranking import Ranking, rank_rows
from uplift.scores import Estimate

N = 1_000_000
# TOC(q) of a perfect ranking is the normal density at its upper q-quantile, over q.
NORMAL_AUTOC = quad(lambda z: norm.pdf(z) ** 2 / norm.sf(z), -np.inf, 30)[0]


def midpoints(n: int = N) -> FloatArray:
    return (np.arange(n) + 0.5) / n


def ranked(score: FloatArray, contrast: FloatArray) -> Ranking:
    return rank_rows(score, contrast, np.arange(len(score)))


def draws(distinct: int, n: int = 61, seed: int = 0) -> tuple[FloatArray, FloatArray, np.ndarray]:
    """Scores with `distinct` levels, contrasts that follow them, clusters of unequal size."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, distinct, n).astype(float)
    contrast = score / distinct + rng.standard_normal(n) + 0.3
    return score, contrast, rng.integers(0, n // 2, n)


def test_perfect_ranking_of_a_uniform_effect() -> None:
    tau = midpoints()
    made = ranked(tau, tau)
    assert made.autoc().value == pytest.approx(1 / 4, abs=2e-5)
    assert made.qini().value == pytest.approx(1 / 12, abs=2e-5)
    for q in (0.01, 0.1, 0.37, 0.9, 1.0):
        assert made.toc(q).value == pytest.approx((1 - q) / 2, abs=2e-5)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.75])
def test_perfect_ranking_of_an_effect_that_some_have(p: float) -> None:
    tau = (midpoints() > 1 - p).astype(float)
    made = ranked(tau, tau)
    assert made.autoc().value == pytest.approx(-p * np.log(p), abs=2e-5)
    assert made.qini().value == pytest.approx(p * (1 - p) / 2, abs=2e-5)


def test_perfect_ranking_of_normal_and_exponential_effects() -> None:
    normal = norm.ppf(midpoints())
    made = ranked(normal, normal)
    assert round(NORMAL_AUTOC, 4) == 0.9032
    assert made.autoc().value == pytest.approx(NORMAL_AUTOC, abs=2e-5)
    assert made.qini().value == pytest.approx(1 / (2 * np.sqrt(np.pi)), abs=2e-5)
    tail = -np.log1p(-midpoints())
    made = ranked(tail, tail)
    assert made.autoc().value == pytest.approx(1.0, abs=2e-5)
    assert made.qini().value == pytest.approx(1 / 4, abs=2e-5)


@pytest.mark.parametrize("rho", [0.6, -0.3])
def test_areas_shrink_with_the_correlation_of_score_and_effect(rho: float) -> None:
    rng = np.random.default_rng(1)
    n = 200_000
    score = rng.standard_normal(n)
    tau = rho * score + np.sqrt(1 - rho**2) * rng.standard_normal(n)
    made = ranked(score, tau)
    for found, truth in (
        (made.autoc().estimate, NORMAL_AUTOC * rho),
        (made.qini().estimate, rho / (2 * np.sqrt(np.pi))),
    ):
        assert abs(found.value - truth) < 3.3 * found.se
        assert found.se < 0.006


@pytest.mark.parametrize("distinct", [2, 7, 10_000])
def test_everything_agrees_with_the_oracle_by_definition(distinct: int) -> None:
    score, contrast, cluster = draws(distinct)
    s, d, c = score.tolist(), contrast.tolist(), cluster.tolist()
    made = rank_rows(score, contrast, cluster)
    pairs = [
        (made.autoc(), oracle.autoc(s, d), oracle.area_psi(s, d, "autoc")),
        (made.qini(), oracle.qini(s, d), oracle.area_psi(s, d, "qini")),
    ]
    for q in (0.02, 0.1, 0.314, 0.5, 0.97, 1.0):
        psi = oracle.uplift_psi(s, d, q)
        value = oracle.top_sum(s, d, q) / (q * len(d))
        mean = np.mean(contrast)
        less = [p - (x - mean) for p, x in zip(psi, d, strict=True)]
        pairs += [
            (made.uplift_at(q), value, psi),
            (made.toc(q), oracle.toc(s, d, q), less),
            (made.qini_at(q), q * value, [q * p for p in psi]),
        ]
    for found, value, psi in pairs:
        assert found.value == pytest.approx(value, abs=1e-12)
        np.testing.assert_allclose(found.psi, psi, rtol=0, atol=1e-12)
        assert found.estimate.se == pytest.approx(oracle.clustered_error(psi, c), abs=1e-13)


def test_ties_are_the_mean_over_random_orders_of_the_ties() -> None:
    score, contrast, _ = draws(4, 40, seed=2)
    made = ranked(score, contrast)
    rank = np.arange(1, 41)
    a = np.cumsum((1 / rank)[::-1])[::-1] - 1
    b = (41 - 2 * rank) / 80
    mixed = np.random.default_rng(3).random((20_000, 40))
    D = contrast[np.lexsort((mixed, np.broadcast_to(-score, mixed.shape)), axis=1)]
    top, tenth = D[:, :12].mean(axis=1), D[:, :4].mean(axis=1)
    found = np.column_stack([(a * D).mean(axis=1), (b * D).mean(axis=1), top, 10 * tenth])
    exact = [made.autoc(), made.qini(), made.uplift_at(0.3), made.uplift_at(0.1).scaled(10)]
    for sample, value in zip(found.T, exact, strict=True):
        error = sample.std(ddof=1) / np.sqrt(len(sample))
        assert error > 0
        assert abs(sample.mean() - value.value) < 3 * error


def everything(made: Ranking) -> FloatArray:
    """Every number of a ranking, values and errors."""
    estimates = [
        made.autoc().estimate,
        made.qini().estimate,
        *(made.uplift_at(q).estimate for q in (0.1, 0.37, 1.0)),
        *(made.toc(q).estimate for q in (0.1, 0.37)),
        made.qini_at(0.37).estimate,
    ]
    rows = [*made.toc_curve(7), *made.qini_curve(7)]
    rows += made.deciles(np.zeros(len(made)), np.random.default_rng(4))
    return np.array(
        [v for e in estimates for v in (e.value, e.se)]
        + [r[k] for r in rows for k in ("value", "se")]
    )


@pytest.mark.parametrize("distinct", [5, 100_000])
def test_neither_row_order_nor_a_monotone_map_changes_a_bit(distinct: int) -> None:
    score, contrast, cluster = draws(distinct, 600, seed=5)
    base = everything(rank_rows(score, contrast, cluster))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(score))
        mapped = np.exp(score[order] / distinct) * 3 - 7
        assert len(np.unique(mapped)) == len(np.unique(score))
        found = everything(rank_rows(mapped, contrast[order], cluster[order]))
        np.testing.assert_array_equal(found, base)


@pytest.mark.parametrize("distinct", [5, 100_000])
def test_a_constant_does_not_count_and_a_factor_counts_once(distinct: int) -> None:
    score, contrast, cluster = draws(distinct, 600, seed=6)
    base = rank_rows(score, contrast, cluster)
    moved = rank_rows(score, contrast + 17.0, cluster)
    twice = rank_rows(score, 2 * contrast, cluster)
    for name in ("autoc", "qini"):
        found = [getattr(r, name)().estimate for r in (base, moved, twice)]
        assert found[1].value == pytest.approx(found[0].value, abs=1e-12)
        assert found[1].se == pytest.approx(found[0].se, abs=1e-12)
        assert found[2].value == pytest.approx(2 * found[0].value, abs=1e-12)
        assert found[2].se == pytest.approx(2 * found[0].se, abs=1e-12)
    assert moved.toc(0.2).value == pytest.approx(base.toc(0.2).value, abs=1e-12)
    assert moved.uplift_at(0.2).value == pytest.approx(base.uplift_at(0.2).value + 17, abs=1e-12)


def test_a_constant_score_ranks_nothing() -> None:
    _, contrast, cluster = draws(3, 600)
    made = rank_rows(np.full(600, 0.1), contrast, cluster)
    for found in (made.autoc(), made.qini(), made.toc(0.3), made.toc(1.0)):
        assert found.estimate == Estimate(0.0, 0.0)
    assert [row["value"] for row in made.toc_curve(9)] == [0.0] * 9
    assert made.uplift_at(0.3).value == contrast[made.order].mean()
    # What the top of a constant score brings is as uncertain as the mean of all.
    whole = made.uplift_at(1.0).estimate.se
    assert made.uplift_at(0.3).estimate.se == pytest.approx(whole, rel=1e-12)


def test_a_constant_effect_has_no_areas() -> None:
    score, _, cluster = draws(9, 600)
    made = rank_rows(score, np.full(600, 0.1), cluster)
    for found in (made.autoc(), made.qini(), made.toc(0.3)):
        assert abs(found.value) < 1e-12
        assert found.estimate.se < 1e-12


@pytest.mark.parametrize("distinct", [1, 6, 10_000])
def test_identities(distinct: int) -> None:
    score, contrast, cluster = draws(distinct, 730, seed=7)
    made = rank_rows(score, contrast, cluster)
    ate = contrast.mean()
    assert made.qini_at(1.0).value == pytest.approx(ate, abs=1e-12)
    assert made.toc(1.0).value == pytest.approx(0.0, abs=1e-12)
    deciles = made.deciles(score, np.random.default_rng(0))
    assert sum(row["value"] for row in deciles) / 10 == pytest.approx(ate, abs=1e-12)
    assert sum(row["predicted"] for row in deciles) / 10 == pytest.approx(score.mean(), rel=1e-12)
    curve = np.array([0.0] + [made.qini_at(j / 730).value for j in range(1, 731)])
    area = np.sum((curve[1:] + curve[:-1]) / 2) / 730
    assert area - ate / 2 == pytest.approx(made.qini().value, abs=1e-12)
    toc = [made.toc(j / 730).value for j in range(1, 731)]
    assert np.mean(toc) == pytest.approx(made.autoc().value, abs=1e-12)


def test_curves_are_their_points() -> None:
    score, contrast, cluster = draws(40, 500, seed=8)
    made = rank_rows(score, contrast, cluster)
    for row, exact in [(r, made.toc(r["q"])) for r in made.toc_curve(11)] + [
        (r, made.qini_at(r["q"])) for r in made.qini_curve(11)
    ]:
        assert row["value"] == pytest.approx(exact.value, abs=1e-15)
        assert row["se"] == pytest.approx(exact.estimate.se, abs=1e-12)


def test_influence_values_agree_with_half_samples() -> None:
    rng = np.random.default_rng(9)
    n = 4000
    score = np.round(rng.standard_normal(n), 1)
    contrast = score + 2 * rng.standard_normal(n)
    cluster = rng.integers(0, 2000, n)
    made = rank_rows(score, contrast, cluster)

    def numbers(r: Ranking) -> list[float]:
        parts = (r.autoc(), r.qini(), r.uplift_at(0.3), r.toc(0.3), r.qini_at(0.7))
        return [part.value for part in parts]

    half = half_sample_errors(
        lambda keep: np.array(numbers(made.subset(keep))), cluster, rng, draws=400
    )
    exact = [
        f.estimate.se
        for f in (made.autoc(), made.qini(), made.uplift_at(0.3), made.toc(0.3), made.qini_at(0.7))
    ]
    # 400 draws know a standard deviation to 3.5%.
    np.testing.assert_allclose(half, exact, rtol=0.15)


def test_without_the_terms_of_estimated_ranks_the_error_is_too_large() -> None:
    """A perfect ranking with D = tau: the areas of two samples differ little."""
    rng = np.random.default_rng(10)
    found = [ranked(t, t).autoc() for t in rng.random((300, 500))]
    true_se = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.estimate.se for f in found]) == pytest.approx(true_se, rel=0.12)


def test_subset_is_the_ranking_of_its_rows() -> None:
    score, contrast, cluster = draws(12, 400, seed=11)
    keep = np.random.default_rng(12).random(400) < 0.4
    some = rank_rows(score, contrast, cluster).subset(keep)
    direct = rank_rows(score[keep], contrast[keep], cluster[keep])
    np.testing.assert_array_equal(some.autoc().psi, direct.autoc().psi)
    assert some.autoc().estimate == direct.autoc().estimate  # though codes are missing from `some`
    np.testing.assert_allclose(some.uplift_at(0.3).psi, direct.uplift_at(0.3).psi, atol=1e-14)


@pytest.mark.parametrize("n", [9, 10, 400])
def test_the_quick_way_to_parts_of_a_subset_is_the_long_one(n: int) -> None:
    score, contrast, cluster = draws(10**9, n, seed=18)
    made = rank_rows(score, contrast, cluster)
    for seed in range(5):
        keep = np.random.default_rng(seed).random(n) < 0.5
        keep[0] = True
        quick, long = made._part_means_of(keep, 10), made.subset(keep).part_means(10)
        np.testing.assert_allclose(quick, long, rtol=0, atol=1e-12)


def test_comparison_of_rankings_is_paired() -> None:
    rng = np.random.default_rng(13)
    n = 3000
    tau = rng.standard_normal(n)
    contrast = tau + 3 * rng.standard_normal(n)
    cluster = np.arange(n) // 2
    good = rank_rows(tau + 0.3 * rng.standard_normal(n), contrast, cluster)
    worse = rank_rows(tau + 0.8 * rng.standard_normal(n), contrast, cluster)
    for metric in (Ranking.autoc, Ranking.qini, lambda r: r.uplift_at(0.2)):
        one, other = metric(good), metric(worse)
        paired = (one - other).estimate
        assert paired.value == one.value - other.value
        assert paired.se < 0.8 * np.hypot(one.estimate.se, other.estimate.se)
        itself = (one - metric(good)).estimate
        assert (itself.value, itself.se) == (0.0, 0.0)
    with pytest.raises(DesignError, match="paired comparison needs the same rows on both sides"):
        good.autoc() - ranked(tau, contrast).autoc()


def test_paired_errors_do_not_depend_on_the_order_of_rows() -> None:
    score, contrast, cluster = draws(30, 500, seed=14)
    other = np.random.default_rng(15).integers(0, 9, 500).astype(float)

    def difference(pick: np.ndarray) -> Estimate:
        one = rank_rows(score[pick], contrast[pick], cluster[pick])
        return (
            one.autoc() - rank_rows(other[pick], contrast[pick], cluster[pick]).autoc()
        ).estimate

    order = np.random.default_rng(16).permutation(500)
    assert difference(np.arange(500)) == difference(order)


def test_decile_errors_know_that_ranks_are_estimated() -> None:
    """D = S exactly: given the ranks a tenth is spread over its own width only, but from sample to
    sample its edges move as well."""
    rng = np.random.default_rng(17)
    samples = rng.random((200, 400))
    means = np.array([ranked(s, s).part_means() for s in samples])
    made = ranked(samples[0], samples[0]).deciles(samples[0], rng, draws=400)
    found = np.array([row["se"] for row in made])
    np.testing.assert_allclose(found[1:9], means.std(axis=0, ddof=1)[1:9], rtol=0.3)
    assert [row["part"] for row in made] == list(range(1, 11))
    assert [row["rows"] for row in made] == [40.0] * 10


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_missing_score_is_an_error(bad: float) -> None:
    ones = np.ones(3)
    with pytest.raises(DesignError, match="rank holds 1 values that are no finite numbers"):
        rank_rows(np.array([1.0, bad, 0.0]), ones, np.arange(3))
    with pytest.raises(DesignError, match="contrast holds values that are no finite numbers"):
        rank_rows(ones, np.array([1.0, bad, 0.0]), np.arange(3))


def test_refusals() -> None:
    ones = np.ones(3)
    with pytest.raises(DesignError, match="one length, found 3, 3 and 2"):
        rank_rows(ones, ones, np.arange(2))
    with pytest.raises(DesignError, match="at least 2 clusters, found 1"):
        rank_rows(ones, ones, np.zeros(3, dtype=np.int64))
    made = ranked(np.arange(5.0), np.arange(5.0))
    for q in (0.0, -0.1, 1.1, np.nan):
        with pytest.raises(DesignError, match="q: expected a share above 0 and at most 1"):
            made.uplift_at(q)
