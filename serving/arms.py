"""What the configured rules leave of each arm for each customer: filters, triggers, channels, caps.

Made once with the population, from its tables; the batch command and the snapshot read the same
columns. Rules that the configuration does not have cost nothing: then there are no columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.audience import matches
from features.config import Config
from features.contact import Channels, Times, by_channel
from features.errors import DataError
from features.frozen import FrozenValues
from features.send_times import SendTimes, send_times
from features.tables import Tables
from features.triggers import fire
from uplift.data import BoolArray

Texts = npt.NDArray[np.object_]
# NaT in microseconds: before all times.
NOW = int(np.iinfo(np.int64).min)


@dataclass(frozen=True)
class ArmRules:
    """n customers, K arms.

    consent   (n, K) some channel that may bring the arm is consented to
    eligible  (n, K) the coupon's filter holds, and the trigger rules leave the arm
    entered   (n,) may take part in the campaign of the configuration
    free_at   (n, K) when caps of all its channels let it through; NaT: now
    channel   (n, K) the recommended channel, a position in `channels`; -1: any
    who       by name of a limit: (n,) customers whom it concerns
    fired     (n,) trigger rules that fired, by name; None without rules
    """

    channels: tuple[str, ...]
    consent: BoolArray
    eligible: BoolArray
    entered: BoolArray
    free_at: Times
    channel: npt.NDArray[np.int8]
    who: Mapping[str, BoolArray] = field(default_factory=dict)
    fired: Texts | None = None

    @cached_property
    def free_micros(self) -> npt.NDArray[np.int64]:
        """(n, K) `free_at` in microseconds."""
        return in_micros(self.free_at)

    def rows(self, some: Any) -> ArmRules:
        """The rules of these customers."""
        return ArmRules(
            self.channels,
            self.consent[some],
            self.eligible[some],
            self.entered[some],
            self.free_at[some],
            self.channel[some],
            {name: flags[some] for name, flags in self.who.items()},
            None if self.fired is None else self.fired[some],
        )

    def first(self, arms: int) -> ArmRules:
        """The rules of the first so many arms."""
        return replace(
            self,
            consent=self.consent[:, :arms],
            eligible=self.eligible[:, :arms],
            free_at=self.free_at[:, :arms],
            channel=self.channel[:, :arms],
        )


@dataclass(frozen=True)
class Openness:
    """What a moment leaves of n customers and K arms: may they be contacted at all, is any arm left
    by the rules, when caps let the next offer through (NaT: now), and which arms are open."""

    consent: BoolArray
    eligible: BoolArray
    free_at: Times
    arms: BoolArray


def open_arms(
    rules: ArmRules | None,
    consent: BoolArray,
    free_at: Times,
    arms: int,
    moment: np.datetime64,
    *,
    entering: bool = True,
) -> Openness:
    """Put together what holds for the customer and what for each arm. entering: the campaign is the
    one that trigger rules let customers into."""
    n = len(consent)
    if rules is None or arms == 0:
        everyone = np.ones(n, dtype=bool)
        return Openness(consent, everyone, free_at, np.ones((n, arms), dtype=bool))
    consented = rules.consent & consent[:, None]
    eligible = consented & rules.eligible
    if entering:
        eligible = eligible & rules.entered[:, None]
    each = np.fmax(rules.free_at, free_at[:, None])  # NaT is nothing
    now_or_later = np.where(np.isnat(each), np.datetime64(0, "us"), each)
    never = np.datetime64("9999-12-31", "us")
    first = np.where(eligible, now_or_later, never).min(axis=1)
    first = np.where(eligible.any(axis=1) & (first > moment), first, np.datetime64("NaT", "us"))
    return Openness(
        np.asarray(consented.any(axis=1)),
        np.asarray(eligible.any(axis=1)),
        first.astype("datetime64[us]"),
        eligible & ~(each > moment),
    )


class Open(NamedTuple):
    """`Openness` of one customer, in plain numbers. free_at: microseconds, `NOW` for now."""

    consent: bool
    eligible: bool
    free_at: int
    arms: list[bool]


def open_one(
    rules: ArmRules | None,
    row: int,
    consent: bool,
    free_at: int,
    arms: int,
    moment: int,
    *,
    entering: bool = True,
) -> Open:
    """As `open_arms`, of the customer in this row of the rules; times in microseconds."""
    if rules is None or arms == 0:
        return Open(consent, True, free_at, [True] * arms)
    consented = [consent and some for some in rules.consent[row].tolist()]
    enters = not entering or rules.entered.item(row)
    eligible = list(map(bool.__and__, consented, rules.eligible[row].tolist()))
    eligible = [enters and some for some in eligible]
    each = [max(free, free_at) for free in rules.free_micros[row].tolist()]
    first = min((free for free, some in zip(each, eligible, strict=True) if some), default=NOW)
    return Open(
        any(consented),
        any(eligible),
        first if first > moment else NOW,
        [some and free <= moment for free, some in zip(each, eligible, strict=True)],
    )


def in_micros(times: Times) -> npt.NDArray[np.int64]:
    """The same in microseconds; `NOW` for NaT."""
    return times.astype("datetime64[us]", copy=False).view(np.int64)


def arm_rules(
    tables: Tables,
    spine: pd.DataFrame,
    arms: tuple[str, ...],
    config: Config,
    frozen: FrozenValues,
    churn: npt.NDArray[np.float64] | None = None,
) -> ArmRules | None:
    """What the rules leave of `arms` for each row of a spine of one moment; None where the
    configuration has no rules that tell arms or customers apart.

    Raises ConfigError for a mistake in a filter or a rule.
    """
    offers = {offer.coupon_id: offer for offer in config.offers}
    mine = [offers.get(arm) for arm in arms]
    filters: dict[str, Any] = {
        f"offers.{offer.coupon_id}.eligible": offer.eligible
        for offer in mine
        if offer is not None and offer.eligible is not None
    }
    limited = [limit for limit in config.policy.limits if limit.who is not None]
    filters |= {f"policy.limits.{limit.name}.who": limit.who for limit in limited}
    names = channels_of(config)
    if not (filters or names or config.triggers):
        return None
    n, shape = len(spine), (len(spine), len(arms))
    met = matches(tables, spine, filters, config, frozen, churn).met if filters else pd.DataFrame()
    eligible = np.ones(shape, dtype=bool)
    for k, arm in enumerate(arms):
        if f"offers.{arm}.eligible" in filters:
            eligible[:, k] = met[f"offers.{arm}.eligible"]
    entered, fired = np.ones(n, dtype=bool), None
    if config.triggers:
        effect = fire(tables, spine, arms, config, frozen, churn)
        eligible &= effect.candidates
        entered, fired = effect.entered, effect.texts()
    consent = np.ones(shape, dtype=bool)
    free_at = np.full(shape, np.datetime64("NaT", "us"))
    channel = np.full(shape, -1, dtype=np.int8)
    if names:
        ids, moment = spine["customer_id"].astype(str), moment_of(spine)
        known = by_channel(tables, ids, moment, config, names)
        for k, offer in enumerate(mine):
            if offer is not None and offer.channels:
                consent[:, k], free_at[:, k], channel[:, k] = _of_channels(
                    known, offer.channels, config
                )
    return ArmRules(
        names,
        consent,
        eligible,
        entered,
        free_at,
        channel,
        {limit.name: met[f"policy.limits.{limit.name}.who"].to_numpy(bool) for limit in limited},
        fired,
    )


def _of_channels(
    known: Channels, wanted: list[str], config: Config
) -> tuple[BoolArray, Times, npt.NDArray[np.int8]]:
    """Of an arm that these channels may bring: is any consented to, when is the first free, and
    which is recommended: of those that are free now where there are any."""
    columns = np.array([name in wanted for name in known.names])
    consent = known.consent & columns
    free = np.where(np.isnat(known.free_at), np.datetime64(0, "us"), known.free_at)
    never = np.datetime64("9999-12-31", "us")
    first = np.where(consent, free, never).min(axis=1)
    open_now = consent & np.isnat(known.free_at)
    allowed = np.where(open_now.any(axis=1)[:, None], open_now, consent)
    nothing = np.datetime64("NaT", "us")
    return (
        consent.any(axis=1),
        np.where(first == np.datetime64(0, "us"), nothing, first),
        known.best(allowed, config.contact.channel_costs),
    )


def channels_of(config: Config) -> tuple[str, ...]:
    """Every channel that an offer names, in their order."""
    return tuple(dict.fromkeys(name for offer in config.offers for name in offer.channels))


def moment_of(spine: pd.DataFrame) -> datetime:
    """The one moment of a spine."""
    moment: datetime = pd.Timestamp(spine["as_of"].iloc[0]).to_pydatetime()
    return moment


def best_hours(tables: Tables, spine: pd.DataFrame, config: Config) -> SendTimes | None:
    """When to write to each customer, where contact.send_time asks for it."""
    if not config.contact.send_time:
        return None
    return send_times(tables, spine["customer_id"].astype(str), moment_of(spine), config)


def refuse_rules(config: Config, where: str) -> None:
    """Refuse rules that look at tables, where there are none."""
    named = [f"offers.{o.coupon_id}.eligible" for o in config.offers if o.eligible is not None]
    named += ["triggers"] if config.triggers else []
    named += [f"policy.limits.{x.name}.who" for x in config.policy.limits if x.who is not None]
    named += ["offers[].channels"] if channels_of(config) else []
    if named:
        raise DataError(
            where,
            expected="a configuration without rules that look at customers",
            found=", ".join(named[:5]),
            remedy="A feature file cannot tell whom they let through: give a source, or leave "
            "the rules out.",
        )
