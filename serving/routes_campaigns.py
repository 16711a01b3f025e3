"""Routes of campaigns: read, put, pause and resume."""

from __future__ import annotations

from functools import partial

import anyio.to_thread
import msgspec
from fastapi import APIRouter, Request, Response
from sqlalchemy.engine import Connection

from serving import resources
from serving.campaign_rules import parse_moment, rules_of_body
from serving.cursor import read_cursor, write_cursor
from serving.documented import (
    KEYED,
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
from serving.evaluation import micros, moment, shown_time, timestamp
from serving.gate import Holder, read_body, text_header, too_deep
from serving.log.campaigns import Campaigns, Entry
from serving.problems import ProblemError, field_problem, reject
from serving.report import report
from serving.resources import CampaignBody
from serving.scorer import Scorer
from serving.service import now_micros

_decode = msgspec.json.Decoder(CampaignBody).decode
_decode_pause = msgspec.json.Decoder(resources.PauseBody).decode
_encode = msgspec.json.Encoder().encode
# What a campaign that has begun can't change any more.
IMMUTABLE = ("currency", "time_zone", "window_days", "starts_at", "holdout_bps")
REPORT_MOST = 400 * 86_400_000_000
EXAMPLE = {
    "name": "Spring",
    "currency": "EUR",
    "time_zone": "Europe/Berlin",
    "starts_at": "2026-11-20T00:00:00Z",
    "ends_at": "2027-01-15T00:00:00Z",
    "window_days": 14,
    "holdout_bps": 500,
    "exploration_bps": 1000,
    "coupons": ["c10", "c20"],
    "budget": {"cap_micros": 50_000_000_000, "mode": "expected", "safety_factor": 1.1},
    "contact_caps": [{"max": 2, "days": 7}],
    "eligibility": {"not": {"segment": "tier", "in": ["champion"]}},
}


def campaign_router(holder: Holder) -> APIRouter:
    """Routes of the campaigns in the log."""
    router = APIRouter(tags=["campaigns"])

    @router.get(
        "/v1/campaigns",
        summary="All campaigns, by id",
        responses=answers("CampaignList", "A page", 400, 422, *KEYED),
        openapi_extra=keyed("read", None, *PAGE),
    )
    async def campaigns(request: Request) -> Response:
        await enter(holder, request, "read")
        scorer, service = holder.get(), holder.open()
        limit, cursor = page_of(request)
        after = ""
        if cursor:
            (after,) = read_cursor(service.cursor_key(), cursor, "campaigns")
        entries = await looked(service, lambda c: service.campaigns.page(c, after, limit + 1))
        following = None
        if len(entries) > limit:
            place = [entries[limit - 1].campaign_id]
            following = write_cursor(service.cursor_key(), place, "campaigns")
        items = [shown(entry, scorer) for entry in entries[:limit]]
        return json_answer(resources.CampaignList(items, following))

    @router.get(
        "/v1/campaigns/{campaign_id}",
        summary="A campaign, its state and its budget",
        responses=answers("CampaignAnswer", "The campaign", 404, 422, *KEYED),
        openapi_extra=keyed("read", None, id_parameter("campaign_id")),
    )
    async def campaign(request: Request) -> Response:
        await enter(holder, request, "read")
        scorer, service = holder.get(), holder.open()
        campaign_id = path_id(request, "campaign_id")
        entry = await looked(service, partial(_existing, service.campaigns, campaign_id))
        return json_answer(shown(entry, scorer), headers={"ETag": etag(entry)})

    put = answers("CampaignAnswer", "Replaced", 404, 409, 412, 413, 415, 422, 428, 400, *KEYED)
    put[201] = {**put[200], "description": "Created"}

    @router.put(
        "/v1/campaigns/{campaign_id}",
        summary="Create or replace a campaign",
        description="`If-None-Match: *` creates, `If-Match` with the ETag replaces. After the "
        "start currency, time zone, window, start and holdout are fixed, and the cap may not fall "
        "below what is promised and spent.",
        responses=put,
        openapi_extra=keyed(
            "admin",
            ("CampaignBody", EXAMPLE),
            id_parameter("campaign_id"),
            header("If-Match", "the ETag of the version to replace"),
            header("If-None-Match", "`*`: create, if there is none"),
        ),
    )
    async def put_campaign(request: Request) -> Response:
        await enter(holder, request, "admin")
        scorer, service = holder.get(), holder.open()
        campaign_id = path_id(request, "campaign_id")
        headers = request.scope["state"]["in"]
        body = await read_body(headers, request.receive, resources.MAX_CAMPAIGN_BODY)
        if too_deep(body):
            raise ProblemError("validation", [field_problem("#", "length")])
        try:
            wanted = _decode(body)
        except (ValueError, RecursionError) as error:
            reject(error)
        match = text_header(headers, b"if-match")
        creating = text_header(headers, b"if-none-match") == "*"
        if bool(match) == creating:
            raise ProblemError("precondition_required")
        # What the model and snapshot do not know is refused before anything is stored.
        await anyio.to_thread.run_sync(
            partial(rules_of_body, scorer, campaign_id, wanted, 1, price=False)
        )
        work = partial(
            put_entry, service.campaigns, scorer, campaign_id, wanted, match, now_micros()
        )
        entry = await changed(service, work)
        return json_answer(shown(entry, scorer), 201 if creating else 200, {"ETag": etag(entry)})

    @router.get(
        "/v1/campaigns/{campaign_id}/report",
        summary="A first look at who was assigned what, and what followed",
        responses=answers("CampaignReport", "The report", 404, 422, *KEYED),
        openapi_extra=keyed("read", None, id_parameter("campaign_id"), _time("from"), _time("to")),
    )
    async def campaign_report(request: Request) -> Response:
        await enter(holder, request, "read")
        service = holder.open()
        campaign_id = path_id(request, "campaign_id")
        start, end = _period(request)

        def work(connection: Connection) -> resources.CampaignReport:
            entry = _existing(service.campaigns, campaign_id, connection)
            return report(campaign_id, entry.budget, start, end, connection)

        return json_answer(await looked(service, work))

    paused = answers("PauseAnswer", "The state", 400, 404, 413, 415, 422, *KEYED)

    @router.post(
        "/v1/campaigns/{campaign_id}/pause",
        summary="Stop all offers of a campaign",
        description="After the answer no offer commits, in any server; standing offers are "
        "answered with none.",
        responses=paused,
        openapi_extra=keyed(
            "admin", ("PauseBody", {"comment": "wrong coupon"}), id_parameter("campaign_id")
        ),
    )
    async def pause(request: Request) -> Response:
        await enter(holder, request, "admin")
        service = holder.open()
        campaign_id = path_id(request, "campaign_id")
        headers = request.scope["state"]["in"]
        body = await read_body(headers, request.receive, resources.MAX_CAMPAIGN_BODY)
        try:
            # PostgreSQL has no NUL, and nothing in a comment may stop a pause.
            comment = _decode_pause(body).comment.replace("\0", "")
        except (ValueError, RecursionError) as error:
            reject(error)

        def work(connection: Connection) -> Entry:
            _existing(service.campaigns, campaign_id, connection)
            service.campaigns.pause(connection, campaign_id, comment, now_micros())
            return _existing(service.campaigns, campaign_id, connection)

        return json_answer(_state(await changed(service, work)))

    @router.post(
        "/v1/campaigns/{campaign_id}/resume",
        summary="Let a paused campaign go on",
        responses=answers("PauseAnswer", "The state", 404, 422, *KEYED),
        openapi_extra=keyed("admin", None, id_parameter("campaign_id")),
    )
    async def resume(request: Request) -> Response:
        await enter(holder, request, "admin")
        service = holder.open()
        campaign_id = path_id(request, "campaign_id")

        def work(connection: Connection) -> Entry:
            _existing(service.campaigns, campaign_id, connection)
            service.campaigns.resume(connection, campaign_id)
            return _existing(service.campaigns, campaign_id, connection)

        return json_answer(_state(await changed(service, work)))

    return router


def _time(name: str) -> dict[str, object]:
    return {
        "name": name,
        "in": "query",
        "description": "RFC 3339 with offset; default: all of the last 400 days",
        "schema": {"type": "string", "format": "date-time"},
    }


def _period(request: Request) -> tuple[int, int]:
    """[from, to) of a report, microseconds. Raises ProblemError (422)."""
    found = {"from": 0, "to": now_micros() + 1}
    for name in found:
        if name in request.query_params:
            at = parse_moment(request.query_params[name])
            if at is None:
                raise ProblemError("validation", [field_problem(f"#/{name}", "invalid")])
            found[name] = micros(at)
    start = found["from"] if "from" in request.query_params else max(found["to"] - REPORT_MOST, 0)
    if not start < found["to"] <= start + REPORT_MOST:
        raise ProblemError("validation", [field_problem("#/from", "range")])
    return start, found["to"]


def etag(entry: Entry) -> str:
    return f'"{entry.campaign_id}-{entry.version}"'


def put_entry(
    campaigns: Campaigns,
    scorer: Scorer,
    campaign_id: str,
    wanted: CampaignBody,
    match: str,
    now: int,
    connection: Connection,
) -> Entry:
    """Store a campaign that was checked; `match` empty: create it. Raises ProblemError."""
    resource = _encode(wanted).decode()
    cap = None if wanted.budget is None else wanted.budget.cap_micros
    if not match:
        if not campaigns.create(connection, campaign_id, resource, cap, now):
            raise ProblemError("changed")
        return _existing(campaigns, campaign_id, connection)
    entry = _existing(campaigns, campaign_id, connection)
    if entry.configured:
        raise ProblemError("configured_campaign")
    if match != etag(entry):
        raise ProblemError("changed")
    before = _decode(entry.resource.encode())
    start = parse_moment(before.starts_at)
    assert start is not None  # it was checked when it was put
    if micros(start) <= now:
        fixed = [name for name in IMMUTABLE if _value(before, name) != _value(wanted, name)]
        if fixed:
            raise ProblemError(
                "immutable_field", [field_problem(f"#/{name}", "fixed") for name in fixed]
            )
    if not campaigns.replace(connection, entry, resource, cap, now):
        raise ProblemError("cap_too_low")
    return _existing(campaigns, campaign_id, connection)


def shown(entry: Entry, scorer: Scorer) -> resources.CampaignAnswer:
    """A campaign as it is answered."""
    budget = entry.budget
    return resources.CampaignAnswer(
        campaign_id=entry.campaign_id,
        state="active" if budget.active else "paused",
        policy_version=scorer.campaign.version if entry.configured else str(entry.version),
        configured=entry.configured,
        paused_at=shown_time(entry.paused_at),
        budget_state=resources.BudgetState(
            budget.cap, budget.committed, budget.realised, budget.overshoot
        ),
        campaign=_configured(entry, scorer)
        if entry.configured
        else _in_utc(_decode(entry.resource.encode())),
    )


def _in_utc(body: CampaignBody) -> CampaignBody:
    start, end = parse_moment(body.starts_at), parse_moment(body.ends_at)
    return msgspec.structs.replace(
        body,
        starts_at=body.starts_at if start is None else timestamp(start),
        ends_at=None if end is None else timestamp(end),
    )


def _configured(entry: Entry, scorer: Scorer) -> CampaignBody:
    """The campaign of the configuration, in the words of the others."""
    config, campaign = scorer.config, scorer.campaign
    start = moment(entry.created_at)
    stored = msgspec.json.decode(entry.resource)
    found = parse_moment(stored.get("starts_at"))
    arms = scorer.snapshot.arms
    cap = entry.budget.cap
    return CampaignBody(
        name=config.name,
        currency=config.currency,
        starts_at=timestamp(found or start),
        coupons=[arm for arm, sent in zip(arms, campaign.offered, strict=True) if sent],
        time_zone=config.timezone,
        window_days=config.outcome.window_days,
        holdout_bps=round(config.policy.holdout_share * 10_000),
        exploration_bps=round(config.policy.exploration_share * 10_000),
        budget=None if cap is None else resources.CampaignBudget(cap_micros=cap, safety_factor=1.0),
        contact_caps=[
            resources.ContactCap(max=most, days=int(days[:-1]))
            for days, most in config.contact.overall.items()
        ],
        feature_max_age_hours=config.serving.max_feature_age_hours,
        model_max_age_days=config.serving.max_model_age_days,
    )


def _value(body: CampaignBody, name: str) -> object:
    value = getattr(body, name)
    return parse_moment(value) if name == "starts_at" else value


def _existing(campaigns: Campaigns, campaign_id: str, connection: Connection) -> Entry:
    entry = campaigns.get(connection, campaign_id)
    if entry is None:
        raise ProblemError("unknown_campaign")
    return entry


def _state(entry: Entry) -> resources.PauseAnswer:
    state = "active" if entry.budget.active else "paused"
    return resources.PauseAnswer(
        entry.campaign_id, "paused" if state == "paused" else "active", shown_time(entry.paused_at)
    )
