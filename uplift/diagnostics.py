"""Can the arms be compared? Tests that rest on the design alone: given who was there, only the
draw of the arms is random, and its probabilities are known.

A draw is what got an arm of its own: a row, a customer in one wave, or a customer for good.
`unit` (n,) codes the draws; within one the arm does not change (`draw_units`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import chi2, norm

from uplift.data import BoolArray, FloatArray, IntArray, TrainingSet

Outcome = Literal["pass", "warn", "stop", "not run"]
PASS: Final = "pass"
WARN: Final = "warn"
STOP: Final = "stop"
NOT_RUN: Final = "not run"

SIGNIFICANCE = 0.001
# An outlier among the differences, in multiples of their median; the median of |z| when all is
# well is .67, and a smaller one found by luck is no measure.
OUTLIER, FAIR_MEDIAN = 10.0, 0.6745
MOST_LEVELS = 50
# A bound of a tail costs a search: where so many were confirmed, the rest need none.
MOST_BOUNDS = 10


@dataclass(frozen=True)
class Check:
    """One diagnostic: its number beside its threshold, and what follows.

    `culprits` are the columns or arms that it names, the worst first. Where a check could not be
    made, the outcome is "not run" and `text` says why.
    """

    name: str
    outcome: Outcome
    number: float | None
    threshold: float | None
    text: str
    culprits: tuple[str, ...] = ()

    def sentence(self) -> str:
        return f"{self.name}: {self.text}"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "culprits": list(self.culprits)}


@dataclass(frozen=True)
class Balance:
    """A column in an arm against control: the standardised difference
    (m_k - m_0) / sqrt((s_k^2 + s_0^2) / 2), weighted by 1 / e_W where the probabilities vary.

    z  by the design alone: of sum_i (1[W_i = k] - e'_i) (x_i - c) / (e'_i (1 - e'_i)) over the rows
       of arm k and control, whose variance is known once the rows are
    p  two-sided; of large z a bound that holds for any size and any tail (see `tail_bound`)
    """

    feature: str
    arm: str
    difference: float
    z: float
    p: float


def draw_units(data: TrainingSet) -> IntArray:
    """(n,) codes of the draws: clusters where each has one arm throughout; else clusters at one
    moment where those have; else rows."""
    cluster = np.unique(data.cluster, return_inverse=True)[1].astype(np.int64)
    if _one_arm_each(cluster, data.arm):
        return cluster
    moment = np.unique(data.assigned_at, return_inverse=True)[1].astype(np.int64)
    wave = np.unique(cluster * (moment.max() + 1) + moment, return_inverse=True)[1].astype(np.int64)
    return wave if _one_arm_each(wave, data.arm) else np.arange(len(data), dtype=np.int64)


def _one_arm_each(code: IntArray, arm: IntArray) -> bool:
    first = np.zeros(code.max() + 1, dtype=np.int64)
    first[code] = arm
    return bool((first[code] == arm).all())


def srm(data: TrainingSet, unit: IntArray | None = None) -> tuple[float, float]:
    """Sample ratio test for row-varying probabilities: statistic and p-value.

    d_k = sum_i(1[W_i = k] - e_k(x_i)), V = sum_i(diag(e_i) - e_i e_i'), control left out;
    T = d' V^-1 d ~ chi2_K, over the draws: with an arm for good, customers count, not rows. With
    constant e this is Pearson's chi-square (1900).
    """
    arm, assignment = data.arm, data.assignment
    if unit is not None:
        first = np.unique(unit, return_index=True)[1]
        arm, assignment = arm[first], assignment[first]
    e = assignment[:, 1:]
    treated = arm[:, None] == np.arange(1, data.n_arms + 1)
    d = (treated - e).sum(axis=0)
    v = np.diag(e.sum(axis=0)) - e.T @ e
    statistic = float(d @ np.linalg.pinv(v) @ d)
    return statistic, float(chi2.sf(statistic, np.linalg.matrix_rank(v)))


def columns(data: TrainingSet) -> Iterator[tuple[str, FloatArray]]:
    """Every feature as numbers with NaN for missing, each frequent level of a category as 0/1, and
    for each feature that lacks some values whether it does."""
    for i, name in enumerate(data.schema.names):
        x = data.X[:, i].astype(np.float64)
        missing = np.isnan(x)
        if name in data.schema.levels:
            counts = np.bincount(x[~missing].astype(np.int64), minlength=1)
            for code in np.argsort(-counts, kind="stable")[:MOST_LEVELS]:
                if 0 < counts[code] < len(x):
                    level = data.schema.levels[name][code]
                    yield f"{name}={level}", (x == code).astype(np.float64)
        else:
            yield name, x
        if 0 < missing.sum() < len(x):
            yield f"{name} missing", missing.astype(np.float64)


@dataclass(frozen=True)
class _Pair:
    """The rows of arm k and control among which both could be drawn.

    away    1[W = k] - e', with e' = e_k / (e_k + e_0)
    spread  e' (1 - e'); unit: codes of the draws 0..; e, spread_of: those of each draw
    weight  1 / e_W
    """

    rows: IntArray
    treated: BoolArray
    away: FloatArray
    spread: FloatArray
    weight: FloatArray
    unit: IntArray | None
    e: FloatArray
    spread_of: FloatArray

    def sums(self, values: FloatArray) -> FloatArray:
        """(draws,) sums of the values (rows,) of each draw."""
        if self.unit is None:
            return values
        out: FloatArray = np.bincount(self.unit, weights=values).astype(np.float64)
        return out


def _pair(data: TrainingSet, unit: IntArray, k: int) -> _Pair:
    e_k, e_0 = data.assignment[:, k], data.assignment[:, 0]
    chosen = ((data.arm == k) | (data.arm == 0)) & (e_k > 0) & (e_0 > 0)
    rows = np.flatnonzero(chosen)
    e = e_k[rows] / (e_k[rows] + e_0[rows])
    treated = data.arm[rows] == k
    names, first, code = np.unique(unit[rows], return_index=True, return_inverse=True)
    alone = len(names) == len(rows)
    each = e if alone else e[first]
    return _Pair(
        rows,
        treated,
        treated - e,
        e * (1 - e),
        1 / data.own_probability[rows],
        None if alone else code.astype(np.int64),
        each,
        each * (1 - each),
    )


@dataclass(frozen=True)
class _Compared:
    """The standardised difference (NaN where it has no meaning), z, the design's score T and the
    share A (draws,) of each draw in it."""

    difference: float
    z: float
    total: float
    shares: FloatArray


def _compare(pair: _Pair, x: FloatArray) -> _Compared:
    known = ~np.isnan(x)
    inverse, treated, control = 1 / pair.spread, pair.weight * pair.treated, pair.weight
    if not known.all():
        inverse, treated, control = inverse * known, treated * known, control * known
        x = np.where(known, x, 0.0)
    control = control - treated
    centre = float(inverse @ x) / max(float(inverse.sum()), 1e-300)
    away = x - centre
    shares = pair.sums(away * inverse)
    total = float(pair.away @ (away * inverse))
    deviation = math.sqrt(float(pair.spread_of @ shares**2))
    means, variances = [], []
    for weight in (treated, control):
        sum_of = max(float(weight.sum()), 1e-300)
        means.append(float(weight @ away) / sum_of)
        variances.append(float(weight @ away**2) / sum_of - means[-1] ** 2)
    enough = min(np.count_nonzero(treated), np.count_nonzero(control)) >= 2
    tiny = 1e-9 * (1 + abs(centre))
    apart = means[0] - means[1]
    scale = math.sqrt(max(sum(variances), 0.0) / 2)
    if scale <= tiny:  # constant on each side, as what only the treated have: the spread of all
        scale = abs(apart) / 2
    difference = apart / scale if enough and scale > tiny else math.nan
    return _Compared(difference, total / deviation if deviation > 0 else 0.0, total, shares)


def tail_bound(a: FloatArray, p: FloatArray, total: float) -> float:
    """An upper bound on P(|sum_i (B_i - p_i) a_i| >= |total|) for independent B_i ~ Bernoulli(p_i).

    Twice the least over s >= 0 of exp(sum_i log(1 - p_i + p_i e^(s a_i)) - s (t + p a)) (Chernoff
    1952), on the side of `total`. No normal approximation, so a rare arm with a heavy-tailed
    column raises no alarm that the design does not.
    """
    a = a * math.copysign(1.0, total)
    scale = math.sqrt(float((p * (1 - p)) @ a**2))
    if scale == 0 or total == 0:
        return 1.0
    a = a / scale
    t = abs(total) / scale
    offset = t + float(p @ a)
    some = (a != 0) & (p > 0)
    a, low, high = a[some], np.log1p(-np.minimum(p[some], 1 - 1e-15)), np.log(p[some])

    def exponent(s: float) -> float:
        return float(np.logaddexp(low, high + s * a).sum() - s * offset)

    best = minimize_scalar(exponent, bounds=(0.0, 2 * t + 10), method="bounded")
    return min(1.0, 2 * math.exp(min(0.0, float(best.fun))))


def balance(data: TrainingSet, unit: IntArray | None = None) -> tuple[Balance, ...]:
    """Every column (`columns`) and every arm against control, the surest departures exact."""
    unit = draw_units(data) if unit is None else unit
    pairs = [_pair(data, unit, k) for k in range(1, data.n_arms + 1)]
    found: list[Balance] = []
    # At most as strict as the threshold that the number of columns will give.
    suspicious = SIGNIFICANCE / max(1, data.n_arms * len(data.schema.names))
    confirmed = 0
    for name, whole in columns(data):
        for k, pair in enumerate(pairs):
            seen = _compare(pair, whole[pair.rows])
            if not math.isfinite(seen.difference):
                continue
            p = 2 * float(norm.sf(abs(seen.z)))
            if p <= suspicious and confirmed < MOST_BOUNDS:
                p = max(p, tail_bound(seen.shares, pair.e, seen.total))
                confirmed += p <= suspicious / 100
            found.append(Balance(name, data.arms[k], seen.difference, seen.z, p))
    return tuple(found)


def judge_balance(found: tuple[Balance, ...], randomised: bool) -> Check:
    """Stops where a difference is beyond Bonferroni at .001; names outliers against the median.

    A column whose difference is far beyond all others was most likely written down after the
    assignment. Where nobody drew the arms differences are expected: only such outliers are told.
    """
    name = "balance"
    if not found:
        return Check(name, NOT_RUN, None, None, "no feature varies in two arms")
    threshold = SIGNIFICANCE / len(found)
    order = sorted(found, key=lambda b: (b.p, -abs(b.z)))
    size = np.array([abs(b.z) for b in found])
    limit = OUTLIER * max(float(np.median(size)), FAIR_MEDIAN)
    outliers = {b.feature for b in found if abs(b.z) > limit and b.p <= threshold}
    beyond = [b for b in order if b.p <= threshold]
    worst = order[0]
    told = (
        f"largest standardised difference {worst.difference:+.3f} ({worst.feature}, {worst.arm}; "
        f"z = {worst.z:+.1f}, p = {worst.p:.2g}, threshold {threshold:.2g})"
    )
    if not randomised:
        if not outliers:
            return Check(name, PASS, worst.p, threshold, told + ", as arms that nobody drew have")
        named = tuple(dict.fromkeys(b.feature for b in order if b.feature in outliers))
        text = f"{', '.join(named[:5])} differ far more than the others; {told}"
        return Check(name, WARN, worst.p, threshold, text, named)
    if not beyond:
        return Check(name, PASS, worst.p, threshold, told)
    named = tuple(dict.fromkeys(b.feature for b in beyond))
    text = f"the arms differ before assignment in {', '.join(named[:5])}"
    text += f" and {len(named) - 5} more; {told}" if len(named) > 5 else f"; {told}"
    if outliers and len(named) <= max(1, len({b.feature for b in found}) // 3):
        text += "; far beyond the other columns: was it written down after the assignment?"
    return Check(name, STOP, worst.p, threshold, text, named)


def placebo(data: TrainingSet, unit: IntArray, before: FloatArray, label: str) -> Check:
    """The effect of the arms on an outcome (n,) from before the assignment: there is none."""
    name = "placebo"
    threshold = SIGNIFICANCE / data.n_arms
    told, worst, culprits = [], 1.0, []
    for k in range(1, data.n_arms + 1):
        pair = _pair(data, unit, k)
        x = before[pair.rows]
        seen = _compare(pair, x)
        z = seen.z
        p = 2 * float(norm.sf(abs(z)))
        if p <= threshold:
            p = max(p, tail_bound(seen.shares, pair.e, seen.total))
        # Divided by what the score sums when every x of arm k is 1 more, T is an effect.
        unit_effect = float(np.sum((pair.away / pair.spread)[pair.treated & ~np.isnan(x)]))
        if unit_effect <= 0:
            continue
        effect = seen.total / unit_effect
        half = abs(effect / z) * float(norm.isf(threshold / 2)) if z else 0.0
        told.append(
            (p, f"{data.arms[k - 1]} {effect:+.3f} [{effect - half:.3f}, {effect + half:.3f}]")
        )
        worst = min(worst, p)
        if p <= threshold:
            culprits.append(data.arms[k - 1])
    if not told:
        return Check(name, NOT_RUN, None, None, f"no arm has {label} and control beside it")
    text = f"effect on {label}, before assignment: {', '.join(t for _, t in sorted(told)[:3])}"
    if culprits:
        text += "; an interval without 0 shows that the arms differed before"
    return Check(name, STOP if culprits else PASS, worst, threshold, text, tuple(culprits))
