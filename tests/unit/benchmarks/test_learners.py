"""The benchmark of the learners: what it counts, and who is who."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import learners
from benchmarks.learners import OURS, PEERS, held_out_gain, ours, peer, run, value
from benchmarks.report import Options
from benchmarks.worlds import WORLDS, make_world, training_set
from tests.truth.worlds import TABLE_SETTINGS, problem_of
from uplift.data import Float32Array, FloatArray, TrainingSet
from uplift.learners import make_learner


def test_the_value_of_a_policy_by_hand() -> None:
    """The top 40% of five rows, by the better of two arms; the truth of the arm that is sent."""
    effects = np.array([[0.1, 0.9], [0.8, 0.0], [0.2, 0.1], [0.0, -1.0], [0.3, 0.3]])
    truth = np.array([[5.0, 2.0], [3.0, 9.0], [7.0, 7.0], [1.0, 1.0], [4.0, 4.0]])
    assert value(effects, truth, share=0.4) == pytest.approx((2.0 + 3.0) / 5)
    assert value(truth, truth, share=1.0) == pytest.approx((5 + 9 + 7 + 1 + 4) / 5)


@pytest.mark.parametrize("name", WORLDS)
def test_outcomes_have_the_means_that_the_world_states(name: str) -> None:
    world = make_world(name, 60_000, np.random.default_rng(1))
    residual = world.y - world.mu[np.arange(len(world.y)), world.arm]
    for k in range(world.mu.shape[1]):
        own = residual[world.arm == k]
        assert abs(own.mean()) < 4 * own.std() / np.sqrt(len(own))
        expected, drawn = world.assignment[:, k].mean(), (world.arm == k).mean()
        assert drawn == pytest.approx(expected, abs=4 * np.sqrt(expected / len(world.y)))


def test_nine_in_ten_buy_nothing_in_the_world_of_zeros() -> None:
    world = make_world("zeros", 20_000, np.random.default_rng(2))
    assert 0.8 < (world.y == 0).mean() < 0.92
    assert np.corrcoef(world.mu[:, 0], world.tau[:, 0])[0, 1] > 0.9


def data_of(name: str, n: int) -> tuple[TrainingSet, Float32Array, FloatArray]:
    world = make_world(name, n, np.random.default_rng(3))
    return training_set(world.X, world.arm, world.y, world.assignment), world.X, world.assignment


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "SETTINGS", replace(learners.SETTINGS, rounds=8))


@pytest.mark.usefixtures("few_trees")
def test_ours_answers_for_every_learner_and_selects_one() -> None:
    data, X, _ = data_of("heterogeneous", 1_500)
    answers = ours(data, X)
    assert set(answers.effects) == {*OURS, "selected", "average"}
    assert set(answers.seconds) == {*OURS, "shared"}
    assert answers.selected in OURS
    assert np.array_equal(answers.effects["selected"], answers.effects[answers.selected])
    assert np.ptp(answers.effects["average"], axis=0).tolist() == [0, 0, 0]
    assert all(tau.shape == (1_500, 3) for tau in answers.effects.values())


@pytest.mark.usefixtures("few_trees")
def test_the_tables_name_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a peer that knows nothing: its error is that of no effect at all."""

    def nothing(_name: str, data: TrainingSet, X: Float32Array, _e: FloatArray) -> FloatArray:
        return np.zeros((len(X), data.n_arms))

    monkeypatch.setattr(learners, "peer", nothing)
    monkeypatch.setattr(learners, "WORLDS", {"null": "null", "dense": "heterogeneous"})
    text = run(Options(), rows=800)
    for name in OURS:
        assert f"ours {name} " in text
    lines = [line for line in text.splitlines() if line.strip().startswith("causalml")]
    assert len(lines) == 2 * len(PEERS)
    fresh = make_world("heterogeneous", 800, np.random.default_rng([learners.SEED, 2]))
    error = np.sqrt(np.mean(fresh.tau**2)) / np.std(fresh.y)
    assert lines[0].split() == ["causalml", "S", "0.000", f"{error:.3f}"]
    assert "econml" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_finds_effects_in_the_order_of_the_arms(name: str) -> None:
    """Confounded, with the probabilities told: the mean effects are near the truth."""
    data, X, assignment = data_of("confounded", 4_000)
    tau = make_world("confounded", 4_000, np.random.default_rng(3)).tau
    found = peer(name, data, X, assignment)
    assert found.shape == tau.shape
    assert found.mean(axis=0) == pytest.approx(tau.mean(axis=0), abs=0.2)


def test_the_held_out_gain_is_the_scores_mean_where_the_effects_choose() -> None:

    data, _, _ = data_of("heterogeneous", 1_000)
    problem = problem_of(data, TABLE_SETTINGS, folds=2)
    fitted = make_learner("t").fit(problem)
    order = np.argsort(-fitted.oof.max(axis=1), kind="stable")[:300]
    by_hand = sum(
        problem.gamma[i, 1 + int(fitted.oof[i].argmax())] - problem.gamma[i, 0] for i in order
    )
    assert held_out_gain(problem, fitted) == pytest.approx(by_hand / 1_000)
