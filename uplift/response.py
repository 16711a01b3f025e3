"""Response models: P(conversion | control), cross-fitted and calibrated.

The number of trees comes from early stopping on held-out customers, averaged over the folds, so
that every fold's model has the same size. Calibration is Platt's logistic regression on the
out-of-fold log-odds (Platt 1999): few parameters, monotone, so it never changes a ranking.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from uplift.boosting import Binned, Settings, cross_fit
from uplift.data import Float32Array, FloatArray, IntArray
from uplift.effects import TERMS, EffectModel, TermValues, sigmoid

_EPS = 1e-7


@dataclass(frozen=True)
class ResponseModel:
    """A calibrated probability: sigmoid(intercept + slope * mean log-odds of the boosters)."""

    log_odds: EffectModel
    slope: float
    intercept: float

    def predict(self, X: Float32Array, threads: int = 0) -> FloatArray:
        """(n,) probabilities in (0, 1)."""
        return self.at(TermValues(X, threads))

    def at(self, values: TermValues) -> FloatArray:
        """(n,) probabilities at the rows of `values`."""
        return sigmoid(self.intercept + self.slope * self.log_odds.at(values)[:, 0])

    def to_files(self, prefix: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        spec, files = self.log_odds.to_files(prefix)
        return {"log_odds": spec, "slope": self.slope, "intercept": self.intercept}, files

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> ResponseModel:
        return cls(
            EffectModel.from_files(spec["log_odds"], files), spec["slope"], spec["intercept"]
        )


@dataclass(frozen=True)
class ResponseTerm:
    """The response probability as a term of an effect model, kept in one JSON file."""

    model: ResponseModel

    def value(self, X: Float32Array, threads: int = 0) -> FloatArray:
        return self.model.predict(X, threads)

    def files(self) -> tuple[str, bytes]:
        spec, files = self.model.to_files("response")
        texts = {name: content.decode() for name, content in files.items()}
        return "json", json.dumps({"spec": spec, "files": texts}, sort_keys=True).encode()

    def spec(self) -> dict[str, Any]:
        return {"type": "response"}

    @classmethod
    def from_bytes(cls, content: bytes, spec: Mapping[str, Any]) -> ResponseTerm:
        held = json.loads(content)
        files = {name: text.encode() for name, text in held["files"].items()}
        return cls(ResponseModel.from_files(held["spec"], files))


TERMS["response"] = ResponseTerm.from_bytes


@dataclass(frozen=True)
class FittedResponse:
    """`oof` (n,) calibrated probabilities of every row of X, each by the folds' models that did
    not see its customer; `rounds`, the trees that early stopping chose; `model`, of all
    rows."""

    model: ResponseModel
    oof: FloatArray
    rounds: int


def fit_response(
    data: Binned,
    X: Float32Array,
    rows: IntArray,
    y: FloatArray,
    fold: IntArray,
    settings: Settings,
    weight: FloatArray | None = None,
) -> FittedResponse:
    """Fit on `rows` (positions in X) with 0/1 outcomes `y` and `weight` alike; `fold` (len(X),)
    of every row."""
    fitted = cross_fit(data, rows, y, fold, settings, weight=weight, binary=True, link="identity")
    log_odds = fitted.out_of_fold(X, fold, settings.threads)
    slope, intercept = platt(log_odds[rows], y, weight)
    model = ResponseModel(fitted.full, slope, intercept)
    return FittedResponse(model, sigmoid(intercept + slope * log_odds), fitted.rounds)


def platt(
    log_odds: FloatArray, y: FloatArray, weight: FloatArray | None = None
) -> tuple[float, float]:
    """Slope and intercept of the logistic regression of 0/1 `y` on `log_odds`, both (n,), rows
    weighted by `weight` (n,).

    These are Cox's (1958) calibration slope and intercept as well: 1 and 0 when calibrated. A
    slope that is not positive would turn the ranking round: then the mean rate alone is kept.
    """
    rate = float(np.clip(np.average(y, weights=weight), _EPS, 1 - _EPS))
    flat = 0.0, float(np.log(rate / (1 - rate)))
    if np.ptp(log_odds) == 0 or np.ptp(y) == 0:
        return flat
    model = LogisticRegression(C=1e6, max_iter=1000).fit(log_odds[:, None], y, weight)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    return (slope, intercept) if slope > 0 else flat
