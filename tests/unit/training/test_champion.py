"""A champion beside a challenger, on customers whom neither has learned from."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.config import Config
from tests.unit.training.shops import (
    config_of,
    exposure,
    line,
    random_experiment,
    wide_config,
    write,
)
from training.champion import Champion, Incumbent, champion_features, decode, incumbent
from training.gate import SEND_NOTHING, Evidence, Verdict, judge
from training.train import Training, run
from uplift.bundle import ScoringBundle
from uplift.data import Schema, split_customers
from uplift.effects import EffectModel

NOW = datetime(2026, 6, 1, tzinfo=UTC)
CONFIG = wide_config(Path("."))


class Past:
    """A history that knows one champion, and counts nothing."""

    def __init__(self, bundle: ScoringBundle | None, days: float = 1.0, used: int = 0) -> None:
        at = datetime.now(UTC) - timedelta(days=days)
        self.held = Champion("3", at, bundle, "" if bundle else "its file was cut")
        self.used = used

    def champion(self) -> Champion:
        return self.held

    def times_used(self, digest: str) -> int:
        return self.used


def trained(config: Config, history: Past | None = None) -> Training:
    made = run(config, lambda text: None, history)
    assert isinstance(made, Training)
    return made


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Path]:
    folder = random_experiment(tmp_path_factory.mktemp("c") / "t", 3000, effect=1.5)
    return trained(wide_config(folder)), folder


def beside(t: Training, bundle: ScoringBundle | None, days: float = 1.0) -> Incumbent:
    champion = Champion("3", NOW - timedelta(days=days), bundle, "" if bundle else "cut")
    return incumbent(champion, t.tables, t.dataset, t.models, t.evaluation, CONFIG, NOW)


def judged(t: Training, held: Incumbent) -> Verdict:
    evidence = Evidence(t.diagnostics, incumbent=held)
    return judge(t.evaluation, t.models, t.dataset, CONFIG, evidence)


def test_the_same_model_again_does_not_take_its_own_place(
    first: tuple[Training, Path],
) -> None:
    t, folder = first
    again = trained(wide_config(folder), Past(t.verdict.bundle, used=2))
    verdict = again.verdict
    assert not verdict.promote
    assert verdict.policy == "t"
    assert verdict.times_used == 3
    assert "version 3" in verdict.reason
    step = next(s for s in verdict.steps if s.number == 4 and "champion" in s.test)
    assert (step.value, step.outcome) == (0.0, "fail")


def test_an_old_champion_gives_way_to_one_that_is_not_worse(first: tuple[Training, Path]) -> None:
    t, _ = first
    assert not judged(t, beside(t, t.verdict.bundle, days=44.0)).promote
    assert judged(t, beside(t, t.verdict.bundle, days=45.0)).promote


def test_a_champion_that_sends_nothing_gives_way_to_an_effect(first: tuple[Training, Path]) -> None:
    t, _ = first
    silent = replace(t.verdict.bundle, offered=(False, False), policy=SEND_NOTHING)
    held = beside(t, silent)
    assert held.policy is not None
    assert not held.policy.any()
    gain = held.less_than(t.verdict.value.policy, t.evaluation.scored, 0.0)
    assert gain.value == pytest.approx(t.verdict.value.gain.value)
    assert judged(t, held).promote


def test_no_fallback_takes_the_place_of_a_better_champion(first: tuple[Training, Path]) -> None:
    """The champion knows the effect; the challenger's is turned round, and fails."""
    t, _ = first
    chosen = t.evaluation.chosen
    wrong = replace(
        chosen, value=replace(chosen.value, policy=1.0 - chosen.value.policy.clip(0, 1))
    )
    evaluation = replace(t.evaluation, chosen=wrong)
    held = beside(t, t.verdict.bundle)
    verdict = judge(
        evaluation, t.models, t.dataset, CONFIG, Evidence(t.diagnostics, incumbent=held)
    )
    assert not verdict.promote
    tried = {s.candidate for s in verdict.steps}
    assert len(tried) == 4
    for name in tried:
        assert not all(s.passed for s in verdict.steps if s.candidate == name)


