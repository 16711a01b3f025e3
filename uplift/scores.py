"""The evaluation core: the doubly robust score matrix, from which every number derives.

    Gam (n, K + 1):  mean over rows of Gam_k - Gam_0 estimates the effect of arm k;
                     mean of sum_k pi_k(x) Gam_k estimates the value of policy pi.

Intervals are clustered by the unit of randomisation (Liang & Zeger 1986):

    Var(est) = G/(G-1) * sum_g (sum_{i in g} psi_i)^2 / n^2
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from uplift.data import FloatArray, IntArray
from uplift.errors import DesignError

Z_TWO_SIDED = 1.959963984540054
Z_ONE_SIDED = 1.6448536269514722


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; `lo`, `hi`: 95% two-sided; `bound`: 95% one-sided."""

    value: float
    se: float

    @property
    def lo(self) -> float:
        return self.value - Z_TWO_SIDED * self.se

    @property
    def hi(self) -> float:
        return self.value + Z_TWO_SIDED * self.se

    @property
    def bound(self) -> float:
        """The one-sided lower bound, for gates."""
        return self.value - Z_ONE_SIDED * self.se

    def lower(self, alpha: float) -> float:
        """The one-sided lower bound at level `alpha`: `bound` at .05."""
        return self.value + float(ndtri(alpha)) * self.se

    def upper(self, alpha: float) -> float:
        """The one-sided upper bound at level `alpha`."""
        return self.value - float(ndtri(alpha)) * self.se

    def scaled(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.se * abs(factor))

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "se": self.se, "lo": self.lo, "hi": self.hi}


def clustered_mean(values: FloatArray, cluster: IntArray) -> Estimate:
    """Mean of (n,) values with the clustered standard error; cluster (n,) codes."""
    return from_influence(float(np.mean(values)), values - np.mean(values), cluster)


def from_influence(estimate: float, psi: FloatArray, cluster: IntArray) -> Estimate:
    """An estimate with its clustered standard error from (n,) influence values `psi`; the order of
    the rows does not change it, to the last bit."""
    codes, groups = cluster_codes(cluster)
    return Estimate(estimate, _error(cluster_sums(psi, codes), groups, len(psi)))


def cluster_codes(cluster: IntArray) -> tuple[IntArray, int]:
    """(n,) codes 0..G-1 of the clusters, and G; DesignError when G < 2."""
    names, codes = np.unique(cluster, return_inverse=True)
    if len(names) < 2:
        raise DesignError(
            f"an interval needs at least 2 clusters, found {len(names)}. "
            "Evaluate on more customers."
        )
    return codes.astype(np.int64, copy=False), len(names)


def clustered_error(psi: FloatArray, codes: IntArray, groups: int) -> float:
    """Standard error from (n,) influence values and (n,) codes of their `groups` clusters."""
    sums: FloatArray = np.bincount(codes, weights=psi).astype(np.float64, copy=False)
    return _error(sums, groups, len(psi))


def _error(sums: FloatArray, groups: int, rows: int) -> float:
    variance = groups / (groups - 1) * float(sums @ sums) / rows**2
    return float(np.sqrt(variance))


def cluster_sums(values: FloatArray, codes: IntArray) -> FloatArray:
    """(max code + 1,) sums of (n,) values by code, rounded once: the order of the rows does not
    change them. Multiples of a unit that leaves room for all their sums are added without any
    error; what is left of each value is too small for the errors of its sum to be seen."""
    largest = float(np.max(np.abs(values), initial=0.0))
    whole = np.zeros(len(values))
    if 1e-250 < largest < np.inf:
        room = int(np.ceil(np.log2(len(values) + 1)))
        unit = np.ldexp(1.0, int(np.ceil(np.log2(largest))) + room - 52)
        whole = np.rint(values / unit) * unit
    sums = np.bincount(codes, weights=whole) + np.bincount(codes, weights=values - whole)
    return sums.astype(np.float64, copy=False)


@dataclass(frozen=True)
class Influence:
    """An estimate with the influence value of every row, so that differences are paired.

    value  the estimate
    psi    (n,) influence values, in the order of the rows
    codes  (n,) codes of the clusters, whole numbers from 0
    """

    value: float
    psi: FloatArray
    codes: IntArray

    def __sub__(self, other: Influence) -> Influence:
        """The paired difference of two estimates from the same rows."""
        if self.codes is not other.codes and not np.array_equal(self.codes, other.codes):
            raise DesignError(
                "a paired comparison needs the same rows on both sides: "
                f"expected {len(self.codes)} rows with the same clusters, "
                f"found {len(other.codes)} others. Score both on one set of rows."
            )
        return Influence(self.value - other.value, self.psi - other.psi, self.codes)

    def scaled(self, factor: float) -> Influence:
        return Influence(self.value * factor, self.psi * factor, self.codes)

    @property
    def estimate(self) -> Estimate:
        """With the clustered standard error; codes that no row has do not change it, to the last
        bit, though processors add squares in portions of their own."""
        present = np.bincount(self.codes) > 0
        sums = cluster_sums(self.psi, self.codes)[present]
        return Estimate(self.value, _error(sums, len(sums), len(self.psi)))


