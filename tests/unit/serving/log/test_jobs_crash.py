"""Workers of jobs, killed at any moment, full disks, two deployments: on both databases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import func, select

from serving.jobs import Worker
from serving.log.engine import Log
from serving.log.jobs import Job, Jobs
from serving.log.schema import campaign_budget, decisions
from serving.salt import VARIABLE
from tests.unit.serving import jobs
from tests.unit.serving.answering import Client, asked, post, serving
from tests.unit.serving.small_shop import SALT, Shop

ROOT = Path(__file__).parents[4]
LEASE = 1.0
# Forks a worker for each line that it reads, which does one job, or stops in it where the log says
# `state` and so many `rows`; `limit` bytes are the most that a file of it may have.
WORKERS = """
import json, os, resource, signal, sys
from pathlib import Path
from features.config import load_config
from serving import jobs
from serving.audiences import Audience
from serving.jobs_files import ResultWriter
from serving.log.engine import open_log
from serving.log.jobs import Jobs
from serving.salt import load_salt
root = Path(sys.argv[1])
config = load_config(root / "spring.yaml")
scorer = jobs.current_scorer(config, load_salt(), root / "data")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def work(url, results, job_id, state, rows, limit):
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    log = open_log(url)
    def stop_there():
        with log.read() as connection:
            job = Jobs(log).get(connection, job_id)
        if job.state == state and job.rows_done >= rows:
            signal.pause()
    for kind, name in ((Audience, "add"), (Audience, "plan"), (Audience, "commit"),
                       (ResultWriter, "finish"), (ResultWriter, "publish")):
        def watched(*given, whole=getattr(kind, name), **more):
            stop_there()
            found = whole(*given, **more)
            stop_there()
            return found
        setattr(kind, name, watched)
    worker = jobs.Worker(log, scorer, root / "data", lease=1.0, chunk=60)
    worker.home = Path(results)
    worker.run_one()
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            work(**json.loads(line))
        finally:
            os._exit(0)
    print(child, flush=True)
