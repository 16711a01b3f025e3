"""`python -m features check`: everything that is wrong or noteworthy in a user's data, at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from scipy.stats import chi2

from features.config import CONTROL, Config
from features.contracts import EVENT_TYPES
from features.errors import ConfigError, InputError
from features.problems import Level, Problem, Problems, fail
from features.quarantine import quarantine_path
from features.sources import open_source
from features.tables import Tables, check_as_of, complete_until, time_range

# A difference from the planned shares this unlikely by chance is a defect of the assignment.
SRM_P = 0.001
FEW_ROWS = 100
FRESH_DAYS = 7
# An amount this many times the median line is likely in another currency or unit.
OUTLIER_TIMES = 1000
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


def run(config: Config) -> int:
    """Print every problem of the configured source; 2 if one of them is an error, else 0."""
    problems, counts = inspect(config)
    print(f"{config.name}: source {config.source.kind} {config.source.path or ''}".rstrip())
    for table, found in counts.items():
        print(f"  {table}: {found['read']} rows read, {found['kept']} kept")
        if found["read"] - found["kept"] - found.get("duplicate_dropped", 0):
            print(f"    the others are in {quarantine_path(config, table)}")
    for problem in problems:
        print(f"{problem.level:8}{problem.where}: {problem.text}")
    totals = {level: sum(p.level == level for p in problems) for level in LEVELS}
    print(", ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in totals.items()))
    return 2 if totals["error"] else 0


def check(config: Config) -> list[Problem]:
    """Every problem of the configured source, errors first, with counts and examples."""
    return inspect(config)[0]


def inspect(config: Config) -> tuple[list[Problem], Mapping[str, Mapping[str, int]]]:
    """The problems, errors first, and per table how many rows were read and kept."""
    found = Problems()
    counts: Mapping[str, Mapping[str, int]] = {}
    log = logging.getLogger("features.sources")
    handler = _Collector(found)
    log.addHandler(handler)
    try:
        tables = open_source(config).tables(found)
        counts = tables.counts
        for note in tables.notes:
            found.add("note", "source", note)
        _check_lines(tables, found)
        _check_freshness(tables, config, found)
        _check_events(tables, found)
        if tables.exposures is not None:
            _check_arms(tables, config, found)
            _check_windows(tables, config, found)
            _check_history(tables, found)
    except InputError as error:
        fail(found, error)
    finally:
        log.removeHandler(handler)
    return sorted(found.found, key=lambda problem: LEVELS.index(problem.level)), counts


class _Collector(logging.Handler):
    """Turns what the sources warn of in the log into notes."""

    def __init__(self, problems: Problems) -> None:
        super().__init__(logging.WARNING)
        self.problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        where, _, text = record.getMessage().partition(": ")
        self.problems.add("note", where, text)


def _rows(tables: Tables, sql: str) -> list[Any]:
    return list(tables.con.con.execute(sql).fetchall())


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f}%)" if whole else "0 of 0"


def _check_lines(tables: Tables, found: Problems) -> None:
    if tables.transactions is None:
        found.add("note", "transactions", "none: features come from given columns alone")
        return
    name = tables.transactions.get_name()
    if tables.identical_lines:
        found.add(
            "warning",
            "transactions",
            f"{tables.identical_lines} lines repeat an earlier line in every column and are kept; "
            "if they were loaded twice, set source.drop_duplicates",
        )
    dropped = tables.counts.get("transactions", {}).get("duplicate_dropped", 0)
    if dropped:
        found.add("note", "transactions", f"{dropped} identical lines dropped")
    n, limit, orders = _rows(
        tables,
        f"WITH m AS (SELECT {OUTLIER_TIMES} * median(amount) AS high FROM {name} WHERE amount > 0) "
        f"SELECT count(*), any_value(high), list(DISTINCT order_id)[:5] FROM {name}, m "
        f"WHERE abs(amount) > high",
    )[0]
    if n:
        found.add(
            "warning",
            "transactions.amount",
            f"{n} lines above {limit:.2f}, {OUTLIER_TIMES} times the median line: another currency "
            f"or unit? (for example orders {', '.join(sorted(orders))})",
        )


def _check_freshness(tables: Tables, config: Config, found: Problems) -> None:
    span = time_range(tables, ("transactions",))
    if span is None:
        return
    as_of = config.as_of()
    try:
        check_as_of(tables, as_of)
    except InputError as error:
        fail(found, error)
        return
    text = f"from {span[0]:%Y-%m-%d} to {span[1]:%Y-%m-%d}"
    if config.source.as_of != "now":
        found.add("note", "source.as_of", f"fixed at {as_of:%Y-%m-%d %H:%M}Z; transactions {text}")
    elif as_of - span[1] > timedelta(days=FRESH_DAYS):
        days = (as_of - span[1]).days
        found.add(
            "warning",
            "transactions.transacted_at",
            f"the newest line is {days} days old; features of today will look like {days} days "
            "without a purchase (set source.as_of for old data)",
        )
    assert tables.transactions is not None  # it has a time range
    later = _rows(
        tables,
        f"SELECT count(*) FROM {tables.transactions.get_name()} "
        f"WHERE transacted_at > TIMESTAMP '{_naive(datetime.now(UTC))}'",
    )[0][0]
    if later:
        found.add("warning", "transactions.transacted_at", f"{later} lines lie in the future")


def _check_events(tables: Tables, found: Problems) -> None:
    if tables.events is None:
        return
    known = ", ".join(f"'{name}'" for name in EVENT_TYPES)
    rows = _rows(
        tables,
        f"SELECT type, count(*) FROM {tables.events.get_name()} WHERE type NOT IN ({known}) "
        "GROUP BY 1 ORDER BY 2 DESC LIMIT 5",
    )
    if rows:
        text = ", ".join(f"{name} ({n} rows)" for name, n in rows)
        found.add("warning", "events.type", f"types that nothing reads: {text}")


def _check_arms(tables: Tables, config: Config, found: Problems) -> None:
    assert tables.exposures is not None  # the caller looked
    name = tables.exposures.get_name()
    cluster = config.experiment.cluster
    unit = cluster if cluster in tables.exposures.columns else "customer_id"
    counts: dict[str, dict[str, int]] = {}
    for campaign, arm, n in _rows(
        tables,
        f'SELECT campaign_id, arm, count(DISTINCT "{unit}") FROM {name} '
        "GROUP BY 1, 2 ORDER BY 1, 2",
    ):
        counts.setdefault(campaign, {})[arm] = n
    totals: dict[str, int] = {}
    for arms in counts.values():
        for arm, n in arms.items():
            totals[arm] = totals.get(arm, 0) + n
    for arm in (CONTROL, *config.arms):
        n = totals.get(arm, 0)
        if n < FEW_ROWS and (n or arm != CONTROL):
            text = f"{n} rows, too few to learn from" if n else "no rows: nothing is known of it"
            found.add("warning", f"exposures.arm {arm}", text)
    twice = _rows(
        tables,
        f"SELECT count(*), list(customer_id)[:5] FROM (SELECT customer_id, campaign_id, "
        f"assigned_at FROM {name} GROUP BY ALL HAVING count(DISTINCT arm) > 1)",
    )[0]
    if twice[0]:
        found.add(
            "warning",
            "exposures.arm",
            f"{twice[0]} customers were assigned to several arms of one campaign at one moment "
            f"(for example {', '.join(sorted(twice[1]))})",
        )
    for where, seen, plan in _plans(counts, totals, config, found):
        _check_ratio(where, seen, plan, config, found)


def _plans(
    counts: dict[str, dict[str, int]],
    totals: dict[str, int],
    config: Config,
    found: Problems,
) -> list[tuple[str, dict[str, int], dict[str, float]]]:
    """What to compare: (where, units per arm, planned share per arm)."""
    plan = config.experiment.assignment
    if not plan:
        shown = ", ".join(f"{arm} {n}" for arm, n in sorted(totals.items()))
        found.add("note", "exposures.arm", f"{shown}; no experiment.assignment to compare with")
        return []
    plans = []
    shared: dict[str, float] = {}
    for key, value in plan.items():
        if isinstance(value, dict):
            if key in counts:
                plans.append((f"campaign {key}", counts[key], value))
            else:
                known = ", ".join(list(counts)[:5])
                error = ConfigError(
                    f"experiment.assignment.{key}",
                    expected="a campaign of the exposures",
                    found=f"none of that name among {known}",
                    remedy="Mend the campaign id.",
                )
                fail(found, error)
        else:
            shared[key] = value
    if shared:
        plans.append(("all campaigns", totals, shared))
    return plans


def _check_ratio(
    where: str, seen: dict[str, int], plan: dict[str, float], config: Config, found: Problems
) -> None:
    """Pearson's chi-square test of the planned shares on the units of each arm."""
    planned = {arm: share for arm, share in plan.items() if share > 0}
    strange = sorted(arm for arm in seen if arm not in planned)
    if strange:
        fail(
            found,
            ConfigError(
                "experiment.assignment",
                expected=f"a probability for every arm of {where}",
                found=f"none for {', '.join(strange)}",
                remedy="Add them, or mend the rows.",
            ),
        )
        return
    n, whole = sum(seen.values()), sum(planned.values())
    statistic = 0.0
    for arm, share in planned.items():
        expected = n * share / whole
        statistic += (seen.get(arm, 0) - expected) ** 2 / expected
    p = float(chi2.sf(statistic, len(planned) - 1)) if len(planned) > 1 else 1.0
    shares = ", ".join(
        f"{arm} {100 * seen.get(arm, 0) / n:.2f}% for {100 * share / whole:.2f}%"
        for arm, share in planned.items()
    )
    text = f"{where}: {shares} (sample ratio test p = {p:.2g}, n = {n})"
    if p >= SRM_P:
        found.add("note", "exposures.arm", text)
    else:
        level: Level = "error" if config.experiment.randomised else "warning"
        found.add(level, "exposures.arm", f"not assigned as planned; {text}")


