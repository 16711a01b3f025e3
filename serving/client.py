"""A client of the scorer's HTTP API: typed answers, retries that are safe, problems as exceptions.

    with Client("http://127.0.0.1:8000", key) as api:
        for decision in api.decide("summer", ["c-010", "c-011"]).decisions:
            if decision.action == "offer":
                ...

What must take effect once is sent with an Idempotency-Key, so that a lost answer is asked for again
without a second effect. Requests in flight, quotas and servers that are busy or without their log
are tried again when the server says (Retry-After), connections that fail where that is safe. Every
answer is one of the types that the server encodes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from serving.jobs_resources import (
    AudienceBody,
    Format,
    JobAnswer,
    JobList,
    JobQueued,
    Manifest,
    ResultFile,
)
from serving.resources import (
    CampaignAnswer,
    CampaignBody,
    CampaignList,
    CampaignReport,
    DecisionList,
    ErasureAnswer,
    EventBody,
    EventsAnswer,
    HoldoutAnswer,
    PauseAnswer,
    PauseBody,
)
from serving.schemas import (
    CustomerAnswer,
    CustomerRequest,
    DecisionsAnswer,
    DecisionsRequest,
    FieldProblem,
    Live,
    LoggedDecision,
    ModelAnswer,
    Problem,
    Ready,
)

TRIES = 5
# A wait that the server asks for beyond this is the caller's business.
LONGEST_WAIT = 10.0
PAGE = 200
_LATER = frozenset({"in_flight", "quota", "overloaded", "log_unavailable", "not_ready"})
_ENDED = frozenset({"succeeded", "failed", "cancelled"})
T = TypeVar("T")


class ApiError(Exception):
    """What the server answered in place of what was asked for. `code` is one of its problems, or
    `unreadable` for an answer that is none of its own; `errors` say where a body is at fault."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str = "",
        request_id: str = "",
        errors: Sequence[FieldProblem] = (),
        retry_after: float | None = None,
    ) -> None:
        self.status, self.code, self.title = status, code, title
        self.request_id, self.errors, self.retry_after = request_id, tuple(errors), retry_after
        places = "; ".join(f"{e.pointer} {e.detail}" for e in self.errors)
        super().__init__(f"{status} {code}: {title}" + (f" ({places})" if places else ""))


class Versioned(NamedTuple):
    """A campaign and the ETag to change it with."""

    answer: CampaignAnswer
    etag: str


