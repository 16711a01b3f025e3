"""LightGBM, binned once: one data set is shared by all folds, arms and learners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import lightgbm as lgb
import numpy as np

from uplift.cores import at_once, each, own_threads
from uplift.data import Float32Array, FloatArray, IntArray
from uplift.effects import BoosterTerm, EffectModel

# As many as the core set has.
FEW_FEATURES = 20
ROUNDS_AT_A_TIME = 10


@dataclass(frozen=True)
class Settings:
    """LightGBM settings of one kind of model; small trees, since effects are faint.

    leading: positions of the features that are likeliest to matter, if there are many others: what
    an effect looks like on them alone counts as much as on all.
    """

    rounds: int = 100
    learning_rate: float = 0.05
    num_leaves: int = 15
    min_child_samples: int = 50
    feature_fraction: float = 0.8
    lambda_l2: float = 1.0
    seed: int = 7
    threads: int = 0
    leading: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def params(self, objective: str) -> dict[str, Any]:
        return {
            "objective": objective,
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_child_samples": self.min_child_samples,
            "feature_fraction": self.feature_fraction,
            "lambda_l2": self.lambda_l2,
            "seed": self.seed,
            "num_threads": own_threads(self.threads),
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
            **self.extra,
        }

    def for_effects(self, features: int) -> Settings:
        """These settings for a model of an effect that may split on so many features.

        Effects are faint, and of many splits of noise the best looks better than of few: above
        FEW_FEATURES the least leaf grows with their number (docs/benchmarks.md, the whole
        catalogue).
        """
        factor = max(1.0, features / FEW_FEATURES)
        return replace(self, min_child_samples=round(self.min_child_samples * factor))

    def split_on(self, some: Sequence[int], features: int) -> Settings:
        """These settings for a model that splits on some of so many features only."""
        gain = [float(i in some) for i in range(features)]  # of a split, by feature
        return replace(self, extra={**self.extra, "feature_contri": gain})


@dataclass(frozen=True)
class Fold:
    """Rows to learn from and `held` rows that judge (positions in the data), with their targets
    and, where given, weights of the same lengths."""

    rows: IntArray
    target: FloatArray
    weight: FloatArray | None
    held: IntArray
    held_target: FloatArray
    held_weight: FloatArray | None

    @property
    def size(self) -> float:
        """What the held-out rows weigh."""
        return float(len(self.held) if self.held_weight is None else self.held_weight.sum())


@dataclass
class _Growing:
    """A booster that grows; `size` is what its held-out rows weigh."""

    booster: lgb.Booster
    size: float
    loss: float = np.nan
    ended: bool = False

    def grow(self, rounds: int) -> list[float]:
        """Up to so many trees more; the loss on the held-out rows after each, summed over them."""
        losses = []
        for _ in range(rounds):
            # LightGBM ends early when no split is left; its last loss then stands.
            self.ended = self.ended or self.booster.update()
            if not self.ended or np.isnan(self.loss):
                self.loss = self.booster.eval_valid()[0][2]
            losses.append(self.size * self.loss)
        return losses


class Binned:
    """A feature matrix whose histogram bins were found once.

    X: (n, d) float32; `categorical`: positions of the categorical columns.
    """

    def __init__(self, X: Float32Array, categorical: list[int], threads: int = 0) -> None:
        self._data = lgb.Dataset(
            X,
            categorical_feature=categorical,
            params={
                "verbosity": -1,
                "num_threads": own_threads(threads),
                "feature_pre_filter": False,
                "min_data_in_bin": 3,
                "force_row_wise": True,
                "deterministic": True,
            },
        )
        self._data.construct()
        # Its parts take the number of threads from here, and they may be made side by side.
        self._data.params = {**(self._data.params or {}), "num_threads": 1}

    def fit(
        self,
        rows: IntArray,
        target: FloatArray,
        settings: Settings,
        *,
        weight: FloatArray | None = None,
        binary: bool = False,
    ) -> BoosterTerm:
        """Fit on `rows` (positions in X) with `target` and `weight` of the same length."""
        train = self._subset(rows, target, weight)
        booster = lgb.train(settings.params(_objective(binary)), train, settings.rounds)
        return BoosterTerm(booster, _link(binary))

    def fit_beside(
        self, folds: Sequence[Fold], settings: Settings, *, binary: bool = False
    ) -> tuple[list[BoosterTerm], FloatArray]:
        """One booster per fold, grown side by side for as long as it pays.

        Returns them and their losses on their held-out rows (summed over the rows), one line for
        each round, one column for each fold. They stop when the sum of a line has not fallen for a
        fifth of `settings.rounds` (at least 10): what is learned of effects is soon exhausted, and
        most of the time would go into trees that are thrown away. Boosters may have a few trees
        more than there are lines.
        """

        def plant(fold: Fold) -> _Growing:
            train = self._subset(fold.rows, fold.target, fold.weight)
            booster = lgb.Booster(settings.params(_objective(binary)), train)
            booster.add_valid(self._subset(fold.held, fold.held_target, fold.held_weight), "held")
            return _Growing(booster, fold.size)

        growing = each(settings.threads, plant, folds)
        terms = [BoosterTerm(one.booster, _link(binary)) for one in growing]
        # Side by side they are grown by some rounds at a time, of which the last may be too many.
        block = ROUNDS_AT_A_TIME if at_once(settings.threads, len(folds)) > 1 else 1
        lines: list[FloatArray] = []
        curve: list[float] = []
        patience = max(10, settings.rounds // 5)
        while len(curve) < settings.rounds and not all(one.ended for one in growing):
            more = min(block, settings.rounds - len(curve))
            grown = each(settings.threads, partial(_Growing.grow, rounds=more), growing)
            for line in np.transpose(grown):
                lines.append(line)
                curve.append(float(line.sum()))
                if len(curve) - 1 - int(np.argmin(curve)) >= patience:
                    return terms, np.asarray(lines)
        return terms, np.asarray(lines)

    def _subset(self, rows: IntArray, target: FloatArray, weight: FloatArray | None) -> lgb.Dataset:
        order = np.argsort(rows, kind="stable")  # LightGBM wants ascending positions
        part = self._data.subset(rows[order].tolist())
        part.construct()
        part.set_label(target[order])
        if weight is not None:
            part.set_weight(weight[order])
        return part


@dataclass(frozen=True)
class CrossFit:
    """One single-output model per fold, and `full`, learned from all rows, which is served, of
    `rounds` trees (0: the training mean)."""

    models: tuple[EffectModel, ...]
    full: EffectModel
    rounds: int

    def out_of_fold(self, X: Float32Array, fold: IntArray, threads: int) -> FloatArray:
        """(n,) predictions; each row of X by the model that did not see its fold."""
        out = np.empty(len(X))
        for f, model in enumerate(self.models):
            held = fold == f
            out[held] = model.predict(X[held], threads)[:, 0]
        return out


def mean_of(fits: Sequence[CrossFit]) -> CrossFit:
    """The mean of several fits, fold by fold."""
    share = 1 / len(fits)

    def mean(models: Iterable[EffectModel]) -> EffectModel:
        return reduce(EffectModel.plus, (model.scaled(share) for model in models))

    folds = zip(*(fit.models for fit in fits), strict=True)
    full = mean(fit.full for fit in fits)
    return CrossFit(tuple(map(mean, folds)), full, max(fit.rounds for fit in fits))


def cross_fit(
    data: Binned,
    rows: IntArray,
    target: FloatArray,
    fold: IntArray,
    settings: Settings,
    *,
    weight: FloatArray | None = None,
    valid: tuple[IntArray, FloatArray, FloatArray | None] | None = None,
    binary: bool = False,
    link: str | None = None,
) -> CrossFit:
    """Fit one model per fold on the rows outside it; the held-out loss chooses the rounds.

    rows     positions in the data that may be learned from; `target`, `weight` alike
    target, weight   or (F + 1, len(rows)): what each fold's model learns, and last what the full
             one learns; then `valid` has to be given
    fold     fold of *every* row of the data, 0..F-1
    valid    (positions, target, weight) that judge the rounds; default: rows, target, weight
    The full model gets the number of trees with the least loss over all held-out rows, among them
    0: where nothing can be learned, the mean is the model. A fold's model gets the one with the
    least loss on the *other* folds' held-out rows: chosen on its own, its held-out effects would
    look better than they are (by 6% of the value of the best three tenths, measured on 4,000 rows
    in the world `heterogeneous` of the benchmarks). `link` overrides what the objective implies
    (identity, or sigmoid for binary).
    """
    judge_rows, judge_target, judge_weight = valid or (rows, target, weight)
    shown = link or _link(binary)
    folds, means = [], []
    count = int(fold.max()) + 1
    start = np.zeros(count)
    *targets, target = np.broadcast_to(target, (count + 1, len(rows)))
    weights: list[FloatArray | None] = [None] * count
    if weight is not None:
        *weights, weight = np.broadcast_to(weight, (count + 1, len(rows)))
    for f in range(count):
        train, held = fold[rows] != f, fold[judge_rows] == f
        own = weights[f]
        part = Fold(
            rows[train],
            targets[f][train],
            None if own is None else own[train],
            judge_rows[held],
            judge_target[held],
            None if judge_weight is None else judge_weight[held],
        )
        mean = float(np.average(part.target, weights=part.weight)) if train.any() else 0.0
        means.append(mean)
        folds.append(part)
        if held.any():
            start[f] = part.size * _constant_loss(part.held_target, part.held_weight, mean, binary)
    overall = float(np.average(target, weights=weight)) if len(target) else 0.0
    models, rounds = [_constant(mean, binary, shown) for mean in means], 0
    if all(_learnable(part.target, part.weight, binary) and len(part.held) for part in folds):
        terms, curves = data.fit_beside(folds, settings, binary=binary)
        losses = np.vstack([start, curves])
        total = losses.sum(axis=1)
        rounds = int(np.argmin(total))
        for f, term in enumerate(terms):
            used = int(np.argmin(total - losses[:, f]))
            models[f] = _trimmed(term, used, shown) if used else models[f]
    if rounds == 0:
        return CrossFit(tuple(models), _constant(overall, binary, shown), 0)
    whole = data.fit(rows, target, replace(settings, rounds=rounds), weight=weight, binary=binary)
    return CrossFit(
        tuple(models),
        EffectModel(np.zeros(1), ((BoosterTerm(whole.booster, shown), np.ones(1)),)),
        rounds,
    )


def _objective(binary: bool) -> str:
    return "binary" if binary else "regression"


def _link(binary: bool) -> str:
    return "sigmoid" if binary else "identity"


def _trimmed(term: BoosterTerm, rounds: int, link: str) -> EffectModel:
    text = term.booster.model_to_string(num_iteration=rounds)
    return EffectModel(np.zeros(1), ((BoosterTerm.from_text(text, link), np.ones(1)),))


def _constant(mean: float, binary: bool, link: str) -> EffectModel:
    """The mean as a model; in log-odds where a binary target is asked for with identity link."""
    p = float(np.clip(mean, 1e-6, 1 - 1e-6))
    log_odds = binary and link == "identity"
    return EffectModel(np.array([float(np.log(p / (1 - p))) if log_odds else mean]))


def _learnable(target: FloatArray, weight: FloatArray | None, binary: bool) -> bool:
    if len(target) == 0 or np.ptp(target) == 0:
        return False
    count = np.ones(len(target)) if weight is None else weight
    return not binary or bool(min(count @ target, count @ (1 - target)) >= 5)


def _constant_loss(
    target: FloatArray, weight: FloatArray | None, mean: float, binary: bool
) -> float:
    if binary:
        p = float(np.clip(mean, 1e-6, 1 - 1e-6))
        loss = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    else:
        loss = (target - mean) ** 2
    return float(np.average(loss, weights=weight))
