"""Drift: false alarms at the nominal rate whatever the sizes, shifts found, files that fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, chi2_contingency

from features.__main__ import main
from features.drift import FeatureProfile, compare, profile_features
from features.errors import DataError
from features.frozen import FrozenValues

MOMENT = datetime(2025, 4, 1, tzinfo=UTC)
Draw = Callable[[np.random.Generator, int], Any]


def _category(rng: np.random.Generator, n: int) -> Any:
    shares = 1 / np.arange(1, 31)
    return rng.choice([f"k{i}" for i in range(30)], n, p=shares / shares.sum()).astype(object)


def _with_gaps(rng: np.random.Generator, n: int) -> Any:
    return np.where(rng.random(n) < 0.2, np.nan, rng.exponential(30, n))


KINDS: dict[str, Draw] = {
    "money": lambda rng, n: rng.lognormal(3, 1, n),
    "count": lambda rng, n: rng.poisson(0.7, n).astype(float),
    "rare": lambda rng, n: (rng.random(n) < 0.03).astype(float),
    "gaps": _with_gaps,
    "category": _category,
}


def frame(rng: np.random.Generator, n: int) -> pd.DataFrame:
    return pd.DataFrame({name: draw(rng, n) for name, draw in KINDS.items()})


def drift(before: pd.DataFrame, now: pd.DataFrame, **more: Any) -> dict[str, Any]:
    reference = profile_features(before, MOMENT, FrozenValues())
    return {d.feature: d for d in compare(reference, now, **more)}


@pytest.mark.parametrize(
    ("n", "m", "runs"),
    [
        (150, 60, 120),
        (1000, 5000, 120),
        pytest.param(150, 60, 1500, marks=pytest.mark.slow),
        pytest.param(2000, 400, 1500, marks=pytest.mark.slow),
        pytest.param(600, 5000, 1500, marks=pytest.mark.slow),
    ],
)
def test_false_alarms_are_as_rare_as_promised(n: int, m: int, runs: int) -> None:
    """One feature's p is below 5% in 5% of samples; among all, an alarm comes in at most 5%."""
    alpha, limit = 0.05, 0.06  # Pearson's test is nominal but for small counts
    rng = np.random.default_rng(n)
    hits = dict.fromkeys(KINDS, 0)
    alarms = fixed = 0
    for _ in range(runs):
        found = drift(frame(rng, n), frame(rng, m), alpha=alpha)
        for name, d in found.items():
            hits[name] += d.p < alpha
        alarms += any(d.level != "none" for d in found.values())
        fixed += any(d.psi > 0.1 for d in found.values())
    # 99.9% limits of a binomial at the nominal rate; a coarse bin may make a test conservative.
    assert all(h <= binom.isf(5e-4, runs, limit) for h in hits.values()), hits
    assert sum(hits.values()) >= binom.ppf(5e-4, runs * len(hits), 0.6 * alpha), hits
    assert hits["money"] >= binom.ppf(5e-4, runs, 0.8 * alpha)
    assert alarms <= binom.isf(5e-4, runs, limit)
    if m == 60:
        assert fixed > runs / 2  # what a fixed PSI of 0.1 would have cried


def test_a_shift_is_found_in_its_feature_alone() -> None:
    rng = np.random.default_rng(4)
    before, now = frame(rng, 5000), frame(rng, 3000)
    now["money"] *= 1.8
    now.loc[rng.random(3000) < 0.3, "gaps"] = np.nan
    found = drift(before, now)
    assert {name for name, d in found.items() if d.level != "none"} == {"money", "gaps"}
    assert found["money"].level == "large"
    assert found["gaps"].missing_before == pytest.approx(0.2, abs=0.02)
    assert found["gaps"].missing_now == pytest.approx(0.44, abs=0.03)
    assert next(iter(found)) in ("money", "gaps")


def test_a_certain_but_tiny_shift_is_small() -> None:
    rng = np.random.default_rng(5)
    before = pd.DataFrame({"x": rng.normal(0, 1, 400_000)})
    now = pd.DataFrame({"x": rng.normal(0.03, 1, 400_000)})
    found = drift(before, now)["x"]
    assert found.level == "small"
    # The PSI of two normals of variance 1 is the squared difference of their means.
    assert found.psi == pytest.approx(0.03**2, rel=0.35)
    assert 0 < found.psi_at_least < 0.03**2


def test_the_lower_bound_holds() -> None:
    """psi_at_least exceeds the true shift in at most about alpha of samples."""
    rng = np.random.default_rng(6)
    runs, above = 150, 0
    p, q = np.full(4, 0.25), np.array([0.3, 0.25, 0.25, 0.2])
    n, m = 3000, 2000
    pooled = (n * p + m * q) / (n + m)
    truth = float(((p - q) ** 2 / pooled).sum())
    for _ in range(runs):
        before = pd.DataFrame({"x": rng.choice(list("abcd"), n, p=p)})
        now = pd.DataFrame({"x": rng.choice(list("abcd"), m, p=q)})
        above += drift(before, now, alpha=0.05)["x"].psi_at_least > truth
    assert above <= binom.isf(5e-4, runs, 0.06)


