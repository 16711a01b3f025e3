"""The benchmark of many rows: what it draws, counts and extrapolates."""

from __future__ import annotations

import time

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.report import Options
from benchmarks.scale import ARMS, FEATURES, Clock, experiment


def test_the_effects_are_those_stated() -> None:
    """Mean of .1 k max(x, 0) is .1 k / sqrt(2 pi)."""
    data = experiment(60_000)
    assert data.X.shape == (60_000, FEATURES)
    means = [data.y[data.arm == k].mean() for k in range(ARMS + 1)]
    error = np.sqrt(2 * np.var(data.y) / 10_000)
    for k in range(1, ARMS + 1):
        assert means[k] - means[0] == pytest.approx(0.1 * k / np.sqrt(2 * np.pi), abs=4 * error)


def test_memory_that_a_step_holds_is_seen() -> None:
    clock = Clock(1)
    clock("nothing", lambda: None)

    def hold() -> None:
        block = np.ones(40_000_000)  # 320 MB
        time.sleep(0.3)
        del block

    clock("much", hold)
    more = clock.steps["much"][2] - clock.steps["nothing"][2]
    assert 0.25e9 < more < 0.45e9
    assert clock.total()[2] == clock.steps["much"][2]


def test_what_a_million_rows_would_take_is_a_straight_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """10 CPU s for 50,000 rows, 12 for the next: 22 + 18 * 12 s; 1 and 1.5 GB: 10.5."""

    def measured(rows: int) -> tuple[Clock, str]:
        clock = Clock(rows)
        clock.steps["s"] = (1.0, 10.0, int(1e9)) if rows == 50_000 else (2.0, 22.0, int(1.5e9))
        return clock, "ensemble"

    monkeypatch.setattr(scale, "measure", measured)
    text = scale.run(Options())
    assert "1,000,000 rows: 238 CPU s, 10.5 GB" in text
    assert "further rows 24; of the first 50,000 20" in text


@pytest.mark.slow
def test_every_learner_is_fitted_and_judged() -> None:
    text = scale.run(Options(rows=2_000))
    for name in scale.OURS:
        assert f"\n  {name} " in text
        assert f"evaluation of {name} " in text
