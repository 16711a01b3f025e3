"""Each step of the gate by itself, and the way through them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from features.config import GateConfig
from features.sources import open_source
from tests.unit.training.shops import (
    config_of,
    exposure,
    line,
    random_experiment,
    wide_config,
    write,
)
from training import gate_steps
from training.champion import fold_digest
from training.dataset import build_dataset
from training.fit import AVERAGE
from training.gate import Evidence, judge
from training.gate_steps import (
    budget_step,
    data_step,
    effect_steps,
    golden_step,
    money_step,
    response_step,
    seed_step,
    segment_step,
)
from training.guardrails import Guardrail, change, guardrails, segment_gains
from training.page import LONGEST, page, story
from training.records import gate_metrics
from training.second_seed import carried, gain_again
from training.train import Training, offers_of, run
from uplift.effects import EffectModel
from uplift.errors import BundleError
from uplift.scores import Estimate, clustered_mean

ALPHA = 0.05


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A coupon with a clear effect on half of the customers."""
    folder = random_experiment(tmp_path_factory.mktemp("g") / "t", 3000, effect=1.5)
    made = run(wide_config(folder), lambda text: None)
    assert isinstance(made, Training)
    return made


def test_the_learner_goes_through_every_step(training: Training) -> None:
    verdict = training.verdict
    assert verdict.promote
    assert {step.number for step in verdict.steps} == set(range(8))
    assert {step.candidate for step in verdict.steps} == {"t"}
    found = {step.test: step for step in verdict.steps}
    assert found["another seed"].outcome == "pass"
    assert found["against the champion"].outcome == "not run"
    gain = verdict.value.gain
    step = found["against no offer"]
    assert (step.value, step.bound) == (gain.value, pytest.approx(gain.bound))
    for test in ("against random", "against response ranking", "against best single coupon"):
        assert found[test].outcome == "pass"
    assert verdict.digest == fold_digest(training.dataset, training.models)
    told = verdict.to_json()
    assert [s["outcome"] for s in told["steps"]] == [s.outcome for s in verdict.steps]
    assert told["times_used"] == 1


def test_every_step_that_was_run_keeps_its_number_and_its_threshold(training: Training) -> None:
    """Failed ones too, in gate.json and as metrics by which runs compare."""
    t, config = training, wide_config(Path("."))
    strict = judge(t.evaluation, t.models, t.dataset, config, Evidence(times_used=10**300))
    assert len({step.candidate for step in strict.steps}) == 4  # down to no offer
    for verdict in (training.verdict, strict):
        for step in verdict.steps:
            if step.outcome != "not run":
                assert step.value is not None
                assert step.threshold is not None
        metrics = gate_metrics(verdict)
        own = [s for s in verdict.steps if s.candidate == "t" and s.outcome != "not run"]
        assert sum(name.endswith("_failed") for name in metrics) == len(own)
        assert sum(metrics[n] for n in metrics if n.endswith("_failed")) == sum(
            not s.passed for s in own
        )
        step = next(s for s in own if s.test == "against no offer")
        name = "gate4_against_no_offer"
        assert metrics[name] == step.value
        assert metrics[f"{name}_bound"] == step.bound
        assert metrics[f"{name}_threshold"] == 0
    assert gate_metrics(training.verdict)["gate4_against_no_offer_failed"] == 0
    assert gate_metrics(strict)["gate4_against_no_offer_failed"] == 1


def test_the_margin_is_fixed_by_the_training_rows(training: Training) -> None:
    margin = 0.1 * training.evaluation.chosen.validation.value
    found = {step.test: step for step in training.verdict.steps}
    assert found["against response ranking"].threshold == pytest.approx(-margin)


def test_a_reused_fold_is_judged_more_strictly(training: Training) -> None:
    config = wide_config(Path("."))
    t = training
    often = judge(t.evaluation, t.models, t.dataset, config, Evidence(times_used=10))
    assert often.alpha == pytest.approx(0.005)
    gain = t.evaluation.chosen.value.gain
    bound = {s.test: s.bound for s in often.steps}["against no offer"]
    assert bound == pytest.approx(gain.value - 2.5758 * gain.se, rel=1e-4)
    assert "used 10 times" in often.steps[0].text


def test_the_digest_knows_which_exposures_are_held_out(training: Training) -> None:
    order = np.random.default_rng(0).permutation(len(training.dataset.training))
    mixed = replace(training.dataset, exposure=training.dataset.exposure[order])
    models = replace(training.models, is_test=training.models.is_test[order])
    assert fold_digest(mixed, models) == training.verdict.digest
    assert fold_digest(mixed, training.models) != training.verdict.digest


def test_another_seed_learns_anew_and_earns_about_the_same(training: Training) -> None:
    t, config = training, wide_config(Path("."))
    one = gain_again(t.evaluation, t.models, t.dataset, config)
    gain = t.evaluation.chosen.value.gain
    assert one.value != gain.value
    assert abs(one.value - gain.value) < gain.se
    assert gain_again(t.evaluation, t.models, t.dataset, config) == one


