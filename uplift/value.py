"""What a customer will do without being asked: models of repurchase, churn and customer value.

A model is served as parameters and LightGBM text; nothing in it is code. There are three kinds:

lifetime  BG/NBD (and for clv Gamma-Gamma) alone
naive     probabilities: logistic regression on recency, frequency and tenure; clv: the spend of
          the last 90 and of the last 365 days, each times a constant
lightgbm  trees that correct the lifetime model: they start from its log-odds (for clv, from the
          log of its money), so that with no tree left it is that model, calibrated

All of them speak of customers with an order; of others the prediction is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from uplift.data import BoolArray, Float32Array, FloatArray, Schema
from uplift.effects import EffectModel, sigmoid
from uplift.errors import BundleError
from uplift.lifetime import BgNbd, GammaGamma

Target = Literal["repurchase", "churn", "clv"]
Kind = Literal["lifetime", "naive", "lightgbm"]
VALUE_TARGETS: tuple[Target, ...] = ("repurchase", "churn", "clv")
# Features that every value model reads, besides those that the configuration chose.
INPUTS = (
    "order_days_total",
    "tenure_days",
    "recency_days",
    "spend_90d",
    "spend_365d",
    "clv_order_day_value_mean",
)
GOLDEN_TOLERANCE = 1e-5
_EPS = 1e-6


@dataclass(frozen=True)
class History:
    """The inputs of n customers: order days, ages of the first and the last, spend of the last 90
    and 365 days, mean value of order days after the first (NaN without); days and currency."""

    orders: FloatArray
    tenure: FloatArray
    recency: FloatArray
    spend_90d: FloatArray
    spend_365d: FloatArray
    value: FloatArray

    @classmethod
    def of(cls, X: Float32Array, schema: Schema) -> History:
        at = [schema.names.index(name) for name in INPUTS]
        return cls(*(X[:, i].astype(np.float64) for i in at))

    @property
    def known(self) -> BoolArray:
        """(n,) has an order."""
        out: BoolArray = np.isfinite(self.tenure) & (self.orders > 0)
        return out

    @property
    def repeats(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """x, t_x and T of BG/NBD, in days; zeros where there is no order."""
        known = self.known
        x = np.where(known, self.orders - 1, 0.0)
        age = np.where(known, self.tenure, 0.0)
        return x, np.where(x > 0, age - np.where(known, self.recency, 0.0), 0.0), age

    def asked(self, target: Target, active_days: int) -> BoolArray:
        """(n,) customers whom the target speaks of: churn, of those who ordered lately."""
        out: BoolArray = self.known
        if target == "churn":
            out = out & (np.where(self.known, self.recency, np.inf) <= active_days)
        return out

    def spend_design(self) -> FloatArray:
        """(n, 2) spend of the last 90 and of the last 365 days; 0 where less was kept than
        returned."""
        out: FloatArray = np.maximum(np.column_stack([self.spend_90d, self.spend_365d]), 0.0)
        return out

    def logistic_design(self) -> FloatArray:
        """(n, 3) logs of recency, order days and tenure; zeros where there is no order."""
        columns = np.column_stack([self.recency, self.orders, self.tenure])
        out: FloatArray = np.log1p(np.where(self.known[:, None], columns, 0.0))
        return out


@dataclass(frozen=True)
class Lifetime:
    """BG/NBD, for clv with Gamma-Gamma and `share`, the part of revenue that is contribution."""

    orders: BgNbd
    money: GammaGamma | None = None
    share: float = 1.0

    def predict(self, target: Target, days: float, history: History) -> FloatArray:
        """(n,) probability of an order (of none, for churn) or money in the next `days`."""
        x, t_x, age = history.repeats
        if target == "clv":
            if self.money is None:
                raise BundleError("a model of clv lacks its Gamma-Gamma parameters")
            value = self.money.expected_value(x, history.value)
            out: FloatArray = self.orders.expected_orders(days, x, t_x, age) * value * self.share
            return out
        p = self.orders.p_order(days, x, t_x, age)
        return 1 - p if target == "churn" else p

    def to_json(self) -> dict[str, Any]:
        money = None if self.money is None else vars(self.money)
        return {"orders": vars(self.orders), "money": money, "share": self.share}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Lifetime:
        money = None if data["money"] is None else GammaGamma(**data["money"])
        return cls(BgNbd(**data["orders"]), money, float(data["share"]))


@dataclass(frozen=True)
class ValueModel:
    """One target's model, whichever kind it is.

    days       length of the window that is predicted; `learned_days`, of the windows that it was
               learned from, where history was too short for whole ones
    weights    naive: coefficients and intercept (probabilities), or the two factors (clv)
    booster    lightgbm: log-odds, or log money, on top of the lifetime model's
    slope, intercept   lightgbm: Platt's for probabilities; for clv `intercept` alone, a log
    floor      lightgbm for clv: the least money that the trees start from, currency
    """

    target: Target
    kind: Kind
    days: int
    learned_days: int
    active_days: int
    lifetime: Lifetime | None = None
    weights: tuple[float, ...] = ()
    booster: EffectModel | None = None
    slope: float = 1.0
    intercept: float = 0.0
    floor: float = 0.0

    def predict(self, X: Float32Array, schema: Schema, threads: int = 0) -> FloatArray:
        """(n,) probability, or money in currency, of the next `days`; NaN where the target does
        not speak of the customer (churn: no order in `active_days`)."""
        history = History.of(X, schema)
        if self.kind == "lightgbm":
            assert self.booster is not None
            raw = self.start(history, self.days) + self.booster.predict(X, threads)[:, 0]
            out = self.finish(raw)
        elif self.kind == "naive":
            out = self._naive(history)
        else:
            assert self.lifetime is not None
            out = self.lifetime.predict(self.target, self.days, history)
        asked: FloatArray = np.where(history.asked(self.target, self.active_days), out, np.nan)
        return asked

    def start(self, history: History, days: int) -> FloatArray:
        """(n,) where the trees start: the lifetime model's log-odds, or the log of its money."""
        assert self.lifetime is not None
        p = self.lifetime.predict(self.target, days, history)
        if self.target == "clv":
            money: FloatArray = np.log(np.maximum(p, self.floor))
            return money
        inside = np.clip(p, _EPS, 1 - _EPS)
        odds: FloatArray = np.log(inside / (1 - inside))
        return odds

    def finish(self, raw: FloatArray) -> FloatArray:
        """(n,) from the trees' scale to probabilities or money."""
        moved = self.intercept + self.slope * raw
        if self.target == "clv":
            out: FloatArray = np.exp(moved)
            return out
        return sigmoid(moved)

    def _naive(self, history: History) -> FloatArray:
        weights = np.asarray(self.weights)
        if self.target == "clv":
            spend: FloatArray = history.spend_design() @ weights
            return spend * self.days / self.learned_days
        p = sigmoid(history.logistic_design() @ weights[:-1] + weights[-1])
        # From the window that was learned to the one asked for, at a constant rate.
        longer = self.days / self.learned_days
        out: FloatArray = p**longer if self.target == "churn" else 1 - (1 - p) ** longer
        return out

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The manifest's part and the files."""
        booster: dict[str, Any] | None = None
        files: dict[str, bytes] = {}
        if self.booster is not None:
            booster, files = self.booster.to_files(self.target)
        plain = {k: v for k, v in vars(self).items() if k not in ("lifetime", "weights", "booster")}
        lifetime = None if self.lifetime is None else self.lifetime.to_json()
        return {
            **plain,
            "lifetime": lifetime,
            "weights": list(self.weights),
            "booster": booster,
        }, files

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> ValueModel:
        rest = dict(spec)
        booster, lifetime = rest.pop("booster"), rest.pop("lifetime")
        return cls(
            **{**rest, "weights": tuple(rest["weights"])},
            lifetime=None if lifetime is None else Lifetime.from_json(lifetime),
            booster=None if booster is None else EffectModel.from_files(booster, files),
        )


