"""The plan of the budget against the simulated shop's truth, in its own world and in others.

What is true of every held-out exposure is known, so at 5, 25, 50 and 100% of the full budget the
true gain of the policy stands beside the planned one, the rivals', and the models' own sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.truth import read_truth
from features.config import load_config
from features.sources import open_source
from features.sources.shop_variants import numbered_world
from features.sources.simulated import make_shop, shop_folder
from training.dataset import build_dataset
from training.evaluate import evaluate
from training.fit import fit_models
from training.planning import plan_of
from training.train import offers_of, population
from uplift.allocation import allocate
from uplift.data import BoolArray, FloatArray
from uplift.evaluation import rival_policies
from uplift.gain_curve import gain_curve

ROOT = Path(__file__).parents[2]
SHARES = (0.05, 0.25, 0.5, 1.0)
WORLDS = (0, 1, 2, 3)
SEEDS = 10
CUSTOMERS = 8_000


@dataclass(frozen=True)
class Found:
    """Of one shop; arrays (4,) along SHARES, per row. cost, paid: per coupon, expected over
    analytic cost of all held-out rows, and paid less expected cost in standard errors."""

    planned: FloatArray
    error: FloatArray
    true: FloatArray
    promised: FloatArray
    rivals: dict[str, FloatArray]
    cost: FloatArray
    paid: FloatArray

    @property
    def inside(self) -> BoolArray:
        return np.abs(self.planned - self.true) <= 1.959964 * self.error


def shop(world: int, seed: int, customers: int = CUSTOMERS) -> Found:
    """Train on a shop of a world, plan on its held-out rows, and look up the truth."""
    config = load_config(
        ROOT / "configs" / "demo-small.yaml",
        [
            f"name=w{world}s{seed}",
            f"source.seed={1000 * world + seed}",
            f"source.customers={customers}",
            f"policy.budget={customers * 0.11}",
            "training.learners=[t]",
            "training.response_targets=[]",
            "training.folds=3",
            "training.threads=1",
        ],
    )
    make_shop(shop_folder(config), customers, config.source.seed, numbered_world(world))
    tables = open_source(config).tables()
    offers = offers_of(config)
    dataset = build_dataset(tables, config, offers)
    models = fit_models(dataset, config, offers, lambda _: None)
    evaluation = evaluate(models, dataset, config, population(tables, config))
    plan = plan_of(evaluation.chosen.bundle, evaluation, models, config)
    truth = read_truth(config, dataset.exposure[models.is_test], config.arms)
    p, test = evaluation.predictions, models.test
    curve = gain_curve(evaluation.scored.gain, p.reward, p.cost, eligible=p.allowed)
    points = [next(q for q in plan.points if np.isclose(q.budget, s * plan.full_budget))
              for s in SHARES]  # fmt: skip
    names = list(config.arms)
    arms = {rival: names.index(arm) + 1 for rival, arm in evaluation.rival_arms.items()}
    true, promised = [], []
    rivals: dict[str, list[float]] = {}
    for point in points:
        policy = curve.policy_at(point.budget)
        true.append(float((policy * truth.tau).sum(axis=1).mean()))
        made = allocate(p.reward, p.cost, budget=point.budget * len(test), eligible=p.allowed)
        promised.append(made.value / len(test))
        for name, rival in rival_policies(p, arms, point.budget).items():
            rivals.setdefault(name, []).append(float((rival * truth.tau).sum(axis=1).mean()))
    paid = []
    for k in range(1, len(names) + 1):
        own = test.arm == k
        left = test.cost[own] - p.cost[own, k - 1]
        paid.append(left.mean() / (left.std(ddof=1) / np.sqrt(own.sum())))
    return Found(
        np.array([q.gain.value for q in points]),
        np.array([q.gain.se for q in points]),
        np.array(true),
        np.array(promised),
        {name: np.array(values) for name, values in rivals.items()},
        p.cost.sum(axis=0) / truth.cost.sum(axis=0),
        np.array(paid),
    )


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_the_plan_of_a_world(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for seed in range(SEEDS):
        one = shop(world, seed)
        found.append(one)
        print(f"world {world} shop {seed}: planned", one.planned.round(3), "true",
              one.true.round(3), "inside", one.inside.astype(int), "promised",
              one.promised.round(3), "cost", one.cost.round(3), "paid", one.paid.round(1),
              flush=True)  # fmt: skip
    inside = np.mean([f.inside for f in found], axis=0)
    error = np.array([f.planned - f.true for f in found])
    width = np.mean([f.error for f in found], axis=0) / error.std(axis=0, ddof=1)
    print(f"world {world}: inside {inside}, width over the errors' own spread {width.round(2)}")
    # Ten shops tell a coverage of 90% from one of 60% and no better; the sum over the worlds does.
    assert (inside >= 0.6).all()
    true = np.mean([f.true for f in found], axis=0)
    for name in found[0].rivals:
        ahead = np.array([f.true - f.rivals[name] for f in found])
        mean, se = ahead.mean(axis=0), ahead.std(axis=0, ddof=1) / np.sqrt(SEEDS)
        print(f"world {world}: ahead of {name}", mean.round(4), "+-", (1.96 * se).round(4))
    promised = np.mean([f.promised for f in found], axis=0)
    print(f"world {world}: promised {promised.round(3)}, true {true.round(3)}")
    assert (promised > true).all(), "the models' own sum is too high at every budget"
    cost = np.array([f.cost for f in found])
    error_of_cost = cost.std(axis=0, ddof=1) / np.sqrt(SEEDS)
    print(f"world {world}: expected over analytic cost", cost.mean(axis=0).round(3), "+-",
          (1.96 * error_of_cost).round(3))  # fmt: skip
    # Costs are only ever repaired upwards, so that no budget is passed: of small shops the total
    # may be too high, never too low.
    assert (cost.mean(axis=0) > 0.95 - 3 * error_of_cost).all()
    assert np.median(cost) < 1.25