def test_of_what_combines_the_members_with_a_weight_are_learned_anew(training: Training) -> None:
    whole = training.models.learners["t"]
    other = replace(whole, model=EffectModel(whole.model.constant))
    combined = replace(whole, model=whole.model.scaled(0.5))
    learners = {"s": other, "t": whole, "ensemble": combined, AVERAGE: whole}
    assert carried(replace(training.models, learners=learners), "ensemble") == ["t"]


def test_a_difference_needs_its_bound_above_nought_or_the_margin() -> None:
    clear, unclear = Estimate(1.0, 0.5), Estimate(0.5, 0.5)
    assert money_step("c", "t", clear, ALPHA, "EUR").outcome == "pass"
    assert money_step("c", "t", unclear, ALPHA, "EUR").outcome == "fail"
    assert money_step("c", "t", unclear, ALPHA, "EUR", margin=0.4).outcome == "pass"
    assert money_step("c", "t", unclear, ALPHA, "EUR", margin=0.3).outcome == "fail"
    same = Estimate(0.0, 0.0)
    assert money_step("c", "t", same, ALPHA, "EUR").outcome == "fail"
    assert money_step("c", "t", same, ALPHA, "EUR", margin=0.0).outcome == "pass"


@pytest.mark.parametrize(
    ("spend", "outcome"),
    [
        (Estimate(0.9, 0.01), "pass"),
        (Estimate(1.01, 0.001), "fail"),  # certainly a little more
        (Estimate(1.04, 0.005), "fail"),
        (Estimate(0.99, 0.1), "unclear"),  # may be 15% more
        (Estimate(1.05, 0.1), "unclear"),
        (Estimate(1.2, 0.1), "fail"),
    ],
)
def test_the_budget_is_kept_passed_or_neither_is_shown(spend: Estimate, outcome: str) -> None:
    made = budget_step("c", spend, 1.0, GateConfig(), "EUR")
    assert made.outcome == outcome
    assert made.passed == (outcome != "fail")
    assert made.bound == pytest.approx(spend.value + 1.6449 * spend.se, rel=1e-4)
    assert budget_step("c", spend, None, GateConfig(), "EUR").outcome == "not run"


@pytest.mark.parametrize(
    ("slope", "outcome"),
    [
        (Estimate(1.1, 0.2), "pass"),
        (Estimate(1.5, 0.2), "unclear"),  # told too small: the gain is there, and more
        (Estimate(0.5, 0.2), "fail"),  # told too large
        (Estimate(0.9, 0.6), "fail"),  # may be nothing at all
    ],
)
def test_effects_may_be_told_too_small_but_not_too_large(slope: Estimate, outcome: str) -> None:
    told: Any = SimpleNamespace(
        name="c",
        slope=slope,
        report=SimpleNamespace(
            predicted=np.array([0.0, 1.0]), estimates={GateConfig().ranking: Estimate(1.0, 0.1)}
        ),
        calibrating=SimpleNamespace(kind="none", slope=slope),
    )
    differ, calibrated = effect_steps(told, GateConfig(), ALPHA, "EUR")
    assert differ.outcome == "pass"
    assert calibrated.outcome == outcome


def test_observational_data_need_to_be_accepted() -> None:
    assert data_step("c", None, True, False).outcome == "fail"
    assert data_step("c", None, True, True).outcome == "pass"
    assert data_step("c", None, False, False).outcome == "not run"


def test_a_response_model_that_ranks_nothing_or_is_far_off_fails(training: Training) -> None:
    models = training.models
    assert response_step("t", models, ALPHA).outcome in ("pass", "unclear")
    bad = replace(models.response.model, slope=0.0)
    flat = replace(models, response=replace(models.response, model=bad))
    made = response_step("t", flat, ALPHA)
    assert made.outcome == "fail"
    assert made.value == pytest.approx(0.5)
    high = replace(models.response.model, intercept=models.response.model.intercept + 1.5)
    made = response_step("t", replace(models, response=replace(models.response, model=high)), ALPHA)
    assert made.outcome == "fail"
    steep = replace(models.response.model, slope=models.response.model.slope * 5)
    made = response_step(
        "t", replace(models, response=replace(models.response, model=steep)), ALPHA
    )
    assert made.outcome == "fail"


def test_seeds_agree_within_a_standard_error() -> None:
    gain = Estimate(1.0, 0.2)
    assert seed_step("c", gain, lambda: Estimate(1.15, 0.2), "EUR").outcome == "pass"
    assert seed_step("c", gain, lambda: Estimate(0.75, 0.2), "EUR").outcome == "fail"
    assert seed_step("c", gain, None, "EUR").outcome == "not run"


