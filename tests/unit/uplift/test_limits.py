"""Several limits at once against a linear programme, brute force, and identities."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from uplift import hull, limits
from uplift.allocation import allocate, of_arm
from uplift.errors import DesignError
from uplift.limits import JointAllocation, Limit, allocate_jointly


def campaign(seed: int, most: int = 120) -> tuple[np.ndarray, list[Limit], np.ndarray]:
    """A budget, the stock of some coupons, a cap of one channel; every third on a coarse grid."""
    rng = np.random.default_rng(seed)
    n, arms = int(rng.integers(1, most)), int(rng.integers(1, 6))
    if seed % 3 == 0:
        reward = rng.integers(-2, 6, (n, arms)).astype(float)
        cost = rng.integers(0, 4, (n, arms)).astype(float)
    else:
        reward, cost = rng.normal(0.3, 1.0, (n, arms)), rng.uniform(0.0, 2.0, (n, arms))
    budget = float(rng.choice([0.0, 0.05, 0.2, 0.6]) * cost.max(axis=1).sum())
    kept = [Limit("budget", cost, budget)]
    kept += [
        Limit(f"stock {arm}", np.eye(arms)[arm], float(rng.integers(0, n // 2 + 1)))
        for arm in range(int(rng.integers(0, min(arms, 4) + 1)))
    ]
    if seed % 4 == 0:
        by_sms = (rng.random((n, 1)) < 0.5).astype(float)
        kept.append(Limit("sms", by_sms, float(rng.integers(0, n // 2 + 1))))
    return reward, kept, rng.random((n, arms)) < (1.0 if seed % 2 else 0.8)


def lp_optimum(reward: np.ndarray, kept: list[Limit], allowed: np.ndarray) -> float:
    n, arms = reward.shape
    one_arm = np.kron(np.eye(n), np.ones(arms))
    uses = [np.broadcast_to(limit.uses, reward.shape).ravel() for limit in kept]
    solution = linprog(
        -reward.ravel(),
        A_ub=np.vstack([one_arm, *uses]),
        b_ub=np.append(np.ones(n), [limit.most for limit in kept]),
        bounds=[(0.0, 1.0 if ok else 0.0) for ok in allowed.ravel()],
        method="highs",
    )
    assert solution.status == 0
    return float(-solution.fun)


def check(
    found: JointAllocation, reward: np.ndarray, kept: list[Limit], allowed: np.ndarray
) -> tuple[float, float]:
    """Relative distance of the bound to the optimum, and the gap in units of the best reward."""
    optimum = lp_optimum(reward, kept, allowed)
    assert found.upper_bound == pytest.approx(optimum, rel=1e-9, abs=1e-9)
    rows = np.flatnonzero(found.choice)
    assert allowed[rows, found.choice[rows] - 1].all()
    for limit in kept:
        use = of_arm(np.broadcast_to(limit.uses, reward.shape), found.choice)
        assert found.used[limit.name] == pytest.approx(use.sum(), abs=1e-12)
        assert found.used[limit.name] <= limit.most
    assert found.value == pytest.approx(of_arm(reward, found.choice).sum(), abs=1e-9)
    assert found.split <= len(kept)
    best = float(np.where(allowed, reward, 0.0).max(initial=0.0))
    assert 0.0 <= found.gap == found.upper_bound - found.value
    assert found.gap <= found.split * best + 1e-9
    off = abs(found.upper_bound - optimum) / max(1.0, optimum)
    return off, found.gap / best if best > 0 else 0.0


def check_many(seeds: range) -> str:
    """Check each problem; returns what was found in words."""
    told, splits, limits_of = [], [], []
    for seed in seeds:
        reward, kept, allowed = campaign(seed)
        found = allocate_jointly(reward, kept, eligible=allowed)
        told.append(check(found, reward, kept, allowed))
        splits.append(found.split)
        limits_of.append(len(kept))
    off, gap = np.max(told, axis=0)
    return (
        f"{len(seeds)} problems, up to {max(limits_of)} limits: bound off by {off:.1g} at most; "
        f"customers split {np.mean(splits):.2f} on average, {max(splits)} at most; "
        f"gap {gap:.2f} best rewards at most, {np.mean(told, axis=0)[1]:.2f} on average"
    )


@pytest.mark.parametrize("block", range(4))
def test_equals_the_linear_program_to_one_customer_per_limit(block: int) -> None:
    check_many(range(block * 20, block * 20 + 20))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_equals_the_linear_program_on_thousands_of_problems(block: int) -> None:
    print(check_many(range(1_000 + 500 * block, 1_500 + 500 * block)))


@pytest.mark.slow
def test_one_budget_equals_the_linear_program_on_thousands_of_problems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hull, "_WALKED", 8)
    off, lost = 0.0, 0.0
    for seed in range(4_000, 7_000):
        reward, kept, allowed = campaign(seed)
        found = allocate(reward, kept[0].uses, budget=kept[0].most, eligible=allowed)
        optimum = lp_optimum(reward, kept[:1], allowed)
        assert found.upper_bound == pytest.approx(optimum, rel=1e-9, abs=1e-9)
        assert found.spend <= kept[0].most
        assert 0.0 <= found.gap <= max(0.0, reward.max()) + 1e-12
        off = max(off, abs(found.upper_bound - optimum) / max(1.0, optimum))
        lost = max(lost, found.gap / max(reward.max(), 1e-9))
    print(f"3000 problems, one budget: bound off by {off:.1g} at most; gap {lost:.2f} best rewards")


@pytest.mark.parametrize("seed", range(12))
def test_a_sample_stands_for_many_customers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_SAMPLED", 30)
    monkeypatch.setattr(limits, "_UNSURE", 2)
    reward, kept, allowed = campaign(seed, most=400)
    found = allocate_jointly(reward, kept, eligible=allowed)
    check(found, reward, kept, allowed)
    assert all(found.used[limit.name] <= limit.most for limit in kept)
    assert found.value <= lp_optimum(reward, kept, allowed) + 1e-9


@pytest.mark.parametrize("seed", range(40))
def test_no_better_choice_exists_within_the_gap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, arms = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    reward = rng.integers(-2, 8, (n, arms)).astype(float)
    cost = rng.integers(0, 5, (n, arms)).astype(float)
    kept = [
        Limit("budget", cost, float(rng.integers(0, 8))),
        Limit("stock", np.eye(arms)[0], float(rng.integers(0, 3))),
    ]
    best = max(
        of_arm(reward, np.array(plan)).sum()
        for plan in itertools.product(range(arms + 1), repeat=n)
        if all(
            of_arm(np.broadcast_to(limit.uses, reward.shape), np.array(plan)).sum() <= limit.most
            for limit in kept
        )
    )
    found = allocate_jointly(reward, kept)
    assert found.value - 1e-9 <= best <= found.upper_bound + 1e-9
    assert all(found.used[limit.name] <= limit.most for limit in kept)


@pytest.mark.parametrize("seed", range(20))
def test_one_budget_gives_the_bound_and_the_price_of_the_path(seed: int) -> None:
    reward, kept, allowed = campaign(seed)
    path = allocate(reward, kept[0].uses, budget=kept[0].most, eligible=allowed)
    found = allocate_jointly(reward, kept[:1], eligible=allowed)
    assert found.upper_bound == pytest.approx(path.upper_bound, rel=1e-9, abs=1e-9)
    if seed % 3 and path.shadow_price and kept[0].most:
        assert found.prices["budget"] == pytest.approx(path.shadow_price, rel=1e-6)


@pytest.mark.parametrize("seed", [s for s in range(24) if s % 3])
def test_neither_order_nor_currency_changes_the_answer(seed: int) -> None:
    reward, kept, allowed = campaign(seed)
    plain = allocate_jointly(reward, kept, eligible=allowed)
    moved = np.random.default_rng(seed).permutation(len(reward))
    turned = [
        replace(limit, uses=np.broadcast_to(limit.uses, reward.shape)[moved]) for limit in kept
    ]
    other = allocate_jointly(reward[moved], turned, eligible=allowed[moved])
    np.testing.assert_array_equal(other.choice, plain.choice[moved])
    double = [replace(kept[0], uses=2 * kept[0].uses, most=2 * kept[0].most), *kept[1:]]
    rich = allocate_jointly(2 * reward, double, eligible=allowed)
    np.testing.assert_array_equal(rich.choice, plain.choice)
    assert rich.upper_bound == pytest.approx(2 * plain.upper_bound, rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_wider_limits_never_lower_the_bound_and_less_eligibility_never_raises_it(seed: int) -> None:
    reward, kept, allowed = campaign(seed)
    plain = allocate_jointly(reward, kept, eligible=allowed).upper_bound
    wider = [replace(limit, most=1.5 * limit.most + 1.0) for limit in kept]
    assert allocate_jointly(reward, wider, eligible=allowed).upper_bound >= plain - 1e-9
    fewer = allowed & (np.random.default_rng(seed).random(reward.shape) < 0.7)
    assert allocate_jointly(reward, kept, eligible=fewer).upper_bound <= plain + 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_another_coupon_never_lowers_the_bound_and_whole_plans_follow_within_their_loss(
    seed: int,
) -> None:
    """What a linear optimum owes to whole numbers is what its split customers bring: of a wider,
    richer or narrower campaign the whole plan is no more than that on the wrong side."""
    reward, kept, allowed = campaign(seed)
    rng = np.random.default_rng(200 + seed)
    plain = allocate_jointly(reward, kept, eligible=allowed)
    n = len(reward)
    dear = np.column_stack([kept[0].uses, rng.uniform(0.0, 2.0, n)])
    wide = [Limit("budget", dear, kept[0].most)]
    for each in kept[1:]:
        use = np.broadcast_to(each.uses, reward.shape)
        # The new coupon is a send as well, and not a piece of the others' stock.
        theirs = use[:, 0] if each.name == "sms" else np.zeros(n)
        wide.append(replace(each, uses=np.column_stack([use, theirs])))
    more = allocate_jointly(
        np.column_stack([reward, rng.normal(0.5, 1.0, n)]), wide,
        eligible=np.column_stack([allowed, np.ones(n, dtype=bool)]),
    )  # fmt: skip
    looser = [replace(each, most=1.5 * each.most + 1.0) for each in kept]
    richer = allocate_jointly(reward, looser, eligible=allowed)
    fewer = allocate_jointly(reward, kept, eligible=allowed & (rng.random(reward.shape) < 0.7))
    for better, worse in ((more, plain), (richer, plain), (plain, fewer)):
        assert better.upper_bound >= worse.upper_bound - 1e-9
        assert better.value >= worse.value - better.gap - 1e-9
        assert better.gap <= better.split * max(reward.max(), 5.0)


def test_by_hand() -> None:
    # Both want the first coupon; there is one. The second customer has the better other choice.
    reward = np.array([[5.0, 1.0], [6.0, 4.0]])
    stock = Limit("first", np.array([1.0, 0.0]), 1.0)
    found = allocate_jointly(reward, [stock])
    assert found.choice.tolist() == [1, 2]
    assert (found.value, found.used, found.gap) == (9.0, {"first": 1.0}, pytest.approx(0.0))
    assert 2.0 - 1e-9 <= found.prices["first"] <= 4.0 + 1e-9
    free = allocate_jointly(reward, [replace(stock, most=np.inf)])
    assert (free.choice.tolist(), free.prices) == ([1, 1], {"first": 0.0})


def test_limits_are_kept_in_spite_of_rounding() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        cost = rng.choice([0.1, 0.2, 0.3, 0.7], (12, 1))
        budget = round(float(rng.choice([0.3, 0.6, 0.8, 1.1, 1.4])), 1)
        kept = [Limit("budget", cost, budget), Limit("sends", np.ones((12, 1)), 4.0)]
        found = allocate_jointly(np.ones((12, 1)) * cost, kept)
        assert found.used["budget"] <= budget
        assert found.used["sends"] <= 4.0


@pytest.mark.parametrize("seed", range(12))
def test_too_many_for_a_programme_keep_the_limits_and_show_what_is_lost(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_LARGEST", 0)
    reward, kept, allowed = campaign(seed)
    found = allocate_jointly(reward, kept, eligible=allowed)
    assert found.upper_bound == pytest.approx(lp_optimum(reward, kept, allowed), rel=1e-5, abs=1e-5)
    assert all(found.used[limit.name] <= limit.most for limit in kept)
    assert 0.0 <= found.gap == found.upper_bound - found.value
    alike = allocate_jointly(np.full((300, 1), 2.0), [Limit("budget", np.ones((1, 1)), 100.5)])
    assert (alike.value, alike.used) == (200.0, {"budget": 100.0})
    assert alike.upper_bound == pytest.approx(201.0)


def test_nobody_no_arms_and_no_limits_are_answered() -> None:
    budget = Limit("budget", np.ones((1, 1)), 3.0)
    for shape in ((0, 2), (3, 0)):
        found = allocate_jointly(np.ones(shape), [budget])
        assert (len(found.choice), found.value, found.gap) == (shape[0], 0.0, 0.0)
    reward = np.array([[1.0, 2.0], [-1.0, -2.0]])
    assert allocate_jointly(reward, []).choice.tolist() == [2, 0]
    assert allocate_jointly(-np.abs(reward), [budget]).value == 0.0


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([Limit("a", np.ones(1), 1.0)] * 2, "a name of its own"),
        ([Limit("a", np.ones(1), -1.0)], "a: expected a limit >= 0, found -1"),
        ([Limit("a", np.ones(1), np.nan)], "a: expected a limit >= 0, found nan"),
        ([Limit("a", np.ones((4, 4)), 1.0)], r"a: expected uses for \(2, 3\)"),
        ([Limit("a", np.full(3, np.nan), 1.0)], "a: expected finite uses >= 0"),
        ([Limit("a", np.full(3, -1.0), 1.0)], "a: expected finite uses >= 0"),
    ],
)
def test_refuses(kept: list[Limit], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        allocate_jointly(np.ones((2, 3)), kept)
