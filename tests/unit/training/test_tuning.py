"""Tuning: what is judged, when it stops, and what is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features.config import TuningConfig
from tests.truth.worlds import make_world, problem_of, training_set
from training import tuning
from training.tuning import TUNED, Trial, tunable, tune
from uplift.boosting import Settings
from uplift.learners import make_learner
from uplift.nuisances import Problem

SETTINGS = Settings(rounds=20, learning_rate=0.1, num_leaves=4, min_child_samples=20, threads=1)


def problem(world: str, settings: Settings = SETTINGS, rows: int = 1_500) -> Problem:
    made = make_world(world, rows, np.random.default_rng(4))
    data = training_set(made.X, made.arm, made.y, made.assignment)
    return problem_of(data, settings, folds=2)


def quiet(_: str) -> None:
    pass


def test_no_budget_changes_nothing_and_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem("null", rows=300)
    monkeypatch.setattr(tuning, "_losses", None)
    assert tune(made, ["s", "x"], TuningConfig(), 1, quiet) == (made, None)
    assert tune(made, ["t", "ensemble"], TuningConfig(trials=3), 1, quiet) == (made, None)


def test_what_depends_on_the_settings() -> None:
    everyone = ["s", "t", "x", "r", "dr", "proportional", "ensemble", "causalml_forest"]
    assert tunable(everyone) == ["s", "x", "r", "dr", "proportional"]


def test_settings_that_cannot_learn_are_replaced_by_ones_that_can() -> None:
    """Defaults with leaves of a third of the rows: the effects are flat. What is found is nearer to
    the truth, its loss is that of its effects, and the same seed finds it again."""
    blind = replace(SETTINGS, min_child_samples=500, learning_rate=0.02)
    made = problem("sparse", blind, rows=6_000)
    said: list[str] = []
    found, trials = tune(made, ["dr"], TuningConfig(trials=8), 5, said.append)
    assert trials is not None
    assert len(trials.trials) == 9
    assert trials.taken > 0
    taken = trials.trials[trials.taken]
    assert taken.loss == min(trial.loss for trial in trials.trials)
    assert {name: getattr(found.settings, name) for name in TUNED} == {
        name: getattr(taken, name) for name in TUNED
    }
    before, after = (make_learner("dr").fit(one) for one in (made, found))
    gap = found.losses(after.oof).mean() - made.losses(before.oof).mean()
    assert taken.loss == pytest.approx(gap)
    tau = make_world("sparse", 6_000, np.random.default_rng(4)).tau
    assert np.mean((after.oof - tau) ** 2) < np.mean((before.oof - tau) ** 2)
    _, again = tune(made, ["dr"], TuningConfig(trials=8), 5, quiet)
    assert again is not None
    assert [replace(t, seconds=0) for t in again.trials] == [
        replace(t, seconds=0) for t in trials.trials
    ]
    frame = trials.to_frame()
    assert frame["taken"].sum() == 1
    assert frame.loc[frame["taken"], "num_leaves"].item() == taken.num_leaves
    assert said[0].startswith("tuning: the defaults")
    assert "is taken" in said[-1]


def test_the_luckiest_trial_is_not_taken_where_there_is_nothing_to_find() -> None:
    made = problem("null")
    found, trials = tune(made, ["dr"], TuningConfig(trials=6), 2, quiet)
    assert trials is not None
    assert trials.taken == 0
    assert found.settings == made.settings
    assert "none clearly better" in trials.sentence()


def test_no_trial_is_begun_that_would_not_end_in_time() -> None:
    def trial(seconds: float) -> Trial:
        return Trial(0, 4, 0.1, 20, 1.0, 1.0, 0.0, 0.0, seconds)

    budget = TuningConfig(seconds=10)
    assert tuning._goes_on([], budget, 99.0)
    assert tuning._goes_on([trial(1), trial(3)], budget, 7.0)
    assert not tuning._goes_on([trial(3), trial(1)], budget, 7.1)
    both = TuningConfig(seconds=10, trials=1)
    assert tuning._goes_on([trial(1)], both, 1.0)
    assert not tuning._goes_on([trial(1), trial(1)], both, 2.0)


def test_a_training_of_a_few_seconds_tunes_within_them() -> None:
    _, trials = tune(problem("null", rows=400), ["s"], TuningConfig(seconds=0.5), 2, quiet)
    assert trials is not None
    assert sum(trial.seconds for trial in trials.trials) < 5
