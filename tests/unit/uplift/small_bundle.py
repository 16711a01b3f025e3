"""A small bundle with every kind of term: boosters, a forest, and the response as an effect."""

from __future__ import annotations

import numpy as np

from tests.truth.worlds import draw_arms, problem_of, training_set
from uplift.boosting import Binned, Settings
from uplift.bundle import Money, ScoringBundle
from uplift.costs import calibrate_costs, fit_costs
from uplift.data import Float32Array, Schema
from uplift.effects import EffectModel, ForestTerm
from uplift.learners import make_learner
from uplift.offers import parse_offers
from uplift.response import ResponseTerm, fit_response

SETTINGS = Settings(rounds=20, learning_rate=0.1, num_leaves=7, min_child_samples=20, threads=1)
OFFERS = parse_offers(
    [
        {"coupon_id": "c5", "kind": "fixed_off", "params": {"off": 5.0}, "contact_cost": 0.02},
        {"coupon_id": "hello", "kind": "message", "contact_cost": 0.05},
    ]
)


def small_forest(output: int = 0) -> ForestTerm:
    """Two trees: x0 <= .5 (missing left) gives 1, else 3; and a single leaf of 5."""
    leaf = np.array([[0.0, 0.0], [1.0, -1.0], [3.0, -3.0], [5.0, -5.0]])
    return ForestTerm(
        feature=np.array([0, -2, -2, -2]),
        threshold=np.array([0.5, 0.0, 0.0, 0.0]),
        missing_left=np.array([True, False, False, False]),
        left=np.array([1, -1, -1, -1]),
        right=np.array([2, -1, -1, -1]),
        leaf=leaf,
        roots=np.array([0, 3]),
        output=output,
    )


def make_bundle(seed: int = 1) -> tuple[ScoringBundle, Float32Array]:
    """The bundle, and 100 rows to score."""
    rng = np.random.default_rng(seed)
    n = 900
    X = rng.standard_normal((n, 3)).astype(np.float32)
    X[:, 2] = rng.integers(0, 2, n)
    X[rng.random(X.shape) < 0.1] = np.nan
    x = np.nan_to_num(X.astype(np.float64))
    assignment = np.tile([0.4, 0.3, 0.3], (n, 1))
    arm = draw_arms(assignment, rng)
    y = x[:, 0] + arm * (x[:, 1] > 0) + 0.3 * rng.standard_normal(n)
    cost = np.where(arm > 0, np.maximum(0.2 * arm + x[:, 0], 0), 0.0)
    schema = Schema(("a", "b", "t"), {"t": ("u", "v")})
    data = training_set(X, arm, y, assignment, cost=cost, schema=schema)
    problem = problem_of(data, SETTINGS, folds=3)
    binned, control = Binned(X, [2], 1), np.flatnonzero(arm == 0)
    bought = (y[control] > 0).astype(float)
    response = fit_response(binned, X, control, bought, problem.fold, SETTINGS).model
    fitted = make_learner("s").fit(problem)
    costs = fit_costs(data, binned, problem.fold, SETTINGS)
    further = (
        (small_forest(0), np.array([0.1, 0.0])),
        (small_forest(1), np.array([0.0, 0.1])),
        (ResponseTerm(response), np.array([0.5, 0.25])),
    )
    bundle = ScoringBundle(
        schema=schema,
        offers=OFFERS,
        offered=(True, False),
        policy="s",
        effects=EffectModel(fitted.model.constant, fitted.model.terms + further),
        costs=costs.model,
        cost_calibration=calibrate_costs(data, costs.oof, fitted.oof),
        response=response,
        money=Money("profit"),
        frozen={"version": 1},
        features={"set": "core"},
        info={"rows": n},
        golden=X[:20],
    )
    return bundle, X[100:200]
