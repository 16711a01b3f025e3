"""What held-out rows say of a learner is true on average: candidates are chosen by it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.learners import OURS, top_of_folds
from tests.truth.worlds import TABLE_SETTINGS, make_world, problem_of, training_set
from uplift.boosting import Settings
from uplift.learners import Fitted, make_learner
from uplift.scores import ScoreMatrix

SETTINGS = Settings(**{**TABLE_SETTINGS.__dict__, "rounds": 50, "learning_rate": 0.1})
RUNS = 40


@pytest.mark.slow
def test_the_held_out_value_of_every_learner_is_right_on_average(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Experiments of 4,000 rows with three arms: the doubly robust value of the best three tenths
    of each fold by out-of-fold effects, less the true value of the same rows. It was too high by 6%
    for X, R and DR while a fold's own rows chose the trees of the model that is judged on them, and
    too low by 29% for effects that hardly vary when the folds were ranked together."""
    gaps: dict[str, list[float]] = {name: [] for name in OURS}
    worth: dict[str, list[float]] = {name: [] for name in OURS}
    for seed in range(RUNS):
        world = make_world("heterogeneous", 4_000, np.random.default_rng([seed, 1]))
        data = training_set(world.X, world.arm, world.y, world.assignment)
        problem = problem_of(data, SETTINGS, 5, seed)
        matrix = ScoreMatrix(problem.gamma, data.cluster)
        fitted: dict[str, Fitted] = {}
        for name in OURS:
            fitted[name] = make_learner(name, fitted).fit(problem)
            policy = top_of_folds(problem, fitted[name].oof)
            worth[name].append(float((policy * world.tau).sum(axis=1).mean()))
            gaps[name].append(matrix.gain(policy).value - worth[name][-1])
    lines = []
    for name in OURS:
        bias, error = np.mean(gaps[name]), np.std(gaps[name], ddof=1) / np.sqrt(RUNS)
        lines.append(f"{name} {np.mean(worth[name]):.4f}: {bias:+.4f} ({error:.4f})")
    with capsys.disabled():
        print(f"\nvalue: held-out less true (Monte Carlo error): {', '.join(lines)}", flush=True)
    for name in OURS:
        bias, error = np.mean(gaps[name]), np.std(gaps[name], ddof=1) / np.sqrt(RUNS)
        assert abs(bias) < 3.3 * error, name
