"""The sections that decisions follow: offers, policy, contact policy and trigger rules."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from features.config_base import CONTROL, Id, Section, Share, Windows, later, utc


def _selector(value: str | dict[str, str]) -> str | dict[str, str]:
    if not value or value == CONTROL:
        raise ValueError("a coupon id, or a mapping of kind and tag; control always stays")
    return value


def _hour(value: object) -> object:
    # YAML 1.1 reads 21:00 without quotes as a number of base 60.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
        value = f"{value // 60:02}:{value % 60:02}"
    if not isinstance(value, str) or not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value):
        raise ValueError('a local time from "00:00" to "23:59"')
    return value


def _form(value: object) -> str:
    return "union-text" if isinstance(value, str | int) else "union-mapping"


# An arm by its coupon id, or all that have this kind and this tag.
Selector = Annotated[
    Annotated[str, Tag("union-text")]
    | Annotated[dict[Literal["kind", "tag"], str], Tag("union-mapping")],
    Discriminator(_form),
    AfterValidator(_selector),
]
Hour = Annotated[str, BeforeValidator(_hour)]


class ScopeConfig(Section):
    products: list[str] = Field(default_factory=list, description="product ids; none: all")
    categories: list[str] = Field(default_factory=list, description="categories; none: all")


class OfferConfig(Section):
    coupon_id: Id = Field(description="name of the arm")
    kind: str = Field(description="a coupon kind of docs/coupons.md, or message")
    params: dict[str, Any] = Field(default_factory=dict, description="parameters of the kind")
    contact_cost: float = Field(0.0, ge=0, description="currency per contact")
    active: bool = Field(
        True, description="false: a retired coupon, known to training, out of decisions"
    )
    tags: list[str] = Field(default_factory=list, description="free labels for rules and reports")
    valid_days: int = Field(14, ge=1, description="days the coupon is valid after assignment")
    valid_from: Annotated[datetime | None, BeforeValidator(utc)] = later(
        None, description="UTC time before which it is not offered"
    )
    valid_until: Annotated[datetime | None, BeforeValidator(utc)] = later(
        None, description="UTC time from which it is neither offered nor valid"
    )
    stock: int | None = later(
        None, ge=0, description="pieces that may still be offered; null: no limit"
    )
    per_customer_limit: int = later(1, ge=1, description="orders on which one piece may be used")
    channels: list[Id] = later([], description="channels that may bring it; none: any")
    eligible: dict[str, Any] | None = later(
        None, description="a filter of docs/audiences.md: who may receive it; null: everyone"
    )
    scope: ScopeConfig | None = later(
        None, description="order lines that it counts and reduces; null: all"
    )
    priority: int = later(0, description="where coupons are stacked, lower numbers come first")
    funded_share: Share = later(
        1.0, description="share of the face cost that we bear; partners bear the rest"
    )
    stackable: bool = later(False, description="true: may be used beside other coupons")

    @model_validator(mode="after")
    def _sensible(self) -> OfferConfig:
        start, end = self.valid_from, self.valid_until
        if start is not None and end is not None and end <= start:
            raise ValueError("valid_until after valid_from")
        if "sensitive" in self.tags and self.eligible is None:
            raise ValueError("eligible, a filter, because the coupon is tagged sensitive")
        return self

    @field_validator("coupon_id")
    @classmethod
    def _not_control(cls, value: str) -> str:
        if value == CONTROL:
            raise ValueError("a coupon id other than control, which means no coupon")
        return value


class LimitConfig(Section):
    name: Id = Field(description="name of the limit, in manifests and messages")
    most: float = Field(ge=0, description="at most so many sends, or so much currency")
    of: Literal["sends", "cost"] = Field(
        "sends", description="what is limited: offers sent, or their expected cost"
    )
    coupons: list[Id] = Field(default_factory=list, description="of these coupons; none: of all")
    channels: list[Id] = Field(default_factory=list, description="by these channels; none: by any")
    who: dict[str, Any] | None = Field(
        None, description="a filter of docs/audiences.md: to these customers; null: to everyone"
    )


class PolicyConfig(Section):
    budget: float | None = Field(
        None, ge=0, description="currency of expected cost; null: no limit"
    )
    min_incremental_profit: float = Field(
        0.0, description="an arm expected to bring less is not offered"
    )
    holdout_share: Share = Field(0.05, description="share held out per campaign")
    exploration_share: Share = Field(0.05, description="share that draws its arm at random")
    global_holdout_share: Share = Field(0.0, description="share held out of every campaign")
    limits: list[LimitConfig] = later(
        [], description="limits besides the budget and the coupons' stock"
    )

    @field_validator("limits")
    @classmethod
    def _names_once(cls, value: list[LimitConfig]) -> list[LimitConfig]:
        names = [limit.name for limit in value]
        if len(set(names)) < len(names):
            raise ValueError("limits with a name of their own each")
        return value


class ContactConfig(Section):
    assume_consent: bool = Field(
        False, description="true: no consent table, the user vouches for consent (logged)"
    )
    overall: Windows = Field(
        default_factory=lambda: {"7d": 2, "28d": 4},
        description="offers a customer may receive in rolling days",
    )
    caps: dict[str, Windows] = later(
        {
            "sms": {"7d": 2, "28d": 4},
            "email": {"7d": 2, "28d": 6},
            "push": {"7d": 3, "28d": 8},
            "default": {"7d": 2, "28d": 6},
        },
        description="offers by a channel that a customer may receive in rolling days; default: "
        "channels that are not named",
    )
    min_gap_days: int = later(2, ge=0, description="days between two offers at least")
    send: Literal["scheduled", "immediate"] = later(
        "scheduled", description="immediate: decisions in quiet hours are refused"
    )
    quiet_hours: tuple[Hour, Hour] | None = later(
        ("21:00", "09:00"),
        description="local time in which nothing is sent, from the first to before the second",
    )
    region_timezones: dict[str, str] = later(
        {}, description="region of the customers table -> IANA zone; others: timezone"
    )
    send_time: bool = later(
        False, description="true: the decisions file recommends weekday, hour and channel"
    )
    channel_costs: dict[str, Annotated[float, Field(ge=0)]] = later(
        {}, description="currency per contact, to choose between channels that are clicked alike"
    )

    @field_validator("quiet_hours")
    @classmethod
    def _an_hour_is_left(cls, value: tuple[str, str] | None) -> tuple[str, str] | None:
        if value is not None and value[0] == value[1]:
            raise ValueError("quiet hours that begin and end at different times, or null for none")
        return value

    @field_validator("region_timezones")
    @classmethod
    def _zones(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := sorted(set(value.values()) - available_timezones()):
            raise ValueError(f"IANA time zones, for example Asia/Shanghai, not {wrong[0]}")
        return value


class EffectConfig(Section):
    add_arms: list[Selector] = Field(
        default_factory=list,
        description="arms that become candidates; an arm that any rule adds is a candidate only "
        "where one does",
    )
    only_arms: list[Selector] = Field(
        default_factory=list, description="no other arm stays a candidate"
    )
    remove_arms: list[Selector] = Field(
        default_factory=list, description="arms that are no candidates, whatever adds them"
    )
    enter_campaign: Id | None = Field(
        None, description="a campaign that takes only customers whom some rule lets in"
    )
    remind: bool = Field(False, description="a reminder, and no new coupon")


class TriggerConfig(Section):
    name: Id = Field(description="name of the rule, logged with each decision")
    when: dict[str, Any] = Field(description="a filter of docs/audiences.md, as of the moment")
    effect: EffectConfig = Field(description="one effect")
    once_per: str | None = Field(
        None,
        pattern=r"^(first_order|calendar_year|coupon|[1-9][0-9]*d)$",
        description="fires once since the first order, in a calendar year, since the newest coupon "
        "was issued, or in so many days (30d)",
    )

    @field_validator("effect")
    @classmethod
    def _one(cls, value: EffectConfig) -> EffectConfig:
        if not value.model_fields_set:
            raise ValueError("an effect, for example {add_arms: [c5]}")
        return value


# A shipped rule by its name, or a rule.
Trigger = Annotated[
    Annotated[Id, Tag("union-text")] | Annotated[TriggerConfig, Tag("union-mapping")],
    Discriminator(_form),
]
