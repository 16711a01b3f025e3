"""Settling by a sample's bounds gives what the walk over all customers gives, to the last bit."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from uplift import allocation, hull
from uplift.allocation import Allocation, Chunk, allocate, allocate_stream
from uplift.errors import DesignError
from uplift.settling import Bounds, bounds, exact_terms, settle


def same(one: Allocation, other: Allocation) -> None:
    np.testing.assert_array_equal(one.choice, other.choice)
    assert one.spend == other.spend
    assert one.value == other.value
    assert one.shadow_price == other.shadow_price
    assert one.upper_bound == pytest.approx(other.upper_bound, rel=1e-14, abs=1e-300)
    assert one.choice.dtype == other.choice.dtype


def campaign(seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """400 customers: free and equal arms, ties, thresholds, customers who are not charged."""
    rng = np.random.default_rng(seed)
    n, arms = 400, int(rng.integers(1, 7))
    if seed % 4 == 0:  # a coarse grid, full of ties
        reward = rng.integers(-2, 6, (n, arms)).astype(float)
        cost = rng.integers(0, 4, (n, arms)).astype(float)
    elif seed % 4 == 1:  # few customers hold most of the money, and come first
        reward = np.sort(rng.lognormal(0.0, 3.0, (n, arms)), axis=0)[::-1] - 1.0
        cost = rng.lognormal(0.0, 2.0, (n, arms))
    else:
        reward, cost = rng.normal(0.1, 1.0, (n, arms)), rng.uniform(0.0, 2.0, (n, arms))
        cost[rng.random((n, arms)) < 0.1] = 0.0
    if seed % 3 == 0:  # equal arms
        reward[:, -1], cost[:, -1] = reward[:, 0], cost[:, 0]
    share = float(rng.choice([0.0, 1e-4, 0.05, 0.3, 0.7, 2.0]))
    more = {
        "budget": None if seed % 11 == 0 else share * float(cost.max(axis=1).sum()),
        "min_profit": float(rng.choice([-1.0, 0.0, 0.3])),
        "eligible": None if seed % 2 else rng.random((n, arms)) < 0.8,
        "charged": None if seed % 5 else rng.random(n) < 0.6,
        "tie_order": None if seed % 7 else rng.permutation(n),
    }
    return reward, cost, more


@pytest.mark.parametrize(
    ("walked", "stand_off"), [(64, (4.0, 20.0)), (16, (0.5, 1.0)), (2, (0.0,))]
)
def test_settling_first_changes_nothing(
    walked: int, stand_off: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Bounds that are far too near, as in the later cases, often miss: that must be noticed.
    for seed in range(150):
        reward, cost, more = campaign(seed)
        plain = allocate(reward, cost, **more)
        with monkeypatch.context() as patched:
            patched.setattr(hull, "_WALKED", walked)
            patched.setattr(hull, "_STAND_OFF", stand_off)
            patched.setattr("uplift.settling._APART", 1)
            patched.setattr("uplift.settling._BLOCK", 128)
            settled = allocate(reward, cost, **more)
        same(settled, plain)
        assert np.array_equal(settled.choice, plain.choice)


def test_a_large_campaign_is_settled_and_equals_its_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    reward, cost = rng.normal(-0.1, 1.2, (60_000, 5)), 0.1 + rng.gamma(2.0, 0.25, (60_000, 5))
    walks: list[int] = []
    real = hull.walk

    def counted(table, limit, before):  # type: ignore[no-untyped-def]
        walks.append(len(table.reward))
        return real(table, limit, before)

    monkeypatch.setattr(hull, "walk", counted)
    settled = allocate(reward, cost, budget=4_000.0)
    assert len(walks) == 1
    assert walks[0] < 15_000
    monkeypatch.setattr(hull, "_WALKED", 10**9)
    same(settled, allocate(reward, cost, budget=4_000.0))
    moved = rng.permutation(len(reward))
    monkeypatch.undo()
    np.testing.assert_array_equal(
        allocate(reward[moved], cost[moved], budget=4_000.0).choice, settled.choice[moved]
    )


def test_more_arms_than_a_byte_can_name(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    reward, cost = rng.normal(0.0, 1.0, (500, 300)), rng.uniform(0.1, 1.0, (500, 300))
    plain = allocate(reward, cost, budget=40.0)
    assert plain.choice.max() > 127
    monkeypatch.setattr(hull, "_WALKED", 64)
    same(allocate(reward, cost, budget=40.0), plain)


def test_settled_customers_keep_their_arm_at_any_price_within_the_bounds() -> None:
    rng = np.random.default_rng(8)
    reward, cost = rng.normal(0.2, 1.0, (5_000, 4)), rng.uniform(0.0, 1.0, (5_000, 4))
    within = Bounds(0.6, 0.8, 1.1)
    codes = np.empty(5_000, dtype=np.int8)
    found = settle(reward, cost, None, None, within, codes)
    is_open = np.isin(np.arange(5_000), found.open_rows)
    ends = [allocation.best_arm(reward, cost, price) for price in (0.6 + 1e-9, 0.9, 1.1 - 1e-9)]
    for arm in ends:
        np.testing.assert_array_equal(arm[~is_open], codes[~is_open])
    # Nobody is left open in vain: the arm of the others differs between the ends.
    assert (ends[0] != ends[2])[is_open].all()
    assert math.fsum(found.spend) == math.fsum(allocation.of_arm(cost, codes)[~is_open].tolist())
    assert math.fsum(found.value) == math.fsum(allocation.of_arm(reward, codes)[~is_open].tolist())


def test_bounds_enclose_the_step_where_the_budget_ends() -> None:
    slope, price = np.arange(100.0, 0.0, -1.0), np.ones(100)
    found = bounds(price, slope, limit=50.5, noise=10.0)
    assert found.low == pytest.approx(100 - (60 + 16), rel=1e-5)
    assert found.middle == 50.0
    assert found.high == pytest.approx(100 - (40 - 16), rel=1e-5)
    assert bounds(price, slope, limit=math.inf, noise=10.0).low == 0.0
    assert bounds(price, slope, limit=0.0, noise=0.0).high == np.finfo(float).max
    assert bounds(price[:0], slope[:0], limit=5.0, noise=0.0).contain(0.0)
    assert not found.contain(0.0)
    assert not found.contain(found.high)
    assert found.contain(50.0)


@pytest.mark.parametrize("seed", range(40))
def test_terms_sum_to_exactly_what_the_values_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread = [0, 10, 100, 290][seed % 4]
    values = rng.normal(size=int(rng.integers(1, 3_000))) * 10.0 ** rng.uniform(-spread, spread)
    if seed % 2:
        values = values * 10.0 ** rng.uniform(-spread / 20, spread / 20, len(values))
    terms = exact_terms(values)
    assert sum(map(Fraction, terms)) == sum(map(Fraction, values.tolist()))
    assert math.fsum(terms) == math.fsum(values.tolist())


def test_terms_are_few_and_nothing_has_none() -> None:
    assert len(exact_terms(np.random.default_rng(0).gamma(2.0, 1.0, 100_000))) <= 5
    assert exact_terms(np.zeros(7)) == []
    assert exact_terms(np.zeros(0)) == []
    assert math.fsum(exact_terms(np.array([5e-324, 1e-310]))) == 5e-324 + 1e-310


def chunked(reward: np.ndarray, cost: np.ndarray, more: dict, size: int) -> list[Chunk]:
    names = ("eligible", "charged", "tie_order")
    return [
        Chunk(
            reward[i : i + size],
            cost[i : i + size],
            *(None if more[name] is None else more[name][i : i + size] for name in names),
        )
        for i in range(0, len(reward), size)
    ]


@pytest.mark.parametrize("size", [400, 150, 37])
def test_a_stream_of_chunks_gives_what_one_table_gives(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(60):
        reward, cost, more = campaign(seed)
        chunks = chunked(reward, cost, more, size)
        limits = {"budget": more["budget"], "min_profit": more["min_profit"]}
        plain = allocate(reward, cost, **more)
        streamed = allocate_stream(lambda chunks=chunks: chunks, **limits)
        same(streamed, plain)
        assert np.array_equal(streamed.choice, plain.choice)
        with monkeypatch.context() as patched:
            patched.setattr(hull, "_STAND_OFF", (0.5, 1.0))
            patched.setattr("uplift.settling._APART", 1)
            same(allocate_stream(lambda chunks=chunks: iter(chunks), **limits), plain)


def test_a_long_stream_is_read_twice_and_holds_few_customers() -> None:
    readings: list[int] = []

    def chunks() -> Iterator[Chunk]:
        readings.append(0)
        for seed in range(20):
            rng = np.random.default_rng(seed)
            yield Chunk(rng.normal(0.0, 1.0, (10_000, 3)), rng.uniform(0.1, 1.0, (10_000, 3)))

    tracemalloc.start()
    found = allocate_stream(chunks, budget=9_000.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(readings) == 2
    whole = list(chunks())
    same(
        found,
        allocate(
            np.concatenate([c.reward for c in whole]),
            np.concatenate([c.cost for c in whole]),
            budget=9_000.0,
        ),
    )
    assert found.spend <= 9_000.0
    assert peak < 200_000 * 3 * 8 * 2


def test_streams_that_cannot_be_read_are_refused() -> None:
    two, three = Chunk(np.ones((5, 2)), np.ones((5, 2))), Chunk(np.ones((5, 3)), np.ones((5, 3)))
    with pytest.raises(DesignError, match=r"expected 2 arms in all, found 3 .* customer row 5"):
        allocate_stream(lambda: [two, three], budget=1.0)
    once = iter([two, two])
    with pytest.raises(DesignError, match=r"same 10 customers in 2 chunks .* found 0 in 0"):
        allocate_stream(lambda: once, budget=1.0)
    growing = [two]

    def more() -> list[Chunk]:
        growing.append(two)
        return list(growing)

    with pytest.raises(DesignError, match=r"found (20 in 4|15 in 3)"):
        allocate_stream(more, budget=1.0)
    with pytest.raises(DesignError, match="finite numbers, found nan"):
        allocate_stream(lambda: [Chunk(np.full((1, 1), np.nan), np.ones((1, 1)))], budget=1.0)
    nobody = allocate_stream(lambda: [], budget=1.0)
    assert (len(nobody.choice), nobody.spend, nobody.gap) == (0, 0.0, 0.0)
