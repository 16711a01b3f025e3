"""Campaigns, events, erasures, holdouts and jobs over HTTP: what goes in and out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from serving.schemas import Id, LoggedDecision, Micros, Share, Time

MAX_CAMPAIGN_BODY = 1 << 16
MAX_EVENTS = 1000
MAX_EVENTS_BODY = 1 << 21
Bps = Annotated[int, Meta(ge=0, le=10_000, description="ten-thousandths")]
Clock = Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z", description="local time")]
# As sent: read as RFC 3339 with an offset.
MOMENT_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
)
Moment = Annotated[
    str,
    Meta(
        pattern=MOMENT_PATTERN,
        description="RFC 3339 with offset",
        extra_json_schema={"format": "date-time"},
    ),
]
Amount = Annotated[int, Meta(ge=0, le=9_000_000_000_000_000, description="millionths of currency")]


class CampaignBudget(Struct, forbid_unknown_fields=True, frozen=True):
    """`expected` reserves the expected cost times `safety_factor`; `worst_case` the full face
    value and contact, and is refused for a coupon whose face value has no upper bound."""

    cap_micros: Amount
    mode: Literal["expected", "worst_case"] = "expected"
    safety_factor: Annotated[float, Meta(ge=1, le=10)] = 1.1


class ContactCap(Struct, forbid_unknown_fields=True, frozen=True):
    """At most `max` offers, of any campaign, in rolling `days`."""

    max: Annotated[int, Meta(ge=1, le=1000)]
    days: Annotated[int, Meta(ge=1, le=3650)]


class QuietHours(Struct, forbid_unknown_fields=True, frozen=True):
    """Local hours, half open, that may cross midnight."""

    start: Clock
    end: Clock


class CampaignBody(Struct, forbid_unknown_fields=True, frozen=True):
    """A campaign as it is put. `send: immediate` refuses decisions in quiet hours; otherwise the
    campaign tool keeps them when it sends. `eligibility` is a filter of `all`, `any`, `not`,
    `{"feature", "op", "value"}` and `{"segment", "in"}` over what the snapshot holds.
    `unknown_customer: default_offer` offers the `default_coupon` to customers whom the snapshot
    does not hold and whose `context` says `"consent": true`; both fields go together."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")]
    starts_at: Moment
    coupons: Annotated[list[Id], Meta(min_length=1, max_length=50)]
    time_zone: Annotated[str, Meta(max_length=64)] = "UTC"
    ends_at: Moment | None = None
    window_days: Annotated[int, Meta(ge=1, le=3650)] = 14
    holdout_bps: Bps = 500
    exploration_bps: Bps = 500
    budget: CampaignBudget | None = None
    contact_caps: Annotated[list[ContactCap], Meta(max_length=10)] = []
    quiet_hours: QuietHours | None = None
    send: Literal["scheduled", "immediate"] = "scheduled"
    eligibility: dict[str, Any] | None = None
    unknown_customer: Literal["none", "default_offer"] = "none"
    default_coupon: Id | None = None
    feature_max_age_hours: Annotated[float, Meta(gt=0, le=8760)] = 50
    model_max_age_days: Annotated[float, Meta(gt=0, le=3650)] = 120


class CampaignAnswer(Struct, frozen=True):
    """A campaign. `configured`: it follows the server's configuration and can't be put."""

    campaign_id: str
    state: Literal["active", "paused"]
    policy_version: str
    configured: bool
    paused_at: Time | None
    budget_state: BudgetState
    campaign: CampaignBody


class BudgetState(Struct, frozen=True):
    """Where the budget stands; `cap_micros` null: no limit."""

    cap_micros: Micros | None
    committed_micros: Micros
    realised_micros: Micros
    overshoot_micros: Micros


class CampaignList(Struct, frozen=True):
    """One page."""

    items: list[CampaignAnswer]
    next_cursor: str | None


class DecisionList(Struct, frozen=True):
    """Decisions of one customer, the newest first."""

    items: list[LoggedDecision]
    next_cursor: str | None


