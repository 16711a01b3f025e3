"""schemathesis asks what the document allows and forbids: no 5xx, no undocumented answer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from serving.limits import Quota
from serving.log.keys import SCOPES, make
from serving.service import now_micros
from tests.unit.serving.answering import serving
from tests.unit.serving.small_shop import Shop, shared_shop

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
DOCUMENT = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
# Refusals by what a document can't say: ids stand once, a campaign needs one of two headers, and
# its coupons, features and times are to make sense to this server; 3.0 is no integer ("type").
UNSAID = {"precondition_required", "key_reused", "bad_cursor", "changed", "duplicate", "type"}
PLACES = (
    "#/coupons", "#/currency", "#/default_coupon", "#/eligibility", "#/ends_at", "#/starts_at",
    "#/time_zone", "#/from", "#/to", "#/filter",
)  # fmt: skip
OPERATIONS = [
    (method.upper(), path)
    for path, methods in DOCUMENT["paths"].items()
    for method in methods
    if not path.startswith(("/livez", "/readyz", "/metrics"))
]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


# The test client of schemathesis leaves streams to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda part: str(part))
def test_no_defect_and_nothing_undocumented(
    shop: Shop, tmp_path: Path, method: str, path: str
) -> None:
    with serving(shop.scorer(), tmp_path) as client:
        client.service.quota = Quota(10**9, 10**9)
        with client.service.log.write() as connection:
            key = {"Authorization": f"Bearer {make(connection, SCOPES, '', now_micros(), None)}"}
        client.service._keys_until = -1.0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":  # each request would start and end the server
                await client.app(scope, receive, send)

        schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=key)
        operation = schema[path][method]

        @settings(
            max_examples=12, deadline=None, database=None, derandomize=True,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def ask(case: object) -> None:
            answer = case.call(headers=key)  # type: ignore[attr-defined]
            assert answer.status_code < 500, answer.text
            case.validate_response(  # type: ignore[attr-defined]
                answer, headers=key, excluded_checks=excluded(answer)
            )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            operation_test(operation, ask)


def excluded(answer: Any) -> list[object]:
    """After such a refusal it is not asked whether the request should have been accepted."""
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    found = answer.json() if answer.headers["content-type"][0].endswith("json") else {}
    errors = found.get("errors", [])
    unsaid = {found.get("code"), *(e["code"] for e in errors)} & UNSAID
    placed = any(e["pointer"].startswith(PLACES) for e in errors)
    return [positive_data_acceptance] if unsaid or placed else []


def operation_test(operation: object, ask: object) -> None:
    from hypothesis import given

    given(case=operation.as_strategy())(ask)()  # type: ignore[attr-defined,operator]
