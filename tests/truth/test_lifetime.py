"""BG/NBD and Gamma-Gamma against published figures, known parameters and other ways to compute."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.special import betaln, hyp2f1

from uplift.data import FloatArray
from uplift.errors import DesignError
from uplift.lifetime import BgNbd, GammaGamma, fit_bgnbd, fit_gamma_gamma

SAMPLE = Path(__file__).parents[3] / "shared/data/cdnow_sample.parquet"
MODEL = BgNbd(r=0.25, alpha=4.4, a=0.8, b=2.4)


class Histories(NamedTuple):
    x: FloatArray
    t_x: FloatArray
    age: FloatArray


def one(x: float, t_x: float, age: float) -> Histories:
    return Histories(*(np.array([float(v)]) for v in (x, t_x, age)))


def simulate(
    model: BgNbd, n: int, age: float, ahead: float, seed: int
) -> tuple[Histories, FloatArray]:
    """Histories of `age` and the orders of the time `ahead`, order by order from the definition:
    exponential gaps at the customer's rate, a coin for dropping out after each repeat."""
    rng = np.random.default_rng(seed)
    rate, leave = rng.gamma(model.r, 1 / model.alpha, n), rng.beta(model.a, model.b, n)
    at, alive = np.zeros(n), np.ones(n, dtype=bool)
    x, t_x, later = np.zeros(n), np.zeros(n), np.zeros(n)
    while alive.any():
        at += rng.exponential(1 / np.maximum(rate, 1e-300))
        alive &= at < age + ahead
        past = alive & (at <= age)
        x, t_x, later = x + past, np.where(past, at, t_x), later + (alive & ~past)
        alive &= rng.random(n) >= leave
    return Histories(x, t_x, np.full(n, age)), later


def test_published_figures_of_cdnow() -> None:
    if not SAMPLE.exists():
        pytest.skip(f"the CDNOW sample is not there: {SAMPLE.name}")
    lines = pd.read_parquet(SAMPLE)
    lines["day"] = pd.to_datetime(lines["date"].astype(str))
    end = pd.Timestamp("1997-09-30")
    days = (
        lines[lines["day"] <= end]
        .groupby(["customer_id", "day"])["dollar_value"]
        .sum()
        .reset_index()
    )
    by = days.groupby("customer_id")["day"]
    first = by.min()
    x = (by.size() - 1).to_numpy().astype(np.float64)
    history = Histories(
        x,
        (by.max() - first).dt.days.to_numpy(float) / 7,
        (end - first).dt.days.to_numpy(float) / 7,
    )
    model = fit_bgnbd(*history)
    assert [model.r, model.alpha, model.a, model.b] == pytest.approx(
        [0.2426, 4.4135, 0.7929, 2.4258], abs=1e-2
    )
    assert model.log_likelihood(*history).sum() == pytest.approx(-9582.43, abs=0.01)
    chosen = one(2, 30.43, 38.86)
    assert model.expected_orders(39, *chosen)[0] == pytest.approx(1.226, abs=1e-3)
    assert model.p_alive(*chosen)[0] == pytest.approx(0.727, abs=1e-3)

    repeats = days[days["day"] > days["customer_id"].map(first)]
    value = repeats.groupby("customer_id")["dollar_value"].mean().to_numpy()
    count = x[x > 0]
    assert len(count) == 946
    money = fit_gamma_gamma(count, value)
    assert [money.p, money.q, money.v] == pytest.approx([6.250, 3.744, 15.44], abs=1e-2)
    assert money.log_likelihood(count, value).sum() == pytest.approx(-4055.92, abs=0.01)


def test_known_parameters_are_found_again() -> None:
    history, _ = simulate(MODEL, 60_000, age=60, ahead=0, seed=1)
    fitted = fit_bgnbd(*history)
    found = np.log([fitted.r, fitted.alpha, fitted.a, fitted.b])
    assert found == pytest.approx(np.log([0.25, 4.4, 0.8, 2.4]), abs=0.12)
    truth, best = (m.log_likelihood(*history).sum() for m in (MODEL, fitted))
    # Twice the log-likelihood ratio is chi-squared with 4 degrees of freedom: 18.5 at p = .001.
    assert 0 <= 2 * (best - truth) < 18.5


