"""Which features the predicted effects rest on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from uplift.data import Float32Array, FloatArray


class Predicts(Protocol):
    """A model of K effects."""

    def predict(self, X: Float32Array, threads: int = 0) -> FloatArray:
        """(n, K) effects at X (n, d)."""
        ...


def importance(
    model: Predicts,
    X: Float32Array,
    names: Sequence[str],
    rng: np.random.Generator,
    threads: int = 0,
) -> dict[str, float]:
    """Share of each feature in what the model makes of the rows, the largest first.

    A feature's share is the mean squared change of the effects, summed over arms, when its column
    is shuffled among the rows, over the sum of all features' (permutation importance, Breiman 2001;
    of the prediction itself, so no outcome is needed). It says what the model uses, not what
    causes the effect: of two features that tell the same, one may take all.

    Args:
        X: (n, d) rows; names: (d,) of its columns.

    Returns:
        d shares that sum to 1; all 0 where the effects are constant.
    """
    before = model.predict(X, threads)
    changed: FloatArray = np.zeros(len(names))
    for column in range(len(names)):
        shuffled = X.copy()
        shuffled[:, column] = rng.permutation(X[:, column])
        changed[column] = np.mean(np.sum((model.predict(shuffled, threads) - before) ** 2, axis=1))
    total = float(changed.sum())
    shares = changed / total if total > 0 else changed
    return {names[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable")}
