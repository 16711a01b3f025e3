"""What a policy brings at every budget: gain over cost, for one arm or several.

The policy spends a growing budget on *predicted* reward and cost; what it brings is measured on
the doubly robust scores of the same rows:

    Q(b) = mean(Gam_i,pi_b - Gam_i0),   pi_b = the allocation at budget b per row

with the marginal customer treated in part, and customers whose steps are equally steep sharing
what is left (Sverdrup, Wu, Athey & Wager 2025, Qini curves for multi-armed treatment rules). With
one arm of cost 1 and rewards above 0 this is the Qini curve. Budgets, gains and spends are
currency per row.

The influence value of row i at budget b is

    gain_i(pi_b) - Q(b) - d_b (cost_i(pi_b) - b)

where d_b, the gain per currency at the margin, is what it takes that the path is solved on these
very rows: a sample that is dearer than the population reaches less far down. d_b is measured over
a tenth of the whole spend around b.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from uplift.allocation import checked_scores, hull_path, of_arm
from uplift.data import BoolArray, FloatArray, IntArray
from uplift.errors import DesignError
from uplift.inference import MIN_DRAWS, half_sample_errors
from uplift.scores import (
    Estimate,
    Influence,
    ScoreMatrix,
    ascending,
    cluster_codes,
    clustered_error,
    one_hot,
    refuse_missing_ranks,
)

# Half of the width of the window in which the gain at the margin is measured, of the whole spend.
_HALF_WINDOW = 0.05


@dataclass(frozen=True)
class GainCurve:
    """A path of policies over n rows and K arms, measured. Made by `gain_curve`, `ranked_curve`.

    Per row (n,): `codes` of clusters, whole numbers from 0; `start`, the arm at budget 0, with what
    it brings and costs, `start_gain` and `start_spend`. Per step (steps,), in the order in which
    the budget takes them: `row`; `before` and `arm`, the arms it leads from and to; `price`, its
    predicted cost; `gain` and `spend`, what it adds to measured gain and cost; `block`, equal for
    steps that share what is left.
    """

    codes: IntArray
    arms: int
    start: IntArray
    start_gain: FloatArray
    start_spend: FloatArray
    row: IntArray
    before: IntArray
    arm: IntArray
    price: FloatArray
    gain: FloatArray
    spend: FloatArray
    block: IntArray

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def _first(self) -> IntArray:
        return np.flatnonzero(np.diff(self.block, prepend=-1)).astype(np.int64)

    def _along(self, steps: FloatArray, start: float) -> FloatArray:
        """(blocks + 1,) per row: `start` and then the running total at the end of each block."""
        if len(steps) == 0:
            return np.array([start])
        totals = np.cumsum(np.add.reduceat(steps, self._first))
        return start + np.concatenate([[0.0], totals]) / len(self)

    @cached_property
    def budgets(self) -> FloatArray:
        """(blocks + 1,) predicted spend at the corners of the path, from 0."""
        return self._along(self.price, 0.0)

    @cached_property
    def gains(self) -> FloatArray:
        """(blocks + 1,) measured gain at the corners."""
        return self._along(self.gain, float(np.mean(self.start_gain)))

    @cached_property
    def spends(self) -> FloatArray:
        """(blocks + 1,) measured spend at the corners."""
        return self._along(self.spend, float(np.mean(self.start_spend)))

    @property
    def full_budget(self) -> float:
        """Predicted spend per row when every step is taken; more changes nothing."""
        return float(self.budgets[-1])

    def value(self, budget: float | FloatArray) -> FloatArray:
        """Measured gain at a budget, or at several."""
        return np.asarray(np.interp(budget, self.budgets, self.gains))

    def _taken(self, budget: float) -> FloatArray:
        """(steps,) share of each step that the budget takes."""
        if len(self.price) == 0:
            return np.zeros(0)
        cost, before = np.diff(self.budgets), self.budgets[:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(cost > 0, (budget - before) / cost, (budget >= before) * 1.0)
        size = np.diff(self._first, append=len(self.block))
        return np.repeat(np.clip(share, 0.0, 1.0), size)

    def _per_row(self, steps: FloatArray, taken: FloatArray) -> FloatArray:
        out = np.bincount(self.row, weights=steps * taken, minlength=len(self))
        return out.astype(np.float64, copy=False)

    def policy_at(self, budget: float) -> FloatArray:
        """(n, K) probabilities of the arms at a budget: the policy with its shadow price held
        fixed, for `ScoreMatrix.gain` and `compare`."""
        taken = self._taken(_checked_budget(budget))
        policy = one_hot(self.start, self.arms)
        np.add.at(policy, (self.row, self.arm - 1), taken)
        led = self.before > 0
        np.add.at(policy, (self.row[led], self.before[led] - 1), -taken[led])
        return policy

    def at(self, budget: float) -> Influence:
        """Gain at a budget of predicted cost, the path being solved on these rows."""
        return self._measured(_checked_budget(budget), self.gain, self.start_gain, self.gains)

    def spend_at(self, budget: float) -> Influence:
        """Measured spend at a budget of predicted cost."""
        return self._measured(_checked_budget(budget), self.spend, self.start_spend, self.spends)

    def _measured(
        self, budget: float, steps: FloatArray, start: FloatArray, corners: FloatArray
    ) -> Influence:
        taken = self._taken(budget)
        value = float(np.interp(budget, self.budgets, corners))
        psi = start + self._per_row(steps, taken) - value
        if budget < self.full_budget:
            margin = self._margin(budget, self.budgets, corners)
            psi -= margin * (self._per_row(self.price, taken) - budget)
        return Influence(value, psi, self.codes)

    def _margin(self, budget: float, along: FloatArray, corners: FloatArray) -> float:
        """Change of `corners` per change of `along` around a budget."""
        reach = _HALF_WINDOW * self.full_budget
        window = [max(budget - reach, 0.0), min(budget + reach, self.full_budget)]
        low, high = np.interp(window, self.budgets, corners)
        left, right = np.interp(window, self.budgets, along)
        return float((high - low) / (right - left)) if right != left else 0.0

    def at_spend(self, spend: float) -> Influence:
        """Gain where the *measured* spend reaches `spend`: for the difference of two paths at
        equal realised spend. The first such place on the path; its end when it never does."""
        reached = np.flatnonzero(self.spends >= _checked_budget(spend))
        if len(reached) == 0 or reached[0] == 0:
            budget = self.full_budget if len(reached) == 0 else 0.0
            return self.at(budget)
        corner = reached[0]
        low, high = self.spends[corner - 1], self.spends[corner]
        part = (spend - low) / (high - low)
        budget = float(self.budgets[corner - 1] + part * np.diff(self.budgets)[corner - 1])
        taken = self._taken(budget)
        value = float(np.interp(budget, self.budgets, self.gains))
        cost = self.start_spend + self._per_row(self.spend, taken)
        margin = self._margin(budget, self.spends, self.gains)
        psi = self.start_gain + self._per_row(self.gain, taken) - value - margin * (cost - spend)
        return Influence(value, psi, self.codes)

    def area(self, budget: float) -> float:
        """Area under the curve over spend from 0 to `budget`, exact for the piecewise straight
        curve; beyond its end the curve is level."""
        inside = self.budgets[self.budgets < _checked_budget(budget)]
        x = np.append(inside, budget)
        y = self.value(x)
        return float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)))

    def area_estimate(
        self, budget: float, rng: np.random.Generator, *, draws: int = MIN_DRAWS
    ) -> Estimate:
        """The area with its half-sample error, the path solved anew on every half."""
        se = half_sample_errors(
            lambda keep: self.subset(keep).area(budget), self.codes, rng, draws=draws
        )
        return Estimate(self.area(budget), float(se))

    def curve(self, points: int = 50) -> list[dict[str, float]]:
        """Gain with its interval, and measured spend, at even budgets from 0 to the full one."""
        groups = int(self.codes.max()) + 1
        some = int(np.count_nonzero(np.bincount(self.codes)))
        cluster = self.codes[self.row]
        ends = np.append(self._first, len(self.row))
        clusters = np.arange(groups)
        size = np.bincount(self.codes, minlength=groups)
        gain = np.bincount(self.codes, weights=self.start_gain, minlength=groups) + 0.0
        cost = np.zeros(groups)

        def sums(values: FloatArray, steps: slice) -> FloatArray:
            found = np.bincount(cluster[steps], weights=values[steps], minlength=groups)
            return found.astype(np.float64, copy=False)

        rows, done = [], 0
        for budget in np.linspace(0.0, self.full_budget, points):
            # Blocks that are taken whole are added once; the one at the cut, each time.
            block = int(np.searchsorted(self.budgets, budget, side="right")) - 1
            whole, cut = slice(ends[done], ends[block]), slice(ends[block], ends[block])
            gain, cost = gain + sums(self.gain, whole), cost + sums(self.price, whole)
            done, share, margin = block, 0.0, 0.0
            if budget < self.full_budget:
                cut = slice(ends[block], ends[block + 1])
                low, high = self.budgets[block], self.budgets[block + 1]
                share = (budget - low) / (high - low)
                margin = self._margin(budget, self.budgets, self.gains)
            value = float(self.value(budget))
            psi = gain + share * sums(self.gain, cut) - value * size
            psi -= margin * (cost + share * sums(self.price, cut) - budget * size)
            # psi holds the sums by cluster; the error is per row.
            error = clustered_error(psi, clusters, some) * groups / len(self)
            rows.append(
                {
                    "budget": float(budget),
                    "spend": float(np.interp(budget, self.budgets, self.spends)),
                    **Estimate(value, error).to_json(),
                }
            )
        return rows

    def subset(self, keep: BoolArray) -> GainCurve:
        """The path solved anew on the rows for which `keep` (n,) is True, for half-samples."""
        steps = keep[self.row]
        number = np.cumsum(keep) - 1
        return replace(
            self,
            codes=self.codes[keep],
            start=self.start[keep],
            start_gain=self.start_gain[keep],
            start_spend=self.start_spend[keep],
            row=number[self.row[steps]],
            before=self.before[steps],
            arm=self.arm[steps],
            price=self.price[steps],
            gain=self.gain[steps],
            spend=self.spend[steps],
            block=self.block[steps],
        )


def gain_curve(
    scores: ScoreMatrix,
    reward: FloatArray,
    cost: FloatArray,
    *,
    spend: ScoreMatrix | None = None,
    min_profit: float = 0.0,
    eligible: BoolArray | None = None,
) -> GainCurve:
    """The path of `allocate` over all budgets. reward, cost (n, K): predictions. `scores`, of what
    the gain is measured in; `spend`, of the cost that was paid (default: the predicted cost)."""
    start, steps = hull_path(reward, cost, min_profit=min_profit, eligible=eligible)
    before = start[steps.customer]
    # A customer's later steps lead on from the earlier ones.
    own = np.argsort(steps.customer, kind="stable")
    again = np.flatnonzero(np.diff(steps.customer[own], prepend=-1) == 0)
    before[own[again]] = steps.arm[own[again - 1]]
    return _path(
        scores, spend, cost, start, (steps.customer, before, steps.arm), -steps.slope, steps.price
    )


def ranked_curve(
    scores: ScoreMatrix,
    rank: FloatArray,
    arm: int | IntArray,
    cost: FloatArray,
    *,
    spend: ScoreMatrix | None = None,
    eligible: BoolArray | None = None,
) -> GainCurve:
    """The path that goes down `rank` (n,), highest first, and sends one arm (1..K), or each row's
    own (n,), 0 for never. cost, eligible (n, K)."""
    refuse_missing_ranks(rank)
    _, cost = checked_scores(np.zeros_like(cost), cost)
    sent = np.full(len(rank), arm) if isinstance(arm, int) else arm
    rows = np.flatnonzero(sent > 0)
    if eligible is not None:
        rows = rows[eligible[rows, sent[rows] - 1]]
    none = np.zeros(len(rank), dtype=np.int64)
    led = (rows, none[rows], sent[rows])
    return _path(scores, spend, cost, none, led, -rank[rows], cost[rows, sent[rows] - 1])


def _path(
    scores: ScoreMatrix,
    spend: ScoreMatrix | None,
    cost: FloatArray,
    start: IntArray,
    led: tuple[IntArray, IntArray, IntArray],
    key: FloatArray,
    price: FloatArray,
) -> GainCurve:
    """Steps (row, arm before, arm after) in ascending `key`, measured."""
    if not len(scores) == len(cost) == (len(cost) if spend is None else len(spend)):
        raise DesignError(
            f"scores and predictions: expected one number of rows, found {len(scores)} "
            f"and {len(cost)}. Predict for the rows that are evaluated."
        )
    row, before, arm = led

    def paid(rows: IntArray, arms: IntArray) -> FloatArray:
        if spend is None:
            return of_arm(cost[rows], arms)
        measured: FloatArray = spend.gamma[rows, arms] - spend.gamma[rows, 0]
        return measured

    everyone = np.arange(len(scores))
    gain = scores.gamma[row, arm] - scores.gamma[row, before]
    spent = paid(row, arm) - paid(row, before)
    codes, _ = cluster_codes(scores.cluster)
    order, block = ascending(key, spent, gain, price)
    return GainCurve(
        codes=codes,
        arms=cost.shape[1],
        start=start,
        start_gain=scores.contrast(start),
        start_spend=paid(everyone, start),
        row=row[order],
        before=before[order],
        arm=arm[order],
        price=price[order],
        gain=gain[order],
        spend=spent[order],
        block=block,
    )


def _checked_budget(budget: float) -> float:
    if not (np.isfinite(budget) and budget >= 0):
        raise DesignError(f"budget: expected a finite number >= 0 per row, found {budget!r}.")
    return float(budget)
