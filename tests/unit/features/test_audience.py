"""Audience filters: the documented example, every mistake by its place, NULL, references."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from features.audience import audience, check_filter, matches
from features.audience_language import MAX_NODES, All, Count, filter_hash, parse
from features.config import Config
from features.errors import ConfigError
from features.spine import all_customers
from features.tables import Tables
from tests.unit.features.conftest import make_config, make_tables
from tests.unit.features.test_segments import FROZEN
from tests.unit.features.worked_example import AS_OF, EXPOSURES, OFFERS, TRANSACTIONS, ZONE

DOC = Path(__file__).parents[3] / "docs/audiences.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
P1 = {"purchase": {"product": "P1"}}
NEVER_P2 = {"not": {"purchase": {"product": "P2"}}}


def nothing_named(name: str, where: str) -> tuple[Any, str]:
    raise AssertionError(f"{where} looks up {name}")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved audiences are looked for in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def full() -> Tables:
    """The worked example with customers and events; J only joined, K joins at the moment."""
    return make_tables(
        transactions=pd.read_csv(io.StringIO(TRANSACTIONS), dtype={"amount": float}),
        exposures=pd.read_csv(io.StringIO(EXPOSURES)),
        customers=pd.DataFrame(
            [
                {"customer_id": "A", "region": "north", "birth_month": 1, "loyal": True},
                {"customer_id": "B", "region": "south", "joined_at": "2025-09-01T00:00Z"},
                {"customer_id": "C", "birth_month": 2, "joined_at": "2025-12-31T15:59:59Z"},
                {"customer_id": "D", "region": "north", "joined_at": "2025-12-31T16:00Z"},
                {"customer_id": "J", "region": "north", "joined_at": "2025-12-31T15:00Z"},
                {"customer_id": "K", "region": "north", "joined_at": "2025-12-31T16:00Z"},
            ]
        ),
        events=pd.DataFrame(
            [
                {"customer_id": "A", "type": "opened", "occurred_at": "2025-12-31T15:59:59Z"},
                {"customer_id": "A", "type": "opened", "occurred_at": "2025-12-01T00:00Z"},
                {"customer_id": "B", "type": "opened", "occurred_at": "2025-12-31T16:00Z"},
                {
                    "customer_id": "B",
                    "type": "clicked",
                    "campaign_id": "K1",
                    "occurred_at": "2025-10-22T00:00Z",
                },
            ]
        ),
    )


@pytest.fixture(scope="module")
def example_of_all(full: Tables) -> Config:
    return make_config(timezone=ZONE, features={"given": []})


def ids(tables: Tables, config: Config, *filters: Any) -> list[str]:
    """Who meets each filter, as one text each; all in one evaluation."""
    spine = all_customers(tables, AS_OF, config)
    named = {f"f{i}": raw for i, raw in enumerate(filters)}
    met = matches(tables, spine, named, config, FROZEN).met
    return ["".join(spine["customer_id"][met[name]]) for name in named]


# --- the documented example -----------------------------------------------------------------------


def test_bought_p1_lately_never_p2_and_potential(example: Tables, example_config: Config) -> None:
    raw = yaml.safe_load(BLOCKS[0])
    found = audience(example, raw, AS_OF, example_config, FROZEN)
    assert found.ids == ("B",)
    assert (found.count, found.tiers, found.as_of) == (1, {"potential": 1}, AS_OF)
    assert found.missing == ()
    two = audience(example, {"all": raw["all"][:2]}, AS_OF, example_config, FROZEN)
    assert two.ids == ("B", "D", "G")
    assert two.tiers == {"potential": 1, "regular": 1, "sleeping": 1}


def test_every_filter_of_the_page_is_valid() -> None:
    named = yaml.safe_load(BLOCKS[-1])["audiences"]
    config = make_config(audiences={**named, "offered_lately": {"filter": {"offer": {}}}})
    for block in BLOCKS[:-1]:
        raw = yaml.safe_load(block)
        raw = json.loads(json.dumps(raw, default=str).replace("spring", "K1"))
        check_filter(raw, config)
    assert len(BLOCKS) == 7


# --- meaning --------------------------------------------------------------------------------------


def test_comparing_null_is_false_and_not_turns_it_around(
    full: Tables, example_of_all: Config
) -> None:
    north = {"customer": "region", "op": "=", "value": "north"}
    other = {"customer": "region", "op": "!=", "value": "north"}
    cold = {"feature": "interval_mean_days", "op": ">", "value": 40}
    warm = {"feature": "interval_mean_days", "op": "<=", "value": 40}
    assert ids(
        full,
        example_of_all,
        north,
        {"not": north},
        other,
        {"not": other},
        {"customer": "region", "op": "is_null"},
        cold,
        warm,
        {"not": cold},
        {"feature": "interval_mean_days", "op": "is_null"},
    ) == ["AJ", "BCDEFGHI", "B", "ACDEFGHIJ", "CDEFGHI", "AD", "BGI", "BCEFGHIJ", "CEFHJ"]


def test_customer_columns_by_type(full: Tables, example_of_all: Config) -> None:
    assert ids(
        full,
        example_of_all,
        {"customer": "birth_month", "op": "in", "value": [1, 2]},
        {"customer": "birth_month", "op": "between", "value": [2, 2]},
        {"customer": "loyal", "op": "=", "value": True},
        {"customer": "joined_at", "op": "<", "value": "2025-12-31T15:00:00Z"},
        {"customer": "joined_at", "op": ">=", "value": "2025-12-31T23:00:00+08:00"},
        {"customer": "customer_id", "op": "in", "value": ["B", "K"]},
    ) == ["AC", "C", "A", "B", "CJ", "B"]


def test_rows_at_the_moment_are_not_seen(full: Tables, example_of_all: Config) -> None:
    assert ids(
        full,
        example_of_all,
        {"event": {"type": "opened"}},
        {"event": {"type": "opened"}, "min": 2},
        {"event": {"type": ["opened", "clicked"]}, "within_days": 0},
        {"event": {"campaign": "K1"}, "between_days": [71, 71]},
        {"purchase": {"product": "P4", "min_order_value": 401}},
        {"offer": {"arm": "FIX10"}, "within_days": 5},
        {"offer": {"campaign": "K2"}},
        {"offer": {}, "min": 3},
        {"offer": {"kind": "threshold_off"}, "max": 0},
    ) == ["A", "A", "", "B", "", "AB", "A", "A", "CDEFGHIJ"]


def test_purchase_keys_hold_for_one_line_and_count_order_days(
    full: Tables, example_of_all: Config
) -> None:
    assert ids(
        full,
        example_of_all,
        # a5 has P1 and P2 on two lines; the order's value counts both.
        {"purchase": {"product": "P2", "min_order_value": 320}},
        {"purchase": {"product": "P2", "min_order_value": 320.01}},
        # h1 is fully returned.
        {"purchase": {"product": "P2"}},
        # g5 and g6 are two orders on one day.
        {"purchase": {}, "within_days": 20, "min": 2},
        {"purchase": {}, "within_days": 20, "min": 1, "max": 1},
        {"purchase": {"daypart": "lunch"}, "min": 3},
        # a5 is on a Saturday by the local date.
        {"purchase": {"product": "P2", "workday": False}},
        {"purchase": {"kind": ["nth_item", "first_order"], "category": "makeup"}},
        {"purchase": {"product": "P1"}, "between_days": [90, 100]},
        {"purchase": {}, "max": 0},
    ) == ["A", "", "A", "I", "ACG", "AG", "A", "C", "BD", "HJ"]


def test_payment_is_of_the_line(full: Tables, example_of_all: Config) -> None:
    cash = {"purchase": {"payment": ["cash", "card"], "channel": "store"}}
    assert ids(full, example_of_all, cash, {"not": {"purchase": {"payment": "wechat"}}}) == [
        "A",
        "HJ",
    ]


def test_segments_and_labels(full: Tables, example_of_all: Config) -> None:
    assert ids(
        full,
        example_of_all,
        {"segment": "tier", "in": ["champion", "new"]},
        {"segment": "tier_detail", "in": ["five_orders"]},
        {"segment": "rfm_class", "in": ["HHH"]},
        {"segment": "stage", "in": ["mature", "declining"]},
        {"segment": "r_score", "in": [2]},
        {"segment": "label", "in": ["churn_warning", "novelty_seeker"]},
        {"segment": "label", "in": ["unknown"]},
    ) == ["ACI", "G", "AG", "AD", "BG", "BD", "ABCDEFGHIJ"]


def test_what_an_absent_table_would_tell_is_unknown(
    example: Tables, example_config: Config
) -> None:
    raw = {
        "any": [
            {"event": {}, "max": 0},
            {"customer": "region", "op": "!=", "value": "north"},
            {"customer": "anything", "op": "between", "value": [1, 2]},
        ]
    }
    found = audience(example, raw, AS_OF, example_config, FROZEN)
    assert found.ids == ()
    assert found.missing == ("event", "customer.region", "customer.anything")
    assert audience(example, {"not": raw}, AS_OF, example_config, FROZEN).count == 9


def test_without_transactions_there_is_no_tier() -> None:
    tables = make_tables(
        exposures=pd.DataFrame(
            [
                {"customer_id": c, "campaign_id": "k", "assigned_at": "2025-01-01", "arm": arm}
                for c, arm in (("a", "M199"), ("b", "control"))
            ]
        )
    )
    raw = {
        "any": [
            {"offer": {"arm": "M199"}},
            {"purchase": {}, "max": 0},
            {"segment": "tier", "in": ["prospect"]},
            {"segment": "label", "in": ["unknown"]},
            {"feature": "recency_days", "op": "<", "value": 9},
        ]
    }
    found = audience(tables, raw, AS_OF, make_config(), FROZEN)
    assert (found.ids, found.tiers) == (("a",), {})
    assert found.missing == ("recency_days", "segment tier", "segment label", "purchase")


# --- references -----------------------------------------------------------------------------------


def test_a_reference_is_the_filter_that_it_names(example: Tables) -> None:
    config = make_config(
        timezone=ZONE,
        audiences={
            "p1": {"filter": P1},
            "p1_only": {"filter": {"all": [{"audience": "p1"}, NEVER_P2]}},
        },
    )
    written = {"all": [{"any": [{"all": [P1, NEVER_P2]}]}]}
    by_name = audience(
        example, {"all": [{"any": [{"audience": "p1_only"}]}]}, AS_OF, config, FROZEN
    )
    assert by_name == audience(example, written, AS_OF, config, FROZEN)
    assert by_name.ids == ("B", "D", "G")


def test_cycles_are_errors() -> None:
    config = make_config(
        audiences={
            "a": {"filter": {"any": [P1, {"audience": "b"}]}},
            "b": {"filter": {"not": {"audience": "c"}}},
            "c": {"filter": {"audience": "b"}},
        }
    )
    cycle = r"^audiences\.c\.filter\.audience: .* found the cycle b -> c -> b\. Break it\.$"
    with pytest.raises(ConfigError, match=cycle):
        check_filter({"all": [{"audience": "a"}]}, config)
    # One audience named twice is no cycle.
    check_filter({"all": [{"audience": "p"}] * 2}, make_config(audiences={"p": {"filter": P1}}))


def test_a_mistake_in_a_named_audience_is_placed_there() -> None:
    config = make_config(audiences={"a": {"filter": {"all": [{"purchase": {"shop": "x"}}]}}})
    with pytest.raises(ConfigError, match=r"^audiences\.a\.filter\.all\[0\]\.purchase\.shop: "):
        check_filter({"audience": "a"}, config)
    with pytest.raises(ConfigError, match=r"^filter\.audience: expected one of .* a, found 'b'"):
        check_filter({"audience": "b"}, config)


# --- hash -----------------------------------------------------------------------------------------


def test_the_hash_is_of_the_canonical_json() -> None:
    one = {"any": [{"min": 1, "purchase": {"product": "Ä", "channel": "app"}}]}
    other = {"any": [{"purchase": {"channel": "app", "product": "Ä"}, "min": 1}]}
    text = '{"any":[{"min":1,"purchase":{"channel":"app","product":"Ä"}}]}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert filter_hash(one, nothing_named) == filter_hash(other, nothing_named) == expected
    assert filter_hash({"any": [P1]}, nothing_named) != expected


def test_the_hash_follows_what_a_reference_means() -> None:
    def named(filter_: Any) -> Any:
        return lambda name, where: (filter_, where)

    raw = {"not": {"any": [{"audience": "x"}]}}
    written = filter_hash({"not": {"any": [P1]}}, nothing_named)
    assert filter_hash(raw, named(P1)) == written
    assert filter_hash(raw, named(NEVER_P2)) != written


# --- mistakes -------------------------------------------------------------------------------------

LIST = r"product, category, coupon, channel, store, payment, kind, daypart, workday, min_order"
MISTAKES: list[tuple[Any, str]] = [
    (
        {"all": [P1, {"purchase": {"prodcut": "P1"}}]},
        rf"filter\.all\[1\]\.purchase\.prodcut: expected one of {LIST}.*Did you mean product\?",
    ),
    ({}, r"filter: expected one of all, any, not, feature, .* found an empty mapping"),
    ([P1], r"filter: expected a mapping with one of all, any"),
    ({"al": [P1]}, r"filter\.al: expected one of all, any, .*Did you mean all\?"),
    ({"all": []}, r"filter\.all: expected a list of nodes, not empty, found \[\]"),
    ({"any": P1}, r"filter\.any: expected a list of nodes"),
    ({"all": [P1], "min": 1}, r"filter\.min: expected one of all, found 'min'"),
    ({"all": [P1], "any": [P1]}, r"filter\.any: expected one of all, found 'any'"),
    ({"not": [P1]}, r"filter\.not: expected a mapping"),
    (
        {"not": {"feature": "recency", "op": "<", "value": 1}},
        r"filter\.not\.feature: expected one of .*recency_days.*Did you mean recency_days\?",
    ),
    ({"feature": ["x"], "op": "=", "value": 1}, r"filter\.feature: expected one of recency_days"),
    ({"feature": "recency_days", "value": 1}, r"filter\.op: expected one of =, !=, <.*found noth"),
    ({"feature": "recency_days", "op": "==", "value": 1}, r"filter\.op: expected one of =, !=,"),
    ({"feature": "recency_days", "op": "<"}, r"filter\.value: expected a value, found nothing"),
    (
        {"feature": "recency_days", "op": "<", "value": "9"},
        r"filter\.value: expected a finite number, found '9'",
    ),
    ({"feature": "recency_days", "op": "=", "value": True}, r"filter\.value: expected a finite"),
    (
        {"feature": "recency_days", "op": "<", "value": float("inf")},
        r"filter\.value: expected a finite number, found inf",
    ),
    (
        {"feature": "recency_days", "op": "between", "value": [9, 1]},
        r"filter\.value: expected the lower value first, found \[9, 1\]\. Swap them",
    ),
    (
        {"feature": "recency_days", "op": "between", "value": 9},
        r"filter\.value: expected a list of two values",
    ),
    ({"feature": "recency_days", "op": "in", "value": 9}, r"filter\.value: expected a list, not"),
    (
        {"feature": "recency_days", "op": "in", "value": [9, None]},
        r"filter\.value\[1\]: expected a finite number, found None",
    ),
    (
        {"feature": "recency_days", "op": "is_null", "value": False},
        r"filter\.value: expected no value with is_null.*Use `not` to negate",
    ),
    (
        {"feature": "channel_favourite_365d", "op": "<", "value": "b"},
        r"filter\.op: expected one of =, !=, in, is_null for text values, found '<'",
    ),
    (
        {"feature": "channel_favourite_365d", "op": "=", "value": 1.5},
        r"filter\.value: expected text, found 1\.5",
    ),
    ({"feature": "recency_days", "op": "<", "values": 1}, r"filter\.values: .*Did you mean value"),
    (
        {"segment": "tear", "in": ["new"]},
        r"filter\.segment: expected one of tier, tier_detail, rfm_class, stage, label, r_score, "
        r"f_score, m_score, found 'tear'\. Did you mean tier\?",
    ),
    (
        {"segment": "tier", "in": ["new", "vip"]},
        r"filter\.in\[1\]: expected one of prospect, lost, sleeping, champion, new, potential, "
        r"regular, found 'vip'",
    ),
    ({"segment": "tier", "in": "new"}, r"filter\.in: expected a list, not empty, found 'new'"),
    ({"segment": "tier"}, r"filter\.in: expected a list of ids, found nothing"),
    ({"segment": "r_score", "in": [4]}, r"filter\.in\[0\]: expected one of 1, 2, 3, found 4"),
    ({"segment": "r_score", "in": [True]}, r"filter\.in\[0\]: expected one of 1, 2, 3, found True"),
    ({"purchase": "P1"}, r"filter\.purchase: expected a mapping with any of product"),
    ({"purchase": {"product": []}}, r"filter\.purchase\.product: expected a value, or a list"),
    ({"purchase": {"product": None}}, r"filter\.purchase\.product: expected text, found None"),
    (
        {"purchase": {"kind": "percent"}},
        r"filter\.purchase\.kind: expected one of threshold_off, nth_item, percent_off, "
        r"first_order, fixed_off, found 'percent'",
    ),
    (
        {"purchase": {"daypart": ["lunch", "noon"]}},
        r"filter\.purchase\.daypart\[1\]: expected one of morning, lunch, .* found 'noon'",
    ),
    ({"purchase": {"workday": "yes"}}, r"filter\.purchase\.workday: expected true or false"),
    ({"purchase": {"min_order_value": "5"}}, r"\.min_order_value: expected a finite number"),
    ({"purchase": {}, "within": 3}, r"filter\.within: expected one of purchase, within_days"),
    ({"purchase": {}, "within_days": -1}, r"filter\.within_days: expected a whole number of at"),
    ({"purchase": {}, "within_days": 1.5}, r"filter\.within_days: expected a whole number"),
    (
        {"purchase": {}, "within_days": 1, "between_days": [1, 2]},
        r"filter\.between_days: expected one window, found within_days too",
    ),
    ({"purchase": {}, "between_days": [9, 1]}, r"filter\.between_days: expected the lower age"),
    ({"purchase": {}, "between_days": 9}, r"filter\.between_days: expected a list of two ages"),
    ({"purchase": {}, "min": 3, "max": 2}, r"filter\.max: expected at least min \(3\), found 2"),
    ({"purchase": {}, "min": True}, r"filter\.min: expected a whole number"),
    ({"event": {"type": "open"}}, r"filter\.event\.type: expected one of sent, opened, clicked,"),
    ({"event": {"product": "P1"}}, r"filter\.event\.product: expected one of type, campaign"),
    ({"offer": {"arm": "control"}}, r"filter\.offer\.arm: expected one of M199, HALF2, OFF20"),
    ({"customer": 3, "op": "is_null"}, r"filter\.customer: expected a column of the customers"),
    ({"audience": ["a"]}, r"filter\.audience: expected the name of an audience"),
    ({"audience": "a", "min": 1}, r"filter\.min: expected one of audience"),
]


@pytest.mark.parametrize(("raw", "message"), MISTAKES)
def test_a_mistake_is_named_by_its_place(raw: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}" if message[0] != "\\" else message):
        parse(raw, make_config(), nothing_named)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"customer": "regoin", "op": "=", "value": "north"},
            r"^filter\.customer: expected one of .*region.*Did you mean region\?",
        ),
        ({"customer": "region", "op": ">", "value": "n"}, r"^filter\.op: .* for text values"),
        ({"customer": "loyal", "op": "=", "value": "yes"}, r"^filter\.value: expected true or fal"),
        (
            {"customer": "joined_at", "op": ">", "value": "soon"},
            r"^filter\.value: expected a time, found 'soon'\. Write it as ISO 8601",
        ),
    ],
)
def test_columns_of_the_customers_table_are_checked(full: Tables, raw: Any, message: str) -> None:
    check_filter(raw | {"op": "=", "value": "x"}, make_config())  # no table, any column
    with pytest.raises(ConfigError, match=message):
        check_filter(raw, make_config(), full)


def test_depth_and_size_are_limited() -> None:
    raw: Any = P1
    for _ in range(7):
        raw = {"not": raw}
    assert parse(raw, make_config(), nothing_named)
    with pytest.raises(ConfigError, match=r"^filter(\.not){8}: expected a depth of at most 8"):
        parse({"not": raw}, make_config(), nothing_named)
    # A mapping that contains itself (YAML can write one) ends there too.
    raw = {"all": []}
    raw["all"].append(raw)
    with pytest.raises(ConfigError, match="a depth of at most 8"):
        parse(raw, make_config(), nothing_named)
    wide = {"any": [P1] * (MAX_NODES - 1)}
    parsed = parse(wide, make_config(), nothing_named)
    assert not isinstance(parsed, All | Count)
    with pytest.raises(ConfigError, match=rf"^filter\.any\[{MAX_NODES - 1}\]: expected at most"):
        parse({"any": [*wide["any"], P1]}, make_config(), nothing_named)


def test_defaults_and_single_values() -> None:
    config = make_config()

    def one(raw: Any) -> Count:
        found = parse(raw, config, nothing_named)
        assert isinstance(found, Count)
        return found

    assert one(P1) == one({"purchase": {"product": ["P1"]}, "min": 1})
    assert (one(P1).least, one(P1).most, one(P1).ages) == (1, None, None)
    never = one(P1 | {"max": 0, "within_days": 30})
    assert (never.least, never.most, never.ages) == (0, 0, (0, 30))
    # Ids are text; YAML reads 17 as a number.
    assert one({"purchase": {"store": 17}}) == one({"purchase": {"store": "17"}})
    assert OFFERS[1]["kind"] == "nth_item"
    assert one({"offer": {"kind": "nth_item"}}).keys == (("kind", ("nth_item",)),)
