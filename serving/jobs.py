"""The worker of audience jobs: takes one up, does it in chunks, and leaves results or nothing.

It runs in a process of its own, beside the servers. A job that its worker leaves, killed or not, is
taken up again: decisions that were stored stay, under the same ids, and are charged once.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from features.config import Config
from features.errors import ConfigError, InputError
from serving import schemas
from serving.audiences import (
    CHUNK,
    DECISIONS,
    Audience,
    Rows,
    chunks,
    decisions_table,
    scores_schema,
    select_rows,
)
from serving.campaign_rules import FilterError, rules_of_entry
from serving.desk import Desk, RulesOutdated
from serving.evaluation import micros, moment, timestamp
from serving.jobs_files import ResultWriter, results_home
from serving.jobs_resources import AudienceBody, Manifest
from serving.load import current_model
from serving.log.campaigns import Campaigns
from serving.log.engine import Log, LogUnavailable
from serving.log.jobs import ATTEMPTS, Job, Jobs
from serving.log.store import Store
from serving.problems import ProblemError, where
from serving.renewal import renewed
from serving.rules import Rules
from serving.salt import Salt
from serving.scorer import Scorer
from serving.service import now_micros
from serving.snapshot import current_name, open_snapshot, snapshots_folder
from uplift.errors import UpliftError

# A worker that has given no sign for so long has lost its job. The longest step, the allocation of
# millions, takes a fraction of it.
LEASE_SECONDS = 300.0
LOOK_SECONDS = 1.0
AGAIN_SECONDS = 5.0
# So long a SQLite log is left to other writers after each chunk.
BREATH_SECONDS = 0.05
TRIES = 5
log = logging.getLogger("serving.jobs")
# One line of JSON for each job, as of requests.
lines = logging.getLogger("serving.jobs.done")


class Lost(Exception):
    """The job is not this worker's any more: cancelled, or taken up by another."""


class Stopping(Exception):
    """This process is to end; the job goes to another."""


