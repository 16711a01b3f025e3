"""Keys, quotas, campaigns, lists and metrics over HTTP."""

from __future__ import annotations

import json
import string
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from serving.limits import InFlight, Quota
from serving.log.keys import SCOPES, make
from serving.log.schema import campaigns
from serving.report import imbalance, lift
from serving.resources import Imbalance
from serving.salt import Salt
from serving.scorer import utc_now
from serving.service import now_micros
from tests.contracts.test_api import documented
from tests.unit.serving.answering import JSON, Client, asked, post, serving
from tests.unit.serving.small_shop import Shop, shared_shop
from uplift.policy import STICKY

IDS = [f"c-{i:03d}" for i in range(300)]
DAY = timedelta(days=1)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


@pytest.fixture
def client(shop: Shop, tmp_path: Path) -> Iterator[Client]:
    with serving(shop.scorer(clock=utc_now), tmp_path) as found:
        yield found


# Once for all: a campaign that has started keeps its start.
START = datetime.now(UTC).replace(microsecond=0) - DAY


def body(**changes: Any) -> dict[str, Any]:
    return {
        "name": "Summer",
        "currency": "EUR",
        "starts_at": START.isoformat(),
        "ends_at": (START + 40 * DAY).isoformat(),
        "coupons": ["c5", "p10"],
        "holdout_bps": 1000,
        "exploration_bps": 1000,
        "budget": {"cap_micros": 100_000_000, "mode": "expected", "safety_factor": 1.0},
    } | changes


def put(client: Client, content: Any, name: str = "summer", **headers: str) -> Any:
    given = {**JSON, **{k.replace("_", "-"): v for k, v in headers.items()}}
    path = f"/v1/campaigns/{name}"
    return client.request("PUT", path, content=json.dumps(content).encode(), headers=given)


def create(client: Client, name: str = "summer", **changes: Any) -> Any:
    answer = put(client, body(**changes), name, if_none_match="*")
    assert answer.status_code == 201, answer.text
    return answer


# Campaigns


def test_a_campaign_is_created_read_changed_and_decided(client: Client) -> None:
    made = create(client)
    documented("put", "/v1/campaigns/{campaign_id}", made)
    read = client.get("/v1/campaigns/summer")
    documented("get", "/v1/campaigns/{campaign_id}", read)
    assert read.json() == made.json()
    assert read.headers["etag"] == made.headers["etag"]
    assert read.json()["campaign"]["starts_at"] == START.isoformat().replace("+00:00", "Z")
    decided = post(client, asked(*IDS, campaign="summer")).json()
    assert decided["policy_version"] == "1"
    assert decided["counts"]["offer"] > 10
    changed = put(client, body(name="Later"), if_match=read.headers["etag"])
    assert (changed.status_code, changed.json()["policy_version"]) == (200, "2")
    assert changed.json()["budget_state"]["committed_micros"] == sum(
        d["expected_cost_micros"] for d in decided["decisions"]
    )
    again = post(client, asked(*IDS, campaign="summer")).json()
    assert again["policy_version"] == "2"
    assert again["counts"] == decided["counts"]
    listed = client.get("/v1/campaigns").json()["items"]
    assert [c["campaign_id"] for c in listed] == ["spring", "summer"]


def test_preconditions_are_required_and_hold(client: Client) -> None:
    tag = create(client).headers["etag"]
    for headers, status in (
        ({}, 428),
        ({"if_none_match": "*"}, 412),
        ({"if_match": '"summer-9"'}, 412),
        ({"if_match": tag, "if_none_match": "*"}, 428),
    ):
        answer = put(client, body(), **headers)
        assert answer.status_code == status, answer.text
        documented("put", "/v1/campaigns/{campaign_id}", answer)
    assert put(client, body(), "other", if_match=tag).status_code == 404
    configured = client.get("/v1/campaigns/spring").headers["etag"]
    refused = put(client, body(), "spring", if_match=configured)
    assert (refused.status_code, refused.json()["code"]) == (409, "configured_campaign")


