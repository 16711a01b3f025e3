"""`features check` says everything at once: counts, examples, and what a number means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chisquare

from features.check import check, run
from features.config import Config, validate

DAYS = pd.date_range("2025-01-01", periods=60, freq="D", tz="UTC")


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


def lines(n: int = 60) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "customer_id": [f"c{i % 400}" for i in range(n)],
            "order_id": [f"o{i}" for i in range(n)],
            "transacted_at": [DAYS[i % 60] for i in range(n)],
            "amount": 10.0,
        }
    )


def waves(controls: int = 200, treated: int = 200) -> pd.DataFrame:
    n = controls + treated
    return pd.DataFrame(
        {
            "customer_id": [f"c{i}" for i in range(n)],
            "campaign_id": "k",
            "assigned_at": "2025-02-01",
            "arm": ["control"] * controls + ["c5"] * treated,
        }
    )


def texts(settings: Config, level: str) -> list[str]:
    return [f"{p.where}: {p.text}" for p in check(settings) if p.level == level]


def save(**tables: pd.DataFrame) -> None:
    for name, frame in tables.items():
        frame.to_csv(f"t/{name}.csv", index=False)


def has(found: list[str], *parts: str) -> bool:
    return any(all(part in text for part in parts) for text in found)


def test_good_data_has_no_error_and_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    save(transactions=lines(400), exposures=waves())
    assert run(config()) == 0
    out = capsys.readouterr().out
    assert "transactions: 400 rows read, 400 kept" in out
    assert "0 errors, 0 warnings" in out


def test_what_is_left_out_is_a_note() -> None:
    save(transactions=lines(400).assign(colour="red"), exposures=waves())
    Path("t/prices.csv").write_text("a,b")
    notes = texts(config(), "note")
    assert has(notes, "transactions: columns kept out: colour")
    assert has(notes, "t: not a table, left alone: prices.csv")


def test_every_problem_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    bad = lines(100).astype(object)
    bad.loc[0:9, "amount"] = "x"
    bad.loc[10, "transacted_at"] = "never"
    only = waves(0, 50)
    only.loc[0:5, "arm"] = "gold"
    save(transactions=bad, exposures=only, customers=pd.DataFrame({"id": [1]}))
    assert run(config(features={"given": ["age"]})) == 2
    errors = texts(config(features={"given": ["age"]}), "error")
    assert has(errors, "transactions.amount", "11 of 100 rows bad")
    assert has(errors, "exposures.arm", "6 of 50 rows bad", "unknown_arm")
    assert has(errors, "exposures.arm", "only c5")
    assert has(errors, "customers.customer_id", "the column customer_id", "found the columns id")
    assert has(errors, "features.given", "age")
    assert len(errors) == 5
    warnings = texts(config(), "warning")
    assert has(warnings, "transactions.amount", "10 rows with bad_number", "(for example o0: x")
    assert has(warnings, "transactions.transacted_at", "1 rows with bad_time", "o10: never")
    out = capsys.readouterr().out
    assert "data/quarantine/shop/transactions.parquet" in out
    assert "Traceback" not in out


@pytest.mark.parametrize("controls", [200, 250, 150])
def test_sample_ratio(controls: int) -> None:
    save(transactions=lines(400), exposures=waves(controls, 400 - controls))
    plan = config(experiment={"assignment": {"control": 0.5, "c5": 0.5}})
    p = chisquare([controls, 400 - controls]).pvalue
    shown = f"p = {p:.2g}, n = 400"
    if p < 0.001:
        assert has(texts(plan, "error"), "not assigned as planned", shown)
        seen = plan.model_copy(
            update={"experiment": plan.experiment.model_copy(update={"randomised": False})}
        )
        assert has(texts(seen, "warning"), "not assigned as planned")
        assert texts(seen, "error") == []
    else:
        assert texts(plan, "error") == []
        assert has(texts(plan, "note"), shown)


def test_sample_ratio_counts_clusters_not_rows() -> None:
    """Households of ten: 20 against 20 households, whatever the number of rows."""
    rows = waves(300, 100)
    rows["household"] = [f"h{i // 15}" for i in range(300)] + [f"g{i // 5}" for i in range(100)]
    save(transactions=lines(400), exposures=rows)
    plan = {"assignment": {"control": 0.5, "c5": 0.5}, "cluster": "household"}
    assert has(texts(config(experiment=plan), "note"), "50.00% for 50.00%", "p = 1, n = 40")


@pytest.mark.parametrize(
    ("plan", "parts"),
    [
        ({"k": {"control": 1.0}}, ("none for c5", "campaign k")),
        ({"summer": {"control": 0.5, "c5": 0.5}}, ("assignment.summer", "none of that name")),
    ],
)
def test_a_plan_that_does_not_fit(plan: dict[str, Any], parts: tuple[str, ...]) -> None:
    save(transactions=lines(400), exposures=waves())
    assert has(texts(config(experiment={"assignment": plan}), "error"), *parts)


def test_windows_that_are_open() -> None:
    rows = waves()
    rows.loc[0:99, "assigned_at"] = "2025-02-20"
    save(transactions=lines(400), exposures=rows)
    assert has(texts(config(), "note"), "100 of 400 (25.0%) windows", "2025-03-02 00:00Z")
    # 2025-02-16 + 14 days is the end of the data: complete. A moment later is not.
    rows["assigned_at"] = "2025-02-16T00:00:00Z"
    save(exposures=rows)
    assert has(texts(config(), "note"), "0 of 400 (0.0%) windows")
    rows["assigned_at"] = "2025-02-16T00:00:01Z"
    save(exposures=rows)
    assert has(texts(config(), "error"), "400 of 400 (100.0%) windows")


def test_waves_that_overlap() -> None:
    again = waves().assign(campaign_id="k2", assigned_at="2025-02-14")
    apart = waves().assign(campaign_id="k3", assigned_at="2025-03-01")
    save(transactions=lines(400), exposures=pd.concat([waves(), again, apart.iloc[:10]]))
    assert has(texts(config(), "note"), "400 of 810 (49.4%) exposures begin while")


def test_customers_without_transactions() -> None:
    save(transactions=lines(300), exposures=waves())
    warnings = texts(config(), "warning")  # more than half of the rows
    first = np.array([i % 60 for i in range(300)])
    late = int((first >= 31).sum())
    assert late + 100 == 245
    assert has(warnings, "245 of 400", "100 customers have no transaction at all", "c300")


def test_few_rows_and_no_rows() -> None:
    offers = [{"coupon_id": c, "kind": "message"} for c in ("c5", "p10")]
    save(transactions=lines(400), exposures=waves(200, 20))
    warnings = texts(config(offers=offers), "warning")
    assert has(warnings, "arm c5: 20 rows, too few")
    assert has(warnings, "arm p10: no rows")


def test_lines_that_look_wrong() -> None:
    frame = pd.concat([lines(400), lines(3)])
    frame.iloc[5, 3] = 10 * 1000 + 1
    save(transactions=frame, exposures=waves())
    warnings = texts(config(), "warning")
    assert has(warnings, "3 lines repeat an earlier line")
    assert has(warnings, "1 lines above 10000.00", "o5")


def test_times_that_look_wrong() -> None:
    save(transactions=lines(400), exposures=waves())
    assert has(texts(config(source={"as_of": "now"}), "warning"), "days old")
    assert has(texts(config(source={"as_of": "2024-12-01"}), "error"), "as_of", "after the first")
    frame = lines(400).astype(object)
    frame.loc[0, "transacted_at"] = "2200-01-01T00:00:00Z"
    save(transactions=frame)
    assert has(texts(config(), "warning"), "1 lines lie in the future")


def test_events_that_nothing_reads() -> None:
    events = pd.DataFrame(
        {"customer_id": "c1", "type": ["opened", "bounced"], "occurred_at": "2025-02-02"}
    )
    save(transactions=lines(400), exposures=waves(), events=events)
    assert has(texts(config(), "warning"), "bounced (1 rows)")


def test_one_customer_in_two_arms() -> None:
    rows = pd.concat([waves(), waves().iloc[:3].assign(arm="c5")])
    save(transactions=lines(400), exposures=rows)
    assert has(
        texts(config(), "warning"), "3 customers were assigned to several arms", "c0, c1, c2"
    )


def test_exposures_alone_need_a_given_outcome() -> None:
    save(exposures=waves().assign(visit=[0, 1] * 200))
    assert has(texts(config(), "error"), "outcome.kind", "column")
    given = config(outcome={"kind": "column", "column": "visit"})
    assert texts(given, "error") == []


def test_what_cannot_be_read_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config(source={"path": "nowhere"})) == 2
    assert "error   nowhere: expected a folder of tables" in capsys.readouterr().out
    Path("t/transactions.parquet").write_bytes(b"PAR1 junk")
    save(exposures=waves())
    errors = texts(config(), "error")
    assert has(errors, "t/transactions.parquet", "damaged")
