"""Routes of audience jobs: ask for one, follow it, cancel it, download what it gave."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

import anyio.to_thread
import msgspec
from fastapi import APIRouter, Request, Response
from sqlalchemy.engine import Connection
from starlette.responses import StreamingResponse

from serving.campaign_rules import FilterError, evaluate_filter
from serving.cursor import read_cursor, write_cursor
from serving.documented import (
    KEYED,
    ONCE,
    PAGE,
    answers,
    changed,
    enter,
    header,
    id_parameter,
    json_answer,
    keyed,
    looked,
    page_of,
    path_id,
)
from serving.evaluation import moment as moment_of
from serving.evaluation import shown_time, timestamp
from serving.gate import Busy, Holder, admit, charge, once_of, read_body, text_header, too_deep
from serving.jobs_files import MANIFEST, Result, find_result, results_home
from serving.jobs_resources import (
    MAX_AUDIENCE_BODY,
    AudienceBody,
    JobAnswer,
    JobList,
    JobQueued,
    Progress,
)
from serving.log import idempotency
from serving.log.idempotency import Once
from serving.log.jobs import Job, Jobs
from serving.population import Labels
from serving.problems import ProblemError, field_problem, reject
from serving.scorer import Scorer
from serving.service import Service, now_micros

PATH = "/v1/audiences"
EXAMPLE = {
    "campaign_id": "spring",
    "filter": {"segment": "tier", "in": ["sleeping"]},
    "allocate": True,
    "dry_run": False,
    "formats": ["ndjson", "csv", "parquet"],
}
BLOCK = 1 << 18
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z")
_NAME = "^[a-z0-9.-]{1,64}$"
_decode = msgspec.json.Decoder(AudienceBody).decode


def audience_router(holder: Holder) -> APIRouter:
    """Routes of jobs, whose results are below the folder of the holder's configuration."""
    router = APIRouter(tags=["audiences"])
    queued = answers("JobQueued", "Queued", 400, 404, 409, 413, 415, 422, *KEYED, ok=202)
    queued[202]["headers"] = {
        "Location": {"description": "The job", "schema": {"type": "string"}},
        "Retry-After": {"description": "When to ask for it", "schema": {"type": "integer"}},
    }

    @router.post(
        PATH,
        summary="Score, allocate and decide everyone who passes a filter, as a job",
        description="Every customer of the snapshot who passes the filter gets a row. What is left "
        "of the campaign's budget and stock goes where it brings most per cost, and offers are "
        "stored and charged as those of `POST /v1/decisions`: who has a decision in this window "
        "keeps it and is not charged again. One unfinished job of a campaign (409 `job_running`), "
        "five queued of a key (429 `too_many_jobs`). A retry with the same `Idempotency-Key` "
        "within 24 hours names the same job.",
        status_code=202,
        responses=queued,
        openapi_extra=keyed("score", ("AudienceBody", EXAMPLE), {**ONCE, "required": True}),
    )
    async def audiences(request: Request) -> Response:
        scorer, service = holder.get(), holder.open()
        state = request.scope["state"]
        headers = state["in"]
        key = await admit(service, headers, state, "score")
        charge(service, key, state, 0)
        body = await read_body(headers, request.receive, MAX_AUDIENCE_BODY)
        once = once_of(headers, key, PATH, body)
        if once is None:
            raise ProblemError("missing_key")
        if too_deep(body):
            raise ProblemError("validation", [field_problem("#", "length")])
        try:
            asked = _decode(body)
        except (ValueError, RecursionError) as error:
            reject(error)
        check_filter(scorer, asked.filter)
        work = partial(_queue, service, asked, once)
        with Busy(service, 0, once):
            job_id, replayed = await changed(service, work)
        more = {"Location": f"/v1/jobs/{job_id}", "Retry-After": "5"}
        if replayed:
            more["Idempotency-Replayed"] = "true"
        return json_answer(JobQueued(job_id, "queued"), 202, more)

    @router.get(
        "/v1/jobs",
        summary="Jobs of the last days, the newest first",
        responses=answers("JobList", "A page", 400, 422, *KEYED),
        openapi_extra=keyed("score", None, *PAGE),
    )
    async def jobs(request: Request) -> Response:
        await enter(holder, request, "score")
        service = holder.open()
        limit, cursor = page_of(request)
        after = None
        if cursor:
            at, last = read_cursor(service.cursor_key(), cursor, "jobs")
            after = (int(at), str(last))
        table = Jobs(service.log)
        found = await looked(service, lambda c: table.page(c, after, limit + 1, now_micros()))
        following = None
        if len(found) > limit:
            place = [found[limit - 1].created_at, found[limit - 1].job_id]
            following = write_cursor(service.cursor_key(), place, "jobs")
        return json_answer(JobList([shown(job) for job in found[:limit]], following))

    @router.get(
        "/v1/jobs/{job_id}",
        summary="How far a job is",
        responses=answers("JobAnswer", "The job", 404, 410, 422, *KEYED),
        openapi_extra=keyed("score", None, id_parameter("job_id")),
    )
    async def job(request: Request) -> Response:
        await enter(holder, request, "score")
        service = holder.open()
        work = partial(_existing, service, path_id(request, "job_id"))
        found: Job = await looked(service, work)
        waits = found.finished_at is None
        return json_answer(shown(found), headers={"Retry-After": "5"} if waits else None)

    @router.delete(
        "/v1/jobs/{job_id}",
        summary="Cancel a job that has not begun to commit",
        description="From the answer on nothing of it is stored or charged. Repeatable.",
        responses=answers("JobAnswer", "Cancelled", 404, 409, 410, 422, *KEYED),
        openapi_extra=keyed("score", None, id_parameter("job_id")),
    )
    async def cancel(request: Request) -> Response:
        await enter(holder, request, "score")
        service = holder.open()
        work = partial(_cancel, service, path_id(request, "job_id"))
        return json_answer(shown(await changed(service, work)))

    file: dict[str, Any] = {
        "application/json": {"schema": {"$ref": "#/components/schemas/Manifest"}},
        **{
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/gzip", "text/csv", "application/vnd.apache.parquet")
        },
    }
    download = answers("Manifest", "The file", 404, 409, 410, 416, 422, *KEYED)
    download[200] = {"description": "The file", "content": file}
    download[206] = {"description": "The range of it", "content": file}
    download[304] = {"description": "It is the one whose ETag was named"}

    @router.get(
        "/v1/jobs/{job_id}/result/{name}",
        summary="Download the manifest or a file that it names",
        description="`manifest.json` is there once the job has succeeded, and names the others. "
        "One byte range may be asked for (`Range`, `If-Range`).",
        responses=download,
        openapi_extra=keyed(
            "score",
            None,
            id_parameter("job_id"),
            {
                "name": "name",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "pattern": _NAME},
            },
            header("Range", "one range of bytes, for example `bytes=0-1023`"),
            header("If-Range", "the ETag that the range is of"),
            header("If-None-Match", "an ETag: 304 if the file is still that one"),
        ),
    )
    async def result(request: Request) -> Response:
        await enter(holder, request, "score")
        scorer, service = holder.get(), holder.open()
        name = str(request.path_params["name"])
        if not re.fullmatch(_NAME.strip("^$"), name, re.ASCII):
            raise ProblemError("validation", [field_problem("#/name", "pattern")])
        found: Job = await looked(service, partial(_existing, service, path_id(request, "job_id")))
        if found.state != "succeeded":
            raise ProblemError("unfinished")
        home = results_home(scorer.config.name, holder.root)
        wanted = await anyio.to_thread.run_sync(find_result, home, found.job_id, name)
        if wanted is None:
            raise ProblemError("not_found")
        return await _sent(wanted, request.scope["state"]["in"])

    return router


