"""Every reason of the closed list over HTTP, and that of several the first of the table holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete

from serving.log import stock
from serving.log.schema import events
from serving.scorer import Scorer
from serving.startup import register_configured
from tests.unit.serving.answering import JSON, Client, asked, post, serving
from tests.unit.serving.small_shop import AS_OF, NO_ORDERS, Shop, shared_shop
from uplift.policy import Reason

IDS = [f"c-{i:03d}" for i in range(300)]
DAY = timedelta(days=1)
NOW = AS_OF + 3 * DAY


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


def live(shop: Shop, policy: dict[str, Any] | None = None, **offers: dict[str, Any]) -> Scorer:
    """A scorer whose time passes, with other settings of the policy and of offers."""
    config = shop.config
    source = config.source.model_copy(update={"as_of": "now"})
    changed = [o.model_copy(update=offers.get(o.coupon_id, {})) for o in config.offers]
    update = {"source": source, "offers": changed}
    if policy is not None:
        update["policy"] = config.policy.model_copy(update=policy)
    return shop.scorer(config=config.model_copy(update=update), clock=lambda: NOW)


def serve(client: Client, scorer: Scorer) -> None:
    """As a swap, or a new start with another configuration."""
    register_configured(client.service, scorer)
    client.app.holder.scorer = scorer


def body(**changes: Any) -> dict[str, Any]:
    return {
        "name": "Summer",
        "currency": "EUR",
        "starts_at": (AS_OF - DAY).isoformat(),
        "coupons": ["c5", "p10"],
        "holdout_bps": 0,
        "exploration_bps": 0,
        "window_days": 7,
        "feature_max_age_hours": 8760,
        "model_max_age_days": 3650,
    } | changes


def put(client: Client, name: str, content: dict[str, Any]) -> None:
    """Create or replace a campaign."""
    path = f"/v1/campaigns/{name}"
    there = client.get(path)
    condition = (
        {"if-match": there.headers["etag"]} if there.status_code == 200 else {"if-none-match": "*"}
    )
    answer = client.request(
        "PUT", path, content=json.dumps(content).encode(), headers={**JSON, **condition}
    )
    assert answer.status_code in (200, 201), answer.text


def decided(client: Client, *ids: str, campaign: str = "summer", **more: Any) -> list[Any]:
    answer = post(client, asked(*ids, campaign=campaign, **more))
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["decisions"]
    return found


def told(client: Client, *content: dict[str, Any]) -> None:
    """Report events that happen now."""
    rows = [{"event_id": f"e-{i}-{e['type']}", **e} for i, e in enumerate(content)]
    rows = [{"occurred_at": datetime.now(UTC).isoformat(), **row} for row in rows]
    answer = post(client, {"events": rows}, "/v1/events").json()
    assert answer["accepted"] == len(rows), answer


@pytest.fixture
def client(shop: Shop, tmp_path: Path) -> Iterator[Client]:
    with serving(live(shop), tmp_path) as found:
        yield found


def test_of_all_that_stands_against_an_offer_the_first_of_the_table_is_told(
    shop: Shop, tmp_path: Path
) -> None:
    """Everything that can stand against an offer does, and goes away one after the other."""
    good = live(shop, c5={"active": False}, p10={"stock": 1})
    old = replace(good, model=replace(good.model, registered_at=NOW - 200 * DAY))
    with serving(old, tmp_path) as client:
        put(client, "other", body())
        (winner,) = [d for d in decided(client, *IDS, campaign="other") if d["action"] == "offer"]
        who = winner["customer_id"]

        def with_people(scorer: Scorer, **changes: Any) -> Scorer:
            people = replace(scorer.snapshot.population, **changes)
            return replace(scorer, snapshot=replace(scorer.snapshot, population=people))

        held = live(shop, {"global_holdout_share": 1.0, "min_incremental_profit": 1e6},
                    c5={"active": False}, p10={"stock": 1})  # fmt: skip
        held = replace(held, model=old.model)
        scores = held.snapshot.population.scores
        silent = with_people(held, consent=np.zeros(300, dtype=bool))
        blind = with_people(
            silent, scores=replace(scores, reward=np.full_like(scores.reward, np.nan))
        )
        serve(client, blind)
        content = body(
            starts_at=(NOW + DAY).isoformat(),
            ends_at=(NOW + 2 * DAY).isoformat(),
            coupons=["c5"],
            holdout_bps=10_000,
            exploration_bps=10_000,
            feature_max_age_hours=1,
            model_max_age_days=120,
            eligibility={"not": {"feature": "recency_days", "op": ">=", "value": 0}},
            contact_caps=[{"max": 1, "days": 7}],
            quiet_hours={"start": "00:00", "end": "23:59"},
            send="immediate",
            budget={"cap_micros": 0},
        )
        put(client, "future", content)
        put(client, "past", content | {"starts_at": (AS_OF - 2 * DAY).isoformat(),
                                       "ends_at": (AS_OF - DAY).isoformat()})  # fmt: skip
        content |= {"starts_at": (AS_OF - DAY).isoformat(), "ends_at": None}
        put(client, "summer", content)
        for name in ("future", "past", "summer"):
            assert post(client, {}, f"/v1/campaigns/{name}/pause").status_code == 200

        decided(client, who)
        told(client, {"type": "ordered", "customer_id": who})

        def changing(**changes: Any) -> Callable[[], None]:
            def change() -> None:
                content.update(changes)
                put(client, "summer", content)

            return change

        def swapping(scorer: Scorer) -> Callable[[], None]:
            return lambda: serve(client, scorer)

        def unordered() -> None:
            with client.service.log.write() as connection:
                connection.execute(delete(events))

        def restocked() -> None:
            with client.service.log.write() as connection:
                stock.declare(client.service.log, connection, {"p10": 100})

        def resumed() -> None:
            post(client, {}, "/v1/campaigns/summer/resume")

        last = live(shop, {"min_incremental_profit": 1e6}, c5={"active": False}, p10={"stock": 100})
        steps: list[tuple[Reason, Callable[[], None] | None]] = [
            (Reason.CAMPAIGN_PAUSED, resumed),
            (Reason.STALE_FEATURES, changing(feature_max_age_hours=8760)),
            (Reason.STALE_MODEL, changing(model_max_age_days=3650)),
            (Reason.SCORING_UNAVAILABLE, swapping(silent)),
            (Reason.NO_CONSENT, swapping(held)),
            (Reason.NOT_ELIGIBLE, changing(eligibility=None)),
            (Reason.ALREADY_CONVERTED, unordered),
            (Reason.CONTACT_CAP, changing(contact_caps=[])),
            (Reason.QUIET_HOURS, changing(quiet_hours=None)),
            (Reason.COUPON_EXPIRED, changing(coupons=["c5", "p10"])),
            (Reason.COUPON_OUT_OF_STOCK, restocked),
            (Reason.BUDGET_EXHAUSTED, changing(budget={"cap_micros": 10**9})),
            (Reason.GLOBAL_HOLDOUT, swapping(last)),
            (Reason.HOLDOUT, None),
        ]
        (d,) = decided(client, who, campaign="future", dry_run=True)
        seen = [d["reason"]]
        (d,) = decided(client, who, campaign="past", dry_run=True)
        seen.append(d["reason"])
        for expected, away in steps:
            d, stranger = decided(client, who, "nobody", dry_run=True)
            assert d["reason"] == expected, (expected, d)
            assert d["action"] == "none"
            first = (Reason.CAMPAIGN_PAUSED, Reason.UNKNOWN_CUSTOMER)
            assert stranger["reason"] == first[expected != Reason.CAMPAIGN_PAUSED]
            # Both of these tell when to come back, and no other reason does.
            assert (d["retry_at"] is not None) == (expected in ("contact_cap", "quiet_hours"))
            seen += [stranger["reason"], d["reason"]]
            if away is not None:
                away()
        # Nobody is held out of a campaign that holds nobody out.
        content |= {"holdout_bps": 0, "exploration_bps": 10_000}
        put(client, "summer-2", content)
        (d,) = decided(client, who, campaign="summer-2", dry_run=True)
        seen.append(d["reason"])
        put(client, "summer-2", content | {"exploration_bps": 0})
        (d,) = decided(client, who, campaign="summer-2", dry_run=True)
        seen.append(d["reason"])
        serve(client, live(shop, c5={"active": False}, p10={"stock": 100}))
        (d,) = decided(client, who, campaign="summer-2", dry_run=True)
        seen.append(d["reason"])
        content |= {"unknown_customer": "default_offer", "default_coupon": "p10"}
        put(client, "summer-3", content | {"exploration_bps": 0})
        (d,) = decided(client, "nobody", campaign="summer-3", dry_run=True)
        assert d["reason"] == "unknown_customer"
        (d,) = consenting(client, "nobody", campaign="summer-3", dry_run=True)
        seen.append(d["reason"])
        # In the order of the table, and the whole of it.
        assert list(dict.fromkeys(seen)) == list(Reason)


def consenting(
    client: Client, *ids: str, campaign: str = "summer", said: Any = True, **more: Any
) -> list[Any]:
    """Decisions for customers of whom the request says whether they consent."""
    content = asked(*ids, campaign=campaign, **more)
    for customer in content["customers"]:
        customer["context"] = {"consent": said}
    answer = post(client, content)
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["decisions"]
    return found


# Customers whom the snapshot does not know

DEFAULT = {"unknown_customer": "default_offer", "default_coupon": "c5"}


def test_a_default_offer_is_charged_and_stands(client: Client, shop: Shop) -> None:
    put(client, "summer", body(**DEFAULT, budget={"cap_micros": 10**9, "safety_factor": 1.0}))
    names = [f"new-{i}" for i in range(5)]
    first = consenting(client, *names)
    # It costs what it is expected to cost with the one customer who has no orders.
    people = shop.population
    row = people.customer_id.tolist().index(NO_ORDERS.encode())
    cost = round(float(people.scores.cost[row, 0]) * 1e6)
    for d in first:
        assert (d["action"], d["reason"], d["coupon_id"]) == ("offer", "default_offer", "c5")
        assert (d["profile_state"], d["uplift"], d["response_propensity"]) == (
            "unknown", None, None,
        )  # fmt: skip
        assert (d["expected_incremental_profit_micros"], d["expected_cost_micros"]) == (0, cost)
        assert (d["assignment_prob"], d["warnings"]) == (
            1.0, ["features_aging"],
        )  # fmt: skip
    state = client.get("/v1/campaigns/summer").json()["budget_state"]
    assert state["committed_micros"] == 5 * cost
    # Without the consent in the request the offer still stands; with its refusal it does not.
    again = decided(client, *names)
    assert [d["decision_id"] for d in again] == [d["decision_id"] for d in first]
    assert all(d["sticky_hit"] and d["action"] == "offer" for d in again)
    assert {d["reason"] for d in consenting(client, *names, said=False)} == {"no_consent"}
    # Nobody else gets it.
    others = [*decided(client, "new-9"), *consenting(client, "new-10", said="yes")]
    assert {d["reason"] for d in others} == {"unknown_customer"}
    assert all(d["reason"] != "default_offer" for d in consenting(client, *IDS))


def test_a_default_offer_takes_part_in_holdouts_and_draws(client: Client) -> None:
    names = [f"new-{i}" for i in range(400)]
    put(client, "summer", body(**DEFAULT, holdout_bps=2000, exploration_bps=5000))
    found = consenting(client, *names)
    reasons = {r: [d for d in found if d["reason"] == r] for r in {d["reason"] for d in found}}
    assert set(reasons) == {"holdout", "exploration", "default_offer"}
    # Greedy 0.8 * (0.5 + 0.5 / 2); drawn control 0.8 * 0.25, held out 0.2 more.
    assert {d["assignment_prob"] for d in reasons["default_offer"]} == {0.6}
    assert {(d["arm"], d["assignment_prob"]) for d in reasons["exploration"]} == {
        ("c5", 0.6), ("control", 0.4),
    }  # fmt: skip
    assert {d["assignment_prob"] for d in reasons["holdout"]} == {0.4}
    assert 50 < len(reasons["holdout"]) < 115
    assert 120 < len(reasons["exploration"]) < 200


def test_a_default_offer_is_refused_for_what_stands_against_it(client: Client, shop: Shop) -> None:
    kept = body(**DEFAULT)
    put(
        client, "summer", kept | {"eligibility": {"feature": "recency_days", "op": ">", "value": 0}}
    )
    (d,) = consenting(client, "new-1")
    assert d["reason"] == "not_eligible"
    put(client, "summer", kept | {"contact_caps": [{"max": 1, "days": 7}]})
    put(client, "other", body(**DEFAULT))
    assert consenting(client, "new-1", campaign="other")[0]["reason"] == "default_offer"
    assert consenting(client, "new-1")[0]["reason"] == "contact_cap"
    told(client, {"type": "unsubscribed", "customer_id": "new-2"})
    assert consenting(client, "new-2")[0]["reason"] == "no_consent"
    assert client.request("DELETE", "/v1/customers/new-3").status_code == 202
    assert consenting(client, "new-3")[0]["reason"] == "unknown_customer"
    put(client, "summer", kept | {"budget": {"cap_micros": 1}})
    assert consenting(client, "new-4")[0]["reason"] == "budget_exhausted"
    put(client, "summer", kept | {"feature_max_age_hours": 1})
    assert consenting(client, "new-4")[0]["reason"] == "stale_features"


def test_a_retry_with_a_context_gives_the_same_bytes(client: Client) -> None:
    put(client, "summer", body(**DEFAULT))
    content = asked("new-1", "new-2", "c-010", campaign="summer")
    content["customers"][0]["context"] = {"consent": True}
    content["customers"][1]["context"] = {"consent": True, "channel": "sms"}
    content["customers"][2]["context"] = {"channel": "sms"}
    first = post(client, content, **{"idempotency-key": "k"})
    assert [d["warnings"] for d in first.json()["decisions"]] == [
        ["features_aging"],
        ["features_aging", "context_ignored"],
        ["features_aging", "context_ignored"],
    ]
    assert post(client, content, **{"idempotency-key": "k"}).content == first.content


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"unknown_customer": "default_offer"}, "missing"),
        ({"default_coupon": "c5"}, "invalid"),
        ({"unknown_customer": "default_offer", "default_coupon": "c9"}, "unknown_coupon"),
        (DEFAULT | {"coupons": ["p10"]}, "unknown_coupon"),
    ],
)
def test_a_default_offer_must_be_one_of_the_coupons(
    client: Client, change: dict[str, Any], code: str
) -> None:
    refused = client.request(
        "PUT", "/v1/campaigns/summer", content=json.dumps(body(**change)).encode(),
        headers={**JSON, "if-none-match": "*"},
    )  # fmt: skip
    assert refused.status_code == 422
    found = [(e["pointer"], e["code"]) for e in refused.json()["errors"]]
    assert found == [("#/default_coupon", code)]


# Who has converted


def test_who_ordered_after_a_decision_is_not_offered_again(client: Client) -> None:
    put(client, "summer", body())
    put(client, "other", body())
    offers = [d["customer_id"] for d in decided(client, *IDS, dry_run=True) if d["coupon_id"]]
    one, two, three = offers[:3]
    assert post(client, {}, "/v1/campaigns/summer/pause").status_code == 200
    decided(client, one, two)  # campaign_paused: judged anew next time
    told(client, {"type": "ordered", "customer_id": one}, {"type": "ordered", "customer_id": three})
    before = (AS_OF + 2 * DAY).isoformat()
    with client.service.log.write() as connection:  # an order before the decision
        row = {"event_id": "e-old", "digest": "", "type": "ordered", "customer_id": two,
               "occurred_at": round(datetime.fromisoformat(before).timestamp() * 1e6),
               "received_at": 0}  # fmt: skip
        connection.execute(events.insert(), row)
    post(client, {}, "/v1/campaigns/summer/resume")
    found = [d["reason"] for d in decided(client, one, two, three)]
    # The third was never decided for: that order has nothing to do with the campaign.
    assert found == ["already_converted", "best_net_value", "best_net_value"]
    # Nor does it concern another campaign.
    assert decided(client, one, campaign="other")[0]["reason"] == "best_net_value"


def test_a_redeemed_offer_is_used_up_and_a_sticky_decision_stays(client: Client) -> None:
    put(client, "summer", body())
    first = decided(client, *IDS)
    one, two = [d for d in first if d["action"] == "offer"][:2]
    told(client, {"type": "redeemed", "decision_id": one["decision_id"], "cost_micros": 5},
         {"type": "ordered", "customer_id": two["customer_id"]})  # fmt: skip
    used, kept = decided(client, one["customer_id"], two["customer_id"])
    assert (used["action"], used["reason"], used["arm"]) == (
        "none",
        "already_converted",
        one["arm"],
    )
    assert used["decision_id"] == one["decision_id"]
    assert (kept["action"], kept["decision_id"]) == ("offer", two["decision_id"])


def test_in_the_next_window_who_redeemed_before_it_is_judged_anew(
    shop: Shop, tmp_path: Path
) -> None:
    clock = [datetime.now(UTC)]
    with serving(replace(live(shop), clock=lambda: clock[0]), tmp_path) as client:
        put(client, "summer", body(starts_at=(clock[0] - DAY).isoformat()))
        offer = next(d for d in decided(client, *IDS) if d["action"] == "offer")
        told(client, {"type": "redeemed", "decision_id": offer["decision_id"], "cost_micros": 5})
        clock[0] += 6 * DAY  # the window is of 7 days
        (again,) = decided(client, offer["customer_id"])
        assert (again["reason"], again["sticky_hit"]) == ("best_net_value", False)


# Models that grow old


def test_an_old_model_warns_and_then_refuses(shop: Shop, tmp_path: Path) -> None:
    for days, reason, warned in ((44, None, False), (46, None, True), (121, "stale_model", True)):
        scorer = live(shop)
        scorer = replace(scorer, model=replace(scorer.model, registered_at=NOW - days * DAY))
        with serving(scorer, tmp_path / str(days)) as client:
            put(client, "summer", body(model_max_age_days=120))
            found = decided(client, *IDS[10:20])
            assert all(("model_aging" in d["warnings"]) == warned for d in found)
            if reason is None:
                assert all(d["reason"] != "stale_model" for d in found)
            else:
                assert {d["reason"] for d in found} == {reason}
            assert client.get("/readyz").status_code == 200  # refusing is no reason to go away


# Coupons of which there are only so many


def test_no_more_pieces_are_offered_than_there_are(shop: Shop, tmp_path: Path) -> None:
    with serving(live(shop, c5={"active": False}, p10={"stock": 7}), tmp_path) as client:
        put(client, "summer", body(coupons=["p10"]))
        put(client, "other", body(coupons=["p10"], exploration_bps=10_000))
        wishes = [d for d in decided(client, *IDS, dry_run=True) if d["action"] == "offer"]
        assert len(wishes) > 20
        found = decided(client, *IDS)
        offers = [d for d in found if d["action"] == "offer"]
        # The pieces go to whom they bring the most.
        best = sorted(wishes, key=lambda d: -d["expected_incremental_profit_micros"])[:7]
        assert {d["customer_id"] for d in offers} == {d["customer_id"] for d in best}
        out = [d for d in found if d["reason"] == "coupon_out_of_stock"]
        assert len(out) == len(wishes) - 7
        spent = client.get("/v1/campaigns/summer").json()["budget_state"]["committed_micros"]
        assert spent > 0
        # Draws know of it before: nobody explores a coupon that is not there.
        reasons = {d["reason"] for d in decided(client, *IDS, campaign="other")}
        assert "coupon_out_of_stock" in reasons
        assert not reasons & {"exploration", "best_net_value"}
        # Who has a piece keeps it, until the shop says that there are none.
        names = [d["customer_id"] for d in offers]
        assert {d["action"] for d in decided(client, *names)} == {"offer"}
        serve(client, live(shop, c5={"active": False}, p10={"stock": 9}))
        more = [d for d in decided(client, *IDS) if d["action"] == "offer"]
        assert len(more) == 9
        serve(client, live(shop, c5={"active": False}, p10={"stock": 0}))
        assert {d["reason"] for d in decided(client, *names)} == {"coupon_out_of_stock"}


def test_a_piece_whose_offer_the_budget_does_not_bear_is_given_back(
    shop: Shop, tmp_path: Path
) -> None:
    with serving(live(shop, c5={"active": False}, p10={"stock": 40}), tmp_path) as client:
        put(client, "summer", body(coupons=["p10"]))
        preview = [d for d in decided(client, *IDS, dry_run=True) if d["action"] == "offer"]
        cheapest = min(d["expected_cost_micros"] for d in preview)
        put(client, "summer", body(coupons=["p10"], budget={"cap_micros": 5 * cheapest}))
        found = decided(client, *IDS)
        offers = [d for d in found if d["action"] == "offer"]
        assert 0 < len(offers) < 40
        with client.service.log.read() as connection:
            assert stock.left(client.service.log, connection, ["p10"]) == {"p10": 40 - len(offers)}
