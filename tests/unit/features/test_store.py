"""The incremental store: the same as from all lines at once, however they came in."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.__main__ import main
from features.build import build_features
from features.config import Config
from features.errors import ConfigError, DataError
from features.frozen import FrozenValues, fit_frozen
from features.grains import Workbench
from features.orders import ITEM, OF_ITEMS
from features.registry import get
from features.sources import open_source
from features.spine import Scratch, all_customers, load_spine
from features.store.manifest import read_manifest, store_folder
from features.tables import Tables
from tests.unit.features.conftest import arrow
from tests.unit.features.random_shop import (
    FEATURES,
    Row,
    make_customers,
    make_events,
    make_exposures,
    make_lines,
)
from tests.unit.features.store_files import (
    HEAD,
    MIDNIGHT,
    NAMES,
    OF_TRANSACTIONS,
    ZONE,
    assert_as_raw,
    config_of,
    data_files,
    from_scratch,
    lines_of,
    put,
    row,
    state,
    take_in,
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A random shop whose lines lie in 30 files, in any order of time; and those lines."""
    there = tmp_path_factory.mktemp("shop")
    (there / "t" / "transactions").mkdir(parents=True)
    rng = np.random.default_rng(2)
    # Fewer days make a faster test.
    lines = [line for line in make_lines(rng, ZONE) if line["transacted_at"].year == 2024]
    exposures = make_exposures(rng, lines)
    events, customers = make_events(rng, exposures), make_customers(rng, ZONE)
    # Every other order of one customer arrives as several deliveries, and some lines twice.
    shuffled = [lines[i] for i in rng.permutation(len(lines))]
    shuffled += shuffled[:20]
    for i, own in enumerate(np.array_split(np.arange(len(shuffled)), 30)):
        put(there / "t" / "transactions" / f"{i:02d}.parquet", [shuffled[j] for j in own])
    for name, rows in (("exposures", exposures), ("events", events), ("customers", customers)):
        table = arrow(name, pd.DataFrame(rows, dtype=object))
        pq.write_table(table, there / "t" / f"{name}.parquet")
    return there, shuffled


