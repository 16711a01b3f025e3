"""Order lines: repeats, money, who bought, and when."""

from __future__ import annotations

from features.checks.base import examples, rows, share, timestamp
from features.config import Config
from features.problems import Level, Problems
from features.registry import CATALOGUE, feature_names
from features.tables import Tables

# An amount this many times the median line is likely in another currency or unit.
OUTLIER_TIMES = 1000
# A group of lines whose median is this many times that of the others, likewise.
UNIT_TIMES = 20
# Groups smaller than this say nothing about their median.
FEW_LINES = 30
MANY_RETURNS = 0.3
# One customer with more of all lines than this is rather a stand-in for everybody without an id.
CROWD_SHARE, CROWD_TIMES = 0.02, 50
STAND_INS = ("0", "-1", "null", "none", "nan", "n.a", "na", "guest", "anonymous", "unknown", "test")
NIGHT_SHARE = 0.25
GAP_DAYS = 7
# What tells nothing when a column is empty: prefixes of feature names.
COLUMN_FEATURES: dict[str, tuple[str, ...]] = {
    "product_id": ("novelty_share", "new_launch_share", "staple_share"),
    "category": ("category_favourite", "price_percentile"),
    "channel": ("channel_favourite",),
    "payment_method": ("mobile_payment_share",),
    "coupon_id": ("kind_share", "kind_favourite"),
}


def check_lines(tables: Tables, config: Config, found: Problems) -> None:
    """Add every problem of the order lines."""
    if tables.transactions is None:
        found.add("note", "transactions", "none: features come from given columns alone")
        return
    name = tables.transactions.get_name()
    total = int(rows(tables, f"SELECT count(*) FROM {name}")[0][0])
    if not total:
        return
    _repeats(tables, name, found)
    _amounts(tables, name, total, found)
    _units(tables, name, found)
    _who(tables, name, total, found)
    _hours(tables, name, total, config, found)
    _gaps(tables, name, config, found)
    _empty_columns(tables, name, total, config, found)
    _coupons(tables, name, config, found)


def _repeats(tables: Tables, name: str, found: Problems) -> None:
    dropped = tables.counts.get("transactions", {}).get("duplicate_dropped", 0)
    if dropped:
        found.add("note", "transactions", f"{dropped} identical lines dropped")
    if not tables.identical_lines:
        return
    found.add(
        "warning",
        "transactions",
        f"{tables.identical_lines} lines repeat an earlier line in every column and are kept; "
        "if they were loaded twice, set source.drop_duplicates",
    )
    n, first, last, lines = rows(
        tables,
        f"WITH l AS (SELECT CAST(transacted_at AS DATE) AS day, hash(t) AS line FROM {name} t), "
        "d AS (SELECT day, count(*) AS n, count(DISTINCT line) AS unlike FROM l GROUP BY 1) "
        "SELECT count(*), min(day), max(day), sum(n) FROM d WHERE n >= 10 AND n >= 2 * unlike",
    )[0]
    if n:
        found.add(
            "warning",
            "transactions.transacted_at",
            f"on {n} days from {first} to {last} every line stands twice ({lines} lines): these "
            "days were delivered twice. Take one delivery away, or set source.drop_duplicates",
        )


def _amounts(tables: Tables, name: str, total: int, found: Problems) -> None:
    n, limit, orders = rows(
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
            f"or unit?{examples(orders)}",
        )
    returns, purchases, zero, rates, discounted, over, fractions = rows(
        tables,
        "SELECT count(*) FILTER (amount < 0 OR quantity < 0), "
        "count(*) FILTER (amount >= 0 AND quantity > 0), count(*) FILTER (amount = 0), "
        "count(*) FILTER (discount > 0 AND discount <= 1), count(*) FILTER (discount > 0), "
        "count(*) FILTER (discount > 0 AND amount > 0 AND discount > 9 * amount), "
        f"count(*) FILTER (quantity <> trunc(quantity)) FROM {name}",
    )[0]
    if not purchases:
        found.add(
            "error",
            "transactions.amount",
            f"all {total} lines are returns: amount is the net paid, positive for a purchase and "
            "negative for a return. Turn the sign",
        )
    elif returns > MANY_RETURNS * total:
        found.add(
            "warning",
            "transactions.amount",
            f"{share(returns, total)} lines are returns (amount or quantity below 0); is the sign "
            "right?",
        )
    if zero > total / 2:
        found.add("warning", "transactions.amount", f"{share(zero, total)} lines cost nothing")
    if discounted >= FEW_LINES and rates == discounted:
        median = rows(tables, f"SELECT median(amount) FROM {name} WHERE amount > 0")[0][0]
        if median and median > 5:
            found.add(
                "warning",
                "transactions.discount",
                f"all {discounted} discounts lie between 0 and 1 while the median line costs "
                f"{median:.2f}: a rate? discount is the currency taken off the line",
            )
    if over > max(FEW_LINES, discounted / 100):
        found.add(
            "warning",
            "transactions.discount",
            f"{share(over, discounted)} discounts are more than 90% of the list price: amount must "
            "be what was paid after the discount",
        )
    if fractions > total / 2:
        found.add(
            "warning",
            "transactions.quantity",
            f"{share(fractions, total)} quantities are not whole numbers: are amount and quantity "
            "in each other's place? (goods by weight are fine)",
        )


