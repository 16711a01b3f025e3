"""An ensemble of other learners, weighted by their held-out doubly robust loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from uplift.data import BoolArray, FloatArray, IntArray
from uplift.effects import EffectModel
from uplift.learners.base import (
    LEARNERS,
    Fitted,
    Learner,
    Models,
    learner,
    shrinkage,
    weighted_mean,
)
from uplift.nuisances import Problem
from uplift.selection import LEVEL

# What is combined where nothing else was fitted.
MEMBERS = ("s", "t", "x", "r", "dr", "proportional", "per_conversion", "two_part")
_STIFF = 1e4


@learner
class Ensemble(Learner):
    """Weights w >= 0, sum w <= 1, over the learners that were fitted and one constant effect per
    arm, the same for all arms; what is missing to 1 is no effect at all. They minimise the
    held-out loss (stacking: Wolpert 1992, Breiman 1996; of effects: Nie & Wager 2021)

        sum over arms k and rows i of (Gam_ik - Gam_i0 - sum_j w_j tau_jk(x_i))^2
                                      / (1 / e_k(x_i) + 1 / e_0(x_i))

    with out-of-fold effects tau_j, drawn towards a start c_j: + s^2 / v sum_j (w_j - c_j)^2, a
    ridge with the loss's own noise s^2 and the variance v = (M - 1) / (M^2 (M + 1)) that a weight
    has where all ways to share 1 among M are alike. The start is shared equally by the learners
    that suit the outcome and are not clearly worse than the best (one-sided, LEVEL); without such a
    one, by those of the learners, the constant and no effect whose loss is within one standard
    error of the least (the rule of Breiman et al. 1984), both paired on the same rows. Scores are
    noisy: of few rows the best weights alone are as often wrong as equal ones, and of many rows
    they are right; so the rows decide how far to go.

    What the mixture gains on constant effects is an estimate too: the mixture is shrunk towards the
    (shrunken) average effects by gain^2 / (gain^2 + se^2), the factor with the least squared error
    for a gain of that size (Thompson 1968), and to them alone where it gains nothing.

    The effects of a fold are weighted by what the rows outside it say, so that no row has a say
    in its own weights.
    """

    name = "ensemble"
    title = "ensemble: weighted by held-out loss"
    nuisances = frozenset({"mu", "assignment"})
    combines = True
    joins = False

    def cross_fit(self, problem: Problem) -> Models:
        members = self._members(problem)
        effects = np.stack([m.oof for m in members], axis=-1)
        every = [*(m.oof for m in members), np.zeros_like(members[0].oof)]
        losses = np.column_stack([problem.losses(oof) for oof in every])
        suited = np.array([LEARNERS[m.name].suits(problem) for m in members])
        inside = [problem.fold != f for f in range(problem.folds)]
        everyone = np.ones(len(problem.data), dtype=bool)
        folds = tuple(
            _combined(problem, effects, losses, suited, part, [m.folds[f] for m in members])
            for f, part in enumerate(inside)
        )
        models = [m.model for m in members]
        return folds, _combined(problem, effects, losses, suited, everyone, models)

    def _members(self, problem: Problem) -> list[Fitted]:
        known = [m for name, m in self.others.items() if LEARNERS[name].joins]
        able = [
            name
            for name in MEMBERS
            if not (problem.monotone and "monotone" in LEARNERS[name].cannot)
            and problem.kind in LEARNERS[name].outcomes
        ]
        return known or [LEARNERS[name]().fit(problem) for name in able]


def _combined(
    problem: Problem,
    effects: FloatArray,
    losses: FloatArray,
    suited: BoolArray,
    part: BoolArray,
    models: Sequence[EffectModel],
) -> EffectModel:
    """The models with the weights that the rows of `part` (n,) ask for; effects (n, K, J), losses
    (n, J + 1), the last of no effect, suited (J,)."""
    data = problem.data
    members = effects.shape[2]
    gram, target = np.zeros((members + 1, members + 1)), np.zeros(members + 1)
    noise = counted = 0.0
    averages = []
    for k in range(1, data.n_arms + 1):
        rows, contrast, weight = problem.contrast(k)
        kept = part[rows]
        rows, contrast = rows[kept], contrast[kept]
        average = weighted_mean(contrast, weight[kept], data.cluster[rows])
        precision = data.weight[rows] * problem.precision(rows, k)
        design = np.column_stack([effects[rows, k - 1], np.full(len(rows), average.value)])
        gram += (design * precision[:, None]).T @ design
        target += (design * precision[:, None]).T @ contrast
        noise += float(precision @ (contrast - average.value) ** 2)
        counted += float(data.weight[rows].sum())
        averages.append(average)
    stiff = noise / counted / variance_of_a_share(members + 2)
    flat = np.tile([average.value for average in averages], (len(part), 1))
    of_flat = problem.losses(flat)
    compared = np.column_stack([losses[:, :-1], of_flat, losses[:, -1]])[part]
    start = np.append(suited, [False, False])
    center = starting_shares(compared, start, data.weight[part], data.cluster[part])[:-1]
    weights = held_out_weights(gram + stiff * np.eye(members + 1), target + stiff * center)
    *shares, constant = weights
    gain = of_flat - problem.losses(effects @ shares + constant * flat)
    clear = weighted_mean(gain[part], data.weight[part], data.cluster[part])
    trust = clear.value**2 / (clear.value**2 + clear.se**2) if clear.value > 0 else 0.0
    parts = [m.scaled(trust * w) for m, w in zip(models, shares, strict=True) if trust * w > 0]
    constants = [
        trust * constant * average.value + (1 - trust) * average.value * shrinkage(average)
        for average in averages
    ]
    return EffectModel(
        np.sum([np.array(constants), *(p.constant for p in parts)], axis=0),
        tuple(term for p in parts for term in p.terms),
    )


def starting_shares(
    losses: FloatArray, suited: BoolArray, weight: FloatArray, cluster: IntArray
) -> FloatArray:
    """(J,) equal shares of 1 for some columns of losses (n, J), 0 for the others: for those that
    are `suited` (J,) and not clearly above the one with the least mean; without any, for those
    within one clustered standard error of it, of their difference."""
    best = losses[:, np.argmin(weight @ losses)]
    excess = [weighted_mean(column - best, weight, cluster) for column in losses.T]
    shared = suited & np.array([e.lower(LEVEL) <= 0 for e in excess])
    if not shared.any():
        shared = np.array([e.value <= e.se for e in excess])
    shares: FloatArray = shared / shared.sum()
    return shares


def variance_of_a_share(among: int) -> float:
    """Of one of `among` shares of 1, drawn evenly from all there are (Dirichlet 1, ..., 1)."""
    return (among - 1) / (among**2 * (among + 1))


def held_out_weights(gram: FloatArray, target: FloatArray) -> FloatArray:
    """(J,) w >= 0 with sum <= 1 that minimise w' gram w - 2 target' w; gram (J, J), target (J,).

    By non-negative least squares: a column of zeros takes what is missing to 1, and a stiff row
    holds the sum (Lawson & Hanson 1974, chapter 23).
    """
    size = float(np.trace(gram))
    if size <= 0:
        return np.zeros(len(target))
    values, vectors = np.linalg.eigh(gram / size)
    # Directions in which the members don't differ say nothing; they also hold no target.
    kept = values > 1e-12
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    aim = (vectors[:, kept].T @ target / size) / np.sqrt(values[kept])
    design = np.vstack(
        [np.column_stack([root, np.zeros(len(root))]), np.full(len(target) + 1, _STIFF)]
    )
    found, _ = nnls(design, np.append(aim, _STIFF))
    weights: FloatArray = found[:-1] / max(1.0, float(found[:-1].sum()))
    return weights
