"""What goes in and out over HTTP: one declaration for decoding, encoding and the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from features.config import ID_PATTERN
from uplift.policy import Reason

MAX_CUSTOMERS = 1000
MAX_BODY = 1 << 20

# `\Z`, because Python's `$` also matches before a trailing newline.
Id = Annotated[str, Meta(pattern=rf"^{ID_PATTERN}\Z")]
Micros = Annotated[int, Meta(description="money in millionths of the campaign currency")]
Time = Annotated[str, Meta(description="RFC 3339, UTC", extra_json_schema={"format": "date-time"})]
Share = Annotated[float, Meta(ge=0, le=1)]
Profile = Literal["known", "no_history", "unknown"]
Context = Annotated[
    dict[
        Annotated[str, Meta(max_length=64)],
        Annotated[str, Meta(max_length=256)] | int | float | bool | None,
    ],
    Meta(max_length=16),
]


class CustomerRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """One customer to decide for. A campaign with a default offer for unknown customers reads
    `consent` of the `context`; whatever else it says is checked, not used, and warned of."""

    customer_id: Id
    context: Context | None = None

    @property
    def consent(self) -> bool | None:
        """What is said of the customer's consent, if anything."""
        said = None if self.context is None else self.context.get("consent")
        return said if isinstance(said, bool) else None


class DecisionsRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """Decisions for distinct customers of one campaign."""

    campaign_id: Id
    customers: Annotated[list[CustomerRequest], Meta(min_length=1, max_length=MAX_CUSTOMERS)]
    dry_run: bool = False


class Decision(Struct, frozen=True):
    """What one customer gets, and why. Act on `action`, never on the reason alone.

    `uplift` is the predicted effect, in units of the outcome, of the offered arm; without an
    offer, of the arm of greatest expected incremental profit.
    """

    index: int
    customer_id: str
    decision_id: str | None
    action: Literal["offer", "none"]
    arm: str
    coupon_id: str | None
    reason: Reason
    is_holdout: bool
    is_exploration: bool
    assignment_prob: Share
    response_propensity: Share | None
    uplift: float | None
    expected_incremental_profit_micros: Micros
    expected_cost_micros: Micros
    profile_state: Profile
    sticky_hit: bool
    valid_until: Time | None
    retry_at: Time | None
    warnings: list[str]


class LoggedDecision(Struct, frozen=True):
    """A decision as it was logged."""

    decision_id: str
    campaign_id: str
    window_id: int
    decided_at: Time
    action: Literal["offer", "none"]
    arm: str
    coupon_id: str | None
    reason: Reason
    is_holdout: bool
    is_exploration: bool
    assignment_prob: Share
    valid_until: Time | None
    sent_at: Time | None
    model_version: str
    snapshot_id: str


class Counts(Struct, frozen=True):
    """How many customers got an offer, and how many none."""

    offer: int
    none: int


class DecisionsAnswer(Struct, frozen=True):
    """One decision per customer, in the order of the request."""

    request_id: str
    campaign_id: str
    window_id: int
    dry_run: bool
    decided_at: Time
    as_of: Time
    snapshot_id: str
    model_version: str
    policy_version: str
    counts: Counts
    decisions: list[Decision]


class Rfm(Struct, frozen=True):
    """Recency, frequency and monetary value; null without an order, or without transactions."""

    recency_days: int | None
    frequency_365d: int | None
    monetary_365d_micros: int | None


class CustomerScores(Struct, frozen=True):
    """Model scores of a customer; null where no model of that kind is served, or where it does
    not speak of the customer (churn: of those who ordered lately; all but the response propensity:
    of those who ordered at all).

    `repurchase_probability` is of an order and `churn_probability` of none, `clv_micros` is
    expected money, each in the days that `value_days` names; `clv_is` says whether that money is
    contribution or, where no margin is known, revenue. `clv_365d_micros` is `clv_micros` where its
    days are 365.
    """

    response_propensity: Share | None
    clv_365d_micros: int | None
    repurchase_probability: Share | None
    churn_probability: Share | None
    clv_micros: int | None
    clv_is: Literal["contribution", "revenue"] | None
    value_days: dict[str, int]


class CustomerAnswer(Struct, frozen=True):
    """What is known of a customer as of the snapshot; `uplift` per arm, in units of the outcome.
    `labels` is null where there are no transactions; `churn_warning` among them also follows the
    `churn_probability` of the scores."""

    customer_id: str
    as_of: Time
    tier: str | None
    lifecycle_stage: str | None
    labels: list[str] | None
    profile_state: Profile
    rfm: Rfm
    consent: bool
    scores: CustomerScores
    uplift: dict[str, float | None]
    recent_decisions: list[LoggedDecision]


class SnapshotInfo(Struct, frozen=True):
    """The feature snapshot that decisions are read from."""

    snapshot_id: str
    as_of: Time
    customers: int


class ModelAnswer(Struct, frozen=True):
    """The model that is served. `degraded` says what a careful reader must know of it:
    `registry_unreachable`, `bundle_rejected`, `fixed_as_of`, `simulated_data`,
    `features_missing`, `offers_untrained`, `policy_sends_nothing`."""

    model_name: str
    alias: str
    model_version: str
    bundle_sha256: str
    loaded_at: Time
    arms: list[str]
    snapshot: SnapshotInfo
    degraded: list[str]


class Live(Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"]


class Checks(Struct, frozen=True):
    """What readiness looks at."""

    model: Literal["ok", "fail"]
    snapshot: Literal["ok", "fail"]
    log: Literal["ok", "fail"]
    schema: Literal["ok", "fail"]
    clock: Literal["ok", "fail"]
    draining: bool


class Ready(Struct, frozen=True):
    """Whether requests should be sent here."""

    status: Literal["ready", "not_ready"]
    checks: Checks


class FieldProblem(Struct, frozen=True):
    """One fault of a request: where (JSON pointer) and what, without the value."""

    pointer: str
    code: str
    detail: str


class Problem(Struct, frozen=True, omit_defaults=True):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    request_id: str
    errors: Annotated[list[FieldProblem], Meta(max_length=20)] = []


STRUCTS = (
    DecisionsRequest,
    DecisionsAnswer,
    CustomerAnswer,
    ModelAnswer,
    Live,
    Ready,
    Problem,
)


def components(structs: Sequence[type[Struct]]) -> dict[str, Any]:
    """JSON schemas of what goes in and out, for the OpenAPI document."""
    _, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    return {name: _portable(schema) for name, schema in sorted(schemas.items())}


def _portable(node: Any) -> Any:
    """Regular expressions of JSON schema end with `$`, which there means the very end."""
    if isinstance(node, dict):
        return {
            key: value.replace(r"\Z", "$") if key == "pattern" else _portable(value)
            for key, value in node.items()
        }
    return [_portable(item) for item in node] if isinstance(node, list) else node
