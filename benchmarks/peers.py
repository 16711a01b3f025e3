"""causalml's and econml's learners, asked for the effects of every arm.

Everybody learns with the same LightGBM regressions and is told the true probabilities of
assignment, as far as a learner takes them. econml's R (NonParamDML) knows one arm beside control,
so it learns arm by arm, as causalml's learners do by themselves.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightgbm as lgb
import numpy as np

from uplift.boosting import Settings
from uplift.data import Float32Array, FloatArray, TrainingSet

CAUSALML = ("S", "T", "X", "R", "DR")
ECONML = ("S", "T", "X", "R", "DR")
# (n, K + 1) probabilities of the arms at features (n, d).
Known = Callable[[FloatArray], FloatArray]


def econml_is_there() -> bool:
    return importlib.util.find_spec("econml") is not None


def peers() -> list[str]:
    """Names of what can be asked: `causalml S`, ..., and `econml S`, ... where it is installed."""
    names = [f"causalml {name}" for name in CAUSALML]
    return names + [f"econml {name}" for name in ECONML if econml_is_there()]


def regression(settings: Settings) -> Any:
    """A LightGBM regression of these settings, as scikit-learn wants it."""
    return lgb.LGBMRegressor(
        n_estimators=settings.rounds,
        learning_rate=settings.learning_rate,
        num_leaves=settings.num_leaves,
        min_child_samples=settings.min_child_samples,
        reg_lambda=settings.lambda_l2,
        colsample_bytree=settings.feature_fraction,
        random_state=settings.seed,
        n_jobs=settings.threads or -1,
        deterministic=True,
        force_row_wise=True,
        verbosity=-1,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without other projects' deprecations, feature names and log lines."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def peer(
    name: str,
    data: TrainingSet,
    X: Float32Array,
    known: Known,
    settings: Settings,
    folds: int,
) -> FloatArray:
    """Effects (n, K) of the rows X by the learner `name` of `data`; `known`, the design;
    `folds`, those within learners that split rows by themselves (R, econml's DR)."""
    library, learner = name.split()
    with quiet():
        ask = _causalml if library == "causalml" else _econml
        found: FloatArray = np.asarray(
            ask(learner, data, X.astype(np.float64), known, settings, folds), dtype=np.float64
        )
    return found.reshape(len(X), data.n_arms)


def _causalml(
    name: str, data: TrainingSet, X: FloatArray, known: Known, settings: Settings, folds: int
) -> Any:
    from causalml.inference import meta

    classes: Mapping[str, Any] = {
        "S": meta.BaseSRegressor,
        "T": meta.BaseTRegressor,
        "X": meta.BaseXRegressor,
        "R": meta.BaseRRegressor,
        "DR": meta.BaseDRRegressor,
    }
    extra = {"n_fold": folds} if name == "R" else {}
    model = classes[name](learner=regression(settings), control_name="control", **extra)
    model.cv_n_jobs = 1  # one process, so that its CPU seconds are counted
    arms = np.array(["control", *data.arms])[data.arm]
    told = {} if name in ("S", "T") else {"p": _against_control(data, data.assignment)}
    model.fit(X=data.X.astype(np.float64), treatment=arms, y=data.y, **told)
    asked = {"p": _against_control(data, known(X))} if name == "X" else {}
    return model.predict(X, **asked)


def _against_control(data: TrainingSet, e: FloatArray) -> dict[str, FloatArray]:
    return {arm: e[:, k] / (e[:, k] + e[:, 0]) for k, arm in enumerate(data.arms, start=1)}


def _econml(
    name: str, data: TrainingSet, X: FloatArray, known: Known, settings: Settings, folds: int
) -> Any:
    from econml.dml import NonParamDML
    from econml.dr import DRLearner
    from econml.metalearners import SLearner, TLearner, XLearner

    train = data.X.astype(np.float64)

    def tree() -> Any:
        return regression(settings)

    if name == "R":
        effects = []
        for k in range(1, data.n_arms + 1):
            rows = (data.arm == 0) | (data.arm == k)
            model = NonParamDML(
                model_y=tree(),
                model_t=_known_design(known, (0, k)),
                model_final=tree(),
                discrete_treatment=True,
                cv=folds,
                random_state=settings.seed,
            )
            model.fit(data.y[rows], (data.arm[rows] == k).astype(int), X=train[rows])
            effects.append(model.effect(X))
        return np.column_stack(effects)
    if name == "DR":
        model = DRLearner(
            model_regression=tree(),
            model_propensity=_known_design(known),
            model_final=tree(),
            cv=folds,
            min_propensity=1e-6,
            random_state=settings.seed,
        )
    elif name == "X":
        model = XLearner(models=tree(), propensity_model=_known_design(known))
    else:
        model = SLearner(overall_model=tree()) if name == "S" else TLearner(models=tree())
    model.fit(data.y, data.arm, X=train)
    return model.const_marginal_effect(X)


def _known_design(known: Known, arms: tuple[int, ...] | None = None) -> Any:
    """The design in the shape of a classifier, which has nothing to learn.

    `arms`: codes of the arms among which it tells probabilities; default: the classes it is
    given to learn from.
    """
    from sklearn.base import BaseEstimator, ClassifierMixin

    class KnownDesign(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def __init__(self, known: Known, arms: tuple[int, ...] | None) -> None:
            self.known, self.arms = known, arms

        def fit(self, X: Any, y: Any, **_: Any) -> KnownDesign:
            self.classes_ = np.unique(y)
            return self

        def predict_proba(self, X: Any) -> FloatArray:
            among = self.classes_.astype(int) if self.arms is None else np.array(self.arms)
            e = self.known(np.asarray(X, dtype=np.float64))[:, among]
            out: FloatArray = e / e.sum(axis=1, keepdims=True)
            return out

        def predict(self, X: Any) -> Any:
            return self.classes_[self.predict_proba(X).argmax(axis=1)]

    return KnownDesign(known, arms)
