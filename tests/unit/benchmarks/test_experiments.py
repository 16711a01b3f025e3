"""The benchmark on real experiments: its readers, its simple policies, its intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import experiments, peers
from benchmarks.experiments import (
    CANDIDATES,
    EXPERIMENTS,
    RANDOM,
    RESPONSE,
    half,
    resampled,
    run,
    simple,
)
from benchmarks.report import Options
from benchmarks.worlds import make_world, training_set
from tests.truth.worlds import problem_of
from uplift.boosting import Settings
from uplift.data import Float32Array, FloatArray, TrainingSet
from uplift.errors import DesignError

DATA = Path(__file__).parents[3] / "../shared/data"
SMALL = Settings(rounds=5, num_leaves=4, min_child_samples=20, threads=1)


def emails(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "recency": rng.integers(1, 13, n),
            "history": rng.gamma(2.0, 100.0, n),
            "mens": rng.integers(0, 2, n),
            "womens": rng.integers(0, 2, n),
            "zip_code": rng.choice(["Rural", "Urban"], n),
            "newbie": rng.integers(0, 2, n),
            "channel": rng.choice(["Phone", "Web"], n),
            "segment": rng.choice(["No E-Mail", "Mens E-Mail", "Womens E-Mail"], n),
            "visit": rng.integers(0, 2, n),
            "spend": rng.gamma(1.0, 1.0, n),
        }
    )


def test_columns_become_arms_features_and_outcomes() -> None:
    frame = emails(6)
    frame["segment"] = ["No E-Mail", "Womens E-Mail", "Mens E-Mail"] * 2
    made = EXPERIMENTS["hillstrom"](frame)
    assert made.arm.tolist() == [0, 2, 1, 0, 2, 1]
    assert "segment" not in made.features
    donors = pd.DataFrame(
        {
            "treatment": [0, 1, 1, 1],
            "treat_ratio2": [0, 0, 1, 0],
            "treat_ratio3": [0, 0, 0, 1],
            "treat_size25": [0, 1, 0, 0],
            "out_gavedum": [0, 1, 0, 1],
            "out_amountgive": [0, 20, 0, 5],
            "hpa": [1.0, np.nan, 3.0, 4.0],
        }
    )
    made = EXPERIMENTS["charitable"](donors)
    assert made.arm.tolist() == [0, 1, 2, 3]
    assert list(made.features) == ["hpa"]
    voters = pd.DataFrame(
        {
            **{name: ["yes", "no", "yes"] for name in ("g2000", "g2002", "g2004")},
            **{name: ["no", "no", "yes"] for name in ("p2000", "p2002", "p2004")},
            "sex": ["male", "female", "male"],
            "yob": [1950, 1960, 1970],
            "hh_size": [2, 2, 1],
            "treatment": [" Neighbors", " Control", " Self"],
            "hh_id": [7.0, 7.0, 3.0],
            "voted": ["Yes", "No", "No"],
        }
    )
    made = EXPERIMENTS["social_pressure"](voters)
    assert made.arm.tolist() == [1, 0, 2]
    assert made.cluster.tolist() == [1, 1, 0]
    assert made.outcomes["voted"].tolist() == [1.0, 0.0, 0.0]


def test_simple_policies_send_what_was_best_on_the_rows_learned_from() -> None:
    """In the world `constant` with one arm's outcomes raised, that arm goes to a random share, or
    to those with the highest predicted response."""
    world = make_world("constant", 2_000, np.random.default_rng(1))
    y = world.y + 2.0 * (world.arm == 2)
    problem = problem_of(training_set(world.X, world.arm, y, world.assignment), SMALL, folds=2)
    response = np.array([3.0, 1.0, 2.0, 0.0])
    policies = simple(problem, response, 0.5)
    assert policies[RANDOM].tolist() == [[0, 0.5, 0]] * 4
    assert policies[RESPONSE].tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_the_interval_over_halves_covers_the_overlap() -> None:
    """Standard deviation of 1 over 4 halves: sqrt(1/4 + 1) times Student's 3.1824."""
    gaps = np.array([-1.0, 1.0, -1.0, 1.0]) * np.sqrt(3 / 4)
    mean, wide = resampled([float(2.0 + gap) for gap in gaps])
    assert mean == pytest.approx(2.0)
    assert wide == pytest.approx(3.18245 * np.sqrt(1.25), rel=1e-4)
    assert np.isnan(resampled([0.3])[1])


