"""Routes of decisions, customers, holdouts, models, health and metrics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

import msgspec
from fastapi import APIRouter, Request, Response
from sqlalchemy.engine import Connection

from features.config import ID_PATTERN
from serving import metrics, resources, schemas
from serving.cursor import read_cursor, write_cursor
from serving.decisions import PATH
from serving.documented import (
    ID,
    KEYED,
    ONCE,
    PAGE,
    answers,
    changed,
    enter,
    id_parameter,
    json_answer,
    keyed,
    looked,
    page_of,
    path_id,
)
from serving.erasure import erase
from serving.evaluation import moment, shown_time, timestamp
from serving.gate import Holder
from serving.log.campaigns import Campaigns
from serving.log.store import Store, Stored, customer_hash
from serving.problems import ProblemError, field_problem
from serving.resources import CampaignBody
from serving.scorer import Scorer
from serving.service import now_micros
from uplift.policy import BUCKETS, GLOBAL_SCOPE, Reason, bucket

RECENT = 20
MOST_CAMPAIGNS = 50
CLOCK = timedelta(seconds=300)
EXAMPLE = {"campaign_id": "spring", "customers": [{"customer_id": "c-000001"}]}


def make_router(holder: Holder) -> APIRouter:
    """All routes of a server whose scorer and log are in `holder`."""
    router = APIRouter()

    @router.post(
        PATH,
        tags=["decisions"],
        summary="Decide for 1 to 1,000 customers",
        description=(
            "Whom to offer which coupon, and why. A decision is answered after it is stored, and "
            "stands for the campaign's window: asked again it is the same, with `sticky_hit`. "
            "Offers are charged to the campaign's budget in the transaction that stores them. "
            "What is refused before the draw (reasons up to `budget_exhausted`) is stored, and "
            "judged anew next time. With an `Idempotency-Key`, a retry within 24 hours gives the "
            "same bytes. A dry run gives the standing decision, or a preview without "
            "`decision_id`, and changes nothing."
        ),
        responses=answers(
            "DecisionsAnswer", "One decision per customer, in order",
            400, 404, 409, 413, 415, 422, *KEYED,
        ),
        openapi_extra=keyed(
            "score", ("DecisionsRequest", EXAMPLE),
            ONCE,
        ),
    )  # fmt: skip
    async def documented_decisions() -> None:
        raise AssertionError("serving.app answers this address itself")

    @router.get(
        "/v1/customers/{customer_id}",
        tags=["customers"],
        summary="What is known of a customer, and the last 20 decisions",
        responses=answers("CustomerAnswer", "The customer", 404, 422, *KEYED),
        openapi_extra=keyed("read", None, id_parameter("customer_id")),
    )
    async def customer(request: Request) -> Response:
        await enter(holder, request, "read")
        scorer, service = holder.get(), holder.open()
        customer_id = path_id(request, "customer_id")
        store = service.store

        def read(connection: Connection) -> tuple[list[Stored], dict[str, str]]:
            name = customer_hash(scorer.salt.value, customer_id)
            recent = store.of_customer(connection, customer_id, RECENT, None)
            return recent, store.refused(connection, [name])

        recent, gone = await looked(service, read)
        found = scorer.customer(customer_id)
        if found is None or "erased" in gone.values():
            raise ProblemError("unknown_customer")
        logged = [logged_decision(row) for row in recent]
        consent = found.consent and not gone
        return json_answer(msgspec.structs.replace(found, recent_decisions=logged, consent=consent))

    @router.get(
        "/v1/customers/{customer_id}/decisions",
        tags=["customers"],
        summary="All decisions of a customer, the newest first",
        responses=answers("DecisionList", "A page", 400, 422, *KEYED),
        openapi_extra=keyed("read", None, id_parameter("customer_id"), *PAGE),
    )
    async def customer_decisions(request: Request) -> Response:
        await enter(holder, request, "read")
        service = holder.open()
        customer_id = path_id(request, "customer_id")
        limit, cursor = page_of(request)
        asked = f"decisions/{customer_id}"
        after = None
        if cursor:
            at, last = read_cursor(service.cursor_key(), cursor, asked)
            after = (int(at), str(last))
        read = partial(_decisions_page, service.store, customer_id, limit, after)
        rows = await looked(service, read)
        following = None
        if len(rows) > limit:
            place = [rows[limit - 1].decided_at, rows[limit - 1].decision_id]
            following = write_cursor(service.cursor_key(), place, asked)
        items = [logged_decision(row) for row in rows[:limit]]
        return json_answer(resources.DecisionList(items, following))

    @router.delete(
        "/v1/customers/{customer_id}",
        tags=["customers"],
        summary="Erase a customer",
        description="The id leaves the log at once; arms, probabilities and outcomes stay under a "
        "random name. The customer is never contacted again. Repeatable.",
        status_code=202,
        responses=answers("ErasureAnswer", "Erased", 422, *KEYED, ok=202),
        openapi_extra=keyed("admin", None, id_parameter("customer_id")),
    )
    async def erase_customer(request: Request) -> Response:
        key = await enter(holder, request, "admin")
        service = holder.open()
        customer_id = path_id(request, "customer_id")
        work = partial(erase, service.store, service.salt, customer_id, key.key_id, now_micros())
        return json_answer(await changed(service, work), 202)

    @router.get(
        "/v1/holdouts/{customer_id}",
        tags=["customers"],
        summary="Where a customer falls in the holdouts",
        responses=answers("HoldoutAnswer", "The buckets", 404, 422, *KEYED),
        openapi_extra=keyed(
            "read",
            None,
            id_parameter("customer_id"),
            {
                "name": "campaign_id",
                "in": "query",
                "description": f"up to {MOST_CAMPAIGNS}",
                "schema": {
                    "type": "array",
                    "items": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
                    "maxItems": MOST_CAMPAIGNS,
                },
            },
        ),
    )
    async def holdouts(request: Request) -> Response:
        await enter(holder, request, "read")
        scorer, service = holder.get(), holder.open()
        customer_id = path_id(request, "customer_id")
        wanted = list(dict.fromkeys(request.query_params.getlist("campaign_id")))
        if len(wanted) > MOST_CAMPAIGNS or not all(ID.match(name) for name in wanted):
            raise ProblemError("validation", [field_problem("#/campaign_id", "invalid")])
        shares = await looked(service, partial(_shares, service.campaigns, scorer, wanted))
        return json_answer(holdout_answer(scorer, customer_id, shares))

    @router.get(
        "/v1/models/current",
        tags=["models"],
        summary="Which model and snapshot are served",
        responses=answers("ModelAnswer", "The model", *KEYED),
        openapi_extra=keyed("read"),
    )
    async def model(request: Request) -> Response:
        await enter(holder, request, "read")
        return json_answer(holder.get().current(holder.degraded()))

    @router.get(
        "/livez",
        tags=["health"],
        summary="The process answers",
        responses=answers("Live", "It does"),
    )
    async def livez() -> Response:
        return json_answer(schemas.Live(status="ok"))

    ready = answers("Ready", "Ready")
    ready[503] = {**ready[200], "description": "Not ready"}

    @router.get(
        "/readyz", tags=["health"], summary="Whether to send requests here", responses=ready
    )
    async def readyz() -> Response:
        checks = await _checks(holder)
        fine = not checks.draining and all(
            getattr(checks, name) == "ok"
            for name in ("model", "snapshot", "log", "schema", "clock")
        )
        found = schemas.Ready(status="ready" if fine else "not_ready", checks=checks)
        return json_answer(found, 200 if fine else 503)

    @router.get(
        "/metrics",
        tags=["health"],
        summary="Metrics for Prometheus",
        responses={200: {"description": "Text", "content": {"text/plain": {}}}},
    )
    async def metrics_text() -> Response:
        service = holder.service
        if service is None:
            return Response(b"", media_type=metrics.CONTENT_TYPE)
        service.metrics.queue_depth.set(service.writer.depth)
        if holder.scorer is not None:
            now, registered = datetime.now(UTC), holder.scorer.model.registered_at
            age = now - holder.scorer.snapshot.as_of
            service.metrics.now_degraded(holder.degraded())
            service.metrics.snapshot_age.set(age.total_seconds())
            if registered is not None:
                service.metrics.model_age.set((now - registered).total_seconds())
        await service.count_budgets()
        await service.count_jobs()
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    return router


def _decisions_page(
    store: Store,
    customer_id: str,
    limit: int,
    after: tuple[int, str] | None,
    connection: Connection,
) -> list[Stored]:
    return store.of_customer(connection, customer_id, limit + 1, after)


def _shares(
    campaigns: Campaigns, scorer: Scorer, wanted: list[str], connection: Connection
) -> dict[str, int]:
    """The holdout share of these campaigns, ten-thousandths. Raises ProblemError (404)."""
    entries = campaigns.some(connection, wanted)
    if len(entries) < len(wanted):
        raise ProblemError("unknown_campaign")
    own = round(scorer.config.policy.holdout_share * BUCKETS)
    return {
        name: own
        if entries[name].configured
        else msgspec.json.decode(entries[name].resource, type=CampaignBody).holdout_bps
        for name in wanted
    }


def holdout_answer(
    scorer: Scorer, customer_id: str, shares: dict[str, int]
) -> resources.HoldoutAnswer:
    """Buckets of a customer, everywhere and in campaigns with these shares."""
    salt = scorer.salt.value
    share = round(scorer.config.policy.global_holdout_share * BUCKETS)
    at = int(bucket(salt, "holdout", GLOBAL_SCOPE, [customer_id])[0])
    everywhere = resources.Bucket(at, share, at < share)
    campaigns = []
    for name, bps in shares.items():
        here = int(bucket(salt, "holdout", name, [customer_id])[0])
        via: Literal["global", "campaign"] | None = None
        if everywhere.is_holdout:
            via = "global"
        elif here < bps:
            via = "campaign"
        campaigns.append(resources.CampaignBucket(name, here, bps, via is not None, via))
    return resources.HoldoutAnswer(customer_id, everywhere, campaigns)


def logged_decision(row: Stored) -> schemas.LoggedDecision:
    """A row of the log as it is shown in lists."""
    return schemas.LoggedDecision(
        decision_id=row.decision_id,
        campaign_id=row.campaign_id,
        window_id=row.window_id,
        decided_at=timestamp(moment(row.decided_at)),
        action=row.action,
        arm=row.arm,
        coupon_id=row.arm if row.action == "offer" else None,
        reason=Reason(row.reason),
        is_holdout=row.holdout_kind != "none",
        is_exploration=row.is_exploration,
        assignment_prob=round(row.assignment_prob, 6),
        valid_until=shown_time(row.valid_until),
        sent_at=shown_time(row.sent_at),
        model_version=row.model_version,
        snapshot_id=row.snapshot_id,
    )


async def _checks(holder: Holder) -> schemas.Checks:
    scorer, service = holder.scorer, holder.service

    def said(fine: bool) -> Literal["ok", "fail"]:
        return "ok" if fine else "fail"

    behind = timedelta(0)
    if scorer is not None and service is not None:
        behind = service.behind(scorer)
    return schemas.Checks(
        model=said(scorer is not None),
        snapshot=said(scorer is not None),
        log=said(service is not None and await service.healthy()),
        schema=said(service is not None and await service.schema_fits()),
        clock=said(behind <= CLOCK),
        draining=holder.draining,
    )