def test_predictions_are_what_simulated_customers_do() -> None:
    history, later = simulate(MODEL, 200_000, age=40, ahead=30, seed=2)
    expected = MODEL.expected_orders(30, *history)
    chance = MODEL.p_order(30, *history)
    for group in (history.x == 0, history.x == 1, (history.x > 1) & (history.x <= 4)):
        gap = later[group] - expected[group]
        assert abs(gap.mean()) < 3.5 * gap.std() / np.sqrt(group.sum())
        gap = (later[group] > 0) - chance[group]
        assert abs(gap.mean()) < 3.5 * gap.std() / np.sqrt(group.sum())
    late = history.t_x > 30
    gap = (later[late] > 0) - chance[late]
    assert abs(gap.mean()) < 3.5 * gap.std() / np.sqrt(late.sum())


@pytest.mark.parametrize(
    ("a", "b", "x", "t_x"),
    [(0.8, 2.4, 2, 30), (1.0, 2.4, 3, 10), (0.4, 0.6, 0, 0), (0.1, 0.3, 0, 0), (3, 0.5, 60, 38),
     (0.02, 9, 12, 35), (0.8, 2.4, 400, 39)],
)  # fmt: skip
def test_expected_orders_against_the_integral(a: float, b: float, x: float, t_x: float) -> None:
    """E[Y(t)] = P(alive) E_p[(1 - ((alpha+T)/(alpha+T+pt))^(r+x)) / p], p ~ Beta(a, b+x): the
    expectation over the rate is exact, the one over p is integrated by quadrature."""
    model, history, t = BgNbd(0.25, 4.4, a, b), one(x, t_x, 39), 26.0
    power, horizon = model.r + x, model.alpha + 39

    def orders(p: float) -> float:
        return (
            -float(np.expm1(-power * np.log1p(p * t / horizon))) / p if p else power * t / horizon
        )

    low = quad(lambda p: orders(p) * (1 - p) ** (b + x - 1), 0, 0.5, weight="alg", wvar=(a - 1, 0))[
        0
    ]
    high = quad(lambda p: orders(p) * p ** (a - 1), 0.5, 1, weight="alg", wvar=(0, b + x - 1))[0]
    expected = (low + high) / np.exp(betaln(a, b + x)) * model.p_alive(*history)[0]
    assert model.expected_orders(t, *history)[0] == pytest.approx(expected, rel=1e-5)


def test_expected_orders_as_the_paper_writes_it() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 8, 200).astype(float)
    age = rng.uniform(5, 60, 200)
    history = Histories(x, np.where(x > 0, age * rng.random(200), 0.0), age)
    m, t = MODEL, 39.0
    z = t / (m.alpha + age + t)
    top = m.a + m.b + x - 1
    dropped = (1 - z) ** (m.r + x) * hyp2f1(m.r + x, m.b + x, top, z)
    paper = top / (m.a - 1) * (1 - dropped) * m.p_alive(*history)
    assert m.expected_orders(t, *history) == pytest.approx(paper, rel=1e-9)
    # In a short time orders come at rate E[lambda | alive], and hardly ever two.
    short = m.p_alive(*history) * (m.r + x) / (m.alpha + age) * 1e-5
    assert m.expected_orders(1e-5, *history) == pytest.approx(short, rel=1e-4)
    assert m.p_order(1e-5, *history) == pytest.approx(short, rel=1e-4)
    assert (m.p_order(t, *history) <= m.expected_orders(t, *history)).all()