def check_filter(scorer: Scorer, wanted: Any) -> None:
    """Raises ProblemError (422) for a filter that names what the snapshot does not have."""
    if wanted is None:
        return
    people = scorer.snapshot.population
    # The same names and levels without any customer.
    nobody = replace(
        people,
        X=people.X[:0],
        rfm=people.rfm[:0],
        tier=Labels(people.tier.codes[:0], people.tier.names),
        stage=Labels(people.stage.codes[:0], people.stage.names),
    )
    try:
        evaluate_filter(wanted, nobody, scorer)
    except FilterError as error:
        fault = field_problem("#/filter" + error.pointer, error.code)
        raise ProblemError("validation", [fault]) from None


def shown(job: Job) -> JobAnswer:
    """A job as it is answered."""
    done = job.state == "succeeded"
    return JobAnswer(
        job_id=job.job_id,
        kind="audience",
        state=job.state,
        campaign_id=job.campaign_id,
        progress=Progress(job.rows_done, job.rows_total),
        attempt=job.attempt,
        error=job.error,  # type: ignore[arg-type]
        manifest=f"/v1/jobs/{job.job_id}/result/{MANIFEST}" if done else None,
        created_at=timestamp(moment_of(job.created_at)),
        finished_at=shown_time(job.finished_at),
        expires_at=shown_time(job.expires_at),
    )


