"""The peers of the decisions: their features by hand, their arms in order, the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.decisions import (
    PEERS,
    Experiment,
    at_truth,
    decisions_table,
    one_hot_texts,
    peer_costs,
    peer_effects,
    rfm,
)
from benchmarks.report import WIDTH, text_table
from benchmarks.truth import Line, Truth
from features.config import load_config
from features.sources import open_source


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    config = load_config("configs/demo-small.yaml", ["source.customers=100"])
    monkeypatch.chdir(tmp_path)
    return open_source(config).tables()


def test_rfm_features_use_only_lines_before_the_assignment(shop: Any) -> None:
    lines, exposures = (
        shop.con.raw_sql(shop.con.compile(table)).df()
        for table in (shop.transactions, shop.exposures)
    )
    exposures = exposures.sort_values("exposure_id", ascending=False)
    found = rfm(shop, exposures["exposure_id"])
    assert found.shape == (len(exposures), 14)
    for e in exposures.itertuples():
        past = lines[(lines.customer_id == e.customer_id) & (lines.transacted_at < e.assigned_at)]
        row = found.loc[e.exposure_id]
        assert row["spend_total"] == pytest.approx(past.amount.sum())
        assert row["lines_total"] == len(past)
        for days in (30, 90, 180, 365):
            recent = past[past.transacted_at >= e.assigned_at - pd.Timedelta(days=days)]
            assert row[f"orders_{days}"] == recent.order_id.nunique()
            assert row[f"spend_{days}"] == pytest.approx(recent.amount.sum())
        if len(past):
            age = (e.assigned_at - past.transacted_at).dt.total_seconds() / 86_400
            assert row["recency_days"] == pytest.approx(age.min())
            assert row["tenure_days"] == pytest.approx(age.max())
            mean = past.amount.sum() / past.order_id.nunique()
            assert row["order_value_mean"] == pytest.approx(mean)
        else:
            assert np.isnan(row[["recency_days", "tenure_days", "order_value_mean"]]).all()


def experiment(rng: np.random.Generator, n: int = 4000) -> tuple[np.ndarray[Any, Any], Experiment]:
    """Eleven arms, arm k worth k, so that an order of arms by name (10 before 2) would show."""
    arms = 11
    arm = rng.integers(0, arms + 1, n)
    X = rng.normal(size=(n, 2))
    reward = 10.0 * arm + X[:, 0] + rng.normal(0, 0.1, n)
    share = np.full((n, arms + 1), 1 / (arms + 1))
    names = tuple(f"c{k}" for k in range(1, arms + 1))
    cost = np.where(arm > 0, arm * 0.5, 0.0)
    test = np.arange(n) % 4 == 0
    return X, Experiment(names, arm, reward, cost, test, share, np.full(arms, 3.0))


@pytest.mark.parametrize("peer", PEERS)
def test_peers_find_plain_effects_with_the_arms_in_order(peer: str) -> None:
    X, world = experiment(np.random.default_rng(3))
    effect, cost, seconds = peer_effects(peer, X, world)
    assert effect.shape == cost.shape == (1000, 11)
    np.testing.assert_allclose(effect.mean(axis=0), 10.0 * np.arange(1, 12), rtol=0.05)
    assert seconds > 0


def test_costs_of_peers_are_at_least_the_contact_cost() -> None:
    X, world = experiment(np.random.default_rng(3))
    cost = peer_costs(X, world)
    np.testing.assert_allclose(cost.mean(axis=0), np.maximum(0.5 * np.arange(1, 12), 3.0))


def test_texts_become_a_column_per_value() -> None:
    frame = pd.DataFrame({"x_a": [1.0, 2.0, np.nan], "x_kind": [0.0, 1.0, np.nan]})
    wide = one_hot_texts(frame, ["kind"])
    np.testing.assert_array_equal(wide, [[1, 1, 0, 0], [2, 0, 1, 0], [np.nan, 0, 0, 1]])


def test_a_policy_is_worth_its_true_effects() -> None:
    truth = Truth(np.array([[1.0, 2.0], [3.0, -4.0]]), np.array([[0.5, 1.0], [1.5, 2.0]]))
    line = at_truth("p", np.array([[0.0, 1.0], [0.5, 0.5]]), truth)
    assert (line.value, line.cost) == (pytest.approx(0.75), pytest.approx(1.375))


def test_the_table_says_whether_the_aims_hold() -> None:
    config = load_config("configs/demo-small.yaml")
    values = {"oracle": 2.0, "attainable": 1.0, "attainable, RFM": 0.9, "served:x": 0.8, "x": 0.8}
    known = {name: Line(name, value, 0.1, None) for name, value in values.items()}
    peers = [
        (Line("causalml S, RFM", 0.7, 0.1, None), 1.0),
        (Line("causalml S, core", 2, 1, None), 2.0),
    ]
    text = decisions_table(config, {"served": "served:x", "budget_per_row": 0.1}, known, peers, 9)
    assert "SIMULATED" in text
    assert "ours at least 75% of the attainable: 80%, holds." in text
    assert (
        "the best peer on RFM features (causalml S) at most 65% of the attainable: 70%, DOES NOT"
        in text
    )
    assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_a_table_that_is_too_wide_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 120 columns"):
        text_table("t", ("a", "b"), [["x" * 100, "y" * 30]])