def test_a_customer_without_a_repeat() -> None:
    history = one(0, 0, 12)
    assert MODEL.p_alive(*history)[0] == 1
    by_hand = (MODEL.alpha / (MODEL.alpha + 12)) ** MODEL.r
    assert np.exp(MODEL.log_likelihood(*history)[0]) == pytest.approx(by_hand, rel=1e-12)
    assert GammaGamma(6, 4, 15).expected_value(np.zeros(1), np.array([np.nan]))[0] == 6 * 15 / 3


def test_the_unit_of_time_does_not_matter() -> None:
    history, _ = simulate(MODEL, 3_000, age=50, ahead=0, seed=4)
    weeks, days = fit_bgnbd(*history), fit_bgnbd(history.x, history.t_x * 7, history.age * 7)
    assert [days.r, days.alpha / 7, days.a, days.b] == pytest.approx(
        [weeks.r, weeks.alpha, weeks.a, weeks.b], rel=1e-5
    )
    doubled = fit_bgnbd(*(np.tile(v, 2) for v in history))
    assert doubled.alpha == pytest.approx(weeks.alpha, rel=1e-5)


def test_the_fit_is_a_maximum() -> None:
    history, _ = simulate(MODEL, 3_000, age=50, ahead=0, seed=5)
    fitted = fit_bgnbd(*history)
    best = fitted.log_likelihood(*history).sum()
    for name in ("r", "alpha", "a", "b"):
        for factor in (0.99, 1.01):
            moved = BgNbd(**{**vars(fitted), name: vars(fitted)[name] * factor})
            assert moved.log_likelihood(*history).sum() < best


def test_too_little_to_learn_from() -> None:
    never = Histories(np.zeros(5), np.zeros(5), np.full(5, 10.0))
    with pytest.raises(DesignError, match="none among 5"):
        fit_bgnbd(*never)
    with pytest.raises(DesignError, match="found none among 0"):
        fit_bgnbd(*(np.zeros(0) for _ in range(3)))
    with pytest.raises(DesignError, match="positive value"):
        fit_gamma_gamma(np.array([1.0]), np.array([0.0]))
    lonely = fit_bgnbd(*one(3, 20, 30))
    assert np.isfinite(list(vars(lonely).values())).all()
    assert np.isfinite(lonely.expected_orders(30, *one(3, 20, 30))).all()
    assert np.isfinite(fit_gamma_gamma(np.array([2.0]), np.array([20.0])).mean)


def test_gamma_gamma_density_and_mean() -> None:
    model = GammaGamma(p=6.25, q=3.74, v=15.44)

    def density(z: float) -> float:
        return float(np.exp(model.log_likelihood(np.array([3.0]), np.array([z]))[0]))

    assert quad(density, 0, 3000, limit=200)[0] == pytest.approx(1, abs=1e-6)
    mean = quad(lambda z: z * density(z), 0, 20000, limit=400)[0]
    assert mean == pytest.approx(model.mean, rel=1e-3)
    # A mean of many orders is believed; one of a few is drawn to the mean of all.
    far = np.array([200.0])
    assert model.expected_value(np.array([1e6]), far)[0] == pytest.approx(200, rel=1e-3)
    assert model.mean < model.expected_value(np.array([1.0]), far)[0] < 200


def test_gamma_gamma_finds_known_parameters() -> None:
    rng = np.random.default_rng(6)
    truth, n = GammaGamma(p=4, q=5, v=30), 20_000
    x = rng.integers(1, 9, n).astype(float)
    scale = rng.gamma(truth.q, 1 / truth.v, n)
    value = rng.gamma(truth.p * x, 1 / (scale * x))
    fitted = fit_gamma_gamma(x, value)
    gain = fitted.log_likelihood(x, value).sum() - truth.log_likelihood(x, value).sum()
    assert 0 <= 2 * gain < 16.3  # chi-squared with 3 degrees of freedom at p = .001
    assert fitted.mean == pytest.approx(truth.mean, rel=0.02)
    own = truth.p / scale
    assert np.mean(fitted.expected_value(x, value) - own) == pytest.approx(0, abs=0.15)
