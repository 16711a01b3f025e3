"""The catalogue beside the core set: the table, and the interval over shops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.catalogue import Chosen, mean_difference, table


def chosen(value: float, error: float) -> Chosen:
    return Chosen("x", value, 0.3, error)


def test_the_interval_over_shops_is_students() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 7)
    middle, low, high = mean_difference(list(values))
    want = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert middle == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((want.low, want.high))
    assert mean_difference([1.0]) == (1.0, -np.inf, np.inf)


@pytest.mark.parametrize(
    ("every", "difference", "verdict"),
    [
        ((0.230, 0.220), "+20.0", "holds."),
        ((0.230, 0.160), "-10.0", "not told apart from a loss."),
        ((0.150, 0.161), "-49.5", "missed."),
    ],
)
def test_the_table_shows_shops_their_mean_and_what_came_of_the_aim(
    every: tuple[float, float], difference: str, verdict: str
) -> None:
    shops = {
        seed: {"core": chosen(core, 1.1), "all": chosen(value, 1.2)}
        for seed, core, value in zip((11, 12), (0.20, 0.21), every, strict=True)
    }
    text = table("title", shops)
    first = next(line.split() for line in text.splitlines() if line.startswith("  seed 11"))
    assert first[:6] == ["seed", "11", "300.0", "200.0", "x", f"{every[0] * 1000:.1f}"]
    mean = next(line.split() for line in text.splitlines() if line.startswith("  mean"))
    assert mean == [
        "mean",
        "300.0",
        "205.0",
        f"{sum(every) * 500:.1f}",
        difference,
        "1.100",
        "1.200",
    ]
    _, low, high = mean_difference([every[0] - 0.20, every[1] - 0.21])
    aim = f"{difference} [{low * 1000:.1f}, {high * 1000:.1f}] (95%, over shops): {verdict}"
    assert text.endswith(aim)
