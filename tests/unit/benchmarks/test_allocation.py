"""The peers of the allocation solve the same problem, and a wrong answer is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.allocation import ARMS, bisect, check, instance, relaxation, run, stream
from benchmarks.report import WIDTH, Options
from uplift.allocation import allocate
from uplift.limits import Limit


def test_bisection_and_linear_programme_agree_with_ours() -> None:
    reward, cost, budget = instance(300, ARMS, np.random.default_rng(1))
    ours = allocate(reward, cost, budget=budget)
    value, spend, bound = bisect(reward, cost, budget)
    assert spend <= budget
    assert bound == pytest.approx(ours.upper_bound, rel=1e-9)
    assert relaxation(reward, [Limit("budget", cost, budget)]) == pytest.approx(
        ours.upper_bound, rel=1e-9
    )
    check(ours, budget, value, bound)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spend", 1e9, "keeps the budget"),
        ("value", 1e9, "below the peer's bound"),
        ("upper_bound", 0.0, "below our bound"),
        ("value", 0.0, "within its gap"),
    ],
)
def test_a_wrong_allocation_is_noticed(field: str, value: float, message: str) -> None:
    reward, cost, budget = instance(300, ARMS, np.random.default_rng(1))
    wrong = replace(allocate(reward, cost, budget=budget), **{field: value})
    peer, _, bound = bisect(reward, cost, budget)
    with pytest.raises(AssertionError, match=message):
        check(wrong, budget, peer, bound)


def test_table_of_a_small_run() -> None:
    text = run(Options(), customers=2000, lp_customers=200, streamed=3000)
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "HiGHS" in text
    assert "numpy bisection" in text
    assert "peak memory 0." in text
    assert "4 limits" in text


def test_the_streamed_campaign_is_the_sum_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.allocation.CHUNK", 1_000)
    found = stream(3_000)
    parts = [instance(1_000, ARMS, np.random.default_rng(first)) for first in (0, 1_000, 2_000)]
    reward, cost = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    whole = allocate(reward, cost, budget=3 * parts[0][2])
    assert (found["value"], found["spend"]) == (whole.value, whole.spend)