def _check_windows(tables: Tables, config: Config, found: Problems) -> None:
    assert tables.exposures is not None  # the caller looked
    name, days = tables.exposures.get_name(), config.outcome.window_days
    total = _rows(tables, f"SELECT count(*) FROM {name}")[0][0]
    if config.outcome.kind != "column":
        until = complete_until(tables, config)
        if until is None:
            error = ConfigError(
                "outcome.kind",
                expected="column, because there are no transactions to measure an outcome with",
                found=config.outcome.kind,
                remedy="Set outcome.kind to column and outcome.column to the given outcome.",
            )
            fail(found, error)
            return
        n = _rows(
            tables,
            f"SELECT count(*) FROM {name} WHERE assigned_at + INTERVAL {days} DAY > "
            f"TIMESTAMP '{_naive(until)}'",
        )[0][0]
        level: Level = "error" if n == total else "warning" if n > total / 2 else "note"
        text = f"{_share(n, total)} windows of {days} days end after {until:%Y-%m-%d %H:%M}Z"
        found.add(level, "exposures.assigned_at", f"{text}: they have no outcome yet")
    n = _rows(
        tables,
        f"SELECT count(*) FROM (SELECT assigned_at - lag(assigned_at) OVER (PARTITION BY "
        f"customer_id ORDER BY assigned_at) AS gap FROM {name}) WHERE gap < INTERVAL {days} DAY",
    )[0][0]
    if n:
        found.add(
            "note",
            "exposures.assigned_at",
            f"{_share(n, total)} exposures begin while an earlier window of the same customer is "
            "open: effects are given later waves",
        )


def _check_history(tables: Tables, found: Problems) -> None:
    if tables.transactions is None or tables.exposures is None:
        return
    lines, rows = tables.transactions.get_name(), tables.exposures.get_name()
    n, never, total, who = _rows(
        tables,
        f"WITH f AS (SELECT customer_id, min(transacted_at) AS first FROM {lines} GROUP BY 1) "
        f"SELECT count(*) FILTER (f.first IS NULL OR f.first >= e.assigned_at), "
        f"count(DISTINCT e.customer_id) FILTER (f.first IS NULL), count(*), "
        f"list_sort(list(DISTINCT e.customer_id) FILTER (f.first IS NULL))[:5] "
        f"FROM {rows} e LEFT JOIN f USING (customer_id)",
    )[0]
    if n:
        level: Level = "warning" if n > total / 2 else "note"
        text = f"{_share(n, total)} exposures without a transaction before them"
        examples = f" (for example {', '.join(who)})" if who else ""
        found.add(
            level,
            "exposures.customer_id",
            f"{text}; {never} customers have no transaction at all{examples}",
        )


def _naive(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")
