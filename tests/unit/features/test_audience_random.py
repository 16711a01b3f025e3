"""Random filters over random shops: the engine and the slow way find the same customers."""

from __future__ import annotations

from collections import Counter
from datetime import UTC
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.audience import audience, matches
from features.build import build_features
from features.frozen import FrozenValues
from features.labels import LABELS
from features.segment_table import segment_table
from features.spine import all_customers
from tests.unit.features.audience_oracle import Person, meets
from tests.unit.features.conftest import make_config, make_tables
from tests.unit.features.oracle_history import History, Row, Settings
from tests.unit.features.random_shop import (
    FEATURES,
    OFFERS,
    make_customers,
    make_events,
    make_exposures,
    make_lines,
    make_spine,
)

FROZEN = FrozenValues(
    "test",
    median_gap_days=21.5,
    response_rate=0.125,
    spend_high=150,
    recency_median=60,
    frequency_median=4,
    monetary_median=80,
    recency_cuts=(30, 120),
    frequency_cuts=(3, 6),
    monetary_cuts=(40, 160),
)
COMPARED = ["recency_days", "orders_total", "spend_365d", "overdue_ratio", "channel_favourite_365d"]
AUDIENCES: dict[str, Row] = {
    "recent": {"purchase": {}, "within_days": 60},
    "lapsed": {"all": [{"not": {"audience": "recent"}}, {"purchase": {}}]},
}
PURCHASE: dict[str, list[Any]] = {
    "product": ["p1", "p2", "n5", ["p1", "p3"], "nowhere"],
    "category": ["food", "care", "Ärzte", ["early", "late"]],
    "coupon": ["M20", "unknown"],
    "kind": ["threshold_off", "nth_item", ["gift", "points", "percent_off"]],
    "channel": ["app", ["store", "web"]],
    "store": ["s1", "s2", 3],
    "payment": ["cash", ["wechat", "alipay"]],
    "daypart": ["morning", "lunch", "afternoon", "evening", "night", ["lunch", "night"]],
    "workday": [True, False],
    "min_order_value": [0, 9.99, 22, 50.0],
}
EVENT = {
    "type": ["opened", "clicked", ["redeemed", "unsubscribed"], "visited"],
    "campaign": ["k1", ["k2", "k3"]],
}
OFFER = {
    "campaign": ["k1", ["k2", "k3"]],
    "arm": ["M20", ["P10", "HALF2", "CUP"]],
    "kind": ["threshold_off", ["gift", "message"]],
}
SEGMENTS: dict[str, list[Any]] = {
    "tier": ["potential", "regular", "sleeping", "prospect", "champion", "new", "lost"],
    "tier_detail": ["single_cooling", "frequent_low_value"],
    "rfm_class": ["HHH", "LLL", "HLL", "prospect"],
    "stage": ["lost", "mature", "growth", "novice"],
    "label": [*LABELS, "mid", "unknown"],
    "r_score": [1, 2, 3],
    "m_score": [1, 2, 3],
}
CUSTOMER: dict[str, list[Any]] = {
    "region": ["north", "Süd", "west"],
    "gender": ["f", "m"],
    "birth_month": [1, 2, 6, 7, 12],
    "joined_at": ["2023-06-01", "2024-01-01T12:00:00", "2025-05-05"],
}


def pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def count_node(rng: np.random.Generator, head: str, keys: dict[str, list[Any]], most: int) -> Row:
    """A purchase, event or offer with some keys, and any window and limits."""
    chosen = rng.permutation(list(keys))[: int(rng.integers(0, most + 1))]
    node: Row = {head: {str(key): pick(rng, keys[str(key)]) for key in chosen}}
    window = rng.integers(4)
    if window == 1:
        node["within_days"] = int(pick(rng, [0, 30, 90, 365]))
    elif window == 2:
        low = int(pick(rng, [0, 1, 30]))
        node["between_days"] = [low, low + int(pick(rng, [0, 30, 200]))]
    node |= pick(
        rng, [{}, {}, {"min": 1}, {"min": 2}, {"max": 0}, {"max": 2}, {"min": 2, "max": 3}]
    )
    return node


