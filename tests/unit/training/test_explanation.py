"""The policy tree of a training, on experiments whose best rule is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from features.config import Config
from tests.unit.training.shops import random_experiment, wide_config
from training.explanation import explanation_summary
from training.figures import segment_figure
from training.train import Training, run, summary
from uplift.scores import clustered_mean


def trained(config: Config) -> Training:
    training = run(config, lambda text: None)
    assert isinstance(training, Training)
    return training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_experiment(tmp_path_factory.mktemp("shop") / "t", 3000, effect=1.5)


@pytest.fixture(scope="module")
def training(folder: Path) -> Training:
    return trained(wide_config(folder))


def test_the_rule_of_the_shop_is_said(training: Training, folder: Path) -> None:
    """c5 brings 1.5 where x1 > 0 and costs .05 everywhere; tote brings nothing."""
    found = training.explanation
    best = max(found.segments, key=lambda s: -1.0 if s.effect is None else s.effect.value)
    assert best.offer == "c5"
    (above,) = [c for c in best.conditions if c.startswith("x1 above")]
    cut = float(above.split()[-1])
    assert abs(cut) < 0.3
    X = training.models.test.X
    x1 = X[:, 1]
    assert best.effect is not None
    assert best.effect.lo < 1.5 * np.mean(x1[x1 > cut] > 0) - 0.05 < best.effect.hi
    sent = found.tree.choice(X)
    truth = 1.5 * np.mean((sent == 1) & (x1 > 0)) - 0.05 * np.mean(sent > 0)
    assert found.value.gain.lo < truth < found.value.gain.hi
    told = summary(training, wide_config(folder))
    for segment in found.segments:
        assert segment.sentence in told
        assert segment.customers >= found.least * 0.3 / 0.7 / 2  # the held-out part of it
    assert found.legend["x1"] == "as given"


def test_tree_and_model_are_compared_in_pairs(training: Training) -> None:
    found, evaluation = training.explanation, training.evaluation
    gamma, cluster = evaluation.scored.gain.gamma, evaluation.scored.gain.cluster
    contrast = gamma[:, 1:] - gamma[:, :1]
    tree, model = found.value.policy, evaluation.chosen.value.policy
    own = clustered_mean(((tree - model) * contrast).sum(axis=1), cluster)
    assert found.difference.value == pytest.approx(own.value)
    assert found.difference.se == pytest.approx(own.se)
    gap = found.value.gain.value - evaluation.chosen.value.gain.value
    assert found.difference.value == pytest.approx(gap)
    dearer = found.value.spend.value - evaluation.chosen.value.spend.value
    assert found.net.value == pytest.approx(gap - found.price * dearer)
    weighted = sum(s.share * s.effect.value for s in found.segments if s.effect is not None)
    assert weighted == pytest.approx(found.value.gain.value)  # every arm can be drawn everywhere


def test_tree_and_model_answer_to_one_budget(folder: Path) -> None:
    config = wide_config(folder, policy={"budget": 40.0})
    training = trained(config)
    per_row = training.evaluation.budget_per_row
    assert per_row is not None
    found, train = training.explanation, training.models.train
    assert found.tree.price >= found.price > 0
    cost = found.tree.choice(train.X) > 0  # every contact costs .05
    assert 0.05 * cost.mean() <= per_row * (1 + 1e-9)


def test_every_decision_adds_up(training: Training) -> None:
    """x1 alone decides who gets c5, so it leads; what it adds is above 0."""
    found = training.explanation.decisions
    assert len(found) == 20
    assert {offer for offer, _ in found} <= {"c5", "tote"}
    effects = training.evaluation.chosen.bundle.calibrated_effects.predict(
        training.models.test.X, 1
    )
    for offer, why in found:
        total = why.base + sum(amount for _, _, amount in why.top) + why.others
        assert total == pytest.approx(why.effect, abs=1e-6)
        k = ["c5", "tote"].index(offer)
        assert np.abs(effects[:, k] - why.effect).min() < 1e-6
    first = found[0][1]
    assert first.effect == max(why.effect for _, why in found)
    name, value, amount = first.top[0]
    assert name == "x1"
    assert isinstance(value, float)
    assert value > 0
    assert amount > 0
    told = training.explanation.decisions_json()["decisions"]
    assert told[0]["contributions"][0]["feature"] == "x1"
    assert all(set(row) == {"offer", *first.to_json()} for row in told)


def test_figure_and_file_show_the_same_numbers_and_no_ids(training: Training) -> None:
    figure = segment_figure(training.explanation, "EUR", "tiny")
    labels = " ".join(t.get_text() for t in figure.axes[0].get_yticklabels())
    told = json.loads(json.dumps(training.explanation.to_json(), allow_nan=False))
    for segment, plain in zip(training.explanation.segments, told["segments"], strict=True):
        assert plain["sentence"] == segment.sentence
        assert f"{segment.share:.0%}: {segment.offer}" in labels
    assert told["model"]["gain"] == training.evaluation.chosen.value.gain.to_json()
    assert not any(f"k{i}" in json.dumps(told) for i in range(20))
    lines = explanation_summary(training.explanation, "EUR", 1000)
    assert f"{training.explanation.value.gain.value * 1000:.1f}" in "\n".join(lines)
    assert np.isfinite(training.explanation.net.se)
