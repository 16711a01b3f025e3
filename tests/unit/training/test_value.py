"""Value targets: moments and outcomes by hand, no view of the future, and the choice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.config import Config, validate
from features.errors import ConfigError, DataError
from features.frozen import fit_frozen
from features.sources import open_source
from tests.unit.training.shops import line, write
from training.train import ValueTraining, run
from training.value import PROBABILITY, Candidates, Values, choose, compare, value_summary
from training.value_panel import Panel, build_panel, earliest, plan_of, value_plans, windows
from uplift.bundle import load_bundle
from uplift.scores import Estimate

START = datetime(2025, 1, 1, tzinfo=UTC)
END = START + timedelta(days=360)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config_of(folder: Path, **sections: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "values",
        "source": {
            "kind": "files",
            "path": str(folder),
            "as_of": END.isoformat(),
            "complete_until": END.isoformat(),
        },
        "features": {"set": ["recency_days", "orders_30d", "channel_favourite_365d"]},
        "targets": {"repurchase_days": 60, "churn_days": 60, "active_days": 90, "clv_days": 60},
        "outcome": {"kind": "conversion"},
        "training": {
            "response_targets": ["repurchase", "churn", "clv"],
            "folds": 2,
            "threads": 1,
        },
    }
    return validate(raw | sections)


def random_shop(folder: Path, customers: int = 500, seed: int = 1) -> Path:
    """Customers of different rates who drop out for good; money is gamma."""
    rng = np.random.default_rng(seed)
    rate, left = rng.gamma(1.2, 1 / 40, customers), rng.exponential(300, customers)
    first = rng.uniform(0, 250, customers)
    rows: list[dict[str, Any]] = []
    for c in range(customers):
        at = first[c]
        while at < min(360, first[c] + left[c]):
            moment = START + timedelta(days=float(at))
            rows.append(line(f"k{c}", f"o{len(rows)}", moment.isoformat(), rng.gamma(4, 8)))
            at += rng.exponential(1 / rate[c])
    return write(folder, transactions=rows)


def panel_of(config: Config) -> Panel:
    tables = open_source(config).tables()
    plans = value_plans(tables, config)
    first = earliest(plans)
    assert first is not None
    return build_panel(tables, config, plans, fit_frozen(tables, first, config))


def test_moments_by_hand(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    plan = plan_of("repurchase", START, END, config)
    assert plan.test == START + timedelta(days=300)
    # Windows of 60 days that are over at the test moment, each with 60 days of history before.
    assert plan.past.days == 60
    days = [(s - START).days for s in plan.past.starts]
    assert days == [240, 180, 120, 60]
    assert [(s - START).days for s in plan.now.starts] == [300, 240, 180, 120]
    short = windows(START, START + timedelta(days=100), 60)
    assert (short.days, [(s - START).days for s in short.starts]) == (50, [50])
    with pytest.raises(DataError, match=r"history of more than 74 days.*found 70 days"):
        plan_of("clv", START, START + timedelta(days=70), config)


def test_outcomes_by_hand(tmp_path: Path) -> None:
    test = (START + timedelta(days=300)).replace(tzinfo=None)

    def at(seconds: float) -> str:
        return (test + timedelta(seconds=seconds)).isoformat()

    lines = [line(c, f"{c}0", "2025-01-02T00:00:00", 10.0) for c in "abcde"]
    lines += [
        line("a", "a1", at(0), 50.0, discount=10.0),
        line("a", "a1", at(3600), -20.0),
        line("b", "b1", at(60 * 86400), 70.0),
        line("c", "c1", at(86400), 30.0),
        line("c", "c1", at(2 * 86400), -30.0),
        line("d", "d1", at(60 * 86400 - 1), 5.0),
        line("f", "f1", at(1), 99.0),
    ]
    config = config_of(
        write(tmp_path / "shop", transactions=lines),
        outcome={"kind": "profit", "margin_rate": 0.4},
    )
    panel = panel_of(config)
    rows = panel.at(panel.plans[0].test)
    ids = panel.customer_id[rows].tolist()
    assert ids == list("abcde")  # f has no order before the moment
    assert panel.outcome("repurchase", rows, 60).tolist() == [1, 0, 0, 1, 0]
    assert panel.outcome("churn", rows, 60).tolist() == [0, 1, 1, 0, 1]
    # contribution = amount - 0.6 (amount + discount)
    money = panel.outcome("clv", rows, 60)
    assert money == pytest.approx([50 - 0.6 * 60 - 20 + 0.6 * 20, 0, 0, 5 * 0.4, 0])
    no_margin = config.model_copy(update={"outcome": config_of(tmp_path).outcome})
    revenue = replace(panel, config=no_margin)
    assert revenue.outcome("clv", rows, 60) == pytest.approx([30, 0, 0, 5, 0])
    # The share of contribution, of the lines before: 10 - 0.6 * 10 of 10.
    assert panel.contribution_share(panel.plans[0].test) == pytest.approx(0.4)


def test_the_future_changes_no_candidate(tmp_path: Path) -> None:
    """What is compared at the test moment was learned from lines before it alone."""
    folder = random_shop(tmp_path / "shop")
    config = config_of(folder)
    panel = panel_of(config)
    plan = panel.plans[0]
    lines = pd.read_csv(folder / "transactions.csv")
    late = pd.to_datetime(lines["transacted_at"], format="ISO8601") >= plan.test
    assert late.sum() > 100
    changed = lines.copy()
    changed.loc[late, "amount"] *= 7
    (tmp_path / "other").mkdir()
    changed[~late | (np.arange(len(lines)) % 3 == 0)].to_csv(
        tmp_path / "other" / "transactions.csv", index=False
    )
    other = panel_of(config_of(tmp_path / "other"))
    rows = panel.at(plan.test)
    one, two = (Candidates(p, plan, config, plan.test) for p in (panel, other))
    for kind in ("naive", "lifetime"):
        assert one.baseline(kind) == two.baseline(kind)
    first, second = (
        c.trees().model.predict(panel.X[rows], panel.schema, threads=1) for c in (one, two)
    )
    assert np.array_equal(first, second)
    came = [p.outcome("repurchase", p.at(plan.test), plan.days).sum() for p in (panel, other)]
    assert came[1] < came[0]


def test_reports_of_a_shop_whose_customers_follow_the_model(tmp_path: Path) -> None:
    config = config_of(random_shop(tmp_path / "shop"))
    training = run(config, lambda _: None)
    assert isinstance(training, ValueTraining)
    assert [r.target for r in training.values.reports] == ["repurchase", "churn", "clv"]
    for report in training.values.reports:
        gains = report.gains
        beats = all(g[report.deciding].lo > 0 for g in gains.values())
        assert (report.served == "lightgbm") == beats
        assert report.model.kind == report.served
        kinds = {k: m[report.deciding].value for k, m in report.metrics.items()}
        if not beats:
            assert kinds[report.served] == min(kinds["naive"], kinds["lifetime"])
        # Whatever is served knows more than the mean.
        spread = np.sqrt(np.mean((report.y - report.y.mean()) ** 2))
        assert np.sqrt(np.mean((report.y - report.p) ** 2)) < spread
    told = "\n".join(value_summary(training.values))
    assert "clv in 60 days (revenue, EUR)" in told
    saved = training.bundle.save(tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle", saved.sha256)
    assert loaded.arms == ()
    X = training.panel.X[:50]
    assert np.isnan(loaded.score(X).response).all()
    assert loaded.values is not None
    assert set(loaded.values.predict(X)) == {"repurchase", "churn", "clv"}


def test_what_cannot_be_learned(tmp_path: Path) -> None:
    once = [
        line(f"k{i}", f"o{i}", (START + timedelta(days=i)).isoformat(), 5.0) for i in range(200)
    ]
    config = config_of(write(tmp_path / "once", transactions=once))
    with pytest.raises(DataError, match=r"repurchase is left out: .* found 0 among"):
        run(config, lambda _: None)
    without = config_of(tmp_path / "once", training={"response_targets": ["response"]})
    with pytest.raises(ConfigError, match="at least one offer"):
        run(without, lambda _: None)
    offers = [{"coupon_id": "c5", "kind": "fixed_off", "params": {"off": 5.0}}]
    with pytest.raises(DataError, match="a table of exposures"):
        run(without.model_copy(update={"offers": config_of_offers(offers).offers}), lambda _: None)


def config_of_offers(offers: list[dict[str, Any]]) -> Config:
    return config_of(Path("nowhere"), offers=offers)


def test_differences_have_the_error_of_pairs() -> None:
    rng = np.random.default_rng(2)
    n = 1000
    p = rng.uniform(0.1, 0.9, n)
    y = (rng.random(n) < p).astype(np.float64)
    worse = np.clip(p + rng.normal(0, 0.1, n), 0.01, 0.99)
    metrics, gains = compare(y, {"lightgbm": p, "naive": worse}, PROBABILITY, rng)
    rowwise = (y - worse) ** 2 - (y - p) ** 2
    gain = gains["naive"]["brier_error"]
    assert gain.value == pytest.approx(rowwise.mean(), rel=1e-9)
    assert gain.se == pytest.approx(rowwise.std() / np.sqrt(n), rel=0.2)
    assert gain.se < 0.5 * metrics["naive"]["brier_error"].se
    same = compare(y, {"lightgbm": p, "naive": p}, PROBABILITY, rng)[1]["naive"]["auc"]
    assert (same.value, same.se) == (0, 0)


@pytest.mark.parametrize(
    ("naive", "lifetime", "kind", "why"),
    [
        ((0.02, 0.005), (0.03, 0.005), "lightgbm", "beats naive"),
        ((0.02, 0.005), (0.001, 0.005), "lifetime", "does not clearly beat it"),
        ((-0.01, 0.005), (0.02, 0.005), "naive", "does not clearly beat it"),
        ((0.02, 0.005), (0.03, 0.02), "naive", "does not clearly beat lifetime"),
    ],
)
def test_the_choice(
    naive: tuple[float, float], lifetime: tuple[float, float], kind: str, why: str
) -> None:
    gains = {"naive": {"m": Estimate(*naive)}, "lifetime": {"m": Estimate(*lifetime)}}
    metrics = {k: {"m": Estimate(1 + g["m"].value, 0.1)} for k, g in gains.items()}
    served, said = choose(metrics, gains, "m")
    assert served == kind
    assert why in said


def test_nothing_is_said_of_no_values() -> None:
    assert value_summary(Values()) == []