def compare_node(rng: np.random.Generator, of: str, name: str, values: list[Any]) -> Row:
    """A comparison whose values occur, so that bounds are met."""
    ops = ["=", "!=", "in", "is_null"]
    if not isinstance(values[0], str) or name == "joined_at":
        ops += ["<", "<=", ">", ">=", "between", "<", ">="]
    op = pick(rng, ops)
    node: Row = {of: name, "op": op}
    if op == "in":
        node["value"] = [pick(rng, values) for _ in range(2)]
    elif op == "between":
        node["value"] = sorted(pick(rng, values) for _ in range(2))
    elif op != "is_null":
        node["value"] = pick(rng, values)
    return node


def make_filter(rng: np.random.Generator, seen: dict[str, list[Any]], depth: int = 1) -> Row:
    if depth < 4 and rng.random() < (0.75 if depth == 1 else 0.3):
        head = pick(rng, ["all", "any", "not"])
        if head == "not":
            return {"not": make_filter(rng, seen, depth + 1)}
        return {head: [make_filter(rng, seen, depth + 1) for _ in range(int(rng.integers(1, 4)))]}
    what = int(rng.integers(8))
    if what < 2:
        return count_node(rng, "purchase", PURCHASE, 3)
    if what == 2:
        return count_node(rng, "event", EVENT, 2)
    if what == 3:
        return count_node(rng, "offer", OFFER, 2)
    if what == 4:
        name = pick(rng, list(CUSTOMER))
        return compare_node(rng, "customer", name, CUSTOMER[name])
    if what == 5:
        name = pick(rng, list(seen))
        return compare_node(rng, "feature", name, seen[name])
    if what == 6:
        scheme = pick(rng, list(SEGMENTS))
        return {"segment": scheme, "in": [pick(rng, SEGMENTS[scheme]) for _ in range(2)]}
    return {"audience": pick(rng, list(AUDIENCES))}


class Shop:
    def __init__(self, seed: int, zone: str) -> None:
        rng = np.random.default_rng(seed)
        self.lines = make_lines(rng, zone)
        for line in self.lines:
            line["store_id"] = pick(rng, ["s1", "s2", "3", None])
        self.exposures = make_exposures(rng, self.lines)
        self.events = make_events(rng, self.exposures)
        self.customers = make_customers(rng, zone)
        self.spine = make_spine(
            rng, zone, self.lines, self.exposures, self.events, self.customers, moments=3
        )
        self.config = make_config(
            timezone=zone,
            features=FEATURES,
            offers=OFFERS,
            audiences={name: {"filter": node} for name, node in AUDIENCES.items()},
        )
        rows = {
            "transactions": self.lines,
            "exposures": self.exposures,
            "events": self.events,
            "customers": self.customers,
        }
        self.tables = make_tables(
            **{name: pd.DataFrame(found, dtype=object) for name, found in rows.items()}
        )
        self.people = self._people(zone)

    def _people(self, zone: str) -> list[Person]:
        settings = Settings(
            zone=zone,
            offers={offer["coupon_id"]: offer for offer in OFFERS},
            weekend_overrides=FEATURES["weekend_overrides"],
        )
        built = build_features(self.tables, self.spine, COMPARED, self.config, FROZEN).frame
        found = segment_table(self.tables, self.spine, self.config, FROZEN)[0]
        found = found.rename(columns={"lifecycle_stage": "stage"})
        values = pd.concat([built, found[[s for s in SEGMENTS if s != "label"]]], axis=1)
        values = values.astype(object).where(values.notna(), None)
        known = values.to_dict(orient="records")
        people = []
        for i, (customer, as_of) in enumerate(self.spine.itertuples(index=False)):
            lines, exposures, events, customers = (
                [row for row in rows if row["customer_id"] == customer]
                for rows in (self.lines, self.exposures, self.events, self.customers)
            )
            profile = customers[0] if customers else None
            when = as_of.to_pydatetime()
            history = History(lines, exposures, events, profile, when, settings)
            held = {*found["labels"][i].split(","), found["response"][i]}
            people.append(Person(history, known[i], held))
        return people


