"""From a stored campaign to its rules under a model and snapshot: checks, eligibility, price."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import msgspec
import numpy as np

from serving.campaign import Campaign, decide_all
from serving.log.campaigns import Entry
from serving.population import RFM, Labels, Population
from serving.problems import ProblemError, field_problem
from serving.resources import MOMENT_PATTERN, CampaignBody
from serving.rules import DefaultOffer, Quiet, Rules
from serving.schemas import FieldProblem
from serving.scorer import Scorer
from uplift.bundle import Scores
from uplift.data import BoolArray, FloatArray
from uplift.offers import Offer
from uplift.policy import Shares

# A price from so many customers is as good as one from millions: the ledger keeps the budget.
PRICED = 100_000
MAX_DEPTH, MAX_NODES = 8, 100
_MOMENT = re.compile(MOMENT_PATTERN)
_decode = msgspec.json.Decoder(CampaignBody).decode

_COMPARISONS: dict[str, Callable[[FloatArray, float], Any]] = {
    "=": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


class FilterError(Exception):
    """A filter that can't be read: where (JSON pointer), and a code of FIELD_PROBLEMS."""

    def __init__(self, pointer: str, code: str) -> None:
        self.pointer, self.code = pointer, code
        super().__init__(f"{pointer}: {code}")


def rules_of_entry(scorer: Scorer, entry: Entry, *, price: bool = True) -> Rules:
    """The rules of a stored campaign; prices it, which takes a moment for many customers."""
    if entry.configured:
        start = datetime.fromisoformat(json.loads(entry.resource)["starts_at"])
        return Rules.of_config(scorer, start, entry.version)
    body = _decode(entry.resource.encode())
    return rules_of_body(scorer, entry.campaign_id, body, entry.version, price=price)


def rules_of_body(
    scorer: Scorer, campaign_id: str, body: CampaignBody, version: int, *, price: bool = True
) -> Rules:
    """The rules of a campaign that was put over HTTP.

    Raises ProblemError (validation) for what this model and snapshot do not know: coupons,
    features, segments, time zones, and worst-case budgets of coupons without an upper bound.
    """
    people, bundle, config = scorer.snapshot.population, scorer.model.bundle, scorer.config
    offers = {offer.coupon_id: offer for offer in bundle.offers}
    faults = [
        field_problem(f"#/coupons/{i}", "unknown_coupon")
        for i, coupon in enumerate(body.coupons)
        if coupon not in offers
    ]
    if len(set(body.coupons)) < len(body.coupons):
        faults.append(field_problem("#/coupons", "duplicate"))
    if body.time_zone not in available_timezones():
        faults.append(field_problem("#/time_zone", "invalid"))
    if body.currency != config.currency:
        faults.append(field_problem("#/currency", "other_currency"))
    start, end = parse_moment(body.starts_at), parse_moment(body.ends_at)
    if start is None:
        faults.append(field_problem("#/starts_at", "invalid"))
    if body.ends_at is not None and (end is None or (start is not None and end <= start)):
        faults.append(field_problem("#/ends_at", "range"))
    if body.quiet_hours is not None and body.quiet_hours.start == body.quiet_hours.end:
        faults.append(field_problem("#/quiet_hours/end", "range"))
    faults += _default_faults(body)
    worst = None
    if body.budget is not None and body.budget.mode == "worst_case":
        # Those that the model has not seen are not this campaign's.
        found = [worst_micros(offers[arm]) if arm in offers else 0 for arm in scorer.snapshot.arms]
        unbounded = [c for c in body.coupons if c in offers and worst_micros(offers[c]) is None]
        if unbounded:
            faults.append(field_problem("#/budget/mode", "unbounded_coupon"))
        worst = tuple(0 if one is None else one for one in found)
    eligible = None
    if body.eligibility is not None:
        try:
            eligible = evaluate_filter(body.eligibility, people, scorer)
        except FilterError as error:
            faults.append(field_problem("#/eligibility" + error.pointer, error.code))
    if faults or start is None:
        raise ProblemError("validation", faults)
    own = Campaign.of(config, bundle, unseen=scorer.unseen)
    wanted = tuple(arm in body.coupons for arm in own.arms)
    silent = own.sends_nothing
    campaign = replace(
        own,
        campaign_id=campaign_id,
        offered=tuple(a and w for a, w in zip(own.offered, wanted, strict=True)),
        shares=Shares(
            body.holdout_bps / 10_000,
            0.0 if silent else body.exploration_bps / 10_000,
            config.policy.global_holdout_share,
        ),
        budget=None if body.budget is None else body.budget.cap_micros / 1_000_000,
        limits=(),  # they are of the configuration's own campaign
        version=str(version),
    )
    quiet = None
    if body.quiet_hours is not None and body.send == "immediate":
        hours = body.quiet_hours
        quiet = Quiet(
            time.fromisoformat(hours.start),
            time.fromisoformat(hours.end),
            ZoneInfo(body.time_zone),
        )
    rules = Rules(
        campaign=campaign,
        starts_at=start,
        window_days=body.window_days,
        shadow_price=0.0,
        version=version,
        ends_at=end,
        eligible=eligible,
        caps=tuple((cap.max, cap.days) for cap in body.contact_caps),
        quiet=quiet,
        safety_factor=1.0 if body.budget is None else body.budget.safety_factor,
        worst_micros=worst,
        max_feature_age=(None if scorer.fixed else timedelta(hours=body.feature_max_age_hours)),
        max_model_age=None if scorer.fixed else timedelta(days=body.model_max_age_days),
        default=None if body.default_coupon is None else _default_offer(scorer, body),
    )
    return priced(scorer, rules) if price else rules


