"""The Python client: a method for every operation of the document, safe retries, problems."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from serving.client import ApiError, Client
from serving.resources import CampaignBody, CampaignBudget, EventBody
from serving.schemas import CustomerRequest
from serving.scorer import utc_now
from tests.contracts.test_api import document
from tests.unit.serving import answering
from tests.unit.serving.jobs import worker
from tests.unit.serving.small_shop import Shop, shared_shop
from uplift.policy import Reason

IDS = [f"c-{i:03d}" for i in range(300)]
Asked = list[httpx.Request]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


@pytest.fixture
def server(shop: Shop, tmp_path: Path) -> Iterator[answering.Client]:
    with answering.serving(shop.scorer(clock=utc_now), tmp_path) as found:
        yield found


def through(server: answering.Client, asked: Asked, **more: Any) -> Client:
    """A client whose requests go to a server in this process."""

    def forward(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = server.request(
            request.method,
            request.url.raw_path.decode(),
            content=request.read(),
            headers=dict(request.headers),
        )
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    return Client("http://test", transport=httpx.MockTransport(forward), **more)


def scripted(
    *answers: httpx.Response | Exception, **more: Any
) -> tuple[Client, Asked, list[float]]:
    """A client that gets these answers, one after the other, and how long it waited between."""
    asked: Asked = []
    waits: list[float] = []
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        asked.append(request)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    client = Client(
        "http://test", "upk_k_s", transport=httpx.MockTransport(answer), sleep=waits.append, **more
    )
    return client, asked, waits


def problem(status: int, code: str, after: str | None = "1") -> httpx.Response:
    headers = {"content-type": "application/problem+json"}
    if after is not None:
        headers["retry-after"] = after
    content = {"type": f"/problems/{code}", "title": "No", "status": status, "code": code,
               "request_id": "req-1"}  # fmt: skip
    return httpx.Response(status, json=content, headers=headers)


def operations() -> set[tuple[str, str]]:
    return {(m.upper(), path) for path, methods in document()["paths"].items() for m in methods}


def template(request: httpx.Request) -> tuple[str, str]:
    """The operation of the document that a request asks for."""
    path = request.url.path
    # A path with a parameter never hides one without.
    for method, known in sorted(operations(), key=lambda one: "{" in one[1]):
        if method == request.method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", known), path):
            return method, known
    raise AssertionError(f"{request.method} {path} is not in the document")


def test_a_day_of_a_campaign_asks_for_every_operation_of_the_document(
    server: answering.Client, tmp_path: Path
) -> None:
    """Nothing is left out; all answers are read as the types of the server."""
    asked: Asked = []
    start = datetime.now(UTC) - timedelta(days=1)
    summer = CampaignBody(
        "Summer", "EUR", start.isoformat(timespec="seconds"), ["c5", "p10"],
        holdout_bps=1000, budget=CampaignBudget(10**9),
    )  # fmt: skip
    with through(server, asked) as api:
        assert api.live().status == "ok"
        assert api.ready().status == "ready"
        assert api.model().arms == ["control", "c5", "p10"]
        made = api.create_campaign("summer", summer)
        assert (made.etag, made.answer.campaign.coupons) == ('"summer-1"', ["c5", "p10"])
        assert api.campaign("summer") == made
        with pytest.raises(ApiError, match="412 changed"):
            api.create_campaign("summer", summer)
        changed = api.replace_campaign("summer", summer, made.etag)
        assert changed.answer.policy_version == "2"
        assert [c.campaign_id for c in api.campaigns()] == ["spring", "summer"]
        decided = api.decide("summer", [*IDS, CustomerRequest("nobody", {"channel": "sms"})])
        assert [d.customer_id for d in decided.decisions] == [*IDS, "nobody"]
        assert decided.decisions[-1].reason == Reason.UNKNOWN_CUSTOMER
        offers = [d for d in decided.decisions if d.action == "offer"]
        one = offers[0]
        dry = api.decide("summer", [one.customer_id], dry_run=True).decisions[0]
        assert (dry.decision_id, dry.sticky_hit) == (one.decision_id, True)
        now = datetime.now(UTC).isoformat()
        told = api.send_events(
            [EventBody("e-1", "sent", now, decision_id=str(one.decision_id)),
             EventBody("e-2", "ordered", now, customer_id="c-020", value_micros=5)]
        )  # fmt: skip
        assert (told.accepted, told.rejected) == (2, 0)
        known = api.customer(one.customer_id)
        assert known.recent_decisions[0].sent_at is not None
        assert next(api.customer_decisions(one.customer_id)).decision_id == one.decision_id
        assert api.holdouts("c-010", ["summer", "spring"]).campaigns[0].share_bps == 1000
        assert api.pause("summer", "lunch").state == "paused"
        assert api.resume("summer").state == "active"
        report = api.report("summer", since=start.isoformat())
        assert sum(arm.customers for arm in report.arms) > 200
        assert api.erase_customer("c-030").state == "tombstoned"
        job = api.build_audience("spring", formats=("ndjson", "csv"), dry_run=True)
        assert api.cancel_job(job.job_id).state == "cancelled"
        job = api.build_audience(
            "spring", filter={"feature": "recency_days", "op": ">=", "value": 9}
        )
        assert worker(server, tmp_path).run_one()
        assert api.wait_for(job.job_id).state == "succeeded"
        assert next(j.job_id for j in api.jobs()) == job.job_id
        manifest = api.results(job.job_id)
        path = api.download(job.job_id, manifest.files[0], tmp_path)
        assert path.stat().st_size == manifest.files[0].bytes
        assert "persuadables_decisions_total" in api.metrics()
    assert {template(request) for request in asked} == operations()


def test_a_file_that_is_not_the_manifests_is_refused(
    server: answering.Client, tmp_path: Path
) -> None:
    with through(server, []) as api:
        job = api.build_audience("spring", dry_run=True)
        assert worker(server, tmp_path).run_one()
        file = api.results(job.job_id).files[0]
        (tmp_path / "out").mkdir()
        with pytest.raises(ApiError, match="not the manifest's"):
            api.download(job.job_id, msgspec.structs.replace(file, sha256="0"), tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
        with pytest.raises(ApiError, match="404 not_found"):
            api.download(job.job_id, msgspec.structs.replace(file, name="x"), tmp_path / "out")


def test_pages_are_followed_to_the_end(server: answering.Client, monkeypatch: Any) -> None:
    monkeypatch.setattr("serving.client.PAGE", 2)
    asked: Asked = []
    with through(server, asked) as api:
        for _ in range(5):
            api.decide("spring", ["c-000"])  # without consent: judged and logged anew
        found = [d.decision_id for d in api.customer_decisions("c-000")]
    assert len(set(found)) == len(found) == 5
    assert len([r for r in asked if r.method == "GET"]) == 3


DECIDED = {
    "request_id": "r", "campaign_id": "c", "window_id": 0, "dry_run": False,
    "decided_at": "2026-01-01T00:00:00Z", "as_of": "2026-01-01T00:00:00Z", "snapshot_id": "s",
    "model_version": "1", "policy_version": "1", "counts": {"offer": 0, "none": 0},
    "decisions": [], "what_later_versions_add": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("first", "wait"),
    [
        (problem(503, "overloaded"), 1.0),
        (problem(503, "log_unavailable", "2"), 2.0),
        (problem(409, "in_flight"), 1.0),
        (problem(429, "quota", "7"), 7.0),
        (httpx.ConnectError("refused"), 1.0),
        (httpx.ReadTimeout("slow"), 1.0),
    ],
)
def test_what_may_be_asked_again_is_and_under_the_same_key(
    first: httpx.Response | Exception, wait: float
) -> None:
    client, asked, waits = scripted(first, httpx.Response(200, json=DECIDED))
    assert client.decide("c", ["a"]).counts.offer == 0
    keys = {request.headers["idempotency-key"] for request in asked}
    assert len(asked) == 2
    assert len(keys) == 1
    assert waits == [wait]
    assert {r.headers["authorization"] for r in asked} == {"Bearer upk_k_s"}
    assert len({r.content for r in asked}) == 1


@pytest.mark.parametrize(
    "answer",
    [
        problem(409, "immutable_field", None),
        problem(409, "job_running", "5"),
        problem(429, "quota", "59"),
        problem(401, "unauthorized", None),
        problem(500, "internal", None),
        httpx.Response(502, text="<html>"),
        httpx.Response(200, json={"unheard": "of"}),
    ],
)
def test_the_rest_is_the_callers_business(answer: httpx.Response) -> None:
    client, asked, waits = scripted(answer)
    with pytest.raises(ApiError) as caught:
        client.decide("c", ["a"])
    assert caught.value.status == answer.status_code
    assert (len(asked), waits) == (1, [])


def test_it_gives_up_after_its_tries_and_never_repeats_a_put() -> None:
    client, asked, waits = scripted(*[problem(503, "overloaded")] * 3, tries=3)
    with pytest.raises(ApiError, match="503 overloaded: No"):
        client.model()
    assert (len(asked), waits) == (3, [1.0, 1.0])
    client, asked, _ = scripted(httpx.ReadTimeout("slow"))
    with pytest.raises(httpx.ReadTimeout):
        client.create_campaign("c", CampaignBody("n", "EUR", "2026-01-01T00:00:00Z", ["a"]))
    assert len(asked) == 1


def test_a_problem_says_where_the_body_is_at_fault(server: answering.Client) -> None:
    with through(server, []) as api, pytest.raises(ApiError) as caught:
        api.decide("spring", ["c-010", "not an id"])
    error = caught.value
    assert (error.status, error.code) == (422, "validation")
    assert [(e.pointer, e.code) for e in error.errors] == [("#/customers/1/customer_id", "pattern")]
    assert error.request_id.startswith("req-")
    assert "not an id" not in str(error)


def test_ids_never_become_other_paths() -> None:
    client, asked, _ = scripted(*[problem(404, "not_found", None)] * 2)
    calls: list[Callable[[str], object]] = [client.customer, client.job]
    for call in calls:
        with pytest.raises(ApiError):
            call("../../metrics?x=1#y")
    assert [r.url.raw_path for r in asked] == [
        b"/v1/customers/..%2F..%2Fmetrics%3Fx%3D1%23y",
        b"/v1/jobs/..%2F..%2Fmetrics%3Fx%3D1%23y",
    ]


def test_a_body_is_what_the_document_says() -> None:
    client, asked, _ = scripted(httpx.Response(200, json=DECIDED))
    client.decide("c", ["a", CustomerRequest("b", {"consent": True})])
    assert json.loads(asked[0].content) == {
        "campaign_id": "c", "dry_run": False,
        "customers": [{"customer_id": "a", "context": None},
                      {"customer_id": "b", "context": {"consent": True}}],
    }  # fmt: skip
