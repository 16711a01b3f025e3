"""Exposures: arms and their shares, windows, history, and what the outcome looks like."""

from __future__ import annotations

from datetime import UTC, datetime

from scipy.stats import chi2

from features.checks.base import examples, rows, share, timestamp
from features.config import CONTROL, Config
from features.errors import ConfigError, DataError
from features.problems import Level, Problems, fail
from features.tables import Tables, complete_until

# A difference from the planned shares this unlikely by chance is a defect of the assignment.
SRM_P = 0.001
FEW_ROWS = 100


def check_exposures(tables: Tables, config: Config, found: Problems) -> None:
    """Add every problem of the exposures."""
    if tables.exposures is None:
        return
    _check_arms(tables, config, found)
    _check_windows(tables, config, found)
    _check_history(tables, found)
    _check_repeats(tables, config, found)
    _check_outcome(tables, config, found)


def _check_arms(tables: Tables, config: Config, found: Problems) -> None:
    assert tables.exposures is not None  # the caller looked
    name = tables.exposures.get_name()
    cluster = config.experiment.cluster
    unit = cluster if cluster in tables.exposures.columns else "customer_id"
    counts: dict[str, dict[str, int]] = {}
    for campaign, arm, n in rows(
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
    twice = rows(
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
    for arm, planned_share in planned.items():
        expected = n * planned_share / whole
        statistic += (seen.get(arm, 0) - expected) ** 2 / expected
    p = float(chi2.sf(statistic, len(planned) - 1)) if len(planned) > 1 else 1.0
    shares = ", ".join(
        f"{arm} {100 * seen.get(arm, 0) / n:.2f}% for {100 * planned_share / whole:.2f}%"
        for arm, planned_share in planned.items()
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
    total = rows(tables, f"SELECT count(*) FROM {name}")[0][0]
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
        n = rows(
            tables,
            f"SELECT count(*) FROM {name} WHERE assigned_at + INTERVAL {days} DAY > "
            f"{timestamp(until)}",
        )[0][0]
        level: Level = "error" if n == total else "warning" if n > total / 2 else "note"
        text = f"{share(n, total)} windows of {days} days end after {until:%Y-%m-%d %H:%M}Z"
        found.add(level, "exposures.assigned_at", f"{text}: they have no outcome yet")
    n = rows(
        tables,
        f"SELECT count(*) FROM (SELECT assigned_at - lag(assigned_at) OVER (PARTITION BY "
        f"customer_id ORDER BY assigned_at) AS gap FROM {name}) WHERE gap < INTERVAL {days} DAY",
    )[0][0]
    if n:
        found.add(
            "note",
            "exposures.assigned_at",
            f"{share(n, total)} exposures begin while an earlier window of the same customer is "
            "open: effects are given later waves",
        )


def _check_history(tables: Tables, found: Problems) -> None:
    if tables.transactions is None or tables.exposures is None:
        return
    lines, name = tables.transactions.get_name(), tables.exposures.get_name()
    n, never, total, customers, who = rows(
        tables,
        f"WITH f AS (SELECT customer_id, min(transacted_at) AS first FROM {lines} GROUP BY 1) "
        f"SELECT count(*) FILTER (f.first IS NULL OR f.first >= e.assigned_at), "
        f"count(DISTINCT e.customer_id) FILTER (f.first IS NULL), count(*), "
        "count(DISTINCT e.customer_id), "
        f"list_sort(list(DISTINCT e.customer_id) FILTER (f.first IS NULL))[:5] "
        f"FROM {name} e LEFT JOIN f USING (customer_id)",
    )[0]
    if total and never == customers and _count(tables, lines):
        theirs = rows(tables, f"SELECT list_sort(list(DISTINCT customer_id))[:5] FROM {lines}")
        error = DataError(
            "exposures.customer_id",
            expected=f"customers of transactions, such as {', '.join(theirs[0][0])}",
            found=f"none of {customers} there",
            remedy=_alike(tables, lines, name)
            or "Map the column that holds the same ids, or add a table identities.",
            keys=who,
        )
        fail(found, error)
    elif n:
        level: Level = "warning" if n > total / 2 else "note"
        found.add(
            level,
            "exposures.customer_id",
            f"{share(n, total)} exposures without a transaction before them; {never} customers "
            f"have no transaction at all{examples(who)}"
            + (f". {_alike(tables, lines, name)}" if never > customers / 2 else ""),
        )


def _count(tables: Tables, name: str) -> int:
    return int(rows(tables, f"SELECT count(*) FROM {name}")[0][0])


def _alike(tables: Tables, lines: str, name: str) -> str:
    """A hint when ids would meet without case, leading zeros and prefixes."""
    for text, sql in (
        ("leading zeros", "ltrim(customer_id, '0')"),
        ("upper and lower case", "lower(customer_id)"),
        ("what stands before the digits", "regexp_replace(customer_id, '^[^0-9]+0*', '')"),
    ):
        both = f"SELECT {sql} AS k FROM {{}} WHERE {sql} <> ''"
        n, met = rows(
            tables,
            f"WITH a AS (SELECT DISTINCT k FROM ({both.format(name)})), "
            f"b AS (SELECT DISTINCT k FROM ({both.format(lines)})), "
            f"c AS (SELECT DISTINCT customer_id FROM {name} SEMI JOIN {lines} USING (customer_id)) "
            "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM a SEMI JOIN b USING (k)) "
            "- (SELECT count(*) FROM c)",
        )[0]
        if met > n / 2:
            return f"{met} more ids would meet but for {text}: write them alike in both tables."
    return ""


def _check_repeats(tables: Tables, config: Config, found: Problems) -> None:
    assert tables.exposures is not None  # the caller looked
    name = tables.exposures.get_name()
    n, who, total = rows(
        tables,
        "SELECT coalesce(sum(n - 1), 0), list(customer_id)[:5], (SELECT count(*) FROM "
        f"{name}) FROM (SELECT customer_id, count(*) AS n FROM {name} GROUP BY customer_id, "
        "campaign_id, assigned_at, arm HAVING count(*) > 1)",
    )[0]
    if n:
        found.add(
            "warning",
            "exposures",
            f"{share(int(n), total)} exposures repeat customer, campaign, moment and arm of "
            f"another{examples(who)}: delivered twice? Give each an exposure_id, so that the "
            "second is set aside",
        )
    later = rows(
        tables,
        f"SELECT count(*) FROM {name} WHERE assigned_at > {timestamp(datetime.now(UTC))}",
    )[0][0]
    if later:
        text = f"{share(later, total)} exposures lie in the future"
        found.add("warning", "exposures.assigned_at", text)


def _check_outcome(tables: Tables, config: Config, found: Problems) -> None:
    """An outcome that never varies teaches nothing."""
    assert tables.exposures is not None  # the caller looked
    name, column = tables.exposures.get_name(), config.outcome.column
    if config.outcome.kind == "column":
        if column not in tables.exposures.columns:
            return
        values, low = rows(
            tables, f'SELECT count(DISTINCT "{column}"), min("{column}") FROM {name}'
        )[0]
        if values == 1:
            error = DataError(
                f"exposures.{column}",
                expected="an outcome that differs between customers",
                found=f"{low:g} in every row",
                remedy="Mend outcome.column, or export the outcome again.",
            )
            fail(found, error)
        return
    until = complete_until(tables, config)
    if tables.transactions is None or until is None:
        return
    days, lines = config.outcome.window_days, tables.transactions.get_name()
    closed, bought = rows(
        tables,
        f"WITH e AS (SELECT customer_id, assigned_at FROM {name} WHERE assigned_at + INTERVAL "
        f"{days} DAY <= {timestamp(until)}) SELECT (SELECT count(*) FROM e), (SELECT count(*) "
        f"FROM e SEMI JOIN {lines} t ON t.customer_id = e.customer_id AND t.amount >= 0 AND "
        "t.transacted_at >= e.assigned_at AND t.transacted_at < e.assigned_at + "
        f"INTERVAL {days} DAY)",
    )[0]
    if closed and not bought:
        error = DataError(
            "exposures.assigned_at",
            expected=f"orders within {days} days of the assignments",
            found=f"none after any of {closed} exposures with a complete window",
            remedy="Check the ids, the times of both tables and source.complete_until.",
        )
        fail(found, error)
    elif closed:
        found.add(
            "note",
            "exposures",
            f"{share(bought, closed)} complete windows of {days} days have an order",
        )