def _default_faults(body: CampaignBody) -> list[FieldProblem]:
    """What is wrong with the offer for unknown customers."""
    wanted = body.unknown_customer == "default_offer"
    if wanted and body.default_coupon is None:
        return [field_problem("#/default_coupon", "missing")]
    if not wanted and body.default_coupon is not None:
        return [field_problem("#/default_coupon", "invalid")]
    if body.default_coupon is not None and body.default_coupon not in body.coupons:
        return [field_problem("#/default_coupon", "unknown_coupon")]
    return []


def _default_offer(scorer: Scorer, body: CampaignBody) -> DefaultOffer:
    """What unknown customers are offered. It is expected to cost what it costs with the customers
    who have no orders, where there are any, else with all."""
    people, config = scorer.snapshot.population, scorer.config
    arm = scorer.model.bundle.arms.index(str(body.default_coupon))
    cost = np.asarray(people.scores.cost[:, arm], dtype=np.float64)
    new = np.isnan(people.rfm[:, 0]) & np.isfinite(cost)
    like = cost[new] if new.any() else cost[np.isfinite(cost)]
    eligible = True
    if body.eligibility is not None:
        nobody = replace(
            people,
            X=np.full((1, people.X.shape[1]), np.nan, dtype=np.float32),
            rfm=np.full((1, len(RFM)), np.nan),
            tier=replace(people.tier, codes=np.zeros(1, dtype=np.uint8)),
            stage=replace(people.stage, codes=np.zeros(1, dtype=np.uint8)),
        )
        eligible = bool(evaluate_filter(body.eligibility, nobody, scorer)[0])
    # Nobody can tell whom a coupon's own filter would let through.
    own = {offer.coupon_id: offer for offer in config.offers}.get(str(body.default_coupon))
    eligible = eligible and (own is None or own.eligible is None)
    return DefaultOffer(arm, float(like.mean()) if len(like) else 0.0, eligible)


def priced(scorer: Scorer, rules: Rules) -> Rules:
    """The same rules at the price that the budget comes to, among the customers of the snapshot."""
    campaign = rules.campaign
    if campaign.budget is None or not len(scorer.snapshot.population):
        return rules
    people, fraction = _sample(scorer.snapshot.population, rules.eligible)
    budget = campaign.budget / rules.safety_factor * fraction
    made = decide_all(people, replace(campaign, budget=budget, stock=()), scorer.salt)
    return replace(
        rules,
        shadow_price=made.shadow_price,
        campaign=campaign.with_shares(made.shares),
    )


