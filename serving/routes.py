"""The routes: decode, ask the scorer, return bytes. What blocks runs in a thread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import msgspec
from fastapi import APIRouter, Request, Response

from features.config import ID_PATTERN
from serving import schemas
from serving.problems import MAX_ERRORS, MEDIA_TYPE, ProblemError, field_problem, reject
from serving.scorer import Scorer

# Up to here an answer takes less time than handing it to a thread and back.
INLINE_ROWS = 64
_ID = re.compile(rf"{ID_PATTERN}\Z")
_decoder = msgspec.json.Decoder(schemas.DecisionsRequest)
_encoder = msgspec.json.Encoder()


@dataclass
class Holder:
    """The one reference that a request reads once; a new scorer is put in its place whole."""

    scorer: Scorer | None = None
    draining: bool = False

    def get(self) -> Scorer:
        if self.scorer is None:
            raise ProblemError("not_ready")
        return self.scorer


def _answers(model: str, description: str, *problems: int) -> dict[int | str, dict[str, Any]]:
    """The documented answers of a route."""
    texts = {
        400: "Malformed",
        404: "Not found",
        405: "Method not allowed",
        413: "Too large",
        415: "Wrong media type",
        422: "Not valid",
        500: "Defect of the server",
        503: "Not ready",
    }
    schema = {"$ref": f"#/components/schemas/{model}"}
    found: dict[int | str, dict[str, Any]] = {
        200: {"description": description, "content": {"application/json": {"schema": schema}}}
    }
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for status in problems:
        found[status] = {"description": texts[status], "content": problem}
    return found


def _body(model: str, example: Mapping[str, Any]) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{model}"}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _json(content: Any, status: int = 200) -> Response:
    return Response(_encoder.encode(content), status, media_type="application/json")


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be of another type or larger than `limit`."""
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if media != "application/json" or encoding != "identity":
        raise ProblemError("media_type")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise ProblemError("too_large")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise ProblemError("too_large")
        parts.append(part)
    return b"".join(parts)


def make_router(holder: Holder) -> APIRouter:
    """All routes of a server whose scorer is in `holder`."""
    router = APIRouter()

    @router.post(
        "/v1/decisions",
        tags=["decisions"],
        summary="Decide for 1 to 1,000 customers",
        description=(
            "Whom to offer which coupon, and why. Every decision is computed from the snapshot, "
            "the model, the rules and the salt: asked again, also after a restart, it is the "
            "same. Decisions are **not stored yet**: `sticky_hit` is always false, an "
            "`Idempotency-Key` has no effect, the budget is kept through the shadow price and "
            "is not counted down, and a decision is not an exposure. A dry run has no "
            "`decision_id`."
        ),
        responses=_answers(
            "DecisionsAnswer", "One decision per customer, in order", 400, 404, 413, 415, 422,
            500, 503,
        ),
        openapi_extra=_body(
            "DecisionsRequest",
            {"campaign_id": "spring", "customers": [{"customer_id": "c-000001"}]},
        ),
    )  # fmt: skip
    async def decisions(request: Request) -> Response:
        scorer = holder.get()
        body = await read_body(request, schemas.MAX_BODY)
        try:
            asked = _decoder.decode(body)
        except (ValueError, RecursionError) as error:
            reject(error)
        if asked.campaign_id != scorer.campaign.campaign_id:
            raise ProblemError("unknown_campaign")
        ids = [customer.customer_id for customer in asked.customers]
        _refuse_duplicates(ids)
        request.state.rows = len(ids)

        def work() -> bytes:
            found = scorer.answer(ids, request_id=request.state.request_id, dry_run=asked.dry_run)
            for decision, customer in zip(found.decisions, asked.customers, strict=True):
                if customer.context:
                    warnings = [*decision.warnings, "context_ignored"]
                    found.decisions[decision.index] = msgspec.structs.replace(
                        decision, warnings=warnings
                    )
            return _encoder.encode(found)

        content = work() if len(ids) <= INLINE_ROWS else await anyio.to_thread.run_sync(work)
        return Response(content, media_type="application/json")

    @router.get(
        "/v1/customers/{customer_id}",
        tags=["customers"],
        summary="What is known of a customer as of the snapshot",
        responses=_answers("CustomerAnswer", "The customer", 404, 422, 500, 503),
        openapi_extra={
            "parameters": [
                {
                    "name": "customer_id",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
                }
            ]
        },
    )
    async def customer(request: Request) -> Response:
        scorer = holder.get()
        customer_id = str(request.path_params["customer_id"])
        if not _ID.match(customer_id):
            raise ProblemError("validation", [field_problem("#/customer_id", "pattern")])
        found = scorer.customer(customer_id)
        if found is None:
            raise ProblemError("unknown_customer")
        return _json(found)

    @router.get(
        "/v1/models/current",
        tags=["models"],
        summary="Which model and snapshot are served",
        responses=_answers("ModelAnswer", "The model", 500, 503),
    )
    async def model() -> Response:
        return _json(holder.get().current())

    @router.get(
        "/livez",
        tags=["health"],
        summary="The process answers",
        responses=_answers("Live", "It does"),
    )
    async def livez() -> Response:
        return _json(schemas.Live(status="ok"))

    ready = _answers("Ready", "Ready")
    ready[503] = {**ready[200], "description": "Not ready"}

    @router.get(
        "/readyz", tags=["health"], summary="Whether to send requests here", responses=ready
    )
    async def readyz() -> Response:
        loaded = holder.scorer is not None
        fine = loaded and not holder.draining
        checks = schemas.Checks(
            model="ok" if loaded else "fail",
            snapshot="ok" if loaded else "fail",
            draining=holder.draining,
        )
        found = schemas.Ready(status="ready" if fine else "not_ready", checks=checks)
        return _json(found, 200 if fine else 503)

    return router


def _refuse_duplicates(ids: list[str]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    twice = []
    for i, customer_id in enumerate(ids):
        if customer_id in seen:
            twice.append(field_problem(f"#/customers/{i}/customer_id", "duplicate"))
            if len(twice) == MAX_ERRORS:
                break
        seen.add(customer_id)
    raise ProblemError("validation", twice)
