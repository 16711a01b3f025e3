"""The second wave of a campaign with a persistent holdout (statistics.md, sections 8 and 12).

Offers of the first wave brought purchases forward, and only customers who are not held out had
any: the holdout's outcomes are not what the others' would be. Pooled probabilities take them for
controls all the same; a training leaves them out and asks for the draw among the others.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.sources import open_source
from tests.unit.training.shops import config_of
from training.dataset import Dataset, build_dataset
from training.train import offers_of
from uplift.data import FloatArray, IntArray
from uplift.nuisances import doubly_robust
from uplift.scores import Estimate, ScoreMatrix

ROWS, RUNS = 30_000, 5
EFFECT, HOLDOUT, BEFORE, FORWARD = 0.2, 0.1, 0.8, 0.43
# Probability of the offer among those who are not held out, where x > 0 and elsewhere.
LIKELY, UNLIKELY = 0.8, 0.2


def second_wave(folder: Path, seed: int) -> tuple[Dataset, FloatArray, IntArray, FloatArray]:
    """What a training makes of its exposures; and of all rows x, arm and outcome."""
    rng = np.random.default_rng([seed, 41])
    x = rng.standard_normal(ROWS)
    held = rng.random(ROWS) < HOLDOUT
    e = np.where(x > 0, LIKELY, UNLIKELY)
    arm = np.where(held, 0, rng.random(ROWS) < e).astype(np.int64)
    before = ~held & (rng.random(ROWS) < BEFORE)
    y = x + EFFECT * arm - FORWARD * before + rng.standard_normal(ROWS)
    maps = [json.dumps({"control": round(1 - p, 6), "c5": p}) for p in (UNLIKELY, LIKELY)]
    folder.mkdir(parents=True)
    pd.DataFrame(
        {
            "exposure_id": [f"e{i}" for i in range(ROWS)],
            "customer_id": [f"k{i}" for i in range(ROWS)],
            "campaign_id": "second",
            "assigned_at": "2026-01-10",
            "arm": np.where(arm == 1, "c5", "control"),
            "holdout_kind": np.where(held, "campaign", "none"),
            "assignment_probs": np.where(x > 0, maps[1], maps[0]),
            "gain": y,
            "x0": x,
        }
    ).to_parquet(folder / "exposures.parquet")
    config = config_of(
        folder,
        features={"set": [], "given": ["x0"]},
        outcome={"kind": "column", "column": "gain", "value": 1.0},
        offers=[{"coupon_id": "c5", "kind": "message", "params": {}, "contact_cost": 0.05}],
    )
    dataset = build_dataset(open_source(config).tables(), config, offers_of(config))
    assert dataset.counts["held_out"] == int(held.sum())
    return dataset, x, arm, y


def effect(x: FloatArray, e: FloatArray, arm: IntArray, y: FloatArray) -> Estimate:
    """By means that know x and nothing of the offers before."""
    mu = np.column_stack([x, x])
    scores = doubly_robust(mu, np.column_stack([1 - e, e]), arm, y)
    return ScoreMatrix(scores, np.arange(len(x))).effect(1)


def test_a_persistent_holdout_biases_pooled_probabilities_and_no_training(tmp_path: Path) -> None:
    found, pooled, errors = [], [], []
    for seed in range(RUNS):
        dataset, x, arm, y = second_wave(tmp_path / str(seed), seed)
        data = dataset.training
        own = effect(data.X[:, 0].astype(np.float64), data.assignment[:, 1], data.arm, data.y)
        found.append(own.value)
        errors.append(own.se)
        e = (1 - HOLDOUT) * np.where(x > 0, LIKELY, UNLIKELY)
        pooled.append(effect(x, e, arm, y).value)
    three = 3 * float(np.sqrt(np.mean(np.square(errors)) / RUNS))
    assert three < 0.03
    assert np.mean(found) == pytest.approx(EFFECT, abs=three)
    # The holdout's share of the controls, where x > 0 and elsewhere, did not buy before.
    share = np.mean([HOLDOUT / (HOLDOUT + (1 - HOLDOUT) * (1 - p)) for p in (LIKELY, UNLIKELY)])
    wrong = EFFECT - BEFORE * FORWARD * share
    assert np.mean(pooled) == pytest.approx(wrong, abs=three)
    assert wrong == pytest.approx(0.117, abs=0.002)
    assert wrong < EFFECT - 2 * three
