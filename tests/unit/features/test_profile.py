"""The profile of a source against numbers counted by hand, and the page that shows it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.config import Config
from features.problems import Problem
from features.profile import Gap, SourceProfile, profile_source
from features.profile_page import bars, page
from tests.unit.features.conftest import make_config, make_tables

AS_OF = "2025-03-11"


def settings() -> Config:
    return make_config(source={"kind": "files", "path": "a <b> & c", "as_of": AS_OF})


def lines(rows: list[tuple[str, str, str, float]], **more: Any) -> pd.DataFrame:
    columns = ["customer_id", "order_id", "transacted_at", "amount"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(discount=0.0, quantity=np.where(frame.amount < 0, -1.0, 1.0), **more)


SHOP = [
    ("a", "1", "2025-03-01T10:00", 10.0),
    ("a", "1", "2025-03-01T10:00", 30.0),
    ("b", "2", "2025-03-02T00:00", 20.0),
    ("b", "3", "2025-03-02T00:00", 20.0),  # the same order under another id
    ("a", "4", "2025-03-04T23:59", -5.0),
    ("c", "5", "2025-03-10T12:00", 40.0),
]


def profile(rows: list[tuple[str, str, str, float]], **tables: pd.DataFrame) -> SourceProfile:
    return profile_source(make_tables(transactions=lines(rows), **tables), settings())


def test_rows_range_age_and_gaps() -> None:
    table = profile(SHOP).tables["transactions"]
    assert (table.rows, table.customers) == (6, 3)
    assert table.first == datetime(2025, 3, 1, 10)
    assert table.last == datetime(2025, 3, 10, 12)
    assert table.age_days == pytest.approx(0.5)
    assert table.days == {
        date(2025, 3, 1): 2,
        date(2025, 3, 2): 2,
        date(2025, 3, 4): 1,
        date(2025, 3, 10): 1,
    }
    assert table.gaps == (
        Gap(date(2025, 3, 5), date(2025, 3, 9)),
        Gap(date(2025, 3, 3), date(2025, 3, 3)),
    )
    assert (table.gap_days, table.span_days) == (6, 10)
    assert sum(table.days.values()) == table.rows
    assert table.nulls["category"] == 1
    assert table.nulls["amount"] == 0


def test_money_returns_and_repeated_orders() -> None:
    found = profile(SHOP)
    money = found.money
    assert money is not None
    assert (money.lines, money.returns) == (6, 1)
    assert money.purchased == pytest.approx(120)
    assert money.returned == pytest.approx(5)
    assert (money.orders, money.repeated_orders) == (5, 1)
    assert money.quantiles[0.5] == 20
    assert (money.quantiles[0.0], money.quantiles[1.0]) == (10, 40)
    assert found.metrics()["data_return_line_share"] == pytest.approx(1 / 6)
    assert found.metrics()["data_repeated_orders"] == 1


def test_outliers_are_robust_and_exactly_the_planted_ones() -> None:
    """A tenth of wrong amounts does not hide itself; a heavy but honest tail is no outlier."""
    rng = np.random.default_rng(2)
    amounts = rng.lognormal(3, 0.6, 2000).round(2)
    amounts[:200] *= 1000
    rows = [(f"c{i}", f"o{i}", "2025-03-01T10:00", float(a)) for i, a in enumerate(amounts)]
    money = profile(rows).money
    assert money is not None
    assert money.outliers == 200
    assert money.high is not None
    assert amounts[200:].max() < money.high < amounts[:200].min()
    assert set(money.examples) <= {f"o{i}" for i in range(200)}
    honest = profile(rows[200:]).money
    assert honest is not None
    assert honest.outliers == 0


def test_one_price_has_no_outlier() -> None:
    money = profile([(f"c{i}", f"o{i}", "2025-03-01", 9.99) for i in range(50)]).money
    assert money is not None
    assert (money.outliers, money.examples) == (0, ())


def test_other_tables() -> None:
    waves = pd.DataFrame(
        {
            "customer_id": ["a", "b", "b"],
            "campaign_id": "k",
            "assigned_at": ["2025-03-01", "2025-03-01", "2025-03-08"],
            "arm": ["control", "c5", "c5"],
        }
    )
    customers = pd.DataFrame({"customer_id": ["a", "b"], "region": ["x", None]})
    found = profile(SHOP, exposures=waves, customers=customers)
    assert found.arms == {"c5": 2, "control": 1}
    assert found.tables["exposures"].in_waves
    assert not found.tables["customers"].days
    assert found.tables["customers"].nulls["region"] == 0.5
    assert found.metrics()["data_customers_null_share_region"] == 0.5


def test_an_empty_table_is_a_profile_too() -> None:
    found = profile([])
    assert found.money is None
    assert found.tables["transactions"].rows == 0
    assert "Nothing: no error" in page(found, [], settings())


class _Balanced(HTMLParser):
    """Fails on a tag that is not closed, or on anything fetched from elsewhere."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_escapes() -> None:
    rows = [
        *SHOP,
        ("a", "9", "2025-03-03", 10.0),
        ("a", "<script>alert(1)</script>", "2025-03-10T12:00", 1e9),
    ]
    problems = [
        Problem("warning", "transactions.amount", "1 lines above <limit>"),
        Problem("note", "source", "a note"),
    ]
    text = page(profile(rows), problems, settings())
    assert "<script>" not in text
    assert "a <b> & c" not in text
    parser = _Balanced()
    parser.feed(text)
    assert parser.open == []
    for shown in (
        "a <b> & c",
        "What needs attention",
        "1 lines above <limit>",
        "2025-03-05 to 2025-03-09 (5 days)",
        "as of 2025-03-11 00:00 UTC",
        "<script>alert(1)</script>",
    ):
        assert shown in parser.text


def test_bars_are_as_high_as_their_days() -> None:
    drawn = bars({date(2025, 1, 1): 10, date(2025, 1, 2): 5, date(2025, 1, 4): 10})
    assert drawn.count("v120.00h") == 2
    assert drawn.count("v60.00h") == 1
    assert drawn.count("v5h") == 1  # the day without a row
    assert "v5h" not in bars({date(2025, 1, 1): 1, date(2025, 1, 4): 1}, gaps=False)


def test_as_of_is_the_configurations() -> None:
    assert profile(SHOP).as_of == datetime(2025, 3, 11, tzinfo=UTC)
