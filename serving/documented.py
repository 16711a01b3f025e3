"""How routes are documented, and small helpers that all of them share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Request, Response

from features.config import ID_PATTERN
from serving.gate import Holder, admit, charge
from serving.log.engine import LogUnavailable
from serving.log.keys import Key
from serving.log.writer import Expired, Stopped
from serving.problems import MEDIA_TYPE, ProblemError, field_problem
from serving.service import Change, Service

ID = re.compile(rf"{ID_PATTERN}\Z")
_encoder = msgspec.json.Encoder()
_TEXTS = {
    400: "Malformed",
    401: "No API key, or none that is valid",
    403: "The API key does not have the scope",
    404: "Not found",
    405: "Method not allowed",
    408: "The body did not come in time",
    409: "In conflict with what is stored",
    410: "Gone",
    412: "The precondition does not hold",
    413: "Too large",
    415: "Wrong media type",
    416: "Not a range of the file",
    422: "Not valid",
    428: "A precondition is required",
    429: "The key's quota is used up",
    500: "Defect of the server",
    503: "Not ready, overloaded, or without its log",
}
KEYED = (401, 403, 429, 500, 503)


def answers(model: str, description: str, *problems: int, ok: int = 200) -> dict[int | str, Any]:
    """The documented answers of a route."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    found: dict[int | str, Any] = {
        ok: {"description": description, "content": {"application/json": {"schema": schema}}}
    }
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    # Where a body may be too large it may be too slow as well.
    for status in (*problems, *((408,) if 413 in problems else ())):
        found[status] = {"description": _TEXTS[status], "content": problem}
    return found


def keyed(
    scope: str, body: tuple[str, Mapping[str, Any]] | None = None, *parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """What OpenAPI adds to a route that asks for a key: its scope, body and parameters."""
    extra: dict[str, Any] = {"security": [{"key": []}], "x-scope": scope}
    if body is not None:
        content = {"schema": {"$ref": f"#/components/schemas/{body[0]}"}, "example": body[1]}
        extra["requestBody"] = {"required": True, "content": {"application/json": content}}
    if parameters:
        extra["parameters"] = list(parameters)
    return extra


def id_parameter(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
    }


def header(name: str, description: str, pattern: str = "^[ -~]*$") -> dict[str, Any]:
    """An optional header."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", "pattern": pattern},
    }


ONCE = header(
    "Idempotency-Key",
    "1 to 255 visible ASCII characters, bare or in quotes",
    '^([!#-~][!-~]{0,254}|"[!#-~]{1,253}")$',
)


PAGE = (
    {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
    },
    {"name": "cursor", "in": "query", "schema": {"type": "string", "maxLength": 500}},
)


def json_answer(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        _encoder.encode(content), status, headers=headers, media_type="application/json"
    )


def path_id(request: Request, name: str) -> str:
    """An id of the path. Raises ProblemError (422)."""
    value = str(request.path_params[name])
    if not ID.match(value):
        raise ProblemError("validation", [field_problem(f"#/{name}", "pattern")])
    return value


def page_of(request: Request) -> tuple[int, str]:
    """(limit, cursor) of a list, the cursor empty for the first page. Raises ProblemError."""
    limit = request.query_params.get("limit", "50")
    if not re.fullmatch("[0-9]{1,3}", limit, re.ASCII) or not 1 <= int(limit) <= 200:
        raise ProblemError("validation", [field_problem("#/limit", "range")])
    cursor = request.query_params.get("cursor", "")
    if len(cursor) > 500:
        raise ProblemError("bad_cursor")
    return int(limit), cursor


async def enter(holder: Holder, request: Request, scope: str | None, rows: int = 0) -> Key:
    """Let a request in: its key has the scope and has not used up its quota."""
    service, state = holder.open(), request.scope["state"]
    key = await admit(service, state["in"], state, scope)
    charge(service, key, state, rows)
    return key


async def changed(service: Service, work: Change) -> Any:
    """What a change of the log gives, after its commit."""
    return await _logged(service.change, work)


async def looked(service: Service, work: Change) -> Any:
    """What a reading of the log gives."""
    return await _logged(service.look, work)


async def _logged(how: Any, work: Change) -> Any:
    try:
        return await how(work)
    except (Expired, Stopped):
        raise ProblemError("overloaded") from None
    except LogUnavailable:
        raise ProblemError("log_unavailable") from None
