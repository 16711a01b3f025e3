"""What a worker has beside its scorer: the log with its two threads, keys, quotas, rules."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from features.errors import ConfigError
from serving.campaign_rules import rules_of_entry
from serving.desk import Answer, Ask, Desk, RulesOutdated, UnknownCampaign
from serving.limits import InFlight, Quota
from serving.log import idempotency, ledger, stock
from serving.log.campaigns import Campaigns
from serving.log.engine import REVISION, Log, LogUnavailable
from serving.log.jobs import Jobs
from serving.log.kept import Kept
from serving.log.keys import OPEN, Key, authenticate, every
from serving.log.rounds import Rounds
from serving.log.schema import facts
from serving.log.store import Store, hold_salt
from serving.log.writer import Expired, GroupThread, Stopped
from serving.metrics import Metrics
from serving.rules import Rules
from serving.salt import Salt
from serving.scorer import Scorer
from serving.times import micros
from serving.times import now_micros as now_micros

KEYS_SECONDS = 30.0
HEALTH_SECONDS = 1.0
MISSES = 3
SWEEP_SECONDS = 600.0
TRIES = 5
# Dry runs of so many customers are answered in the event loop.
FEW = 4
T = TypeVar("T")
Change = Callable[[Connection], Any]
log = logging.getLogger("serving")


@dataclass
class Service:
    """Everything that answers share in one worker; made once, closed once."""

    log: Log
    salt: Salt
    quota: Quota = field(default_factory=Quota)
    in_flight: InFlight = field(default_factory=InFlight)
    metrics: Metrics = field(default_factory=Metrics)
    open_without_keys: bool = True
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __post_init__(self) -> None:
        self.campaigns, self.store = Campaigns(self.log), Store(self.log)
        self._begin(0)
        self.writer: GroupThread[Ask | Change] = GroupThread(
            "log-writer", self._write, common=(LogUnavailable,), turn=self.log.my_turn
        )
        self._kept = Kept(self.log.reading)
        self.reader: GroupThread[Ask | Change] = GroupThread("log-reader", self._read)
        self._near = Kept(self.log.glancing, plain=not self.log.postgres)
        self._rounds: Rounds[Ask | Change] = Rounds(self._read_now, self.reader)
        self._rules: dict[str, Rules] = {}
        self._owners: dict[str, Scorer] = {}
        self._reading_rules: dict[tuple[object, str, int], asyncio.Future[Rules]] = {}
        """Rules that are being read at this moment, by event loop, campaign and scorer."""
        self._keys: Mapping[str, Key] = {}
        self._keys_until = -1.0
        self._health: tuple[float, bool] = (-1.0, True)
        self._misses = 0
        self._swept = time.monotonic()
        self.stands_at: datetime | None = None
        """The shop's time, where the configuration fixes it: offers expire by it."""
        self.busy: set[tuple[str, str, str]] = set()
        """Idempotency keys in flight in this worker."""

    def start(self) -> None:
        """Read what must be there before the first request.

        Raises ConfigError for a salt other than the log's, LogUnavailable.
        """
        known = hold_salt(self.log, self.salt.fingerprint)
        if known != self.salt.fingerprint:
            raise ConfigError(
                self.salt.origin,
                expected=f"the salt with fingerprint {known}, which the decision log follows",
                found=f"one with {self.salt.fingerprint}",
                remedy="Restore the salt: with another one, holdouts and draws would change "
                "under running campaigns.",
            )
        with self.log.read() as connection:
            last = self.store.last_decided(connection)
            self._keys = every(connection)
        self._keys_until = time.monotonic() + KEYS_SECONDS
        self._begin(last)

    def _begin(self, last: int) -> None:
        """A desk for each thread that decides; last: the time of the newest decision."""
        desk = partial(Desk, self.store, self.campaigns, last)
        self._writing, self._reading, self._reading_now = desk(), desk(), desk()

    def close(self) -> None:
        """Finish what waits, then let go of the database."""
        self.writer.stop()
        self.reader.stop()
        self._kept.close()
        self._near.close()
        self.log.close()

    async def warm_up(self) -> None:
        """Let the writer begin, with a transaction that a decision would make, and open what the
        event loop reads by itself."""
        await self.change(partial(_touch, self.log))
        if not self.log.postgres:
            with suppress(LogUnavailable):
                self._near.view(self.store.last_decided)

    # Decisions

    async def decide(self, scorer: Scorer, campaign_id: str, ask: Callable[[Rules], Ask]) -> Answer:
        """The answer to one ask; rules that have changed meanwhile are read again.

        Raises UnknownCampaign, KeyReused, Expired, LogUnavailable.
        """
        for _ in range(TRIES):
            rules = await self.rules(scorer, campaign_id)
            wanted = ask(rules)
            rows = len(wanted.customers)
            way: Rounds[Ask | Change] | GroupThread[Ask | Change] = self.writer
            if wanted.dry_run:
                # SQLite is read in this process; to ask another one may take its time.
                now = rows <= FEW and not self.log.postgres
                way = self._rounds if now else self.reader
            try:
                answer: Answer = await way.do(wanted, 2.0 if rows <= 100 else 10.0)
            except RulesOutdated:
                self._rules.pop(campaign_id, None)
                continue
            return answer
        raise LogUnavailable("rules keep changing")

    async def rules(self, scorer: Scorer, campaign_id: str) -> Rules:
        """The rules of a campaign under a scorer, read once and kept until they change."""
        rules = self._rules.get(campaign_id)
        if rules is not None and self._owners.get(campaign_id) is scorer:
            return rules
        # Pricing takes a moment: of all who wait for the same rules one reads them.
        name = (asyncio.get_running_loop(), campaign_id, id(scorer))
        reading = self._reading_rules.get(name)
        if reading is None:
            reading = asyncio.ensure_future(self._read_rules(scorer, campaign_id))
            self._reading_rules[name] = reading
            reading.add_done_callback(lambda _: self._reading_rules.pop(name, None))
        return await asyncio.shield(reading)

    async def _read_rules(self, scorer: Scorer, campaign_id: str) -> Rules:
        if campaign_id == scorer.campaign.campaign_id:
            try:
                entry = await self.look(lambda c: self.campaigns.get(c, campaign_id))
            except LogUnavailable:  # A dry run works without the log.
                return scorer.rules
        else:
            entry = await self.look(lambda c: self.campaigns.get(c, campaign_id))
        if entry is None:
            raise UnknownCampaign
        made = await anyio.to_thread.run_sync(rules_of_entry, scorer, entry)
        self._rules[campaign_id], self._owners[campaign_id] = made, scorer
        return made

    async def change(self, work: Callable[[Connection], T], seconds: float = 10.0) -> T:
        """Do a piece of work in a transaction of the writer; returned after its commit."""
        found: T = await self.writer.do(work, seconds)
        return found

    async def look(self, work: Callable[[Connection], T], seconds: float = 10.0) -> T:
        """Read from the log."""
        found: T = await self.reader.do(work, seconds)
        return found

    def _write(self, works: Sequence[Ask | Change]) -> list[Any]:
        began = time.perf_counter()
        asks = [work for work in works if isinstance(work, Ask)]
        with self.log.write() as connection:
            others = iter([_alone(w, connection) for w in works if not isinstance(w, Ask)])
            answers = iter(self._writing.answer(connection, asks) if asks else [])
        results = [next(answers) if isinstance(work, Ask) else next(others) for work in works]
        self.metrics.commit_seconds.observe(time.perf_counter() - began)
        self.metrics.clock_steps(self._writing.steps_back)
        self._sweep()
        return results

    def _read(self, works: Sequence[Ask | Change]) -> list[Any]:
        asks = [work for work in works if isinstance(work, Ask)]

        def look(connection: Connection) -> tuple[list[Any], list[Any]]:
            others = [_tried(w, connection) for w in works if not isinstance(w, Ask)]
            return others, self._reading.preview(connection, asks) if asks else []

        try:
            others, answers = self._kept.view(look)
        except LogUnavailable as error:
            # Dry runs work without the log.
            others = [error] * (len(works) - len(asks))
            answers = self._reading.preview(None, asks)
        found, rest = iter(answers), iter(others)
        return [next(found) if isinstance(work, Ask) else next(rest) for work in works]

    def _read_now(self, works: Sequence[Ask | Change]) -> list[Any]:
        """Answers to dry runs of few customers. Raises LogUnavailable."""
        asks = [work for work in works if isinstance(work, Ask)]
        return self._near.view(lambda connection: self._reading_now.preview(connection, asks))

    def _sweep(self) -> None:
        """Now and then: free what expired offers reserved, forget old requests. Apart from the
        answers, which are stored: they must neither fail with it nor hold locks that it waits for.
        """
        if time.monotonic() - self._swept < SWEEP_SECONDS:
            return
        self._swept = time.monotonic()
        now = now_micros()
        try:
            with self.log.write() as connection:
                ledger.release(connection, micros(self.stands_at) if self.stands_at else now)
                idempotency.forget(connection, now)
        except LogUnavailable as error:
            log.warning("what expired is released at the next round: %s", error)

    # Keys

    @property
    def has_keys(self) -> bool:
        return bool(self._keys)

    async def key(self, header: str) -> Key | None:
        """Who asks: the key of an Authorization header; without any key in the log, and where
        that is allowed, everybody is `local`."""
        if time.monotonic() > self._keys_until:
            # Others meanwhile go by what is known.
            self._keys_until = time.monotonic() + KEYS_SECONDS
            try:
                self._keys = await self.look(every)
            except (LogUnavailable, Expired, Stopped):
                log.warning("API keys can't be read; going by those of the last reading")
        if not self._keys and self.open_without_keys:
            return OPEN
        return authenticate(header, self._keys, now_micros())

    def cursor_key(self) -> bytes:
        """What cursors are signed with."""
        return hmac.digest(self.salt.value, b"cursor", "sha256")

    async def count_budgets(self) -> None:
        """Set the gauges of budgets and stock; as they were, when the log does not answer."""
        try:
            entries = await self.look(lambda c: self.campaigns.page(c, "", None))
            pieces = await self.look(stock.all_left)
        except (LogUnavailable, Expired, Stopped):
            return
        for coupon, left in pieces.items():
            self.metrics.stock_left.labels(coupon).set(left)
        for entry in entries:
            if entry.budget.left is not None:
                self.metrics.budget_left.labels(entry.campaign_id).set(entry.budget.left)
                self.metrics.overshoot.labels(entry.campaign_id).set(entry.budget.overshoot)

    async def count_jobs(self) -> None:
        """Set the gauges of jobs; as they were, when the log does not answer."""
        table, now = Jobs(self.log), now_micros()
        try:
            counts, since = await self.look(
                lambda c: (table.counts(c, now), table.waiting_since(c))
            )
        except (LogUnavailable, Expired, Stopped):
            return
        for state, count in counts.items():
            self.metrics.jobs.labels(state).set(count)
        self.metrics.jobs_waiting.set(0.0 if since is None else max(0, now - since) / 1e6)

    # Health

    def behind(self, scorer: Scorer) -> timedelta:
        """How far the wall clock lies behind the last decision."""
        return self._writing.behind(scorer)

    async def healthy(self) -> bool:
        """The log can be written to; looked at once a second, and unhealthy after three misses."""
        checked, fine = self._health
        if time.monotonic() - checked < HEALTH_SECONDS:
            return fine
        try:
            await asyncio.wait_for(self.change(partial(_touch, self.log)), 2.0)
            self._misses = 0
        except Exception:
            self._misses += 1
        self._health = (time.monotonic(), self._misses < MISSES)
        return self._health[1]

    async def schema_fits(self) -> bool:
        """The schema is the one this release works with, as far as the log can be read."""
        try:
            return await anyio.to_thread.run_sync(self.log.revision) == REVISION
        except LogUnavailable:
            return True


def _touch(log: Log, connection: Connection) -> None:
    """Write something, as a decision would."""
    statement = log.insert(facts).on_conflict_do_update(
        index_elements=[facts.c.name], set_={"value": str(now_micros())}
    )
    connection.execute(statement, {"name": "alive", "value": ""})


def _alone(work: Change, connection: Connection) -> Any:
    """What a change gives; one that fails takes back itself alone."""
    try:
        with connection.begin_nested():
            return work(connection)
    except DBAPIError:
        raise
    except Exception as error:
        return error


def _tried(work: Change, connection: Connection) -> Any:
    try:
        return work(connection)
    except DBAPIError:
        raise
    except Exception as error:
        return error
