"""Trigger rules: filters that edit the arms a customer may get, evaluated as of one moment.

A rule opens eligibility or edits candidate arms. It sends nothing, skips neither consent nor caps
nor budget nor randomisation, and control always stays. docs/contact.md has the shipped rules.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pandas as pd

from features.audience import matches
from features.build import build_features
from features.config import CONTROL, Config, OfferConfig, TriggerConfig
from features.config_base import TIERS
from features.errors import ConfigError
from features.frozen import FrozenValues
from features.localtime import local_days
from features.spine import naive_utc, seen_before
from features.tables import Tables

Flags = npt.NDArray[np.bool_]
# A contact without a coupon; a reminder leaves only these.
MESSAGE = "message"
# Days after a stage's begin in which its arms are added, as after the seventh day.
GRACE_DAYS = 6


def _feature(name: str, op: str, value: Any) -> dict[str, Any]:
    return {"feature": name, "op": op, "value": value}


def _tier(name: str) -> dict[str, Any]:
    assert name in TIERS
    return {"segment": "tier", "in": [name]}


_ACTIVE = {"event": {"type": ["opened", "clicked", "visited"]}, "within_days": 20, "min": 1}

SHIPPED: dict[str, list[dict[str, Any]]] = {
    "second_purchase_day7": [
        {
            "when": {
                "all": [
                    _feature("order_days_total", "=", 1),
                    _feature("tenure_days", "between", [7, 13]),
                ]
            },
            "effect": {"add_arms": [{"kind": "fixed_off", "tag": "small"}]},
            "once_per": "first_order",
        }
    ],
    "inactive_3w": [
        {
            "when": {"all": [_feature("recency_days", ">=", 21), {"not": _ACTIVE}]},
            "effect": {"enter_campaign": "care"},
        }
    ],
    "birthday_month": [
        {
            "when": _feature("birthday_distance_months", "=", 0),
            "effect": {"add_arms": [{"tag": "birthday"}]},
            "once_per": "calendar_year",
        }
    ],
    "before_lapse": [
        {
            "when": _feature("overdue_ratio", "between", [1.0, 1.5]),
            "effect": {"enter_campaign": "renewal"},
        }
    ],
    "coupon_expiring": [
        {
            "when": {"coupon": {"expires_within_days": 3}},
            "effect": {"remind": True},
            "once_per": "coupon",
        }
    ],
    "sleeping_larger": [{"when": _tier("sleeping"), "effect": {"add_arms": [{"tag": "larger"}]}}],
    "champion_no_generic": [
        {
            "when": _tier("champion"),
            "effect": {"remove_arms": [{"tag": "generic"}], "add_arms": [{"kind": "non_cash"}]},
        }
    ],
    "potential_bundle": [
        {
            "when": _tier("potential"),
            "effect": {
                "add_arms": [{"kind": "bundle"}],
                "remove_arms": [{"kind": "percent_off", "tag": "generic"}],
            },
        }
    ],
    "label_arms": [
        {
            "name": f"label_arms_{label}",
            "when": {"segment": "label", "in": [label]},
            "effect": {"add_arms": [{"tag": tag}]},
        }
        for label, tag in (("price_sensitive", "limited_time"), ("novelty_seeker", "trial"))
    ],
    "new_track": [
        {
            "when": _feature("orders_total", "=", 0),
            "effect": {"add_arms": [{"kind": "first_order"}, {"tag": "sign_up"}]},
        }
    ],
    "old_track": [
        {
            "when": _feature("orders_total", ">=", 1),
            "effect": {"add_arms": [{"tag": "exclusive"}, {"kind": "points"}, {"kind": "gift"}]},
        }
    ],
}
PRODUCT_STAGE = "product_stage"


@dataclass(frozen=True)
class Fired:
    """What the rules did for n customers, R rules and K arms.

    names: of the rules. fired (n, R). candidates (n, K): arms that stay. entered (n,): may take
    part in the campaign. reminded (n,): a reminder, and no new coupon. missing: what no filter
    could tell because a table is absent.
    """

    names: tuple[str, ...]
    fired: Flags
    candidates: Flags
    entered: Flags
    reminded: Flags
    missing: tuple[str, ...]

    def texts(self) -> npt.NDArray[np.object_]:
        """(n,) names of the rules fired, separated by commas; "" for none."""
        combined = np.zeros(len(self.fired), dtype=np.int64)
        for r in range(len(self.names)):
            combined |= self.fired[:, r].astype(np.int64) << r
        codes, inverse = np.unique(combined, return_inverse=True)
        words = [
            ",".join(name for r, name in enumerate(self.names) if code >> r & 1)
            for code in codes.tolist()
        ]
        found: npt.NDArray[np.object_] = np.array(words, dtype=object)[inverse]
        return found


def rules_of(config: Config) -> tuple[TriggerConfig, ...]:
    """The rules of the configuration, shipped ones by name written out.

    Raises ConfigError for a shipped name that is none, a rule that stands twice, and a selector
    that names no coupon of the offers.
    """
    rules: list[TriggerConfig] = []
    for i, given in enumerate(config.triggers):
        rules += [given] if isinstance(given, TriggerConfig) else _shipped(given, i, config)
    names = [rule.name for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            "triggers", expected="a name of its own for each rule", found=f"{twice[0]} twice",
            remedy="Give one of them another name.",
        )  # fmt: skip
    if len(rules) > 60:
        raise ConfigError(
            "triggers", expected="at most 60 rules", found=str(len(rules)),
            remedy="Join rules of one effect with `any`.",
        )  # fmt: skip
    for rule in rules:
        for key in ("add_arms", "only_arms", "remove_arms"):
            for selector in getattr(rule.effect, key):
                if isinstance(selector, str) and selector not in config.arms:
                    raise ConfigError(
                        f"triggers.{rule.name}.effect.{key}",
                        expected=f"a coupon of offers ({', '.join(config.arms)}), or a mapping "
                        "of kind and tag",
                        found=selector,
                        remedy="Name a coupon_id, or add the offer.",
                    )
    return tuple(rules)


def _shipped(name: str, position: int, config: Config) -> list[TriggerConfig]:
    if name == PRODUCT_STAGE:
        clock = next(iter(config.stage_clocks.values()), None)
        if clock is None:
            raise ConfigError(
                f"triggers.{position}",
                expected="a clock under stage_clocks, because product_stage follows its stages",
                found="none",
                remedy="Add stage_clocks, or leave product_stage out.",
            )
        specs: list[dict[str, Any]] = [
            {
                "name": f"{PRODUCT_STAGE}_{number}",
                "when": _feature(
                    "stage_clock_days", "between", [start, min(start + GRACE_DAYS, end - 1)]
                ),
                "effect": {"add_arms": [{"tag": stage}]},
            }
            for number, (stage, (start, end)) in enumerate(clock.stages.items(), start=1)
        ]
    elif name in SHIPPED:
        specs = [{"name": name, **spec} for spec in SHIPPED[name]]
    else:
        raise ConfigError(
            f"triggers.{position}",
            expected=f"a rule, or one of {', '.join([*SHIPPED, PRODUCT_STAGE])}",
            found=name,
            remedy="docs/contact.md has the shipped rules.",
        )
    return [TriggerConfig.model_validate(spec) for spec in specs]


def chosen(selectors: Iterable[str | Mapping[Any, str]], offers: Sequence[OfferConfig]) -> set[str]:
    """Coupon ids of the offers that any selector names: an id, or a kind and a tag that hold."""
    found: set[str] = set()
    for selector in selectors:
        for offer in offers:
            if isinstance(selector, str):
                holds = offer.coupon_id == selector
            else:
                kind, tag = selector.get("kind", offer.kind), selector.get("tag")
                holds = offer.kind == kind and (tag is None or tag in offer.tags)
            if holds:
                found.add(offer.coupon_id)
    return found


def fire(
    tables: Tables,
    spine: pd.DataFrame,
    arms: Sequence[str],
    config: Config,
    frozen: FrozenValues,
    churn: npt.NDArray[np.float64] | None = None,
) -> Fired:
    """Evaluate the rules for each row of a spine (customer_id, as_of; one moment for all).

    An arm that any rule adds is a candidate only for whom a rule adds it; the others are candidates
    for everyone. `remove_arms` beats `add_arms`, `only_arms` keeps no other, and a reminder leaves
    messages alone. Where a rule lets customers into this campaign, nobody else takes part.

    Args:
        arms: coupon ids in the order of the columns wanted.
        churn: calibrated probability of churn per row, where a model exists.

    Raises:
        ConfigError: the first mistake of a rule.
    """
    rules = rules_of(config)
    n = len(spine)
    met = matches(
        tables, spine, {f"triggers.{r.name}.when": r.when for r in rules}, config, frozen, churn
    )
    fired = met.met.to_numpy(dtype=bool).reshape(n, len(rules)).copy()
    repeated = {r.once_per for r in rules} - {None}
    if repeated and tables.exposures is not None:
        history = _History(tables, spine, config, frozen)
        for column, rule in enumerate(rules):
            if rule.once_per is not None:
                fired[:, column] &= ~history.already(rule)
    column_of = {arm: k for k, arm in enumerate(arms)}

    def table(rule: TriggerConfig, key: str) -> Flags:
        """(K,) the arms that this key of a rule names."""
        flags = np.zeros(len(arms), dtype=bool)
        for arm in chosen(getattr(rule.effect, key), config.offers):
            if arm in column_of:
                flags[column_of[arm]] = True
        return flags

    conditional = np.zeros(len(arms), dtype=bool)
    for rule in rules:
        conditional |= table(rule, "add_arms")
    candidates = np.tile(~conditional, (n, 1))
    for column, rule in enumerate(rules):
        candidates |= fired[:, [column]] & table(rule, "add_arms")
    reminded = np.zeros(n, dtype=bool)
    for column, rule in enumerate(rules):
        if rule.effect.only_arms:
            candidates &= ~fired[:, [column]] | table(rule, "only_arms")
        candidates &= ~(fired[:, [column]] & table(rule, "remove_arms"))
        if rule.effect.remind:
            reminded |= fired[:, column]
    kinds = {offer.coupon_id: offer.kind for offer in config.offers}
    message = np.array([kinds.get(arm) == MESSAGE for arm in arms], dtype=bool)
    candidates &= ~reminded[:, None] | message
    doors = [c for c, rule in enumerate(rules) if rule.effect.enter_campaign == config.name]
    entered: Flags = np.asarray(fired[:, doors].any(axis=1) if doors else np.ones(n, dtype=bool))
    return Fired(
        tuple(rule.name for rule in rules), fired, candidates, entered, reminded, met.missing
    )


class _History:
    """When a rule had its last effect on a customer, told by the exposures."""

    def __init__(
        self, tables: Tables, spine: pd.DataFrame, config: Config, frozen: FrozenValues
    ) -> None:
        self.tables, self.spine, self.config, self.frozen = tables, spine, config, frozen
        self.moment: datetime = naive_utc(pd.Timestamp(spine["as_of"].iloc[0]).to_pydatetime())
        self.today = int(local_days(np.array([self.moment], "datetime64[us]"), config.timezone)[0])

    def already(self, rule: TriggerConfig) -> Flags:
        """(n,) the rule had its effect within the time of its `once_per`."""
        last = self._last(lambda e: self._mine(e, rule))
        there = ~np.isnat(last)
        day = np.full(len(last), np.iinfo(np.int64).min // 2)
        day[there] = local_days(last[there], self.config.timezone)
        if rule.once_per == "coupon":
            issued = self._last(lambda e: (e.arm != CONTROL) & ~_reminder(e))
            return np.asarray(there & ~(issued > last))
        if rule.once_per == "first_order":
            tenure = self._tenure
            return np.asarray(there & (self.today - day <= np.nan_to_num(tenure, nan=-1.0)))
        if rule.once_per == "calendar_year":
            year = np.datetime64("1970-01-01", "D") + self.today
            begin = year.astype("datetime64[Y]").astype("datetime64[D]").astype(np.int64)
            return np.asarray(there & (day >= begin))
        days = int(str(rule.once_per)[:-1])
        return np.asarray(there & (self.today - day < days))

    @functools.cached_property
    def _tenure(self) -> npt.NDArray[np.float64]:
        built = build_features(self.tables, self.spine, ["tenure_days"], self.config, self.frozen)
        if "tenure_days" not in built.frame.columns:
            return np.full(len(self.spine), np.nan)
        return built.frame["tenure_days"].to_numpy(dtype=np.float64, na_value=np.nan)

    def _mine(self, e: ir.Table, rule: TriggerConfig) -> ir.BooleanValue:
        effect = rule.effect
        arms = chosen([*effect.add_arms, *effect.only_arms], self.config.offers)
        traces: list[Any] = []
        if arms:
            traces.append(e.arm.isin(sorted(arms)))
        if effect.enter_campaign is not None:
            traces.append(e.campaign_id == effect.enter_campaign)
        if effect.remind:
            traces.append(_reminder(e))
        return functools.reduce(operator.or_, traces) if traces else e.arm.isnull()

    def _last(self, holds: Any) -> npt.NDArray[np.datetime64]:
        e = self.tables.exposures
        assert e is not None
        newest = (
            e.filter(seen_before(e.assigned_at, self.moment), holds(e))
            .group_by("customer_id")
            .agg(at=e.assigned_at.max())
            .to_pyarrow()
            .to_pandas()
            .set_index("customer_id")["at"]
            .astype("datetime64[us]")
        )
        at = newest.reindex(self.spine["customer_id"].astype(str).to_numpy())
        found: npt.NDArray[np.datetime64] = at.to_numpy(dtype="datetime64[us]")
        return found


def _reminder(e: ir.Table) -> Any:
    return (e.variant == "reminder").fill_null(False)
