"""Holdout, exploration and the logged probability: vectors, frequencies, invariances."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uplift import policy
from uplift.errors import DesignError
from uplift.policy import (
    BEFORE_RANDOMISATION,
    STICKY,
    Decisions,
    Reason,
    Shares,
    assignment_probs,
    bucket,
    decide,
    index,
)

SALT = b"test-salt"
IDS = [f"c-{i:06d}" for i in range(40_000)]


def scores(n: int, arms: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1.0, (n, arms)), rng.uniform(0.2, 2.0, (n, arms))


def campaign(n: int = 4_000, **changes: Any) -> Decisions:
    reward, cost = scores(n)
    given = {
        "shares": Shares(0.05, 0.10, 0.02),
        "salt": SALT,
        "campaign_id": "cmp-spring",
        "budget": 1_000.0,
    }
    return decide(IDS[:n], reward, cost, **{**given, **changes})


# --- hashes ---------------------------------------------------------------------------------


def test_published_vectors() -> None:
    ids = ["c-000001", "c-000040", "c-000010"]
    assert bucket(SALT, "holdout", "cmp-spring", ids).tolist() == [7815, 347, 2049]
    assert bucket(SALT, "holdout", "_global", ["c-000010"]).tolist() == [65]
    assert bucket(SALT, "explore", "cmp-spring/0", ["c-000033"]).tolist() == [618]
    assert index(SALT, "cmp-spring/0", ["c-000033"], 3).tolist() == [1]


@given(
    salt=st.binary(min_size=1, max_size=100),
    customer=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,63}\Z"),
    arms=st.integers(1, 21),
)
@settings(max_examples=40, deadline=None)
def test_hashes_agree_with_the_standard_library(salt: bytes, customer: str, arms: int) -> None:
    def word(label: str, scope: str) -> int:
        message = f"{label}\x1f{scope}\x1f{customer}".encode()
        return int.from_bytes(hmac.new(salt, message, hashlib.sha256).digest()[:8], "big")

    assert bucket(salt, "holdout", "x", [customer])[0] == word("holdout", "x") * 10_000 >> 64
    assert index(salt, "x/3", [customer], arms)[0] == word("arm", "x/3") * arms >> 64


def test_buckets_are_uniform_and_salts_and_labels_independent() -> None:
    first = bucket(SALT, "holdout", "cmp", IDS)
    others = [
        bucket(b"other-salt", "holdout", "cmp", IDS),
        bucket(SALT, "explore", "cmp", IDS),
        bucket(SALT, "holdout", "_global", IDS),
    ]
    n = len(IDS)
    for share in (0.05, 0.5):
        held = first < share * 10_000
        assert abs(held.mean() - share) < 3 * np.sqrt(share * (1 - share) / n)
        for other in others:
            both = held & (other < share * 10_000)
            # Six comparisons in all, hence four standard errors.
            assert abs(both.mean() - share**2) < 4 * np.sqrt(share**2 * (1 - share**2) / n)


# --- probabilities --------------------------------------------------------------------------


def test_published_probabilities() -> None:
    shares = Shares(holdout=0.05, exploration=0.10, global_holdout=0.02)
    assert shares.h == pytest.approx(0.069, abs=1e-12)
    probs = assignment_probs(np.array([1, 0]), np.ones((2, 2), dtype=bool), shares)
    np.testing.assert_allclose(probs[0], [0.100033, 0.868933, 0.031033], atol=5e-7)
    np.testing.assert_allclose(probs[1], [0.868933 + 0.069, 0.031033, 0.031033], atol=1e-6)


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_probabilities_sum_to_one_and_pool_over_the_holdout(
    seed: int, holdout: float, exploration: float, everywhere: float, arms: int
) -> None:
    rng = np.random.default_rng(seed)
    eligible = rng.random((20, arms)) < 0.6
    choice = np.where(eligible.any(axis=1), eligible.argmax(axis=1) + 1, 0)
    shares = Shares(holdout, exploration, everywhere)
    pooled = assignment_probs(choice, eligible, shares)
    fresh = assignment_probs(choice, eligible, shares, held_out=False)
    np.testing.assert_allclose(pooled.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(fresh.sum(axis=1), 1.0, atol=1e-12)
    assert (pooled >= 0).all()
    assert (pooled[:, 1:][~eligible] == 0).all()
    control = np.eye(arms + 1)[0]
    np.testing.assert_allclose(pooled, shares.h * control + (1 - shares.h) * fresh, atol=1e-12)


@pytest.mark.parametrize("n", [40_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_logged_probabilities_match_frequencies(n: int) -> None:
    """Over many ids each arm is drawn as often as the sum of its logged probabilities says."""
    ids = [f"f-{i}" for i in range(n)]
    eligible = np.ones((n, 3), dtype=bool)
    eligible[::4, 1] = False
    eligible[::5, 0] = False
    shares = Shares(holdout=0.10, exploration=0.30, global_holdout=0.05)
    decisions = decide(
        ids,
        np.tile([1.0, 0.5, -0.5], (n, 1)),
        np.ones((n, 3)),
        shares=shares,
        salt=SALT,
        campaign_id="f",
        eligible=eligible,
    )
    assert set(np.unique(decisions.greedy)) == {0, 1, 2}
    pooled = assignment_probs(decisions.greedy, decisions.eligible, shares)
    np.testing.assert_array_equal(decisions.assignment_prob, pooled[np.arange(n), decisions.arm])
    np.testing.assert_allclose(pooled.sum(axis=1), 1.0, atol=1e-12)
    fresh = ~decisions.is_holdout
    for probs, rows in ((pooled, np.ones(n, dtype=bool)), (decisions.probs, fresh)):
        for arm in range(4):
            for greedy in range(3):
                group = rows & (decisions.greedy == greedy)
                p = probs[group, arm]
                drawn = (decisions.arm[group] == arm).sum()
                # Twenty-four comparisons, hence four standard errors.
                assert abs(drawn - p.sum()) <= 4 * np.sqrt((p * (1 - p)).sum())


# --- the draws ------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_a_larger_holdout_only_adds_customers(one: float, other: float) -> None:
    low, high = sorted((one, other))
    fewer = campaign(300, shares=Shares(low, 0.1), budget=None)
    more = campaign(300, shares=Shares(high, 0.1), budget=None)
    assert (more.is_holdout | ~fewer.is_holdout).all()
    # Whoever is held out in neither has the same decision in both.
    free = ~more.is_holdout
    np.testing.assert_array_equal(more.arm[free], fewer.arm[free])
    np.testing.assert_array_equal(more.reason[free], fewer.reason[free])


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_the_holdout_does_not_depend_on_exploration(one: float, other: float) -> None:
    few, many = (campaign(300, shares=Shares(0.3, e), budget=None) for e in sorted((one, other)))
    np.testing.assert_array_equal(few.is_holdout, many.is_holdout)
    assert (many.is_exploration | ~few.is_exploration).all()


@given(st.randoms(use_true_random=False), st.integers(1, 299))
@settings(max_examples=30, deadline=None)
def test_order_and_batch_change_nothing(random: Any, cut: int) -> None:
    n = 300
    reward, cost = scores(n)
    eligible = np.random.default_rng(1).random((n, 3)) < 0.8
    shuffle = np.array(random.sample(range(n), n))
    common: dict[str, Any] = {
        "shares": Shares(0.1, 0.2, 0.05),
        "salt": SALT,
        "campaign_id": "x",
    }

    def columns(d: Decisions) -> dict[str, np.ndarray]:
        return {
            name: getattr(d, name)
            for name in ("customer_id", "arm", "action", "reason", "assignment_prob", "probs",
                         "greedy", "is_holdout", "is_exploration", "expected_cost",
                         "expected_incremental_profit")
        }  # fmt: skip

    def run(rows: np.ndarray, **how: Any) -> Decisions:
        ids = [IDS[i] for i in rows]
        return decide(ids, reward[rows], cost[rows], eligible=eligible[rows], **common, **how)

    whole = run(np.arange(n), budget=60.0)
    moved = run(shuffle, budget=60.0)
    for name, column in columns(moved).items():
        np.testing.assert_array_equal(column, columns(whole)[name][shuffle], err_msg=name)
    assert moved.certificate == whole.certificate

    priced = columns(run(np.arange(n), shadow_price=0.7))
    parts = [columns(run(r, shadow_price=0.7)) for r in (shuffle[:cut], shuffle[cut:])]
    for name, column in priced.items():
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(joined, column[shuffle], err_msg=name)


def test_a_call_at_the_campaigns_price_decides_as_the_campaign_did() -> None:
    whole = campaign(budget=1_000.0)
    single = campaign(budget=None, shadow_price=whole.shadow_price, shares=whole.shares)
    assert whole.shadow_price > 0
    differ = np.flatnonzero(whole.greedy != single.greedy)
    assert len(differ) <= 1
    same = np.setdiff1d(np.arange(len(IDS[:4_000])), differ)
    for name in ("arm", "reason", "assignment_prob", "is_exploration", "expected_cost"):
        np.testing.assert_array_equal(getattr(whole, name)[same], getattr(single, name)[same])
    assert single.certificate is None


def test_another_window_draws_exploration_anew_and_keeps_the_holdout() -> None:
    first, second = campaign(window_id=0), campaign(window_id=1)
    np.testing.assert_array_equal(first.is_holdout, second.is_holdout)
    both = (first.is_exploration & second.is_exploration).mean()
    assert both == pytest.approx(0.931 * 0.01, abs=3 * np.sqrt(0.00931 / 4_000))


def test_exploration_draws_only_eligible_arms_in_order_of_their_code() -> None:
    n = 2_000
    reward, cost = scores(n)
    eligible = np.random.default_rng(4).random((n, 3)) < 0.5
    eligible[:, 0] = True
    d = decide(
        IDS[:n], reward, cost, shares=Shares(exploration=1.0), salt=SALT, campaign_id="e",
        eligible=eligible,
    )  # fmt: skip
    assert d.is_exploration.all()
    for i in range(n):
        allowed = [0, *(np.flatnonzero(eligible[i]) + 1)]
        assert d.arm[i] == allowed[index(SALT, "e/0", [IDS[i]], len(allowed))[0]]
        assert d.assignment_prob[i] == pytest.approx(1 / len(allowed))
    assert set(d.reason) == {Reason.EXPLORATION}
    np.testing.assert_array_equal(d.action == "offer", d.arm > 0)


# --- the decision ---------------------------------------------------------------------------


def test_reasons_and_money_fit_the_arm() -> None:
    d = campaign()
    reward, cost = scores(4_000)
    offer = d.action == "offer"
    rows = np.flatnonzero(offer)
    np.testing.assert_array_equal(d.expected_cost[offer], cost[rows, d.arm[rows] - 1])
    np.testing.assert_array_equal(
        d.expected_incremental_profit[offer], reward[rows, d.arm[rows] - 1]
    )
    assert (d.expected_cost[~offer] == 0).all()
    assert (d.expected_incremental_profit[~offer] == 0).all()
    assert set(d.reason) == {"best_net_value", "below_threshold", "exploration", "holdout",
                             "global_holdout"}  # fmt: skip
    assert (d.arm[d.is_holdout] == 0).all()
    everywhere = bucket(SALT, "holdout", "_global", IDS[:4_000]) < 200
    np.testing.assert_array_equal(d.reason == "global_holdout", everywhere)
    here = bucket(SALT, "holdout", "cmp-spring", IDS[:4_000]) < 500
    np.testing.assert_array_equal(d.reason == "holdout", here & ~everywhere)
    np.testing.assert_array_equal(d.reason == "best_net_value", offer & ~d.is_exploration)
    assert (d.expected_incremental_profit[d.reason == "best_net_value"] > 0).all()


@pytest.mark.parametrize("budget", [0.5, 3.0, 40.0, 200.0, 1_000.0, 1e9, None])
def test_expected_cost_never_passes_the_budget(budget: float | None) -> None:
    d = campaign(budget=budget)
    assert d.certificate is not None
    limit = np.inf if budget is None else budget
    assert d.certificate.spend <= limit
    assert d.expected_cost.sum() <= limit * (1 + 1e-12)
    assert d.certificate.exploration_spend == pytest.approx(d.expected_cost[d.is_exploration].sum())
    assert 0 <= d.certificate.gap <= 4.0
    assert d.certificate.value == pytest.approx(
        d.expected_incremental_profit[d.reason == "best_net_value"].sum()
    )


def test_a_share_the_budget_cannot_bear_is_lowered_before_the_draw() -> None:
    wished = Shares(0.05, 0.5)
    d = campaign(20_000, shares=wished, budget=500.0)
    assert 0 < d.shares.exploration < 0.5
    assert d.shares.holdout == wished.holdout
    np.testing.assert_array_equal(
        d.is_exploration,
        ~d.is_holdout
        & (bucket(SALT, "explore", "cmp-spring/0", IDS[:20_000]) < d.shares.exploration * 10_000),
    )
    np.testing.assert_allclose(
        d.probs, assignment_probs(d.greedy, d.eligible, d.shares, held_out=False)
    )
    # Judged by costs alone: another salt draws others, at the same share but for the holdout.
    again = campaign(20_000, shares=Shares(0.0, 0.5), budget=500.0)
    other = campaign(20_000, shares=Shares(0.0, 0.5), budget=500.0, salt=b"other-salt")
    assert again.shares == other.shares
    assert (again.is_exploration != other.is_exploration).any()
    # A budget that can bear the dearest draw of everyone lowers nothing.
    assert campaign(50, shares=Shares(0.0, 0.5), budget=100.0).shares.exploration == 0.5


def test_an_explored_offer_the_budget_cannot_pay_keeps_its_arm_in_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy, "affordable_share", lambda wished, *_: float(wished[-1]))
    d = campaign(shares=Shares(exploration=1.0), budget=100.0)
    lost = d.reason == Reason.BUDGET_EXHAUSTED
    assert lost.any()
    assert (d.arm[lost] > 0).all()
    assert (d.action[lost] == "none").all()
    assert (d.expected_cost[lost] == 0).all()
    assert 98 < d.expected_cost.sum() <= 100
    np.testing.assert_allclose(d.assignment_prob, 0.25)


def test_equal_customers_are_chosen_by_hash_and_know_what_they_would_have_got() -> None:
    """With constant scores every step ties; the cut among them is by hash, also for held-out and
    exploring customers, so that the greedy choice is a function of the customer."""
    n = 4_000
    d = decide(
        IDS[:n], np.full((n, 1), 2.0), np.full((n, 1), 1.0), shares=Shares(0.2, 0.2), salt=SALT,
        campaign_id="t", budget=1_000.0,
    )  # fmt: skip
    got = d.greedy == 1
    shares = [got[group].mean() for group in (d.is_holdout, d.is_exploration)]
    main = got[~d.is_holdout & ~d.is_exploration].mean()
    assert 0 < main < 1
    for share in shares:
        assert share == pytest.approx(main, abs=4 * 0.5 / np.sqrt(600))


def test_who_gets_the_last_of_equal_offers_does_not_depend_on_the_order() -> None:
    n = 500
    same: dict[str, Any] = {
        "shares": Shares(0.1, 0.1), "salt": SALT, "campaign_id": "t", "budget": 120.0
    }  # fmt: skip
    ones = np.ones((n, 1))
    shuffle = np.random.default_rng(0).permutation(n)
    plain = decide(IDS[:n], ones, ones, **same)
    moved = decide([IDS[i] for i in shuffle], ones, ones, **same)
    assert 0 < (plain.reason == "below_threshold").sum() < n
    np.testing.assert_array_equal(moved.arm, plain.arm[shuffle])
    np.testing.assert_array_equal(moved.greedy, plain.greedy[shuffle])


def test_reasons_before_randomisation_come_first_and_need_no_scores() -> None:
    n = 200
    reward, cost = scores(n)
    reward[:50] = np.nan
    cost[:50] = np.nan
    before: list[str | None] = [None] * n
    before[:50] = [BEFORE_RANDOMISATION[i % len(BEFORE_RANDOMISATION)] for i in range(50)]
    common: dict[str, Any] = {
        "shares": Shares(0.3, 0.3), "salt": SALT, "campaign_id": "b", "budget": 20.0
    }  # fmt: skip
    d = decide(IDS[:n], reward, cost, pre_reasons=before, **common)
    assert d.reason[:50].tolist() == before[:50]
    assert (d.action[:50] == "none").all()
    assert not (d.is_holdout[:50] | d.is_exploration[:50]).any()
    np.testing.assert_array_equal(d.assignment_prob[:50], 1.0)
    np.testing.assert_array_equal(d.probs[:50], np.tile([1.0, 0, 0, 0], (50, 1)))
    without = decide(IDS[50:n], reward[50:], cost[50:], **common)
    np.testing.assert_array_equal(d.arm[50:], without.arm)
    assert d.certificate == without.certificate


def test_customers_without_any_arm_left_say_why() -> None:
    reward, cost = np.ones((4, 2)), np.array([[1.0, 9.0]] * 4)
    eligible = np.array([[False, False], [True, False], [False, True], [True, True]])
    d = decide(
        IDS[:4], reward, cost, shares=Shares(), salt=SALT, campaign_id="w", budget=8.0,
        eligible=eligible, offered=np.array([False, True]),
    )  # fmt: skip
    assert d.reason.tolist() == ["not_eligible", "coupon_expired", "budget_exhausted",
                                 "budget_exhausted"]  # fmt: skip
    assert d.assignment_prob.tolist() == [1.0] * 4
    assert not d.eligible.any()
    nothing = decide(
        IDS[:2], np.ones((2, 0)), np.ones((2, 0)), shares=Shares(), salt=SALT, campaign_id="w"
    )
    assert nothing.reason.tolist() == ["coupon_expired"] * 2


def test_retired_arms_take_part_in_no_draw() -> None:
    d = campaign(shares=Shares(0.05, 0.5), budget=None, offered=np.array([True, False, True]))
    assert set(d.arm) == {0, 1, 3}
    assert (d.probs[:, 2] == 0).all()


def test_a_threshold_that_no_arm_clears_gives_nobody_an_offer() -> None:
    d = campaign(shares=Shares(), budget=None, min_profit=99.0)
    assert set(d.reason) == {Reason.BELOW_THRESHOLD}
    assert (d.assignment_prob == 1).all()


def test_the_reasons_are_the_closed_list() -> None:
    assert [str(reason) for reason in Reason] == [
        "campaign_not_started", "campaign_ended", "campaign_paused",
        "unknown_customer", "stale_features", "stale_model", "scoring_unavailable",
        "no_consent", "not_eligible", "already_converted",
        "contact_cap", "quiet_hours",
        "coupon_expired", "coupon_out_of_stock", "budget_exhausted",
        "global_holdout", "holdout", "exploration", "below_threshold", "best_net_value",
        "default_offer",
    ]  # fmt: skip
    assert BEFORE_RANDOMISATION[-1] == Reason.BUDGET_EXHAUSTED
    assert {"global_holdout", "holdout", "exploration", "below_threshold",
                      "best_net_value", "default_offer"} == STICKY  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shadow_price": 1.0}, "expected a budget or a shadow price, found both"),
        ({"pre_reasons": ["holdout"] * 20}, "pre_reasons: expected none or one of .*'holdout'"),
        ({"pre_reasons": ["no_consent"]}, "pre_reasons: expected 20 entries, found 1"),
        ({"eligible": np.ones((2, 2), bool)}, r"eligible: expected shape \(20, 3\)"),
        ({"offered": np.ones(2, bool)}, r"offered: expected shape \(3,\)"),
        ({"budget": -5.0}, "budget: expected a number >= 0"),
        ({"budget": None, "shadow_price": -1.0}, "shadow_price: expected a finite number"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        campaign(20, **change)


def test_refuses_scores_that_are_missing_and_shares_that_are_none() -> None:
    reward, cost = scores(3)
    reward[1, 2] = np.nan
    with pytest.raises(DesignError, match="reward: expected finite numbers, found nan"):
        decide(IDS[:3], reward, cost, shares=Shares(), salt=SALT, campaign_id="x")
    with pytest.raises(DesignError, match="cost: expected finite numbers, found nan"):
        decide(IDS[:3], cost, reward, shares=Shares(), salt=SALT, campaign_id="x", budget=1.0)
    with pytest.raises(DesignError, match=r"expected shape \(2, arms\)"):
        decide(IDS[:2], reward, cost, shares=Shares(), salt=SALT, campaign_id="x")
    with pytest.raises(DesignError, match="holdout share: expected a number in"):
        Shares(holdout=1.5)
    with pytest.raises(DesignError, match="exploration share: expected a number in"):
        Shares(exploration=float("nan"))
    with pytest.raises(DesignError, match="choice: expected an eligible arm or control"):
        assignment_probs(np.array([1]), np.zeros((1, 2), bool), Shares())
