"""The web application: routes, problem details for every error, request ids, one log line each."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.config import ID_PATTERN
from serving import schemas
from serving.problems import (
    ProblemError,
    on_http,
    on_problem,
    on_validation,
    render,
)
from serving.routes import Holder, make_router
from serving.scorer import Scorer

VERSION = "1.0.0"
DESCRIPTION = """Whom to target, and with which coupon.

Money is in millionths of the campaign's currency (`*_micros`), times are UTC, errors are problem
details (RFC 9457). Every answer has an `X-Request-Id`; answers about simulated customers have
`X-Data-Source: simulated`. There are no API keys yet, so the server listens on this machine only.
"""
_ID = re.compile(rf"{ID_PATTERN}\Z")
log = logging.getLogger("serving.requests")


def create_app(holder: Holder) -> FastAPI:
    """The application around a holder, whose scorer may come later (until then: not ready).

    With a scorer in the holder, the application warms up before its server opens the port.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if holder.scorer is not None:
            await warm_up(app, holder.scorer)
        yield

    app = FastAPI(
        title="Persuadables",
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.include_router(make_router(holder))
    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_middleware(Envelope, holder=holder)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]
    return app


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
        document.setdefault("components", {})["schemas"] = schemas.components()
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

    def __init__(self, app: ASGIApp, holder: Holder) -> None:
        self.app, self.holder = app, holder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        wished = request.headers.get("x-request-id", "")
        request_id = wished if _ID.match(wished) else f"req-{uuid.uuid4().hex[:16]}"
        request.state.request_id = request_id
        started, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                if self.holder.scorer is not None and self.holder.scorer.simulated:
                    headers["X-Data-Source"] = "simulated"
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except ClientDisconnect:
            status = status or 499  # Nobody is left to answer.
        except Exception:
            log.exception("defect in request %s", request_id)
            if status:
                raise
            await render(request_id, ProblemError("internal"))(scope, receive, sending)
        line = {
            "request_id": request_id,
            "method": scope["method"] if scope["method"] in _METHODS else "other",
            "route": getattr(scope.get("route"), "path", None),
            "status": status,
            "ms": round(1000 * (time.monotonic() - started), 2),
            "rows": getattr(request.state, "rows", 0),
        }
        log.info("%s", json.dumps(line))


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
