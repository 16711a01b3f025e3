"""Contributions: they add up to the prediction, and are what Shapley's formula says."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from tests.unit.uplift.small_bundle import make_bundle, small_forest
from uplift.boosting import Binned, Settings
from uplift.bundle import ScoringBundle
from uplift.calibration import ArmCalibration, Calibration
from uplift.contributions import Explainer
from uplift.data import Float32Array, FloatArray, Schema
from uplift.effects import BoosterTerm, EffectModel, ProductTerm
from uplift.errors import DesignError


@pytest.fixture(scope="module")
def bundle() -> tuple[ScoringBundle, Float32Array]:
    """An S-learner with a categorical feature and missing values, a forest, and the response."""
    return make_bundle()


def boosted(seed: int, binary: bool = False) -> tuple[BoosterTerm, Float32Array]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(800, 3)).astype(np.float32)
    y = X[:, 0] * (X[:, 1] > 0) + 0.3 * rng.normal(size=800)
    settings = Settings(rounds=5, num_leaves=4, threads=1, feature_fraction=1.0)
    target = (y > 0).astype(float) if binary else y
    return Binned(X, [], 1).fit(np.arange(800), target, settings, binary=binary), X


def test_they_add_up_to_the_effect(bundle: tuple[ScoringBundle, Float32Array]) -> None:
    made, X = bundle
    explainer = Explainer(made.effects, X)
    effects = made.effects.predict(X)
    for k in (1, 2):
        values, base = explainer.contributions(X, np.full(len(X), k))
        assert values.sum(axis=1) + base == pytest.approx(effects[:, k - 1], abs=1e-6)
    arm = np.arange(len(X)) % 2 + 1
    values, base = explainer.contributions(X, arm)
    assert values.sum(axis=1) + base == pytest.approx(effects[np.arange(len(X)), arm - 1], abs=1e-6)
    assert np.abs(values).max() > 0.1


def test_they_add_up_to_the_calibrated_effect(
    bundle: tuple[ScoringBundle, Float32Array],
) -> None:
    """A straight line scales them; a step function shares what it makes of them, or says that
    nothing is left of them."""
    made, X = bundle
    arm = np.arange(len(X)) % 2 + 1
    raw, start = Explainer(made.effects, X).contributions(X, arm)
    steps = ArmCalibration("isotonic", (-5.0, 0.4), (0.1, 0.7))
    through = Calibration((ArmCalibration("linear", (), (0.2, 0.5)), steps))
    values, base = Explainer(made.effects, X, through).contributions(X, arm)
    effects = through(made.effects.predict(X))[np.arange(len(X)), arm - 1]
    assert values.sum(axis=1) + base == pytest.approx(effects, abs=1e-6)
    line = arm == 1
    assert values[line] == pytest.approx(0.5 * raw[line], abs=1e-9)
    assert base[line] == pytest.approx(0.2 + 0.5 * start[line], abs=1e-9)
    same = ~line & (through(np.column_stack([start, start]))[:, 1] == effects)
    assert same.any()
    assert np.abs(values[same]).max() < 1e-9
    why = Explainer(made.effects, X, through).why(X[:4], arm[:4], made.schema)
    assert [w.effect for w in why] == pytest.approx(effects[:4], abs=1e-6)


def shapley(tree: dict[str, object], x: FloatArray, d: int) -> FloatArray:
    """Shapley values by their definition: a set of known features descends the tree, an unknown
    one averages both sides by their counts."""

    def value(node: dict[str, object], known: tuple[int, ...]) -> float:
        if "leaf_value" in node:
            return float(node["leaf_value"])  # type: ignore[arg-type]
        left, right = node["left_child"], node["right_child"]
        assert isinstance(left, dict)
        assert isinstance(right, dict)
        feature = int(node["split_feature"])  # type: ignore[call-overload]
        if feature in known:
            goes_left = x[feature] <= float(node["threshold"])  # type: ignore[arg-type]
            return value(left if goes_left else right, known)
        counts = [
            float(side["internal_count" if "internal_count" in side else "leaf_count"])
            for side in (left, right)
        ]
        return (counts[0] * value(left, known) + counts[1] * value(right, known)) / sum(counts)

    out = np.zeros(d)
    for j in range(d):
        others = [i for i in range(d) if i != j]
        for size in range(d):
            weight = math.factorial(size) * math.factorial(d - size - 1) / math.factorial(d)
            for some in combinations(others, size):
                out[j] += weight * (value(tree, (*some, j)) - value(tree, some))
    return out


def test_they_are_shapley_values() -> None:
    term, X = boosted(2)
    trees = [t["tree_structure"] for t in term.booster.dump_model()["tree_info"]]
    model = EffectModel(np.array([1.0, 0.0]), ((term, np.array([0.0, -2.0])),))
    values, base = Explainer(model).contributions(X[:8], np.full(8, 2))
    for i in range(8):
        expected = -2 * np.sum([shapley(t, X[i].astype(float), 3) for t in trees], axis=0)
        assert values[i] == pytest.approx(expected, abs=1e-9)
    assert np.ptp(base) == 0
    assert values[:, 2] == pytest.approx(0, abs=0.05)  # the third feature decides nothing
    still, constant = Explainer(model).contributions(X[:8], np.ones(8, dtype=int))
    assert not still.any()
    assert (constant == 1.0).all()


def test_probabilities_share_their_difference_in_proportion() -> None:
    term, X = boosted(3, binary=True)
    raw, raw_base = Explainer(
        EffectModel(np.zeros(1), ((BoosterTerm(term.booster), np.ones(1)),))
    ).contributions(X, np.ones(len(X), dtype=int))
    values, base = Explainer(EffectModel(np.zeros(1), ((term, np.ones(1)),))).contributions(
        X, np.ones(len(X), dtype=int)
    )
    assert values.sum(axis=1) + base == pytest.approx(term.value(X, 1), abs=1e-9)
    assert base == pytest.approx(1 / (1 + np.exp(-raw_base)))
    assert (np.sign(values) == np.sign(raw)).all()
    ratio = values / np.where(raw == 0, 1, raw)
    spread = np.where(raw == 0, np.nan, ratio)
    assert np.nanmax(spread, axis=1) == pytest.approx(np.nanmin(spread, axis=1))


def test_a_product_credits_both_factors() -> None:
    """(2 + p) times (1 - 3 q): the Shapley values of the two factors, shared as each factor shares
    its own; a factor that never moves weighs the other alone."""
    (p, X), (q, _) = boosted(4), boosted(5, binary=True)
    one = EffectModel(np.array([2.0]), ((p, np.array([1.0])),))
    other = EffectModel(np.array([1.0]), ((q, np.array([-3.0])),))
    first = np.ones(len(X), dtype=int)

    def explained(left: EffectModel, right: EffectModel) -> tuple[FloatArray, FloatArray]:
        product = ((ProductTerm(left, right), np.ones(1)),)
        return Explainer(EffectModel(np.zeros(1), product)).contributions(X, first)

    values, base = explained(one, other)
    product = one.predict(X, 1)[:, 0] * other.predict(X, 1)[:, 0]
    assert values.sum(axis=1) + base == pytest.approx(product, abs=1e-9)
    (of_one, start), (of_other, also) = (
        Explainer(model).contributions(X, first) for model in (one, other)
    )
    assert base == pytest.approx(start * also)
    ends = start + of_one.sum(axis=1), also + of_other.sum(axis=1)
    expected = (
        of_one * ((also + ends[1]) / 2)[:, None] + of_other * ((start + ends[0]) / 2)[:, None]
    )
    assert values == pytest.approx(expected, abs=1e-9)
    still, _ = explained(one, EffectModel(np.array([-2.0])))
    assert still == pytest.approx(-2 * of_one)


def test_a_forest_credits_the_features_of_the_path() -> None:
    """Of small_forest, by hand: of four rows three go left, so the root's mean is 1.5; a second
    tree is one leaf of 5."""
    X = np.array([[0, 9], [np.nan, 9], [0.5, 9], [2, 9]], dtype=np.float32)
    model = EffectModel(np.array([10.0]), ((small_forest(), np.array([2.0])),))
    values, base = Explainer(model, X).contributions(X, np.ones(4, dtype=int))
    assert base == pytest.approx(10 + 2 * (1.5 + 5) / 2)
    assert values[:, 0] == pytest.approx([-0.5, -0.5, -0.5, 1.5])
    assert not values[:, 1].any()
    assert values.sum(axis=1) + base == pytest.approx(model.predict(X)[:, 0])
    with pytest.raises(DesignError, match="background rows"):
        Explainer(model)


@dataclass(frozen=True)
class First:
    """A term of no known kind: the first feature."""

    def value(self, X: Float32Array, threads: int = 0) -> FloatArray:
        return X[:, 0].astype(np.float64)

    def files(self) -> tuple[str, bytes]:
        return "txt", b""

    def spec(self) -> dict[str, Any]:
        return {"type": "first"}


def test_a_term_of_another_kind_counts_to_the_base() -> None:
    term, X = boosted(4)
    model = EffectModel(np.ones(1), ((First(), np.full(1, 3.0)), (term, np.ones(1))))
    plain = EffectModel(np.ones(1), ((term, np.ones(1)),))
    arm = np.ones(len(X), dtype=int)
    values, base = Explainer(model).contributions(X, arm)
    known, start = Explainer(plain).contributions(X, arm)
    assert np.array_equal(values, known)
    assert base == pytest.approx(start + 3.0 * X[:, 0].astype(float))
    assert values.sum(axis=1) + base == pytest.approx(model.predict(X)[:, 0], abs=1e-6)


def test_many_threads_may_explain_while_others_score(
    bundle: tuple[ScoringBundle, Float32Array],
) -> None:
    made, X = bundle
    explainer = Explainer(made.effects, X)
    arm = np.ones(len(X), dtype=int)
    values, base = explainer.contributions(X, arm)
    effects = made.effects.predict(X, threads=1)

    def work(i: int) -> bool:
        if i % 2:
            return np.array_equal(made.effects.predict(X, threads=1), effects)
        found = explainer.contributions(X, arm)
        return np.array_equal(found[0], values) and np.array_equal(found[1], base)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(60)))
    # the boosters are its own, shared with nobody
    used = {id(term.booster) for term, _ in made.effects.terms if isinstance(term, BoosterTerm)}
    assert used.isdisjoint(id(copy) for copy in explainer._copies.values())


def test_why_names_the_largest_and_sums_the_rest(
    bundle: tuple[ScoringBundle, Float32Array],
) -> None:
    made, X = bundle
    explainer = Explainer(made.effects, X)
    arm = np.full(len(X), 2)
    values, base = explainer.contributions(X, arm)
    for most in (1, 2, 9):
        for i, why in enumerate(explainer.why(X, arm, made.schema, most)):
            amounts = [amount for _, _, amount in why.top]
            assert len(amounts) <= min(most, 3)
            assert [abs(a) for a in amounts] == sorted((abs(a) for a in amounts), reverse=True)
            assert why.base == pytest.approx(base[i])
            assert why.base + sum(amounts) + why.others == pytest.approx(why.effect)
            assert abs(amounts[0]) == pytest.approx(np.abs(values[i]).max())
    names = {name: value for name, value, _ in explainer.why(X[:1], arm[:1], made.schema)[0].top}
    for j, name in enumerate(("a", "b", "t")):
        if name in names:
            x = X[0, j]
            level = None if np.isnan(x) else ("u", "v")[int(x)] if name == "t" else float(x)
            assert names[name] == (level if level is None or name == "t" else pytest.approx(level))


def test_no_offer_has_no_effect_to_explain() -> None:
    explainer = Explainer(EffectModel(np.zeros(2)))
    X = np.zeros((2, 1), dtype=np.float32)
    with pytest.raises(DesignError, match="codes from 1 to 2"):
        explainer.contributions(X, np.array([0, 1]))
    (why, _) = explainer.why(X, np.array([1, 2]), Schema(("a",), {}))
    assert why.to_json() == {
        "effect": 0.0,
        "base": 0.0,
        "contributions": [],
        "other_features": 0.0,
    }
