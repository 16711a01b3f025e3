"""What all learners share: folds, arm means out of fold, and the doubly robust scores.

    Gam_ik = mu_k(x_i) + 1[W_i = k] / e_k(x_i) * (Y_i - mu_k(x_i))          (Robins 1994)

mu is always out of fold (cross-fitting: Chernozhukov et al. 2018): in-sample means would make the
intervals of everything that follows too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from uplift.boosting import Binned, CrossFit, Settings, cross_fit, mean_of
from uplift.cores import each
from uplift.data import BoolArray, Float32Array, FloatArray, IntArray, TrainingSet
from uplift.effects import EffectModel, TermValues
from uplift.errors import DesignError

MIN_SHARE_ROWS = 50


@dataclass(frozen=True)
class Problem:
    """One outcome of the training rows, ready for every learner.

    target   (n,) outcome that is learned; `binary`: it holds 0 and 1 only
    fold     (n,) 0..F-1, drawn by cluster
    mu       (n, K + 1) out-of-fold mean of each arm
    arm_means, full_means   the models of it: one per fold, and one of all training rows
    gamma    (n, K + 1) doubly robust scores of the training rows
    monotone  by feature: 1 where every effect may only rise with it, -1 where it may only fall
    held     what models' terms give at each fold's own rows: each computed once, whoever asks
    """

    data: TrainingSet
    binned: Binned
    target: FloatArray
    binary: bool
    fold: IntArray
    mu: FloatArray
    arm_means: tuple[EffectModel, ...]
    full_means: EffectModel
    gamma: FloatArray
    settings: Settings
    seed: int
    monotone: Mapping[str, int] = field(default_factory=dict)
    held: tuple[TermValues, ...] = field(default=(), repr=False)

    @property
    def effect_settings(self) -> tuple[Settings, ...]:
        """Settings for the models whose mean is a model of an effect itself; they keep the monotone
        constraints. With leading features they are two, one on all features and one on these alone:
        of many splits of noise the best looks better than of few, and what the other features tell
        is not lost."""
        names, leading = self.data.schema.names, self.settings.leading
        ways = [self.settings.for_effects(len(names))]
        if leading:
            ways.append(self.settings.for_effects(len(leading)).split_on(leading, len(names)))
        if self.monotone:
            signs = {"monotone_constraints": [self.monotone.get(name, 0) for name in names]}
            ways = [replace(way, extra={**way.extra, **signs}) for way in ways]
        return tuple(ways)

    def cross_fit_effect(
        self,
        rows: IntArray,
        target: FloatArray,
        *,
        weight: FloatArray | None,
        valid: tuple[IntArray, FloatArray, FloatArray | None] | None = None,
    ) -> CrossFit:
        """`cross_fit` of an effect itself on the features."""

        def one(way: Settings) -> CrossFit:
            return cross_fit(self.binned, rows, target, self.fold, way, weight=weight, valid=valid)

        return mean_of(each(self.settings.threads, one, self.effect_settings))

    @cached_property
    def beside_arms(self) -> Binned:
        """The features with a column for each arm behind them, 1 where it was drawn; binned when
        first asked for, once for all who learn with the arm as a feature."""
        drawn = np.eye(self.data.n_arms + 1, dtype=np.float32)[self.data.arm, 1:]
        wide = np.hstack([self.data.X, drawn])
        return Binned(wide, self.data.schema.categorical, self.settings.threads)

    def with_settings(self, settings: Settings) -> Problem:
        """The same problem for learners with other settings; nothing is kept of what was learned
        with these."""
        held = tuple(TermValues(values.X, values.threads) for values in self.held)
        return replace(self, settings=settings, held=held)

    @property
    def folds(self) -> int:
        return len(self.arm_means)

    @property
    def kind(self) -> str:
        """Of the outcome, as learners declare what they learn: binary or money."""
        return "binary" if self.binary else "money"

    def contrast(self, k: int) -> tuple[IntArray, FloatArray, FloatArray]:
        """Rows where arm k could be drawn, their Gam_k - Gam_0, and the rows' weights times the
        inverse variance 1 / (1/e_k + 1/e_0), scaled to the sum of the rows' weights."""
        e = self.data.assignment
        rows = np.flatnonzero((e[:, k] > 0) & (e[:, 0] > 0))
        own, precision = self.data.weight[rows], self.precision(rows, k)
        weight = own * precision / np.average(precision, weights=own)
        return rows, self.gamma[rows, k] - self.gamma[rows, 0], weight

    def precision(self, rows: IntArray, k: int) -> FloatArray:
        """(len(rows),) 1 / (1/e_k + 1/e_0): inverse variance of Gam_k - Gam_0 but for a factor."""
        e = self.data.assignment[rows]
        out: FloatArray = 1 / (1 / e[:, k] + 1 / e[:, 0])
        return out

    def losses(self, effects: FloatArray) -> FloatArray:
        """(n,) doubly robust loss of effects (n, K) that did not see their rows: over the arms that
        a row could get, the sum of (Gam_k - Gam_0 - effect)^2 / (1/e_k + 1/e_0). Its mean is that
        of the squared error of the effects, so weighted, and a term that no effects change
        (Foster & Syrgkanis 2023)."""
        total = np.zeros(len(self.data))
        for k in range(1, self.data.n_arms + 1):
            rows, contrast, _ = self.contrast(k)
            total[rows] += self.precision(rows, k) * (contrast - effects[rows, k - 1]) ** 2
        return total

    def mean_on(self, X: Float32Array) -> FloatArray:
        """(n, K + 1) arm means at rows that are not among the training rows."""
        return self.full_means.predict(X, self.settings.threads)