@pytest.mark.parametrize("why", ["damaged", "no split", "all seen"])
def test_a_champion_that_cannot_be_compared_stays(first: tuple[Training, Path], why: str) -> None:
    t, _ = first
    bundle: ScoringBundle | None = t.verdict.bundle
    assert bundle is not None
    if why == "damaged":
        bundle = None
    elif why == "no split":
        bundle = replace(bundle, info={k: v for k, v in bundle.info.items() if k != "split"})
    else:
        bundle = replace(bundle, info={**bundle.info, "split": {"seed": 7, "test_share": 0.01}})
    held = beside(t, bundle)
    assert held.why_not
    verdict = judged(t, held)
    assert not verdict.promote
    assert any(f"cannot be compared: {held.why_not}" in s.text for s in verdict.steps)


def test_only_customers_whom_the_champion_never_saw_count(first: tuple[Training, Path]) -> None:
    t, _ = first
    bundle = t.verdict.bundle
    same = beside(t, bundle)
    assert same.unseen is not None
    assert same.unseen.all()
    other = beside(
        t, replace(bundle, info={**bundle.info, "split": {"seed": 8, "test_share": 0.3}})
    )
    assert other.unseen is not None
    test = t.models.test
    assert np.array_equal(other.unseen, split_customers(test.customer, test.cluster, 0.3, 8))
    assert 0.2 < other.unseen.mean() < 0.4


def test_arms_that_are_gone_or_new_are_told_apart(first: tuple[Training, Path]) -> None:
    """The champion knows the arms in another order, one that is gone, and not `tote`."""
    t, _ = first
    bundle = t.verdict.bundle
    gone = replace(bundle.offers[1], coupon_id="gone")
    swapped = replace(
        bundle,
        offers=(gone, bundle.offers[0]),
        offered=(True, True),
        effects=EffectModel(np.array([9.0, 1.0])),
        costs=EffectModel(np.zeros(2)),
        cost_calibration=np.tile([0.0, 1.0, 0.0], (2, 1)),
        effect_calibration=None,
    )
    held = beside(t, swapped)
    assert held.policy is not None
    assert held.policy.mean(axis=0).tolist() == [1.0, 0.0]


def test_categories_come_back_as_they_were() -> None:
    schema = Schema(("n", "c"), {"c": ("u", "v")})
    X = np.array([[1.5, 0.0], [np.nan, 1.0], [2.0, np.nan]], dtype=np.float32)
    frame = decode(schema, X)
    assert frame["c"].tolist()[:2] == ["u", "v"]
    assert frame["c"].isna().tolist() == [False, False, True]
    np.testing.assert_array_equal(schema.encode(frame), X)
    other = Schema(("c", "n"), {"c": ("v", "w", "u")})
    np.testing.assert_array_equal(other.encode(frame)[:, 0], [2.0, 0.0, np.nan])


def test_features_that_differ_are_built_from_the_tables(tmp_path: Path) -> None:
    """A champion with other features, or other population values, reads what it would when it
    serves."""
    rng = np.random.default_rng(5)
    arms: list[Any] = rng.choice(["control", "c5", "tote"], 400).tolist()
    exposures = [exposure(i, f"k{i}", arm) for i, arm in enumerate(arms)]
    days = rng.integers(1, 9, 400)
    lines = [line(f"k{i}", f"o{i}", f"2026-01-0{d}", 10.0 + i % 7) for i, d in enumerate(days)]
    lines += [line(f"k{i}", f"p{i}", "2026-01-12", 30.0) for i in range(0, 400, 5)]
    lines += [line("k9", "end", "2026-02-20", 1.0)]
    folder = write(tmp_path / "t", exposures=exposures, transactions=lines)
    t = trained(config_of(folder))
    bundle, config = t.verdict.challenger, config_of(folder)
    plain, _ = champion_features(bundle, t.tables, t.dataset, t.models, config)
    np.testing.assert_array_equal(plain, t.models.test.X)
    older = replace(bundle, frozen={**bundle.frozen, "version": "older"})
    rebuilt, _ = champion_features(older, t.tables, t.dataset, t.models, config)
    np.testing.assert_array_equal(rebuilt, t.models.test.X)
    names = ["orders_total", "recency_days", "spend_total"]
    further = replace(
        bundle, features={"names": names, "given": []}, schema=Schema(tuple(names), {})
    )
    found, _ = champion_features(further, t.tables, t.dataset, t.models, config)
    assert found is not None
    np.testing.assert_array_equal(found[:, 0], t.models.test.X[:, 1])
    number = np.array([int(c[1:]) for c in t.models.test.customer])
    np.testing.assert_array_equal(found[:, 2], 10.0 + number % 7)
    given = replace(bundle, features={"names": [], "given": ["x9"]})
    nothing, why = champion_features(given, t.tables, t.dataset, t.models, config)
    assert nothing is None
    assert "x9" in why