@pytest.mark.parametrize(
    ("field", "value"),
    [("time_zone", "Europe/Berlin"), ("window_days", 7), ("holdout_bps", 2000),
     ("starts_at", "2026-01-01T00:00:00Z")],
)  # fmt: skip
def test_after_the_start_some_fields_are_fixed(client: Client, field: str, value: Any) -> None:
    first = body()
    tag = put(client, first, if_none_match="*").headers["etag"]
    refused = put(client, first | {field: value}, if_match=tag)
    assert (refused.status_code, refused.json()["code"]) == (409, "immutable_field")
    assert refused.json()["errors"][0]["pointer"] == f"#/{field}"
    future = body(starts_at=(datetime.now(UTC) + DAY).isoformat())
    tag = put(client, future, "later", if_none_match="*").headers["etag"]
    assert put(client, future | {field: value}, "later", if_match=tag).status_code == 200


def test_the_cap_may_not_fall_below_what_is_promised(client: Client) -> None:
    first = body()
    tag = put(client, first, if_none_match="*").headers["etag"]
    post(client, asked(*IDS, campaign="summer"))
    spent = client.get("/v1/campaigns/summer").json()["budget_state"]["committed_micros"]
    for cap, status in ((spent - 1, 409), (spent, 200)):
        answer = put(client, first | {"budget": {"cap_micros": cap}}, if_match=tag)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        ({"coupons": ["c5", "nope"]}, "#/coupons/1", "unknown_coupon"),
        ({"coupons": ["c5", "c5"]}, "#/coupons", "duplicate"),
        ({"time_zone": "Mars/Base"}, "#/time_zone", "invalid"),
        ({"currency": "USD"}, "#/currency", "other_currency"),
        ({"ends_at": "2020-01-01T00:00:00Z"}, "#/ends_at", "range"),
        ({"starts_at": "2026-11-20T00:00:00"}, "#/starts_at", "pattern"),
        ({"starts_at": "2026-11-31T00:00:00Z"}, "#/starts_at", "invalid"),
        ({"eligibility": {"feature": "shoe_size", "op": "=", "value": 1}},
         "#/eligibility/feature", "unknown_feature"),
        ({"eligibility": {"all": [{"segment": "tier", "in": []}]}},
         "#/eligibility/all/0/in", "type"),
        ({"eligibility": {"feature": "recency_days", "op": "~", "value": 1}},
         "#/eligibility/op", "invalid"),
        ({"surprise": 1}, "#", "unknown_field"),
    ],
)  # fmt: skip
def test_what_the_server_does_not_know_is_refused_with_its_place(
    client: Client, change: dict[str, Any], pointer: str, code: str
) -> None:
    refused = put(client, body(**change), if_none_match="*")
    assert refused.status_code == 422
    errors = [(e["pointer"], e["code"]) for e in refused.json()["errors"]]
    assert errors == [(pointer, code)]
    assert client.get("/v1/campaigns/summer").status_code == 404


def test_eligibility_lets_through_whom_it_says(client: Client, shop: Shop) -> None:
    create(
        client,
        eligibility={
            "all": [
                {"feature": "order_days_365d", "op": ">=", "value": 5},
                {"not": {"segment": "tier", "in": ["champion", "lost"]}},
            ]
        },
    )
    people = shop.population
    wanted = (people.rfm[:, 1] >= 5) & ~(
        (people.tier.texts() == "champion") | (people.tier.texts() == "lost")
    )
    assert 20 < wanted.sum() < 280
    found = post(client, asked(*IDS, campaign="summer")).json()["decisions"]
    for d, through in zip(found, wanted.tolist(), strict=True):
        if d["reason"] not in ("no_consent", "scoring_unavailable"):
            assert (d["reason"] != "not_eligible") == through


