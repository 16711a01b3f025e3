"""`features check` finds what one line of a table cannot show: wrong units, sides, ids, moments."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.__main__ import main
from features.build import build_features
from features.check import check, run
from features.checks.lines import COLUMN_FEATURES
from features.config import Config, validate
from features.frozen import FrozenValues
from features.registry import CATALOGUE
from features.sources import open_source
from features.spine import all_customers

N = 2000
Frames = dict[str, pd.DataFrame]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()


def config(**change: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "shop",
        "source": {"kind": "files", "path": "t", "as_of": "2025-03-05"},
        "outcome": {"kind": "conversion", "window_days": 14},
        "offers": [{"coupon_id": "c5", "kind": "message"}],
    }
    for key, value in change.items():
        raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) else value
    return validate(raw)


def good() -> Frames:
    """A small shop without anything wrong."""
    rng = np.random.default_rng(1)
    start = pd.Timestamp("2024-12-01", tz="UTC")
    minutes = rng.integers(0, 94 * 24 * 60, N)
    hours = 8 + rng.integers(0, 12, N)
    moment = (start + pd.to_timedelta(minutes // 1440, unit="D")) + pd.to_timedelta(
        hours * 60 + minutes % 60, unit="m"
    )
    transactions = pd.DataFrame(
        {
            "customer_id": [f"c{i}" for i in rng.integers(0, 400, N)],
            "order_id": [f"o{i}" for i in range(N)],
            "transacted_at": moment,
            "amount": rng.lognormal(3, 0.5, N).round(2),
            "discount": rng.choice([0.0, 2.5], N),
            "quantity": rng.integers(1, 4, N),
            "product_id": rng.choice(list("pqrstuv"), N),
            "category": rng.choice(list("xyz"), N),
            "channel": rng.choice(["app", "store"], N),
            "payment_method": "card",
            "coupon_id": np.where(rng.random(N) < 0.1, "c5", None),
        }
    )
    exposures = pd.DataFrame(
        {
            "customer_id": [f"c{i}" for i in range(400)],
            "campaign_id": "k",
            "assigned_at": "2025-02-01T09:00:00Z",
            "arm": ["control", "c5"] * 200,
        }
    )
    customers = pd.DataFrame(
        {
            "customer_id": [f"c{i}" for i in range(400)],
            "birth_month": [i % 12 + 1 for i in range(400)],
            "joined_at": "2024-11-01",
        }
    )
    events = pd.DataFrame(
        {
            "customer_id": [f"c{i}" for i in range(1, 400, 2)],
            "campaign_id": "k",
            "type": "opened",
            "occurred_at": "2025-02-02T10:00:00Z",
        }
    )
    return {
        "transactions": transactions,
        "exposures": exposures,
        "customers": customers,
        "events": events,
    }


def save(frames: Frames) -> None:
    for name, frame in frames.items():
        frame.to_csv(f"t/{name}.csv", index=False)


def test_a_good_shop_is_good() -> None:
    save(good())
    assert [p for p in check(config()) if p.level != "note"] == []


def line(column: str, value: Any, rows: Any = slice(None)) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frame = frames["transactions"].astype({column: object})
        frame.loc[rows, column] = value
        frames["transactions"] = frame

    return change


def in_cents(frames: Frames) -> None:
    lines = frames["transactions"]
    lines.loc[lines.transacted_at.dt.month == 1, "amount"] *= 100


def store_in_cents(frames: Frames) -> None:
    lines = frames["transactions"]
    lines["store_id"] = np.where(np.arange(N) % 10, "s1", "s2")
    lines["store_id"] = lines.store_id.where(np.arange(N) % 3 > 0, "s3")
    lines.loc[lines.store_id == "s2", "amount"] *= 100


def swap(a: str, b: str) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frames["transactions"] = frames["transactions"].rename(columns={a: b, b: a})

    return change


def twice(frames: Frames) -> None:
    lines = frames["transactions"]
    again = lines[lines.transacted_at.dt.strftime("%Y-%m-%d").isin(["2025-01-10", "2025-01-11"])]
    frames["transactions"] = pd.concat([lines, again])


def hours_shifted(frames: Frames) -> None:
    frames["transactions"]["transacted_at"] -= pd.Timedelta(hours=11)


def dates_only(frames: Frames) -> None:
    lines = frames["transactions"]
    lines["transacted_at"] = lines["transacted_at"].dt.strftime("%Y-%m-%d")


def gap(frames: Frames) -> None:
    lines = frames["transactions"]
    frames["transactions"] = lines[~lines.transacted_at.between("2025-01-05", "2025-01-15")]


def exposure(column: str, value: Any, rows: Any = slice(None)) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frame = frames["exposures"].astype({column: object})
        frame.loc[rows, column] = value
        frames["exposures"] = frame

    return change


def event(column: str, value: Any) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frames["events"][column] = value

    return change


def other_ids(frames: Frames) -> None:
    frames["exposures"]["customer_id"] = frames["exposures"]["customer_id"].str.replace("c", "C0")


def no_ids_meet(frames: Frames) -> None:
    frames["exposures"]["customer_id"] = [f"{i}x" for i in range(400)]


def nobody_buys(frames: Frames) -> None:
    lines = frames["transactions"]
    late = lines.transacted_at.between("2025-02-01", "2025-02-16")
    frames["transactions"] = lines[~late]


def exposed_twice(frames: Frames) -> None:
    frames["exposures"] = pd.concat([frames["exposures"], frames["exposures"].iloc[:7]])


def empty_events(frames: Frames) -> None:
    frames["events"] = frames["events"].iloc[:0]


def customers_of_another_system(frames: Frames) -> None:
    frames["customers"]["customer_id"] = [f"crm{i}" for i in range(400)]


Defect = tuple[Callable[[Frames], None], str, tuple[str, ...]]
# Defects of one group stand in one shop: each must be told beside the others.
GROUPS: list[list[Defect]] = [
    [
        (in_cents, "warning", ("transactions.amount", "cents", "in the month 2025-01")),
        (line("customer_id", "unknown", slice(0, 9)), "warning", ("stand-in", "unknown: 10 of")),
        (line("order_id", "o1", slice(100, 199)), "note", ("1 of 1900", "several customers", "o1")),
        (line("coupon_id", "old9", slice(0, 2)), "note", ("offers does not name", "old9")),
        (exposed_twice, "warning", ("7 of 407", "repeat customer, campaign, moment and arm")),
        (event("type", "gelesen"), "warning", ("events.type", "gelesen (200 rows)")),
    ],
    [
        (store_in_cents, "warning", ("transactions.amount", "cents", "of the shop s2")),
        (line("amount", 9e6, 5), "warning", ("1 lines above", "o5")),
        (line("customer_id", "cash", slice(0, 299)), "warning", ("for guests", "cash: 300")),
        (exposure("assigned_at", "2100-01-01", 3), "warning", ("1 of 400", "in the future")),
        (event("campaign_id", None), "warning", ("200 of 200 (100.0%) events name no",)),
    ],
    [
        (line("amount", -10.0), "error", ("all 2000 lines are returns", "Turn the sign")),
        (empty_events, "warning", ("events: an empty table",)),
    ],
    [
        (line("amount", -10.0, slice(0, 999)), "warning", ("1000 of 2000 (50.0%) lines are",)),
        (event("campaign_id", "zz"), "warning", ("a campaign without exposures", "zz")),
        (customers_of_another_system, "warning", ("none of 400 customers of exposures",)),
    ],
    [
        (line("amount", 0.0), "warning", ("2000 of 2000 (100.0%) lines cost nothing",)),
        (event("occurred_at", "2100-01-01"), "warning", ("200 of 200 (100.0%) events lie in",)),
    ],
    [
        (line("discount", 0.2), "warning", ("discounts lie between 0 and 1",)),
        (gap, "warning", ("from 2025-01-05 to 2025-01-14 (10 days)", "delivery missing")),
        (other_ids, "error", ("none of 400 there", "what stands before the digits")),
    ],
    [
        (line("discount", 900.0), "warning", ("more than 90% of the list price",)),
        (hours_shifted, "warning", ("between 1 and 6 o'clock in UTC", "timezone")),
        (no_ids_meet, "error", ("none of 400 there", "identities")),
    ],
    [
        (line("discount", -2.0), "error", ("transactions.discount", "negative_discount")),
        (exposure("assignment_prob", 50), "error", ("assignment_prob", "bad_probability")),
    ],
    [(swap("customer_id", "order_id"), "error", ("order_id", "in each other's place"))],
    [
        (swap("amount", "quantity"), "warning", ("quantities are not whole numbers",)),
        (line("product_id", None), "note", ("novelty_share_365d", "nothing to go by")),
        (line("category", None, slice(0, 1499)), "note", ("lines have none", "category_favourite")),
        (twice, "warning", ("on 2 days from 2025-01-10 to 2025-01-11 every line stands twice",)),
    ],
    [
        (line("customer_id", None, slice(0, 99)), "error", ("100 missing_key in customer_id",)),
        (exposure("arm", "gold"), "error", ("unknown_arm",)),
    ],
    [
        (dates_only, "note", ("all times are midnight",)),
        (dates_only, "warning", ("assigned within a day on which the customer bought",)),
    ],
    [
        (line("transacted_at", "1970-01-01", slice(0, 299)), "warning", ("before 1990",)),
        (line("transacted_at", "1970-01-01", slice(0, 299)), "warning", ("the same moment",)),
        (exposure("arm", "c5"), "error", ("exposures.arm", "rows with the arm control")),
    ],
    [(line("transacted_at", "2999-01-01", slice(0, 999)), "error", ("bad_time", "2999"))],
    [
        (nobody_buys, "error", ("none after any of 400 exposures with a complete window",)),
        (line("transacted_at", "2100-01-01", 7), "warning", ("1 lines lie in the future",)),
    ],
    [(line("transacted_at", "2030-01-01"), "error", ("as_of: expected a moment after",))],
    [(line("transacted_at", "yesterday"), "error", ("no value that can be read as such",))],
    [(exposure("assigned_at", "2025-02-28"), "error", ("400 of 400 (100.0%) windows",))],
]


@pytest.mark.parametrize("defects", GROUPS)
def test_each_defect_is_told(defects: list[Defect]) -> None:
    frames = good()
    frames["exposures"]["assignment_prob"] = 0.5
    for change in dict.fromkeys(change for change, _, _ in defects):
        change(frames)
    save(frames)
    problems = check(config())
    for _, level, parts in defects:
        found = [f"{p.where}: {p.text}" for p in problems if p.level == level]
        assert any(all(part in text for part in parts) for text in found), "\n".join(found)


@pytest.mark.parametrize(
    ("settings", "level", "parts"),
    [
        ({"source": {"as_of": "2025-04-20"}}, "warning", ("source.as_of", "days after the data")),
        (
            {"source": {"complete_until": "2025-03-30"}},
            "warning",
            ("source.complete_until", "after the newest line"),
        ),
        ({"source": {"complete_until": "2200-01-01"}}, "warning", ("lies in the future",)),
        ({"features": {"set": ["recency_dys"]}}, "error", ("recency_dys", "recency_days")),
        (
            {"audiences": {"old": {"filter": {"feature": "recency_dys", "op": ">", "value": 9}}}},
            "error",
            ("audiences.old.filter", "recency_dys"),
        ),
        (
            {"source": {"columns": {"transaction": {"amount": "x"}}}},
            "error",
            ("source.columns.transaction", "Did you mean transactions?"),
        ),
        (
            {"source": {"columns": {"transactions": {"amont": "amount"}}}},
            "error",
            ("source.columns.transactions.amont", "Did you mean amount?"),
        ),
        (
            {"source": {"columns": {"transactions": {"amount": "amonut"}}}},
            "error",
            ("transactions.amount", "the column amonut", "Did you mean amount?"),
        ),
    ],
)
def test_settings_that_do_not_fit_the_data(
    settings: dict[str, Any], level: str, parts: tuple[str, ...]
) -> None:
    save(good())
    found = [f"{p.where}: {p.text}" for p in check(config(**settings)) if p.level == level]
    assert any(all(part in text for part in parts) for text in found), "\n".join(found)


def test_a_wrong_key_of_one_table_does_not_hide_another() -> None:
    frames = good()
    no_ids_meet(frames)
    frames["exposures"]["arm"] = "gold"
    frames["events"] = frames["events"].drop(columns="type")
    save(frames)
    settings = config(source={"columns": {"transactions": {"amont": "amount"}}})
    where = {p.where for p in check(settings) if p.level == "error"}
    assert {"source.columns.transactions.amont", "exposures.arm", "events.type"} <= where


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_same_file_twice(suffix: str) -> None:
    frames = good()
    folder = Path("t/transactions")
    folder.mkdir()
    if suffix == "csv":
        frames["transactions"].to_csv(folder / "a.csv", index=False)
        frames["transactions"].iloc[:0].to_csv(folder / "e1.csv", index=False)
        frames["transactions"].iloc[:0].to_csv(folder / "e2.csv", index=False)
    else:
        frames["transactions"].to_parquet(folder / "a.parquet")
        frames["transactions"].iloc[:0].to_parquet(folder / "e1.parquet")
        frames["transactions"].iloc[:0].to_parquet(folder / "e2.parquet")
    save({k: v for k, v in frames.items() if k != "transactions"})
    assert [p for p in check(config()) if p.level == "error"] == []  # empty parts are harmless
    shutil.copy(folder / f"a.{suffix}", folder / f"b.{suffix}")
    errors = [p.text for p in check(config()) if p.level == "error"]
    assert any(
        "1 files with the same bytes" in t and f"b.{suffix} = a.{suffix}" in t for t in errors
    )
    settings = config(source={"drop_duplicates": True})
    assert [p for p in check(settings) if p.level == "error"] == []
    tables = open_source(settings).tables()
    assert tables.counts["transactions"]["duplicate_dropped"] == N


@pytest.mark.parametrize("column", COLUMN_FEATURES)
def test_features_without_their_column_tell_nothing(column: str) -> None:
    """What the note on an empty column names is one value, or NULL, for everybody."""
    frames = good()
    frames["transactions"][column] = None
    save(frames)
    named = [n for n in CATALOGUE if n.startswith(COLUMN_FEATURES[column])]
    settings = config(features={"set": named})
    note = next(p for p in check(settings) if p.where == f"transactions.{column}")
    assert note.text.endswith(", ".join(named))
    tables = open_source(settings).tables()
    spine = all_customers(tables, settings.as_of(), settings)
    frame = build_features(tables, spine, named, settings, FrozenValues()).frame
    assert (frame.nunique() <= 1).all()


def test_rubbish_of_any_kind_ends_in_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    """Random cells, columns and whole tables are replaced by nonsense; no traceback, ever."""
    rng = np.random.default_rng(5)
    nonsense = [
        "",
        "NaN",
        "-1e999",
        "'; DROP TABLE x",
        "\u0000".strip("\u0000"),
        "2025-13-45",
        "王者",
    ]
    for _ in range(8):
        frames = good()
        for name, frame in frames.items():
            rough = frame.iloc[:60].astype(object)
            for column in rng.choice(rough.columns, 2):
                hit = rng.random(len(rough)) < rng.choice([0.02, 0.5, 1.0])
                rough.loc[hit, column] = rng.choice(nonsense, hit.sum())
            if rng.random() < 0.2:
                rough = rough.drop(columns=rng.choice(rough.columns))
            if rng.random() < 0.1:
                rough = rough.iloc[:0]
            frames[name] = rough
        save(frames)
        assert run(config()) in (0, 2)
        assert "Traceback" not in capsys.readouterr().out


def test_the_command_ends_with_2_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = good()
    line("amount", "x")(frames)
    exposure("arm", "gold")(frames)
    save(frames)
    Path("shop.yaml").write_text(
        "name: shop\nsource: {kind: files, path: t, as_of: 2025-03-05}\n"
        "outcome: {kind: conversion}\noffers: [{coupon_id: c5, kind: message}]\n"
    )
    assert main(["check", "--config", "shop.yaml"]) == 2
    out = capsys.readouterr()
    assert "transactions.amount" in out.out
    assert "exposures.arm" in out.out
    assert "Traceback" not in out.out + out.err


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "Asia/Kolkata", "America/New_York"])
def test_the_hours_are_local(zone: str) -> None:
    """Lines of 8 to 20 o'clock UTC are counted by the hour that they have in the zone."""
    frames = good()
    hours = frames["transactions"].transacted_at.dt.tz_convert(zone).dt.hour
    night = int(hours.between(1, 5).sum())
    save(frames)
    found = [p.text for p in check(config(timezone=zone)) if p.where.endswith("transacted_at")]
    told = any(f"{night} of {N} (" in text and f"o'clock in {zone}" in text for text in found)
    assert told == (night > N / 4)
