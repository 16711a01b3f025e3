from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.errors import ConfigError, DataError
from serving.audience_manifest import check_decisions, manifest_path
from serving.score import METADATA, summary, write_decisions
from tests.unit.serving.small_shop import AS_OF, SALT, Shop, make_config
from uplift.policy import Reason

COLUMNS = [
    "decision_id", "customer_id", "campaign_id", "as_of", "action", "coupon_id", "reason",
    "expected_incremental_profit", "expected_cost", "cate_c5", "cate_p10", "cost_c5", "cost_p10",
    "response_propensity", "tier", "lifecycle_stage", "assignment_prob", "is_holdout",
    "is_exploration", "model_version",
]  # fmt: skip


@pytest.fixture
def written(shop: Shop, tmp_path: Path) -> Path:
    out = tmp_path / "out" / "decisions.parquet"
    return write_decisions(shop.population, shop.model, shop.config, SALT, out).path


def test_columns_and_their_order(written: Path) -> None:
    frame = pd.read_parquet(written)
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 300
    assert frame["decision_id"].is_unique
    assert (frame["as_of"] == AS_OF).all()
    assert frame["coupon_id"].isna().equals(frame["action"] == "none")
    assert set(frame["reason"]) <= {r.value for r in Reason}
    none = frame["action"] == "none"
    assert (frame.loc[none, ["expected_cost", "expected_incremental_profit"]] == 0).all(axis=None)
    assert frame["tier"].notna().all()


def test_the_expected_cost_is_the_sum_of_the_file_and_within_the_budget(written: Path) -> None:
    frame = pd.read_parquet(written)
    manifest = json.loads(manifest_path(written).read_bytes())
    offers = frame[frame["action"] == "offer"]
    cost = sum(float(offers[f"cost_{a}"][i]) for i, a in offers["coupon_id"].items())
    assert frame["expected_cost"].sum() == pytest.approx(cost, rel=1e-12)
    assert manifest["expected_cost"] == pytest.approx(cost, rel=1e-12)
    assert 0 < manifest["expected_cost"] <= manifest["budget"] == 120
    allocated = manifest["upper_bound"] - manifest["gap"]
    drawn = frame.loc[frame["is_exploration"], "expected_incremental_profit"].sum()
    assert allocated + drawn == pytest.approx(manifest["expected_incremental_profit"])
    assert manifest["gap"] >= 0
    assert manifest["shadow_price"] > 0


def test_the_manifest_vouches_for_the_file(written: Path) -> None:
    manifest = json.loads(manifest_path(written).read_bytes())
    inside = json.loads(pq.read_schema(written).metadata[METADATA])
    content = written.read_bytes()
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert (manifest["bytes"], manifest["rows"]) == (len(content), 300)
    for key, value in inside.items():
        assert manifest[key] == value
    for key in ("rows", "rows_sha256", "config_digest", "budget", "expected_cost", "gap"):
        assert key in inside
    assert sum(manifest["reasons"].values()) == 300


@pytest.mark.parametrize("budget", [0.0, 1.0, 17.5, 60.0, None])
def test_no_budget_is_passed(shop: Shop, tmp_path: Path, budget: float | None) -> None:
    config = make_config(shop.root / "tables", policy={"budget": budget, "holdout_share": 0})
    out = tmp_path / "d.parquet"
    manifest = write_decisions(shop.population, shop.model, config, SALT, out).manifest
    if budget is not None:
        assert manifest["expected_cost"] <= budget
    assert pd.read_parquet(out)["expected_cost"].sum() == pytest.approx(manifest["expected_cost"])


def test_scores_are_those_of_the_server_to_the_last_bit(shop: Shop, written: Path) -> None:
    frame = pd.read_parquet(written).set_index("customer_id")
    ids = frame.index.tolist()
    scorer = shop.scorer()
    for d in scorer.answer(ids, request_id="r").decisions:
        row = frame.loc[d.customer_id]
        assert np.float32(d.response_propensity) == row["response_propensity"]
        known = scorer.customer(d.customer_id)
        assert known is not None
        for arm, value in known.uplift.items():
            assert np.float32(value).tobytes() == np.float32(row[f"cate_{arm}"]).tobytes()
        assert (d.is_holdout, d.is_exploration) == (row["is_holdout"], row["is_exploration"])