def test_harm_in_a_segment_stops_and_is_named() -> None:
    fine = {f"s{i}": Estimate(0.1 * (i - 2), 0.5) for i in range(6)}
    assert segment_step("c", fine, "EUR").outcome == "pass"
    made = segment_step("c", {**fine, "gone": Estimate(-2.0, 0.5)}, "EUR")
    assert made.outcome == "fail"
    assert "gone" in made.text
    assert made.value == 1.0
    assert segment_step("c", {"none": Estimate(0.0, 0.0)}, "EUR").outcome == "not run"


def test_segments_of_a_policy_are_means_over_their_rows(training: Training) -> None:
    t = training
    policy = t.evaluation.chosen.value.policy
    response = t.evaluation.predictions.response
    found = segment_gains(t.models, response, t.evaluation.scored.gain, policy)
    assert len(found) == 5  # fifths of the response; there is no category
    gains = t.evaluation.scored.gain.gains(policy)
    assert np.mean([e.value for e in found.values()]) == pytest.approx(gains.mean(), rel=0.05)
    low = response <= np.quantile(response, 0.2)
    assert found["least likely to buy"].value == pytest.approx(gains[low].mean(), rel=0.05)


def test_a_bundle_that_does_not_come_back_fails(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = golden_step("t", training.verdict.bundle)
    assert (good.outcome, good.value) == ("pass", 0)

    def broken(*arguments: object) -> None:
        raise BundleError("the golden rows are not reproduced: cate differs")

    monkeypatch.setattr(gate_steps, "load_bundle", broken)
    made = golden_step("t", training.verdict.bundle)
    assert (made.outcome, made.value) == ("fail", 1)
    assert "cate differs" in made.text


def test_guardrails_count_what_happens_in_the_window(tmp_path: Path) -> None:
    """Who unsubscribes or returns before or after the 14 days does not count."""
    arms = ["control", "c5", "tote"] * 40
    exposures = [exposure(i, f"k{i}", arm) for i, arm in enumerate(arms)]
    lines = [line(f"k{i}", f"o{i}", "2026-01-12", 20.0) for i in range(120)]
    lines += [line(f"k{i}", f"r{i}", "2026-01-15", -20.0) for i in (0, 1, 4)]
    lines += [line("k7", "late", "2026-01-24", -20.0), line("k8", "early", "2026-01-09", -20.0)]
    lines += [line("k9", "end", "2026-02-20", 1.0)]
    events = [
        {
            "event_id": f"u{i}",
            "customer_id": f"k{i}",
            "campaign_id": "jan",
            "type": kind,
            "occurred_at": at,
        }
        for i, kind, at in (
            (1, "unsubscribed", "2026-01-10"),
            (2, "opened", "2026-01-11"),
            (3, "unsubscribed", "2026-01-24"),
        )
    ]
    folder = write(tmp_path / "t", exposures=exposures, transactions=lines, events=events)
    config = config_of(folder)
    tables = open_source(config).tables()
    dataset = build_dataset(tables, config, offers_of(config))
    found = {g.name: g for g in guardrails(tables, dataset, config)}
    assert sorted(dataset.exposure[found["unsubscriptions"].y == 1]) == ["e1"]
    assert sorted(dataset.exposure[found["returns"].y == 1]) == ["e0", "e1", "e4"]
    assert found["unsubscriptions"].margin == 0.005


def test_a_guardrail_of_one_arm_for_all_is_the_difference_to_control(training: Training) -> None:
    models, rng = training.models, np.random.default_rng(1)
    arm = training.dataset.training.arm
    y = (rng.random(len(arm)) < 0.1 + 0.2 * (arm == 1)).astype(float)
    everyone = np.tile([1.0, 0.0], (len(models.test), 1))
    made = change(Guardrail("g", y, 0.01), everyone, models)
    held, sent = y[models.is_test], models.test.arm
    plain = held[sent == 1].mean() - held[sent == 0].mean()
    assert made.value == pytest.approx(plain, abs=1e-9)  # shares of the rows themselves
    p = [clustered_mean(held[sent == k], np.arange((sent == k).sum())).se for k in (0, 1)]
    assert made.se == pytest.approx(np.hypot(*p), rel=0.03)


def test_the_page_tells_the_whole_story_and_is_short_enough(training: Training) -> None:
    t, config = training, wide_config(Path("."))
    told = config, t.tables, t.dataset, t.evaluation, t.diagnostics, t.verdict
    short, whole = page(*told), story(*told, "what was printed")
    for text in (short, whole):
        places = [
            text.index(f"## {part}")
            for part in ("Data", "Can the experiment", "Leaderboard", "Gate", "Figures")
        ]
        assert places == sorted(places)
        assert "against response ranking" in text
        assert "uplift_by_decile.png" in text
    assert len(short) <= 8000
    assert LONGEST < 8000
    assert "what was printed" in whole
