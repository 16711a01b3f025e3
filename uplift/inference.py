"""Errors for what has no influence values, and tests that use all of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from uplift.data import BoolArray, FloatArray, IntArray
from uplift.errors import DesignError
from uplift.scores import Estimate

MIN_DRAWS = 200


def half_samples(
    statistic: Callable[[BoolArray], FloatArray | float],
    cluster: IntArray,
    rng: np.random.Generator,
    *,
    draws: int = MIN_DRAWS,
) -> FloatArray:
    """(draws, ...) values of `statistic` on random halves of the customers.

    `statistic` gets (n,) True for the rows of floor(G/2) clusters drawn without replacement, and
    computes everything anew on them. Both sides of a comparison belong into one statistic, which
    then sees them on the same draws.
    """
    if draws < MIN_DRAWS:
        raise DesignError(f"draws: expected at least {MIN_DRAWS} half-samples, found {draws}.")
    names, codes = np.unique(cluster, return_inverse=True)
    if len(names) < 4:
        raise DesignError(
            f"half-samples need at least 4 clusters, found {len(names)}. "
            "Evaluate on more customers."
        )
    found, half = [], len(names) // 2
    for _ in range(draws):
        # Those below the median of random numbers: several times quicker than a shuffle.
        number = rng.random(len(names))
        drawn = number < np.partition(number, half)[half]
        found.append(np.asarray(statistic(drawn[codes]), dtype=np.float64))
    return np.stack(found)


def half_sample_errors(
    statistic: Callable[[BoolArray], FloatArray | float],
    cluster: IntArray,
    rng: np.random.Generator,
    *,
    draws: int = MIN_DRAWS,
) -> FloatArray:
    """Standard errors of `statistic`, in its shape: the standard deviation over half-samples.

    Unscaled (Yadlowsky et al. 2025): half of a population drawn without replacement varies about
    the whole as much as the whole varies about the truth. Arguments as in `half_samples`.
    """
    found = half_samples(statistic, cluster, rng, draws=draws)
    return np.asarray(np.std(found, axis=0, ddof=1), dtype=np.float64)


@dataclass(frozen=True)
class SequentialTest:
    """z over folds with its p-values; `steps`, the estimate on each fold after the first."""

    z: float
    steps: tuple[Estimate, ...]

    @property
    def p_two_sided(self) -> float:
        return float(2 * norm.sf(abs(self.z)))

    @property
    def p_one_sided(self) -> float:
        """Against the alternative that the quantity is above 0."""
        return float(norm.sf(self.z))


def sequential_test(steps: Sequence[Estimate]) -> SequentialTest:
    """z = sum t_k / sqrt(F - 1) over the folds 2..F, where step k was learned on the folds before
    k and measured on fold k (Wager 2024).

    Learned so, the t_k are a martingale's steps and z is standard normal without an effect.
    Summing over ordinary folds, each learned on all the others, rejects too often: there, the
    rows that one fold is measured on are those that the others learned from. A step without any
    error (a constant score) counts as t = 0.
    """
    if not steps:
        raise DesignError("a sequential test needs at least 2 folds, found 1.")
    t = [step.value / step.se if step.se > 0 else 0.0 for step in steps]
    return SequentialTest(math.fsum(t) / math.sqrt(len(t)), tuple(steps))


def sequential_folds(
    fold: IntArray, measure: Callable[[BoolArray, BoolArray], Estimate]
) -> SequentialTest:
    """The test with every fold but the first measured once. fold (n,) 0..F-1, drawn by customer;
    `measure(earlier, held)` learns on the rows `earlier` (n,) and measures on the rows `held`."""
    steps = [measure(fold < f, fold == f) for f in range(1, int(fold.max(initial=0)) + 1)]
    return sequential_test(steps)