def _units(tables: Tables, name: str, found: Problems) -> None:
    """Months, channels and shops whose lines cost a multiple of the others'."""
    groups = {
        "transacted_at": ("strftime(transacted_at, '%Y-%m')", "in the month"),
        "channel": ("channel", "of the channel"),
        "store_id": ("store_id", "of the shop"),
    }
    for column, (key, noun) in groups.items():
        strange = rows(
            tables,
            f"WITH g AS (SELECT {key} AS key, count(*) AS n, median(amount) AS middle FROM {name} "
            f"WHERE amount > 0 AND {key} IS NOT NULL GROUP BY 1 HAVING count(*) >= {FEW_LINES}), "
            "m AS (SELECT median(middle) AS usual FROM g) SELECT key, n, middle, usual FROM g, m "
            f"WHERE middle > {UNIT_TIMES} * usual OR usual > {UNIT_TIMES} * middle ORDER BY key",
        )
        if strange:
            shown = "; ".join(
                f"{noun} {k} the median of {n} lines is {v:.2f}, elsewhere {u:.2f}"
                for k, n, v, u in strange[:3]
            )
            found.add(
                "warning",
                "transactions.amount",
                f"{len(strange)} groups by {column} are in another unit, cents perhaps: {shown}",
            )


def _who(tables: Tables, name: str, total: int, found: Problems) -> None:
    # Least and greatest instead of distinct counts per group, which take ten times as long.
    customers, several = rows(
        tables,
        "SELECT count(*), count(*) FILTER (low <> high) FROM (SELECT min(order_id) AS low, "
        f"max(order_id) AS high FROM {name} GROUP BY customer_id)",
    )[0]
    orders, shared, which = rows(
        tables,
        "SELECT count(*), count(*) FILTER (low <> high), min(order_id, 5) FILTER (low <> high) "
        "FROM (SELECT order_id, min(customer_id) AS low, max(customer_id) AS high "
        f"FROM {name} GROUP BY 1)",
    )[0]
    if customers > orders and not several:
        found.add(
            "error",
            "transactions.order_id",
            f"{customers} customers but only {orders} orders: are customer_id and order_id in each "
            "other's place? Map them with source.columns.transactions",
        )
    elif shared:
        found.add(
            "warning" if shared > orders / 100 else "note",
            "transactions.order_id",
            f"{share(shared, orders)} order ids belong to several customers{examples(which)}; each "
            "customer's part counts as an order of its own",
        )
    spread = rows(
        tables,
        f"WITH c AS (SELECT customer_id, count(*) AS n FROM {name} GROUP BY 1), "
        "m AS (SELECT median(n) AS usual FROM c) SELECT customer_id, n FROM c, m WHERE "
        f"n > {CROWD_SHARE} * {total} AND n > {CROWD_TIMES} * usual ORDER BY n DESC LIMIT 5",
    )
    stand_ins = ", ".join(f"'{word}'" for word in STAND_INS)
    spread += [
        row
        for row in rows(
            tables,
            f"SELECT customer_id, count(*) FROM {name} WHERE lower(customer_id) IN ({stand_ins}) "
            "GROUP BY 1 HAVING count(DISTINCT order_id) > 1 ORDER BY 2 DESC LIMIT 5",
        )
        if row not in spread
    ]
    if spread:
        shown = ", ".join(f"{who}: {share(n, total)} lines" for who, n in spread)
        found.add(
            "warning",
            "transactions.customer_id",
            f"ids that look like a stand-in for guests or tests ({shown}); leave the id of such "
            "rows empty, so that they are not taken for one customer",
        )


