"""The benchmark of the learners: what it counts, and who is who."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learners, peers
from benchmarks.learners import (
    OURS,
    Answers,
    aims,
    best_peer,
    design,
    ours,
    paired,
    run,
    selected,
    value,
)
from benchmarks.report import Options
from benchmarks.worlds import WORLDS, make_world, training_set
from tests.truth.worlds import TABLE_SETTINGS, problem_of
from uplift.data import Float32Array, FloatArray, TrainingSet
from uplift.errors import DesignError
from uplift.learners import Fitted, make_learner


def test_the_value_of_a_policy_by_hand() -> None:
    """The top 40% of five rows, by the better of two arms; the truth of the arm that is sent."""
    effects = np.array([[0.1, 0.9], [0.8, 0.0], [0.2, 0.1], [0.0, -1.0], [0.3, 0.3]])
    truth = np.array([[5.0, 2.0], [3.0, 9.0], [7.0, 7.0], [1.0, 1.0], [4.0, 4.0]])
    assert value(effects, truth, share=0.4) == pytest.approx((2.0 + 3.0) / 5)
    assert value(truth, truth, share=1.0) == pytest.approx((5 + 9 + 7 + 1 + 4) / 5)
    # All alike: everyone's first arm in equal parts, whatever the order of the rows.
    assert value(np.ones((5, 2)), truth, share=0.4) == pytest.approx(0.4 * (5 + 3 + 7 + 1 + 4) / 5)


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


def data_of(name: str, n: int) -> tuple[TrainingSet, Float32Array]:
    world = make_world(name, n, np.random.default_rng(3))
    return training_set(world.X, world.arm, world.y, world.assignment), world.X


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "SETTINGS", replace(learners.SETTINGS, rounds=8))


@pytest.mark.usefixtures("few_trees")
def test_ours_answers_for_every_learner_and_selects_one() -> None:
    data, X = data_of("heterogeneous", 1_500)
    effects, answers = ours(data, X)
    assert set(effects) == {*OURS, "selected", "average"}
    assert set(answers.seconds) == {*OURS, "shared", "selection"}
    assert answers.selected in OURS
    assert np.array_equal(effects["selected"], effects[answers.selected])
    assert np.ptp(effects["average"], axis=0).tolist() == [0, 0, 0]
    assert all(tau.shape == (1_500, 3) for tau in effects.values())


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Peers that know nothing; who was asked."""
    asked = []

    def know_nothing(name: str, data: TrainingSet, X: Float32Array, *_: object) -> FloatArray:
        asked.append(name)
        return np.zeros((len(X), data.n_arms))

    monkeypatch.setattr(peers, "peer", know_nothing)
    monkeypatch.setattr(learners, "WORLDS", {"null": "null", "dense": "heterogeneous"})
    return asked


@pytest.mark.usefixtures("few_trees")
def test_the_tables_name_everyone_and_are_taken_up_again(
    nothing: list[str], tmp_path: Path
) -> None:
    """The error of a peer that knows nothing is that of no effect at all. A second run finds
    everything in the folder and says the same."""
    options = Options(rows=800, repeats=2, keep=str(tmp_path))
    text = run(options)
    for name in OURS:
        assert f"ours {name} " in text
    for name in peers.peers():
        assert text.count(f"\n  {name} ") == 2
    errors = []
    for seed in (learners.SEED, learners.SEED + 1):
        fresh = make_world(
            "heterogeneous", 800, np.random.default_rng([seed, 2]), learners.FEATURES
        )
        errors.append(np.sqrt(np.mean(fresh.tau**2)) / np.std(fresh.y))
    line = next(line for line in text.splitlines() if line.startswith("  causalml S "))
    assert line.split() == ["causalml", "S", "0.000", f"{np.mean(errors):.3f}"]
    assert len(list(tmp_path.glob("*.json"))) == 4
    nothing.clear()
    assert run(options) == text
    assert len(nothing) == len(peers.peers())  # the warming up, and no world


def test_a_world_that_is_not_there_is_named() -> None:
    with pytest.raises(DesignError, match=r"expected some of null, .*found nowhere"):
        run(Options(worlds=["nowhere"]))


def test_the_interval_over_seeds_by_hand() -> None:
    """Gaps .1, .3: mean .2, and 12.7062 (Student, one degree of freedom) times .1."""
    other = peers.peers()[0]
    answers = [Answers(worth={"selected": 0.5 + gap, other: 0.5}) for gap in (0.1, 0.3)]
    assert paired(answers, "selected", other) == pytest.approx((0.2, 1.27062), rel=1e-4)
    assert np.isnan(paired(answers[:1], "selected", other)[1])
    answers[1].worth[peers.peers()[1]] = answers[0].worth[peers.peers()[1]] = 0.6
    assert best_peer(answers) == peers.peers()[1]


