"""Files that are missing, damaged, empty or strange: one clear answer, never a crash."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.config import Config, load_config, validate
from features.errors import ConfigError, DataError, InputError
from features.sources import open_source
from features.sources.base import SOURCES, source
from features.tables import Tables, check_as_of, complete_until
from tests.contracts.test_sources import HILLSTROM

ROOT = Path(__file__).parents[3]
HEAD = b"customer_id,order_id,transacted_at,amount\n"
GOOD = b"A,o1,2025-03-01T10:00Z,10.5\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()
    return tmp_path / "t"


def config(**source: Any) -> Config:
    return validate(
        {
            "name": "shop",
            "source": {"kind": "files", "path": "t", **source},
            "outcome": {"kind": "conversion"},
            "offers": [{"coupon_id": "c5", "kind": "message"}],
        }
    )


def tables(**source: Any) -> Tables:
    return open_source(config(**source)).tables()


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    n = 500
    columns = {
        "customer_id": np.arange(n),
        "order_id": np.arange(n),
        "transacted_at": pa.array([1_700_000_000_000_000] * n, pa.timestamp("us")),
        "amount": np.linspace(1, 2, n),
    }
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


def damage(file: bytes, at: int) -> bytes:
    return file[:at] + bytes(b ^ 0xFF for b in file[at : at + 64]) + file[at + 64 :]


def junk(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(4000)


RUBBISH = {
    "empty.parquet": b"",
    "cut.parquet": parquet_bytes()[:2000],
    "head.parquet": parquet_bytes()[:4],
    "tail.parquet": parquet_bytes()[-100:],
    "damaged.parquet": damage(parquet_bytes(), 900),
    "text.parquet": HEAD + GOOD,
    "zip.parquet": gzip.compress(HEAD + GOOD),
    "junk.parquet": junk(1),
    "empty.csv": b"",
    "blank.csv": b"\n\n\n",
    "header.csv": HEAD,
    "no_header.csv": GOOD + GOOD,
    "parquet.csv": parquet_bytes(),
    "zip.csv": gzip.compress(HEAD + GOOD),
    "junk.csv": junk(2),
    "utf16.csv": (HEAD + GOOD).decode().encode("utf-16"),
    "latin_header.csv": "customer_id,order_id,transacted_at,amount,größe\n".encode("latin-1")
    + GOOD,
    "latin_rows.csv": HEAD + "Ä,o1,2025-03-01,1\nÖ,o1,2025-03-01,1\n".encode("latin-1"),
    "fields.csv": HEAD + b"A,o1,2025-03-01\n" * 3,
    "twice.csv": b"customer_id,order_id,order_id,transacted_at,amount\nA,o,o,2025-03-01,1\n",
    "quote.csv": HEAD + b'"A,o1,2025-03-01,1\n' + GOOD * 3,
    "zero.csv": HEAD + b"\0\0\0\0\n" * 5,
    "json.csv": b'{"customer_id": 1}\n{"customer_id": 2}\n',
    "html.csv": b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n",
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_has_one_clear_answer(folder: Path, name: str) -> None:
    (folder / f"transactions{Path(name).suffix}").write_bytes(RUBBISH[name])
    with pytest.raises(DataError, match=r"transactions.*expected .+, found .+\. \S+"):
        tables()


@pytest.mark.parametrize("seed", range(12))
def test_damage_anywhere_is_noticed_or_harmless(folder: Path, seed: int) -> None:
    """A flipped stretch of bytes either is refused, or leaves as many rows as were written."""
    whole = parquet_bytes()
    at = int(np.random.default_rng(seed).integers(4, len(whole) - 64))
    (folder / "transactions.parquet").write_bytes(damage(whole, at))
    try:
        counts = tables(max_bad_share=1).counts["transactions"]
    except DataError:
        return
    assert counts["read"] == sum(n for key, n in counts.items() if key != "read") == 500


def test_lines_that_are_no_csv_are_counted(folder: Path) -> None:
    lines = [
        GOOD,
        b"A,o2,2025-03-01\n",
        b"A,o3,2025-03-01,1,9\n",
        "Ä,o4,2025-03-01,1\n".encode("l1"),
    ]
    (folder / "transactions.csv").write_bytes(HEAD + b"".join(lines) + b"\n" + GOOD)
    found = tables(max_bad_share=0.6)
    assert found.counts["transactions"] == {"read": 5, "kept": 2, "bad_line": 3}
    kept = pq.read_table("data/quarantine/shop/transactions.parquet").to_pylist()
    assert {row["reason"] for row in kept} == {"bad_line"}
    assert {row["csv_line"][:4] for row in kept} >= {"A,o2", "A,o3"}
    with pytest.raises(DataError, match=r"transactions: .*3 of 5 rows bad: 3 bad_line.*UTF-8"):
        tables(max_bad_share=0.5)


@pytest.mark.parametrize("table", ["customers", "events"])
def test_an_optional_table_may_be_empty(folder: Path, table: str) -> None:
    (folder / "transactions.csv").write_bytes(HEAD + GOOD)
    head = {"customers": "customer_id\n", "events": "customer_id,type,occurred_at\n"}[table]
    (folder / f"{table}.csv").write_text(head)
    found = getattr(tables(), table)
    assert found.count().to_pyarrow().as_py() == 0


def test_a_folder_without_a_table(folder: Path) -> None:
    (folder / "transactoins.csv").write_bytes(HEAD + GOOD)
    with pytest.raises(DataError, match=r"transactions or exposures.*found transactoins.csv"):
        tables()


def test_missing_columns_are_named_together(folder: Path) -> None:
    (folder / "transactions.csv").write_text("customer_id,order_id,when,price\n1,2,3,4\n")
    with pytest.raises(
        DataError,
        match=r"the columns transacted_at, amount, found the columns customer_id, order_id, when, "
        r"price in t/transactions.csv.*source.columns.transactions",
    ):
        tables()


def test_exposures_without_control(folder: Path) -> None:
    (folder / "exposures.csv").write_text(
        "customer_id,campaign_id,assigned_at,arm\nA,k,2025-03-01,c5\n"
    )
    with pytest.raises(DataError, match=r"exposures.arm.*the arm control.*found only c5"):
        tables()


@pytest.mark.parametrize("other", ["transactions.csv", "transactions/part-0.csv"])
def test_two_files_for_one_table(folder: Path, other: str) -> None:
    (folder / "transactions.parquet").write_bytes(parquet_bytes())
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_bytes(HEAD + GOOD)
    with pytest.raises(DataError, match=r"transactions: expected one file, .*transactions.parquet"):
        tables()


def test_an_empty_folder_of_parts(folder: Path) -> None:
    (folder / "transactions").mkdir()
    with pytest.raises(DataError, match=r"expected parts that end in .parquet or .csv, found none"):
        tables()


def test_parts_of_partitions_and_of_other_types(folder: Path) -> None:
    """Folders of partitions are read through; an id may be a number in one part only."""
    for year, who in ((2024, [1, 2]), (2025, ["3", "x"])):
        part = folder / "transactions" / f"year={year}"
        part.mkdir(parents=True)
        columns = {
            "customer_id": who,
            "order_id": ["o", "p"],
            "transacted_at": [f"{year}-01-01"] * 2,
            "amount": [1, 2] if year == 2024 else [1.5, 2.5],
        }
        pq.write_table(pa.table(columns), part / "part-0.parquet")
        (part / "_metadata.csv").write_text("not a part")
    found = tables()
    assert found.transactions is not None
    rows = found.transactions.to_pyarrow().to_pylist()
    assert sorted(row["customer_id"] for row in rows) == ["1", "2", "3", "x"]
    assert sum(row["amount"] for row in rows) == 7.0


def test_nothing_of_the_files_stays_behind(folder: Path) -> None:
    (folder / "transactions.csv").write_bytes(HEAD + GOOD)
    found = tables().con.con.execute(
        "SELECT table_name FROM duckdb_tables() UNION ALL "
        "SELECT view_name FROM duckdb_views() WHERE NOT internal"
    )
    assert found.fetchall() == [("transactions",)]


def test_constants_stand_for_columns(folder: Path) -> None:
    (folder / "exposures.csv").write_text("customer_id,arm\nA,control\nB,c5\n")
    found = tables(constants={"exposures": {"campaign_id": 7, "assigned_at": "2025-04-01"}})
    assert found.exposures is not None
    rows = found.exposures.order_by("customer_id").to_pyarrow().to_pylist()
    assert {row["campaign_id"] for row in rows} == {"7"}
    assert {row["assigned_at"].isoformat() for row in rows} == {"2025-04-01T00:00:00"}


def test_the_digest_follows_the_bytes_and_the_mapping(folder: Path) -> None:
    (folder / "transactions.csv").write_bytes(HEAD + GOOD)
    first = tables().digest
    assert tables().digest == first
    assert tables(drop_duplicates=True).digest != first
    (folder / "transactions.csv").write_bytes(HEAD + GOOD + GOOD)
    assert tables().digest != first


def test_names_that_look_like_sql_are_only_names(folder: Path) -> None:
    evil = "amount\"; DROP TABLE 'x"
    (folder / "transactions.csv").write_text(
        'customer_id,order_id,transacted_at,"amount""; DROP TABLE \'x"\nA,o\'1,2025-03-01,2.5\n'
    )
    found = tables(columns={"transactions": {"amount": evil}})
    assert found.transactions is not None
    row = found.transactions.to_pyarrow().to_pylist()[0]
    assert (row["amount"], row["order_id"]) == (2.5, "o'1")


class TestTimes:
    def load(self, folder: Path, zone: str = "UTC", **source: Any) -> tuple[Tables, Config]:
        (folder / "transactions.csv").write_bytes(
            HEAD + b"A,o1,2025-03-01T10:00Z,1\nA,o2,2025-03-05T23:30Z,1\n"
        )
        settings = config(**source).model_copy(update={"timezone": zone})
        return open_source(settings).tables(), settings

    @pytest.mark.parametrize(
        ("zone", "end"),
        [
            ("UTC", "2025-03-06T00:00:00+00:00"),
            ("Asia/Shanghai", "2025-03-06T16:00:00+00:00"),
            ("America/New_York", "2025-03-06T05:00:00+00:00"),
        ],
    )
    def test_complete_until_the_end_of_the_local_day(
        self, folder: Path, zone: str, end: str
    ) -> None:
        found = complete_until(*self.load(folder, zone))
        assert found is not None
        assert found.isoformat() == end

    def test_complete_until_as_configured(self, folder: Path) -> None:
        found = complete_until(*self.load(folder, complete_until="2025-03-02"))
        assert found is not None
        assert found.isoformat() == "2025-03-02T00:00:00+00:00"

    def test_as_of_before_the_first_transaction(self, folder: Path) -> None:
        found, settings = self.load(folder, as_of="2025-03-01T10:00:00Z")
        with pytest.raises(
            DataError,
            match=r"as_of: expected a moment after the first transaction \(2025-03-01T10:00:00Z\), "
            r"found 2025-03-01T10:00:00Z.*2025-03-05T23:30:00Z",
        ):
            check_as_of(found, settings.as_of())
        check_as_of(found, settings.as_of().replace(second=1))


class TestHillstrom:
    @pytest.fixture
    def address(self, folder: Path) -> Iterator[str]:
        """A local server of the folder."""
        (folder / "data.csv").write_text(HILLSTROM)

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def log_message(self, *args: Any) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    def load(self, path: str, *overrides: str) -> Tables:
        settings = load_config(ROOT / "configs/hillstrom.yaml", [f"source.path={path}", *overrides])
        return open_source(settings).tables()

    def test_the_published_columns_become_exposures(self, folder: Path) -> None:
        (folder / "h.csv").write_text(HILLSTROM)
        found = self.load("t/h.csv", "outcome.column=spend")
        assert found.transactions is None
        assert found.exposures is not None
        rows = found.exposures.order_by("customer_id").to_pyarrow().to_pylist()
        assert [row["arm"] for row in rows] == ["womens_email", "control", "mens_email"]
        assert [row["spend"] for row in rows] == [0.0, 0.0, 29.99]
        assert [row["customer_id"] for row in rows] == ["1", "2", "3"]
        assert [row["history"] for row in rows] == [142.44, 329.08, 180.65]
        assert [row["zip_code"] for row in rows] == ["Surburban", "Rural", "Surburban"]
        assert [row["channel"] for row in rows] == ["Phone", "Web", "Web"]
        assert "visit" not in rows[0]

    def test_an_address_is_fetched_once(self, folder: Path, address: str) -> None:
        first = self.load(f"{address}/data.csv")
        (folder / "data.csv").unlink()
        again = self.load(f"{address}/data.csv")
        assert first.digest == again.digest
        assert first.counts == {"exposures": {"read": 3, "kept": 3}}

    def test_an_address_without_a_file(self, address: str) -> None:
        with pytest.raises(DataError, match=r"nothing.csv: .*found Not Found|File not found"):
            self.load(f"{address}/nothing.csv")
        assert list(Path("data/downloads").iterdir()) == []

    def test_an_address_that_nobody_answers(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"expected a file that can be fetched.*by hand"):
            self.load("http://127.0.0.1:1/data.csv")

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            (HILLSTROM.replace("segment,visit", "group,visit"), "without segment"),
            ("a,b\n1,2\n", "expected the columns recency"),
            (HILLSTROM.replace("No E-Mail", "Phone call"), r"exposures.arm.*Phone call"),
        ],
    )
    def test_another_file(self, folder: Path, text: str, match: str) -> None:
        (folder / "h.csv").write_text(text)
        with pytest.raises(DataError, match=match):
            self.load("t/h.csv")

    def test_no_file(self, folder: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            self.load("t/h.csv")
        with pytest.raises(ConfigError, match=r"--set source.path"):
            self.load("null")


def test_two_sources_of_one_kind_are_a_defect() -> None:
    with pytest.raises(ValueError, match="two sources are called files"):
        source("files")(SOURCES["files"])


def test_an_unregistered_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SOURCES, "hillstrom")
    settings = load_config(ROOT / "configs/hillstrom.yaml")
    with pytest.raises(InputError, match=r"source.kind: expected .*found hillstrom"):
        open_source(settings)