class ArmReport(Struct, frozen=True):
    """Customers by their first assignment, and for how many of them there was a `sent`, a
    redemption and an order event."""

    arm: str
    customers: int
    sent: int
    redeemed: int
    orders: int


class Imbalance(Struct, frozen=True):
    """Sample ratio mismatch: whether as many are held out as should be."""

    p_value: Share
    ok: bool


class Lift(Struct, frozen=True):
    """Share of customers with an order, not held out less held out."""

    estimate: float
    ci95: Annotated[list[float], Meta(min_length=2, max_length=2)]


class CampaignReport(Struct, frozen=True, rename={"since": "from", "until": "to"}):
    """A first look at a campaign by first assignments. Arms other than the holdout were chosen by
    the policy: they are not to be compared with each other."""

    campaign_id: str
    since: Time
    until: Time
    arms: list[ArmReport]
    srm: Imbalance
    uplift: Lift | None
    budget: BudgetState
    reasons: dict[str, int]


class PauseBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Why, for the audit."""

    comment: Annotated[str, Meta(max_length=500)] = ""


class PauseAnswer(Struct, frozen=True):
    """The state after a pause or its end."""

    campaign_id: str
    state: Literal["active", "paused"]
    paused_at: Time | None


class EventBody(Struct, forbid_unknown_fields=True, frozen=True):
    """`sent`, `opened`, `clicked` and `redeemed` name the decision, `ordered` and `unsubscribed`
    the customer. `cost_micros` of a redemption is what it came to cost; `value_micros` is the money
    of an order."""

    event_id: Id
    type: Literal["sent", "opened", "clicked", "redeemed", "ordered", "unsubscribed"]
    occurred_at: Moment
    decision_id: Id | UnsetType = UNSET
    customer_id: Id | UnsetType = UNSET
    cost_micros: Amount | UnsetType = UNSET
    value_micros: Amount | UnsetType = UNSET


class EventsBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Rows are judged one by one; a bad row never fails others."""

    events: Annotated[list[Any], Meta(min_length=1, max_length=MAX_EVENTS)]


EventCode = Literal[
    "validation",
    "unknown_decision",
    "unknown_customer",
    "not_an_offer",
    "cost_too_high",
    "event_id_reused",
    "in_future",
    "too_old",
]


class EventResult(Struct, frozen=True, omit_defaults=True):
    """What became of one row."""

    index: int
    event_id: str | None
    status: Literal["accepted", "duplicate", "rejected"]
    code: EventCode | None = None
    pointer: str | None = None


class EventsAnswer(Struct, frozen=True):
    """One result per row, in the order of the request."""

    request_id: str
    accepted: int
    duplicate: int
    rejected: int
    results: list[EventResult]


class Bucket(Struct, frozen=True):
    """Where a customer falls; held out if `bucket` lies below the share."""

    bucket: int
    share_bps: int
    is_holdout: bool


class CampaignBucket(Struct, frozen=True):
    """As `Bucket`; `via`: which share holds the customer out."""

    campaign_id: str
    bucket: int
    share_bps: int
    is_holdout: bool
    via: Literal["global", "campaign"] | None


class HoldoutAnswer(Struct, frozen=True, rename={"everywhere": "global"}):
    """A pure function of the customer's id."""

    customer_id: str
    everywhere: Bucket
    campaigns: list[CampaignBucket]


class ErasureAnswer(Struct, frozen=True):
    """An erasure: the id is gone from the log at once, from snapshots and files by
    `complete_by`."""

    erasure_id: str
    state: Literal["tombstoned"]
    requested_at: Time
    complete_by: Time


RESOURCES = (
    CampaignBody,
    CampaignAnswer,
    CampaignList,
    CampaignReport,
    DecisionList,
    PauseBody,
    PauseAnswer,
    EventBody,
    EventsBody,
    EventsAnswer,
    HoldoutAnswer,
    ErasureAnswer,
)
