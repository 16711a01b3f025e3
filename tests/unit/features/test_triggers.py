"""Trigger rules: the worked customers, what beats what, and how often a rule fires."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.config import validate
from features.errors import ConfigError
from features.spine import all_customers
from features.tables import Tables
from features.triggers import SHIPPED, Fired, chosen, fire, rules_of
from tests.unit.features.conftest import make_config, make_tables
from tests.unit.features.test_segments import FROZEN
from tests.unit.features.worked_example import AS_OF, EXPOSURES, OFFERS, TRANSACTIONS, ZONE

MORE: list[dict[str, Any]] = [
    {"coupon_id": "small", "kind": "fixed_off", "params": {"off": 5}, "tags": ["small"]},
    {"coupon_id": "big", "kind": "fixed_off", "params": {"off": 30}, "tags": ["larger"]},
    {"coupon_id": "set", "kind": "bundle", "params": {"items": ["P1", "P2"], "price": 9}},
    {"coupon_id": "p5", "kind": "percent_off", "params": {"rate_off": 0.05}, "tags": ["generic"]},
    {"coupon_id": "f3", "kind": "fixed_off", "params": {"off": 3}, "tags": ["generic"]},
    {"coupon_id": "salon", "kind": "non_cash", "params": {"unit_cost": 30}},
    {"coupon_id": "cake", "kind": "gift", "params": {"unit_cost": 3}, "tags": ["birthday"]},
    {"coupon_id": "note", "kind": "message"},
]
ARMS = [offer["coupon_id"] for offer in MORE]


@pytest.fixture(scope="module")
def shop() -> Tables:
    return make_tables(
        transactions=pd.read_csv(io.StringIO(TRANSACTIONS), dtype={"amount": float}),
        exposures=pd.read_csv(io.StringIO(EXPOSURES)),
    )


def run(tables: Tables, triggers: list[Any], **sections: Any) -> tuple[list[str], Fired]:
    config = make_config(timezone=ZONE, offers=[*OFFERS, *MORE], triggers=triggers, **sections)
    spine = all_customers(tables, AS_OF, config)
    return spine["customer_id"].tolist(), fire(tables, spine, ARMS, config, FROZEN)


def who(ids: list[str], flags: np.ndarray) -> str:
    return "".join(sorted(np.array(ids)[flags]))


@pytest.mark.parametrize(
    ("rule", "customers"),
    [
        ("second_purchase_day7", "C"),
        ("before_lapse", "BF"),
        ("inactive_3w", "BDEF"),
        ("coupon_expiring", "AB"),
        ("sleeping_larger", "D"),
        ("potential_bundle", "B"),
        ("champion_no_generic", "A"),
        ("new_track", "H"),
        ("old_track", "ABCDEFGI"),
    ],
)
def test_the_worked_customers(shop: Tables, rule: str, customers: str) -> None:
    ids, found = run(shop, [rule])
    assert found.names == (rule,)
    assert who(ids, found.fired[:, 0]) == customers


def test_the_shipped_rules_together(shop: Tables) -> None:
    rules = ["second_purchase_day7", "coupon_expiring", "sleeping_larger", "potential_bundle",
             "champion_no_generic", "birthday_month"]  # fmt: skip
    ids, found = run(shop, rules)
    candidates = {
        i: {ARMS[k] for k in np.flatnonzero(row)}
        for i, row in zip(ids, found.candidates, strict=True)
    }
    # Nobody's birthday is known, so nobody gets the cake. What no rule adds is for everyone.
    everyone = {"p5", "f3", "note"}
    assert candidates["G"] == everyone
    assert candidates["C"] == everyone | {"small"}
    assert candidates["D"] == everyone | {"big"}
    # A and B have a coupon that expires: a reminder, and nothing new but a message.
    assert candidates["A"] == candidates["B"] == {"note"}
    assert who(ids, found.reminded) == "AB"
    texts = dict(zip(ids, found.texts(), strict=True))
    assert texts["A"] == "coupon_expiring,champion_no_generic"
    assert texts["B"] == "coupon_expiring,potential_bundle"
    assert texts["G"] == ""
    ids, found = run(shop, [r for r in rules if r != "coupon_expiring"])
    a, b = ids.index("A"), ids.index("B")
    assert {ARMS[k] for k in np.flatnonzero(found.candidates[a])} == {"salon", "note"}
    assert {ARMS[k] for k in np.flatnonzero(found.candidates[b])} == {"set", "f3", "note"}


def test_remove_beats_add_in_any_order_and_only_keeps_no_other(shop: Tables) -> None:
    everyone = {"feature": "orders_total", "op": ">=", "value": 0}
    add = {"name": "add", "when": everyone, "effect": {"add_arms": ["small", "big"]}}
    remove = {"name": "remove", "when": everyone, "effect": {"remove_arms": ["big"]}}
    for rules in ([add, remove], [remove, add]):
        _, found = run(shop, rules)
        assert found.candidates[:, ARMS.index("small")].all()
        assert not found.candidates[:, ARMS.index("big")].any()
    champions = {"segment": "tier", "in": ["champion"]}
    only = {"name": "only", "when": champions, "effect": {"only_arms": [{"kind": "non_cash"}]}}
    ids, found = run(shop, [add, only])
    a = ids.index("A")
    assert {ARMS[k] for k in np.flatnonzero(found.candidates[a])} == {"salon"}
    assert found.candidates[ids.index("G")].all()


def test_a_campaign_takes_only_whom_a_rule_lets_in(shop: Tables) -> None:
    ids, found = run(shop, ["inactive_3w", "before_lapse"], name="care")
    assert who(ids, found.entered) == "BDEF"
    ids, found = run(shop, ["inactive_3w", "before_lapse"], name="renewal")
    assert who(ids, found.entered) == "BF"
    ids, found = run(shop, ["inactive_3w", "before_lapse"])
    assert found.entered.all()
    assert found.candidates.all()


class TestOncePer:
    def tables(self, at: str, arm: str = "small", **more: Any) -> Tables:
        exposures = pd.read_csv(io.StringIO(EXPOSURES))
        row = {"customer_id": "C", "campaign_id": "K5", "assigned_at": at, "arm": arm, **more}
        return make_tables(
            transactions=pd.read_csv(io.StringIO(TRANSACTIONS), dtype={"amount": float}),
            exposures=pd.concat([exposures, pd.DataFrame([row])]),
        )

    @pytest.mark.parametrize(
        ("at", "customers"),
        [
            ("2025-12-22T14:00Z", ""),  # after the first order
            ("2025-12-21T15:00Z", "C"),  # local 21 December, the day before the first order
            ("2025-12-31T16:00Z", "C"),  # at the moment: not seen
        ],
    )
    def test_first_order(self, at: str, customers: str) -> None:
        ids, found = run(self.tables(at), ["second_purchase_day7"])
        assert who(ids, found.fired[:, 0]) == customers

    @pytest.mark.parametrize(
        ("once", "at", "fires"),
        [
            ("30d", "2025-12-02T15:59Z", True),  # local 2 December: 30 days ago
            ("30d", "2025-12-02T16:00Z", False),
            # The moment is the first of the year 2026 in Shanghai.
            ("calendar_year", "2025-12-31T15:59Z", True),
            ("coupon", "2025-12-30T00:00Z", False),
        ],
    )
    def test_times(self, once: str, at: str, fires: bool) -> None:
        rule = {"name": "r", "when": {"feature": "orders_total", "op": "=", "value": 1},
                "effect": {"add_arms": ["small"]}, "once_per": once}  # fmt: skip
        ids, found = run(self.tables(at), [rule])
        assert ("C" in who(ids, found.fired[:, 0])) == fires
        assert "F" in who(ids, found.fired[:, 0])

    def test_one_reminder_for_each_coupon(self) -> None:
        """A's newest coupon is of 27 December; a reminder before it says nothing of it."""
        for at, customers in (("2025-12-29T00:00Z", "B"), ("2025-12-26T00:00Z", "AB")):
            more = {"customer_id": "A", "variant": "reminder"}
            ids, found = run(self.tables(at, "FIX10", **more), ["coupon_expiring"])
            assert who(ids, found.fired[:, 0]) == customers