def test_the_test_is_pearsons() -> None:
    before = pd.DataFrame({"x": ["a"] * 60 + ["b"] * 40 + [None] * 20})
    now = pd.DataFrame({"x": ["a"] * 20 + ["b"] * 30 + [None] * 10})
    truth = chi2_contingency([[60, 40, 20], [20, 30, 10]], correction=False)
    found = drift(before, now)["x"]
    assert found.p == pytest.approx(truth.pvalue, rel=1e-12)
    assert found.degrees == 2
    assert found.psi_by_chance == pytest.approx(2 * (1 / 120 + 1 / 60))


def test_the_same_data_and_any_order_of_them() -> None:
    rng = np.random.default_rng(7)
    before = frame(rng, 1000)
    again = drift(before, before.sample(frac=1, random_state=1))
    assert all(d.p == pytest.approx(1) and d.psi == pytest.approx(0) for d in again.values())


def test_float32_of_training_and_float64_of_later_are_equal() -> None:
    values = pd.Series(np.tile([0.1, 0.3, 0.7, 0.9], 100))
    before = pd.DataFrame({"x": values.astype(np.float32)})
    assert drift(before, pd.DataFrame({"x": values}))["x"].p == 1


@pytest.mark.parametrize(
    ("before", "now"),
    [([0.0] * 50, [1.0] * 50), ([np.nan] * 50, [1.0] * 50), (["a"] * 50, ["z"] * 50)],
)
def test_a_feature_that_was_constant(before: list[Any], now: list[Any]) -> None:
    assert drift(pd.DataFrame({"x": before}), pd.DataFrame({"x": now}))["x"].level == "large"


def test_nothing_to_compare() -> None:
    before = pd.DataFrame({"x": [1.0, 2.0], "y": ["a", None]})
    found = drift(before, before.iloc[:0])
    assert [d.level for d in found.values()] == ["none", "none"]
    assert drift(before, before[["x"]])["y"].level == "not compared"


def test_a_profile_survives_its_file() -> None:
    rng = np.random.default_rng(9)
    before, now = frame(rng, 500), frame(rng, 400)
    profile = profile_features(before, MOMENT, FrozenValues(median_gap_days=7.0))
    again = FeatureProfile.from_json(json.dumps(profile.to_json()))
    assert again == profile
    assert compare(again, now) == compare(profile, now)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"customers": 1, "frozen": {}, "features": {}}'])
def test_another_file_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"--reference: expected the feature_profile\.json"):
        FeatureProfile.from_json(text)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(10)
    n = 3000
    Path("t").mkdir()
    lines = pd.DataFrame(
        {
            "customer_id": rng.integers(0, 600, n),
            "order_id": range(n),
            "transacted_at": pd.Timestamp("2025-01-01", tz="UTC")
            + pd.to_timedelta(rng.integers(0, 90 * 24, n), unit="h"),
            "amount": rng.lognormal(3, 0.5, n).round(2),
        }
    )
    lines.to_parquet("t/transactions.parquet")
    Path("shop.yaml").write_text(
        "name: shop\nsource: {kind: files, path: t, as_of: 2025-04-01}\n"
        "features: {set: [recency_days, spend_365d]}\noutcome: {kind: conversion}\n"
    )
    assert main(["build", "--config", "shop.yaml", "--out", "f.parquet"]) == 0
    built = pd.read_parquet("f.parquet")
    profile = profile_features(
        built[["recency_days", "spend_365d"]].assign(age=1.0), MOMENT, FrozenValues()
    )
    Path("profile.json").write_text(json.dumps(profile.to_json()))
    command = ["drift", "--config", "shop.yaml", "--reference", "profile.json", "--out", "d.json"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "0 of 2 features drifted" in told
    assert f"{len(built)} at the training, as of 2025-04-01T00:00:00Z" in told
    assert main([*command, "--as-of", "2025-05-01"]) == 0  # nobody buys after March
    out = capsys.readouterr().out
    assert "1 of 2 features drifted" in out
    assert "not compared, because the tables do not give them: age" in out
    report = json.loads(Path("d.json").read_text())
    assert report["as_of"] == "2025-05-01T00:00:00Z"
    first = report["features"][0]
    assert (first["feature"], first["level"]) == ("recency_days", "large")
    assert main([*command[:4], "nowhere.json", *command[5:]]) == 2
    assert "--reference" in capsys.readouterr().err