@dataclass(frozen=True)
class ScoreMatrix:
    """gamma (n, K + 1) doubly robust scores, cluster (n,) codes."""

    gamma: FloatArray
    cluster: IntArray

    def __post_init__(self) -> None:
        if not np.isfinite(self.gamma).all():
            raise DesignError("the score matrix holds values that are no finite numbers")

    def __len__(self) -> int:
        return len(self.gamma)

    def contrast(self, arm: int | IntArray) -> FloatArray:
        """(n,) D = Gam_arm - Gam_0, of one arm or of each row's own arm (n,) codes 0..K, such as
        the arm that a policy recommends; 0 for control."""
        if isinstance(arm, int):
            out: FloatArray = self.gamma[:, arm] - self.gamma[:, 0]
        else:
            out = self.gamma[np.arange(len(self)), arm] - self.gamma[:, 0]
        return out

    def effect(self, k: int) -> Estimate:
        """Average effect of arm k against control, per row."""
        return clustered_mean(self.contrast(k), self.cluster)

    def value(self, policy: FloatArray) -> Estimate:
        """Value of a policy, per row: mean sum_k pi_k(x) Gam_k, control among the arms. `policy`
        as in `gain`."""
        return clustered_mean(self.gamma[:, 0] + self.gains(policy), self.cluster)

    def charged(self, spend: ScoreMatrix, price: float) -> ScoreMatrix:
        """Scores less `price` per currency of cost, `spend` being the scores of the cost on the
        same rows: two policies are then compared at equal realised cost, to first order, with what
        one spends more charged at what a budget's last currency brings."""
        return ScoreMatrix(self.gamma - price * spend.gamma, self.cluster)

    def gain(self, policy: FloatArray) -> Estimate:
        """Value of a policy less that of no offer, per row. `policy` (n, K): probability of
        each arm; what is missing to 1 is control."""
        return clustered_mean(self.gains(policy), self.cluster)

    def compare(self, policy: FloatArray, rival: FloatArray) -> Estimate:
        """Paired difference of two policies' values, per row."""
        return self.gain(policy - rival)

    def gains(self, policy: FloatArray) -> FloatArray:
        """(n,) row-wise contributions to `gain`."""
        # An arm with probability 0 in the policy may be undefined in the scores (ineligible).
        contrast = self.gamma[:, 1:] - self.gamma[:, :1]
        out: FloatArray = np.where(policy != 0, policy * contrast, 0.0).sum(axis=1)
        return out


def one_hot(choice: IntArray, arms: int) -> FloatArray:
    """(n, K) policy of choices 0..K; 0 is no offer."""
    policy = np.zeros((len(choice), arms))
    treated = np.flatnonzero(choice > 0)
    policy[treated, choice[treated] - 1] = 1
    return policy


def refuse_missing_ranks(rank: FloatArray) -> None:
    """DesignError when a rank is NaN or infinite."""
    bad = int((~np.isfinite(rank)).sum())
    if bad:
        raise DesignError(
            f"the rank holds {bad} values that are no finite numbers: a missing score is no rank"
        )


def ascending(key: FloatArray, *within: FloatArray | IntArray) -> tuple[IntArray, IntArray]:
    """(n,) rows in ascending `key`, equal keys by `within`, the last one first; and (n,) the
    number of the block of equal keys at each place. The order of the rows then changes no sum
    over them, to the last bit."""
    order = np.argsort(key)
    ranked = key[order]
    block = np.cumsum(np.diff(ranked, prepend=ranked[:1]) != 0)
    if len(block) and block[-1] + 1 < len(block):
        order = np.lexsort((*within, key))
    return order, block


def top_up_to(rank: FloatArray, cost: FloatArray, total: float | None) -> FloatArray:
    """(n,) share of each row that is treated when rows are taken from the highest `rank` until
    `total` cost is spent (None: everyone). Equal ranks share what is left at the cut, so row
    order never matters."""
    refuse_missing_ranks(rank)
    if total is None:
        return np.ones(len(rank))
    _, block = np.unique(-rank, return_inverse=True)
    per_block = np.bincount(block, weights=cost)
    before = np.concatenate([[0.0], np.cumsum(per_block)[:-1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(per_block > 0, (total - before) / per_block, (total >= before) * 1.0)
    out: FloatArray = np.clip(share, 0, 1)[block]
    return out


def calibration_slope(predicted: FloatArray, contrast: FloatArray, cluster: IntArray) -> Estimate:
    """b of D = a + b (tau - mean tau), clustered (Chernozhukov, Demirer et al. 2018): 1 when
    calibrated, below 1 when too spread, 0 without signal. A constant prediction has slope 0."""
    centred = predicted - predicted.mean()
    scale = float(centred @ centred)
    if scale <= 1e-18 * len(predicted):
        return Estimate(0.0, 0.0)
    slope = float(centred @ contrast) / scale
    residual = contrast - contrast.mean() - slope * centred
    psi = centred * residual * len(predicted) / scale
    return from_influence(slope, psi, cluster)