def test_the_stages_of_the_clock(shop: Tables) -> None:
    """Makeup is assumed at day 100: I (27 December, age 5) is at 105, C (age 10) at 110."""
    clocks = {"m": {"anchors": {"makeup": 100}, "stages": {"one": [0, 103], "two": [103, 400]}}}
    ids, found = run(shop, ["product_stage"], stage_clocks=clocks)
    assert found.names == ("product_stage_1", "product_stage_2")
    assert who(ids, found.fired[:, 1]) == "I"
    assert not found.fired[:, 0].any()


def test_selectors_name_an_id_or_a_kind_and_a_tag() -> None:
    offers = make_config(offers=[*OFFERS, *MORE]).offers
    assert chosen(["small"], offers) == {"small"}
    assert chosen([{"kind": "fixed_off"}], offers) == {"small", "big", "f3", "FIX10"}
    assert chosen([{"kind": "fixed_off", "tag": "generic"}], offers) == {"f3"}
    assert chosen([{"tag": "generic"}, "salon"], offers) == {"p5", "f3", "salon"}
    assert chosen([], offers) == set()


@pytest.mark.parametrize(
    ("triggers", "message"),
    [
        (["before_laps"], r"triggers\.0: expected a rule, or one of second_purchase_day7"),
        (["before_lapse", "before_lapse"], "a name of its own for each rule, found before_lapse"),
        (["product_stage"], "expected a clock under stage_clocks"),
        (
            [{"name": "r", "when": {"feature": "orders_total", "op": "=", "value": 1},
              "effect": {"add_arms": ["nothing"]}}],
            r"triggers\.r\.effect\.add_arms: expected a coupon of offers",
        ),
        (
            [{"name": "r", "when": {"feature": "nonsense", "op": "=", "value": 1},
              "effect": {"remind": True}}],
            r"triggers\.r\.when\.feature: expected one of",
        ),
        (
            [{"name": "r", "when": {"coupon": {"expires": 3}}, "effect": {"remind": True}}],
            r"triggers\.r\.when\.coupon: expected \{expires_within_days: 3\}",
        ),
    ],
)  # fmt: skip
def test_refuses(shop: Tables, triggers: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(shop, triggers)


@pytest.mark.parametrize(
    ("triggers", "message"),
    [
        ([{"name": "r", "when": {}, "effect": {}}], "an effect, for example"),
        ([{"name": "r", "when": {}, "effect": {"add_arms": ["control"]}}], "control always stays"),
        ([{"name": "r", "when": {}, "effect": {"remind": True}, "once_per": "week"}], "once_per"),
    ],
)
def test_refuses_in_the_file(triggers: list[Any], message: str) -> None:
    raw = {"name": "x", "source": {"kind": "files"}, "outcome": {"kind": "conversion"}}
    with pytest.raises(ConfigError, match=message):
        validate(raw | {"triggers": triggers})


def test_every_shipped_rule_is_a_rule() -> None:
    config = make_config(offers=MORE, triggers=list(SHIPPED))
    assert len(rules_of(config)) == len(SHIPPED) + 1  # label_arms are two
