"""The simulated shop: its truth is what happens, its tables are sound, and it is reproducible."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri

from features.config import Config, load_config, validate
from features.errors import ConfigError
from features.sources import open_source
from features.sources import simulated as source
from features.sources.shop_variants import numbered_world
from features.sources.shop_world import Coupon, World, expected, face_cost, respond
from features.sources.simulated import make_shop, shop_digest, shop_folder, shop_tables

ROOT = Path(__file__).parents[3]
WORLD = World()
ARMS = [coupon.coupon_id for coupon in WORLD.coupons]
SEEDS = (11, 12)
MEASURES = ("conversion", "spend", "profit", "cost")


def observed(tables: dict[str, pa.Table]) -> pd.DataFrame:
    """What each exposure brought, in SQL over the order lines of its window, beside the truth."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    for name in ("transactions", "exposures"):
        con.register(name, tables[f"tables/{name}"])
    con.register("truth", tables["truth/exposures"])
    return con.execute(
        """
        SELECT any_value(e.arm) AS arm, any_value(e.cost) AS cost,
          (count(*) FILTER (t.amount >= 0 AND t.quantity > 0) > 0)::INT AS conversion,
          coalesce(sum(t.amount), 0) AS spend,
          coalesce(sum(t.amount - (1 - $margin) * (t.amount + t.discount)), 0)
            - CASE any_value(e.arm) WHEN 'control' THEN 0 WHEN 'gift' THEN any_value(e.cost)
              ELSE $contact END AS profit,
          any_value(COLUMNS(truth.* EXCLUDE (customer_id, assigned_at, arm)))
        FROM exposures e JOIN truth USING (exposure_id)
        LEFT JOIN transactions t ON t.customer_id = e.customer_id
          AND t.transacted_at >= e.assigned_at
          AND t.transacted_at < e.assigned_at + INTERVAL 14 DAY
        GROUP BY exposure_id
        """,
        {"margin": WORLD.margin_rate, "contact": WORLD.contact_cost},
    ).df()


def true_value(frame: pd.DataFrame, measure: str, arm: str) -> pd.Series:
    """The analytic expectation of a measure under the arm."""
    if measure == "cost":
        return frame[f"cost_{arm}"] if arm != "control" else pd.Series(0.0, frame.index)
    base = frame["p_conversion_control" if measure == "conversion" else f"{measure}_control"]
    return base if arm == "control" else base + frame[f"tau_{measure}_{arm}"]