def test_a_campaign_before_its_start_after_its_end_and_in_its_windows(
    shop: Shop, tmp_path: Path
) -> None:
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    live = shop.config.model_copy(
        update={"source": shop.config.source.model_copy(update={"as_of": "now"})}
    )
    with serving(shop.scorer(config=live, clock=lambda: clock[0]), tmp_path) as client:
        start = clock[0] + 2 * DAY
        create(
            client,
            starts_at=start.isoformat(),
            ends_at=(start + 20 * DAY).isoformat(),
            window_days=7,
            feature_max_age_hours=8000,
        )
        found = {}
        for name, moment in (
            ("before", start - timedelta(microseconds=1)),
            ("first", start),
            ("last of first", start + 7 * DAY - timedelta(microseconds=1)),
            ("second", start + 7 * DAY),
            ("end", start + 20 * DAY),
        ):
            clock[0] = moment
            found[name] = post(client, asked(*IDS[:60], campaign="summer")).json()

        def reasons(name: str) -> set[str]:
            return {d["reason"] for d in found[name]["decisions"]}

        assert reasons("before") == {"campaign_not_started"}
        assert reasons("end") == {"campaign_ended"}
        windows = {name: answer["window_id"] for name, answer in found.items()}
        assert windows == {"before": -1, "first": 0, "last of first": 0, "second": 1, "end": 2}
        firsts = {d["customer_id"]: d["decision_id"] for d in found["first"]["decisions"]}
        for d in found["last of first"]["decisions"]:
            assert d["sticky_hit"] == (d["decision_id"] == firsts[d["customer_id"]])
        assert not any(d["sticky_hit"] for d in found["second"]["decisions"])
        # The clock goes back an hour: no window falls, and readiness says so.
        clock[0] = start + 7 * DAY - timedelta(hours=1)
        assert post(client, asked(*IDS[:60], campaign="summer")).json()["window_id"] == 2
        assert client.get("/readyz").json()["checks"]["clock"] == "fail"


def test_contact_caps_count_the_offers_of_every_campaign(client: Client) -> None:
    cap = [{"max": 1, "days": 7}]
    create(client, holdout_bps=0, exploration_bps=0)
    create(client, "other", holdout_bps=0, exploration_bps=0, contact_caps=cap)
    first = post(client, asked(*IDS, campaign="summer")).json()
    offered = [d["customer_id"] for d in first["decisions"] if d["action"] == "offer"]
    second = post(client, asked(*IDS, campaign="other")).json()["decisions"]
    decided_at = datetime.fromisoformat(first["decided_at"])
    for d in second:
        if d["customer_id"] in offered:
            assert (d["action"], d["reason"]) == ("none", "contact_cap")
            wait = datetime.fromisoformat(d["retry_at"]) - decided_at
            assert timedelta(days=7) <= wait < timedelta(days=7, seconds=60)
        else:
            assert d["reason"] != "contact_cap" or d["customer_id"] == "c-003"


def test_a_worst_case_budget_holds_the_face_value(client: Client) -> None:
    budget = {"cap_micros": 50_200_000, "mode": "worst_case"}
    create(client, coupons=["c5"], budget=budget, holdout_bps=0, exploration_bps=10_000)
    decided = post(client, asked(*IDS, campaign="summer")).json()["decisions"]
    state = client.get("/v1/campaigns/summer").json()["budget_state"]
    assert state["committed_micros"] == 50_200_000  # ten times 5.00 and the contact of 0.02
    offers = [d["decision_id"] for d in decided if d["action"] == "offer"]

    def redeemed(name: str, decision_id: str, cost: int) -> Any:
        event = {"event_id": name, "type": "redeemed", "decision_id": decision_id,
                 "occurred_at": datetime.now(UTC).isoformat(), "cost_micros": cost}  # fmt: skip
        answer = post(client, {"events": [event]}, "/v1/events")
        documented("post", "/v1/events", answer)
        return answer.json()["results"][0]

    refused = redeemed("e-1", offers[0], 5_020_001)
    assert (refused["status"], refused["code"]) == ("rejected", "cost_too_high")
    assert refused["pointer"] == "#/events/0/cost_micros"
    assert redeemed("e-1", offers[0], 5_020_000)["status"] == "accepted"
    state = client.get("/v1/campaigns/summer").json()["budget_state"]
    assert (state["realised_micros"], state["overshoot_micros"]) == (5_020_000, 0)
    create(client, "expected", coupons=["c5"], holdout_bps=0)
    decided = post(client, asked(*IDS, campaign="expected")).json()["decisions"]
    offer = next(d["decision_id"] for d in decided if d["action"] == "offer")
    assert redeemed("e-2", offer, 5_020_001)["status"] == "accepted"


