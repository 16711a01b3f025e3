"""Fit the three kinds of value model from histories and what came after them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import lightgbm as lgb
import numpy as np
from scipy.optimize import nnls
from sklearn.linear_model import LogisticRegression

from uplift.boosting import Settings
from uplift.data import Float32Array, FloatArray, IntArray, Schema
from uplift.effects import BoosterTerm, EffectModel, sigmoid
from uplift.errors import DesignError
from uplift.lifetime import fit_bgnbd, fit_gamma_gamma
from uplift.response import platt
from uplift.value import History, Lifetime, Target, ValueModel

# Money starts at no less than this part of its mean: from nothing no factor leads away.
FLOOR_SHARE = 1e-3
TWEEDIE_POWER = 1.5
HOW = {"verbosity": -1, "min_data_in_bin": 3}
Loss = Callable[[FloatArray, FloatArray], FloatArray]


def _log_loss(raw: FloatArray, y: FloatArray) -> FloatArray:
    return np.logaddexp(0.0, raw) - y * raw


def _poisson(raw: FloatArray, y: FloatArray) -> FloatArray:
    return np.exp(raw) - y * raw


def _tweedie(raw: FloatArray, y: FloatArray) -> FloatArray:
    p = TWEEDIE_POWER
    out: FloatArray = np.exp((2 - p) * raw) / (2 - p) - y * np.exp((1 - p) * raw) / (1 - p)
    return out


# Each as LightGBM computes it, so that no tree at all can be compared with some.
LOSSES: dict[str, Loss] = {"binary": _log_loss, "poisson": _poisson, "tweedie": _tweedie}


def fit_lifetime(target: Target, history: History, share: float = 1.0) -> Lifetime:
    """BG/NBD, and for clv Gamma-Gamma, by maximum likelihood on customers with an order.

    Raises DesignError where nobody came back.
    """
    known = history.known
    x, t_x, age = (column[known] for column in history.repeats)
    orders = fit_bgnbd(x, t_x, age)
    if target != "clv":
        return Lifetime(orders)
    value = np.nan_to_num(history.value[known], nan=0.0)
    again = (x > 0) & (value > 0)
    return Lifetime(orders, fit_gamma_gamma(x[again], value[again]), share)


def fit_naive(target: Target, history: History, y: FloatArray) -> tuple[float, ...]:
    """The weights of the naive model: `y` (n,) 0/1, or money."""
    if target == "clv":
        factors, _ = nnls(history.spend_design(), y)
        return tuple(float(f) for f in factors)
    model = LogisticRegression(C=1e6, max_iter=1000).fit(history.logistic_design(), y)
    return (*(float(c) for c in model.coef_[0]), float(model.intercept_[0]))


@dataclass(frozen=True)
class FittedTrees:
    """A lightgbm model; `loss`, what it was boosted by; `rounds`, its trees; `oof` (n,), its
    predictions of the training rows by folds that did not see their customer."""

    model: ValueModel
    loss: str
    rounds: int
    oof: FloatArray


def fit_lightgbm(
    model: ValueModel,
    X: Float32Array,
    schema: Schema,
    y: FloatArray,
    fold: IntArray,
    settings: Settings,
) -> FittedTrees:
    """Trees on top of `model.lifetime`, calibrated out of fold.

    X (n, d) and y (n,): rows with an outcome of `model.learned_days`; fold (n,) drawn by customer.
    Probabilities get Platt's line. Money gets one factor that makes its total right; whether
    Poisson's or Tweedie's loss serves it better is decided by the squared error out of fold,
    which the mean minimises, as it does both losses. Money below 0 (more returned than bought)
    counts as 0 in the trees and in full in the factor.
    """
    history = History.of(X, schema)
    if model.target != "clv":
        start = model.start(history, model.learned_days)
        terms, raw, rounds = boost(X, schema, start, y, fold, "binary", settings)
        slope, intercept = platt(raw, y)
        fitted = replace(model, booster=terms, slope=slope, intercept=intercept)
        return FittedTrees(fitted, "binary", rounds, sigmoid(intercept + slope * raw))
    total = float(y.sum())
    if total <= 0:
        raise DesignError("clv: the outcomes come to nothing, so there is no value to learn.")
    model = replace(model, floor=FLOOR_SHARE * total / len(y))
    start = model.start(history, model.learned_days)
    found = []
    for loss in ("poisson", "tweedie"):
        terms, raw, rounds = boost(X, schema, start, np.maximum(y, 0.0), fold, loss, settings)
        intercept = float(np.log(total) - np.log(np.exp(raw).sum()))
        fitted = replace(model, booster=terms, intercept=intercept)
        found.append(FittedTrees(fitted, loss, rounds, np.exp(intercept + raw)))
    return min(found, key=lambda trees: float(np.mean((trees.oof - y) ** 2)))


def boost(
    X: Float32Array,
    schema: Schema,
    start: FloatArray,
    y: FloatArray,
    fold: IntArray,
    loss: str,
    settings: Settings,
) -> tuple[EffectModel, FloatArray, int]:
    """Trees from `start` (n,) on; their number is the one of least loss out of fold, which may
    be 0. Returns the trees of all rows, start and trees out of fold (n,), and their number."""
    params = settings.params(loss) | {"metric": loss if loss != "binary" else "binary_logloss"}
    if loss == "tweedie":
        params["tweedie_variance_power"] = TWEEDIE_POWER

    def data(rows: IntArray) -> lgb.Dataset:
        return lgb.Dataset(
            X[rows],
            y[rows],
            init_score=start[rows],
            categorical_feature=schema.categorical,
            free_raw_data=False,
            params=HOW,
        )

    boosters = []
    total = np.zeros(settings.rounds + 1)
    for f in range(int(fold.max()) + 1):
        train, held = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        history: dict[str, dict[str, list[float]]] = {}
        learned = data(train)
        booster = lgb.train(
            params,
            learned,
            num_boost_round=settings.rounds,
            valid_sets=[learned.create_valid(X[held], y[held], init_score=start[held], params=HOW)],
            valid_names=["held"],
            callbacks=[lgb.record_evaluation(history)],
        )
        curve = next(iter(history["held"].values()))
        # LightGBM stops early when no split is left; its last loss then stands.
        padded = np.full(settings.rounds, curve[-1])
        padded[: len(curve)] = curve
        none = float(LOSSES[loss](start[held], y[held]).mean())
        total += len(held) * np.concatenate([[none], padded])
        boosters.append(booster)
    rounds = int(np.argmin(total))
    out = start.copy()
    if rounds == 0:
        return EffectModel(np.zeros(1)), out, 0
    for f, booster in enumerate(boosters):
        held = fold == f
        out[held] += np.asarray(
            booster.predict(
                X[held], raw_score=True, num_iteration=rounds, num_threads=settings.threads
            )
        )
    whole = lgb.train(params, data(np.arange(len(y))), num_boost_round=rounds)
    term = BoosterTerm.from_text(whole.model_to_string(num_iteration=rounds))
    return EffectModel(np.zeros(1), ((term, np.ones(1)),)), out, rounds