"""
Start = Callable[..., int]


@pytest.fixture(scope="module")
def start(shop: Shop) -> Iterator[Start]:
    """Starts a worker; gives its process id."""
    (shop.root / "spring.yaml").write_text(yaml.safe_dump(shop.config.model_dump(mode="json")))
    with subprocess.Popen(
        [sys.executable, "-c", WORKERS, str(shop.root)],
        cwd=ROOT, env={**os.environ, VARIABLE: SALT.value.decode()}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as parent:  # fmt: skip

        def begin(
            client: Client, job_id: str, *, state: str = "", rows: int = 0, limit: int = 0
        ) -> int:
            assert parent.stdin is not None
            assert parent.stdout is not None
            asked = {"url": client.url, "results": str(home(client)), "job_id": job_id}
            asked |= {"state": state, "rows": rows, "limit": limit}
            parent.stdin.write(json.dumps(asked) + "\n")
            parent.stdin.flush()
            return int(parent.stdout.readline())

        yield begin


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def client(shop: Shop, url: str, tmp_path: Path) -> Iterator[Client]:
    with serving(shop.scorer(), url) as found:
        found.folder, found.url = tmp_path, url
        found.holder.root = tmp_path
        yield found


def home(client: Client) -> Path:
    return Path(client.folder) / "jobs" / "spring"


def read(log: Log, job_id: str) -> Job:
    with log.read() as connection:
        found = Jobs(log).get(connection, job_id)
    assert found is not None
    return found


def held(log: Log) -> int:
    """The counter, which is the sum of the rows."""
    with log.read() as connection:
        rows = connection.execute(
            select(func.sum(decisions.c.reserved_micros)).where(decisions.c.reservation == "held")
        ).scalar()
        counter = connection.execute(select(campaign_budget.c.committed_micros)).scalar_one()
    assert counter == (rows or 0)
    return int(counter)


def outcome(client: Client, job_id: str) -> list[tuple[Any, ...]]:
    names = ("customer_id", "action", "arm", "reason", "expected_cost_micros", "sticky_hit")
    return [tuple(row[name] for name in names) for row in jobs.rows(client, job_id)]


@pytest.mark.parametrize(
    ("state", "rows"),
    [("running", 0), ("running", 120), ("committing", 0), ("committing", 60), ("committing", 240),
     ("committing", 300)],
)  # fmt: skip
def test_a_job_whose_worker_is_killed_is_taken_up_and_paid_for_once(
    client: Client, start: Start, state: str, rows: int
) -> None:
    log = client.service.log
    told = jobs.done(client, client.folder, dry_run=True)
    wanted = outcome(client, told)
    job_id = jobs.queue(client)
    killed = start(client, job_id, state=state, rows=rows)
    while (job := read(log, job_id)).state != state or job.rows_done < rows:
        assert not ended(killed), job
        time.sleep(0.002)
    os.kill(killed, signal.SIGKILL)
    while not ended(killed):
        time.sleep(0.002)
    job = read(log, job_id)
    assert job.state == state
    # What the job says was done is what is stored, and paid for.
    with log.read() as connection:
        stored = connection.execute(select(func.count()).select_from(decisions)).scalar_one()
    assert stored == (0 if state == "running" else job.rows_done)
    assert (held(log) > 0) == (stored > 0)
    cancelled = client.request("DELETE", f"/v1/jobs/{job_id}")
    if state == "running":  # nobody works on it, and it can be cancelled all the same
        assert cancelled.json()["state"] == "cancelled"
        job_id = jobs.queue(client)
    else:
        assert cancelled.status_code == 409
        time.sleep(LEASE)
    assert Worker(log, client.scorer, client.folder).run_one()
    done = read(log, job_id)
    assert (done.state, done.attempt) == ("succeeded", 1 if state == "running" else 2)
    # What was stored stays; the rest is planned anew, with what is left of the budget.
    found = outcome(client, job_id)
    planned = 300 if state == "running" else stored
    assert found[:planned] == wanted[:planned]
    assert [row[0] for row in found] == [row[0] for row in wanted]
    assert not any(row[5] for row in found)
    assert 0.95 * 120_000_000 < held(log) <= 120_000_000
    assert held(log) == sum(row[4] for row in found)
    with log.read() as connection:
        once = connection.execute(select(func.count()).select_from(decisions)).scalar_one()
    assert once == 300  # also what was refused is stored once
    assert [f.name for f in home(client).iterdir() if f.name.startswith(".")] == []


def test_a_worker_that_was_thought_dead_writes_no_more(client: Client) -> None:
    log = client.service.log
    job_id = jobs.queue(client)
    slow = Worker(log, client.scorer, client.folder, lease=0.2, chunk=60)
    slow.breathe = lambda: time.sleep(0.4)  # type: ignore[method-assign]
    first = threading.Thread(target=slow.run_one)
    first.start()
    while read(log, job_id).rows_done < 60 or read(log, job_id).state != "committing":
        time.sleep(0.01)
    time.sleep(0.25)
    assert Worker(log, client.scorer, client.folder).run_one()
    first.join()
    done = read(log, job_id)
    assert (done.state, done.attempt) == ("succeeded", 2)
    assert held(log) == sum(row[4] for row in outcome(client, job_id))
    with log.read() as connection:
        assert connection.execute(select(func.count()).select_from(decisions)).scalar() == 300
    assert [f.name for f in home(client).iterdir()] == [job_id]


def test_a_worker_that_is_to_stop_gives_its_job_back_at_once(client: Client) -> None:
    job_id = jobs.queue(client)
    chunks = iter([False] * 8 + [True] * 9)
    log = client.service.log
    first = Worker(log, client.scorer, client.folder, chunk=60, stopping=lambda: next(chunks))
    assert first.run_one()
    left = read(log, job_id)
    assert (left.state, left.attempt) == ("committing", 0)
    assert 0 < left.rows_done < 300
    assert Worker(log, client.scorer, client.folder).run_one()
    assert (read(log, job_id).state, read(log, job_id).attempt) == ("succeeded", 1)
    assert not any(row[5] for row in outcome(client, job_id))
    assert held(log) == sum(row[4] for row in outcome(client, job_id))


def test_two_deployments_run_each_job_once_while_others_decide(client: Client) -> None:
    log = client.service.log
    found, stop = [], threading.Event()

    def work() -> None:
        worker = Worker(log, client.scorer, client.folder, chunk=40)
        while not stop.is_set():
            if not worker.run_one():
                time.sleep(0.01)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for i in range(4):
        job_id = jobs.queue(client)
        while read(log, job_id).finished_at is None:
            post(client, asked(f"c-{i:03d}", f"c-{299 - i:03d}"))
        found.append(job_id)
    stop.set()
    for worker in workers:
        worker.join()
    assert {(read(log, job_id).state, read(log, job_id).attempt) for job_id in found} == {
        ("succeeded", 1)
    }
    assert held(log) <= 120_000_000
    offers = [{row[:3] for row in outcome(client, i) if row[1] == "offer"} for i in found]
    assert all(offers[0] == each for each in offers[1:])


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_full_disk_fails_the_job_and_leaves_no_file(
    shop: Shop, start: Start, postgres_server: str, tmp_path: Path, dry_run: bool
) -> None:
    """Files of the worker may have 4,000 bytes; its log is in PostgreSQL, which may go on."""
    from tests.unit.serving.log.conftest import new_database

    with serving(shop.scorer(), new_database(postgres_server)) as client:
        client.folder = tmp_path
        client.url = client.service.log.url.render_as_string(hide_password=False)
        client.holder.root = tmp_path
        job_id = jobs.queue(client, formats=["csv", "parquet"], dry_run=dry_run)
        full = start(client, job_id, limit=4_000)
        while not ended(full):
            time.sleep(0.01)
        failed = jobs.state(client, job_id)
        assert (failed["state"], failed["error"]) == ("failed", "result_disk_full")
        assert list(home(client).iterdir()) == []
        stands = held(client.service.log)
        assert (stands == 0) == dry_run
        # What stands is kept by the next job.
        again = jobs.done(client, tmp_path)
        assert held(client.service.log) >= stands
        assert sum(row[4] for row in outcome(client, again)) == held(client.service.log)