@dataclass(frozen=True)
class ValueModels:
    """The value models of a bundle, by target, with the schema of the matrix that they read.

    `revenue`: clv is revenue, since no margin is known. `golden`: rows that are kept with their
    predictions.
    """

    schema: Schema
    models: Mapping[str, ValueModel]
    revenue: bool = False
    golden: Float32Array = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))

    def predict(self, X: Float32Array, threads: int = 0) -> dict[str, Float32Array]:
        """(n,) float32 per target, of X (n, d) as `schema.encode` makes it."""
        if X.ndim != 2 or X.shape[1] != len(self.schema.names):
            raise BundleError(
                f"expected {len(self.schema.names)} features of customer value, found an array "
                f"of shape {X.shape}"
            )
        return {
            name: model.predict(X, self.schema, threads).astype(np.float32)
            for name, model in self.models.items()
        }

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The manifest's part, golden rows and their predictions included, and the files."""
        specs: dict[str, Any] = {}
        files: dict[str, bytes] = {}
        for name, model in self.models.items():
            specs[name], made = model.to_files()
            files |= made
        golden = self.golden.reshape(-1, len(self.schema.names))
        reloaded = {k: ValueModel.from_files(spec, files) for k, spec in specs.items()}
        predicted = ValueModels(self.schema, reloaded).predict(golden, threads=1)
        return {
            "schema": self.schema.to_json(),
            "models": specs,
            "revenue": self.revenue,
            "golden": {
                "X": _listed(golden),
                "predicted": {name: _listed(values) for name, values in predicted.items()},
            },
        }, files

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> ValueModels:
        """Raises BundleError when the golden rows are not reproduced (but for rounding, since
        special functions differ in their last bits between machines)."""
        schema = Schema.from_json(spec["schema"])
        models = {k: ValueModel.from_files(v, files) for k, v in spec["models"].items()}
        golden = _array(spec["golden"]["X"]).reshape(-1, len(schema.names))
        loaded = cls(schema, models, bool(spec["revenue"]), golden)
        for name, values in loaded.predict(golden, threads=1).items():
            kept = _array(spec["golden"]["predicted"][name])
            if kept.shape != values.shape or not np.allclose(
                values, kept, rtol=GOLDEN_TOLERANCE, atol=_EPS, equal_nan=True
            ):
                raise BundleError(f"the golden rows are not reproduced: {name} differs")
        return loaded


def _listed(values: Float32Array) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in np.ravel(values)]


def _array(values: list[float | None]) -> Float32Array:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float32)
