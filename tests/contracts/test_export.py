"""What the server decided comes back as exposures that training reads as they were drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.sources import open_source
from serving.export import export_log
from tests.unit.serving.answering import asked, post, serving
from tests.unit.serving.small_shop import OFFERS, Shop, make_config, shared_shop
from training.dataset import build_dataset
from uplift.offers import parse_offers

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
