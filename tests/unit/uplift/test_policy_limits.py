"""Decisions under stock and other limits: never passed, certified, and the same alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from uplift import spending
from uplift.errors import DesignError
from uplift.limits import Limit, tolls
from uplift.policy import Decisions, Reason, Shares, decide

SALT = b"test-salt"
IDS = [f"c-{i:06d}" for i in range(3_000)]


def scores(n: int, arms: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1.0, (n, arms)), rng.uniform(0.2, 2.0, (n, arms))


def column(arm: int, arms: int = 3) -> np.ndarray:
    return np.eye(arms)[arm - 1 : arm]


def stock(arm: int, most: float) -> Limit:
    return Limit(f"stock of {arm}", column(arm), most)


def campaign(n: int = 2_000, **changes: Any) -> Decisions:
    reward, cost = scores(n)
    given = {"shares": Shares(0.05, 0.10, 0.02), "salt": SALT, "campaign_id": "spring"}
    return decide(IDS[:n], reward, cost, **{"budget": 300.0, **given, **changes})


def test_stock_is_used_up_and_never_passed() -> None:
    limits = [stock(1, 40), stock(2, 25), Limit("sends", np.ones((1, 3)), 180)]
    d = campaign(limits=limits)
    sent = np.bincount(d.arm[d.is_offer], minlength=4)
    assert (sent[1], sent[2], sent[1:].sum()) == (40, 25, 180)
    assert [(u.name, u.most, u.used) for u in d.used] == [
        ("stock of 1", 40, 40.0), ("stock of 2", 25, 25.0), ("sends", 180, 180.0)
    ]  # fmt: skip
    assert all(u.price > 0 for u in d.used)
    assert d.certificate is not None
    assert d.certificate.spend <= 300.0
    assert d.certificate.gap >= 0


def test_the_bound_is_the_optimum_of_the_linear_programme_and_the_loss_a_few_customers() -> None:
    reward, cost = scores(400)
    limits = [stock(1, 30), Limit("sends", np.ones((1, 3)), 90)]
    d = decide(IDS[:400], reward, cost, shares=Shares(), salt=SALT, campaign_id="x",
               budget=60.0, limits=limits)  # fmt: skip
    uses = [cost, np.broadcast_to(column(1), cost.shape), np.ones(cost.shape)]
    one = np.kron(np.eye(400), np.ones((1, 3)))
    best = linprog(-reward.ravel(), A_ub=np.vstack([*(u.ravel() for u in uses), one]),
                   b_ub=[60.0, 30, 90, *np.ones(400)], method="highs")  # fmt: skip
    assert d.certificate is not None
    assert d.certificate.upper_bound == pytest.approx(-best.fun, rel=1e-9)
    # At most one customer per limit is split; each costs at most what its arm brings.
    assert d.certificate.gap <= 3 * reward.max()
    assert d.certificate.value == pytest.approx(d.expected_incremental_profit.sum())


@given(
    n=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    budget=st.one_of(st.none(), st.floats(0, 30)),
    most=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    share=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_no_limit_is_ever_passed(
    n: int, seed: int, budget: float | None, most: list[int], share: float
) -> None:
    reward, cost = scores(n, seed=seed)
    rng = np.random.default_rng(seed)
    some = rng.random(n) < 0.5
    limits = [stock(1, most[0])]
    limits += [Limit("who", some[:, None] * np.ones((1, 3)), m) for m in most[1:2]]
    limits += [Limit("cost of 3", cost * column(3), m / 3) for m in most[2:]]
    in_stock = np.array([most[0] > 0, True, True])
    d = decide(IDS[:n], reward, cost, shares=Shares(0.2, share, 0.0), salt=SALT,
               campaign_id="x", budget=budget, limits=limits, in_stock=in_stock,
               eligible=rng.random((n, 3)) < 0.8)  # fmt: skip
    assert budget is None or d.expected_cost.sum() <= budget
    for limit, used in zip(limits, d.used, strict=True):
        uses = np.broadcast_to(limit.uses, cost.shape)
        assert used.used == pytest.approx(
            sum(uses[i, d.arm[i] - 1] for i in range(n) if d.is_offer[i])
        )
        assert used.used <= limit.most
    np.testing.assert_allclose(d.probs.sum(axis=1), 1.0)
    assert (d.assignment_prob > 0).all()
    drawn = d.arm[d.arm > 0]
    assert d.eligible[d.arm > 0][np.arange(len(drawn)), drawn - 1].all()
    assert not d.is_offer[d.reason == Reason.COUPON_OUT_OF_STOCK].any()


@given(random=st.randoms(use_true_random=False))
@settings(max_examples=4, deadline=None)
def test_order_and_currency_change_no_choice(random: Any) -> None:
    n = 300
    reward, cost = scores(n)
    order = np.array(random.sample(range(n), n))
    limits = [stock(1, 20), Limit("cost of 2", cost * column(2), 15.0)]
    same: dict[str, Any] = {"shares": Shares(0.1, 0.1), "salt": SALT, "campaign_id": "x"}
    plain = decide(IDS[:n], reward, cost, budget=60.0, limits=limits, **same)
    moved = decide([IDS[i] for i in order], reward[order], cost[order], budget=60.0,
                   limits=[limits[0], Limit("cost of 2", cost[order] * column(2), 15.0)],
                   **same)  # fmt: skip
    assert moved.arm.tolist() == plain.arm[order].tolist()
    dear = [limits[0], Limit("cost of 2", 2 * cost * column(2), 30.0)]
    doubled = decide(IDS[:n], 2 * reward, 2 * cost, budget=120.0, limits=dear, **same)
    assert doubled.arm.tolist() == plain.arm.tolist()


def test_a_call_at_the_prices_decides_as_the_campaign_did_but_for_the_marginal_few() -> None:
    reward, cost = scores(2_000)
    limits = [stock(1, 60), Limit("sends", np.ones((1, 3)), 200)]
    d = campaign(limits=limits)
    prices = {u.name: u.price for u in d.used}
    same: dict[str, Any] = {"salt": SALT, "campaign_id": "spring"}
    alone = decide(IDS[:2_000], reward, cost, shares=d.shares, shadow_price=d.shadow_price,
                   toll=tolls(limits, prices, cost.shape), **same)  # fmt: skip
    assert (alone.arm != d.arm).sum() <= len(limits) + 1
    assert alone.used == ()
    half = decide(IDS[:9], reward[:9], cost[:9], shares=d.shares, shadow_price=d.shadow_price,
                  toll=tolls(limits, prices, (9, 3)), **same)  # fmt: skip
    assert half.arm.tolist() == alone.arm[:9].tolist()


def test_what_is_out_of_stock_or_out_of_date_says_so() -> None:
    reward, cost = np.ones((4, 2)), np.ones((4, 2))
    eligible = np.array([[True, True], [True, False], [False, True], [False, False]])
    common: dict[str, Any] = {"shares": Shares(), "salt": SALT, "campaign_id": "x"}
    d = decide(IDS[:4], reward, cost, budget=None, eligible=eligible,
               in_stock=np.array([False, True]), **common)  # fmt: skip
    assert d.reason.tolist() == [
        Reason.BEST_NET_VALUE, Reason.COUPON_OUT_OF_STOCK, Reason.BEST_NET_VALUE,
        Reason.NOT_ELIGIBLE,
    ]  # fmt: skip
    assert not d.eligible[:, 0].any()
    d = decide(IDS[:4], reward, cost, budget=None, eligible=eligible,
               offered=np.array([True, False]), in_stock=np.array([False, True]),
               **common)  # fmt: skip
    assert d.reason.tolist()[:3] == [
        Reason.COUPON_OUT_OF_STOCK, Reason.COUPON_OUT_OF_STOCK, Reason.COUPON_EXPIRED
    ]  # fmt: skip
    # A limit that not one piece fits into is a budget that is exhausted.
    d = decide(IDS[:4], reward, cost, budget=None, limits=[Limit("sends", np.ones((1, 2)), 0.5)],
               **common)  # fmt: skip
    assert set(d.reason) == {Reason.BUDGET_EXHAUSTED}


def test_an_arm_of_unknown_effect_is_only_drawn() -> None:
    n = 3_000
    reward, cost = np.full((n, 2), 5.0), np.ones((n, 2))
    d = decide(IDS, reward, cost, shares=Shares(0.0, 0.3), salt=SALT, campaign_id="x",
               exploration_only=np.array([False, True]))  # fmt: skip
    assert set(d.greedy) == {1}
    drawn = d.arm == 2
    assert d.is_exploration[drawn].all()
    assert drawn.mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_allclose(d.probs[:, 2], 0.1)


@pytest.mark.parametrize("budget", [50.0, None, 0.0])
def test_chunks_of_very_many_customers_change_nothing(
    monkeypatch: pytest.MonkeyPatch, budget: float | None
) -> None:
    whole = campaign(budget=budget)
    monkeypatch.setattr(spending, "STREAM_ROWS", 301)
    parts = campaign(budget=budget)
    assert parts.arm.tolist() == whole.arm.tolist()
    assert parts.shadow_price == whole.shadow_price
    assert parts.certificate == whole.certificate


def test_refuses_limits_that_do_not_fit() -> None:
    with pytest.raises(DesignError, match=r"sends: expected uses for \(2000, 3\) customers"):
        campaign(limits=[Limit("sends", np.ones((7, 3)), 1)])
    with pytest.raises(DesignError, match=r"in_stock: expected shape \(3,\), found \(2,\)"):
        campaign(in_stock=np.array([True, True]))