@pytest.fixture(scope="module")
def shops() -> list[dict[str, pa.Table]]:
    return [shop_tables(20_000, seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def seen(shops: list[dict[str, pa.Table]]) -> pd.DataFrame:
    return pd.concat([observed(shop) for shop in shops], ignore_index=True)


@pytest.fixture(scope="module")
def by_group(seen: pd.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Subgroups by what only the truth knows: deciles of each effect, of base profit and cost."""
    out = {"everybody": np.ones(len(seen), bool)}
    keys = [f"tau_profit_{arm}" for arm in ARMS] + ["profit_control", "cost_fix5"]
    for key in keys:
        decile = pd.qcut(seen[key].rank(method="first"), 10, labels=False)
        for d in (0, 4, 9):
            out[f"{key}, decile {d + 1}"] = np.asarray(decile == d)
    return out


@pytest.mark.parametrize("measure", MEASURES)
def test_truth_is_what_happens_on_average(
    seen: pd.DataFrame, by_group: dict[str, NDArray[np.bool_]], measure: str
) -> None:
    events = (seen["cost"] > WORLD.contact_cost) if measure == "cost" else seen["conversion"] > 0
    worst: list[tuple[float, str]] = []
    for arm in ["control", *ARMS]:
        gap = (seen[measure] - true_value(seen, measure, arm)).to_numpy()
        for name, rows in by_group.items():
            inside = rows & (seen["arm"] == arm).to_numpy()
            # Four standard errors mean something where more than a handful of orders came.
            if events.to_numpy()[inside].sum() < 40:
                continue
            error = gap[inside].std() / np.sqrt(inside.sum())
            worst.append((abs(gap[inside].mean()) / error, f"{arm}, {name}, n = {inside.sum()}"))
    assert len(worst) > 50
    z, where = max(worst)
    assert z < 4, where


@pytest.mark.parametrize("measure", MEASURES)
def test_the_check_would_notice_a_wrong_truth(seen: pd.DataFrame, measure: str) -> None:
    """Everybody at once, a truth that is a fifth off lies outside four standard errors."""
    arm = "fix5"
    group = seen[seen["arm"] == arm]
    gap = group[measure] - 1.2 * true_value(group, measure, arm)
    assert abs(gap.mean()) > 4 * gap.std() / np.sqrt(len(gap))


def test_effects_differ_between_customers_and_are_not_free_money(seen: pd.DataFrame) -> None:
    best = seen[[f"tau_profit_{arm}" for arm in ARMS]]
    for arm in ARMS:
        effect = seen[f"tau_profit_{arm}"]
        # One coupon for everybody brings little of what each customer's own would, or loses.
        assert -0.6 < effect.mean() < 0.4 * best.max(axis=1).clip(lower=0).mean(), arm
        assert 0.15 < (effect > 0).mean() < 0.6, arm
        assert abs(seen[f"tau_conversion_{arm}"].mean()) < 0.05, arm
    share = best[best.max(axis=1) > 0].idxmax(axis=1).value_counts(normalize=True)
    assert share.min() > 0.1
    assert 0.08 < seen["p_conversion_control"].mean() < 0.25


def test_closed_forms_agree_with_integration() -> None:
    """Expected money of one order over a fine grid of its list value, for each coupon kind."""
    rng = np.random.default_rng(3)
    nodes = ndtri((np.arange(50_000) + 0.5) / 50_000)
    traits = source.shop_world.draw_traits(WORLD, 40, rng)
    traits = replace(traits, returns=np.zeros(40), further=np.zeros(40), deal=np.zeros(40))
    state = source.shop_world.State(
        overdue=rng.uniform(0.2, 3, 40),
        mood=np.zeros(40),
        alive=np.ones(40, bool),
        contacted=np.zeros(40, bool),
    )
    response = respond(WORLD, traits, state, 100.0)
    truth = expected(WORLD, traits, response)
    for k, coupon in enumerate(WORLD.coupons, start=1):
        p = response.p[:, k]
        won = np.maximum(p - response.p[:, 0], 0)
        used = (p - won) * response.redeem_anyway + won
        for i in range(40):
            log = traits.basket[i] + response.stretch[i, k] + WORLD.basket_log_noise * nodes
            value = WORLD.basket_floor + np.exp(log)
            eligible, cost = face_cost(coupon, value)
            face = np.where(eligible, cost, 0).mean()
            profit = p[i] * WORLD.margin_rate * value.mean() - used[i] * face
            assert truth.profit[i, k] == pytest.approx(profit - WORLD.contact_cost, abs=2e-3)
            assert truth.cost[i, k] == pytest.approx(WORLD.contact_cost + used[i] * face, abs=2e-3)


@pytest.mark.parametrize(
    ("kind", "params", "value", "cost"),
    [
        ("fixed_off", {"off": 15.0}, 12.0, 12.0),
        ("fixed_off", {"off": 15.0}, 80.0, 15.0),
        ("threshold_off", {"threshold": 300.0, "off": 100.0}, 299.99, 0.0),
        ("threshold_off", {"threshold": 300.0, "off": 100.0}, 330.0, 100.0),
        ("percent_off", {"rate_off": 0.3, "max_off": 100.0, "min_spend": 0.0}, 200.0, 60.0),
        ("percent_off", {"rate_off": 0.3, "max_off": 50.0, "min_spend": 0.0}, 200.0, 50.0),
        ("gift", {"unit_cost": 18.0, "min_spend": 100.0}, 120.0, 18.0),
        ("gift", {"unit_cost": 18.0, "min_spend": 100.0}, 99.0, 0.0),
    ],
)
def test_face_costs_are_those_of_the_coupon_catalogue(
    kind: str, params: dict[str, float], value: float, cost: float
) -> None:
    eligible, face = face_cost(Coupon("c", kind, params, 0, 0, 0, 0), np.array([value]))
    assert np.where(eligible, face, 0.0)[0] == cost


def test_tables_are_sound(shops: list[dict[str, pa.Table]]) -> None:
    shop = shops[0]
    lines = shop["tables/transactions"].to_pandas()
    customers = shop["tables/customers"].to_pandas()
    exposures = shop["tables/exposures"].to_pandas()
    assert 17 < len(lines) / len(customers) < 24
    assert len(exposures) / len(customers) > 1.5  # 150,000 for 100,000 customers
    assert lines["transacted_at"].max() < pd.Timestamp(WORLD.end, tz="UTC")
    assert lines["line_id"].is_unique
    purchases = lines["quantity"] > 0
    assert (lines.loc[purchases, "amount"] >= 0).all()
    assert (lines.loc[~purchases, "amount"] <= 0).all()
    assert (lines["discount"] >= 0).all()
    assert 0.005 < (~purchases).mean() < 0.06
    assert (lines.groupby("order_id")["amount"].sum() > -0.001).all()
    silent = 1 - lines["customer_id"].nunique() / len(customers)
    assert 0.02 < silent < 0.15
    assert 0.8 < customers["marketing_consent"].mean() < 1
    joined = exposures.merge(customers, on="customer_id")
    assert (joined["joined_at"] < joined["assigned_at"]).all()
    assert joined["marketing_consent"].all()
    first = lines.groupby("customer_id")["transacted_at"].min()
    known = customers.set_index("customer_id")["joined_at"]
    assert (first >= known[first.index]).all()


def test_windows_of_a_customer_do_not_overlap(shops: list[dict[str, pa.Table]]) -> None:
    exposures = shops[0]["tables/exposures"].to_pandas().sort_values(["customer_id", "assigned_at"])
    gap = exposures.groupby("customer_id")["assigned_at"].diff().dropna()
    assert gap.min() >= pd.Timedelta(days=14)


def test_arms_are_drawn_with_the_logged_probability(shops: list[dict[str, pa.Table]]) -> None:
    exposures = pd.concat([shop["tables/exposures"].to_pandas() for shop in shops])
    for arm, group in exposures.groupby("arm"):
        prob = group["assignment_prob"].iloc[0]
        assert (group["assignment_prob"] == prob).all()
        error = np.sqrt(prob * (1 - prob) / len(exposures))
        assert abs(len(group) / len(exposures) - prob) < 4 * error, arm


def test_a_redeemed_coupon_shows_as_discount_and_event_and_cost(
    shops: list[dict[str, pa.Table]],
) -> None:
    shop = shops[0]
    lines = shop["tables/transactions"].to_pandas()
    events = shop["tables/events"].to_pandas()
    exposures = shop["tables/exposures"].to_pandas()
    redeemed = events[events["type"] == "redeemed"]
    with_coupon = lines[lines["coupon_id"].notna()]
    assert len(redeemed) == with_coupon["order_id"].nunique()
    assert (with_coupon["quantity"] > 0).all()  # orders with a coupon are final
    keys = ["customer_id", "campaign_id"]
    joined = redeemed.merge(exposures, on=keys, validate="1:1")
    assert (joined["coupon_id"] == joined["arm"]).all()
    np.testing.assert_allclose(joined["cost"], joined["value"] + WORLD.contact_cost, atol=0.006)
    assert (joined["occurred_at"] < joined["assigned_at"] + pd.Timedelta(days=14)).all()
    offs = with_coupon[with_coupon["coupon_id"] == "fix5"].groupby("order_id")["discount"].sum()
    assert (offs >= 4.995).all()
    none = exposures.merge(redeemed[keys], on=keys, how="left", indicator=True)
    none = none[none["_merge"] == "left_only"]
    assert set(none["cost"].unique()) == {0.0, WORLD.contact_cost}


def test_deal_hunters_are_seen_in_their_history(shops: list[dict[str, pa.Table]]) -> None:
    """The love of deals, which decides what a coupon costs, shows in discounted orders."""
    lines = shops[0]["tables/transactions"].to_pandas()
    truth = shops[0]["truth/customers"].to_pandas().set_index("customer_id")
    orders = lines[lines["quantity"] > 0].groupby(["customer_id", "order_id"])["discount"].sum()
    share = (orders > 0).groupby("customer_id").mean()
    hunters = truth.loc[share[share > 0.7].index]
    others = truth.loc[share[share < 0.2].index]

    def redeemed_per_order(group: pd.DataFrame) -> float:
        orders = group["p_conversion_control"] + group["tau_conversion_fix5"]
        return float((group["cost_fix5"] - WORLD.contact_cost).sum() / orders.sum() / 5)

    assert redeemed_per_order(hunters) > 0.7
    assert redeemed_per_order(others) < 0.5
    # who orders anyway and likes deals costs more than the few orders that are won bring in
    anyway = hunters[hunters["p_conversion_control"] > 0.2]
    assert (anyway["tau_profit_fix5"] < 0).mean() > 0.7


def test_same_seed_same_bytes_other_seed_other_shop(tmp_path: Path) -> None:
    def digests(folder: Path, seed: int) -> dict[str, str]:
        make_shop(folder, 400, seed)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
        }

    one, again, other = (
        digests(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == again
    assert set(one) == {
        "shop.json",
        *(f"tables/{t}.parquet" for t in source.TABLES),
        *(f"truth/{t}.parquet" for t in ("exposures", "customers")),
    }
    assert all(one[name] != other[name] for name in one)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]  # nothing left aside
    assert len({shop_digest(WORLD, n, s) for n in (400, 500) for s in (1, 2)}) == 4
    assert shop_digest(replace(WORLD, season=0.1), 400, 1) != shop_digest(WORLD, 400, 1)


def small(**source_keys: object) -> Config:
    raw = load_config(ROOT / "configs" / "demo-small.yaml").model_dump(mode="json")
    raw["source"].update(source_keys)
    return validate(raw)


def test_the_source_makes_the_shop_once_and_reads_only_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = small(customers=400)
    tables = open_source(config).tables()
    assert tables.simulated
    assert any("simulated" in note for note in tables.notes)
    folder = shop_folder(config)
    lines = pq.read_table(folder / "tables" / "transactions.parquet")
    assert tables.counts["transactions"]["read"] == tables.counts["transactions"]["kept"]
    assert tables.counts["transactions"]["kept"] == lines.num_rows
    # without the truth everything still works: the tables do not come from there
    for file in (folder / "truth").iterdir():
        file.unlink()

    def never(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(source, "make_shop", never)
    assert open_source(config).tables().digest == tables.digest


def test_a_shop_that_lost_a_table_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = small(customers=100)
    make_shop(shop_folder(config), 100, config.source.seed)
    file = shop_folder(config) / "tables" / "events.parquet"
    before = file.read_bytes()
    file.unlink()
    assert open_source(config).tables().events is not None
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["demo.yaml", "demo-small.yaml"])
def test_the_demo_configuration_is_the_shop(name: str) -> None:
    config = load_config(ROOT / "configs" / name)
    assert config.arms == ARMS
    for offer, coupon in zip(config.offers, WORLD.coupons, strict=True):
        assert (offer.kind, offer.params) == (coupon.kind, coupon.params)
        assert offer.contact_cost == WORLD.contact_cost
    assert config.outcome.margin_rate == WORLD.margin_rate
    assert config.outcome.window_days == 14
    assert config.as_of().isoformat() == f"{WORLD.end}T00:00:00+00:00"
    probs = source.assignment(WORLD)
    assert config.experiment.assignment == pytest.approx(
        dict(zip(["control", *ARMS], probs, strict=True))
    )


def test_an_offer_of_another_kind_under_the_same_name_is_refused() -> None:
    raw = load_config(ROOT / "configs" / "demo-small.yaml").model_dump(mode="json")
    raw["offers"][0]["params"] = {"off": 6.0}
    with pytest.raises(ConfigError, match=r"offers\.0\.params.*fix5.*configs/demo\.yaml"):
        open_source(validate(raw)).tables()


def test_the_document_names_every_parameter() -> None:
    text = (ROOT / "docs" / "simulated-shop.md").read_text(encoding="utf-8")
    rows = {tuple(line.split("|")[1:3]) for line in text.splitlines() if line.startswith("|")}
    told = {
        name.strip(): value.strip()
        for names, values in rows
        for name, value in zip(names.split(","), values.split(", "), strict=False)
    }
    for name, value in vars(WORLD).items():
        if name == "end":
            assert told[name] == value
        elif name not in ("waves", "coupons"):
            numbers = list(value) if isinstance(value, tuple) else [value]
            assert [float(part) for part in told[name].split(" to ")] == numbers, name
    for coupon in WORLD.coupons:
        numbers = (coupon.gain_base, coupon.gain_match, coupon.stretch, coupon.annoyance)
        row = " | ".join(f"{x:g}" if x == 0 else f"{x:.2f}" for x in numbers[:3])
        assert f"| {coupon.coupon_id} | {coupon.kind} | {row} | {numbers[3]} |" in text


def test_world_zero_is_the_shop_and_other_worlds_are_themselves() -> None:
    assert numbered_world(0) == WORLD
    assert numbered_world(3) == numbered_world(3)
    assert len({numbered_world(number).interval_log_mean for number in range(20)}) == 20


@pytest.mark.parametrize("number", [1, 2])
def test_the_truth_of_a_drawn_world_is_what_happens(number: int) -> None:
    frame = observed(shop_tables(10_000, 5, numbered_world(number)))
    for measure in MEASURES:
        for arm in ["control", *ARMS]:
            rows = frame[frame["arm"] == arm]
            gap = rows[measure] - true_value(rows, measure, arm)
            assert abs(gap.mean()) <= 4 * gap.std() / np.sqrt(len(gap)), (measure, arm)


def test_no_drawn_world_leaves_the_chances() -> None:
    for number in range(1, 101):
        world = numbered_world(number)
        redeem = world.redeem_base + world.redeem_deal
        harm = world.annoyed_always + world.annoyed_recent
        assert 0 < redeem <= 0.95
        assert 0 < harm <= 0.95
        assert max(coupon.annoyance for coupon in world.coupons) <= 1
        assert max(world.deal_hunters, world.broad_tastes, world.weekenders) < 1


def test_a_world_has_a_folder_of_its_own() -> None:
    assert shop_folder(small(world=1)) != shop_folder(small(world=0))
