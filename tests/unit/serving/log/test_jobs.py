"""Leases of jobs, on both databases: who may work on one, and for how long."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import update

from serving.log.engine import Log
from serving.log.jobs import ATTEMPTS, QUEUED, Job, Jobs
from serving.log.retention import JOBS, RESULTS, purge
from serving.log.schema import jobs as table

NOW = 1_800_000_000_000_000


def add(log: Log, name: str, key: str = "k", at: int = NOW) -> str:
    with log.write() as connection:
        return Jobs(log).add(connection, f"job-{name}", f"c-{name}", key, "{}", at)


def claim(log: Log, owner: str, seconds: float = 60.0) -> Job | None:
    with log.write() as connection:
        return Jobs(log).claim(connection, owner, seconds, NOW)


def get(log: Log, name: str) -> Job:
    with log.read() as connection:
        found = Jobs(log).get(connection, f"job-{name}")
    assert found is not None
    return found


def test_the_oldest_job_is_taken_first_and_by_one_worker(log: Log) -> None:
    assert [add(log, name, at=NOW + at) for name, at in (("b", 2), ("a", 1))] == ["added"] * 2
    taken = [claim(log, owner) for owner in ("x", "y", "z")]
    assert [job and job.job_id for job in taken] == ["job-a", "job-b", None]
    assert {(job.state, job.attempt) for job in taken if job} == {("running", 1)}


def test_many_workers_at_once_take_each_job_once(log: Log) -> None:
    for i in range(12):
        assert add(log, str(i), key=str(i)) == "added"
    taken: list[str] = []
    ready = threading.Barrier(6)

    def work(owner: str) -> None:
        ready.wait()
        while (job := claim(log, owner)) is not None:
            taken.append(job.job_id)

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"job-{i}" for i in range(12))


def test_a_lease_that_ran_out_goes_to_another_and_the_first_can_write_no_more(log: Log) -> None:
    add(log, "a")
    table_of = Jobs(log)
    assert claim(log, "x", 0.2) is not None
    with log.write() as connection:
        assert table_of.hold(connection, "job-a", "x", 0.2, {"state": "committing"})
    assert claim(log, "y") is None
    time.sleep(0.3)
    second = claim(log, "y")
    assert second is not None
    assert (second.state, second.attempt) == ("committing", 2)
    with log.write() as connection:
        assert not table_of.hold(connection, "job-a", "x", 60)
        assert not table_of.finish(connection, "job-a", "x", NOW, "succeeded")
        table_of.give_back(connection, "job-a", "x", 0)
        assert table_of.hold(connection, "job-a", "y", 60, {"rows_done": 5})
        assert table_of.finish(connection, "job-a", "y", NOW, "succeeded")
    assert (get(log, "a").state, get(log, "a").rows_done) == ("succeeded", 5)


def test_after_three_attempts_a_job_is_failed(log: Log) -> None:
    add(log, "a")
    for attempt in range(1, ATTEMPTS + 1):
        job = claim(log, "x", 0.0)
        assert job is not None
        assert job.attempt == attempt
        time.sleep(0.01)
    assert claim(log, "x") is None
    assert (get(log, "a").state, get(log, "a").error) == ("failed", "attempts")
    assert add(log, "a2") == "added"


def test_a_job_that_was_given_back_is_open_at_once(log: Log) -> None:
    add(log, "a")
    claim(log, "x")
    with log.write() as connection:
        Jobs(log).give_back(connection, "job-a", "x", 0)
    again = claim(log, "y")
    assert again is not None
    assert again.attempt == 1


@pytest.mark.parametrize(
    ("state", "may"),
    [("queued", True), ("running", True), ("committing", False), ("succeeded", False),
     ("failed", False), ("cancelled", False)],
)  # fmt: skip
def test_a_job_is_cancelled_before_it_commits(log: Log, state: str, may: bool) -> None:
    add(log, "a")
    with log.write() as connection:
        connection.execute(update(table).values(state=state, owner="x"))
        assert Jobs(log).cancel(connection, "job-a", NOW) is may
        assert not Jobs(log).hold(connection, "job-a", "x", 60) or state == "committing"
    assert get(log, "a").state == ("cancelled" if may else state)


def test_one_unfinished_job_of_a_campaign_and_five_queued_of_a_key(log: Log) -> None:
    for i in range(QUEUED):
        assert add(log, str(i)) == "added"
    assert add(log, "more") == "too_many_jobs"
    assert add(log, "more", key="other") == "added"
    with log.write() as connection:
        done = Jobs(log).add(connection, "job-twin", "c-0", "third", "{}", NOW)
    assert done == "job_running"
    claim(log, "x")
    assert add(log, "again") == "added"  # one of the five is running now
    with log.write() as connection:
        assert Jobs(log).finish(connection, "job-0", "x", NOW, "succeeded")
        assert Jobs(log).add(connection, "job-twin", "c-0", "third", "{}", NOW) == "added"


def test_many_servers_at_once_queue_no_more_than_a_key_may(log: Log) -> None:
    ready, answers = threading.Barrier(8), []

    def ask(i: int) -> None:
        ready.wait()
        answers.append(add(log, str(i)))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["added"] * QUEUED + ["too_many_jobs"] * (8 - QUEUED)


def test_what_has_expired_is_listed_no_more_kept_a_while_and_then_removed(log: Log) -> None:
    for name, age in (("old", JOBS + 1), ("gone", RESULTS), ("kept", RESULTS - 1)):
        add(log, name, key=name, at=NOW - 2 * JOBS)
        with log.write() as connection:
            connection.execute(
                update(table)
                .where(table.c.job_id == f"job-{name}")
                .values(state="succeeded", finished_at=NOW - age)
            )
    add(log, "new")
    jobs = Jobs(log)
    with log.write() as connection:
        assert [j.job_id for j in jobs.page(connection, None, 9, NOW)] == ["job-new", "job-kept"]
        assert jobs.with_results(connection, NOW) == {"job-new", "job-kept"}
        assert jobs.counts(connection, NOW)["succeeded"] == 1
        assert jobs.waiting_since(connection) == NOW
        assert purge(connection, NOW)["jobs"] == 1
    assert get(log, "gone").expired(NOW)
    assert not get(log, "kept").expired(NOW)


def test_pages_of_jobs_hold_each_job_once(log: Log) -> None:
    names = [f"{i:02d}" for i in range(7)]
    for i, name in enumerate(names):
        add(log, name, key=name, at=NOW + i // 2)  # some at the same time
    found: list[str] = []
    after = None
    while True:
        with log.read() as connection:
            page = Jobs(log).page(connection, after, 2, NOW)
        if not page:
            break
        found += [job.job_id for job in page]
        after = (page[-1].created_at, page[-1].job_id)
    assert found == [f"job-{name}" for name in reversed(names)]