def _hours(tables: Tables, name: str, total: int, config: Config, found: Problems) -> None:
    zone = config.timezone.replace("'", "''")
    # Offsets of zones are whole quarters of an hour, so the quarter says the local hour.
    dates, night = rows(
        tables,
        "WITH q AS (SELECT CAST(floor(epoch(transacted_at) / 900) AS BIGINT) AS quarter, "
        "count(*) AS n, count(*) FILTER (transacted_at = date_trunc('day', transacted_at)) AS "
        f"dates FROM {name} GROUP BY 1) SELECT CAST(sum(dates) AS BIGINT), CAST(coalesce(sum(n) "
        "FILTER (hour(to_timestamp(quarter * 900) AT TIME ZONE "
        f"'{zone}') BETWEEN 1 AND 5), 0) AS BIGINT) FROM q",
    )[0]
    moment, most = rows(
        tables,
        f"SELECT transacted_at, count(*) FROM {name} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1",
    )[0]
    if dates == total:
        found.add(
            "note",
            "transactions.transacted_at",
            "all times are midnight: dates without a time of day; features of hours mean nothing",
        )
        _same_day(tables, name, found)
    elif total >= FEW_LINES and night > NIGHT_SHARE * total:
        found.add(
            "warning",
            "transactions.transacted_at",
            f"{share(night, total)} lines fall between 1 and 6 o'clock in {config.timezone}: is "
            "timezone right, and are the times UTC?",
        )
    if total >= FEW_LINES and most > total / 10 and dates != total:
        found.add(
            "warning",
            "transactions.transacted_at",
            f"{share(most, total)} lines have the same moment {moment}: a stand-in for a missing "
            "time?",
        )
    old = rows(tables, f"SELECT count(*) FROM {name} WHERE transacted_at < '1990-01-01'")[0][0]
    if old:
        found.add(
            "warning",
            "transactions.transacted_at",
            f"{share(old, total)} lines are of before 1990: a stand-in for a missing time?",
        )


def _same_day(tables: Tables, name: str, found: Problems) -> None:
    """Midnight is before an assignment of that day, so its purchases count as history."""
    if tables.exposures is None:
        return
    n = rows(
        tables,
        f"SELECT count(*) FROM {tables.exposures.get_name()} e WHERE assigned_at > "
        f"date_trunc('day', assigned_at) AND EXISTS (SELECT 1 FROM {name} t WHERE "
        "t.customer_id = e.customer_id AND t.transacted_at = date_trunc('day', e.assigned_at))",
    )[0][0]
    if n:
        found.add(
            "warning",
            "transactions.transacted_at",
            f"{n} exposures are assigned within a day on which the customer bought: without a time "
            "of day such a purchase counts as history although it may follow the offer. Give "
            "transactions their time, or set assigned_at to the start of the day",
        )


def _gaps(tables: Tables, name: str, config: Config, found: Problems) -> None:
    moment = timestamp(config.as_of())
    count, longest, first, last, span = rows(
        tables,
        f"WITH d AS (SELECT DISTINCT CAST(transacted_at AS DATE) AS day FROM {name} "
        f"WHERE transacted_at < {moment}), g AS (SELECT day, lag(day) OVER (ORDER BY day) AS "
        "before FROM d) SELECT sum(day - before - 1), max(day - before - 1), "
        "arg_max(before, day - before) + 1, arg_max(day, day - before) - 1, "
        "max(day) - min(day) + 1 FROM g",
    )[0]
    # Where days without a line are the rule, a gap says nothing.
    if longest and longest >= GAP_DAYS and count < span / 2:
        found.add(
            "warning",
            "transactions.transacted_at",
            f"{share(int(count), int(span))} days have no line at all; the longest gap is from "
            f"{first} to {last} ({longest} days). Is a delivery missing?",
        )


def _empty_columns(tables: Tables, name: str, total: int, config: Config, found: Problems) -> None:
    counted = ", ".join(f"count({column})" for column in COLUMN_FEATURES)
    filled = rows(tables, f"SELECT {counted} FROM {name}")[0]
    wanted = [n for n in feature_names(config) if n in CATALOGUE]
    for (column, prefixes), n in zip(COLUMN_FEATURES.items(), filled, strict=True):
        touched = [w for w in wanted if w.startswith(prefixes)]
        if not touched or (column == "coupon_id" and n):
            continue
        if not n:
            text = f"no values, so these features have nothing to go by: {', '.join(touched)}"
            found.add("note", f"transactions.{column}", text)
        elif n < total / 2:
            level: Level = "note"
            text = f"{share(total - n, total)} lines have none; it feeds {', '.join(touched)}"
            found.add(level, f"transactions.{column}", text)


def _coupons(tables: Tables, name: str, config: Config, found: Problems) -> None:
    known = ", ".join("'" + arm.replace("'", "''") + "'" for arm in config.arms) or "''"
    used, unknown, which = rows(
        tables,
        "SELECT count(*), count(*) FILTER (coupon_id NOT IN "
        f"({known})), list(DISTINCT coupon_id) FILTER (coupon_id NOT IN ({known})) "
        f"FROM {name} WHERE coupon_id IS NOT NULL",
    )[0]
    if unknown:
        found.add(
            "warning" if unknown == used else "note",
            "transactions.coupon_id",
            f"{share(unknown, used)} lines with a coupon bear one that offers does not name"
            f"{examples(which)}; features of coupon kinds leave them out. Add them to offers with "
            "active: false",
        )