def test_csv_holds_the_same_rows(shop: Shop, written: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.csv"
    write_decisions(shop.population, shop.model, shop.config, SALT, out)
    raw = out.read_bytes()
    assert raw.count(b"\r\n") == 301
    assert raw.count(b"\n") == 301
    assert b'"c-000","spring","2026-01-01T00:00:00.000000Z","none"' in raw
    frame, parquet = pd.read_csv(out), pd.read_parquet(written)
    assert list(frame.columns) == COLUMNS
    for name in COLUMNS:
        if name.startswith(("cate_", "cost_", "response")):
            back = frame[name].to_numpy(np.float32)
            assert back.tobytes() == parquet[name].to_numpy().tobytes()
        elif name in ("assignment_prob", "expected_cost", "is_holdout"):
            assert (frame[name] == parquet[name]).all()
        elif name == "coupon_id":
            assert frame[name].fillna("-").tolist() == parquet[name].fillna("-").tolist()
    assert manifest_path(out).name == "d.csv.manifest.json"


def test_a_simulated_shop_is_named_as_such(shop: Shop, tmp_path: Path) -> None:
    people = replace(shop.population, simulated=True)
    out = tmp_path / "d.parquet"
    written = write_decisions(people, shop.model, shop.config, SALT, out)
    assert written.manifest["simulated"] is True
    assert json.loads(pq.read_schema(out).metadata[METADATA])["simulated"] is True
    assert "simulated" in summary(written)


def test_the_summary_says_what_was_spent(shop: Shop, tmp_path: Path) -> None:
    written = write_decisions(
        shop.population, shop.model, shop.config, SALT, tmp_path / "d.parquet"
    )
    text = summary(written)
    assert "300 customers decided" in text
    assert f"{written.manifest['expected_cost']:,.2f} EUR of 120.00 EUR" in text
    assert "best_net_value" in text
    assert "simulated" not in text


def test_a_budget_that_cannot_bear_the_exploration_lowers_it_and_says_so(
    shop: Shop, tmp_path: Path
) -> None:
    config = make_config(shop.root / "tables", policy={"budget": 30, "exploration_share": 0.5})
    written = write_decisions(shop.population, shop.model, config, SALT, tmp_path / "d.parquet")
    assert written.manifest["shares"]["exploration"] < 0.5
    assert written.manifest["expected_cost"] <= 30
    assert "in place of 0.5: more might pass the budget" in summary(written)


@pytest.mark.parametrize("name", ["d.xlsx", "d", "folder.parquet", "a.file/d.csv"])
def test_a_path_that_cannot_be_written_is_refused(shop: Shop, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "a.file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        write_decisions(shop.population, shop.model, shop.config, SALT, tmp_path / name)


@pytest.mark.parametrize("name", ["d.parquet", "d.csv"])
def test_a_campaign_tool_can_check_the_file(shop: Shop, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    written = write_decisions(shop.population, shop.model, shop.config, SALT, out)
    manifest = written.manifest
    assert check_decisions(out) == (
        f"{name}: 300 customers, {manifest['offers']} offers, expected cost "
        f"{manifest['expected_cost']:,.2f} EUR: as the manifest says"
    )
    ids = "".join(f"{i}\n" for i in shop.population.customer_id.astype(str))
    assert manifest["customers_sha256"] == hashlib.sha256(ids.encode()).hexdigest()
    frame = pd.read_parquet(out) if name == "d.parquet" else pd.read_csv(out)
    assert manifest["columns"] == list(frame.columns)
    for coupon, cost in manifest["expected_cost_by_coupon"].items():
        own = frame.loc[frame["coupon_id"] == coupon, "expected_cost"].sum()
        assert own == pytest.approx(cost)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rows", 299, "expected rows 299, as the manifest says, found 300"),
        ("offers", 3, "expected offers 3, as the manifest says"),
        ("expected_cost", 1.0, "expected expected cost 1.0, as the manifest says"),
        ("budget", 1.0, "expected an expected cost up to the budget 1.0, found more"),
        ("customers_sha256", "0", "expected customers_sha256 0"),
        ("columns", ["customer_id"], "the columns customer_id"),
        ("sha256", "0" * 64, "with sha256 000000000000"),
        ("format", 7, "the manifest of d.parquet, found none that can be read"),
        ("file", "other.parquet", "the manifest of d.parquet"),
        ("offers_by_coupon", {"c5": 0}, "expected offers of c5 0, as the manifest says"),
        ("limits", [{"name": "x", "most": 1, "used": 2}], "expected at most 1 of x, found 2"),
    ],
)
def test_a_manifest_that_says_something_else(
    shop: Shop, tmp_path: Path, key: str, value: object, message: str
) -> None:
    out = tmp_path / "d.parquet"
    write_decisions(shop.population, shop.model, shop.config, SALT, out)
    manifest = json.loads(manifest_path(out).read_bytes())
    manifest_path(out).write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(DataError, match=message):
        check_decisions(out)


def test_a_file_that_was_altered_or_is_absent(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "d.csv"
    write_decisions(shop.population, shop.model, shop.config, SALT, out)
    out.write_bytes(out.read_bytes().replace(b"c-010", b"c-011"))
    with pytest.raises(DataError, match="Do not send it"):
        check_decisions(out)
    out.unlink()
    with pytest.raises(DataError, match="expected a readable file"):
        check_decisions(out)
    with pytest.raises(DataError, match="the manifest of nothing"):
        check_decisions(tmp_path / "nothing.csv")


def test_without_a_plan_the_models_own_sum_is_called_too_high(shop: Shop, tmp_path: Path) -> None:
    written = write_decisions(
        shop.population, shop.model, shop.config, SALT, tmp_path / "d.parquet"
    )
    assert written.manifest["planned_gain"] is None
    assert "the sum of what looks best is too high" in summary(written)
