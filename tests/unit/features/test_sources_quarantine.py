"""Bad rows never vanish and never crash: they are counted by reason and kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.config import Config, validate
from features.errors import ConfigError, DataError
from features.sources import open_source
from features.tables import Tables

LINE = {
    "customer_id": "A",
    "order_id": "o1",
    "transacted_at": "2025-03-01T10:00:00Z",
    "amount": "10.5",
    "discount": "0",
    "quantity": "1",
}
EXPOSURE = {
    "customer_id": "A",
    "campaign_id": "k",
    "assigned_at": "2025-04-01",
    "arm": "control",
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()
    return tmp_path


def config(extra: dict[str, Any] | None = None, **source: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "shop",
        "source": {"kind": "files", "path": "t", "max_bad_share": 1.0, **source},
        "outcome": {"kind": "conversion"},
        "offers": [{"coupon_id": "c5", "kind": "message"}],
    }
    return validate({**raw, **(extra or {})})


def save(table: str, rows: list[dict[str, Any]]) -> None:
    pd.DataFrame(rows).to_csv(f"t/{table}.csv", index=False)


def load(table: str, rows: list[dict[str, Any]], settings: Config | None = None) -> Tables:
    save(table, rows)
    return open_source(settings or config()).tables()


def quarantined(table: str) -> pd.DataFrame:
    return pd.read_parquet(f"data/quarantine/shop/{table}.parquet")


@pytest.mark.parametrize(
    ("change", "reason", "column"),
    [
        ({"customer_id": ""}, "missing_key", "customer_id"),
        ({"customer_id": "  "}, "missing_key", "customer_id"),
        ({"order_id": ""}, "missing_key", "order_id"),
        ({"transacted_at": ""}, "missing_time", "transacted_at"),
        ({"amount": ""}, "missing_number", "amount"),
        ({"customer_id": "-5"}, "bad_id", "customer_id"),
        ({"customer_id": "a b"}, "bad_id", "customer_id"),
        ({"customer_id": "A\n"}, "bad_id", "customer_id"),
        ({"customer_id": "x" * 65}, "bad_id", "customer_id"),
        ({"customer_id": "客户"}, "bad_id", "customer_id"),
        ({"transacted_at": "yesterday"}, "bad_time", "transacted_at"),
        ({"transacted_at": "2025-02-30"}, "bad_time", "transacted_at"),
        ({"transacted_at": "1969-12-31T23:59:59Z"}, "bad_time", "transacted_at"),
        ({"transacted_at": "2300-01-01"}, "bad_time", "transacted_at"),
        ({"transacted_at": "infinity"}, "bad_time", "transacted_at"),
        ({"transacted_at": "1740823200"}, "bad_time", "transacted_at"),
        ({"amount": "12,50"}, "bad_number", "amount"),
        ({"amount": "€5"}, "bad_number", "amount"),
        ({"amount": "inf"}, "infinite_number", "amount"),
        ({"amount": "NaN"}, "infinite_number", "amount"),
        ({"amount": "1e999"}, "infinite_number", "amount"),
        ({"discount": "-0.01"}, "negative_discount", "discount"),
        ({"discount": "x"}, "bad_number", "discount"),
        ({"quantity": "0"}, "zero_quantity", "quantity"),
        ({"quantity": "-1"}, "negative_quantity", "quantity"),
    ],
)
def test_a_bad_line_goes_to_quarantine(
    work: Path, change: dict[str, str], reason: str, column: str
) -> None:
    bad = {**LINE, **change}
    tables = load("transactions", [LINE, bad, {**LINE, "order_id": "o3"}])
    assert tables.counts["transactions"] == {"read": 3, "kept": 2, reason: 1}
    row = quarantined("transactions").iloc[0]
    assert (row.reason, row.reason_column, row.row_number) == (reason, column, 2)
    for name, value in bad.items():
        assert ("" if pd.isna(row[name]) else row[name]) == value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arm": "c6"}, "unknown_arm"),
        ({"arm": "Control"}, "unknown_arm"),
        ({"arm": ""}, "missing_key"),
        ({"campaign_id": "a b"}, "bad_id"),
        ({"assignment_prob": "0"}, "bad_probability"),
        ({"assignment_prob": "1.2"}, "bad_probability"),
        ({"cost": "-1"}, "negative_cost"),
        ({"exposure_id": "x1"}, "duplicate_id"),
    ],
)
def test_a_bad_exposure_goes_to_quarantine(work: Path, change: dict[str, str], reason: str) -> None:
    good = {**EXPOSURE, "exposure_id": "x1", "assignment_prob": "1", "cost": "0"}
    rows = [good, {**good, "exposure_id": "x2", "arm": "c5", **change}]
    rows.append({**good, "exposure_id": "x3"})
    tables = load("exposures", rows)
    assert tables.counts["exposures"] == {"read": 3, "kept": 2, reason: 1}
    assert quarantined("exposures").row_number.tolist() == [2]


def test_the_first_good_row_of_an_id_is_kept(work: Path) -> None:
    rows = [
        {**EXPOSURE, "exposure_id": "x", "arm": "nobody"},
        {**EXPOSURE, "exposure_id": "x", "customer_id": "B"},
        {**EXPOSURE, "exposure_id": "x", "customer_id": "C"},
    ]
    tables = load("exposures", rows)
    assert tables.exposures is not None
    assert tables.exposures.customer_id.to_pyarrow().to_pylist() == ["B"]
    assert tables.counts["exposures"]["duplicate_id"] == 1


def test_a_customer_twice(work: Path) -> None:
    save("transactions", [LINE])
    who = [{"customer_id": c, "region": r} for c, r in (("A", "n"), ("B", "s"), ("A", "w"))]
    tables = load("customers", who)
    assert tables.customers is not None
    rows = tables.customers.order_by("customer_id").to_pyarrow().to_pylist()
    assert [(row["customer_id"], row["region"]) for row in rows] == [("A", "n"), ("B", "s")]
    assert tables.counts["customers"] == {"read": 3, "kept": 2, "duplicate_id": 1}


def test_exposures_without_id_are_numbered_in_the_order_of_the_file(work: Path) -> None:
    rows = [{**EXPOSURE, "customer_id": c} for c in "BAC"]
    tables = load("exposures", rows)
    assert tables.exposures is not None
    found = tables.exposures.select("exposure_id", "customer_id").to_pyarrow().to_pydict()
    pairs = set(zip(found["exposure_id"], found["customer_id"], strict=True))
    assert pairs == {("e1", "B"), ("e2", "A"), ("e3", "C")}


def test_a_clean_run_takes_the_old_quarantine_away(work: Path) -> None:
    load("transactions", [LINE, {**LINE, "amount": "x"}])
    assert len(quarantined("transactions")) == 1
    load("transactions", [LINE])
    assert not (work / "data/quarantine/shop/transactions.parquet").exists()
    assert list((work / "data/quarantine/shop").iterdir()) == []


def test_too_many_bad_rows_stop_the_job(work: Path) -> None:
    rows = [{**LINE, "order_id": f"o{i}", "amount": "x" if i < 7 else "1"} for i in range(100)]
    with pytest.raises(
        DataError,
        match=r"transactions.amount: expected at most 6% bad rows, found 7 of 100 rows bad: "
        r"7 bad_number in amount.*\(for example o0: x, o1: x, o2: x, o3: x, o4: x\)",
    ) as caught:
        load("transactions", rows, config(max_bad_share=0.06))
    assert len(caught.value.keys) == 5
    assert len(quarantined("transactions")) == 7
    tables = load("transactions", rows, config(max_bad_share=0.07))
    assert tables.counts["transactions"] == {"read": 100, "kept": 93, "bad_number": 7}


def test_an_unknown_arm_is_named(work: Path) -> None:
    rows = [EXPOSURE, {**EXPOSURE, "arm": "gold"}]
    with pytest.raises(DataError, match=r"exposures.arm.*unknown_arm.*A: gold.*Add these arms"):
        load("exposures", rows, config(max_bad_share=0.01))


@pytest.mark.parametrize(
    ("column", "noun"),
    [
        ("transacted_at", "UTC times"),
        ("amount", "finite numbers"),
        ("discount", "finite numbers"),
    ],
)
def test_a_column_of_the_wrong_type(work: Path, column: str, noun: str) -> None:
    rows = [{**LINE, column: f"word{i}"} for i in range(4)]
    with pytest.raises(DataError, match=rf"transactions.{column}: expected {noun}.*o1: word0"):
        load("transactions", rows)


def test_identical_lines_are_kept_counted_or_dropped(work: Path) -> None:
    rows = [LINE, LINE, LINE, {**LINE, "order_id": "o2"}]
    tables = load("transactions", rows)
    assert tables.counts["transactions"] == {"read": 4, "kept": 4}
    assert tables.identical_lines == 2
    tables = load("transactions", rows, config(drop_duplicates=True))
    assert tables.counts["transactions"] == {"read": 4, "kept": 2, "duplicate_dropped": 2}
    assert tables.identical_lines == 0


def test_a_line_id_tells_repeats_from_equal_lines(work: Path) -> None:
    rows = [{**LINE, "line_id": i} for i in ("1", "2", "2")]
    tables = load("transactions", rows)
    assert tables.counts["transactions"] == {"read": 3, "kept": 2, "duplicate_dropped": 1}


def test_quantity_follows_the_sign_of_the_amount(work: Path) -> None:
    rows = [{**LINE, "quantity": "", "amount": a} for a in ("5", "0", "-5")]
    tables = load("transactions", rows)
    assert tables.transactions is not None
    found = tables.transactions.select("amount", "quantity").to_pyarrow().to_pylist()
    assert {row["amount"]: row["quantity"] for row in found} == {5.0: 1.0, 0.0: 1.0, -5.0: -1.0}


def test_a_given_outcome_must_be_there_and_a_given_feature_need_not(work: Path) -> None:
    extra = {
        "outcome": {"kind": "column", "column": "visit"},
        "features": {"given": ["age", "seg"]},
    }
    rows = [
        {**EXPOSURE, "customer_id": f"c{i}", "visit": "1", "age": str(i), "seg": "m"}
        for i in range(200)
    ]
    rows[0]["visit"] = ""
    rows[1]["age"] = ""
    rows[2]["age"] = "old"
    rows[3]["age"] = "inf"
    rows[4]["seg"] = ""
    tables = load("exposures", rows, config(extra))
    assert tables.counts["exposures"] == {
        "read": 200,
        "kept": 197,
        "missing_number": 1,
        "bad_number": 1,
        "infinite_number": 1,
    }
    assert tables.exposures is not None
    frame = tables.exposures.to_pyarrow().to_pandas().set_index("customer_id")
    assert np.isnan(frame.age["c1"])
    assert frame.seg["c4"] is None or pd.isna(frame.seg["c4"])
    assert frame.age["c5"] == 5.0


def test_times_are_utc(work: Path) -> None:
    texts = {
        "2025-03-01": "2025-03-01T00:00:00",
        "2025-03-01 10:00": "2025-03-01T10:00:00",
        "2025-03-01T10:00:00.123456+08:00": "2025-03-01T02:00:00.123456",
        "2025-03-01T10:00Z": "2025-03-01T10:00:00",
    }
    rows = [{**LINE, "order_id": f"o{i}", "transacted_at": t} for i, t in enumerate(texts)]
    tables = load("transactions", rows)
    assert tables.transactions is not None
    found = tables.transactions.order_by("order_id").transacted_at.to_pyarrow().to_pylist()
    assert [t.isoformat() for t in found] == list(texts.values())


def test_parquet_nan_amount_is_bad_and_given_nan_is_a_gap(work: Path) -> None:
    ids = [f"c{i}" for i in range(3)]
    pq.write_table(
        pa.table(
            {
                **{k: [v] * 3 for k, v in EXPOSURE.items() if k != "customer_id"},
                "customer_id": ids,
                "cost": pa.array([1.0, float("nan"), float("inf")]),
                "age": pa.array([float("nan"), 2.0, 3.0]),
            }
        ),
        "t/exposures.parquet",
    )
    tables = open_source(config({"features": {"given": ["age"]}})).tables()
    assert tables.counts["exposures"] == {"read": 3, "kept": 1, "infinite_number": 2}
    assert tables.exposures is not None
    assert tables.exposures.age.to_pyarrow().to_pylist() == [None]


def test_fractional_and_inexact_numbers_are_no_ids(work: Path) -> None:
    columns = {k: [v] * 4 for k, v in LINE.items()}
    columns["customer_id"] = pa.array([7.0, 7.5, 1e17, float("nan")])
    columns["amount"] = pa.array([1.0] * 4)
    pq.write_table(pa.table(columns), "t/transactions.parquet")
    tables = open_source(config()).tables()
    counts = {"read": 4, "kept": 1, "bad_id": 2, "missing_key": 1}
    assert tables.counts["transactions"] == counts


class TestIdentities:
    IDS = (
        {"source": "web", "source_customer_id": "u1", "customer_id": "A"},
        {"source": "till", "source_customer_id": "u1", "customer_id": "B"},
    )

    def customers(self, tables: Tables) -> list[str]:
        assert tables.transactions is not None
        return sorted(tables.transactions.customer_id.to_pyarrow().to_pylist())

    def test_a_source_and_id_become_the_customer(self, work: Path) -> None:
        save("identities", list(self.IDS))
        rows = [
            {**LINE, "customer_id": "u1", "source": "web"},
            {**LINE, "customer_id": "u1", "source": "till"},
            {**LINE, "customer_id": "u2", "source": "till"},
            {**LINE, "customer_id": "Z", "source": ""},
        ]
        assert self.customers(load("transactions", rows)) == ["A", "B", "Z", "till:u2"]

    def test_without_a_source_the_id_alone_is_matched(self, work: Path) -> None:
        save("identities", [self.IDS[0]])
        rows = [{**LINE, "customer_id": "u1"}, {**LINE, "customer_id": "Q"}]
        assert self.customers(load("transactions", rows)) == ["A", "Q"]

    def test_one_customer_of_two_systems_is_no_error(self, work: Path) -> None:
        both = [{**row, "customer_id": "A"} for row in self.IDS]
        save("identities", both)
        save("customers", [{"customer_id": "u1", "source": s} for s in ("web", "till")])
        tables = load("transactions", [LINE], config(max_bad_share=0))
        assert tables.counts["customers"] == {"read": 2, "kept": 1, "duplicate_id": 1}

    def test_an_id_of_two_customers_needs_a_source(self, work: Path) -> None:
        save("identities", list(self.IDS))
        with pytest.raises(DataError, match=r"matched by the id alone.*u1.*column source"):
            load("transactions", [{**LINE, "customer_id": "u1"}])

    def test_rows_that_contradict_each_other(self, work: Path) -> None:
        save("identities", [self.IDS[0], {**self.IDS[0], "customer_id": "C"}])
        with pytest.raises(DataError, match=r"identities: .*contradict.*web:u1"):
            load("transactions", [LINE])

    def test_a_table_that_changes_nothing(self, work: Path) -> None:
        save("identities", [{**self.IDS[0], "customer_id": "nobody"}])
        with pytest.raises(DataError, match="changes nothing"):
            load("transactions", [LINE])


CELLS = st.one_of(
    st.sampled_from(list(LINE.values())),
    st.sampled_from(["", "0", "-1", "1e400", "nan", "2025-13-01", "A,B", '"', "' OR 1=1 --", "\0"]),
    st.text(max_size=6),
    st.floats().map(str),
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.lists(st.lists(CELLS, min_size=6, max_size=6), min_size=1, max_size=12))
def test_no_rows_vanish_whatever_they_hold(work: Path, rows: list[list[str]]) -> None:
    pq.write_table(
        pa.table({name: [row[i] for row in rows] for i, name in enumerate(LINE)}),
        "t/transactions.parquet",
    )
    try:
        tables = open_source(config()).tables()
    except DataError as error:
        if "no value that can be read" not in str(error):
            raise
        return
    counts = tables.counts["transactions"]
    assert counts["read"] == len(rows)
    assert sum(n for key, n in counts.items() if key != "read") == len(rows)
    assert tables.transactions is not None
    assert len(tables.transactions.to_pyarrow()) == counts["kept"]
    path = Path("data/quarantine/shop/transactions.parquet")
    assert (len(pd.read_parquet(path)) if path.exists() else 0) == len(rows) - counts["kept"]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ({"columns": {"orders": {"amount": "x"}}}, "source.columns.orders: expected a table"),
        ({"columns": {"transactions": {"amuont": "x"}}}, "Did you mean amount"),
        ({"columns": {"transactions": {"amount": "amonut"}}}, r"the column amonut.*Mend|amonut"),
        ({"path": "nowhere"}, r"nowhere: expected a folder.*no such folder"),
        ({"path": None}, "source.path"),
    ],
)
def test_what_the_configuration_gets_wrong(work: Path, source: dict[str, Any], match: str) -> None:
    with pytest.raises((ConfigError, DataError), match=match):
        load("transactions", [LINE], config(**source))


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"features": {"given": ["age"]}}, r"features.given: expected a column age in exposures"),
        (
            {"outcome": {"kind": "column", "column": "visit"}},
            r"outcome.column: expected a column visit in exposures, found",
        ),
        ({"experiment": {"cluster": "household"}}, r"experiment: expected a column household"),
    ],
)
def test_a_named_column_that_is_not_there(work: Path, extra: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        load("exposures", [EXPOSURE], config(extra))


def test_unknown_columns_are_named_once(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    tables = load("transactions", [{**LINE, "colour": "red", "my amount": "3"}])
    assert [r.getMessage() for r in caplog.records] == [
        "transactions: columns kept out: colour, my amount"
    ]
    assert tables.transactions is not None
    assert "colour" not in tables.transactions.columns
