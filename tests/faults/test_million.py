"""An audience of a million customers, cancelled in the middle."""

from __future__ import annotations

import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, select

from serving.log.schema import campaign_budget, decisions
from serving.population import Labels, Population
from tests.unit.serving import jobs
from tests.unit.serving.answering import asked, post, serving
from tests.unit.serving.small_shop import Shop
from uplift.bundle import Scores

CUSTOMERS = 1_000_000


def crowd(people: Population) -> Population:
    """The small shop's customers again and again, under a million names."""
    n = len(people)
    of = np.arange(CUSTOMERS) % n

    def column(value: Any) -> Any:
        if isinstance(value, Labels):
            return replace(value, codes=value.codes[of])
        if isinstance(value, Scores):
            return Scores(*(getattr(value, f.name)[of] for f in fields(value)))
        return value[of] if isinstance(value, np.ndarray) and len(value) == n else value

    columns = {f.name: column(getattr(people, f.name)) for f in fields(people)}
    columns["customer_id"] = np.array([f"m-{i:07d}" for i in range(CUSTOMERS)]).astype(np.bytes_)
    return Population(**columns)


def test_a_million_are_cancelled_in_the_middle_and_nothing_is_left(
    shop: Shop, url: str, tmp_path: Path
) -> None:
    snapshot = replace(shop.snapshot, population=crowd(shop.population))
    with serving(shop.scorer(snapshot=snapshot), url) as client:
        job_id = jobs.queue(client, formats=["ndjson", "csv", "parquet"])
        worker = jobs.worker(client, tmp_path)
        thread = threading.Thread(target=worker.run_one)
        thread.start()
        until = time.monotonic() + 60
        while jobs.state(client, job_id)["progress"]["rows_done"] < 50_000:
            assert time.monotonic() < until
            time.sleep(0.02)
        # Others are served meanwhile.
        assert post(client, asked("m-0000010")).status_code == 200
        cancelled = client.request("DELETE", f"/v1/jobs/{job_id}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        thread.join(30)
        assert not thread.is_alive()
        found = jobs.state(client, job_id)
        assert found["state"] == "cancelled"
        assert 50_000 <= found["progress"]["rows_done"] < CUSTOMERS
        assert found["progress"]["rows_total"] == CUSTOMERS
        assert list((tmp_path / "jobs" / "spring").iterdir()) == []
        with client.service.log.read() as connection:
            rows = connection.execute(select(func.count()).select_from(decisions)).scalar_one()
            held = connection.execute(select(func.sum(decisions.c.reserved_micros))).scalar_one()
            budget = connection.execute(select(campaign_budget)).one()
        assert rows == 1  # that of the single customer
        assert budget.committed_micros == held
        # The campaign is free for the next job.
        assert jobs.ask(client, filter={"segment": "tier", "in": ["prospect"]}).status_code == 202