def _sample(people: Population, eligible: BoolArray | None) -> tuple[Population, float]:
    """Every so-manieth customer, without consent where not eligible; and their share of all."""
    step = max(1, math.ceil(len(people) / PRICED))
    scores = people.scores
    consent = np.asarray(people.consent) if eligible is None else people.consent & eligible
    cut = replace(
        people,
        customer_id=people.customer_id[::step],
        X=people.X[:0],
        scores=Scores(
            scores.cate[::step], scores.reward[::step], scores.cost[::step], scores.response[::step]
        ),
        consent=consent[::step],
        free_at=people.free_at[::step],
        arms=None if people.arms is None else people.arms.rows(slice(None, None, step)),
        quiet_until=None,
    )
    return cut, len(cut.customer_id) / len(people)


def worst_micros(offer: Offer) -> int | None:
    """Full face value and contact of an offer, millionths; None without an upper bound."""
    face = offer.max_face_cost
    return None if face is None else math.ceil((face + offer.contact_cost) * 1_000_000)


def parse_moment(text: str | None) -> datetime | None:
    """RFC 3339 with offset as UTC; None for what is no time."""
    if text is None or not _MOMENT.match(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def evaluate_filter(node: Any, people: Population, scorer: Scorer) -> BoolArray:
    """(n,) the customers whom a filter lets through. A missing value fulfils no comparison.

    Raises FilterError.
    """
    left = [MAX_NODES]

    def walk(node: Any, where: str, depth: int) -> BoolArray:
        left[0] -= 1
        if depth > MAX_DEPTH or left[0] < 0:
            raise FilterError(where, "length")
        if not isinstance(node, dict):
            raise FilterError(where, "type")
        keys = frozenset(node)
        if keys in ({"all"}, {"any"}):
            (key,) = keys
            parts = node[key]
            if not isinstance(parts, list) or not parts:
                raise FilterError(f"{where}/{key}", "type")
            found = [walk(p, f"{where}/{key}/{i}", depth + 1) for i, p in enumerate(parts)]
            combine = np.logical_and if key == "all" else np.logical_or
            every: BoolArray = combine.reduce(found)
            return every
        if keys == {"not"}:
            return ~walk(node["not"], f"{where}/not", depth + 1)
        if keys == {"feature", "op", "value"}:
            return _compare(node, where, people, scorer)
        if keys == {"segment", "in"}:
            return _within(node, where, people)
        raise FilterError(where, "unknown_field")

    return walk(node, "", 0)


def _compare(node: dict[str, Any], where: str, people: Population, scorer: Scorer) -> BoolArray:
    name, op, value = node["feature"], node["op"], node["value"]
    compare = _COMPARISONS.get(op) if isinstance(op, str) else None
    if compare is None:
        raise FilterError(f"{where}/op", "invalid")
    schema = scorer.model.bundle.schema
    column: FloatArray
    if name in RFM:
        column = np.asarray(people.rfm[:, RFM.index(name)], dtype=np.float64)
    elif name in schema.names:
        column = np.asarray(people.X[:, schema.names.index(name)], dtype=np.float64)
    else:
        raise FilterError(f"{where}/feature", "unknown_feature")
    if name in schema.levels:
        levels = schema.levels[name]
        if op not in ("=", "!=") or value not in levels:
            raise FilterError(f"{where}/value", "invalid")
        value = levels.index(value)
    if isinstance(value, bool):
        value = float(value)
    try:
        finite = isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all doubles
        finite = False
    if not finite:
        raise FilterError(f"{where}/value", "type")
    with np.errstate(invalid="ignore"):
        found: BoolArray = compare(column, float(value)) & ~np.isnan(column)
    return found


def _within(node: dict[str, Any], where: str, people: Population) -> BoolArray:
    segments: dict[str, Labels] = {"tier": people.tier, "lifecycle_stage": people.stage}
    name, wanted = node["segment"], node["in"]
    if not isinstance(name, str) or name not in segments:
        raise FilterError(f"{where}/segment", "unknown_feature")
    if not isinstance(wanted, list) or not wanted or not all(isinstance(w, str) for w in wanted):
        raise FilterError(f"{where}/in", "type")
    labels = segments[name]
    codes = [i + 1 for i, label in enumerate(labels.names) if label in wanted]
    return np.isin(labels.codes, codes)
