"""Keys over every operation of the document: who may ask for it, and how long a refusal takes."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import pytest

from serving.log import keys
from serving.log.keys import PREFIX, SCOPES, make
from serving.service import now_micros
from tests.contracts.test_api import document
from tests.unit.serving.answering import JSON, Client, serving
from tests.unit.serving.small_shop import Shop, shared_shop

OPERATIONS = [
    (method.upper(), path, operation)
    for path, methods in document()["paths"].items()
    for method, operation in methods.items()
]
KEYLESS = {"/livez", "/readyz", "/metrics"}
NAMES = {"campaign_id": "spring", "customer_id": "c-010", "job_id": "job-1", "name": "a.csv"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def client(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(shop.scorer(), tmp_path_factory.mktemp("keys")) as found:
        found.service.quota.requests = 10**9
        yield found


@pytest.fixture(scope="module")
def tokens(client: Client) -> dict[str, str]:
    """A key of each scope alone, and keys that are no good."""
    now = now_micros()
    with client.service.log.write() as connection:
        found = {scope: make(connection, [scope], "", now, None) for scope in SCOPES}
        found["old"] = make(connection, SCOPES, "", now - 10, now - 5)
        found["revoked"] = make(connection, SCOPES, "", now, None)
        assert keys.revoke(connection, found["revoked"].split("_")[1], now)
    client.service._keys_until = -1.0
    return found


def call(client: Client, method: str, path: str, header: str | None) -> Any:
    headers = {**JSON} | ({} if header is None else {"authorization": header})
    return client.request(method, path.format(**NAMES), content=b"{}", headers=headers)


def code(answer: Any) -> str:
    return str(json.loads(answer.content)["code"])


def test_every_operation_names_a_scope_or_is_for_the_inside() -> None:
    for _, path, operation in OPERATIONS:
        if path in KEYLESS:
            assert "security" not in operation
        else:
            assert operation["security"] == [{"key": []}]
            assert operation["x-scope"] in SCOPES


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [(m, p, o["x-scope"]) for m, p, o in OPERATIONS if p not in KEYLESS],
)
def test_without_a_good_key_401_and_without_the_scope_403(
    client: Client, tokens: dict[str, str], method: str, path: str, scope: str
) -> None:
    good = tokens[scope]
    other = tokens["read" if scope != "read" else "score"]
    bad = [
        None,
        "",
        "Bearer ",
        "Bearer x",
        f"Basic {good}",
        f"bearer {good}",
        good,
        f"Bearer {good} ",
        f"Bearer {good}\t",
        f"Bearer {PREFIX}_000000000000_{'a' * 43}",
        f"Bearer {good[:-1]}{'A' if good[-1] != 'A' else 'B'}",
        # The id of one key with the secret of another.
        f"Bearer {PREFIX}_{other.split('_')[1]}_{good.split('_', 2)[2]}",
        f"Bearer {tokens['old']}",
        f"Bearer {tokens['revoked']}",
    ]
    for header in bad:
        answer = call(client, method, path, header)
        assert (answer.status_code, code(answer)) == (401, "unauthorized"), header
        assert answer.headers["www-authenticate"] == "Bearer"
    for name in SCOPES:
        answer = call(client, method, path, f"Bearer {tokens[name]}")
        if name == scope:
            assert answer.status_code not in (401, 403)
        else:
            assert (answer.status_code, code(answer)) == (403, "forbidden")


def test_what_is_for_the_inside_asks_for_no_key_and_the_document_for_any(
    client: Client, tokens: dict[str, str]
) -> None:
    for path in KEYLESS:
        assert call(client, "GET", path, None).status_code == 200
    assert call(client, "GET", "/openapi.json", None).status_code == 401
    for scope in SCOPES:
        assert call(client, "GET", "/openapi.json", f"Bearer {tokens[scope]}").status_code == 200


def test_every_check_does_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known or not, with the right secret or not, readable or not: one hash, and one comparison of
    as many characters that does not stop at the first difference."""
    secret = "s" * 43
    known = keys.Key(
        "a" * 12, hashlib.sha256(secret.encode()).hexdigest(), frozenset(SCOPES), "", 0, None, None
    )
    work: list[tuple[str, int]] = []
    compare, sha256 = hmac.compare_digest, hashlib.sha256

    def comparing(one: str, other: str) -> bool:
        work.append(("compare", len(one) + len(other)))
        return compare(one, other)

    def hashing(content: bytes) -> Any:
        work.append(("hash", 0))
        return sha256(content)

    monkeypatch.setattr(keys.hmac, "compare_digest", comparing)
    monkeypatch.setattr(keys.hashlib, "sha256", hashing)
    headers = [
        f"Bearer {PREFIX}_{'a' * 12}_{secret}",
        f"Bearer {PREFIX}_{'a' * 12}_{'t' * 43}",
        f"Bearer {PREFIX}_{'b' * 12}_{secret}",
        "Bearer nonsense",
        "",
    ]
    done = []
    for header in headers:
        work.clear()
        found = keys.authenticate(header, {known.key_id: known}, 1)
        assert (found is known) == (header == headers[0])
        done.append(list(work))
    assert done == [[("hash", 0), ("compare", 128)]] * len(headers)
