"""What a ranking is worth: TOC, AUTOC, QINI, Qini curve, uplift at q, deciles, with intervals.

Rows are ranked by a score S, highest first; D (n,) is their doubly robust contrast, Gam_arm -
Gam_0. Everything is in units of D per row of the evaluated population, never divided by the
average effect, and never changes with the order of rows or a monotone map of the score.

    TOC(q)  = mean D in the top q - mean D               (targeting operator characteristic)
    AUTOC   = (1/n) sum_j TOC(j/n) = (1/n) sum_j a_j D_(j),   a_j = H_n - H_{j-1} - 1
    QINI    = (1/n) sum_j j/n TOC(j/n) = (1/n) sum_j b_j D_(j), b_j = (n - 2j + 1) / (2n)
    Q(q)    = sum of D in the top q, over n;  Q(1) = average effect

Sources: Yadlowsky, Fleming, Shah, Brunskill & Wager 2025 (rank-weighted average treatment
effects); Radcliffe 2007 (Qini). Equal scores: the estimate is the mean over all orders of the
ties, so D is averaged within equal scores and a cut shares a tied block; a constant score ranks
nothing and has TOC, AUTOC and QINI of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from uplift.data import BoolArray, FloatArray, IntArray
from uplift.errors import DesignError
from uplift.inference import half_sample_errors
from uplift.scores import (
    Estimate,
    Influence,
    ascending,
    cluster_codes,
    clustered_error,
    refuse_missing_ranks,
)

# Half of the width of the window of ranks in which the effect at a cut is measured.
_HALF_WINDOW = 0.05


@dataclass(frozen=True)
class Ranking:
    """Rows sorted by score, highest first, with ties as blocks. Made by `rank_rows`.

    order    (n,) row numbers from the highest score to the lowest
    D        (n,) contrasts in that order
    codes    (n,) codes of the clusters, whole numbers from 0, in the order of the rows
    block    (n,) number of the tied block in that order, 0 first
    """

    order: IntArray
    D: FloatArray
    codes: IntArray
    block: IntArray

    def __len__(self) -> int:
        return len(self.D)

    @cached_property
    def first(self) -> IntArray:
        """(blocks,) position at which each block begins."""
        starts = np.diff(self.block, prepend=-1) != 0
        return np.flatnonzero(starts).astype(np.int64)

    @cached_property
    def size(self) -> IntArray:
        """(blocks,) rows of each block."""
        return np.diff(self.first, append=len(self))

    @cached_property
    def mean(self) -> float:
        """Mean of D, the average effect."""
        return float(np.mean(self.D))

    @cached_property
    def _centred(self) -> FloatArray:
        """(n,) D - mean D. Neither TOC nor its areas change when a constant is added to D, and
        with the mean taken away first that holds to rounding, for their errors as well."""
        return self.D - self.mean

    @cached_property
    def _tied(self) -> FloatArray:
        """(n,) centred D averaged within blocks; exactly 0 where the score says nothing."""
        return np.zeros(len(self)) if len(self.first) == 1 else self._block_means(self._centred)

    def _block_means(self, values: FloatArray) -> FloatArray:
        if len(self.first) == len(self):
            return values
        return np.repeat(np.add.reduceat(values, self.first) / self.size, self.size)

    @cached_property
    def _cumulative(self) -> tuple[FloatArray, FloatArray]:
        """Ranks taken and sum of centred D at the end of each block, from (0, 0)."""
        ends = np.concatenate([[0], self.first + self.size]).astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(self._tied)])
        return ends, sums[ends.astype(np.int64)]

    def _within(self, q: float | FloatArray) -> FloatArray:
        """Sum of centred D in the top q, over n; a cut shares the block in which it falls."""
        ends, sums = self._cumulative
        return np.asarray(np.interp(np.asarray(q) * len(self), ends, sums) / len(self))

    def _share(self, q: float) -> FloatArray:
        """(n,) share of each sorted row that stands in the top q."""
        per_block = np.clip((q * len(self) - self.first) / self.size, 0.0, 1.0)
        return np.repeat(per_block, self.size)

    def _influence(self, value: float, psi: FloatArray) -> Influence:
        """`psi` in sorted order becomes an Influence in the order of the rows."""
        placed = np.empty(len(self))
        placed[self.order] = psi
        return Influence(value, placed, self.codes)

    def _area(self, weight: FloatArray, later: FloatArray) -> Influence:
        """The area with `weight` a_j (or b_j) on each rank, `later` being its rank term."""
        weight = self._block_means(weight)
        if len(self.first) == 1:
            return self._influence(0.0, np.zeros(len(self)))
        own = weight * self._centred
        value = float(np.mean(weight * self._tied))
        return self._influence(value, own - value - self._block_means(later))

    def autoc(self) -> Influence:
        """Area under TOC. Every q weighs the same, which favours concentrated effects."""
        n = len(self)
        rank = np.arange(1.0, n + 1.0)
        harmonic = np.cumsum((1.0 / rank)[::-1])[::-1]  # H_n - H_{j-1}
        # A row in the top moves the ranks, and with them TOC, of all rows below it.
        return self._area(harmonic - 1.0, _sums_after(self._tied / rank))

    def qini(self) -> Influence:
        """Area under q TOC(q), which favours diffuse effects: the area between the Qini curve and
        its straight line."""
        n = len(self)
        rank = np.arange(1.0, n + 1.0)
        moved = _sums_after(self._tied) / n - float(np.mean(rank / n * self._tied))
        return self._area((n - 2.0 * rank + 1.0) / (2.0 * n), moved)

    def _at(self, q: float) -> tuple[float, FloatArray]:
        """TOC(q), and the influence values of the mean of D in the top q, in sorted order."""
        excess = float(self._within(q)) / q
        window = np.array([max(q - _HALF_WINDOW, 0.0), min(q + _HALF_WINDOW, 1.0)])
        low, high = self._within(window)
        # The effect at the cut: rows enter or leave there as others move the ranks.
        local = float(high - low) / float(window[1] - window[0])
        return excess, self._share(q) / q * (self._centred - local) + local - excess

    def _toc_at(self, q: float) -> tuple[float, FloatArray]:
        excess, psi = self._at(q)
        return excess, np.zeros(len(self)) if len(self.first) == 1 else psi - self._centred

    def uplift_at(self, q: float) -> Influence:
        """Mean effect in the top q, 0 < q <= 1."""
        excess, psi = self._at(_checked_share(q))
        return self._influence(self.mean + excess, psi)

    def toc(self, q: float) -> Influence:
        """Mean effect in the top q less that of all."""
        return self._influence(*self._toc_at(_checked_share(q)))

    def qini_at(self, q: float) -> Influence:
        """Q(q), what treating the top q brings, per row of the population."""
        return self.uplift_at(q).scaled(q)

    def toc_curve(self, points: int = 100) -> list[dict[str, float]]:
        """TOC with its interval at q = 1/points, 2/points, ..., 1."""
        return self._curve(points, self._toc_at)

    def qini_curve(self, points: int = 100) -> list[dict[str, float]]:
        """Q with its interval at q = 1/points, 2/points, ..., 1; Q(0) = 0."""

        def at(q: float) -> tuple[float, FloatArray]:
            excess, psi = self._at(q)
            return q * (self.mean + excess), q * psi

        return self._curve(points, at)

    def _curve(
        self, points: int, at: Callable[[float], tuple[float, FloatArray]]
    ) -> list[dict[str, float]]:
        codes = self.codes[self.order]
        groups = int(np.count_nonzero(np.bincount(codes)))
        rows = []
        for q in np.arange(1, points + 1) / points:
            value, psi = at(float(q))
            made = Estimate(value, clustered_error(psi, codes, groups))
            rows.append({"q": float(q), **made.to_json()})
        return rows

    def subset(self, keep: BoolArray) -> Ranking:
        """The ranking of the rows for which `keep` (n,) is True, ranked anew."""
        kept = keep[self.order]
        block = self.block[kept]
        number = np.cumsum(keep) - 1
        return Ranking(
            number[self.order[kept]],
            self.D[kept],
            self.codes[keep],
            np.cumsum(np.diff(block, prepend=block[:1]) != 0),
        )

    def part_means(self, parts: int = 10) -> FloatArray:
        """(parts,) mean of D per equal part of the ranks, highest first."""
        inside = np.diff(self._within(np.arange(parts + 1) / parts))
        return self.mean + parts * inside

    def _part_means_of(self, keep: BoolArray, parts: int) -> FloatArray:
        """`subset(keep).part_means(parts)`, several times quicker where no scores are tied."""
        if len(self.first) < len(self):
            return self.subset(keep).part_means(parts)
        D = self.D[np.flatnonzero(keep[self.order])]
        edge = np.arange(parts + 1) / parts * len(D)
        whole = np.minimum(np.floor(edge).astype(np.int64), len(D) - 1)
        sums = np.cumsum(D)[whole] - D[whole] + (edge - whole) * D[whole]
        return np.asarray(np.diff(sums) * parts / len(D))

    def deciles(
        self,
        predicted: FloatArray,
        rng: np.random.Generator,
        *,
        parts: int = 10,
        draws: int = 200,
    ) -> list[dict[str, Any]]:
        """Mean of D and of `predicted` (n,) per tenth of the ranks, highest first. Standard
        errors by half-samples, in which customers change tenths as their ranks change."""
        beside = Ranking(self.order, predicted[self.order], self.codes, self.block)
        se = half_sample_errors(
            lambda keep: self._part_means_of(keep, parts), self.codes, rng, draws=draws
        )
        return [
            {
                "part": part + 1,
                "rows": len(self) / parts,
                "predicted": float(mean),
                **Estimate(float(value), float(error)).to_json(),
            }
            for part, (value, mean, error) in enumerate(
                zip(self.part_means(parts), beside.part_means(parts), se, strict=True)
            )
        ]


def rank_rows(score: FloatArray, contrast: FloatArray, cluster: IntArray) -> Ranking:
    """Rank n rows by `score` (n,), high = treat first; `contrast` (n,) is their D.

    Raises DesignError for lengths that differ, and for scores or contrasts that are no finite
    numbers: a missing score is no rank.
    """
    if not len(score) == len(contrast) == len(cluster):
        raise DesignError(
            "score, contrast and cluster: expected one length, "
            f"found {len(score)}, {len(contrast)} and {len(cluster)}."
        )
    refuse_missing_ranks(score)
    if not np.isfinite(contrast).all():
        raise DesignError("the contrast holds values that are no finite numbers")
    codes, _ = cluster_codes(cluster)
    contrast = np.asarray(contrast, dtype=np.float64)
    order, block = ascending(-score, codes, contrast)
    return Ranking(order, contrast[order], codes, block)


def _sums_after(values: FloatArray) -> FloatArray:
    """(n,) sum of what comes later, and half of a row's own."""
    from_here = np.cumsum(values[::-1])[::-1]
    out: FloatArray = from_here - values / 2
    return out


def _checked_share(q: float) -> float:
    if not 0.0 < q <= 1.0:
        raise DesignError(f"q: expected a share above 0 and at most 1, found {q!r}.")
    return float(q)
