"""Who may be contacted, by which channel, and when caps let the next offer through.

Consent, unsubscribed events and rolling caps, read from rows strictly before one moment. Nothing
overrides a refusal. Transactional messages are outside: only exposures count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.config import CONTROL, Config
from features.spine import naive_utc, seen_before
from features.tables import Tables

Flags = npt.NDArray[np.bool_]
Times = npt.NDArray[np.datetime64]
Floats = npt.NDArray[np.float64]

NEVER = np.datetime64("NaT", "us")
FOREVER = np.datetime64("9999-12-31", "us")
DEFAULT = "default"
# A channel's rate of a customer counts as so many offers of the population's rate.
PRIOR_OFFERS = 5


@dataclass(frozen=True)
class Channels:
    """What is known of n customers and C channels: consent (n, C), when caps let the next offer
    through (n, C; NaT: now), and the smoothed rate (n, C) at which offers are clicked, or opened
    where the source knows no clicks."""

    names: tuple[str, ...]
    consent: Flags
    free_at: Times
    rate: Floats

    def best(self, allowed: Flags, costs: Mapping[str, float]) -> npt.NDArray[np.int8]:
        """(n,) the allowed channel (n, C) of the highest rate, the cheapest of equal ones, else the
        first; -1 for none."""
        price = np.array([costs.get(name, 0.0) for name in self.names])
        order = np.lexsort((np.arange(len(price)), price))
        rate = np.where(allowed, self.rate, -1.0)[:, order]
        if not len(order):
            return np.full(len(allowed), -1, dtype=np.int8)
        found = order[rate.argmax(axis=1)]
        return np.where(allowed.any(axis=1), found, -1).astype(np.int8)


def consented(
    tables: Tables,
    ids: pd.Series[Any],
    as_of: datetime,
    config: Config,
    ignored: pd.Series[Any] | None = None,
) -> Flags:
    """(n,) consent: the customers table's, and contact.assume_consent where it says nothing.

    A customer who unsubscribed, or whose consent is refused in the table, stays refused. ignored:
    ids of the unsubscribed events that concern one channel alone.
    """
    consent = np.full(len(ids), config.contact.assume_consent)
    if tables.customers is not None and "marketing_consent" in tables.customers.columns:
        rows = tables.customers.select("customer_id", "marketing_consent").to_pyarrow().to_pandas()
        said = rows.set_index("customer_id")["marketing_consent"].astype("boolean")
        said = said.groupby(level=0).min()
        consent = (
            said.reindex(ids.to_numpy()).fillna(config.contact.assume_consent).to_numpy(dtype=bool)
        )
    if tables.events is not None:
        left = _unsubscribed(tables, as_of)
        if ignored is not None:
            left = left[~left["event_id"].isin(ignored)]
        consent &= ~ids.isin(left["customer_id"]).to_numpy()
    return consent


def caps_free_at(tables: Tables, ids: pd.Series[Any], as_of: datetime, config: Config) -> Times:
    """(n,) when contact.overall and contact.min_gap_days let the next offer through; NaT where
    nothing forbids it.

    With at most m offers in N days, that is N * 86,400 s after the m-th newest offer. Offers are
    exposures to an arm other than control, reminders among them.
    """
    caps = [(int(window[:-1]), most) for window, most in config.contact.overall.items()]
    if config.contact.min_gap_days:
        caps.append((config.contact.min_gap_days, 1))
    return _free_at(_offers(tables, as_of, caps), ids, as_of, caps)


def by_channel(
    tables: Tables, ids: pd.Series[Any], as_of: datetime, config: Config, names: Sequence[str]
) -> Channels:
    """What is known of the channels `names`; `consented` says what holds for all of them.

    Where the source says nothing of channels, or nothing of this customer's and
    contact.assume_consent is set, marketing consent is for every channel.
    """
    n = len(ids)
    consent = np.ones((n, len(names)), dtype=bool)
    said = _said_of_channels(tables)
    if len(said):
        codes, texts = pd.factorize(said.reindex(ids.to_numpy()))
        for c, name in enumerate(names):
            listed = [name in {part.strip() for part in str(text).split(",")} for text in texts]
            table = np.array([*listed, config.contact.assume_consent], dtype=bool)
            consent[:, c] = table[codes]  # code -1, nothing said, is the last
    left = unsubscribed_channels(tables, as_of)
    for c, name in enumerate(names):
        gone = left.loc[left["channel"] == name, "customer_id"]
        consent[:, c] &= ~ids.isin(gone).to_numpy()
    free_at = np.full((n, len(names)), NEVER)
    caps = {name: _caps_of(config, name) for name in names}
    offers = _offers(tables, as_of, [cap for some in caps.values() for cap in some])
    for c, name in enumerate(names):
        own = offers[offers["channel"] == name] if len(offers) else offers
        free_at[:, c] = _free_at(own, ids, as_of, caps[name])
    return Channels(tuple(names), consent, free_at, _rates(tables, ids, as_of, names))


def _said_of_channels(tables: Tables) -> pd.Series[Any]:
    """Consented channels by customer, where the customers table says anything of them."""
    if tables.customers is None:
        return pd.Series([], dtype=object)
    rows = tables.customers.select("customer_id", "consented_channels").to_pyarrow().to_pandas()
    known = rows.drop_duplicates("customer_id").dropna(subset=["consented_channels"])
    found: pd.Series[Any] = known.set_index("customer_id")["consented_channels"]
    return found


def unsubscribed_channels(tables: Tables, as_of: datetime) -> pd.DataFrame:
    """Unsubscribed events whose campaign reached the customer by one channel: event_id,
    customer_id, channel. The others concern every channel."""
    empty = pd.DataFrame({"event_id": [], "customer_id": [], "channel": []}, dtype=object)
    if tables.events is None or tables.exposures is None:
        return empty
    left = _unsubscribed(tables, as_of).dropna(subset=["campaign_id"])
    if left.empty:
        return empty
    e = tables.exposures
    sent = (
        e.filter(seen_before(e.assigned_at, naive_utc(as_of)), e.channel.notnull())
        .select("customer_id", "campaign_id", "channel")
        .distinct()
        .to_pyarrow()
        .to_pandas()
    )
    found = left.merge(sent, on=["customer_id", "campaign_id"])
    one = found.groupby("event_id")["channel"].transform("size") == 1
    return found.loc[one, ["event_id", "customer_id", "channel"]]


def quiet_at(
    tables: Tables, ids: pd.Series[Any], moment: datetime, config: Config
) -> tuple[Flags, Times]:
    """(n,) whether it is a quiet hour where the customer lives, and when it ends (UTC; NaT where it
    is none)."""
    quiet = np.zeros(len(ids), dtype=bool)
    until = np.full(len(ids), NEVER)
    if config.contact.quiet_hours is None:
        return quiet, until
    zones, codes = zones_of(tables, ids, config)
    start, stop = (time.fromisoformat(text) for text in config.contact.quiet_hours)
    for z, zone in enumerate(zones):
        end = quiet_until(moment, start, stop, zone)
        if end is not None:
            quiet[codes == z] = True
            until[codes == z] = np.datetime64(naive_utc(end), "us")
    return quiet, until


def quiet_until(moment: datetime, start: time, end: time, zone: ZoneInfo) -> datetime | None:
    """When the quiet hours that hold at a moment end (UTC), None outside of them.

    They are half open and may cross midnight. An end that the clocks skip or repeat is the later
    of its two readings.
    """
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    local = aware.astimezone(zone)
    now = local.time()
    crossing = end <= start
    if not (now >= start or now < end if crossing else start <= now < end):
        return None
    day = local.date() + timedelta(days=int(crossing and now >= start))
    ends = (datetime.combine(day, end, zone).replace(fold=fold).astimezone(UTC) for fold in (0, 1))
    return max(ends)


def zones_of(
    tables: Tables, ids: pd.Series[Any], config: Config
) -> tuple[tuple[ZoneInfo, ...], npt.NDArray[np.int64]]:
    """The time zones, the configuration's first, and (n,) which of them is the customer's: by
    contact.region_timezones and the region of the customers table."""
    zones = dict.fromkeys([config.timezone, *config.contact.region_timezones.values()])
    names = list(zones)
    codes = np.zeros(len(ids), dtype=np.int64)
    if config.contact.region_timezones and tables.customers is not None:
        rows = tables.customers.select("customer_id", "region").to_pyarrow().to_pandas()
        region = rows.drop_duplicates("customer_id").set_index("customer_id")["region"]
        zone = region.map(config.contact.region_timezones).reindex(ids.to_numpy())
        codes = zone.map({name: i for i, name in enumerate(names)}).fillna(0).to_numpy(np.int64)
    return tuple(ZoneInfo(name) for name in names), codes


def _caps_of(config: Config, channel: str) -> list[tuple[int, int]]:
    caps = config.contact.caps
    windows = caps.get(channel, caps.get(DEFAULT, {}))
    return [(int(window[:-1]), most) for window, most in windows.items()]


def _unsubscribed(tables: Tables, as_of: datetime) -> pd.DataFrame:
    """event_id, customer_id, campaign_id of the unsubscribed events before the moment."""
    events = tables.events
    assert events is not None
    left = events.filter(
        seen_before(events.occurred_at, naive_utc(as_of)), events.type == "unsubscribed"
    )
    found: pd.DataFrame = (
        left.select("event_id", "customer_id", "campaign_id").to_pyarrow().to_pandas()
    )
    return found


def _offers(tables: Tables, as_of: datetime, caps: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """customer_id, assigned_at, channel of the offers that any cap may count, the newest first."""
    if tables.exposures is None or not caps:
        return pd.DataFrame({"customer_id": [], "assigned_at": [], "channel": []})
    moment, e = naive_utc(as_of), tables.exposures
    since = moment - timedelta(days=max(days for days, _ in caps))
    rows = e.filter(seen_before(e.assigned_at, moment), e.assigned_at > since, e.arm != CONTROL)
    found: pd.DataFrame = (
        rows.select("customer_id", "assigned_at", "channel")
        .to_pyarrow()
        .to_pandas()
        .sort_values("assigned_at", ascending=False, kind="stable")
    )
    return found


def _free_at(
    offers: pd.DataFrame, ids: pd.Series[Any], as_of: datetime, caps: Sequence[tuple[int, int]]
) -> Times:
    if any(most <= 0 for _, most in caps):
        return np.full(len(ids), FOREVER)
    free = pd.Series(NEVER, index=ids.to_numpy(), dtype="datetime64[us]")
    if offers.empty:
        return free.to_numpy()
    moment = naive_utc(as_of)
    newest = offers.groupby("customer_id").cumcount()
    for days, most in caps:
        nth = offers[newest == most - 1].set_index("customer_id")["assigned_at"]
        until = (nth + timedelta(days=days)).astype("datetime64[us]").reindex(free.index)
        until = until.where(until > moment)
        free = free.where(until.isna() | (free > until), until)
    return free.to_numpy(dtype="datetime64[us]")


def _rates(tables: Tables, ids: pd.Series[Any], as_of: datetime, names: Sequence[str]) -> Floats:
    """(n, C) (clicked + 5 p) / (offers + 5), p the rate of the channel in the population; of opened
    where nothing was ever clicked."""
    rates = np.zeros((len(ids), len(names)))
    if tables.exposures is None or tables.events is None or not names:
        return rates
    moment, e, v = naive_utc(as_of), tables.exposures, tables.events
    sent = e.filter(
        seen_before(e.assigned_at, moment), e.arm != CONTROL, e.channel.isin(list(names))
    ).select("customer_id", "campaign_id", "channel")
    done = v.filter(seen_before(v.occurred_at, moment), v.type.isin(["clicked", "opened"]))
    done = done.group_by(["customer_id", "campaign_id"]).agg(
        clicked=(done.type == "clicked").any(), opened=(done.type == "opened").any()
    )
    both = sent.left_join(done, ["customer_id", "campaign_id"])
    counted = (
        both.group_by(["customer_id", "channel"])
        .agg(
            offers=both.count(),
            clicked=both.clicked.fill_null(False).cast("int64").sum(),
            opened=both.opened.fill_null(False).cast("int64").sum(),
        )
        .to_pyarrow()
        .to_pandas()
    )
    what = "clicked" if counted["clicked"].sum() > 0 else "opened"
    for c, name in enumerate(names):
        own = counted[counted["channel"] == name].set_index("customer_id")[["offers", what]]
        prior = own[what].sum() / max(own["offers"].sum(), 1)
        own = own.reindex(ids.to_numpy()).fillna(0.0)
        rates[:, c] = (own[what] + PRIOR_OFFERS * prior) / (own["offers"] + PRIOR_OFFERS)
    return rates