def test_a_half_values_everyone_on_rows_that_nobody_learned_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best single arm at random is worth half of its average effect on those rows."""

    def nothing(_name: str, data: TrainingSet, X: Float32Array, *_: object) -> FloatArray:
        return np.zeros((len(X), data.n_arms))

    monkeypatch.setattr(peers, "peer", nothing)
    monkeypatch.setattr(experiments, "SETTINGS", SMALL)
    world = make_world("heterogeneous", 1_200, np.random.default_rng(2))
    y = world.y + 3.0 * (world.arm == 3)
    found = half(training_set(world.X, world.arm, y, world.assignment), world.X, 0)
    names = {*CANDIDATES, *(f"causalml {p}" for p in peers.CAUSALML), "selected", RANDOM, RESPONSE}
    assert set(found) == {f"{name} @ {share}" for name in names for share in (0.3, 0.5)}
    assert found[f"{RANDOM} @ 0.5"] == pytest.approx(1.5, abs=0.25)
    assert found[f"{RANDOM} @ 0.3"] == pytest.approx(0.6 * found[f"{RANDOM} @ 0.5"])


def test_an_absent_file_is_said_and_an_unknown_experiment_is_an_error(tmp_path: Path) -> None:
    text = run(Options(data=str(tmp_path), worlds=["hillstrom"]))
    assert "Experiment hillstrom: left out, there is no hillstrom.parquet" in text
    with pytest.raises(DesignError, match=r"expected some of hillstrom, .*found criteo"):
        run(Options(worlds=["criteo"]))


def test_a_run_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emails(300).to_parquet(tmp_path / "hillstrom.parquet")
    calls = []

    def counted(_data: TrainingSet, _wide: Float32Array, number: int) -> dict[str, float]:
        calls.append(number)
        names = [
            *CANDIDATES,
            *(f"causalml {p}" for p in peers.CAUSALML),
            "selected",
            RANDOM,
            RESPONSE,
        ]
        own = {f"{name} @ {s}": 0.0 for name in names for s in (0.3, 0.5)}
        return own | {"selected @ 0.5": 0.1 + 0.01 * number}

    monkeypatch.setattr(experiments, "half", counted)
    options = Options(data=str(tmp_path), worlds=["hillstrom"], repeats=2, keep=str(tmp_path / "k"))
    text = run(options)
    assert calls == [0, 1, 0, 1]
    assert "+105.00" in text
    assert "The selected one cannot be told apart from" in text
    # 100 and 110 in two halves: a mean of 105, and student's t of one degree times 5 sqrt(3).
    assert "The selected one less causalml DR: +105.00, 95% -5.04 to +215.04." in text
    assert run(options) == text
    assert len(calls) == 4


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "hillstrom.parquet").is_file(), reason="no real experiments here")
def test_the_first_half_of_the_real_e_mails_is_worth_what_is_published() -> None:
    """The men's e-mail brings 18.3 - 10.6% visits: half of the customers, half of that."""
    made = EXPERIMENTS["hillstrom"](pd.read_parquet(DATA / "hillstrom.parquet"))
    assert np.bincount(made.arm).tolist() == [21306, 21307, 21387]
    data, wide = experiments.data_of(made, "visit")
    found = half(data, wide, 0)
    assert found[f"{RANDOM} @ 0.5"] == pytest.approx(0.5 * (0.183 - 0.106), abs=0.005)