@pytest.mark.usefixtures("few_trees", "nothing")
def test_many_seeds_that_select_differently_are_told_in_several_lines(tmp_path: Path) -> None:
    run(Options(rows=800, repeats=1, keep=str(tmp_path)))
    names = [*learners.OURS, "average"]  # a line of 120 columns takes all but one
    for path in tmp_path.glob("*.json"):
        for seed, name in enumerate(names, start=learners.SEED):
            one = json.loads(path.read_text()) | {"selected": name}
            path.with_name(path.name.replace("-7.", f"-{seed}.")).write_text(json.dumps(one))
    text = run(Options(rows=800, repeats=len(names), keep=str(tmp_path)))
    told = text.split("Selected: ")[1].split("Mean: ")[0]
    assert (
        " ".join(told.split())
        == "; ".join(f"{w} {', '.join(names)}" for w in learners.WORLDS) + "."
    )


def measured(own: float, selected: float, other: float) -> Answers:
    """Everything of ours takes `own` seconds, everything of causalml's 4 with our folds."""
    pieces = ("shared", "selection", *learners.FIVE)
    folded = {f"causalml {name}, our folds": 4.0 for name in peers.CAUSALML}
    worth = {"selected": selected, **dict.fromkeys(peers.peers(), other)}
    return Answers(worth=worth, seconds=dict.fromkeys(pieces, own) | folded)


def test_aims_are_told_as_they_come_out() -> None:
    """T and the others take twice `own`, their nuisances counted, S once; the five 7 times."""
    good = {"dense": [measured(0.5, 0.9, 0.8), measured(0.5, 0.7, 0.8), measured(0.5, 0.9, 0.8)]}
    assert aims(good).splitlines() == [
        "Aim: no learner slower than causalml's own, our folds: least t with 4.00 times as fast, "
        "holds.",
        "Aim: R at least twice as fast, our folds: 4.00 times, holds.",
        "Aim: all five with the evaluation in less than half of causalml's time, our folds: 18%, "
        "holds.",
        "Aim: the selected one's value at least the best peer's, in its interval: nowhere "
        "below it, holds.",
        "Aim: better on average than each world's best peer: +0.033, holds.",
    ]
    bad = aims({"dense": [measured(2.5, 0.7, 0.8)] * 2, "null": [measured(2.5, 0.0, 0.0)]})
    assert "least t with 0.80 times as fast, DOES NOT HOLD." in bad
    assert "0.80 times, DOES NOT HOLD." in bad
    assert "88%, DOES NOT HOLD." in bad
    assert "below in dense, DOES NOT HOLD." in bad
    assert "-0.100, DOES NOT HOLD." in bad
    one = Answers(worth={"selected": 0.7, **dict.fromkeys(peers.peers(), 0.8)})
    told = aims({"sparse": [one]})
    assert "Aims of time: not measured" in told
    assert "not known of sparse, of one seed" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", peers.peers())
def test_a_peer_finds_effects_in_the_order_of_the_arms(name: str) -> None:
    """Confounded, with the probabilities told: the mean effects are near the truth."""
    data, X = data_of("confounded", 4_000)
    tau = make_world("confounded", 4_000, np.random.default_rng(3)).tau
    found = peers.peer(name, data, X, design("confounded"), learners.SETTINGS, 3)
    assert found.shape == tau.shape
    assert found.mean(axis=0) == pytest.approx(tau.mean(axis=0), abs=0.2)


@pytest.mark.slow
@pytest.mark.skipif(not peers.econml_is_there(), reason="econml is not installed")
@pytest.mark.parametrize("name", ["T", "X"])
def test_both_peers_find_the_same_where_nothing_is_drawn(name: str) -> None:
    """T and X split no rows: two libraries, told the same settings and probabilities, agree."""
    data, X = data_of("confounded", 1_500)
    settings = replace(learners.SETTINGS, rounds=20)
    one, two = (
        peers.peer(f"{library} {name}", data, X, design("confounded"), settings, 3)
        for library in ("causalml", "econml")
    )
    np.testing.assert_allclose(one, two, atol=1e-9)


def test_the_clear_winner_of_the_held_out_rows_is_selected() -> None:
    """Effects that are the scores themselves cannot be beaten; noise is not selected."""
    data, _ = data_of("heterogeneous", 1_000)
    problem = problem_of(data, TABLE_SETTINGS, folds=2)
    honest = make_learner("t").fit(problem)
    scores = problem.gamma[:, 1:] - problem.gamma[:, :1]
    noise = np.random.default_rng(0).standard_normal(scores.shape)

    def member(name: str, oof: FloatArray) -> Fitted:
        return Fitted(name, oof, honest.model, honest.folds)

    fitted = {"ensemble": honest, "s": member("s", noise)}
    assert selected(problem, fitted) == "ensemble"
    assert selected(problem, {**fitted, "x": member("x", scores)}) == "x"
