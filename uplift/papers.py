"""Scores as papers and competitions print them, labelled by origin, for comparison with papers
only. Nothing is chosen, gated or reported to a marketer by them:

- they divide by the average effect, by the curve's end or by a perfect ranking that nobody can
  have, and so grow without bound where the effect is small;
- counts grow with the treated share;
- no row is weighed by its assignment probability, so the treated must be a constant share of every
  kind of row;
- two values compare only with equal definition, split and rows.

One treated group against control; equal scores are joined by a straight line (or shared at a
cut), so row order never matters, which does matter in causalml.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uplift.data import BoolArray, FloatArray
from uplift.errors import DesignError
from uplift.scores import refuse_missing_ranks

X5_SHARE = 0.3


@dataclass(frozen=True)
class PaperScore:
    """A number as a source defines it, and that source."""

    value: float
    origin: str


def paper_scores(score: FloatArray, treated: BoolArray, y: FloatArray) -> dict[str, PaperScore]:
    """All scores that apply, by name. score, treated, y (n,): the rows of one arm and of control.
    scikit-uplift's need an outcome of 0 and 1, and are left out otherwise; so is what divides by
    a number that is 0 here.

    Raises DesignError for missing scores and when all rows are treated, or none.
    """
    counts = _Counts.of(score, treated, y)
    found = {
        "radcliffe_qini": (
            counts.over_random(counts.qini()) / len(y),
            "Radcliffe 2007: area between y_t - y_c n_t/n_c and its line, per row",
        ),
        "x5_uplift_at_30_percent": (
            _top_mean(score[treated], y[treated]) - _top_mean(score[~treated], y[~treated]),
            "X5 RetailHero 2019: response of the top 30% of the treated less that of the controls",
        ),
        "causalml_qini": (_causalml_qini(counts), "causalml qini_score, normalised"),
        "causalml_auuc": (_causalml_auuc(counts), "causalml auuc_score, normalised"),
    }
    if np.isin(y, (0.0, 1.0)).all():
        best = _Counts.of(np.where(treated, y, -y), treated, y)
        found["sklift_qini_auc"] = (
            _ratio(counts.over_random(counts.qini()), best.over_random(best.qini())),
            "scikit-uplift qini_auc_score: (area - random) / (perfect - random)",
        )
        best = _Counts.of(_perfect_uplift(treated, y), treated, y)
        found["sklift_uplift_auc"] = (
            _ratio(counts.over_random(counts.gain()), best.over_random(best.gain())),
            "scikit-uplift uplift_auc_score: (area - random) / (perfect - random)",
        )
    return {
        name: PaperScore(float(value), origin)
        for name, (value, origin) in found.items()
        if np.isfinite(value)
    }


def radcliffe_qini_curve(
    score: FloatArray, treated: BoolArray, y: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Rows taken and Q = y_t - y_c n_t / n_c, extra responses among the treated taken, at the end
    of each tied block, from (0, 0). A count: it grows with the treated share."""
    counts = _Counts.of(score, treated, y)
    return counts.rows, counts.qini()


@dataclass(frozen=True)
class _Counts:
    """Running counts and outcome sums at the ends of the tied blocks, from 0."""

    rows: FloatArray
    n_t: FloatArray
    y_t: FloatArray
    y_c: FloatArray

    @classmethod
    def of(cls, score: FloatArray, treated: BoolArray, y: FloatArray) -> _Counts:
        refuse_missing_ranks(score)
        if treated.all() or not treated.any():
            raise DesignError(
                f"scores of papers need treated and control rows, found {int(treated.sum())} "
                f"treated of {len(treated)}."
            )
        _, block = np.unique(-score, return_inverse=True)

        def running(weights: FloatArray) -> FloatArray:
            return np.concatenate([[0.0], np.cumsum(np.bincount(block, weights=weights))])

        ones = np.ones(len(y))
        return cls(
            running(ones), running(ones * treated), running(y * treated), running(y * ~treated)
        )

    def qini(self) -> FloatArray:
        return self.y_t - self.y_c * _share(self.n_t, self.rows - self.n_t)

    def gain(self) -> FloatArray:
        n_c = self.rows - self.n_t
        return (_share(self.y_t, self.n_t) - _share(self.y_c, n_c)) * self.rows

    def over_random(self, curve: FloatArray) -> float:
        """Area under the curve less that under the straight line to its end."""
        area = float(np.sum((curve[1:] + curve[:-1]) / 2 * np.diff(self.rows)))
        return area - float(curve[-1] * self.rows[-1] / 2)


def _share(above: FloatArray, below: FloatArray) -> FloatArray:
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _ratio(above: float, below: float) -> float:
    return above / below if below != 0 else float("nan")


def _perfect_uplift(treated: BoolArray, y: FloatArray) -> FloatArray:
    """scikit-uplift's perfect ranking: who responded treated or did not untreated, first."""
    control_responders = np.sum((y == 1) & ~treated)
    silent_treated = np.sum((y == 0) & treated)
    last = y if control_responders > silent_treated else treated.astype(float)
    out: FloatArray = 2.0 * ((y == 1) == treated) + last
    return out


def _causalml_qini(counts: _Counts) -> float:
    """Mean over 0..n rows taken of the Qini curve over its end, less that of the straight line.
    Before the first control the curve is interpolated."""
    known = counts.n_t < counts.rows
    known[0] = True
    curve = counts.qini()
    if curve[-1] == 0:
        return float("nan")
    ranks = np.interp(np.arange(counts.rows[-1] + 1), counts.rows[known], curve[known])
    return float(np.mean(ranks / abs(ranks[-1]))) - float(np.sign(ranks[-1])) / 2


def _causalml_auuc(counts: _Counts) -> float:
    """Mean over 0..n rows taken of lift times rows, over its end. Where one group is empty the
    lift is interpolated, from 0 at 0."""
    known = (counts.n_t > 0) & (counts.n_t < counts.rows)
    known[0] = True
    lift = _share(counts.y_t, counts.n_t) - _share(counts.y_c, counts.rows - counts.n_t)
    if lift[-1] == 0:
        return float("nan")
    taken = np.arange(counts.rows[-1] + 1)
    gain = np.interp(taken, counts.rows[known], lift[known]) * taken
    return float(np.mean(gain / abs(gain[-1])))


def _top_mean(score: FloatArray, y: FloatArray) -> float:
    """Mean of the top 30% (rounded down); a tied block at the cut is shared."""
    top = int(len(y) * X5_SHARE)
    if top == 0:
        return float("nan")
    _, block, size = np.unique(-score, return_inverse=True, return_counts=True)
    share = np.clip((top - (np.cumsum(size) - size)) / size, 0.0, 1.0)
    return float(share[block] @ y / top)
