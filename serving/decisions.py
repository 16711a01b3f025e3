"""`POST /v1/decisions`, answered before any framework: it is the request that campaigns live on."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from serving import schemas
from serving.desk import Ask, UnknownCampaign
from serving.gate import Busy, Holder, admit, charge, once_of, read_body
from serving.log.engine import LogUnavailable
from serving.log.idempotency import KeyReused
from serving.log.writer import Expired, Stopped
from serving.problems import MAX_ERRORS, ProblemError, field_problem, reject
from serving.rules import Rules

PATH = "/v1/decisions"
_decode = msgspec.json.Decoder(schemas.DecisionsRequest).decode


async def decisions(holder: Holder, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request; problems are raised."""
    scorer, service = holder.get(), holder.open()
    state = scope["state"]
    headers = state["in"]
    key = await admit(service, headers, state, "score")
    try:
        body = await read_body(headers, receive, schemas.MAX_BODY)
        asked = _asked(body)
    except ProblemError:
        charge(service, key, state, 0)  # what is refused is a request too
        raise
    customers = asked.customers
    charge(service, key, state, len(customers))
    once = once_of(headers, key, PATH, body)
    if asked.dry_run:
        once = None

    def ask(rules: Rules) -> Ask:
        return Ask(scorer, rules, customers, state["request_id"], asked.dry_run, once)

    with Busy(service, len(customers), once):
        try:
            answer = await service.decide(scorer, asked.campaign_id, ask)
        except UnknownCampaign:
            raise ProblemError("unknown_campaign") from None
        except KeyReused:
            raise ProblemError("key_reused") from None
        except (Expired, Stopped):
            raise ProblemError("overloaded") from None
        except LogUnavailable:
            raise ProblemError("log_unavailable") from None
    if not asked.dry_run:
        service.metrics.decided(answer.reasons, scorer.model.version)
    found = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(answer.body)).encode()),
    ]
    if answer.replayed:
        found.append((b"idempotency-replayed", b"true"))
    await send({"type": "http.response.start", "status": 200, "headers": found})
    await send({"type": "http.response.body", "body": answer.body})


def _asked(body: bytes) -> schemas.DecisionsRequest:
    """What a body asks. Raises ProblemError."""
    try:
        asked = _decode(body)
    except (ValueError, RecursionError) as error:
        reject(error)
    if len(asked.customers) > 1:
        refuse_duplicates([customer.customer_id for customer in asked.customers])
    return asked


def refuse_duplicates(ids: Sequence[str]) -> None:
    """Raises ProblemError with the places of ids that stand twice."""
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
