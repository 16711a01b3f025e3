"""The HTTP surface: its document, its shapes, every documented status, hostile input, restarts."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.app import create_app, openapi
from serving.gate import Holder
from serving.problems import FIELD_PROBLEMS, PROBLEMS
from serving.schemas import MAX_BODY
from tests.unit.serving.answering import JSON, Client, asked, serving
from tests.unit.serving.small_shop import Shop, shared_shop
from uplift.policy import Reason

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "openapi.json"
IDS = [f"c-{i:03d}" for i in range(300)]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def client(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(shop.scorer(), tmp_path_factory.mktemp("log")) as found:
        found.service.quota.requests = found.service.quota.rows = 10**9
        yield found


def post(client: Any, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/v1/decisions", content=content, headers={**JSON, **headers})
    assert isinstance(answer, httpx.Response)
    return answer


# The document


def test_the_committed_document_is_the_generated_one() -> None:
    generated = json.dumps(openapi(create_app(Holder()).app), indent=1, sort_keys=True) + "\n"
    assert DOCUMENT.read_text() == generated, "run: python -m serving openapi"


def test_the_served_document_is_the_committed_one(client: Client) -> None:
    assert client.get("/openapi.json").json() == json.loads(DOCUMENT.read_text())


def test_the_reasons_are_the_closed_list() -> None:
    schema = json.loads(DOCUMENT.read_text())["components"]["schemas"]["Reason"]
    assert set(schema["enum"]) == {r.value for r in Reason}


def test_patterns_mean_the_same_outside_python() -> None:
    assert r"\Z" not in DOCUMENT.read_text()


def test_every_reference_resolves() -> None:
    text = DOCUMENT.read_text()
    schemas = json.loads(text)["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(schemas)


@functools.cache
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DOCUMENT.read_text())
    return found


def conforms(value: Any, schema: dict[str, Any], where: str = "#") -> None:
    """A small JSON Schema check, with the words that the document uses."""
    schemas = document()["components"]["schemas"]
    if "$ref" in schema:
        return conforms(value, schemas[schema["$ref"].rpartition("/")[2]], where)
    if "anyOf" in schema:
        faults = []
        for choice in schema["anyOf"]:
            try:
                return conforms(value, choice, where)
            except AssertionError as fault:
                faults.append(str(fault))
        raise AssertionError(f"{where}: none of {faults}")
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int,
        "number": (int, float), "boolean": bool, "null": type(None),
    }  # fmt: skip
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), f"{where}: {value!r}"
        if schema["type"] in ("integer", "number"):
            assert not isinstance(value, bool), where
    if "enum" in schema:
        assert value in schema["enum"], where
    if "minimum" in schema:
        assert schema["minimum"] <= value <= schema.get("maximum", value), where
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), where
        for key, item in value.items():
            known = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            assert known, f"{where}/{key} is not documented"
            if isinstance(known, dict):
                conforms(item, known, f"{where}/{key}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            conforms(item, schema["items"], f"{where}/{i}")
    return None


def documented(method: str, route: str, answer: httpx.Response) -> None:
    """The status is documented for the route, with this media type, and the body conforms."""
    answers = document()["paths"][route][method]["responses"]
    content = answers[str(answer.status_code)]["content"]
    conforms(answer.json(), content[answer.headers["content-type"]]["schema"])


# Answers


def test_a_decision_has_exactly_the_fields_of_the_reference(client: Client) -> None:
    answer = post(client, asked(*IDS))
    assert answer.status_code == 200
    documented("post", "/v1/decisions", answer)
    body = answer.json()
    assert list(body) == [
        "request_id", "campaign_id", "window_id", "dry_run", "decided_at", "as_of",
        "snapshot_id", "model_version", "policy_version", "counts", "decisions",
    ]  # fmt: skip
    assert list(body["decisions"][0]) == [
        "index", "customer_id", "decision_id", "action", "arm", "coupon_id", "reason",
        "is_holdout", "is_exploration", "assignment_prob", "response_propensity", "uplift",
        "expected_incremental_profit_micros", "expected_cost_micros", "profile_state",
        "sticky_hit", "valid_until", "retry_at", "warnings",
    ]  # fmt: skip
    assert [d["customer_id"] for d in body["decisions"]] == IDS
    assert [d["index"] for d in body["decisions"]] == list(range(300))
    offers = sum(d["action"] == "offer" for d in body["decisions"])
    assert body["counts"] == {"offer": offers, "none": 300 - offers}
    assert 0 < offers < 300


def test_the_example_of_the_reference_is_understood(client: Client) -> None:
    body = {
        "campaign_id": "spring",
        "dry_run": False,
        "customers": [
            {"customer_id": "c-010", "context": {"channel": "sms"}},
            {"customer_id": "c-040"},
        ],
    }
    first, second = post(client, body).json()["decisions"]
    assert first["warnings"] == ["context_ignored"]
    assert second["warnings"] == []


def test_a_customer_and_the_model(client: Client, shop: Shop) -> None:
    customer = client.get("/v1/customers/c-010")
    documented("get", "/v1/customers/{customer_id}", customer)
    assert list(customer.json()) == [
        "customer_id", "as_of", "tier", "lifecycle_stage", "labels", "profile_state", "rfm",
        "consent", "scores", "uplift", "recent_decisions",
    ]  # fmt: skip
    model = client.get("/v1/models/current")
    documented("get", "/v1/models/current", model)
    assert model.json()["bundle_sha256"] == shop.model.sha256
    assert model.json()["arms"] == ["control", "c5", "p10"]
    assert model.json()["snapshot"]["customers"] == 300


def test_health_with_and_without_a_model(client: Client) -> None:
    for path in ("/livez", "/readyz"):
        answer = client.get(path)
        assert answer.status_code == 200
        documented("get", path, answer)
    empty = Client(create_app(Holder()))
    assert empty.get("/livez").status_code == 200
    unready = empty.get("/readyz")
    assert unready.status_code == 503
    documented("get", "/readyz", unready)
    assert unready.json()["checks"]["model"] == "fail"
    for answer in (post(empty, asked("c-001")), empty.get("/v1/models/current")):
        assert answer.status_code == 503
        assert answer.json()["code"] == "not_ready"
        assert answer.headers["retry-after"] == "1"


def test_request_ids_are_kept_when_they_are_ids(client: Client) -> None:
    kept = post(client, asked("c-010"), **{"x-request-id": "abc-1"})
    assert kept.headers["x-request-id"] == kept.json()["request_id"] == "abc-1"
    for bad in ("a b", "x" * 65, "ü", "<script>"):
        made = client.get("/livez", headers={"x-request-id": bad.encode("latin-1")})
        assert re.fullmatch("req-[0-9a-f]{16}", made.headers["x-request-id"])
    assert made.headers["x-content-type-options"] == "nosniff"


def test_answers_about_a_simulated_shop_say_so(client: Client, shop: Shop) -> None:
    simulated = replace(shop.population, simulated=True)
    scorer = shop.scorer(snapshot=replace(shop.snapshot, population=simulated))
    answer = Client(create_app(Holder(scorer))).get("/v1/customers/c-010")
    assert answer.headers["x-data-source"] == "simulated"
    assert "x-data-source" not in client.get("/v1/customers/c-010").headers


# Refusals

A = b'{"campaign_id":"spring","customers":[{"customer_id":'
HOSTILE: list[tuple[str, bytes, int, str, str]] = [
    ("empty", b"", 400, "malformed", ""),
    ("cut", A, 400, "malformed", ""),
    ("not UTF-8", A + b'"c\xff"}]}', 400, "malformed", ""),
    ("NaN", A + b'NaN}]}', 400, "malformed", ""),
    ("infinite", A + b'"a","context":{"k":1e999}}]}', 422, "range", "#/customers/0/context"),
    ("lone surrogate", A + b'"\\ud800"}]}', 400, "malformed", ""),
    ("trailing text", A + b'"c-010"}]} x', 400, "malformed", ""),
    ("deep arrays", b"[" * 200_000, 422, "type", "#"),
    ("deep field", A + b'"a","context":{"k":' + b"[" * 200_000, 422, "type",
     "#/customers/0/context"),
    ("deep unknown", b'{"zz":' + b'{"a":' * 100_000, 422, "unknown_field", "#"),
    ("a list", b"[]", 422, "type", "#"),
    ("null", b"null", 422, "type", "#"),
    ("nothing in it", b"{}", 422, "missing", "#/campaign_id"),
    ("no customers", b'{"campaign_id":"spring"}', 422, "missing", "#/customers"),
    ("empty list", b'{"campaign_id":"spring","customers":[]}', 422, "length", "#/customers"),
    ("no id", b'{"campaign_id":"spring","customers":[{}]}', 422, "missing",
     "#/customers/0/customer_id"),
    ("newline", A + b'"c-010\\n"}]}', 422, "pattern", "#/customers/0/customer_id"),
    ("empty id", A + b'""}]}', 422, "pattern", "#/customers/0/customer_id"),
    ("traversal", A + b'"../../etc/passwd"}]}', 422, "pattern", "#/customers/0/customer_id"),
    ("other digits", A + '"c-\u0661"}]}'.encode(), 422, "pattern", "#/customers/0/customer_id"),
    ("NUL", A + b'"a\\u0000b"}]}', 422, "pattern", "#/customers/0/customer_id"),
    ("a number", A + b"1}]}", 422, "type", "#/customers/0/customer_id"),
    ("unknown field", A + b'"c-010"}],"secret-field":1}', 422, "unknown_field", "#"),
    ("unknown inner", A + b'"c-010","planted":1}]}', 422, "unknown_field", "#/customers/0"),
    ("dry run", A + b'"c-010"}],"dry_run":"yes"}', 422, "type", "#/dry_run"),
    ("campaign", b'{"campaign_id":"x\\n","customers":[{"customer_id":"a"}]}', 422, "pattern",
     "#/campaign_id"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE]
)
def test_hostile_bodies_are_refused_without_an_echo(
    client: Client, body: bytes, status: int, code: str, pointer: str
) -> None:
    answer = post(client, body)
    assert answer.status_code == status
    documented("post", "/v1/decisions", answer)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["request_id"] == answer.headers["x-request-id"]
    if status == 422:
        assert [(e["code"], e["pointer"]) for e in problem["errors"]] == [(code, pointer)]
        assert problem["errors"][0]["detail"] == FIELD_PROBLEMS[code]
    else:
        assert problem["code"] == code
    for planted in ("passwd", "secret-field", "planted", "zz"):
        assert planted not in answer.text


def test_too_many_customers_and_the_most_there_may_be(client: Client) -> None:
    ids = [f"k-{i}" for i in range(1001)]
    assert post(client, asked(*ids[:1000])).status_code == 200
    refused = post(client, asked(*ids))
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "#/customers"


def test_duplicates_are_refused_with_their_places(client: Client) -> None:
    refused = post(client, asked("a", "b", "a", "c", "b", "a"))
    assert refused.status_code == 422
    documented("post", "/v1/decisions", refused)
    places = [(e["pointer"], e["code"]) for e in refused.json()["errors"]]
    assert places == [(f"#/customers/{i}/customer_id", "duplicate") for i in (2, 4, 5)]
    assert len(post(client, asked(*["a"] * 500)).json()["errors"]) == 20


def test_another_campaign_is_not_found(client: Client) -> None:
    answer = post(client, {**asked("c-010"), "campaign_id": "other"})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_campaign")
    documented("post", "/v1/decisions", answer)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-encoding": "gzip"},
    ],
)
def test_other_media_types_are_refused(client: Client, headers: dict[str, str]) -> None:
    answer = post(client, asked("c-010"), **headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "media_type")
    documented("post", "/v1/decisions", answer)
    assert post(client, asked("c-010"), **{"content-type": "application/json; charset=utf-8"})


def test_large_bodies_are_refused_declared_or_not(client: Client) -> None:
    body = b" " * (MAX_BODY + 1)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    for content in (body, chunks()):
        answer = client.post("/v1/decisions", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        documented("post", "/v1/decisions", answer)
    padded = json.dumps(asked("c-010")).encode().ljust(MAX_BODY)
    assert post(client, padded).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/decisions/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/v1/decisions", 405, "method_not_allowed"),
        ("DELETE", "/livez", 405, "method_not_allowed"),
        ("GET", "/v1/customers/nobody", 404, "unknown_customer"),
        ("GET", "/v1/customers/a%0A", 422, "validation"),
        ("GET", "/v1/customers/%2e%2e%2fsalt", 404, "not_found"),
        ("GET", "/v1/customers/" + "x" * 65, 422, "validation"),
    ],
)
def test_problems_of_the_framework_are_problem_details(
    client: Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["title"] == PROBLEMS[code][1]
    assert (status == 405) == ("allow" in answer.headers)


def test_a_defect_is_a_500_that_shows_nothing(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise RuntimeError("planted-inside")

    scorer = shop.scorer(clock=broken)
    with serving(scorer, tmp_path) as server:
        answer = post(server, asked("c-010"))
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    documented("post", "/v1/decisions", answer)
    assert "planted-inside" not in answer.text
    (told,) = [r.getMessage() for r in caplog.records if r.name == "serving.app"]
    assert f"defect in request {answer.headers['x-request-id']}: RuntimeError at test_api" in told
    assert "planted-inside" not in caplog.text  # it might be a customer's id


def test_the_log_has_the_route_and_no_customer(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="serving.requests"):
        client.get("/v1/customers/c-010")
        post(client, asked("c-010", "c-011"))
    lines = [json.loads(r.message) for r in caplog.records if r.name == "serving.requests"]
    assert [(line["route"], line["status"], line["rows"]) for line in lines] == [
        ("/v1/customers/{customer_id}", 200, 0),
        ("/v1/decisions", 200, 2),
    ]
    assert "c-01" not in caplog.text
