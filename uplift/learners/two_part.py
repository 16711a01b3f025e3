"""Two parts: who converts, and what a conversion is worth."""

from __future__ import annotations

import numpy as np

from uplift.boosting import cross_fit
from uplift.cores import each
from uplift.data import BoolArray, FloatArray
from uplift.effects import EffectModel, ProductTerm
from uplift.learners.base import Learner, Models, learner, make_learner
from uplift.learners.s import given
from uplift.nuisances import Problem, only, prepare, stack

# Learners of the effect on the conversion.
MIXED = ("x", "per_redemption")
# What is left of the outcome without a conversion is modelled where it holds at least this share
# of the outcome's variance; less than that is a mean for each arm.
SHARE_OF_VARIANCE = 0.01


@learner
class TwoPartLearner(Learner):
    """Money with many zeros is a coin and an amount, and a coin is calmer to learn from (the
    two-part model of Cragg 1971 and Duan et al. 1983, here of effects). With p_k(x) the chance to
    convert under arm k, m_k(x) the mean outcome of those who do, and r_k(x) of those who do not,

        tau_k = p_k (m_k - r_k) - p_0 (m_0 - r_0) + r_k - r_0,   p_k = p_0 + Delta_k

    Delta_k is the effect on the conversion: what X makes of it and what X makes of it per
    redemption, mixed as held-out conversions ask for (by the ensemble's rule; conversions are told
    apart by far fewer rows than money). m and r are S-learners' means, so a coupon that changes no
    amount is no news to them. That is an identity for any outcome; what it brings lies in amounts
    that vary much between conversions while the arms mostly change their number.

    An amount is learned from those who converted, whom the arm has chosen in part: it is a piece of
    the arm's mean at x, not an effect on anybody.
    """

    name = "two_part"
    title = "two parts: conversions by X and per redemption, amounts by S"
    nuisances = frozenset({"mu", "assignment"})
    outcomes = frozenset({"money"})
    cannot = frozenset({"monotone"})

    @classmethod
    def suits(cls, problem: Problem) -> bool:
        """Most do not convert, and what happens to them hardly varies within an arm."""
        if problem.binary:
            return False
        apart = problem.data.converted == 0
        weight = problem.data.weight
        return bool(weight @ apart > weight.sum() / 2) and all(
            _is_still(problem, apart & (problem.data.arm == k))
            for k in range(problem.data.n_arms + 1)
        )

    def cross_fit(self, problem: Problem) -> Models:
        data, threads = problem.data, problem.settings.threads
        chance = prepare(
            data,
            problem.binned,
            data.converted,
            problem.fold,
            problem.settings,
            problem.seed,
            held=problem.held,
        )
        mixed = {name: make_learner(name).fit(chance) for name in MIXED}
        steps, step = make_learner("ensemble", mixed).cross_fit(chance)
        converted = data.converted > 0
        always = _means(problem, ~converted)
        arms = range(1, data.n_arms + 1)
        _ = problem.beside_arms  # binned by all cores, before the arms are fitted beside each other
        amounts = each(threads, lambda k: _sides(problem, k, converted, always), arms)
        rests = each(threads, lambda k: _rests(problem, k, ~converted, always), arms)
        made = []
        for f, change in enumerate((*steps, step)):
            means = chance.full_means if f == problem.folds else chance.arm_means[f]
            parts = zip(amounts, rests, strict=True)
            made.append(
                stack(
                    [
                        _effect(only(means, 0), only(change, k), amount[f], rest[f])
                        for k, (amount, rest) in enumerate(parts)
                    ]
                )
            )
        return tuple(made[:-1]), made[-1]


# Means under an arm and under control, by one model.
Pair = tuple[EffectModel, EffectModel]


def _effect(never: EffectModel, change: EffectModel, amount: Pair, rest: Pair) -> EffectModel:
    """tau_k of one arm; `never` is p_0 and `change` Delta_k."""
    (treated, control), (left, left_control) = amount, rest
    terms = (
        (ProductTerm(never.plus(change), treated.minus(left)), np.ones(1)),
        (ProductTerm(never, control.minus(left_control)), -np.ones(1)),
    )
    return EffectModel(np.zeros(1), terms).plus(left.minus(left_control))


def _means(problem: Problem, part: BoolArray) -> FloatArray:
    """(F + 1, K + 1) mean outcome of the rows of `part` under each arm: outside each fold, and
    of all; 0 where there are none."""
    of_arm = [part & (problem.data.arm == k) for k in range(problem.data.n_arms + 1)]
    outside = [problem.fold != f for f in range(problem.folds + 1)]
    return np.array([[_moments(problem, rows & kept)[0] for rows in of_arm] for kept in outside])


def _sides(problem: Problem, k: int, part: BoolArray, offset: FloatArray) -> list[Pair]:
    """Mean outcomes of the rows of `part` under arm k and under control: one pair for each fold,
    and one of all rows. S learns what is above the `offset` (F + 1, K + 1) of the arm, which it
    would else shrink away: what every row of the arm pays, say."""
    data, fold = problem.data, problem.fold
    rows = np.flatnonzero(((data.arm == 0) | (data.arm == k)) & part)
    arm, target, weight = data.arm[rows], problem.target[rows], data.weight_of(rows)
    fitted = cross_fit(
        problem.beside_arms,
        rows,
        target - offset[:, arm],
        fold,
        problem.settings,
        weight=weight,
        valid=(rows, target - offset[fold[rows], arm], weight),
    )
    own = np.eye(data.n_arms)[k - 1]
    return [
        (
            given(model, own).plus(EffectModel(base[[k]])),
            given(model, np.zeros_like(own)).plus(EffectModel(base[[0]])),
        )
        for model, base in zip((*fitted.models, fitted.full), offset, strict=True)
    ]


def _rests(problem: Problem, k: int, part: BoolArray, means: FloatArray) -> list[Pair]:
    """The same of those who do not convert: the means, unless their outcomes vary."""
    if not all(_is_still(problem, part & (problem.data.arm == arm)) for arm in (0, k)):
        return _sides(problem, k, part, np.zeros_like(means))
    return [(EffectModel(mean[[k]]), EffectModel(mean[[0]])) for mean in means]


def _is_still(problem: Problem, rows: BoolArray) -> bool:
    """Whether the outcome of these rows varies so little that their mean says it all."""
    total = _moments(problem, np.ones_like(rows))[1]
    return _moments(problem, rows)[1] <= SHARE_OF_VARIANCE * total


def _moments(problem: Problem, rows: BoolArray) -> tuple[float, float]:
    """Mean and variance of the outcome of these rows; of none, 0 and 0."""
    if not rows.any():
        return 0.0, 0.0
    values, weight = problem.target[rows], problem.data.weight[rows]
    mean = float(np.average(values, weights=weight))
    return mean, float(np.average((values - mean) ** 2, weights=weight))
