"""Customer value in the snapshot and in a customer's profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.build import build_features
from features.churn import read_churn
from features.frozen import FrozenValues, fit_frozen
from features.segment_table import segment_table
from features.sources import open_source
from features.spine import all_customers
from serving.population import from_source
from serving.score import write_decisions
from serving.scorer import MICROS, Scorer
from serving.snapshot import ensure_snapshot, open_snapshot, snapshots_folder
from tests.unit.serving.small_shop import (
    AS_OF,
    FEATURES,
    NO_ORDERS,
    SALT,
    keep_bundle,
    make_bundle,
    make_config,
    write_tables,
)
from uplift.bundle import ScoringBundle
from uplift.data import Schema
from uplift.effects import EffectModel
from uplift.lifetime import BgNbd, GammaGamma
from uplift.value import INPUTS, Lifetime, Target, ValueModel, ValueModels

ORDERS = BgNbd(2.0, 60.0, 0.8, 2.4)
LIFETIME = Lifetime(ORDERS, GammaGamma(6.0, 4.0, 15.0), 0.4)


def value_model(target: Target, days: int) -> ValueModel:
    return ValueModel(target, "lifetime", days, days, 60, lifetime=LIFETIME)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    root = tmp_path_factory.mktemp("values")
    write_tables(root / "tables")
    config = make_config(root / "tables")
    bundle = replace(make_bundle(config), values=models())
    model = keep_bundle(bundle, root / "data", config.name)
    people = from_source(config, model.bundle, AS_OF, threads=1)
    snapshot = ensure_snapshot(config, model, SALT, root=root / "data", build=lambda _: people)
    return Scorer(model, snapshot, config, SALT, clock=lambda: AS_OF)


def models() -> ValueModels:
    return ValueModels(
        Schema(INPUTS, {}),
        {
            "repurchase": value_model("repurchase", 90),
            "churn": value_model("churn", 60),
            "clv": value_model("clv", 365),
        },
    )


def test_a_profile_holds_the_values_of_the_customers_own_history(scorer: Scorer) -> None:
    config = scorer.config
    tables = open_source(config).tables()
    frame = build_features(
        tables,
        all_customers(tables, AS_OF, config).query("customer_id == 'c-010'"),
        INPUTS,
        config,
        fit_frozen(tables, AS_OF, config),
    ).frame.iloc[0]
    x = np.array([frame["order_days_total"] - 1])
    t_x = np.array([frame["tenure_days"] - frame["recency_days"]])
    age = np.array([frame["tenure_days"]])
    value = np.array([frame["clv_order_day_value_mean"]])
    assert x[0] > 1
    found = scorer.customer("c-010")
    assert found is not None
    again = ORDERS.p_order(90, x, t_x, age)[0]
    assert found.scores.repurchase_probability == pytest.approx(again, rel=1e-5)
    money = ORDERS.expected_orders(365, x, t_x, age) * 0.4
    money = money * GammaGamma(6.0, 4.0, 15.0).expected_value(x, value)
    assert found.scores.clv_micros == pytest.approx(money[0] * MICROS, rel=1e-5)
    assert found.scores.clv_365d_micros == found.scores.clv_micros
    assert found.scores.clv_is == "contribution"
    assert found.scores.value_days == {"repurchase": 90, "churn": 60, "clv": 365}
    churn = found.scores.churn_probability
    if frame["recency_days"] <= 60:
        assert churn == pytest.approx(1 - ORDERS.p_order(60, x, t_x, age)[0], rel=1e-5)
    else:
        assert churn is None


def test_no_value_is_said_of_a_customer_without_orders(scorer: Scorer) -> None:
    found = scorer.customer(NO_ORDERS)
    assert found is not None
    assert found.scores.repurchase_probability is None
    assert found.scores.churn_probability is None
    assert found.scores.clv_micros is None
    assert found.scores.response_propensity is not None


def test_the_snapshot_holds_what_the_models_say(scorer: Scorer) -> None:
    held = scorer.snapshot.population.values
    config, model = scorer.config, scorer.model
    people = from_source(config, model.bundle, AS_OF, threads=1)
    assert set(held) == {"repurchase", "churn", "clv"}
    for name, values in held.items():
        assert np.array_equal(values, people.values[name], equal_nan=True)
    assert np.isnan(held["churn"]).sum() > np.isnan(held["repurchase"]).sum() > 0
    root = Path(config.source.path or "").parent / "data"
    again = open_snapshot(snapshots_folder(config, root) / scorer.snapshot.snapshot_id, model)
    assert np.array_equal(again.population.values["clv"], held["clv"], equal_nan=True)


def test_the_served_probability_of_churn_warns(scorer: Scorer, tmp_path: Path) -> None:
    config, people = scorer.config, scorer.snapshot.population
    churn = people.values["churn"]
    likely = np.nan_to_num(churn) >= 0.6
    assert 0 < likely.sum() < len(people)
    tables = open_source(config).tables()
    frozen = FrozenValues.from_json(json.dumps(dict(scorer.model.bundle.frozen)))
    alone, _ = segment_table(tables, all_customers(tables, AS_OF, config), config, frozen)
    alone = alone.set_index("customer_id").loc[people.customer_id.astype(str)]
    declining = alone["churn_warning"].to_numpy()
    assert (likely & ~declining).any()
    names = [str(text).split(",") for text in people.labels.texts()]
    warned = np.array(["churn_warning" in own for own in names])
    assert np.array_equal(warned, likely | declining)
    for own, before in zip(names, alone["labels"], strict=True):
        assert set(own) ^ set(before.split(",")) <= {"churn_warning", ""}
    row = int(np.flatnonzero(likely)[0])
    found = scorer.customer(people.customer_id[row].decode())
    assert found is not None
    assert found.labels == names[row]
    assert found.scores.churn_probability == pytest.approx(float(churn[row]))
    out = tmp_path / "decisions.parquet"
    write_decisions(people, scorer.model, config, SALT, out)
    file = pd.read_parquet(out)
    assert file["labels"].str.contains("churn_warning").to_numpy().tolist() == warned.tolist()
    again = read_churn(out, file["customer_id"], AS_OF)
    assert np.array_equal(again, churn, equal_nan=True)


def test_a_bundle_without_arms_answers(scorer: Scorer, tmp_path: Path) -> None:
    """A source without exposures gives values and nothing to send."""
    config = scorer.config
    nothing = EffectModel(np.zeros(0))
    made = make_bundle(config)
    bare = replace(
        made,
        offers=(),
        offered=(),
        effects=nothing,
        costs=nothing,
        cost_calibration=np.zeros((0, 3)),
        response=None,
        values=models(),
    )
    assert isinstance(bare, ScoringBundle)
    model = keep_bundle(bare, tmp_path, config.name)
    people = from_source(config, model.bundle, AS_OF, threads=1)
    snapshot = ensure_snapshot(config, model, SALT, root=tmp_path, build=lambda _: people)
    server = Scorer(model, snapshot, config, SALT, clock=lambda: AS_OF)
    answer = server.answer(["c-011", "c-012"], request_id="r")
    assert [d.action for d in answer.decisions] == ["none", "none"]
    assert [d.reason for d in answer.decisions] == ["coupon_expired", "coupon_expired"]
    assert [d.uplift for d in answer.decisions] == [None, None]
    found = server.customer("c-010")
    assert found is not None
    assert found.uplift == {}
    assert found.scores.response_propensity is None
    before = scorer.customer("c-010")
    assert before is not None
    assert found.scores.clv_micros == before.scores.clv_micros
    assert list(model.bundle.features["names"]) == FEATURES
