"""The gate on experiments whose truth is known: how often it passes nothing, and something.

`GATE_EXPERIMENTS` sets how many are simulated (500).
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial

import numpy as np
import pytest

from features.config import LEARNERS as TRAINED
from features.config import Config, validate
from features.frozen import FrozenValues
from training.dataset import Dataset
from training.evaluate import evaluate
from training.fit import fit_models
from training.gate import RESPONSE_RANKED, SEND_NOTHING, SINGLE, Evidence, Verdict, judge
from training.second_seed import gain_again
from training.train import offers_of
from uplift.data import Schema, TrainingSet

EXPERIMENTS = int(os.environ.get("GATE_EXPERIMENTS", "500"))
MARGIN, FACE, CONTACT = 10.0, 1.5, 0.1
# Those of a training, forests apart, which take as long as all others together.
LEARNERS = [name for name in TRAINED if name != "causalml_forest"]


def config_of(learners: list[str], budget: float | None) -> Config:
    """Two coupons that take FACE off an order, profit as a given outcome."""
    offer = {"kind": "message", "params": {}, "contact_cost": CONTACT}
    return validate(
        {
            "name": "gate",
            "source": {"kind": "files", "path": "."},
            "features": {"set": [], "given": [f"x{j}" for j in range(5)]},
            "outcome": {"kind": "profit", "margin_rate": 0.4},
            "offers": [{"coupon_id": "a", **offer}, {"coupon_id": "b", **offer}],
            "policy": {"budget": budget},
            "training": {"learners": learners, "folds": 3, "threads": 1},
        }
    )


def experiment(rows: int, lift: float, face: float, contact: float, seed: int) -> Dataset:
    """Five features; one customer in eight or so buys for a profit of MARGIN. Coupon a makes
    `lift` more of those with x1 > 0 buy; b changes nobody. Either takes `face` off the profit of
    an order, and costs `contact` to send. Control half, each coupon a quarter."""
    rng = np.random.default_rng([seed, rows])
    x = rng.standard_normal((rows, 5))
    assignment = np.tile([0.5, 0.25, 0.25], (rows, 1))
    arm = rng.choice(3, rows, p=assignment[0])
    p = 1 / (1 + np.exp(2.2 - 0.8 * x[:, 0])) + lift * (arm == 1) * (x[:, 1] > 0)
    bought = (rng.random(rows) < p).astype(float)
    cost = np.where(arm > 0, contact + face * bought, 0.0)
    profit = MARGIN * bought - cost
    ids = np.array([f"k{seed}-{i}" for i in range(rows)], dtype=object)
    data = TrainingSet(
        schema=Schema(tuple(f"x{j}" for j in range(5)), {}),
        arms=("a", "b"),
        X=x.astype(np.float32),
        arm=arm.astype(np.int64),
        y=profit,
        reward=profit,
        cost=cost,
        converted=bought,
        assignment=assignment,
        cluster=np.arange(rows),
        customer=ids,
        assigned_at=np.full(rows, np.datetime64("2026-01-10", "us")),
    )
    one = np.full(rows, "one", dtype=object)
    given = tuple(data.schema.names)
    return Dataset(data, bought * (arm > 0), one, ids, FrozenValues(), (), given, False)


def verdict_on(dataset: Dataset, config: Config) -> Verdict:
    """The gate on one experiment, everything learned from it; without MLflow and tables."""
    models = fit_models(dataset, config, offers_of(config), lambda text: None)
    evaluation = evaluate(models, dataset, config, len(dataset.training))
    again = partial(gain_again, evaluation, models, dataset, config)
    return judge(evaluation, models, dataset, config, Evidence(again=again))


def report(name: str, verdicts: list[Verdict]) -> Counter[str]:
    served = Counter(v.policy for v in verdicts)
    failed = Counter(
        s.test
        for v in verdicts
        for s in v.steps
        if s.candidate == v.steps[0].candidate
        if not s.passed
    )
    print(f"{name}: {len(verdicts)} experiments, served {dict(served)}, failed at {dict(failed)}")
    return served


@pytest.mark.slow
@pytest.mark.parametrize(("face", "contact"), [(0.0, 0.0), (FACE, CONTACT)])
def test_nothing_passes_where_no_offer_has_an_effect(face: float, contact: float) -> None:
    """4,000 exposures, the learners of a training; at most 5% of the gates let anything pass,
    a learner or a fallback, though offers without any cost lose nothing either."""
    config = config_of(LEARNERS, None)
    verdicts = [
        verdict_on(experiment(4000, 0.0, face, contact, seed), config)
        for seed in range(EXPERIMENTS)
    ]
    served = report(f"no effect, cost {face}", verdicts)
    assert len(verdicts) - served[SEND_NOTHING] <= 0.05 * EXPERIMENTS


@pytest.mark.slow
def test_a_coupon_that_changes_half_of_the_customers_passes() -> None:
    """40,000 exposures; a coupon of 1.50 makes 12% more of half of the customers buy, for a profit
    of 10 before the coupon: in at least 80% of the gates the learner passes every step."""
    config = config_of(LEARNERS, None)
    verdicts = [
        verdict_on(experiment(40_000, 0.12, FACE, CONTACT, seed), config)
        for seed in range(EXPERIMENTS)
    ]
    served = report("half of the customers changed", verdicts)
    fallbacks = served[RESPONSE_RANKED] + served[SINGLE] + served[SEND_NOTHING]
    assert len(verdicts) - fallbacks >= 0.8 * EXPERIMENTS
