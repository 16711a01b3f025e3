"""What a campaign brought: differences of arms, ratios of them, looks at any time, many segments.

Everything is by intention to treat: rows count in the arm that they were assigned, whether or not
a message arrived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from uplift.data import BoolArray, FloatArray, IntArray
from uplift.errors import DesignError
from uplift.scores import Z_TWO_SIDED, Estimate, Influence, cluster_codes

MIN_CLUSTERS_TO_LOOK = 100


def arm_mean(y: FloatArray, rows: BoolArray, cluster: IntArray) -> Influence:
    """Mean of y (n,) over `rows` (n,), those of one arm. The difference of two arms' means is the
    effect of a design with constant probabilities, with its clustered error."""
    if not rows.any():
        raise DesignError("an arm's mean needs rows of that arm, found none.")
    codes, _ = cluster_codes(cluster)
    mean = float(np.mean(y[rows]))
    return Influence(mean, np.where(rows, (y - mean) * (len(y) / rows.sum()), 0.0), codes)


def cuped(y: FloatArray, before: FloatArray) -> FloatArray:
    """(n,) Y - theta (X - mean X), theta = cov / var over all arms together, where X is measured
    before assignment, such as the same outcome in an earlier window (Deng, Xu, Kohavi & Walker
    2013). Means keep their differences in expectation; variances fall by the squared correlation.
    A constant X changes nothing."""
    centred = before - np.mean(before)
    spread = float(centred @ centred)
    theta = float(centred @ y) / spread if spread > 0 else 0.0
    return y - theta * centred


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95% interval; `lo` and `hi` are None when it is unbounded, which is an
    answer: the denominator cannot be told apart from 0."""

    value: float
    lo: float | None
    hi: float | None

    @property
    def bounded(self) -> bool:
        return self.lo is not None


def ratio(numerator: Influence, denominator: Influence) -> Ratio:
    """Ratio of two estimates from the same rows, with Fieller's interval (1954).

    Return on investment: difference in profit over difference in cost; profit bears the cost, so
    above 0 pays. Relative lift: difference over the mean of control. The delta method's interval
    is wrong when the denominator is uncertain; this one holds the truth as often as it says.
    """
    both = [part.estimate for part in (numerator, denominator, numerator - denominator)]
    v_p, v_c, v_difference = (part.se**2 for part in both)
    v_pc = (v_p + v_c - v_difference) / 2
    p, c, z2 = numerator.value, denominator.value, Z_TWO_SIDED**2
    value = p / c if c != 0 else math.nan
    a, b = c**2 - z2 * v_c, p * c - z2 * v_pc
    if a <= 0:
        return Ratio(value, None, None)
    root = math.sqrt(max(0.0, b**2 - a * (p**2 - z2 * v_p)))
    return Ratio(value, (b - root) / a, (b + root) / a)


@dataclass(frozen=True)
class ConfidenceSequence:
    """Intervals that hold the truth at every look at once, with probability 1 - alpha; `target`,
    the number of clusters at which they are narrowest for what they hold, fixed beforehand."""

    target: int
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.target < MIN_CLUSTERS_TO_LOOK or not 0 < self.alpha < 0.5:
            raise DesignError(
                f"confidence sequence: expected a target of at least {MIN_CLUSTERS_TO_LOOK} "
                f"clusters and alpha between 0 and .5, found {self.target} and {self.alpha}."
            )

    def _reach(self, estimate: Estimate, clusters: int, log_term: float, rho2: float) -> float:
        if clusters < MIN_CLUSTERS_TO_LOOK:
            raise DesignError(
                f"the first look needs at least {MIN_CLUSTERS_TO_LOOK} clusters, found {clusters}. "
                "Wait until more outcome windows have closed."
            )
        deviation = estimate.se * math.sqrt(clusters)
        scale = 2 * (clusters * rho2 + 1) / (clusters**2 * rho2)
        return deviation * math.sqrt(scale * log_term)

    @property
    def _rho2(self) -> float:
        log = -2 * math.log(self.alpha)
        return (log + math.log(1 + log)) / self.target

    def interval(self, estimate: Estimate, clusters: int) -> tuple[float, float]:
        """Two-sided, after `clusters` clusters (Waudby-Smith et al. 2024)."""
        rho2 = self._rho2
        log_term = math.log(math.sqrt(clusters * rho2 + 1) / self.alpha)
        reach = self._reach(estimate, clusters, log_term, rho2)
        return estimate.value - reach, estimate.value + reach

    def bounds(self, estimate: Estimate, clusters: int) -> tuple[float, float]:
        """One-sided lower and upper bound; each holds alone."""
        rho2 = self._rho2
        log_term = math.log(1 + math.sqrt(clusters * rho2 + 1) / (2 * self.alpha))
        reach = self._reach(estimate, clusters, log_term, rho2)
        return estimate.value - reach, estimate.value + reach


def benjamini_hochberg(p: FloatArray, share: float = 0.1) -> BoolArray:
    """(M,) which of M hypotheses are rejected so that at most `share` of the rejected are true on
    average (Benjamini & Hochberg 1995): all up to the largest i with p_(i) <= i share / M."""
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[order] <= np.arange(1, len(p) + 1) * share / len(p))
    rejected = np.zeros(len(p), dtype=bool)
    if len(passed):
        rejected[order[: passed[-1] + 1]] = True
    return rejected


def customers_needed(
    effect: float,
    sd_treated: float,
    sd_control: float,
    share_treated: float,
    share_control: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> int:
    """Customers in all for a two-sided test at `alpha` to find `effect` with probability `power`;
    shares of the arms among them."""
    if effect == 0 or min(share_treated, share_control) <= 0:
        raise DesignError(
            "customers needed: expected an effect other than 0 and shares above 0, found "
            f"{effect}, {share_treated} and {share_control}."
        )
    z = float(norm.isf(alpha / 2) + norm.ppf(power))
    variance = sd_treated**2 / share_treated + sd_control**2 / share_control
    return math.ceil(z**2 * variance / effect**2)