def test_quiet_hours_that_never_begin_or_never_end_are_refused(client: Client) -> None:
    answer = put(client, body(quiet_hours={"start": "09:00", "end": "09:00"}), if_none_match="*")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/quiet_hours/end"


def test_the_report_counts_first_assignments_and_compares_with_the_held_out(
    client: Client,
) -> None:
    create(client, holdout_bps=3000)
    found = post(client, asked(*IDS, campaign="summer")).json()["decisions"]
    drawn = [d for d in found if d["reason"] in STICKY]
    held = [d for d in drawn if d["is_holdout"]]
    others = [d for d in drawn if not d["is_holdout"]]
    buyers = others[::3] + held[::5]
    moment = datetime.now(UTC).isoformat()
    events = [
        {"event_id": f"o-{d['customer_id']}", "type": "ordered", "customer_id": d["customer_id"],
         "occurred_at": moment}
        for d in buyers
    ] + [
        {"event_id": f"s-{d['customer_id']}", "type": "sent", "decision_id": d["decision_id"],
         "occurred_at": moment}
        for d in others if d["action"] == "offer"
    ]  # fmt: skip
    assert post(client, {"events": events}, "/v1/events").json()["rejected"] == 0
    answer = client.get("/v1/campaigns/summer/report")
    documented("get", "/v1/campaigns/{campaign_id}/report", answer)
    report = answer.json()
    assert sum(report["reasons"].values()) == len(drawn)
    assert report["reasons"]["holdout"] == len(held)
    for arm in report["arms"]:
        mine = [d for d in drawn if d["arm"] == arm["arm"]]
        assert arm["customers"] == len(mine)
        assert arm["sent"] == sum(d["action"] == "offer" for d in mine)
        assert arm["orders"] == sum(d in buyers for d in mine)
    share, base = len(others[::3]) / len(others), len(held[::5]) / len(held)
    assert report["uplift"]["estimate"] == pytest.approx(share - base, abs=1e-12)
    low, high = report["uplift"]["ci95"]
    assert low < share - base < high
    assert report["srm"]["ok"] is True
    budget = client.get("/v1/campaigns/summer").json()["budget_state"]
    assert report["budget"] == budget
    assert client.get("/v1/campaigns/nope/report").status_code == 404
    for query in (
        "from=soon",
        "from=2020-01-01T00:00:00Z",
        "to=2020-01-01T00:00:00",
        "to=2026-01-01",
        "to=20260101T000000Z",
    ):
        assert client.get(f"/v1/campaigns/summer/report?{query}").status_code == 422


def test_an_imbalance_and_a_lift_by_hand() -> None:
    # 1,000 customers of whom 50 should be held out, standard deviation sqrt(47.5) = 6.892.
    assert imbalance(50, 1000, 50.0) == Imbalance(1.0, True)
    assert imbalance(65, 1000, 50.0).p_value == pytest.approx(0.029528, abs=1e-5)
    assert not imbalance(80, 1000, 50.0).ok
    found = lift(30, 101, 10, 101)
    assert found is not None
    p, q = 30 / 101, 10 / 101
    spread = 1.959964 * ((p * (1 - p) + q * (1 - q)) / 100) ** 0.5
    assert found.ci95 == pytest.approx([p - q - spread, p - q + spread])
    assert lift(1, 1, 0, 50) is None


# Keys


