"""Filters, triggers, channels, stock and limits of a configuration reach the decisions file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from features.errors import ConfigError, DataError
from serving.arms import ArmRules, open_arms
from serving.audience_manifest import check_decisions
from serving.population import from_features, from_source
from serving.score import DecisionsFile, summary, write_decisions
from serving.scorer import Scorer
from serving.snapshot import ensure_snapshot
from tests.unit.serving.small_shop import AS_OF, OFFERS, REFUSED, SALT, Shop, make_config

AMPLE = {"budget": None, "holdout_share": 0.0, "exploration_share": 0.0}
BUYERS = {"feature": "orders_total", "op": ">=", "value": 12}


def offers(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [offer | changes.get(offer["coupon_id"], {}) for offer in OFFERS]


def written(shop: Shop, folder: Path, **sections: Any) -> tuple[pd.DataFrame, DecisionsFile]:
    """The decisions under a configuration; the population is made anew where it may matter."""
    config = make_config(shop.root / "tables", **({"policy": AMPLE} | sections))
    plain = not ({"contact", "triggers", "timezone"} & set(sections))
    plain &= "'who'" not in str(sections) and "'eligible'" not in str(sections)
    plain &= "'channels'" not in str(sections)
    people = shop.population if plain else from_source(config, shop.model.bundle, AS_OF, threads=1)
    file = write_decisions(people, shop.model, config, SALT, folder / "d.parquet")
    return pd.read_parquet(file.path), file


def test_a_filter_keeps_a_coupon_to_whom_it_is_for(shop: Shop, tmp_path: Path) -> None:
    plain, _ = written(shop, tmp_path)
    frame, _ = written(shop, tmp_path, offers=offers(c5={"eligible": BUYERS}))
    orders = pd.read_csv(shop.root / "tables/transactions.csv")
    many = orders.groupby("customer_id")["order_id"].nunique().reindex(frame["customer_id"]) >= 12
    assert set(frame["coupon_id"].dropna()) == {"c5", "p10"}
    assert many[frame["coupon_id"].eq("c5").to_numpy()].all()
    assert plain["coupon_id"].eq("c5").sum() > frame["coupon_id"].eq("c5").sum()
    assert not (frame["reason"] == "not_eligible").any()
    none = offers(c5={"eligible": BUYERS}, p10={"eligible": BUYERS})
    frame, file = written(shop, tmp_path, offers=none)
    refused = frame["reason"] == "not_eligible"
    assert (refused | many.to_numpy() | (frame["reason"] == "no_consent")).all()
    assert refused.sum() == file.manifest["reasons"]["not_eligible"] > 50


def test_stock_and_limits_are_kept_and_shown(shop: Shop, tmp_path: Path) -> None:
    limits = [
        {"name": "cooling", "who": {"segment": "tier", "in": ["regular"]}, "most": 20},
        {"name": "p10-money", "coupons": ["p10"], "of": "cost", "most": 9.5},
    ]
    policy = {"budget": 120, "holdout_share": 0.1, "exploration_share": 0.2, "limits": limits}
    frame, file = written(shop, tmp_path, policy=policy, offers=offers(c5={"stock": 25}))
    manifest = file.manifest
    sent = frame[frame["action"] == "offer"]
    used = {limit["name"]: limit for limit in manifest["limits"]}
    assert list(used) == ["stock of c5", "cooling", "p10-money"]
    assert used["stock of c5"]["used"] == (sent["coupon_id"] == "c5").sum() <= 25
    assert used["cooling"]["used"] == (sent["tier"] == "regular").sum() <= 20
    money = sent.loc[sent["coupon_id"] == "p10", "expected_cost"].sum()
    assert used["p10-money"]["used"] == pytest.approx(money)
    assert money <= 9.5
    assert manifest["expected_cost"] <= 120
    assert manifest["expected_cost_by_coupon"]["p10"] == pytest.approx(money)
    assert manifest["gap"] >= 0
    assert "limit stock of c5: " in summary(file)
    # Something binds: without the limits more is sent.
    free, _ = written(shop, tmp_path, policy={**policy, "limits": []})
    assert (free["action"] == "offer").sum() > len(sent)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stock": 0}, "coupon_out_of_stock"),
        ({"valid_until": AS_OF.isoformat()}, "coupon_expired"),
        ({"valid_from": "2026-01-01T00:00:01Z"}, "coupon_expired"),
        ({"eligible": {"segment": "tier", "in": ["champion"]}}, "not_eligible"),
    ],
)
def test_where_no_arm_is_left_the_reason_says_so(
    shop: Shop, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    config = {"offers": offers(c5=change, p10=change)}
    frame, _ = written(shop, tmp_path, **config)
    nobody = frame["tier"] != "champion" if reason == "not_eligible" else frame["tier"].notna()
    others = {"no_consent", "contact_cap"} - (
        {"contact_cap"} if reason == "not_eligible" else set()
    )
    assert set(frame.loc[nobody, "reason"]) <= {reason, *others}
    assert (frame["reason"] == reason).sum() > 200


def test_rules_that_fired_stand_in_the_file(shop: Shop, tmp_path: Path) -> None:
    rule = {"name": "often", "when": BUYERS, "effect": {"add_arms": ["p10"]}}
    frame, _ = written(shop, tmp_path, triggers=[rule, "before_lapse"])
    assert list(frame.columns)[-1] == "rules_fired"
    fired = frame["rules_fired"].str.split(",").map(lambda names: "often" in names)
    assert set(frame.loc[~fired, "coupon_id"].dropna()) == {"c5"}
    assert "p10" in set(frame.loc[fired, "coupon_id"])
    assert frame["rules_fired"].str.contains("before_lapse").any()


def test_a_campaign_that_rules_let_into_takes_nobody_else(shop: Shop, tmp_path: Path) -> None:
    door = {"name": "door", "when": BUYERS, "effect": {"enter_campaign": "spring"}}
    frame, _ = written(shop, tmp_path, triggers=[door])
    outside = ~frame["rules_fired"].eq("door")
    assert set(frame.loc[outside, "reason"]) <= {"not_eligible", "no_consent"}
    assert (frame.loc[~outside, "action"] == "offer").any()


def test_quiet_hours_refuse_only_what_is_sent_at_once(shop: Shop, tmp_path: Path) -> None:
    later, _ = written(shop, tmp_path)
    assert "quiet_hours" not in set(later["reason"])
    # The moment is midnight in UTC and nine in the morning in Tokyo.
    frame, _ = written(shop, tmp_path, contact={"send": "immediate"})
    assert set(frame["reason"]) == {"quiet_hours", "no_consent", "contact_cap"}
    tokyo, _ = written(shop, tmp_path, contact={"send": "immediate"}, timezone="Asia/Tokyo")
    assert "quiet_hours" not in set(tokyo["reason"])


def test_a_snapshot_of_the_night_has_the_price_of_the_day(shop: Shop, tmp_path: Path) -> None:
    config = make_config(shop.root / "tables", contact={"send": "immediate"})
    people = replace(
        shop.population, quiet_until=np.full(300, np.datetime64("2026-01-01T09:00", "us"))
    )
    snapshot = ensure_snapshot(
        config, shop.model, SALT, root=tmp_path / "data", build=lambda _: people
    )
    assert snapshot.shadow_price == shop.snapshot.shadow_price > 0


def test_the_file_recommends_when_to_send(shop: Shop, tmp_path: Path) -> None:
    frame, _ = written(shop, tmp_path, contact={"send_time": True})
    assert list(frame.columns)[-3:] == ["send_weekday", "send_hour", "send_basis"]
    assert frame["send_hour"].between(9, 20).all()
    assert frame["send_weekday"].between(0, 6).all()


def test_channels_are_named_and_capped(shop: Shop, tmp_path: Path) -> None:
    both = offers(c5={"channels": ["sms", "push"]}, p10={"channels": ["push"]})
    frame, _ = written(shop, tmp_path, offers=both)
    assert list(frame.columns)[-1] == "channel"
    sent = frame["action"] == "offer"
    assert frame.loc[~sent, "channel"].isna().all()
    assert set(frame.loc[frame["coupon_id"] == "p10", "channel"]) == {"push"}
    # Nothing tells the channels apart, so the cheaper is recommended; they may be sent 30 and 10.
    costs = {"channel_costs": {"sms": 0.05}}
    policy = {**AMPLE, "limits": [{"name": "push-cap", "channels": ["push"], "most": 30}]}
    frame, file = written(shop, tmp_path, offers=both, contact=costs, policy=policy)
    assert set(frame["channel"].dropna()) == {"push"}
    assert len(frame["channel"].dropna()) == 30 == file.manifest["limits"][0]["used"]
    never = {"caps": {"push": {"7d": 0}}}
    frame, _ = written(shop, tmp_path, offers=both, contact=never)
    assert set(frame["channel"].dropna()) == {"sms"}
    assert set(frame["coupon_id"].dropna()) == {"c5"}


def test_the_server_decides_as_the_file_does(shop: Shop, tmp_path: Path) -> None:
    """Filters, stock, limits and triggers, from the snapshot alone, but for the marginal few."""
    limits = [{"name": "cooling", "who": {"segment": "tier", "in": ["regular"]}, "most": 20}]
    config = make_config(
        shop.root / "tables",
        policy={"budget": 120, "holdout_share": 0.1, "exploration_share": 0.1, "limits": limits},
        offers=offers(c5={"stock": 25}, p10={"eligible": BUYERS, "channels": ["sms"]}),
        triggers=["old_track"],
    )
    people = from_source(config, shop.model.bundle, AS_OF, threads=1)
    file = write_decisions(people, shop.model, config, SALT, tmp_path / "d.parquet")
    frame = pd.read_parquet(file.path).set_index("customer_id")
    root = tmp_path / "data"
    snapshot = ensure_snapshot(config, shop.model, SALT, root=root, build=lambda _: people)
    scorer = Scorer(shop.model, snapshot, config, SALT, clock=lambda: AS_OF)
    answer = scorer.answer(frame.index.tolist(), request_id="r")
    reasons = pd.Series({d.customer_id: str(d.reason) for d in answer.decisions})
    coupons = pd.Series({d.customer_id: d.coupon_id for d in answer.decisions})
    differ = (reasons != frame["reason"]) | (coupons.fillna("") != frame["coupon_id"].fillna(""))
    assert differ.sum() <= 3
    assert {"contact_cap", "no_consent", "best_net_value", "below_threshold"} <= set(reasons)
    assert set(coupons.dropna()) == {"c5", "p10"}
    prices = {limit["name"]: limit["price"] for limit in snapshot.manifest["limits"]}
    assert prices["stock of c5"] > 0


class TestUnseen:
    """A coupon that came after the training."""

    NEW: ClassVar[dict[str, Any]] = {
        "coupon_id": "new7", "kind": "fixed_off", "params": {"off": 7.0}, "contact_cost": 0.5,
        "funded_share": 0.5,
    }  # fmt: skip
    POLICY: ClassVar[dict[str, Any]] = {
        "budget": 300, "holdout_share": 0.1, "exploration_share": 0.4
    }  # fmt: skip

    def made(self, shop: Shop, folder: Path, **sections: Any) -> tuple[pd.DataFrame, DecisionsFile]:
        given = {"policy": self.POLICY, "offers": [*OFFERS, self.NEW]} | sections
        config = make_config(shop.root / "tables", **given)
        people = from_source(config, shop.model.bundle, AS_OF, threads=1)
        file = write_decisions(people, shop.model, config, SALT, folder / "d.parquet")
        return pd.read_parquet(file.path), file

    def test_it_is_drawn_and_never_chosen(self, shop: Shop, tmp_path: Path) -> None:
        rules = offers(c5={"eligible": BUYERS})
        frame, file = self.made(shop, tmp_path, offers=[*rules, self.NEW])
        new = frame["coupon_id"] == "new7"
        assert new.sum() > 10
        assert frame.loc[new, "is_exploration"].all()
        assert frame["cate_new7"].isna().all()
        assert list(frame.columns).index("cate_new7") < list(frame.columns).index("cost_c5")
        # A third of the draws among control and three arms, or two where c5 is not for them.
        prob = frame.loc[new, "assignment_prob"]
        assert set(prob.round(6)) <= {round(0.9 * 0.4 / n, 6) for n in (3, 4)}
        assert file.manifest["offers_by_coupon"]["new7"] == new.sum()
        assert file.manifest["expected_cost"] <= 300
        assert "new7: the model has not seen them" in summary(file)
        assert check_decisions(file.path)

    def test_its_cost_is_replayed(self, shop: Shop, tmp_path: Path) -> None:
        """0.5 for the contact, and half of at most 7 for the share of the tier that orders in two
        weeks; every order of the shop comes to 7 and more, but for a few."""
        frame, _ = self.made(shop, tmp_path)
        orders = pd.read_csv(shop.root / "tables/transactions.csv", parse_dates=["transacted_at"])
        last = orders.groupby("customer_id")["transacted_at"].max().reindex(frame["customer_id"])
        recent = ((pd.Timestamp("2026-01-01") - last).dt.days <= 14).to_numpy()
        for tier in ("champion", "potential", "sleeping"):
            mine = (frame["tier"] == tier).to_numpy()
            cost = frame.loc[mine, "cost_new7"].unique()
            assert len(cost) == 1
            most = 0.5 + recent[mine].mean() * 7 * 0.5
            assert 0.5 + 0.8 * (most - 0.5) <= cost[0] <= most + 1e-6

    def test_what_is_never_claimed_or_used_later_is_replayed_too(
        self, shop: Shop, tmp_path: Path
    ) -> None:
        """Points less their breakage; a reward for the next order, on an order like the last."""
        points = {"multiplier": 3, "point_value": 0.01}
        kinds = {
            "all": {"kind": "points", "params": points},
            "half": {"kind": "points", "params": points | {"breakage": 0.5}},
            "now": {"kind": "threshold_off", "params": {"threshold": 30, "off": 9}},
            "next": {
                "kind": "threshold_off",
                "params": {"threshold": 30, "off": 9, "reward": "next_order"},
            },
        }
        new = [{"coupon_id": name, "contact_cost": 0.25, **kind} for name, kind in kinds.items()]
        frame, _ = self.made(shop, tmp_path, offers=[*OFFERS, *new])
        cost = {name: frame[f"cost_{name}"].astype(float) - 0.25 for name in kinds}
        assert cost["all"].max() > 0.1
        np.testing.assert_allclose(cost["half"], cost["all"] / 2, atol=1e-6)
        assert cost["now"].max() > 1
        np.testing.assert_allclose(cost["next"], cost["now"], atol=1e-6)

    def test_without_exploration_nobody_gets_it(self, shop: Shop, tmp_path: Path) -> None:
        frame, _ = self.made(shop, tmp_path, policy={"budget": 300})
        plain, _ = self.made(shop, tmp_path, policy=AMPLE)
        assert not (plain["coupon_id"] == "new7").any()
        assert frame.loc[frame["coupon_id"] == "new7", "is_exploration"].all()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"policy": {"limits": [{"name": "x", "most": 1, "coupons": ["c9"]}]}},
         r"policy\.limits\.x\.coupons: expected names of offers \(c5, p10\), found c9"),
        ({"policy": {"limits": [{"name": "x", "most": 1, "channels": ["fax"]}]}},
         r"policy\.limits\.x\.channels: expected names of offers \(there are none\), found fax"),
        ({"policy": {"limits": [{"name": "x", "most": 1, "who": {"segment": "rank", "in": [1]}}]}},
         r"policy\.limits\.x\.who\.segment: expected one of tier"),
        ({"offers": offers(c5={"eligible": {"feature": "orders"}})},
         r"offers\.c5\.eligible\.feature: expected one of"),
    ],
)  # fmt: skip
def test_refuses(shop: Shop, tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        written(shop, tmp_path, **sections)


def test_a_feature_file_cannot_tell_whom_rules_let_through(shop: Shop, tmp_path: Path) -> None:
    config = make_config(shop.root / "tables", offers=offers(c5={"eligible": BUYERS}))
    with pytest.raises(DataError, match=r"without rules that look at customers, found offers\.c5"):
        from_features(tmp_path / "f.csv", config, shop.model.bundle, AS_OF, threads=1)


def test_the_moment_opens_an_arm_when_its_first_channel_is_free() -> None:
    """One customer, two arms: both capped, by channels until day 5 and day 3, all until day 2."""
    at = [np.datetime64(f"2026-01-0{day}", "us") for day in range(1, 8)]
    yes = np.ones((1, 2), dtype=bool)
    rules = ArmRules((), yes, yes, yes[:, 0], np.array([[at[4], at[2]]]),
                     np.zeros((1, 2), dtype=np.int8))  # fmt: skip
    consent, free = np.array([True]), np.array([at[1]])
    found = open_arms(rules, consent, free, 2, at[0])
    assert (found.arms.tolist(), found.free_at[0]) == ([[False, False]], at[2])
    found = open_arms(rules, consent, free, 2, at[2])
    assert found.arms.tolist() == [[False, True]]
    assert np.isnat(found.free_at[0])
    # What is not eligible does not count as free.
    closed = replace(rules, eligible=np.array([[True, False]]))
    assert open_arms(closed, consent, free, 2, at[0]).free_at[0] == at[4]
    nobody = replace(rules, entered=~yes[:, 0])
    assert not open_arms(nobody, consent, free, 2, at[6]).eligible[0]
    assert open_arms(nobody, consent, free, 2, at[6], entering=False).eligible[0]
    refused = open_arms(rules, ~consent, free, 2, at[6])
    assert not refused.consent[0]


def test_a_refusal_of_the_customer_stands_before_every_rule(shop: Shop, tmp_path: Path) -> None:
    frame, _ = written(shop, tmp_path, offers=offers(c5={"stock": 0}, p10={"stock": 0}))
    reason = frame.set_index("customer_id")["reason"]
    assert reason[REFUSED] == "no_consent"
