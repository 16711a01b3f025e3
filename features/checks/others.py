"""Events, customers, moments of the configuration, and features that will be NULL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from features.audience import check_filter
from features.build import present_tables
from features.checks.base import examples, rows, share, timestamp
from features.config import Config
from features.contracts import EVENT_TYPES
from features.errors import InputError
from features.problems import Problems, fail
from features.registry import available, feature_names
from features.tables import Tables, check_as_of, complete_until, time_range

FRESH_DAYS = 7


def check_moments(tables: Tables, config: Config, found: Problems) -> None:
    """Add what is wrong with as_of and complete_until, and with the age of the data."""
    span = time_range(tables, ("transactions",))
    if span is None or tables.transactions is None:
        return
    as_of, now = config.as_of(), datetime.now(UTC)
    until, given = complete_until(tables, config), config.source.complete_until
    if given is not None and given > now:
        text = f"{given:%Y-%m-%d %H:%M}Z lies in the future: nobody knows that those data are whole"
        found.add("warning", "source.complete_until", text)
    elif given is not None and given - span[1] > timedelta(days=FRESH_DAYS):
        days = (given - span[1]).days
        found.add(
            "warning",
            "source.complete_until",
            f"{days} days after the newest line: in those days nobody seems to buy, and outcomes "
            "look like zero",
        )
    name = tables.transactions.get_name()
    later = rows(tables, f"SELECT count(*) FROM {name} WHERE transacted_at > {timestamp(now)}")[0][
        0
    ]
    if later:
        found.add("warning", "transactions.transacted_at", f"{later} lines lie in the future")
    try:
        check_as_of(tables, as_of)
    except InputError as error:
        fail(found, error)
        return
    text = f"from {span[0]:%Y-%m-%d} to {span[1]:%Y-%m-%d}"
    if config.source.as_of == "now":
        if as_of - span[1] > timedelta(days=FRESH_DAYS):
            days = (as_of - span[1]).days
            found.add(
                "warning",
                "transactions.transacted_at",
                f"the newest line is {days} days old; features of today will look like {days} days "
                "without a purchase (set source.as_of for old data)",
            )
        return
    found.add("note", "source.as_of", f"fixed at {as_of:%Y-%m-%d %H:%M}Z; transactions {text}")
    if until is not None and as_of - until > timedelta(days=FRESH_DAYS):
        days = (as_of - until).days
        found.add(
            "warning",
            "source.as_of",
            f"{days} days after the data end ({until:%Y-%m-%d %H:%M}Z): features as of then look "
            f"like {days} days without a purchase",
        )


def check_customers(tables: Tables, config: Config, found: Problems) -> None:
    """Add what is wrong with the customers table."""
    if tables.customers is None:
        return
    name = tables.customers.get_name()
    total = rows(tables, f"SELECT count(*) FROM {name}")[0][0]
    if not total:
        found.add("warning", "customers", "an empty table: export it again, or take the file away")
        return
    for other in (tables.transactions, tables.exposures):
        if other is None:
            continue
        n, known = rows(
            tables,
            "SELECT count(*), count(*) FILTER (EXISTS (SELECT 1 FROM "
            f"{name} c WHERE c.customer_id = o.customer_id)) FROM "
            f"(SELECT DISTINCT customer_id FROM {other.get_name()}) o",
        )[0]
        if n and not known:
            text = (
                f"none of {n} customers of {other.get_name()} is there: are the ids of one system?"
            )
            found.add("warning", "customers.customer_id", text)
    later, months = rows(
        tables,
        f"SELECT count(*) FILTER (joined_at > {timestamp(datetime.now(UTC))}), "
        f"count(DISTINCT birth_month) FROM {name}",
    )[0]
    if later:
        text = f"{share(later, total)} customers joined in the future"
        found.add("warning", "customers.joined_at", text)
    if months == 1 and total > 100:
        text = "the same month for everybody: a stand-in for a missing one?"
        found.add("warning", "customers.birth_month", text)


def check_events(tables: Tables, config: Config, found: Problems) -> None:
    """Add what is wrong with the events."""
    if tables.events is None:
        return
    name = tables.events.get_name()
    total = rows(tables, f"SELECT count(*) FROM {name}")[0][0]
    if not total:
        found.add("warning", "events", "an empty table: export it again, or take the file away")
        return
    known = ", ".join(f"'{kind}'" for kind in EVENT_TYPES)
    strange = rows(
        tables,
        f"SELECT type, count(*) FROM {name} WHERE type NOT IN ({known}) "
        "GROUP BY 1 ORDER BY 2 DESC LIMIT 5",
    )
    if strange:
        text = ", ".join(f"{kind} ({n} rows)" for kind, n in strange)
        found.add("warning", "events.type", f"types that nothing reads: {text}")
    later = rows(
        tables,
        f"SELECT count(*) FROM {name} WHERE occurred_at > {timestamp(datetime.now(UTC))}",
    )[0][0]
    if later:
        found.add(
            "warning", "events.occurred_at", f"{share(later, total)} events lie in the future"
        )
    none = rows(tables, f"SELECT count(*) FROM {name} WHERE campaign_id IS NULL")[0][0]
    if none:
        found.add(
            "warning" if none == total else "note",
            "events.campaign_id",
            f"{share(none, total)} events name no campaign: clicks and redemptions among them "
            "belong to no offer",
        )
    if tables.exposures is None:
        return
    lost, campaigns = rows(
        tables,
        f"SELECT count(*), list(DISTINCT campaign_id)[:5] FROM {name} e WHERE campaign_id IS NOT "
        f"NULL AND NOT EXISTS (SELECT 1 FROM {tables.exposures.get_name()} x WHERE "
        "x.campaign_id = e.campaign_id)",
    )[0]
    if lost:
        found.add(
            "warning" if lost == total - none else "note",
            "events.campaign_id",
            f"{share(lost, total)} events name a campaign without exposures{examples(campaigns)}",
        )


def check_features(tables: Tables, config: Config, found: Problems) -> None:
    """Add features that are unknown, and those that are NULL because a table is absent."""
    try:
        names = feature_names(config)
    except InputError as error:
        fail(found, error)
        return
    present = present_tables(tables, config)
    absent = [name for name in names if not available(name, present)]
    if absent:
        found.add(
            "note",
            "features.set",
            f"{len(absent)} of {len(names)} features are NULL, because a table is absent: "
            f"{', '.join(absent)}",
        )
    for name in config.features.given:
        for table in (tables.exposures, tables.customers):
            if table is None or name not in table.columns:
                continue
            values, n = rows(
                tables, f'SELECT count(DISTINCT "{name}"), count(*) FROM {table.get_name()}'
            )[0]
            if values < 2 and n > 1:
                found.add(
                    "warning",
                    f"{table.get_name()}.{name}",
                    "a given feature " + ("with one value only" if values else "without a value"),
                )


def check_audiences(tables: Tables, config: Config, found: Problems) -> None:
    """Add the first mistake of each named audience."""
    for name, audience in config.audiences.items():
        try:
            check_filter(audience.filter, config, tables, where=f"audiences.{name}.filter")
        except InputError as error:
            fail(found, error)
