"""The web application: routes, problem details for every error, request ids, one log line each."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.config import ID_PATTERN
from serving import jobs_resources, resources, schemas
from serving.decisions import PATH, decisions
from serving.documented import enter
from serving.gate import Holder
from serving.problems import (
    ProblemError,
    on_defect,
    on_http,
    on_problem,
    on_validation,
    render,
    where,
)
from serving.renewal import keep_current
from serving.routes import make_router
from serving.routes_audiences import audience_router
from serving.routes_campaigns import campaign_router
from serving.routes_events import event_router
from serving.scorer import Scorer

VERSION = "1.0.0"
DESCRIPTION = """Whom to target, and with which coupon.

Money is in millionths of the campaign's currency (`*_micros`), times are UTC, errors are problem
details (RFC 9457). Every answer has an `X-Request-Id`; answers about simulated customers have
`X-Data-Source: simulated`. Every address below `/v1` asks for an API key with the scope that it
names; a server without any key answers its own machine alone, and asks for none.
"""
_ID = re.compile(rf"{ID_PATTERN}\Z")
log = logging.getLogger(__name__)


def create_app(holder: Holder, *, renew: bool = False) -> Envelope:
    """The application around a holder, whose scorer may come later (until then: not ready).

    With a scorer in the holder, the application warms up before its server opens the port; at the
    end it finishes what waits for the log. With `renew` it takes up what becomes current on disk.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if holder.scorer is not None:
            await warm_up(envelope, holder.scorer)
            if holder.service is not None:
                await holder.service.warm_up()
        renewing = asyncio.create_task(keep_current(holder)) if renew else None
        yield
        if renewing is not None:
            renewing.cancel()
            await asyncio.wait([renewing])
        if holder.service is not None:
            await anyio.to_thread.run_sync(holder.service.close)

    app = FastAPI(
        title="Persuadables",
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.include_router(make_router(holder))
    app.include_router(campaign_router(holder))
    app.include_router(event_router(holder))
    app.include_router(audience_router(holder))
    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_defect)

    @app.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> Response:
        await enter(holder, request, None)
        return Response(json.dumps(openapi(app)), media_type="application/json")

    envelope = Envelope(app, holder)
    return envelope


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document: FastAPI's paths, and the schemas that decode and encode."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            openapi_version="3.1.0",
        )
        components = document.setdefault("components", {})
        components["schemas"] = schemas.components(
            schemas.STRUCTS + resources.RESOURCES + jobs_resources.RESOURCES
        )
        # Rows are decoded one by one, so that a bad one does not fail the others.
        rows = components["schemas"]["EventsBody"]["properties"]["events"]
        rows["items"] = {"$ref": "#/components/schemas/EventBody"}
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema


async def warm_up(app: ASGIApp, scorer: Scorer) -> None:
    """Send the application the largest request, a dry run, in the loop that will serve: what the
    way of a request imports, builds and starts lazily, such as the event loop's side of worker
    threads, is then there before the first customer waits for it.

    Raises RuntimeError when the answer is not a success: such a server must not start.
    """
    most = schemas.MAX_CUSTOMERS
    known = scorer.snapshot.population.customer_id[:most].astype(str).tolist()
    # A small shop is filled up with unknown customers: short requests take another way.
    ids = list(dict.fromkeys([*known, *(f"warm-up-{i}" for i in range(most))]))[:most]
    body = msgspec.json.encode(
        schemas.DecisionsRequest(
            scorer.campaign.campaign_id, [schemas.CustomerRequest(i) for i in ids], dry_run=True
        )
    )
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/decisions",
        "query_string": b"",
        "state": {"inside": True},
        "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"warm-up")],
    }
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    if status != 200:
        raise RuntimeError(f"the warm-up was answered with {status}")


class Envelope:
    """Around every request: its id, safe headers, an answer to defects, and one log line.

    The line has the route's template, since a raw path holds customer ids; it never has bodies.
    """

    def __init__(self, app: FastAPI, holder: Holder) -> None:
        self.app, self.holder = app, holder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        wished = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = wished if wished and _ID.match(wished) else f"req-{os.urandom(8).hex()}"
        state = scope.setdefault("state", {})
        state["request_id"], state["in"] = request_id, headers
        started, status, whole = time.perf_counter(), 0, False

        async def sending(message: Message) -> None:
            nonlocal status, whole
            whole = message["type"] == "http.response.body" and not message.get("more_body")
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [
                    *message.get("headers", ()),
                    *state.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                scorer = self.holder.scorer
                if scorer is not None and scorer.simulated:
                    more.append((b"x-data-source", b"simulated"))
                message["headers"] = more
            await send(message)

        fast = scope["path"] == PATH and scope["method"] == "POST"
        try:
            if fast:
                await decisions(self.holder, scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        except ClientDisconnect:
            status = status or 499  # Nobody is left to answer.
        except ProblemError as problem:
            await render(request_id, problem)(scope, receive, sending)
        except Exception as error:
            log.error("defect in request %s: %s", request_id, where(error))
            if not status:
                await render(request_id, ProblemError("internal"))(scope, receive, sending)
            elif not whole:
                raise
        route = PATH if fast else getattr(scope.get("route"), "path", None)
        seconds = time.perf_counter() - started
        rows = state.get("rows", 0)
        if self.holder.service is not None:
            self.holder.service.metrics.answered(route or "none", status, seconds, rows)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        line = Line(
            round(time.time(), 3),
            request_id,
            method,
            route,
            status,
            round(1000 * seconds, 2),
            state.get("key_id"),
            rows,
        )
        self.holder.tell(_encode(line))


class Line(msgspec.Struct, gc=False):
    """What the log says of a request."""

    at: float
    request_id: str
    method: str
    route: str | None
    status: int
    ms: float
    key_id: str | None
    rows: int


_encode = msgspec.json.Encoder().encode
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