class Unfit(Exception):
    """The job can't be done with the model and snapshot of today; `code` is its error."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


def current_scorer(config: Config, salt: Salt, root: Path = Path("data")) -> Scorer:
    """A scorer of the model and snapshot that are current on this disk.

    Raises ConfigError or others of a user's errors where there are none that fit together.
    """
    model = current_model(config, root)
    home = snapshots_folder(config, root)
    name = current_name(home)
    if name is None:
        raise ConfigError(
            str(home),
            expected="a snapshot that is current on this disk",
            found="none",
            remedy="Run: python -m serving sync --config ...",
        )
    return Scorer(model, open_snapshot(home / name, model), config, salt)


class Worker:
    """Does the jobs of one log, one after another."""

    def __init__(
        self,
        log: Log,
        scorer: Scorer,
        root: Path = Path("data"),
        *,
        owner: str | None = None,
        lease: float = LEASE_SECONDS,
        chunk: int = CHUNK,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.log, self.scorer, self.root = log, scorer, root
        self.lease, self.chunk, self.stopping = lease, chunk, stopping
        self.owner = owner or f"{os.getpid()}-{secrets.token_hex(12)}"
        self.jobs, self.store, self.campaigns = Jobs(log), Store(log), Campaigns(log)
        self.home = results_home(scorer.config.name, root)
        self._desk: Desk | None = None
        self._dropped: Job | None = None

    def run(self, idle: float | None = None) -> None:
        """Do jobs until it is to stop, or until there was none for `idle` seconds."""
        since = time.monotonic()
        while not self.stopping():
            pause = LOOK_SECONDS
            try:
                if self.run_one():
                    since = time.monotonic()
                    continue
            except LogUnavailable as error:
                log.error("the log does not answer: %s", error)
                pause = AGAIN_SECONDS
            if idle is not None and time.monotonic() - since > idle:
                return
            time.sleep(pause)

    def run_one(self) -> bool:
        """Take up a job, if there is one, and do it; False without one.

        Raises LogUnavailable.
        """
        if self._dropped is not None:  # while the log was away, it could not be given back
            self._give_back(self._dropped, self._dropped.attempt)
            self._dropped = None
        with self.log.read() as connection:
            if not self.jobs.any_open(connection):
                return False
            last = self.store.last_decided(connection)
        try:
            self.scorer = renewed(self.scorer, self.root) or self.scorer
        except (InputError, UpliftError) as refusal:
            log.error("a new model or snapshot was refused, the old ones go on: %s", refusal)
        self._tidy()
        with self.log.write() as connection:
            job = self.jobs.claim(connection, self.owner, self.lease, now_micros())
        if job is None:
            return False
        self._desk = Desk(self.store, self.campaigns, last)
        began = time.monotonic()
        try:
            state, error = self._done(job)
        except LogUnavailable:
            self._dropped = job
            raise
        line = {
            "at": round(time.time(), 3),
            "job_id": job.job_id,
            "campaign_id": job.campaign_id,
            "attempt": job.attempt,
            "state": state,
            "error": error,
            "seconds": round(time.monotonic() - began, 2),
        }
        lines.info(json.dumps(line))
        return True

    def _tidy(self) -> None:
        """Remove what a worker that was killed has left of jobs that are finished since."""
        with self.log.read() as connection:
            open_jobs = self.jobs.with_results(connection, now_micros())
        for folder in self.home.glob(".job-*"):
            if folder.name[1:].rpartition("-")[0] not in open_jobs:
                shutil.rmtree(folder, ignore_errors=True)

    def breathe(self) -> None:
        """Let others write: of a SQLite log only one can hold the lock."""
        if not self.log.postgres:
            time.sleep(BREATH_SECONDS)

    def _done(self, job: Job) -> tuple[str, str | None]:
        """What became of a job."""
        try:
            self._do(job)
            return "succeeded", None
        except Lost:
            return "lost", None
        except Stopping:
            self._give_back(job, job.attempt - 1)
            return "given back", None
        except LogUnavailable:
            raise
        except Unfit as unfit:
            error = unfit.code
        except OSError:
            log.exception("job %s: results can't be written", job.job_id)
            error = "result_disk_full"
        except Exception as defect:
            log.error("defect in job %s: %s", job.job_id, where(defect))
            if job.attempt < ATTEMPTS:
                self._give_back(job, job.attempt)
                return "given back", "internal"
            error = "internal"
        with self.log.write() as connection:
            self.jobs.finish(connection, job.job_id, self.owner, now_micros(), "failed", error)
        return "failed", error

    def _give_back(self, job: Job, attempt: int) -> None:
        with self.log.write() as connection:
            self.jobs.give_back(connection, job.job_id, self.owner, attempt)

    def _do(self, job: Job) -> None:
        asked = msgspec.json.decode(job.request, type=AudienceBody)
        for again in range(TRIES):
            try:
                _Run(self, job, asked, resumed=job.state == "committing" or again > 0).do()
                return
            except RulesOutdated:  # the campaign was changed; what is stored stays
                continue
        raise Unfit("campaign")

    @property
    def desk(self) -> Desk:
        assert self._desk is not None
        return self._desk


class _Run:
    """One way through one job."""

    def __init__(self, worker: Worker, job: Job, asked: AudienceBody, *, resumed: bool) -> None:
        self.worker, self.job, self.asked, self.resumed = worker, job, asked, resumed
        self.log, self.scorer = worker.log, worker.scorer
        self.reasons: Counter[str] = Counter()
        self.rows = self.offers = self.cost = 0

    def do(self) -> None:
        worker, scorer, asked = self.worker, self.scorer, self.asked
        with self.log.read() as connection:
            entry = worker.desk.campaigns.get(connection, self.job.campaign_id)
        if entry is None:
            raise Unfit("campaign")
        try:
            rules = rules_of_entry(scorer, entry, price=False)
            rows = select_rows(scorer, asked.filter)
        except ProblemError:
            raise Unfit("campaign") from None
        except FilterError:
            raise Unfit("filter") from None
        now = self._moment(rules)
        self._hold(rows_done=0, rows_total=len(rows), decided_at=micros(now))
        audience = Audience(worker.desk, scorer, rules, entry, now, self.job.job_id)
        with ResultWriter(worker.home, self.job.job_id, asked.formats) as results:
            if not asked.allocate:
                schema = scores_schema(scorer.model.bundle.arms)
                self._score(audience, rows, results)
            else:
                schema = DECISIONS
                self._decide(audience, rows, results)
            files = results.finish(schema)
            self._hold()
            folder = results.publish(
                Manifest(
                    job_id=self.job.job_id,
                    campaign_id=rules.campaign_id,
                    window_id=rules.window_at(now),
                    allocate=asked.allocate,
                    dry_run=asked.dry_run,
                    rows=self.rows,
                    offers=self.offers,
                    expected_cost_micros=self.cost,
                    reasons=dict(sorted(self.reasons.items())),
                    decided_at=timestamp(now),
                    as_of=timestamp(scorer.snapshot.as_of),
                    snapshot_id=scorer.snapshot.snapshot_id,
                    model_version=scorer.model.version,
                    policy_version=rules.campaign.version,
                    simulated=scorer.simulated,
                    columns=schema.names,
                    files=files,
                )
            )
        with self.log.write() as connection:
            done = worker.jobs.finish(
                connection, self.job.job_id, worker.owner, now_micros(), "succeeded"
            )
        if not done:
            shutil.rmtree(folder, ignore_errors=True)
            raise Lost

    def _moment(self, rules: Rules) -> datetime:
        """The moment to decide as of: that of the earlier attempt, within its window."""
        now = self.worker.desk.now(self.scorer)
        if self.job.decided_at is None:
            return now
        before = moment(self.job.decided_at)
        return before if rules.window_at(before) == rules.window_at(now) else now

    def _hold(self, **changes: Any) -> None:
        """Keep the lease. Raises Lost, Stopping."""
        if self.worker.stopping():
            raise Stopping
        with self.log.write() as connection:
            self._held(connection, changes)

    def _held(self, connection: Any, changes: dict[str, Any]) -> None:
        worker = self.worker
        held = worker.jobs.hold(connection, self.job.job_id, worker.owner, worker.lease, changes)
        if not held:
            raise Lost

    def _score(self, audience: Audience, rows: Rows, results: ResultWriter) -> None:
        done = 0
        for some in chunks(rows, self.worker.chunk):
            with self.log.read() as connection:
                table = audience.scores(connection, some)
            self._write(results, table)
            done += len(some)
            self._hold(rows_done=done)

    def _decide(self, audience: Audience, rows: Rows, results: ResultWriter) -> None:
        done = 0
        for some in chunks(rows, self.worker.chunk):
            with self.log.read() as connection:
                audience.add(connection, some)
            done += len(some)
            self._hold(rows_done=done)
        with self.log.read() as connection:
            planned = audience.plan(connection)
        if self.asked.dry_run:
            self._hold(rows_done=0)
        else:  # from here on it can't be cancelled
            self._hold(rows_done=0, state="committing")
        done = 0
        for some in chunks(rows, self.worker.chunk):
            done += len(some)
            if self.asked.dry_run:
                with self.log.read() as connection:
                    items = audience.preview(connection, planned, some)
                self._hold(rows_done=done)
            else:
                if self.worker.stopping():
                    raise Stopping
                with self.log.write() as connection:
                    # First: nobody else can take the job up while this transaction lasts.
                    self._held(connection, {"rows_done": done})
                    items = audience.commit(connection, planned, some, resumed=self.resumed)
                self.worker.breathe()
            self._count(items)
            self._write(results, decisions_table(items))

    def _count(self, items: list[schemas.Decision]) -> None:
        self.reasons.update(item.reason.value for item in items)
        self.offers += sum(item.action == "offer" for item in items)
        self.cost += sum(item.expected_cost_micros for item in items)

    def _write(self, results: ResultWriter, table: pa.Table) -> None:
        results.add(table)
        self.rows += table.num_rows