class Client:
    """One connection pool to one server; `key` is an API key as `python -m serving keys` shows it.

    timeout: seconds of one try; tries: of one request; transport, sleep: for tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 15.0,
        tries: int = TRIES,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout, transport=transport, trust_env=False
        )
        self._tries, self._sleep = tries, sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Decisions and events

    def decide(
        self,
        campaign_id: str,
        customers: Iterable[str | CustomerRequest],
        *,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> DecisionsAnswer:
        """Decide for 1 to 1,000 distinct customers, in their order."""
        asked = [CustomerRequest(c) if isinstance(c, str) else c for c in customers]
        body = DecisionsRequest(campaign_id, asked, dry_run)
        once = {} if dry_run else _once(idempotency_key)
        return self._read(DecisionsAnswer, "POST", "/v1/decisions", body=body, headers=once)

    def send_events(
        self, events: Iterable[EventBody], *, idempotency_key: str | None = None
    ) -> EventsAnswer:
        """Report 1 to 1,000 events; look at `rejected`, since a bad row never fails others."""
        once = _once(idempotency_key)
        body = {"events": list(events)}
        return self._read(EventsAnswer, "POST", "/v1/events", body=body, headers=once)

    # Audiences

    def build_audience(
        self,
        campaign_id: str,
        *,
        filter: Mapping[str, Any] | None = None,
        allocate: bool = True,
        dry_run: bool = False,
        formats: tuple[Format, ...] = ("ndjson",),
        idempotency_key: str | None = None,
    ) -> JobQueued:
        """Queue a job that decides for everyone who passes the filter (None: everyone)."""
        wanted = None if filter is None else dict(filter)
        body = AudienceBody(campaign_id, wanted, allocate, dry_run, formats)
        once = _once(idempotency_key)
        return self._read(JobQueued, "POST", "/v1/audiences", body=body, headers=once)

    def jobs(self) -> Iterator[JobAnswer]:
        """Jobs of the last days, the newest first."""
        for page in self._pages(JobList, "/v1/jobs"):
            yield from page.items

    def job(self, job_id: str) -> JobAnswer:
        return self._read(JobAnswer, "GET", _path("/v1/jobs/{}", job_id))

    def cancel_job(self, job_id: str) -> JobAnswer:
        return self._read(JobAnswer, "DELETE", _path("/v1/jobs/{}", job_id))

    def wait_for(self, job_id: str, seconds: float = 3600.0, every: float = 5.0) -> JobAnswer:
        """The job once it has ended, one way or the other. Raises TimeoutError."""
        until = time.monotonic() + seconds
        while (job := self.job(job_id)).state not in _ENDED:
            if time.monotonic() >= until:
                raise TimeoutError(f"job {job_id} is still {job.state}")
            self._sleep(every)
        return job

    def results(self, job_id: str) -> Manifest:
        """What a job gave. Raises ApiError (409, `unfinished`) before it has succeeded."""
        path = _path("/v1/jobs/{}/result/manifest.json", job_id)
        return self._read(Manifest, "GET", path)

    def download(self, job_id: str, file: ResultFile, folder: Path) -> Path:
        """Download a file of the manifest into a folder; returns where it is, verified.

        Raises ApiError (`unreadable`) for a file whose size or hash is not the manifest's.
        """
        path = _path("/v1/jobs/{}/result/", job_id) + quote(file.name, safe="")
        target = folder / Path(file.name).name
        handle, aside = tempfile.mkstemp(prefix=".download-", dir=folder)
        try:
            digest = hashlib.sha256()
            with os.fdopen(handle, "wb") as out, self._http.stream("GET", path) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _problem(answer)
                for block in answer.iter_bytes():
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != file.sha256:
                raise ApiError(answer.status_code, "unreadable", "the file is not the manifest's")
            os.chmod(aside, 0o644)
            os.replace(aside, target)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        return target

    # Customers

    def customer(self, customer_id: str) -> CustomerAnswer:
        return self._read(CustomerAnswer, "GET", _path("/v1/customers/{}", customer_id))

    def customer_decisions(self, customer_id: str) -> Iterator[LoggedDecision]:
        """All decisions of a customer, the newest first."""
        path = _path("/v1/customers/{}/decisions", customer_id)
        for page in self._pages(DecisionList, path):
            yield from page.items

    def erase_customer(self, customer_id: str) -> ErasureAnswer:
        return self._read(ErasureAnswer, "DELETE", _path("/v1/customers/{}", customer_id))

    def holdouts(self, customer_id: str, campaign_ids: Sequence[str] = ()) -> HoldoutAnswer:
        path = _path("/v1/holdouts/{}", customer_id)
        return self._read(HoldoutAnswer, "GET", path, params={"campaign_id": list(campaign_ids)})

    # Campaigns

    def campaigns(self) -> Iterator[CampaignAnswer]:
        """All campaigns, by id."""
        for page in self._pages(CampaignList, "/v1/campaigns"):
            yield from page.items

    def campaign(self, campaign_id: str) -> Versioned:
        return self._versioned("GET", campaign_id)

    def create_campaign(self, campaign_id: str, campaign: CampaignBody) -> Versioned:
        """Raises ApiError (412, `changed`) if there is one already."""
        return self._versioned("PUT", campaign_id, campaign, {"If-None-Match": "*"})

    def replace_campaign(self, campaign_id: str, campaign: CampaignBody, etag: str) -> Versioned:
        """Raises ApiError (412, `changed`) if somebody has changed it since `etag` was read."""
        return self._versioned("PUT", campaign_id, campaign, {"If-Match": etag})

    def pause(self, campaign_id: str, comment: str = "") -> PauseAnswer:
        path = _path("/v1/campaigns/{}/pause", campaign_id)
        return self._read(PauseAnswer, "POST", path, body=PauseBody(comment))

    def resume(self, campaign_id: str) -> PauseAnswer:
        return self._read(PauseAnswer, "POST", _path("/v1/campaigns/{}/resume", campaign_id))

    def report(
        self, campaign_id: str, *, since: str | None = None, until: str | None = None
    ) -> CampaignReport:
        """Assignments of [since, until), RFC 3339 with an offset; default: the last 400 days."""
        given = {"from": since, "to": until}
        params = {name: value for name, value in given.items() if value is not None}
        path = _path("/v1/campaigns/{}/report", campaign_id)
        return self._read(CampaignReport, "GET", path, params=params)

    # The server

    def model(self) -> ModelAnswer:
        return self._read(ModelAnswer, "GET", "/v1/models/current")

    def live(self) -> Live:
        return self._read(Live, "GET", "/livez")

    def ready(self) -> Ready:
        """Also of a server that is not ready, whose checks say why."""
        answer = self._http.get("/readyz")
        return msgspec.json.decode(answer.content, type=Ready)

    def metrics(self) -> str:
        """Text for Prometheus."""
        return self._ask("GET", "/metrics").text

    # How

    def _versioned(
        self,
        method: str,
        campaign_id: str,
        body: CampaignBody | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Versioned:
        path = _path("/v1/campaigns/{}", campaign_id)
        answer = self._ask(method, path, body=body, headers=headers)
        return Versioned(_decoded(CampaignAnswer, answer), answer.headers["etag"])

    def _pages(self, kind: type[T], path: str) -> Iterator[T]:
        params: dict[str, Any] = {"limit": PAGE}
        while True:
            page = self._read(kind, "GET", path, params=params)
            yield page
            following = getattr(page, "next_cursor", None)
            if following is None:
                return
            params["cursor"] = following

    def _read(self, kind: type[T], method: str, path: str, **more: Any) -> T:
        return _decoded(kind, self._ask(method, path, **more))

    def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        """The answer, once it is a success. Raises ApiError, and httpx.TransportError where there
        is no answer."""
        content = None if body is None else msgspec.json.encode(body)
        sent = {**(headers or {}), **({} if content is None else _JSON)}
        # A campaign that was put once is another one the second time.
        safe = method != "PUT"
        for left in reversed(range(self._tries)):
            try:
                answer = self._http.request(
                    method, path, content=content, headers=sent, params=params
                )
            except httpx.TransportError:
                if not (safe and left):
                    raise
                self._sleep(1.0)
                continue
            if answer.is_success:
                return answer
            error = _problem(answer)
            wait = error.retry_after
            if not left or wait is None or error.code not in _LATER or wait > LONGEST_WAIT:
                raise error
            self._sleep(wait)
        raise ValueError(f"tries: expected 1 or more, found {self._tries}")


_JSON = {"Content-Type": "application/json"}


def _once(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key or str(uuid.uuid4())}


def _path(template: str, value: str) -> str:
    return template.format(quote(value, safe=""))


def _decoded(kind: type[T], answer: httpx.Response) -> T:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.MsgspecError:
        raise ApiError(answer.status_code, "unreadable", "the answer is not the API's") from None


def _problem(answer: httpx.Response) -> ApiError:
    text = answer.headers.get("retry-after", "")
    wait = float(text) if text.isdigit() else None
    try:
        told = msgspec.json.decode(answer.content, type=Problem)
    except msgspec.MsgspecError:
        return ApiError(answer.status_code, "unreadable", "not the API's", retry_after=wait)
    return ApiError(
        answer.status_code, told.code, told.title, told.request_id, told.errors, retry_after=wait
    )
