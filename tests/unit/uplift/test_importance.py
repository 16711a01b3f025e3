"""Shares of features in predicted effects, against a model whose shares are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from uplift.data import Float32Array, FloatArray
from uplift.effects import EffectModel
from uplift.importance import importance


@dataclass(frozen=True)
class Linear:
    """A term whose shares are known; its file and spec are never asked for, but are true."""

    slopes: tuple[float, ...]

    def value(self, X: Float32Array, threads: int = 0) -> FloatArray:
        return X.astype(np.float64) @ np.array(self.slopes)

    def files(self) -> tuple[str, bytes]:
        return "json", json.dumps(self.slopes).encode()

    def spec(self) -> dict[str, Any]:
        return {"type": "linear"}


def shares(model: EffectModel, rows: int = 20_000) -> Mapping[str, float]:
    X = np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)
    return importance(model, X, ["a", "b", "c"], np.random.default_rng(2))


def test_shares_of_a_linear_effect_are_its_squared_slopes() -> None:
    """Shuffling a column changes a linear effect by twice its variance times the squared slope."""
    model = EffectModel(np.zeros(2), ((Linear((1.0, 2.0, 0.0)), np.ones(2)),))
    found = shares(model)
    assert list(found) == ["b", "a", "c"]
    assert found["b"] == pytest.approx(0.8, abs=0.01)
    assert found["a"] == pytest.approx(0.2, abs=0.01)
    assert found["c"] == 0.0


def test_arms_add_up() -> None:
    terms = (
        (Linear((1.0, 0.0, 0.0)), np.array([3.0, 0.0])),
        (Linear((0.0, 0.0, 1.0)), np.array([0.0, 4.0])),
    )
    model = EffectModel(np.zeros(2), terms)
    found = shares(model)
    assert found["c"] == pytest.approx(16 / 25, abs=0.01)
    assert found["a"] == pytest.approx(9 / 25, abs=0.01)


def test_constant_effects_rest_on_nothing() -> None:
    model = EffectModel(np.array([1.0]))
    assert set(shares(model, 50).values()) == {0.0}


def test_the_scale_of_effects_changes_no_share() -> None:
    model = EffectModel(np.zeros(1), ((Linear((1.0, 2.0, 3.0)), np.ones(1)),))
    larger = EffectModel(np.full(1, 5.0), ((Linear((1.0, 2.0, 3.0)), np.full(1, 8.0)),))
    assert shares(larger, 500) == pytest.approx(shares(model, 500))
