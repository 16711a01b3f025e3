"""What is answered while the decision log is away, and that all goes on when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.scorer import utc_now
from tests.contracts.test_api import documented
from tests.unit.serving.answering import Client, asked, post, serving
from tests.unit.serving.small_shop import Shop, shared_shop

IDS = [f"c-{i:03d}" for i in range(300)]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


@pytest.fixture
def client(shop: Shop, tmp_path: Path) -> Iterator[Client]:
    with serving(shop.scorer(clock=utc_now), tmp_path) as found:
        yield found


def test_without_its_log_nothing_is_offered_and_dry_runs_go_on(client: Client) -> None:
    preview = post(client, asked(*IDS[:20], dry_run=True)).json()["decisions"]
    with client.service.log.writing.connect() as connection:
        for table in ("decisions", "campaign_budget", "facts"):
            connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {table}_away")
        connection.commit()
    answer = post(client, asked("c-010"))
    assert (answer.status_code, answer.json()["code"]) == (503, "log_unavailable")
    documented("post", "/v1/decisions", answer)
    assert answer.headers["retry-after"] == "1"
    dry = post(client, asked(*IDS[:20], dry_run=True))
    assert dry.status_code == 200
    assert dry.json()["decisions"] == preview
    # Again and again, on whatever connection there is.
    for _ in range(2):
        few = post(client, asked(*IDS[:2], dry_run=True))
        assert few.json()["decisions"] == preview[:2]
    assert client.get("/v1/customers/c-010").status_code == 503
    for _ in range(3):
        client.service._health = (-1.0, client.service._health[1])
        ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["log"]) == (503, "fail")
    with client.service.log.writing.connect() as connection:
        for table in ("decisions", "campaign_budget", "facts"):
            connection.exec_driver_sql(f"ALTER TABLE {table}_away RENAME TO {table}")
        connection.commit()
    assert post(client, asked("c-010")).status_code == 200
    client.service._health = (-1.0, False)
    assert client.get("/readyz").status_code == 200


def test_a_full_disk_is_told_and_recovers(client: Client) -> None:
    def limit(pages: int) -> None:
        # Of every connection: the pool has given out one at a time.
        with client.service.log.writing.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    post(client, asked(*IDS[:100]))
    with client.service.log.read() as connection:
        pages = int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
    limit(pages)
    statuses = [post(client, asked(*(f"u{n}-{i}" for i in range(500)))) for n in range(3)]
    assert {a.status_code for a in statuses} == {503}
    assert {a.json()["code"] for a in statuses} == {"log_unavailable"}
    limit(2**30)
    assert post(client, asked(*IDS[:100])).status_code == 200
