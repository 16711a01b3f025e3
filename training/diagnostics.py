"""Can the experiment be trusted? Sample ratio, balance, overlap; each by name, with numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from features.errors import DataError
from training.dataset import Dataset
from uplift.data import TrainingSet

SRM_STOPS_BELOW = 0.001


@dataclass(frozen=True)
class Balance:
    """Standardised difference of a feature between an arm and control, weighted by 1 / e where
    the probabilities vary; `z` is the difference over its standard error."""

    feature: str
    arm: str
    difference: float
    z: float


@dataclass(frozen=True)
class Diagnostics:
    """srm_p: p-value of the sample ratio test (None where probabilities were estimated from the
    arms themselves); overlap: smallest probability of an arm that could be drawn."""

    srm_p: float | None
    srm_statistic: float | None
    balance: tuple[Balance, ...]
    overlap: float


def srm(data: TrainingSet) -> tuple[float, float]:
    """Sample ratio test for row-varying probabilities: statistic and p-value.

    d_k = sum_i(1[W_i = k] - e_k(x_i)), V = sum_i(diag(e_i) - e_i e_i'), control left out;
    T = d' V^-1 d ~ chi2_K. With constant e this is Pearson's chi-square (1900).
    """
    e = data.assignment[:, 1:]
    treated = data.arm[:, None] == np.arange(1, data.n_arms + 1)
    d = (treated - e).sum(axis=0)
    v = np.diag(e.sum(axis=0)) - e.T @ e
    statistic = float(d @ np.linalg.pinv(v) @ d)
    return statistic, float(stats.chi2.sf(statistic, np.linalg.matrix_rank(v)))


def diagnose(dataset: Dataset, data: TrainingSet | None = None) -> Diagnostics:
    """Diagnostics of all rows; raises DataError when the sample ratio contradicts the design.

    `data` overrides the rows, for estimated probabilities.
    """
    rows = dataset.training if data is None else data
    statistic = p = None
    if not dataset.estimated:
        statistic, p = srm(rows)
        if p < SRM_STOPS_BELOW:
            shares = np.bincount(rows.arm, minlength=rows.n_arms + 1) / len(rows)
            raise DataError(
                "sample ratio mismatch",
                expected="arms in the proportions of the design "
                + _named(rows, rows.assignment.mean(axis=0)),
                found=f"{_named(rows, shares)}, p = {p:.2g}",
                remedy="Someone was dropped or counted twice after the draw; find out before "
                "believing any effect. If the design is wrong, mend experiment.assignment.",
            )
    possible = np.where(rows.assignment > 0, rows.assignment, np.inf)
    return Diagnostics(p, statistic, balance(rows), float(possible.min()))


def _named(rows: TrainingSet, shares: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    names = ["control", *rows.arms]
    return ", ".join(f"{a} {s:.4f}" for a, s in zip(names, shares, strict=True))


def balance(data: TrainingSet) -> tuple[Balance, ...]:
    """Every numeric feature and every arm: (m_k - m_0) / sqrt((s_k^2 + s_0^2) / 2).

    Missing values are left out feature by feature.
    """
    weight = 1 / data.own_probability
    found = []
    for i, name in enumerate(data.schema.names):
        if name in data.schema.levels:
            continue
        x = data.X[:, i].astype(np.float64)
        known = ~np.isnan(x)
        moments = []
        for k in range(data.n_arms + 1):
            rows = known & (data.arm == k)
            w, v = weight[rows], x[rows]
            if len(v) < 2 or w.sum() == 0:
                moments.append((np.nan, np.nan, np.nan))
                continue
            mean = float(np.average(v, weights=w))
            variance = float(np.average((v - mean) ** 2, weights=w))
            effective = w.sum() ** 2 / (w @ w)
            moments.append((mean, variance, variance / effective))
        m0, s0, e0 = moments[0]
        for k, (mk, sk, ek) in enumerate(moments[1:]):
            scale, error = np.sqrt((sk + s0) / 2), np.sqrt(ek + e0)
            if np.isfinite(scale) and scale > 0:
                found.append(Balance(name, data.arms[k], (mk - m0) / scale, (mk - m0) / error))
    return tuple(found)