def _queue(
    service: Service, asked: AudienceBody, once: Once, connection: Connection
) -> tuple[str, bool]:
    """(id of the job, whether it is that of an earlier request). Raises ProblemError."""
    now = now_micros()
    past = idempotency.earlier(connection, [once], now).get(once.name)
    if past is not None:
        if past[0] != once.body_sha256:
            raise ProblemError("key_reused")
        return past[1], True
    if service.campaigns.get(connection, asked.campaign_id) is None:
        raise ProblemError("unknown_campaign")
    job_id = f"job-{now // 1000:011x}{secrets.token_hex(8)}"
    request = msgspec.json.encode(asked).decode()
    added = Jobs(service.log).add(connection, job_id, asked.campaign_id, once.key_id, request, now)
    if added != "added":
        raise ProblemError(added, headers={"Retry-After": "5"})
    if idempotency.keep(service.log, connection, [(once, job_id)], now):
        raise ProblemError("in_flight")
    return job_id, False


def _existing(service: Service, job_id: str, connection: Connection) -> Job:
    """Raises ProblemError: 404, or 410 once its results are gone."""
    job = Jobs(service.log).get(connection, job_id)
    if job is None:
        raise ProblemError("unknown_job")
    if job.expired(now_micros()):
        raise ProblemError("gone")
    return job


def _cancel(service: Service, job_id: str, connection: Connection) -> Job:
    done = Jobs(service.log).cancel(connection, job_id, now_micros())
    job = _existing(service, job_id, connection)
    if not done and job.state != "cancelled":
        raise ProblemError("not_cancellable")
    return job


async def _sent(result: Result, headers: Any) -> Response:
    """The file, the range of it that was asked for, or that it is unchanged."""
    more = {
        "ETag": result.etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-transform",
        "Content-Disposition": f'attachment; filename="{result.path.name}"',
    }
    known = text_header(headers, b"if-none-match")
    if known and result.etag in (each.strip() for each in known.split(",")):
        return Response(status_code=304, headers=more)
    start, stop = 0, result.size
    span = _span(headers, result)
    if span is not None:
        start, stop = span
        more["Content-Range"] = f"bytes {start}-{stop - 1}/{result.size}"
    more["Content-Length"] = str(stop - start)
    try:
        content = await anyio.to_thread.run_sync(_opened, result)
    except OSError:  # removed this moment
        raise ProblemError("not_found") from None
    status = 200 if span is None else 206
    return StreamingResponse(
        _blocks(content, start, stop), status, headers=more, media_type=result.media_type
    )


def _span(headers: Any, result: Result) -> tuple[int, int] | None:
    """[start, stop) of the one range that is asked for; None: the whole, also for what is no such
    range or of another version. Raises ProblemError (416) for one outside the file."""
    found = _RANGE.match(text_header(headers, b"range"))
    same = text_header(headers, b"if-range")
    if found is None or (same and same != result.etag):
        return None
    first, last = found.groups()
    if not first and not last:
        return None
    if first and last and int(last) < int(first):
        return None
    if first:
        start, stop = int(first), min(int(last or result.size) + 1, result.size)
    else:
        start, stop = max(0, result.size - int(last)), result.size
    if start >= stop:
        raise ProblemError("range", headers={"Content-Range": f"bytes */{result.size}"})
    return start, stop


def _opened(result: Result) -> BinaryIO:
    return result.path.open("rb")


async def _blocks(content: BinaryIO, start: int, stop: int) -> AsyncIterator[bytes]:
    """The bytes of a file from start to stop, read off the event loop."""
    with content:
        content.seek(start)
        while start < stop:
            block = await anyio.to_thread.run_sync(content.read, min(BLOCK, stop - start))
            if not block:
                return
            start += len(block)
            yield block
