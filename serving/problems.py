"""Problem details (RFC 9457) for every error. Texts come from here; input is never echoed."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.schemas import FieldProblem, Problem

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20

# code: (status, title)
PROBLEMS: Mapping[str, tuple[int, str]] = {
    "malformed": (400, "The body is not valid JSON in UTF-8"),
    "bad_cursor": (400, "The cursor is not one of this list"),
    "bad_key": (400, "The Idempotency-Key must be 1 to 255 visible ASCII characters"),
    "missing_key": (400, "This address needs an Idempotency-Key"),
    "unauthorized": (401, "An API key is needed"),
    "forbidden": (403, "The API key does not have the scope"),
    "not_found": (404, "There is nothing at this address"),
    "unknown_campaign": (404, "There is no such campaign"),
    "unknown_customer": (404, "There is no such customer"),
    "unknown_job": (404, "There is no such job"),
    "method_not_allowed": (405, "This address does not know this method"),
    "slow_body": (408, "The body did not come in time"),
    "in_flight": (409, "A request with this Idempotency-Key is being answered"),
    "immutable_field": (409, "This can't be changed after the campaign's start"),
    "cap_too_low": (409, "More is promised or spent already than the cap allows"),
    "configured_campaign": (409, "This campaign follows the server's configuration"),
    "job_running": (409, "The campaign has a job that is not finished"),
    "not_cancellable": (409, "The job has begun to commit, or is finished"),
    "unfinished": (409, "The job has not succeeded, so it has no results"),
    "gone": (410, "The job's results were kept for 7 days and are gone"),
    "changed": (412, "The campaign has changed, or is there already"),
    "too_large": (413, "The body is larger than this address takes"),
    "media_type": (415, "The body must be application/json, without content encoding"),
    "range": (416, "The file does not have this range"),
    "validation": (422, "Request is not valid"),
    "key_reused": (422, "The Idempotency-Key came with another body before"),
    "precondition_required": (428, "Send If-Match with the campaign's ETag, or If-None-Match: *"),
    "quota": (429, "The key's quota of this minute is used up"),
    "too_many_jobs": (429, "The key has as many jobs queued as it may have"),
    "internal": (500, "The server failed; the request id finds it in the log"),
    "not_ready": (503, "Model or snapshot are not loaded"),
    "log_unavailable": (503, "The decision log does not answer, so nothing can be decided"),
    "overloaded": (503, "Too much is asked at once"),
}
_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "media_type"}

# code: detail
FIELD_PROBLEMS: Mapping[str, str] = {
    "missing": "is required",
    "unknown_field": "this object has a field that is not known",
    "pattern": "must match the id pattern",
    "length": "has a length outside the limits",
    "type": "has the wrong type",
    "range": "is outside the limits",
    "duplicate": "stands in the request already",
    "unknown_coupon": "is no coupon of the served model",
    "unknown_feature": "is no feature or segment of the served snapshot",
    "other_currency": "is not the server's currency",
    "unbounded_coupon": "is refused for coupons whose face value has no upper bound",
    "fixed": "is fixed since the campaign's start",
    "invalid": "is not valid",
}


class ProblemError(Exception):
    """An error answer: a code of PROBLEMS, and the faults of a validation."""

    def __init__(
        self,
        code: str,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.code, self.errors = code, list(errors[:MAX_ERRORS])
        self.headers = dict(headers or {})
        super().__init__(code)


def field_problem(pointer: str, code: str) -> FieldProblem:
    return FieldProblem(pointer, code, FIELD_PROBLEMS[code])


def render(request_id: str, problem: ProblemError, status: int | None = None) -> Response:
    """The answer to an error."""
    usual, title = PROBLEMS[problem.code]
    status = status or usual
    body = Problem(
        f"/problems/{problem.code}", title, status, problem.code, request_id, problem.errors
    )
    headers = dict(problem.headers)
    if status == 503 or problem.code == "in_flight":
        headers.setdefault("Retry-After", "1")
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body), status, headers=headers, media_type=MEDIA_TYPE)


def where(error: BaseException) -> str:
    """What the log tells of a defect: the classes of an exception and of its causes, and the lines
    they came from, the innermost first. What they say is left out: it may hold customer ids."""
    found: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames = reversed(traceback.extract_tb(cause.__traceback__))
        lines = [f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in frames]
        found.append(f"{type(cause).__name__} at {', '.join(lines)}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "; after ".join(found)


async def on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return render(request.state.request_id, error)


async def on_http(request: Request, error: Exception) -> Response:
    """What the framework raises itself: no route, wrong method, too large."""
    assert isinstance(error, HTTPException)
    code = _BY_STATUS.get(error.status_code, "internal" if error.status_code >= 500 else "invalid")
    if code == "invalid":
        code = "malformed"
    response = render(request.state.request_id, ProblemError(code), error.status_code)
    if error.headers and "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


async def on_defect(request: Request, error: Exception) -> Response:
    """What nobody has foreseen; the envelope logs it."""
    return render(request.state.request_id, ProblemError("internal"))


async def on_validation(request: Request, error: Exception) -> Response:
    """The framework's own validation would return the rejected value; ours does not."""
    return render(request.state.request_id, ProblemError("validation"))


_KINDS = (
    (re.compile(r"Object missing required field `(\w+)`"), "missing"),
    (re.compile(r"Object contains unknown field"), "unknown_field"),
    (re.compile(r"Expected `\w+` matching regex"), "pattern"),
    (re.compile(r"Expected `\w+` of length"), "length"),
    (re.compile(r"Expected `(?:int|float|number)` [<>]|Number out of range"), "range"),
    (re.compile(r"Expected `[^`]*`(?:, got|$)"), "type"),
)


def reject(error: Exception) -> NoReturn:
    """Turn what the decoder found into a problem: where and what, not the value."""
    if not isinstance(error, msgspec.ValidationError):
        raise ProblemError("malformed") from None
    text, _, path = str(error).rpartition(" - at `$")
    if not text:
        text, path = path, ""
    pointer = "#" + "".join(
        f"/{name or index}"
        for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", path)
        if index != "..."
    )
    for pattern, code in _KINDS:
        found = pattern.match(text)
        if found:
            if code == "missing":
                pointer += f"/{found[1]}"
            raise ProblemError("validation", [field_problem(pointer, code)]) from None
    raise ProblemError("validation", [field_problem(pointer, "invalid")]) from None
