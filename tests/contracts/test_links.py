"""schemathesis goes from answer to request: a campaign is decided for, events tell of the decision,
the customer is looked up and erased; each answer is checked."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings

from serving.limits import Quota
from serving.log.keys import SCOPES, make
from serving.service import now_micros
from tests.contracts.test_fuzz import excluded
from tests.unit.serving.answering import Client, serving
from tests.unit.serving.small_shop import Shop, shared_shop

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
DOCUMENT = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
STEPS = settings(
    max_examples=20, stateful_step_count=8, deadline=None, database=None,
    phases=[Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip
CAMPAIGN, CUSTOMER = "/v1/campaigns/{campaign_id}", "/v1/customers/{customer_id}"
FIRST, DECIDED = "$response.body#/items/0/campaign_id", "$response.body#/decisions/0"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


def linked(customers: list[str]) -> dict[str, Any]:
    """The document with what follows what: decisions for these customers, and the rest from the
    answers alone."""
    document: dict[str, Any] = json.loads(json.dumps(DOCUMENT))
    paths = document["paths"]

    def link(source: tuple[str, str], target: tuple[str, str], **what: Any) -> None:
        name = paths[target[1]][target[0]]["operationId"]
        answer = paths[source[1]][source[0]]["responses"]["200"]
        links = answer.setdefault("links", {})
        links[f"{name}-{len(links)}"] = {"operationId": name, **what}

    campaigns, decisions = ("get", "/v1/campaigns"), ("post", "/v1/decisions")
    for customer in customers:
        asked = {"campaign_id": FIRST, "customers": [{"customer_id": customer}], "dry_run": False}
        link(campaigns, decisions, requestBody=asked)
    # Not its pause: then nobody would get an offer that events could tell of.
    for method, path in (("get", f"{CAMPAIGN}/report"), ("post", f"{CAMPAIGN}/resume")):
        link(campaigns, (method, path), parameters={"path.campaign_id": FIRST})
    now = datetime.now(UTC).isoformat()
    told = {
        "event_id": f"{DECIDED}/decision_id", "decision_id": f"{DECIDED}/decision_id",
        "type": "redeemed", "occurred_at": now, "cost_micros": 1_000_000,
    }  # fmt: skip
    for _ in range(4):  # the likeliest to follow; else, by chance, hardly one offer is told of
        link(decisions, ("post", "/v1/events"), requestBody={"events": [told]})
    for method, path in (("get", f"{CUSTOMER}/decisions"), ("delete", CUSTOMER)):
        link(decisions, (method, path), parameters={"path.customer_id": f"{DECIDED}/customer_id"})
    return document


def offered(client: Client) -> list[str]:
    """Some customers who get an offer; one after the other is erased."""
    known = client.scorer.snapshot.population.customer_id.astype(str).tolist()
    asked = {
        "campaign_id": client.scorer.campaign.campaign_id, "dry_run": True,
        "customers": [{"customer_id": name} for name in known[:200]],
    }  # fmt: skip
    made = client.post("/v1/decisions", json=asked).json()["decisions"]
    return [each["customer_id"] for each in made if each["action"] == "offer"][:12]


# The test client of schemathesis leaves streams to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_follows_an_answer_is_answered_as_documented(shop: Shop, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    with serving(shop.scorer(), tmp_path) as client:
        client.service.quota = Quota(10**9, 10**9)
        document = json.dumps(linked(offered(client))).encode()
        with client.service.log.write() as connection:
            key = {"Authorization": f"Bearer {make(connection, SCOPES, '', now_micros(), None)}"}
        client.service._keys_until = -1.0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":  # each request would start and end the server
                return
            if scope["path"] != "/openapi.json":
                await client.app(scope, receive, send)
                return
            head = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": document})

        from schemathesis import GenerationMode

        schema = schemathesis.openapi.from_asgi("/openapi.json", app).include(
            path_regex="^/v1/(campaigns|campaigns/.*/(report|resume)|customers/.*|decisions|events)$"
        )
        # What a link says makes a request valid again that was meant to be invalid.
        schema.config.generation.update(modes=[GenerationMode.POSITIVE])

        class Machine(schema.as_state_machine()):  # type: ignore[misc]
            def get_call_kwargs(self, case: Any) -> dict[str, Any]:
                return {"headers": key}

            def _get_target_for_result(self, result: Any) -> Any:
                # Nothing follows a dry run: an event can't tell of a decision without an id.
                body = result.response.json() if result.response.status_code == 200 else {}
                if any(made.get("decision_id") is None for made in body.get("decisions", ())):
                    return None
                return super()._get_target_for_result(result)

            def validate_response(self, response: Any, case: Any, **more: Any) -> None:
                assert response.status_code < 500, response.text
                case.validate_response(response, headers=key, excluded_checks=excluded(response))
                found = response.json() if response.status_code == 200 else {}
                for row in found.get("results", ()):
                    seen[row.get("code") or row["status"]] += 1
                if case.operation.path == "/v1/decisions" and response.status_code == 200:
                    seen["decided"] += 1
                if case.operation.path == CUSTOMER and case.operation.method == "delete":
                    seen["erased"] += response.status_code == 202

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for walk in range(6):  # each another; one alone may, by chance, tell of hardly an offer
                seed(walk)(Machine).run(settings=STEPS)
                if min(seen["decided"], seen["accepted"], seen["erased"]) > 1:
                    break
    # The ways were gone, and not only looked for.
    assert seen["decided"] > 1, seen
    assert seen["accepted"] > 1, seen
    assert seen["erased"] > 1, seen