def moments(lines: list[Row]) -> list[datetime]:
    """The middle of a day with orders, exactly at a return, local midnight; then their neighbours,
    and the end."""
    times = sorted(r["transacted_at"] for r in lines)
    middle = times[len(times) // 2]
    back = next(r["transacted_at"] for r in reversed(lines) if r["amount"] < 0)
    step = timedelta(microseconds=1)
    return [middle + step, back, MIDNIGHT, middle, back + step, times[-1], times[-1] + step]


@pytest.mark.parametrize(
    "which", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 7))]
)
def test_every_feature_is_that_of_the_raw_lines(
    shop: tuple[Path, list[Row]], monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    there, lines = shop
    monkeypatch.chdir(there)
    config = config_of()
    store = open_source(config).tables()
    raw = open_source(config_of(incremental=False)).tables()
    assert store.counts == raw.counts
    assert store.identical_lines == raw.identical_lines >= 20
    assert store.absent == raw.absent
    moment = moments(lines)[which]
    frozen = FrozenValues("test", median_gap_days=21.5, response_rate=0.125)
    if which == 1:
        frozen = fit_frozen(raw, MIDNIGHT, config)
        assert fit_frozen(store, MIDNIGHT, config) == frozen
        assert frozen.prices
    spine = all_customers(store, moment, config)
    pd.testing.assert_frame_equal(spine, all_customers(raw, moment, config))
    assert_stored(store, spine, config, frozen)
    # Of other tables the store knows nothing; the slow tests ask for their features too.
    names = NAMES if which else [n for n in NAMES if {*get(n).needs} <= OF_TRANSACTIONS]
    assert len(names) > 40
    found = build_features(store, spine, names, config, frozen)
    want = build_features(raw, spine, names, config, frozen)
    pd.testing.assert_frame_equal(found.frame, want.frame, check_exact=True)


def assert_stored(
    tables: Tables, spine: pd.DataFrame, config: Config, frozen: FrozenValues
) -> None:
    """The store's sums are used, not its lines."""
    with Scratch(tables.con) as scratch:
        work = Workbench(
            tables, load_spine(spine, config.timezone, scratch), config, frozen, scratch
        )
        assert work.stored is not None


def test_a_category_stays_where_one_of_its_lines_came_back(folder: Path) -> None:
    # Of lines of one time, the return of a is sorted before the purchase of b.
    bought: Row = {"category": "X", "quantity": 1.0}
    at = "2024-05-01T08:00"
    lines = [row("1", at, **bought), row("1", at, -10.0, category="X", quantity=-1.0)]
    put(folder / "a.parquet", [*lines, row("1", at, 7.0, **bought | {"product_id": "q"})])
    config, names = config_of(), ["categories_365d", "category_favourite_365d"]
    tables = open_source(config).tables()
    spine = all_customers(tables, datetime(2024, 6, 1), config)
    found = build_features(tables, spine, names, config, FrozenValues()).frame
    assert found.to_numpy().tolist() == [[1.0, "X"]]


def test_purchase_lines_are_those_of_the_raw_lines(
    shop: tuple[Path, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, lines = shop
    monkeypatch.chdir(there)
    columns = [name for name in (*ITEM, *OF_ITEMS) if name not in ("since", "until")]
    spine, found = None, []
    for incremental in (True, False):
        config = config_of(incremental=incremental)
        tables = open_source(config).tables()
        if spine is None:  # not of everybody
            spine = all_customers(tables, moments(lines)[0], config).iloc[::2]
        with Scratch(tables.con) as scratch:
            loaded = load_spine(spine, config.timezone, scratch)
            work = Workbench(tables, loaded, config, FrozenValues(), scratch)
            assert (work.stored is not None) is incremental
            frame = scratch.fetch(work.items.select(*columns)).to_pandas()
        found.append(frame.sort_values(columns, ignore_index=True))
    assert len(found[0]) > 20
    pd.testing.assert_frame_equal(found[0], found[1], check_dtype=False, check_exact=True)


@pytest.mark.slow
def test_many_moments_come_from_the_lines(
    shop: tuple[Path, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, lines = shop
    monkeypatch.chdir(there)
    config = config_of()
    store = open_source(config).tables()
    raw = open_source(config_of(incremental=False)).tables()
    spine = pd.DataFrame(
        [(line["customer_id"], line["transacted_at"]) for line in lines[:100]],
        columns=["customer_id", "as_of"],
    )
    found = build_features(store, spine, NAMES, config, FrozenValues()).frame
    want = build_features(raw, spine, NAMES, config, FrozenValues()).frame
    pd.testing.assert_frame_equal(found, want, check_exact=True)


def test_day_by_day_is_the_same_as_at_once(folder: Path) -> None:
    rng = np.random.default_rng(5)
    lines = [line for line in make_lines(rng, ZONE) if line["transacted_at"].year == 2024][:60]
    lines.sort(key=lambda line: line["transacted_at"])
    for i, own in enumerate(np.array_split(np.arange(len(lines)), 5)):
        put(folder / f"{i:02d}.parquet", [lines[j] for j in own])
        taken = take_in()
        assert taken.read == len(own)
        # Days in the middle of the file's, and those that it shares with its neighbours.
        assert set(taken.days) == set(
            taken.store.manifest.files[f"transactions/{i:02d}.parquet"].days
        )
    grown = state()
    files = {path.name: path.read_bytes() for path in data_files()}
    assert from_scratch() == grown
    again = {path.name: path.read_bytes() for path in data_files()}
    named = {Path(day.lines).name for day in grown["days"].values()}
    assert named <= set(files)
    assert all(files[name] == again[name] for name in again)
    assert_as_raw()


def write_three(folder: Path) -> None:
    put(folder / "a.parquet", [row("1", "2024-05-01T08:00"), row("1", "2024-05-01T08:00", 5.0)])
    put(folder / "b.parquet", [row("2", "2024-05-02T08:00"), row("1", "2024-05-02T09:00", -5.0)])
    put(folder / "c.parquet", [row("3", "2024-05-03T08:00"), row("2", "2024-05-03T08:00")])


def test_a_late_line_writes_its_day_alone(folder: Path) -> None:
    write_three(folder)
    first = take_in()
    assert list(first.days) == ["2024-05-01", "2024-05-02", "2024-05-03"]
    before = first.store.manifest.days
    put(folder / "d.parquet", [row("4", "2024-05-04T08:00"), row("5", "2024-05-01T21:59:59")])
    late = take_in()
    assert (list(late.days), late.read) == (["2024-05-01", "2024-05-04"], 2)
    after = late.store.manifest.days
    assert [d for d in before if after[d] == before[d]] == ["2024-05-02", "2024-05-03"]
    assert from_scratch()["days"] == after
    assert_as_raw()


def test_the_day_of_a_line_is_the_local_one(folder: Path) -> None:
    put(folder / "a.parquet", [row("1", "2024-05-01T21:59:59"), row("2", "2024-05-01T22:00:00")])
    assert list(take_in().days) == ["2024-05-01", "2024-05-02"]


def test_a_corrected_file_replaces_its_lines(folder: Path) -> None:
    write_three(folder)
    take_in()
    put(folder / "b.parquet", [row("2", "2024-05-02T08:00", 99.0), row("6", "2024-05-05T08:00")])
    taken = take_in()
    assert taken.files == {
        "new": [],
        "changed": ["transactions/b.parquet"],
        "moved": [],
        "removed": [],
    }
    assert list(taken.days) == ["2024-05-02", "2024-05-05"]
    assert from_scratch()["days"] == taken.store.manifest.days
    assert_as_raw()


def test_a_removed_file_takes_its_lines_along(folder: Path) -> None:
    write_three(folder)
    take_in()
    (folder / "b.parquet").unlink()
    taken = take_in()
    assert taken.files["removed"] == ["transactions/b.parquet"]
    assert (list(taken.days), taken.read) == (["2024-05-02"], 0)
    assert list(taken.store.manifest.days) == ["2024-05-01", "2024-05-03"]
    assert_as_raw()


def test_a_moved_file_is_not_read_again(folder: Path) -> None:
    write_three(folder)
    take_in()
    (folder / "b.parquet").rename(folder / "z.parquet")
    taken = take_in()
    assert taken.files["moved"] == ["transactions/z.parquet"]
    assert (taken.days, taken.read) == ([], 0)
    assert_as_raw()


def test_what_is_known_is_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_three(folder)
    take_in()
    stamp = (store_folder(config_of()) / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(
        "features.store.intake.hashlib.file_digest", lambda *_: pytest.fail("a file was read")
    )
    taken = take_in()
    assert (taken.read, taken.days) == (0, [])
    assert (store_folder(config_of()) / "manifest.json").stat().st_mtime_ns == stamp


def test_a_change_within_the_tick_of_the_ingest_is_seen(folder: Path) -> None:
    write_three(folder)
    take_in()
    times = (folder / "a.parquet").stat()
    put(folder / "a.parquet", [row("1", "2024-05-01T08:00"), row("1", "2024-05-01T08:00", 6.0)])
    assert (folder / "a.parquet").stat().st_size == times.st_size
    # A write just after the ingest, by a clock as coarse as that.
    now = read_manifest(store_folder(config_of()))
    assert now is not None
    os.utime(folder / "a.parquet", ns=(now.written, now.written))
    assert take_in().files["changed"] == ["transactions/a.parquet"]
    assert_as_raw()


@pytest.mark.parametrize("broken", ["features.store.intake.write_manifest", "os.replace"])
def test_a_crash_leaves_the_former_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    write_three(folder)
    take_in()
    before = state()
    put(folder / "d.parquet", [row("5", "2024-05-01T10:00"), row("6", "2024-05-09T08:00")])

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(broken, crash)
        with pytest.raises(KeyboardInterrupt):
            take_in()
    assert state() == before
    assert list(take_in().days) == ["2024-05-01", "2024-05-09"]
    assert_as_raw()
    put(folder / "e.parquet", [row("7", "2024-05-09T09:00")])
    put(folder / "f.parquet", [row("8", "2024-05-10T09:00")])
    take_in()
    # Nothing half written stays.
    assert not list(store_folder(config_of()).glob("*/.*"))


def test_data_files_of_the_state_before_stay_for_those_who_read_them(folder: Path) -> None:
    write_three(folder)
    first = take_in()
    old = open_source(config_of()).tables()
    want = lines_of(old)
    put(folder / "d.parquet", [row("5", "2024-05-01T10:00")])
    take_in()
    pd.testing.assert_frame_equal(lines_of(old), want)
    put(folder / "e.parquet", [row("6", "2024-05-01T11:00")])
    second = take_in()
    names = {path.relative_to(second.store.folder).as_posix() for path in data_files()}
    assert first.store.manifest.days["2024-05-01"].lines not in names


def test_other_settings_do_it_again(folder: Path) -> None:
    write_three(folder)
    put(folder / "c.parquet", [row("3", "2024-05-03T08:00", coupon_id="M20")])
    take_in()
    offers = [{"coupon_id": "M20", "kind": "message"}]
    taken = take_in(config_of(offers=offers))
    assert "sums of orders" in taken.again
    assert (taken.read, len(taken.days)) == (0, 3)  # from the lines that the store has
    assert take_in(config_of(offers=offers)).again == ""
    zone = take_in(config_of(offers=offers, timezone="Asia/Tokyo"))
    assert "lines changed" in zone.again
    assert zone.read == 5
    assert_as_raw(offers=offers, timezone="Asia/Tokyo")


def test_a_build_of_other_settings_does_not_use_the_sums(folder: Path) -> None:
    write_three(folder)
    tables = open_source(config_of()).tables()
    other = config_of(features={**FEATURES, "online_channels": ["store"]})
    spine = all_customers(tables, MIDNIGHT, other)
    with Scratch(tables.con) as scratch:
        loaded = load_spine(spine, ZONE, scratch)
        assert Workbench(tables, loaded, other, FrozenValues(), scratch).stored is None
        early = load_spine(spine.assign(as_of=datetime(2024, 5, 1, 8)), ZONE, scratch)
        assert Workbench(tables, early, config_of(), FrozenValues(), scratch).stored is None


def test_the_same_delivery_twice_is_named(folder: Path) -> None:
    write_three(folder)
    take_in()
    before = state()
    (folder / "again.parquet").write_bytes((folder / "b.parquet").read_bytes())
    with pytest.raises(DataError, match=r"1 files with the same bytes.*b.parquet = again.parquet"):
        take_in()
    assert state() == before
    assert_as_raw(source={"drop_duplicates": True})


def test_identical_lines_of_several_files_are_dropped_once(folder: Path) -> None:
    lines = [row("1", "2024-05-01T08:00", line_id="l1"), row("1", "2024-05-01T08:00", line_id="l2")]
    put(folder / "a.parquet", lines)
    put(folder / "b.parquet", [*lines[1:], row("2", "2024-05-01T09:00", line_id="l3")])
    assert_as_raw()
    assert take_in().cleaned.counts == {"read": 4, "kept": 3, "duplicate_dropped": 1}
    # The file whose line counted goes: the other one's line counts instead.
    for name in ("a", "b"):
        (folder / f"{name}.parquet").rename(folder.parent / "aside.parquet")
        assert_as_raw()
        (folder.parent / "aside.parquet").rename(folder / f"{name}.parquet")


def test_line_ids_that_come_later_count_for_all(folder: Path) -> None:
    twice = [row("1", "2024-05-01T08:00")] * 2
    put(folder / "a.parquet", twice)
    assert take_in().cleaned.counts == {"read": 2, "kept": 2}
    put(folder / "b.parquet", [row("2", "2024-05-02T08:00", line_id="l1")])
    assert take_in().cleaned.counts == {"read": 3, "kept": 2, "duplicate_dropped": 1}
    assert_as_raw()


def test_lines_of_the_required_columns_alone(folder: Path) -> None:
    lines = "A,o1,2024-05-01T10:00Z,10.5\nA,o1,2024-05-01T10:00Z,2\nB,o2,2024-05-02T11:00Z,1\n"
    (folder / "a.csv").write_text(HEAD + lines)
    (folder / "b.csv").write_text(HEAD + "A,o1,2024-05-03T10:00Z,-2\nB,o2,2024-05-03T11:00Z,-1\n")
    found = []
    for incremental in (True, False):
        config = config_of(incremental=incremental)
        tables = open_source(config).tables()
        spine = all_customers(tables, datetime(2024, 5, 3, 10, 30), config)
        names = [name for name in NAMES if {*get(name).needs} <= {"transactions"}]
        found.append(build_features(tables, spine, names, config, FrozenValues()).frame)
    pd.testing.assert_frame_equal(found[0], found[1], check_exact=True)
    assert found[0]["orders_total"].tolist() == [1, 1]
    assert found[0]["unit_price_median_365d"].tolist() == [6.25, 1.0]


def test_too_many_bad_rows_leave_the_store_as_it_was(folder: Path) -> None:
    (folder / "a.csv").write_text(HEAD + "A,o1,2024-05-01T10:00Z,10.5\n")
    take_in()
    before = state()
    (folder / "b.csv").write_text(HEAD + "A,o1,yesterday,1\nB,o2,today,2\nC,o3,2024-05-02,3\n")
    with pytest.raises(DataError, match=r"2 of 3 rows bad: 2 bad_time in transacted_at"):
        take_in()
    assert state() == before


def test_a_day_without_sales_is_no_fault(folder: Path) -> None:
    (folder / "a.csv").write_text(HEAD)
    with pytest.raises(DataError, match=r"transactions: expected rows, found an empty table"):
        take_in()
    (folder / "b.csv").write_text(HEAD + "A,o1,2024-05-01T10:00Z,10.5\n")
    assert list(take_in().days) == ["2024-05-01"]
    (folder / "c.csv").write_text(HEAD + "A,o1,2024-05-02T10:00Z,10.5\n")
    assert list(take_in().days) == ["2024-05-02"]
    assert_as_raw()


def test_identities_that_change_do_it_again(folder: Path) -> None:
    (folder / "a.csv").write_text(HEAD + "A,o1,2024-05-01T10:00Z,10.5\n")
    (folder / "b.csv").write_text(HEAD + "B,o2,2024-05-02T10:00Z,10.5\n")
    take_in()
    head = "source,source_customer_id,customer_id\n"
    (folder.parent / "identities.csv").write_text(head + "app,A,B\n")
    assert "identities" in take_in().again
    assert_as_raw()
    (folder / "c.csv").write_text(HEAD + "A,o3,2024-05-03T10:00Z,10.5\n")
    assert take_in().again == ""
    assert_as_raw()
    lines = "customer_id,order_id,transacted_at,amount,source\nA,o3,2024-05-03T10:00Z,10.5,app\n"
    (folder / "c.csv").write_text(lines)
    with pytest.raises(DataError, match=r"expected the column source in every file or in none"):
        take_in()


def test_one_file_is_a_unit_too(folder: Path) -> None:
    file = folder.parent.parent / "sales.parquet"
    put(file, [row("1", "2024-05-01T08:00"), row("2", "2024-05-02T08:00")])
    config = config_of(source={"path": "sales.parquet"})
    assert len(take_in(config).days) == 2
    put(file, [row("1", "2024-05-01T08:00"), row("2", "2024-05-03T08:00")])
    taken = take_in(config)
    # All of the file's days are written; the one that did not change, with the same result.
    assert list(taken.days) == ["2024-05-01", "2024-05-02", "2024-05-03"]
    assert list(taken.store.manifest.days) == ["2024-05-01", "2024-05-03"]


def test_a_damaged_manifest_is_told(folder: Path) -> None:
    write_three(folder)
    take_in()
    (store_folder(config_of()) / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"Remove the folder data/store/test"):
        take_in()


def test_only_files_are_taken_in() -> None:
    with pytest.raises(ConfigError, match=r"source.incremental: true only with source.kind: files"):
        config_of(source={"kind": "simulated"})


def test_the_command_tells_what_it_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_three(folder)
    file = folder.parent.parent / "c.yaml"
    file.write_text("name: test\nsource: {kind: files, path: t}\noutcome: {kind: conversion}\n")
    assert main(["ingest", "--config", str(file)]) == 0
    told = capsys.readouterr().out
    assert "3 new files: transactions/a.parquet" in told
    assert "6 rows read, 6 good\n3 days written: 2024-05-01 to 2024-05-03\n" in told
    assert main(["ingest", "--config", str(file)]) == 0
    assert capsys.readouterr().out.startswith("nothing to take in\ntest: 6 lines of 3 days")
    assert main(["ingest", "--config", str(file), "--set", "source.kind=simulated"]) == 2
    assert "source.kind: expected files" in capsys.readouterr().err