@cache
def shop(seed: int, zone: str) -> Shop:
    return Shop(seed, zone)


CASES = [
    pytest.param(11, "America/New_York", marks=pytest.mark.slow),
    pytest.param(12, "Europe/Berlin"),
]


@pytest.mark.parametrize(("seed", "zone"), CASES)
def test_the_slow_way_finds_the_same(seed: int, zone: str) -> None:
    here = shop(seed, zone)
    rng = np.random.default_rng(seed)
    seen = {
        name: [v for v in {p.values[name] for p in here.people} if v is not None]
        for name in COMPARED
    }
    seen = {name: sorted(values) for name, values in seen.items()}
    filters = {f"f{i}": make_filter(rng, seen) for i in range(50)}
    found = matches(here.tables, here.spine, filters, here.config, FROZEN)
    assert found.missing == ()
    sizes: Counter[str] = Counter()
    for name, raw in filters.items():
        expected = [meets(raw, who, AUDIENCES) for who in here.people]
        assert found.met[name].tolist() == expected, raw
        share = np.mean(expected)
        sizes["none" if share == 0 else "all" if share == 1 else "some"] += 1
    # The comparison means something only where filters tell customers apart.
    assert sizes["some"] >= 25


def test_every_purchase_key_tells_customers_apart() -> None:
    here = shop(12, "Europe/Berlin")
    filters = {
        f"{key} {value}": {"purchase": {key: value}, "within_days": 365}
        for key, values in PURCHASE.items()
        for value in values
    }
    found = matches(here.tables, here.spine, filters, here.config, FROZEN).met
    for name, raw in filters.items():
        expected = [meets(raw, who, {}) for who in here.people]
        assert found[name].tolist() == expected, name
    shares = found.mean()
    for key in PURCHASE:
        own = shares[[name for name in filters if name.split()[0] == key]]
        assert own.between(0.01, 0.99).any(), key


def test_an_audience_is_the_spine_of_everyone_at_one_moment() -> None:
    """Rows at or after the moment change nothing: the same ids from tables cut off there."""
    here = shop(12, "Europe/Berlin")
    as_of = pd.Timestamp(
        here.spine["as_of"].sort_values().iloc[len(here.spine) // 2]
    ).to_pydatetime()
    filters: dict[str, Row] = {
        "bought": {"purchase": {"category": "food"}, "within_days": 365},
        "offered": {"offer": {}, "max": 1},
        "opened": {"event": {"type": "opened"}},
        "southern": {"customer": "region", "op": "=", "value": "Süd"},
        "tier": {"segment": "tier", "in": ["potential", "regular"]},
    }
    past = {
        table: pd.DataFrame([row for row in rows if row[time] < as_of], dtype=object)
        for table, rows, time in (
            ("transactions", here.lines, "transacted_at"),
            ("exposures", here.exposures, "assigned_at"),
            ("events", here.events, "occurred_at"),
        )
    }
    known = [c for c in here.customers if c["joined_at"] is None or c["joined_at"] < as_of]
    cut = make_tables(**past, customers=pd.DataFrame(known, dtype=object))
    spine = all_customers(cut, as_of, here.config)
    everywhere = matches(here.tables, spine, filters, here.config, FROZEN).met
    pd.testing.assert_frame_equal(everywhere, matches(cut, spine, filters, here.config, FROZEN).met)
    assert everywhere.mean().between(0.01, 0.99).all()
    found = audience(here.tables, {"any": list(filters.values())}, as_of, here.config, FROZEN)
    assert list(found.ids) == sorted(spine["customer_id"][everywhere.any(axis=1)])
    assert found.count == len(found.ids) == sum(found.tiers.values())
    assert found.as_of == as_of.replace(tzinfo=UTC)
