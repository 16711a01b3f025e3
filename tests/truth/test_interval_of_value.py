"""The reported interval of the served policy's value holds the truth (simulated shop)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.truth import read_truth
from features.config import load_config
from training.train import run

ROOT = Path(__file__).parents[2]


def _silent(text: str) -> None:
    pass


def served_interval_and_truth(seed: int, customers: int) -> tuple[float, float, float]:
    """Lower end, upper end, and true value per row, of the policy that a shop's training serves."""
    config = load_config(
        ROOT / "configs" / "demo-small.yaml",
        [
            f"source.seed={seed}",
            f"source.customers={customers}",
            f"policy.budget={customers * 0.11}",
            f"training.seed={seed}",
            "training.learners=[s, t, x, r, dr]",
            "training.response_targets=[]",
        ],
    )
    training = run(config, _silent)
    assert training.tables.simulated
    chosen = training.evaluation.chosen.value
    test = training.models.is_test
    truth = read_truth(config, training.dataset.exposure[test], config.arms)
    value = float((chosen.policy * truth.tau).sum(axis=1).mean())
    return chosen.gain.lo, chosen.gain.hi, value


@pytest.mark.slow
def test_interval_holds_the_truth_in_ninety_of_a_hundred_shops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = np.array([served_interval_and_truth(seed, 6000) for seed in range(100)])
    low, high, value = found.T
    inside = int(((low <= value) & (value <= high)).sum())
    width = float((high - low).mean())
    spread = float(((low + high) / 2 - value).std(ddof=1))
    print(
        f"\n{inside} of 100 intervals hold the truth; mean width {width:.4f} EUR per exposure, "
        f"{width / (2 * 1.96 * spread):.2f} times that from the errors' own spread"
    )
    assert inside >= 90
    assert width <= 1.5 * 2 * 1.96 * spread, "the interval is much wider than it need be"
