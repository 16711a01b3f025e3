"""The route of events: what campaign tools report back."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import msgspec
from fastapi import APIRouter, Request, Response
from sqlalchemy.engine import Connection

from serving import resources
from serving.campaign_rules import parse_moment, worst_micros
from serving.documented import KEYED, ONCE, answers, changed, json_answer, keyed
from serving.evaluation import micros
from serving.gate import Busy, Holder, admit, charge, once_of, read_body, too_deep
from serving.log import idempotency
from serving.log.engine import Log
from serving.log.events import Row, count, rejected, take
from serving.log.idempotency import Once
from serving.problems import ProblemError, field_problem, reject
from serving.resources import EventBody, EventResult, EventsAnswer, EventsBody
from serving.schemas import Id
from serving.service import now_micros

PATH = "/v1/events"
_decode = msgspec.json.Decoder(EventsBody).decode
EXAMPLE = {
    "events": [
        {
            "event_id": "e-1",
            "type": "redeemed",
            "decision_id": "d-01",
            "occurred_at": "2026-11-22T12:00:00Z",
            "cost_micros": 5_000_000,
        }
    ]
}


def event_router(holder: Holder) -> APIRouter:
    """The route of events."""
    router = APIRouter(tags=["events"])

    @router.post(
        PATH,
        summary="Report 1 to 1,000 events",
        description="Each row is judged alone, so a bad one never fails others. The same event "
        "again is a `duplicate`. `redeemed` moves the decision's reservation to its actual cost; "
        "`unsubscribed` ends all contact at once; `sent` makes an offer count against contact "
        "caps for good.",
        responses=answers("EventsAnswer", "One result per row", 400, 409, 413, 415, 422, *KEYED),
        openapi_extra=keyed(
            "events",
            ("EventsBody", EXAMPLE),
            ONCE,
        ),
    )
    async def events(request: Request) -> Response:
        scorer, service = holder.get(), holder.open()
        state = request.scope["state"]
        headers = state["in"]
        key = await admit(service, headers, state, "events")
        try:
            body = await read_body(headers, request.receive, resources.MAX_EVENTS_BODY)
            asked = _asked(body)
        except ProblemError:
            charge(service, key, state, 0)  # what is refused is a request too
            raise
        charge(service, key, state, len(asked.events))
        once = once_of(headers, key, PATH, body)
        rows = [read_row(i, event) for i, event in enumerate(asked.events)]
        found = {offer.coupon_id: worst_micros(offer) for offer in scorer.model.bundle.offers}
        bounds = {coupon: most for coupon, most in found.items() if most is not None}
        keep = partial(take, service.store, scorer.salt.value, bounds)
        work = partial(_once, keep, service.log, rows, once, state["request_id"], now_micros())
        with Busy(service, len(rows), once):
            answer, replayed = await changed(service, work)
        more = {"Idempotency-Replayed": "true"} if replayed else None
        return json_answer(answer, headers=more)

    return router


def _asked(body: bytes) -> EventsBody:
    """The rows of a body. Raises ProblemError."""
    if too_deep(body):
        raise ProblemError("validation", [field_problem("#", "length")])
    try:
        return _decode(body)
    except (ValueError, RecursionError) as error:
        reject(error)


def read_row(index: int, value: object) -> Row | EventResult:
    """A row of a request, or why it is none."""
    event_id = value.get("event_id") if isinstance(value, dict) else None
    try:
        event = msgspec.convert(value, EventBody)
    except msgspec.ValidationError as error:
        # An id that is none is not repeated.
        try:
            shown = msgspec.convert(event_id, Id)
        except msgspec.ValidationError:
            shown = None
        field = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else None
        return rejected(index, shown, "validation", field)
    at = parse_moment(event.occurred_at)
    if at is None:
        return rejected(index, event.event_id, "validation", "occurred_at")
    return Row(index, event, micros(at))


def _once(
    keep: Callable[[list[Row], int, Connection], list[EventResult]],
    log: Log,
    rows: list[Row | EventResult],
    once: Once | None,
    request_id: str,
    now: int,
    connection: Connection,
) -> tuple[EventsAnswer, bool]:
    """Store the events, once; (the answer, whether it is that of an earlier request)."""
    if once is not None:
        past = idempotency.earlier(connection, [once], now).get(once.name)
        if past is not None:
            if past[0] != once.body_sha256:
                raise ProblemError("key_reused")
            return msgspec.json.decode(past[1], type=EventsAnswer), True
    good = iter(keep([row for row in rows if isinstance(row, Row)], now, connection))
    results = [next(good) if isinstance(row, Row) else row for row in rows]
    answer = EventsAnswer(
        request_id,
        count(results, "accepted"),
        count(results, "duplicate"),
        count(results, "rejected"),
        results,
    )
    if once is not None:
        text = json.dumps(json.loads(msgspec.json.encode(answer)))
        if idempotency.keep(log, connection, [(once, text)], now):
            raise ProblemError("in_flight")
    return answer, False
