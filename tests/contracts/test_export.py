"""What the server decided comes back as exposures that training reads as they were drawn."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import update

from features.sources import open_source
from serving.desk import Desk, Group
from serving.export import export_log
from serving.log.schema import campaign_budget
from serving.scorer import utc_now
from tests.unit.serving.answering import Client, asked, post, serving
from tests.unit.serving.small_shop import OFFERS, Shop, make_config, shared_shop
from training.dataset import build_dataset
from uplift.offers import parse_offers
from uplift.policy import STICKY

IDS = [f"c-{i:03d}" for i in range(300)]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


def test_the_log_trains_the_next_model(shop: Shop, tmp_path: Path) -> None:
    with serving(shop.scorer(), tmp_path) as client:
        decided = post(client, asked(*IDS)).json()["decisions"]
        post(client, asked(*IDS))  # what stands is one exposure
        offers = [d for d in decided if d["action"] == "offer"]
        events = [
            {"event_id": f"e-{i}", "type": kind, "decision_id": d["decision_id"],
             "occurred_at": pd.Timestamp.now(tz="UTC").isoformat()}
            | ({"cost_micros": 1_250_000} if kind == "redeemed" else {})
            for i, (d, kind) in enumerate(
                [(d, "sent") for d in offers] + [(d, "redeemed") for d in offers[:5]]
            )
        ]  # fmt: skip
        assert post(client, {"events": events}, "/v1/events").json()["rejected"] == 0
        written = export_log(client.service.log, tmp_path / "out")
    sticky = {d["customer_id"]: d for d in decided if d["decision_id"] and d["assignment_prob"] < 1}
    assert sorted(written.values()) == sorted([len(sticky), len(events)])
    tables = tmp_path / "tables"
    shutil.copytree(shop.root / "tables", tables)
    (tables / "exposures.csv").unlink()
    (tables / "events.csv").unlink()
    for path in written:
        shutil.copy(path, tables)
    config = make_config(
        tables,
        source={"kind": "files", "path": str(tables), "complete_until": "2026-03-01T00:00:00Z"},
    )
    opened = open_source(config).tables()
    assert opened.exposures is not None
    exposures = opened.exposures.to_pyarrow().to_pandas().set_index("customer_id")
    assert set(exposures.index) == set(sticky)
    for customer, row in exposures.iterrows():
        d = sticky[str(customer)]
        assert (row["arm"], row["decision_id"]) == (d["arm"], d["decision_id"])
        assert row["assignment_prob"] == pytest.approx(d["assignment_prob"], abs=1e-6)
        assert (row["holdout_kind"] == "campaign") == d["is_holdout"]
    redeemed = exposures[exposures["decision_id"].isin([d["decision_id"] for d in offers[:5]])]
    assert redeemed["cost"].tolist() == [1.25] * 5
    # Training learns from those who were drawn, with the probabilities of their draw.
    dataset = build_dataset(opened, config, parse_offers(OFFERS))
    drawn = exposures[exposures["holdout_kind"] == "none"]
    assert dataset.counts["held_out"] == len(exposures) - len(drawn) > 10
    training = dataset.training
    assert sorted(training.customer) == sorted(drawn.index)
    logged = [json.loads(drawn.loc[c, "assignment_probs"]) for c in training.customer]
    wanted = [[probs.get(arm, 0.0) for arm in ("control", "c5", "p10")] for probs in logged]
    np.testing.assert_allclose(training.assignment, wanted, rtol=0, atol=0)
    np.testing.assert_allclose(training.assignment.sum(axis=1), 1.0, atol=1e-12)
    assert (training.assignment[np.arange(len(drawn)), training.arm] > 0).all()


def test_who_was_drawn_counts_whether_or_not_the_money_sufficed(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = Desk._evaluate

    def too_late(desk: Desk, group: Group) -> None:
        """Decide by the budget as it was before others spent from it."""
        known = group.budget
        assert known is not None
        group.budget = replace(known, committed=0)
        evaluated(desk, group)
        group.budget = known

    with serving(shop.scorer(clock=utc_now), tmp_path) as client:
        monkeypatch.setattr(Desk, "_evaluate", too_late)
        held, cap = {"holdout_bps": 2000, "exploration_bps": 2000}, {"mode": "expected"}
        at = utc_now()
        body = {
            "name": "Summer", "currency": "EUR", "coupons": ["c5", "p10"],
            "starts_at": (at - timedelta(days=1)).isoformat(),
            "ends_at": (at + timedelta(days=40)).isoformat(),
        } | held  # fmt: skip
        path = "/v1/campaigns/summer"
        first = body | {"budget": cap | {"cap_micros": 5_000_000_000}}
        made = client.request("PUT", path, json=first, headers={"if-none-match": "*"})
        assert made.status_code == 201, made.text
        spend(client, 4_800_000_000)
        drawn = {}
        for i in range(0, len(IDS), 20):
            for d in post(client, asked(*IDS[i : i + 20], campaign="summer")).json()["decisions"]:
                if d["reason"] in STICKY or d["arm"] != "control":
                    drawn[d["customer_id"]] = d
        lost = {i for i, d in drawn.items() if d["reason"] == "budget_exhausted"}
        assert len(lost) > 50
        report = client.get(f"{path}/report", params={"to": later(at)}).json()
        assert sum(arm["customers"] for arm in report["arms"]) == len(drawn)
        assert report["reasons"]["budget_exhausted"] == len(lost)
        assert report["srm"]["ok"]
        # There is money again: who lost gets the offer after all.
        spend(client, -4_800_000_000)
        again = post(client, asked(*sorted(lost), campaign="summer")).json()["decisions"]
        offers = [d for d in again if d["action"] == "offer"]
        assert len(offers) > 50
        events = [
            {"event_id": f"{kind}-{d['customer_id']}", "type": kind,
             "decision_id": d["decision_id"], "occurred_at": utc_now().isoformat()} | more
            for d in offers for kind, more in (("sent", {}), ("redeemed", {"cost_micros": 7}))
        ]  # fmt: skip
        assert post(client, {"events": events}, "/v1/events").json()["accepted"] == len(events)
        report = client.get(f"{path}/report", params={"to": later(at)}).json()
        assert sum(arm["customers"] for arm in report["arms"]) == len(drawn)
        assert sum(arm["sent"] for arm in report["arms"]) == len(offers)
        assert sum(arm["redeemed"] for arm in report["arms"]) == len(offers)
        assert report["reasons"].get("budget_exhausted", 0) == len(lost) - len(offers)
        export_log(client.service.log, tmp_path / "out")
    rows = pd.read_parquet(tmp_path / "out" / "exposures.parquet").set_index("customer_id")
    assert rows["decision_id"].to_dict() == {i: d["decision_id"] for i, d in drawn.items()}
    assert rows["arm"].to_dict() == {i: d["arm"] for i, d in drawn.items()}
    redeemed = {d["customer_id"] for d in offers}
    assert set(rows.index[rows["cost"] == 7e-6]) == redeemed


def spend(client: Client, amount: int) -> None:
    """As other servers would."""
    committed = campaign_budget.c.committed_micros
    with client.service.log.write() as connection:
        connection.execute(
            update(campaign_budget)
            .where(campaign_budget.c.campaign_id == "summer")
            .values(committed_micros=committed + amount)
        )


def later(at: datetime) -> str:
    return (at + timedelta(hours=1)).isoformat()
