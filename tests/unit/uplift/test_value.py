"""Value models: by hand, as identities, and saved and loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from tests.unit.uplift.small_bundle import make_bundle
from uplift.boosting import Settings
from uplift.bundle import MANIFEST, load_bundle
from uplift.data import Float32Array, FloatArray, Schema
from uplift.effects import EffectModel
from uplift.errors import BundleError, DesignError
from uplift.lifetime import BgNbd, GammaGamma
from uplift.value import INPUTS, History, Lifetime, Target, ValueModel, ValueModels
from uplift.value_fit import LOSSES, boost, fit_lifetime, fit_lightgbm, fit_naive

SCHEMA = Schema(("extra", *INPUTS), {})
ORDERS = BgNbd(0.25, 30.0, 0.8, 2.4)
LIFETIME = Lifetime(ORDERS, GammaGamma(6.0, 4.0, 15.0), 0.4)
SETTINGS = Settings(rounds=60, learning_rate=0.1, num_leaves=6, min_child_samples=40, threads=1)
# extra, order days, tenure, recency, spend of 90 and 365 days, value after the first order
ROWS = np.array(
    [
        [0, 3, 100, 20, 10, 60, 25],
        [0, 1, 50, 50, 5, 5, np.nan],
        [0, 0, np.nan, np.nan, 0, 0, np.nan],
        [0, 2, 300, 250, -4, 40, 12],
    ],
    dtype=np.float32,
)


def model(target: Target, **more: object) -> ValueModel:
    plain: dict[str, object] = {"kind": "lifetime", "lifetime": LIFETIME}
    return ValueModel(target, **{"days": 90, "learned_days": 90, "active_days": 180} | plain | more)  # type: ignore[arg-type]


def random_rows(n: int, seed: int) -> Float32Array:
    rng = np.random.default_rng(seed)
    tenure = rng.integers(30, 300, n)
    orders = rng.integers(1, 8, n)
    recency = np.where(orders > 1, rng.integers(0, 30, n), tenure)
    spend = rng.gamma(2, 20, (n, 3))
    columns = [rng.normal(size=n), orders, tenure, recency, *spend.T]
    return np.column_stack(columns).astype(np.float32)


def test_histories_by_hand() -> None:
    history = History.of(ROWS, SCHEMA)
    assert history.known.tolist() == [True, True, False, True]
    x, t_x, age = history.repeats
    assert x.tolist() == [2, 0, 0, 1]
    assert t_x.tolist() == [80, 0, 0, 50]
    assert age.tolist() == [100, 50, 0, 300]
    assert history.asked("repurchase", 180).tolist() == [True, True, False, True]
    assert history.asked("churn", 180).tolist() == [True, True, False, False]
    assert history.spend_design()[3].tolist() == [0, 40]


def test_lifetime_predictions_are_the_formulas() -> None:
    again = model("repurchase").predict(ROWS, SCHEMA)
    one = [np.array([v]) for v in (2.0, 80.0, 100.0)]
    assert again[0] == pytest.approx(ORDERS.p_order(90, *one)[0], rel=1e-12)
    assert np.isnan(again[2])
    gone = model("churn").predict(ROWS, SCHEMA)
    assert gone[:2] == pytest.approx(1 - again[:2], rel=1e-12)
    assert np.isnan(gone[2:]).all()
    money = model("clv").predict(ROWS, SCHEMA)
    value = 6 * (15 + 2 * 25) / (6 * 2 + 4 - 1)
    assert money[0] == pytest.approx(ORDERS.expected_orders(90, *one)[0] * value * 0.4, rel=1e-12)


def test_naive_predictions_by_hand() -> None:
    money = model("clv", kind="naive", weights=(0.5, 0.25), learned_days=45)
    assert money.predict(ROWS, SCHEMA)[[0, 3]].tolist() == [2 * (5 + 15), 2 * 10]
    # A constant chance of one half in 45 days is one of three quarters in 90.
    flat = {"kind": "naive", "weights": (0.0, 0.0, 0.0, 0.0), "learned_days": 45}
    assert model("repurchase", **flat).predict(ROWS, SCHEMA)[0] == pytest.approx(0.75)
    assert model("churn", **flat).predict(ROWS, SCHEMA)[0] == pytest.approx(0.25)


@pytest.mark.parametrize("target", ["repurchase", "churn", "clv"])
def test_trees_without_a_tree_are_the_lifetime_model(target: Target) -> None:
    bare = model(target, kind="lightgbm", booster=EffectModel(np.zeros(1)))
    assert bare.predict(ROWS, SCHEMA) == pytest.approx(
        model(target).predict(ROWS, SCHEMA), rel=1e-9, nan_ok=True
    )


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_losses_are_those_of_lightgbm(loss: str) -> None:
    """Else no tree at all could not be compared with some."""
    rng = np.random.default_rng(1)
    X, start = rng.normal(size=(300, 2)).astype(np.float32), rng.normal(size=300)
    size = np.ones(300) if loss == "binary" else rng.gamma(2, 3, 300)
    y: FloatArray = (rng.random(300) < 0.4) * size
    history: dict[str, dict[str, list[float]]] = {}
    params = SETTINGS.params(loss) | {"learning_rate": 1e-9}
    if loss == "tweedie":
        params["tweedie_variance_power"] = 1.5
    data = lgb.Dataset(X, y, init_score=start, free_raw_data=False, params={"verbosity": -1})
    held = data.create_valid(X, y, init_score=start, params={"verbosity": -1})
    lgb.train(
        params, data, 1, valid_sets=[held], valid_names=["v"],
        callbacks=[lgb.record_evaluation(history)],
    )  # fmt: skip
    (curve,) = history["v"].values()
    assert LOSSES[loss](start, y).mean() == pytest.approx(curve[0], rel=1e-6)


def test_trees_find_what_the_lifetime_model_lacks() -> None:
    X = random_rows(6000, 2)
    base = model("repurchase", kind="lightgbm")
    start = base.start(History.of(X, SCHEMA), 90)
    truth = 1 / (1 + np.exp(-(start + 2 * (X[:, 0] > 0) - 1)))
    rng = np.random.default_rng(3)
    y = (rng.random(len(X)) < truth).astype(np.float64)
    fold = rng.integers(0, 3, len(X))
    fitted = fit_lightgbm(base, X, SCHEMA, y, fold, SETTINGS)
    plain = model("repurchase").predict(X, SCHEMA)
    error = np.abs(fitted.model.predict(X, SCHEMA) - truth).mean()
    assert error < 0.3 * np.abs(plain - truth).mean()
    # Out of fold, the rows are predicted as well as by the model of all rows, but for noise.
    assert np.abs(fitted.oof - truth).mean() < 1.6 * error


def test_trees_leave_alone_what_is_right_already() -> None:
    X = random_rows(6000, 4)
    base = model("repurchase", kind="lightgbm")
    p = model("repurchase").predict(X, SCHEMA)
    rng = np.random.default_rng(5)
    y = (rng.random(len(X)) < p).astype(np.float64)
    fitted = fit_lightgbm(base, X, SCHEMA, y, rng.integers(0, 3, len(X)), SETTINGS)
    assert fitted.rounds <= 5
    assert np.abs(fitted.oof - p).mean() < 0.02


def test_money_is_right_in_total() -> None:
    X = random_rows(4000, 6)
    rng = np.random.default_rng(7)
    expected = model("clv").predict(X, SCHEMA) * np.exp(0.8 * (X[:, 0] > 0))
    y = expected * rng.gamma(0.3, 1 / 0.3, len(X)) - 0.1
    fold = rng.integers(0, 3, len(X))
    fitted = fit_lightgbm(model("clv", kind="lightgbm"), X, SCHEMA, y, fold, SETTINGS)
    assert fitted.oof.sum() == pytest.approx(y.sum(), rel=1e-9)
    assert fitted.rounds > 0
    ratio = np.log(fitted.model.predict(X, SCHEMA) / model("clv").predict(X, SCHEMA))
    gap = ratio[X[:, 0] > 0].mean() - ratio[X[:, 0] <= 0].mean()
    assert gap == pytest.approx(0.8, abs=0.25)
    with pytest.raises(DesignError, match="come to nothing"):
        fit_lightgbm(model("clv", kind="lightgbm"), X, SCHEMA, 0 * y, fold, SETTINGS)


def test_no_tree_out_of_fold_means_no_tree() -> None:
    X = random_rows(400, 8)
    start = np.zeros(400)
    y = np.tile([0.0, 1.0], 200)  # the features say nothing of it
    fold = np.repeat(np.arange(2), 200)
    settings = replace(SETTINGS, learning_rate=0.5, min_child_samples=5)
    terms, raw, rounds = boost(X, SCHEMA, start, y, fold, "binary", settings)
    assert rounds == 0
    assert terms.terms == ()
    assert (raw == 0).all()


def test_naive_fits_find_their_weights() -> None:
    X = random_rows(8000, 9)
    history = History.of(X, SCHEMA)
    weights = fit_naive("clv", history, history.spend_design() @ np.array([0.3, 0.1]))
    assert weights == pytest.approx((0.3, 0.1), rel=1e-6)
    design: FloatArray = history.logistic_design()
    p = 1 / (1 + np.exp(-(design @ [-0.5, 1.0, 0.2] - 1)))
    y = (np.random.default_rng(1).random(len(p)) < p).astype(np.float64)
    found = fit_naive("repurchase", history, y)
    predicted = 1 / (1 + np.exp(-(design @ found[:3] + found[3])))
    assert np.abs(predicted - p).mean() < 0.02
    assert fit_lifetime("repurchase", history).money is None


def test_saved_loaded_and_refused_when_altered(tmp_path: Path) -> None:
    X = random_rows(1500, 10)
    rng = np.random.default_rng(11)
    y = (rng.random(len(X)) < 0.3 + 0.3 * (X[:, 0] > 0)).astype(np.float64)
    fold = rng.integers(0, 2, len(X))
    trees = fit_lightgbm(model("churn", kind="lightgbm"), X, SCHEMA, y, fold, SETTINGS).model
    models: dict[str, ValueModel] = {
        "repurchase": model("repurchase", kind="naive", weights=(0.1, 0.2, 0.3, -1.0)),
        "churn": trees,
        "clv": model("clv"),
    }
    golden = np.vstack([ROWS, X[:5]])
    bundle = replace(make_bundle()[0], values=ValueModels(SCHEMA, models, True, golden))
    saved = bundle.save(tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle", saved.sha256).values
    assert loaded is not None
    assert loaded.revenue
    assert bundle.values is not None
    for name, values in bundle.values.predict(X, threads=1).items():
        again = loaded.predict(X, threads=1)[name]
        assert np.array_equal(again, values, equal_nan=True)
    manifest = json.loads((tmp_path / "bundle" / MANIFEST).read_text())
    manifest["models"]["values"]["models"]["clv"]["lifetime"]["orders"]["r"] *= 1.01
    (tmp_path / "bundle" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="golden rows are not reproduced: clv"):
        load_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="features of customer value"):
        loaded.predict(X[:, :3])