def test_scopes_open_what_they_name_and_nothing_else(client: Client) -> None:
    with client.service.log.write() as connection:
        keys = {s: make(connection, [s], "", now_micros(), None) for s in SCOPES}
        old = make(connection, SCOPES, "", now_micros() - 10, now_micros() - 5)
    client.service._keys_until = -1.0
    asks = [
        ("POST", "/v1/decisions", "score", asked("c-010", dry_run=True)),
        ("POST", "/v1/events", "events", {"events": [1]}),
        ("GET", "/v1/customers/c-010", "read", None),
        ("GET", "/v1/customers/c-010/decisions", "read", None),
        ("GET", "/v1/holdouts/c-010", "read", None),
        ("GET", "/v1/models/current", "read", None),
        ("GET", "/v1/campaigns", "read", None),
        ("GET", "/v1/campaigns/spring", "read", None),
        ("GET", "/v1/campaigns/spring/report", "read", None),
        ("POST", "/v1/campaigns/spring/pause", "admin", {}),
        ("POST", "/v1/campaigns/spring/resume", "admin", None),
        ("DELETE", "/v1/customers/zz", "admin", None),
    ]
    wrong = next(iter(keys.values()))[:-1] + "!"
    for method, path, scope, content in asks:

        def call(
            token: str | None, method: str = method, path: str = path, content: Any = content
        ) -> Any:
            headers = {**JSON} | ({"authorization": f"Bearer {token}"} if token else {})
            data = None if content is None else json.dumps(content).encode()
            return client.request(method, path, content=data, headers=headers)

        for token in (None, "upk_000000000000_" + "a" * 43, wrong, old, "x"):
            answer = call(token)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), path
            assert answer.headers["www-authenticate"] == "Bearer"
        for name, token in keys.items():
            answer = call(token)
            assert (answer.status_code == 403) == (name != scope), (path, name, answer.text)
            assert answer.status_code in (200, 202, 403)
    assert client.get("/livez").status_code == client.get("/metrics").status_code == 200
    secret = keys["score"].rpartition("_")[2]
    stored = (Path(client.service.log.url.database)).read_bytes()
    wal = Path(f"{client.service.log.url.database}-wal").read_bytes()
    assert secret.encode() not in stored + wal


# Limits


def test_a_used_up_quota_is_told_and_renewed(client: Client) -> None:
    clock = [0.0]
    client.service.quota = Quota(requests=3, rows=20, clock=lambda: clock[0])
    answers = [post(client, asked("c-010", dry_run=True)) for _ in range(4)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert answers[0].headers["ratelimit"] == '"requests";r=2;t=60'
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=3;w=60, "rows";q=20;w=60'
    assert answers[3].headers["retry-after"] == "60"
    documented("post", "/v1/decisions", answers[3])
    clock[0] = 60.0
    assert post(client, asked(*IDS[:20], dry_run=True)).status_code == 200
    assert post(client, asked("c-010", dry_run=True)).status_code == 429


def test_what_is_refused_uses_the_quota_too(client: Client) -> None:
    client.service.quota = Quota(requests=6, rows=20)
    left = []
    for path in ("/v1/decisions", "/v1/events", "/v1/audiences"):
        for content, status in ((b"{", 400), (b" " * 3_000_000, 413)):
            answer = client.post(path, content=content, headers={**JSON, "idempotency-key": "k"})
            assert answer.status_code == status
            left.append(answer.headers["ratelimit"].partition("r=")[2].partition(";")[0])
    assert left == ["5", "4", "3", "2", "1", "0"]
    assert client.post("/v1/events", content=b"{", headers=JSON).status_code == 429


def test_too_much_at_once_is_refused(client: Client) -> None:
    client.service.in_flight = InFlight(most_requests=0)
    answer = post(client, asked("c-010"))
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256, '"a"b"', '"'])
def test_an_idempotency_key_is_visible_ascii(client: Client, key: str) -> None:
    content = json.dumps(asked("c-010")).encode()
    headers = {**JSON, "idempotency-key": key.encode()}
    answer = client.post("/v1/decisions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_key")


# Lists


