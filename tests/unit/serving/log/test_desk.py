"""What is stored stands: through the application, on both databases."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from serving.campaign_rules import rules_of_entry
from serving.desk import Answer, Ask
from serving.log import ledger
from serving.log.engine import Log, LogUnavailable
from serving.log.schema import campaign_budget, decisions, metadata
from serving.schemas import CustomerRequest
from serving.times import micros, now_micros
from tests.unit.serving.answering import JSON, Client, asked, post, serving
from tests.unit.serving.small_shop import Shop
from uplift.policy import STICKY

ALL = [f"c-{i:03d}" for i in range(300)]


@pytest.fixture
def client(shop: Shop, url: str) -> Iterator[Client]:
    with serving(shop.scorer(), url) as found:
        yield found


def decided(client: Client, *ids: str, **more: Any) -> list[dict[str, Any]]:
    answer = post(client, asked(*ids, **more))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["decisions"]
    return found


def rows(log: Log, *columns: Any) -> list[Any]:
    with log.read() as connection:
        return list(connection.execute(select(*columns or decisions.c)))


def budget(log: Log) -> Any:
    return rows(log, campaign_budget)[0]


def test_the_first_decision_stands_whatever_is_asked_and_in_which_order(
    shop: Shop, url: str
) -> None:
    with serving(shop.scorer(), url) as client:
        first = {d["customer_id"]: d for d in decided(client, *ALL)}
    # Another server, whose model would give everybody another decision, on the same log.
    other = shop.scorer()
    object.__setattr__(other.rules, "shadow_price", 1e9)
    with serving(other, url) as client:
        shuffled = random.Random(3).sample(ALL, len(ALL))
        for part in (shuffled[:1], shuffled[1:40], shuffled[40:]):
            for d in decided(client, *part):
                before = first[d["customer_id"]]
                if before["reason"] in STICKY:
                    assert d | {"index": 0} == before | {"index": 0, "sticky_hit": True}
                else:
                    assert (d["reason"], d["sticky_hit"]) == (before["reason"], False)
    assert {d["action"] for d in first.values()} == {"offer", "none"}


def test_what_is_charged_is_the_sum_of_what_is_stored(client: Client) -> None:
    for part in (ALL[:100], ALL[50:200], ALL):
        decided(client, *part)
    log = client.service.log
    held = rows(log, func.sum(decisions.c.reserved_micros))[0][0]
    assert budget(log).committed_micros == held > 0
    assert held == sum(r.expected_cost_micros for r in rows(log) if r.action == "offer")
    sticky = [r.customer_id for r in rows(log) if r.sticky]
    assert len(sticky) == len(set(sticky))


def test_probabilities_of_every_draw_sum_to_one_and_hold_the_arm(client: Client) -> None:
    decided(client, *ALL)
    stored = [r for r in rows(client.service.log) if r.sticky]
    assert len(stored) > 250
    for r in stored:
        probs = json.loads(r.probs)
        assert sum(probs.values()) == pytest.approx(1.0, abs=1e-12)
        h = r.holdout_share
        pooled = (1 - h) * probs[r.arm] + (h if r.arm == "control" else 0.0)
        assert r.assignment_prob == pytest.approx(pooled, abs=1e-12)
        assert (r.holdout_kind == "campaign") == (r.reason == "holdout")
    before = [r for r in rows(client.service.log) if not r.sticky]
    assert {r.probs for r in before} == {None}


def test_a_dry_run_changes_no_table_and_shows_what_stands(client: Client) -> None:
    stood = decided(client, *ALL[:10])
    log = client.service.log
    before = {table.name: rows(log, table) for table in metadata.sorted_tables}
    dry = decided(client, *ALL[:20], dry_run=True)
    assert {table.name: rows(log, table) for table in metadata.sorted_tables} == before
    for d, s in zip(dry, stood, strict=False):
        if s["reason"] in STICKY:
            assert d == s | {"sticky_hit": True}
    assert all(d["decision_id"] is None for d in dry[10:])
    real = decided(client, *ALL[:20])
    assert [d["arm"] for d in real] == [d["arm"] for d in dry]


def test_a_retry_gives_the_same_bytes_and_another_body_is_refused(client: Client) -> None:
    key = {"idempotency-key": '"k-1"'}
    first = post(client, asked(*ALL, "nobody"), **key)
    again = post(client, asked(*ALL, "nobody"), **key)
    assert again.content == first.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    count = len(rows(client.service.log))
    other = post(client, asked("c-001"), **{"idempotency-key": "k-1"})
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    assert len(rows(client.service.log)) == count == 301


def test_fifty_parallel_sends_make_one_set_of_rows(client: Client) -> None:
    body = json.dumps(asked(*ALL[:50])).encode()

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as many:
            headers = {**JSON, "idempotency-key": "once"}
            return await asyncio.gather(
                *(many.post("/v1/decisions", content=body, headers=headers) for _ in range(50))
            )

    answers = asyncio.run(send())
    good = {a.content for a in answers if a.status_code == 200}
    busy = {(a.json()["code"], a.headers["retry-after"]) for a in answers if a.status_code == 409}
    assert len(good) == 1
    assert busy <= {("in_flight", "1")}
    assert len(rows(client.service.log)) == 50


def test_parallel_asks_for_one_customer_get_one_decision(client: Client) -> None:
    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as many:
            return await asyncio.gather(
                *(
                    many.post("/v1/decisions", json=asked(*random.Random(i).sample(ALL, 30)))
                    for i in range(40)
                )
            )

    found: dict[str, set[tuple[str, str]]] = {}
    for answer in asyncio.run(send()):
        for d in answer.json()["decisions"]:
            if d["reason"] in STICKY:
                found.setdefault(d["customer_id"], set()).add((d["decision_id"], d["arm"]))
    assert all(len(kinds) == 1 for kinds in found.values())


def test_near_the_cap_what_fits_is_offered_and_no_more(client: Client) -> None:
    log = client.service.log
    cap = 20_000_000
    with log.write() as connection:
        connection.execute(update(campaign_budget).values(cap_micros=cap))
    found = decided(client, *ALL)
    offers = [d for d in found if d["action"] == "offer"]
    cheapest = min(d["expected_cost_micros"] for d in offers)
    spent = budget(log).committed_micros
    assert spent == sum(d["expected_cost_micros"] for d in offers)
    assert cap - 2 * cheapest < spent <= cap
    lost = [r for r in rows(log) if r.reason == "budget_exhausted"]
    # Who lost the race keeps the arm that was assigned, holds nothing, and is judged again.
    assert len(lost) > 5
    assert not any(r.sticky or r.reserved_micros or r.arm == "control" for r in lost)
    again = decided(client, *(r.customer_id for r in lost))
    assert {d["reason"] for d in again} <= {"budget_exhausted", "best_net_value", "exploration"}
    assert spent <= budget(log).committed_micros <= cap


def test_many_first_requests_read_the_rules_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def reading(scorer: Any, entry: Any) -> Any:
        read.append(entry.campaign_id)
        return rules_of_entry(scorer, entry)

    monkeypatch.setattr("serving.service.rules_of_entry", reading)

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as many:
            known = [many.post("/v1/decisions", json=asked(i)) for i in ALL[:30]]
            unknown = many.post("/v1/decisions", json=asked("c-1", campaign="x"))
            return await asyncio.gather(*known, unknown)

    statuses = [answer.status_code for answer in asyncio.run(send())]
    assert statuses == [200] * 30 + [404]
    assert read == ["spring"]


def test_sweeping_releases_what_expired_and_its_failure_fails_nobody(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(client, *ALL[:100])
    log, service = client.service.log, client.service
    spent = budget(log).committed_micros
    assert spent > 0
    with log.write() as connection:
        connection.execute(update(decisions).values(valid_until=1))

    def fail(*_: object) -> None:
        raise LogUnavailable("a lock")

    with monkeypatch.context() as patch:
        patch.setattr("serving.service.ledger.release", fail)
        service._swept = -1e9
        decided(client, "c-000")
        assert budget(log).committed_micros == spent
    service._swept = -1e9
    decided(client, "c-000")  # consent refused: it costs nothing
    assert budget(log).committed_micros == 0


def test_where_the_time_stands_no_standing_offer_gives_its_reservation_back(
    client: Client,
) -> None:
    decided(client, *ALL[:100])
    log, service = client.service.log, client.service
    spent = budget(log).committed_micros
    assert client.scorer.fixed
    assert spent > 0
    until = micros(client.scorer.snapshot.as_of) + 1
    assert until < now_micros() - ledger.RELEASE_AFTER
    with log.write() as connection:
        connection.execute(update(decisions).values(valid_until=until))
    service._swept = -1e9
    decided(client, "c-000")
    assert budget(log).committed_micros == spent


def test_two_scorers_asked_at_once_never_tell_an_offer_that_is_not_stored(client: Client) -> None:
    """While a model is swapped, one transaction answers for the old and the new one."""
    service, scorer = client.service, client.scorer
    log = service.log
    with log.write() as connection:
        connection.execute(update(campaign_budget).values(cap_micros=20_000_000))
    rules = asyncio.run(service.rules(scorer, "spring"))
    other = replace(scorer)
    # Read twice, as when many first requests come at once; and of another scorer.
    kinds = [(scorer, rules), (scorer, replace(rules)), (other, replace(rules))]
    asks = [
        Ask(who, by, [CustomerRequest(i) for i in ALL[k * 20 : 200 + k * 20]], f"r{k}", False)
        for k, (who, by) in enumerate(kinds)
    ]
    with log.write() as connection:
        answers = service._writing.answer(connection, asks)
    told: dict[str, set[tuple[str, str, str]]] = {}
    for answer in answers:
        assert isinstance(answer, Answer)
        for d in json.loads(answer.body)["decisions"]:
            said = (d["decision_id"], d["action"], d["reason"])
            told.setdefault(d["customer_id"], set()).add(said)
    assert all(len(said) == 1 for said in told.values())
    stored = {r.decision_id: (r.action, r.reason) for r in rows(log)}
    found = {one[0]: one[1:] for said in told.values() for one in said}
    assert {name: stored[name] for name in found} == found
    assert len(stored) == len(found) == 240
    assert "budget_exhausted" in {reason for _, reason in found.values()}
    held = rows(log, func.sum(decisions.c.reserved_micros))[0][0]
    assert budget(log).committed_micros == held <= 20_000_000


def test_pausing_stops_offers_also_those_that_stand_and_that_are_replayed(client: Client) -> None:
    key = {"idempotency-key": "k"}
    first = post(client, asked(*ALL[:100]), **key).json()
    offers = [d for d in first["decisions"] if d["action"] == "offer"]
    assert offers
    paused = post(client, {"comment": "wrong coupon"}, "/v1/campaigns/spring/pause").json()
    assert paused["state"] == "paused"
    spent = budget(client.service.log).committed_micros
    for answer in (post(client, asked(*ALL[:100]), **key), post(client, asked(*ALL))):
        assert {d["action"] for d in answer.json()["decisions"]} == {"none"}
        assert answer.json()["counts"]["offer"] == 0
    again = {d["customer_id"]: d for d in post(client, asked(*ALL[:100])).json()["decisions"]}
    for d in offers:
        withheld = again[d["customer_id"]]
        assert (withheld["reason"], withheld["arm"]) == ("campaign_paused", d["arm"])
        assert (withheld["coupon_id"], withheld["expected_cost_micros"]) == (None, 0)
    assert budget(client.service.log).committed_micros == spent
    assert post(client, {}, "/v1/campaigns/spring/resume").json()["paused_at"] is None
    assert post(client, asked(*ALL[:100]), **key).json() == first


def test_an_unsubscription_and_an_erasure_end_standing_offers(client: Client) -> None:
    one, two = [d for d in decided(client, *ALL) if d["action"] == "offer"][:2]
    event = {
        "event_id": "e-1", "type": "unsubscribed", "customer_id": one["customer_id"],
        "occurred_at": now(),
    }  # fmt: skip
    assert post(client, {"events": [event]}, "/v1/events").json()["accepted"] == 1
    (d,) = decided(client, one["customer_id"])
    assert (d["action"], d["reason"], d["decision_id"]) == (
        "none",
        "no_consent",
        one["decision_id"],
    )
    gone = two["customer_id"]
    before = budget(client.service.log).committed_micros
    erased = client.request("DELETE", f"/v1/customers/{gone}")
    assert erased.status_code == 202
    assert client.request("DELETE", f"/v1/customers/{gone}").json() == erased.json()
    (d,) = decided(client, gone)
    assert (d["action"], d["reason"], d["profile_state"]) == ("none", "unknown_customer", "unknown")
    assert before - budget(client.service.log).committed_micros == two["expected_cost_micros"]
    event |= {"event_id": "e-2", "type": "ordered", "customer_id": gone}
    refused = post(client, {"events": [event]}, "/v1/events").json()["results"][0]
    assert refused["code"] == "unknown_customer"
    assert client.get(f"/v1/customers/{gone}").status_code == 404
    log = client.service.log
    for table in metadata.sorted_tables:
        assert not any(gone in map(str, row) for row in rows(log, table)), table.name
    (kept,) = [r for r in rows(log) if r.decision_id == two["decision_id"]]
    assert (kept.arm, kept.customer_id[:7]) == (two["arm"], "erased-")


def test_a_replay_tells_nothing_of_a_customer_who_was_erased(client: Client) -> None:
    found = decided(client, *ALL)
    offered = next(d["customer_id"] for d in found if d["action"] == "offer")
    none = next(d["customer_id"] for d in found if d["reason"] == "below_threshold")
    ask, key = asked(offered, none), {"idempotency-key": "k"}
    before = post(client, ask, **key)
    for customer in (offered, none):
        assert client.request("DELETE", f"/v1/customers/{customer}").status_code == 202
    after = post(client, ask, **key)
    assert after.headers["idempotency-replayed"] == "true"
    for old, new in zip(before.json()["decisions"], after.json()["decisions"], strict=True):
        assert old["uplift"] is not None
        assert new["decision_id"] == old["decision_id"]
        assert (new["action"], new["reason"]) == ("none", "unknown_customer")
        assert new["uplift"] is new["response_propensity"] is new["coupon_id"] is None


def now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat()


def test_any_order_of_events_with_repeats_gives_one_state(shop: Shop, tmp_path: Path) -> None:
    states = []
    for seed in range(6):
        rng = random.Random(seed)
        with serving(shop.scorer(), f"sqlite:///{tmp_path / f'{seed}.db'}") as client:
            offers = [d for d in decided(client, *ALL) if d["action"] == "offer"][:6]
            events = [
                {"event_id": f"e-{i}-{kind}", "type": kind, "decision_id": d["decision_id"],
                 "occurred_at": f"2026-11-2{i % 2}T0{hour}:00:00Z"}
                | ({"cost_micros": 100 * hour + i} if kind == "redeemed" else {})
                for i, d in enumerate(offers)
                for hour, kind in enumerate(("sent", "opened", "clicked", "redeemed", "sent"))
            ]  # fmt: skip
            events = [e | {"event_id": f"{e['event_id']}-{n}"} for n, e in enumerate(events)]
            sent = rng.sample(events * 2, 2 * len(events))
            for start in range(0, len(sent), 7):
                answer = post(client, {"events": sent[start : start + 7]}, "/v1/events")
                assert answer.json()["rejected"] == 0, answer.text
            log = client.service.log
            customers = {d["decision_id"]: d["customer_id"] for d in offers}
            states.append(
                (
                    sorted(
                        (r.customer_id, r.sent_at, r.reservation, r.realised_micros)
                        for r in rows(log)
                        if r.decision_id in customers
                    ),
                    (budget(log).committed_micros, budget(log).realised_micros),
                )
            )
    assert all(state == states[0] for state in states)
    assert states[0][1][1] == sum(300 + i for i in range(6))
