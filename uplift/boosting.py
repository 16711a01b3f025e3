"""LightGBM, binned once: one data set is shared by all folds, arms and learners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import lightgbm as lgb
import numpy as np

from uplift.data import Float32Array, FloatArray, IntArray
from uplift.effects import BoosterTerm, EffectModel


@dataclass(frozen=True)
class Settings:
    """LightGBM settings of one kind of model; small trees, since effects are faint."""

    rounds: int = 100
    learning_rate: float = 0.05
    num_leaves: int = 15
    min_child_samples: int = 50
    feature_fraction: float = 0.8
    lambda_l2: float = 1.0
    seed: int = 7
    threads: int = 0
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
            "num_threads": self.threads,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
            **self.extra,
        }


class Binned:
    """A feature matrix whose histogram bins were found once.

    X: (n, d) float32; `categorical`: positions of the categorical columns.
    """

    def __init__(self, X: Float32Array, categorical: list[int], threads: int = 0) -> None:
        self._data = lgb.Dataset(
            X,
            categorical_feature=categorical,
            free_raw_data=False,
            params={
                "verbosity": -1,
                "num_threads": threads,
                "feature_pre_filter": False,
                "min_data_in_bin": 3,
                "force_row_wise": True,
                "deterministic": True,
            },
        )
        self._data.construct()

    def fit(
        self,
        rows: IntArray,
        target: FloatArray,
        settings: Settings,
        *,
        weight: FloatArray | None = None,
        binary: bool = False,
        valid: tuple[IntArray, FloatArray] | None = None,
        valid_weight: FloatArray | None = None,
    ) -> tuple[BoosterTerm, FloatArray]:
        """Fit on `rows` (positions in X) with `target` and `weight` of the same length.

        Returns the booster with all its rounds, and the loss after 1, 2, ... rounds on the
        `valid` rows (an empty array without).
        """
        train = self._subset(rows, target, weight)
        history: dict[str, dict[str, list[float]]] = {}
        sets, callbacks = [], []
        if valid is not None:
            sets = [self._subset(valid[0], valid[1], valid_weight)]
            callbacks = [lgb.record_evaluation(history)]
        objective = "binary" if binary else "regression"
        booster = lgb.train(
            settings.params(objective),
            train,
            num_boost_round=settings.rounds,
            valid_sets=sets or None,
            valid_names=["valid"] if sets else None,
            callbacks=callbacks or None,
        )
        curve = next(iter(history["valid"].values())) if history else []
        return BoosterTerm(booster, "sigmoid" if binary else "identity"), np.asarray(curve)

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
    """One single-output model per fold, and `full`, learned from all rows, which is served; all
    with the same number of trees (`rounds`; 0: the training mean)."""

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
    fold     fold of *every* row of the data, 0..F-1
    valid    (positions, target, weight) that judge the rounds; default: rows, target, weight
    The curve of held-out loss is summed over the folds, so all models get the same number of
    rounds, among them 0: where nothing can be learned, the mean is the model. `link` overrides
    what the objective implies (identity, or sigmoid for binary).
    """
    judge_rows, judge_target, judge_weight = valid or (rows, target, weight)
    shown = link or ("sigmoid" if binary else "identity")
    terms: list[BoosterTerm | None] = []
    means, total = [], np.zeros(settings.rounds + 1)
    for f in range(int(fold.max()) + 1):
        train, held = fold[rows] != f, fold[judge_rows] == f
        w = None if weight is None else weight[train]
        v = None if judge_weight is None else judge_weight[held]
        mean = float(np.average(target[train], weights=w)) if train.any() else 0.0
        means.append(mean)
        if not _learnable(target[train], binary) or not held.any():
            terms.append(None)
            continue
        booster, curve = data.fit(
            rows[train],
            target[train],
            settings,
            weight=w,
            binary=binary,
            valid=(judge_rows[held], judge_target[held]),
            valid_weight=v,
        )
        terms.append(booster)
        size = float(held.sum() if v is None else v.sum())
        start = _constant_loss(judge_target[held], v, mean, binary)
        # LightGBM stops early when no split is left; its last loss then stands.
        padded = np.full(settings.rounds, curve[-1])
        padded[: len(curve)] = curve
        total += size * np.concatenate([[start], padded])
    rounds = 0 if any(t is None for t in terms) else int(np.argmin(total))
    overall = float(np.average(target, weights=weight)) if len(target) else 0.0
    if rounds == 0:
        models = [_constant(mean, binary, shown) for mean in means]
        return CrossFit(tuple(models), _constant(overall, binary, shown), 0)
    whole, _ = data.fit(
        rows, target, replace(settings, rounds=rounds), weight=weight, binary=binary
    )
    return CrossFit(
        tuple(_trimmed(t, rounds, shown) for t in terms if t is not None),
        _trimmed(whole, rounds, shown),
        rounds,
    )


def _trimmed(term: BoosterTerm, rounds: int, link: str) -> EffectModel:
    text = term.booster.model_to_string(num_iteration=rounds)
    return EffectModel(np.zeros(1), ((BoosterTerm.from_text(text, link), np.ones(1)),))


def _constant(mean: float, binary: bool, link: str) -> EffectModel:
    """The mean as a model; in log-odds where a binary target is asked for with identity link."""
    p = float(np.clip(mean, 1e-6, 1 - 1e-6))
    log_odds = binary and link == "identity"
    return EffectModel(np.array([float(np.log(p / (1 - p))) if log_odds else mean]))


def _learnable(target: FloatArray, binary: bool) -> bool:
    if len(target) == 0 or np.ptp(target) == 0:
        return False
    return not binary or bool(min(target.sum(), (1 - target).sum()) >= 5)


def _constant_loss(
    target: FloatArray, weight: FloatArray | None, mean: float, binary: bool
) -> float:
    if binary:
        p = float(np.clip(mean, 1e-6, 1 - 1e-6))
        loss = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    else:
        loss = (target - mean) ** 2
    return float(np.average(loss, weights=weight))
