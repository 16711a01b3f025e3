"""A coupon that the model has not seen, over HTTP: drawn, never chosen, stored, paid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from serving.explain import explain
from serving.export import export_log
from serving.population import Population, from_source
from serving.score import write_decisions
from serving.scorer import Scorer
from serving.snapshot import ensure_snapshot
from tests.contracts.test_reasons import body, put
from tests.unit.serving import jobs
from tests.unit.serving.answering import JSON, asked, post, serving
from tests.unit.serving.small_shop import AS_OF, OFFERS, SALT, Shop, make_config, shared_shop

NEW: dict[str, Any] = {
    "coupon_id": "new7", "kind": "fixed_off", "params": {"off": 7.0}, "contact_cost": 0.5,
    "funded_share": 0.5,
}  # fmt: skip
POLICY = {"budget": 300, "holdout_share": 0.1, "exploration_share": 0.4}


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


def scorer_of(shop: Shop, folder: Path, **new: Any) -> tuple[Scorer, Population]:
    config = make_config(shop.root / "tables", policy=POLICY, offers=[*OFFERS, NEW | new])
    people = from_source(config, shop.model.bundle, AS_OF, threads=1)
    snapshot = ensure_snapshot(
        config, shop.model, SALT, root=folder / "data", build=lambda _: people
    )
    return Scorer(shop.model, snapshot, config, SALT, clock=lambda: AS_OF), people


def test_the_server_draws_it_as_the_file_does(shop: Shop, tmp_path: Path) -> None:
    buyers = {"feature": "orders_total", "op": ">=", "value": 8}
    scorer, people = scorer_of(shop, tmp_path, eligible=buyers)
    ids = people.customer_id.astype(str).tolist()
    decisions = scorer.answer(ids, request_id="r").decisions
    file = write_decisions(people, shop.model, scorer.config, SALT, tmp_path / "d.parquet")
    frame = pd.read_parquet(file.path)
    coupons = np.array([d.coupon_id or "" for d in decisions])
    new = coupons == "new7"
    assert new.sum() > 10
    orders = pd.read_csv(shop.root / "tables/transactions.csv").groupby("customer_id")["order_id"]
    assert (orders.nunique().reindex(np.array(ids)[new]) >= 8).all()
    assert new.tolist() == (frame["coupon_id"] == "new7").tolist()
    # Where they differ, both are worth the same at the price: the marginal customers.
    filed = frame["coupon_id"].fillna("").to_numpy()
    scores, price = people.scores, scorer.snapshot.shadow_price
    net = np.hstack([np.zeros((len(ids), 1)), scores.reward - price * scores.cost])
    place = {"": 0, "c5": 1, "p10": 2}
    for row in np.flatnonzero(coupons != filed):
        assert net[row, place[coupons[row]]] == pytest.approx(net[row, place[filed[row]]], abs=1e-5)
    assert (coupons == filed).mean() > 0.95
    for d, row in zip(decisions, frame.itertuples(), strict=True):
        if d.coupon_id != "new7":
            continue
        assert (d.is_exploration, d.reason) == (True, "exploration")
        assert (d.uplift, d.expected_incremental_profit_micros) == (None, 0)
        assert d.expected_cost_micros == round(row.expected_cost * 1_000_000)
        assert d.assignment_prob == pytest.approx(row.assignment_prob, abs=1e-6)
    assert "offers_untrained" in scorer.degraded
    assert scorer.current().arms == ["control", "c5", "p10"]
    # What is told of a customer is of coupons whose effect is known.
    some = ids[int(np.flatnonzero(new)[0])]
    customer = scorer.customer(some)
    assert customer is not None
    assert set(customer.uplift) == {"c5", "p10"}
    whys = explain(scorer, [some, ids[int(np.flatnonzero(coupons == "p10")[0])]])
    assert [one.arm for one in whys] == [None, "p10"]


def test_without_exploration_or_as_another_campaign_nobody_gets_it(
    shop: Shop, tmp_path: Path
) -> None:
    scorer, people = scorer_of(shop, tmp_path)
    ids = people.customer_id.astype(str).tolist()
    with serving(scorer, tmp_path) as client:
        worst = {"cap_micros": 10**9, "mode": "worst_case"}
        put(client, "summer", body(exploration_bps=10_000, budget=worst))
        found = post(client, asked(*ids, campaign="summer")).json()["decisions"]
        assert {d["coupon_id"] for d in found} == {None, "c5", "p10"}
        content = json.dumps(body(coupons=["c5", "new7"])).encode()
        headers = {**JSON, "if-none-match": "*"}
        refused = client.request("PUT", "/v1/campaigns/other", content=content, headers=headers)
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "unknown_coupon")
        shown = client.get("/v1/campaigns/spring").json()
        assert "new7" in json.dumps(shown)


def test_it_is_stored_stands_is_paid_for_and_exported(shop: Shop, tmp_path: Path) -> None:
    scorer, people = scorer_of(shop, tmp_path, stock=90)
    ids = people.customer_id.astype(str).tolist()
    with serving(scorer, tmp_path) as client:
        first = post(client, asked(*ids)).json()["decisions"]
        offers = {d["customer_id"]: d for d in first if d["action"] == "offer"}
        mine = [d for d in offers.values() if d["coupon_id"] == "new7"]
        assert 0 < len(mine) <= 90
        again = post(client, asked(*ids)).json()["decisions"]
        assert [d["coupon_id"] for d in again] == [d["coupon_id"] for d in first]
        assert all(d["sticky_hit"] for d in again if d["customer_id"] in offers)
        spent = client.get("/v1/campaigns/spring").json()["budget_state"]["committed_micros"]
        assert spent == sum(d["expected_cost_micros"] for d in offers.values()) <= 300_000_000
        told = {
            "event_id": "e1", "type": "redeemed", "decision_id": mine[0]["decision_id"],
            "occurred_at": pd.Timestamp.now(tz="UTC").isoformat(), "cost_micros": 4_000_000,
        }  # fmt: skip
        assert post(client, {"events": [told]}, "/v1/events").json()["rejected"] == 0
        used = post(client, asked(mine[0]["customer_id"])).json()["decisions"][0]
        assert used["reason"] == "already_converted"
        written = export_log(client.service.log, tmp_path / "out")
    rows = next(pq.read_table(p) for p in written if p.name.startswith("exposures")).to_pandas()
    logged = rows[rows["arm"] == "new7"]
    assert set(logged["customer_id"]) == {d["customer_id"] for d in mine}
    for probs in logged["assignment_probs"]:
        named = dict(json.loads(probs) if isinstance(probs, str) else probs)
        assert named["new7"] > 0
        assert sum(p for p in named.values() if p) == pytest.approx(1.0)


def test_an_audience_job_draws_it_too(shop: Shop, tmp_path: Path) -> None:
    scorer, _ = scorer_of(shop, tmp_path)
    with serving(scorer, tmp_path) as client:
        job = jobs.ask(client).json()["job_id"]
        assert jobs.worker(client, tmp_path).run_one()
        assert client.get(f"/v1/jobs/{job}").json()["state"] == "succeeded"
        written = export_log(client.service.log, tmp_path / "out")
    rows = next(pq.read_table(p) for p in written if p.name.startswith("exposures")).to_pandas()
    assert (rows["arm"] == "new7").sum() > 10
