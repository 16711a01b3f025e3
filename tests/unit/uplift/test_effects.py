"""The sum of weighted terms that every learner becomes."""

from __future__ import annotations

import io
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from tests.unit.uplift.small_bundle import make_bundle, small_forest
from uplift.data import Float32Array, FloatArray
from uplift.effects import BoosterTerm, EffectModel, ForestTerm, TermValues, sigmoid
from uplift.errors import BundleError
from uplift.response import ResponseModel, ResponseTerm

X = np.array([[0.4, 9.0], [0.5, 9.0], [0.6, 9.0], [np.nan, 9.0]], dtype=np.float32)


def booster(columns: int) -> lgb.Booster:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, columns)).astype(np.float32)
    target = rows[:, 0] + 2 * rows[:, -1]
    params = {"objective": "regression", "verbosity": -1, "num_threads": 1, "num_leaves": 7}
    return lgb.train(params, lgb.Dataset(rows, target), num_boost_round=15)


def test_a_forest_by_hand() -> None:
    """Trees of 1 or 3, and 5: their mean. The threshold itself and NaN go left."""
    assert small_forest(0).value(X).tolist() == [3.0, 3.0, 4.0, 3.0]
    assert small_forest(1).value(X).tolist() == [-3.0, -3.0, -4.0, -3.0]
    assert small_forest().value(X[:0]).tolist() == []


def test_a_forest_survives_its_file() -> None:
    suffix, content = small_forest(1).files()
    assert suffix == "npz"
    loaded = ForestTerm.from_bytes(content, small_forest(1).spec())
    assert np.array_equal(loaded.value(X), small_forest(1).value(X))
    assert loaded.files() == (suffix, content)


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_a_damaged_forest_is_refused(cut: int) -> None:
    _, content = small_forest().files()
    with pytest.raises(BundleError, match="arrays of a forest are damaged"):
        ForestTerm.from_bytes(content[:cut], {"output": 0})


def test_a_forest_of_objects_is_refused() -> None:
    out = io.BytesIO()
    np.savez(out, feature=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleError, match=r"damaged: .*allow_pickle"):
        ForestTerm.from_bytes(out.getvalue(), {"output": 0})


def test_appended_constants_stand_behind_the_features() -> None:
    rows = np.random.default_rng(1).standard_normal((50, 2)).astype(np.float32)
    three = booster(3)
    term = BoosterTerm(three, "identity", (0.7,))
    wide = np.column_stack([rows, np.full(50, 0.7, dtype=np.float32)])
    assert np.array_equal(term.value(rows, 1), three.predict(wide, num_threads=1))
    assert np.ptp(three.predict(wide, num_threads=1)) > 0.5


def test_the_link_is_applied_to_raw_scores() -> None:
    rows = np.random.default_rng(2).standard_normal((400, 2)).astype(np.float32)
    y = (rows[:, 0] > 0).astype(float)
    params = {"objective": "binary", "verbosity": -1, "num_threads": 1, "num_leaves": 4}
    made = lgb.train(params, lgb.Dataset(rows, y), num_boost_round=5)
    probability = made.predict(rows, num_threads=1)
    np.testing.assert_allclose(BoosterTerm(made, "sigmoid").value(rows, 1), probability, rtol=1e-12)
    log_odds = np.log(probability / (1 - probability))
    np.testing.assert_allclose(BoosterTerm(made).value(rows, 1), log_odds, rtol=1e-9)


def test_sigmoid_at_its_ends() -> None:
    assert sigmoid(np.array([-1e4, 0.0, 1e4])) == pytest.approx([0.0, 0.5, 1.0], abs=1e-200)


class Counted:
    """A term that counts how often it is computed."""

    asked = 0

    def value(self, X: Float32Array, threads: int = 0) -> FloatArray:
        self.asked += 1
        return X[:, 0].astype(np.float64)

    def files(self) -> tuple[str, bytes]:
        return "txt", b"the first column"

    def spec(self) -> dict[str, Any]:
        return {"type": "counted"}


def test_a_term_that_models_share_is_computed_once() -> None:
    rows = np.random.default_rng(3).standard_normal((30, 2)).astype(np.float32)
    shared, values = Counted(), TermValues(rows)
    one = EffectModel(np.array([1.0, 0.0]), ((shared, np.array([2.0, -1.0])),))
    both = one.plus(EffectModel(np.zeros(2), ((Counted(), np.array([0.5, 0.5])),)))
    for model in (one, both, one):
        assert np.array_equal(model.at(values), model.predict(rows))
    assert shared.asked == 4  # once for the values, once for each prediction without them


def test_a_model_is_the_weighted_sum_of_its_terms() -> None:
    base = booster(2)
    one = BoosterTerm(base)
    model = EffectModel(
        np.array([1.0, -1.0]),
        ((one, np.array([2.0, 0.0])), (small_forest(), np.array([0.5, 3.0]))),
    )
    b, f = base.predict(X, num_threads=1), small_forest().value(X)
    expected = np.column_stack([1 + 2 * b + 0.5 * f, -1 + 3 * f])
    np.testing.assert_allclose(model.predict(X, 1), expected, rtol=1e-12)
    np.testing.assert_allclose(model.scaled(-2.0).predict(X, 1), -2 * expected, rtol=1e-12)
    assert EffectModel(np.array([1.5])).predict(X).tolist() == [[1.5]] * 4


def test_equal_content_is_one_file() -> None:
    base = booster(3)
    terms = tuple((BoosterTerm(base, "identity", (c,)), np.ones(1)) for c in (0.0, 1.0))
    model = EffectModel(np.zeros(1), (*terms, (small_forest(0), np.ones(1))))
    spec, files = model.to_files("e")
    assert sorted(files) == ["e-000.txt", "e-001.npz"]
    loaded = EffectModel.from_files(spec, files)
    assert loaded.terms[0][0].booster is loaded.terms[1][0].booster  # type: ignore[attr-defined]
    assert np.array_equal(loaded.predict(X, 1), model.predict(X, 1))


def test_an_unknown_term_is_refused() -> None:
    spec = {"constant": [0.0], "terms": [{"type": "pickle", "file": "f", "weights": [1.0]}]}
    with pytest.raises(BundleError, match='unknown term type "pickle"'):
        EffectModel.from_files(spec, {"f": b""})


def test_the_response_as_a_term_survives_its_file() -> None:
    bundle, rows = make_bundle()
    term = ResponseTerm(bundle.response)
    suffix, content = term.files()
    loaded = ResponseTerm.from_bytes(content, term.spec())
    assert suffix == "json"
    assert np.array_equal(loaded.value(rows, 1), term.value(rows, 1))
    assert np.array_equal(term.value(rows, 1), bundle.response.predict(rows, 1))
    assert loaded.files() == (suffix, content)
    constant = ResponseTerm(ResponseModel(EffectModel(np.array([0.3])), 0.0, -1.0))
    again = ResponseTerm.from_bytes(constant.files()[1], constant.spec())
    assert again.value(rows).tolist() == [1 / (1 + np.exp(1.0))] * len(rows)