def test_pages_of_decisions_are_whole_and_their_cursors_are_signed(client: Client) -> None:
    create(client)
    for _ in range(4):
        post(client, asked("c-000"))  # refused consent, so judged and logged anew each time
    path = "/v1/customers/c-000/decisions"
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(10):
        answer = client.get(path, params={"limit": "3"} | ({"cursor": cursor} if cursor else {}))
        documented("get", "/v1/customers/{customer_id}/decisions", answer)
        seen += [d["decision_id"] for d in answer.json()["items"]]
        following = answer.json()["next_cursor"]
        if following is None:
            break
        cursor = following
    assert len(seen) == len(set(seen)) == 4
    assert cursor is not None
    flipped = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    # Of the last character of some lengths, the lowest bits are not read.
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    unread = cursor[:-1] + alphabet[alphabet.index(cursor[-1]) ^ 1]
    for bad in (flipped, unread, cursor[:-2], "nonsense", "é"):
        assert client.get(path, params={"cursor": bad}).json()["code"] == "bad_cursor"
    other = client.get("/v1/customers/c-001/decisions", params={"cursor": cursor})
    assert other.json()["code"] == "bad_cursor"
    assert client.get(path, params={"limit": "0"}).status_code == 422
    shown = client.get("/v1/customers/c-000").json()
    assert [d["decision_id"] for d in shown["recent_decisions"]] == seen
    assert shown["consent"] is False


def test_holdouts_are_those_of_the_reference(shop: Shop, tmp_path: Path) -> None:
    policy = shop.config.policy.model_copy(update={"global_holdout_share": 0.02})
    scorer = shop.scorer(
        salt=Salt(b"test-salt", "the reference"),
        config=shop.config.model_copy(update={"policy": policy}),
    )
    with serving(replace(scorer, clock=utc_now), tmp_path) as client:
        create(client, "cmp-spring", holdout_bps=500)
        for customer, bucket, held in (("c-000001", 7815, None), ("c-000040", 347, "campaign")):
            answer = client.get(f"/v1/holdouts/{customer}?campaign_id=cmp-spring")
            documented("get", "/v1/holdouts/{customer_id}", answer)
            (found,) = answer.json()["campaigns"]
            assert (found["bucket"], found["via"]) == (bucket, held)
        whole = client.get("/v1/holdouts/c-000010?campaign_id=cmp-spring").json()
    assert whole == {
        "customer_id": "c-000010",
        "global": {"bucket": 65, "share_bps": 200, "is_holdout": True},
        "campaigns": [
            {"campaign_id": "cmp-spring", "bucket": 2049, "share_bps": 500, "is_holdout": True,
             "via": "global"}
        ],
    }  # fmt: skip


def test_metrics_count_what_happened_and_name_no_customer(client: Client) -> None:
    decisions = post(client, asked(*IDS)).json()["decisions"]
    text = client.get("/metrics").text
    wanted = sum(d["reason"] == "best_net_value" for d in decisions)
    assert (
        f'persuadables_decisions_total{{model_version="3",reason="best_net_value"}} {wanted}.0'
        in text
    )
    assert 'persuadables_rows_total{route="/v1/decisions"} 300.0' in text
    assert 'persuadables_budget_left_micros{campaign_id="spring"}' in text
    assert "c-0" not in text


def test_a_text_that_never_ends_is_refused_at_once(client: Client) -> None:
    started = time.monotonic()
    answer = client.post("/v1/events", content=b'"' + b'\\"' * 500_000, headers=JSON)
    assert answer.status_code == 400
    assert time.monotonic() - started < 5  # once from every quote: hours


def test_a_whole_number_beyond_all_doubles_is_no_defect(client: Client) -> None:
    rule = {"feature": "recency_days", "op": ">", "value": 10**400}
    answer = put(client, body(eligibility=rule), if_none_match="*")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/eligibility/value"


def test_a_report_until_before_our_era_is_refused(client: Client) -> None:
    create(client)
    for until in ("0001-01-02T00:00:00Z", "1969-01-01T00:00:00Z"):
        answer = client.get("/v1/campaigns/summer/report", params={"to": until})
        assert answer.status_code == 422


def test_nothing_in_a_comment_stops_a_pause(client: Client) -> None:
    create(client)
    answer = post(client, {"comment": "wr\0ong"}, "/v1/campaigns/summer/pause")
    assert answer.json()["state"] == "paused"
    with client.service.log.read() as connection:
        stored = connection.execute(select(campaigns.c.comment)).scalars().all()
    assert "wrong" in stored


def test_metrics_tell_the_budgets_of_all_campaigns(client: Client) -> None:
    for number in range(201):
        create(client, f"s-{number}")
    told = client.get("/metrics").text
    assert told.count("persuadables_budget_left_micros{") >= 201
