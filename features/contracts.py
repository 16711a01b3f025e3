"""The canonical tables: which columns each has, of which type, and what a good value is.

Declared once, as data. The sources, the quarantine, `features check` and the documentation read
the columns from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["key", "text", "time", "number", "boolean", "list", "json"]

EVENT_TYPES = ("sent", "opened", "clicked", "redeemed", "ordered", "unsubscribed", "visited")

# DuckDB types of the canonical columns. A list is text joined with commas, json is its text.
SQL_TYPES: dict[Kind, str] = {
    "key": "VARCHAR",
    "text": "VARCHAR",
    "time": "TIMESTAMP",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "list": "VARCHAR",
    "json": "VARCHAR",
}

NOUNS: dict[Kind, str] = {
    "key": "ids",
    "text": "text",
    "time": "UTC times in ISO 8601",
    "number": "finite numbers",
    "boolean": "true or false",
    "list": "text separated by commas",
    "json": "a mapping",
}


@dataclass(frozen=True)
class Column:
    """One canonical column.

    `kind` key is text that must match the id pattern. `default` is SQL over canonical columns,
    taken where a row has no value. `rules` are (reason, SQL condition over
    canonical columns): a row for which a condition is true goes to quarantine with that reason.
    """

    name: str
    kind: Kind
    meaning: str
    required: bool = False
    default: str | None = None
    rules: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TableContract:
    """One canonical table. `unique` names the column that may stand only once."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    unique: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.required)

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


_SOURCE = Column("source", "text", "system that the customer id comes from, for identities")

TRANSACTIONS = TableContract(
    "transactions",
    "one row per order line",
    (
        Column("customer_id", "key", "who bought", required=True),
        Column("order_id", "text", "the order that the line belongs to", required=True),
        Column("transacted_at", "time", "moment of the purchase or return", required=True),
        Column("amount", "number", "net paid; negative for a return", required=True),
        Column(
            "discount",
            "number",
            "currency taken off the line",
            default="0",
            rules=(("negative_discount", "discount < 0"),),
        ),
        Column("product_id", "text", "what was bought"),
        Column("category", "text", "category of the product"),
        Column(
            "quantity",
            "number",
            "units; without it 1, or -1 for a negative amount",
            default="CASE WHEN amount < 0 THEN -1 ELSE 1 END",
            rules=(
                ("zero_quantity", "quantity = 0"),
                ("negative_quantity", "quantity < 0 AND amount > 0"),
            ),
        ),
        Column("channel", "text", "where the order was placed"),
        Column("store_id", "text", "shop of the order"),
        Column("payment_method", "text", "how it was paid"),
        Column("coupon_id", "text", "coupon used on the order"),
        Column("line_id", "text", "id of the line; with it, identical rows are dropped"),
        _SOURCE,
    ),
)

EXPOSURES = TableContract(
    "exposures",
    "one row per assignment of a customer to an arm",
    (
        Column("exposure_id", "text", "id of the assignment; without it e<row number>"),
        Column("customer_id", "key", "who was assigned", required=True),
        Column("campaign_id", "key", "the campaign", required=True),
        Column("assigned_at", "time", "moment of the assignment", required=True),
        Column("arm", "text", "control or a coupon id of the configuration", required=True),
        Column(
            "assignment_prob",
            "number",
            "probability with which this arm was drawn",
            rules=(("bad_probability", "NOT (assignment_prob > 0 AND assignment_prob <= 1)"),),
        ),
        Column(
            "cost",
            "number",
            "what the exposure came to cost, coupon and contact",
            rules=(("negative_cost", "cost < 0"),),
        ),
        Column("channel", "text", "channel of the message"),
        Column("variant", "text", "variant of the message"),
        Column("assignment_probs", "json", "arm -> probability, given not held out"),
        Column("holdout_kind", "text", "none, campaign or global"),
        Column("window_id", "text", "decision window"),
        Column("decision_id", "text", "decision that led to the exposure"),
        _SOURCE,
    ),
    unique="exposure_id",
)

CUSTOMERS = TableContract(
    "customers",
    "one row per customer",
    (
        Column("customer_id", "key", "who", required=True),
        Column(
            "birth_month",
            "number",
            "1 to 12",
            rules=(("bad_month", "birth_month NOT IN (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)"),),
        ),
        Column("gender", "text", "as given"),
        Column("region", "text", "as given"),
        Column("joined_at", "time", "moment of registration"),
        Column("marketing_consent", "boolean", "consent to marketing"),
        Column("consented_channels", "list", "channels consented to"),
        _SOURCE,
    ),
    unique="customer_id",
)

EVENTS = TableContract(
    "events",
    "one row per contact event",
    (
        Column("event_id", "text", "id of the event; without it v<row number>"),
        Column("customer_id", "key", "who", required=True),
        Column("campaign_id", "text", "the campaign"),
        Column("type", "text", ", ".join(EVENT_TYPES), required=True),
        Column("occurred_at", "time", "moment of the event", required=True),
        Column("coupon_id", "text", "coupon of the event"),
        Column("value", "number", "money or amount of the event"),
        _SOURCE,
    ),
    unique="event_id",
)

IDENTITIES = TableContract(
    "identities",
    "one row per id that another system uses for a customer",
    (
        Column("source", "text", "the other system", required=True),
        Column("source_customer_id", "text", "its id of the customer", required=True),
        Column("customer_id", "key", "the customer", required=True),
    ),
)

CONTRACTS: dict[str, TableContract] = {
    table.name: table for table in (TRANSACTIONS, EXPOSURES, CUSTOMERS, EVENTS, IDENTITIES)
}

REASONS: dict[str, str] = {
    "bad_line": "a line that is not valid CSV: wrong number of fields, quotes or encoding",
    "missing_key": "a required id is missing",
    "missing_time": "a required time is missing",
    "missing_number": "a required number is missing",
    "bad_id": "an id that does not match the id pattern",
    "bad_time": "a time that cannot be read, or outside of 1970 to 2262",
    "bad_number": "a number that cannot be read",
    "infinite_number": "an infinite number or NaN",
    "bad_boolean": "neither true nor false",
    "unknown_arm": "an arm that is neither control nor a coupon id of the configuration",
    "duplicate_id": "an id that stood in an earlier row",
    **{
        reason: f"a row with {condition}"
        for table in (TRANSACTIONS, EXPOSURES, CUSTOMERS, EVENTS)
        for column in table.columns
        for reason, condition in column.rules
    },
}