def prepare(
    data: TrainingSet,
    binned: Binned,
    target: FloatArray,
    fold: IntArray,
    settings: Settings,
    seed: int,
    monotone: Mapping[str, int] | None = None,
    held: tuple[TermValues, ...] | None = None,
) -> Problem:
    """Fit the arm means of `target` (n,) and compute the scores. `held`: those of another outcome's
    problem with the same rows and folds. Raises DesignError for monotone constraints that name no
    numeric feature, or no direction."""
    monotone = dict(monotone or {})
    _check_monotone(data, monotone)
    binary = bool(np.isin(target, (0.0, 1.0)).all())

    def fit_arm(k: int) -> tuple[CrossFit, FloatArray]:
        rows = np.flatnonzero(data.arm == k)
        weight = data.weight_of(rows)
        fitted = cross_fit(binned, rows, target[rows], fold, settings, weight=weight, binary=binary)
        return fitted, fitted.out_of_fold(data.X, fold, settings.threads)

    fits, columns = zip(*each(settings.threads, fit_arm, range(data.n_arms + 1)), strict=True)
    mu = np.column_stack(columns)
    means, full = side_by_side(fits)
    shares = realised(data.assignment, data.arm, data.weight)
    gamma = doubly_robust(mu, shares, data.arm, target)
    if held is None:
        held = tuple(TermValues(data.X[fold == f], settings.threads) for f in range(len(means)))
    return Problem(
        data, binned, target, binary, fold, mu, means, full, gamma, settings, seed, monotone, held
    )


def _check_monotone(data: TrainingSet, monotone: Mapping[str, int]) -> None:
    schema = data.schema
    unknown = [name for name in monotone if name not in schema.names or name in schema.levels]
    if unknown:
        raise DesignError(
            f"training.monotone: no numeric feature is called {', '.join(unknown[:5])}: expected "
            f"some of {', '.join([n for n in schema.names if n not in schema.levels][:8])}. "
            "A category has no order that an effect could follow."
        )
    wrong = {name: sign for name, sign in monotone.items() if sign not in (-1, 1)}
    if wrong:
        raise DesignError(f"training.monotone: expected 1 or -1 for a feature, found {wrong}")


def doubly_robust(
    mu: FloatArray, assignment: FloatArray, arm: IntArray, y: FloatArray
) -> FloatArray:
    """(n, K + 1) scores. mu, assignment (n, K + 1); arm, y (n,). A known probability is never
    clipped; an arm with probability 0 keeps its mean and must not be evaluated."""
    gamma = mu.copy()
    i = np.arange(len(arm))
    gamma[i, arm] += (y - mu[i, arm]) / assignment[i, arm]
    return gamma


def realised(assignment: FloatArray, arm: IntArray, weight: FloatArray | None = None) -> FloatArray:
    """(n, K + 1) actual shares of the rows in place of a constant design's probabilities, rows
    counted by `weight` (n,).

    Rows with the same vector of probabilities form a stratum; its own shares give a smaller
    variance than the design's (Hirano, Imbens & Ridder 2003). Strata in which an arm that could
    be drawn has fewer than MIN_SHARE_ROWS rows keep the design, and so do probabilities that vary
    from row to row.
    """
    designs, stratum = np.unique(assignment, axis=0, return_inverse=True)
    counts = np.zeros_like(designs)
    np.add.at(counts, (stratum.ravel(), arm), 1.0 if weight is None else weight)
    fit = np.where(designs > 0, counts >= MIN_SHARE_ROWS, counts == 0)
    enough: BoolArray = np.all(fit, axis=1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    out: FloatArray = np.where(enough[:, None], shares, designs)[stratum.ravel()]
    return out


def side_by_side(fits: Sequence[CrossFit]) -> tuple[tuple[EffectModel, ...], EffectModel]:
    """Single-output fits as models of len(fits) outputs: one per fold, and the full one."""
    folds = range(len(fits[0].models))
    return (
        tuple(stack([fit.models[f] for fit in fits]) for f in folds),
        stack([fit.full for fit in fits]),
    )


def stack(models: Sequence[EffectModel]) -> EffectModel:
    """Single-output models side by side as one model with len(models) outputs."""
    outputs = len(models)
    terms = []
    for k, model in enumerate(models):
        for term, weight in model.terms:
            wide = np.zeros(outputs)
            wide[k] = weight[0]
            terms.append((term, wide))
    return EffectModel(np.array([m.constant[0] for m in models]), tuple(terms))


def only(means: EffectModel, k: int) -> EffectModel:
    """Output k of a model of several, alone: no other output's terms are computed."""
    return EffectModel(
        means.constant[[k]], tuple((term, w[[k]]) for term, w in means.terms if w[k])
    )


def against_control(means: EffectModel) -> EffectModel:
    """(K,) effects mu_k - mu_0 from a model of the K + 1 arm means."""
    return EffectModel(
        means.constant[1:] - means.constant[0],
        tuple((term, w[1:] - w[0]) for term, w in means.terms),
    )
