"""Policies at one budget and their rivals at equal cost."""

from __future__ import annotations

import numpy as np
import pytest

from uplift.data import FloatArray
from uplift.errors import DesignError
from uplift.evaluation import (
    BEST_RANDOM,
    BEST_RESPONSE,
    BEST_UPLIFT,
    RANDOM,
    RIVALS,
    Predictions,
    Scored,
    best_arm_on,
    choose_rivals,
    model_policy,
    random_policy,
    rankings,
    rival_policies,
    single_arm,
)
from uplift.scores import ScoreMatrix

N = 600


def predictions(seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    return Predictions(
        reward=rng.normal(0.5, 1.0, (N, 3)),
        cost=rng.uniform(0.5, 1.5, (N, 3)),
        response=rng.random(N),
        allowed=rng.random((N, 3)) < 0.8,
    )


def scored(p: Predictions) -> Scored:
    """Scores that equal the predictions: the models know the truth."""
    zero = np.zeros((N, 1))
    cluster = np.arange(N) // 2
    return Scored(
        ScoreMatrix(np.hstack([zero, p.reward]), cluster),
        ScoreMatrix(np.hstack([zero, p.cost]), cluster),
    )


def spend(policy: FloatArray, p: Predictions) -> float:
    return float((policy * p.cost).sum() / N)


def test_the_models_policy_keeps_the_budget_and_the_rules() -> None:
    p = predictions()
    policy = model_policy(p, 0.3, 0.0)
    assert spend(policy, p) <= 0.3
    assert spend(policy, p) > 0.295
    assert not policy[~p.allowed].any()
    assert set(policy.sum(axis=1)) == {0.0, 1.0}
    free = model_policy(p, None, 0.0)
    best = np.where(p.allowed, p.reward, 0.0).max(axis=1).clip(0)
    assert (free * p.reward).sum() == pytest.approx(best.sum())
    choosy = model_policy(p, None, 1.0)
    assert (choosy * p.reward).sum(axis=1)[choosy.any(axis=1)].min() >= 1.0


def test_rivals_spend_as_much() -> None:
    p = predictions()
    policies = rival_policies(p, {BEST_RANDOM: 1, BEST_RESPONSE: 2, BEST_UPLIFT: 3}, 0.2)
    assert set(policies) == set(RIVALS)
    for name, policy in policies.items():
        assert spend(policy, p) == pytest.approx(0.2, abs=1e-9), name
        assert not policy[~p.allowed].any()
        assert ((policy >= 0) & (policy.sum(axis=1, keepdims=True) <= 1 + 1e-12)).all()


def test_who_gets_a_rivals_coupon() -> None:
    p = predictions()
    allowed = p.allowed[:, 1]
    by_response = single_arm(p.response, 2, p, 0.2)[:, 1]
    assert p.response[by_response == 1].min() >= p.response[allowed & (by_response == 0)].max()
    by_uplift = rival_policies(p, {BEST_UPLIFT: 2}, 0.2)[BEST_UPLIFT][:, 1]
    assert p.reward[by_uplift == 1, 1].min() >= p.reward[allowed & (by_uplift == 0), 1].max()
    at_random = rival_policies(p, {BEST_RANDOM: 2}, 0.2)[BEST_RANDOM][:, 1]
    assert np.ptp(at_random[allowed]) == 0
    everyone = single_arm(p.response, 2, p, None)
    assert np.array_equal(everyone[:, 1], allowed.astype(float))


def test_random_offers_every_allowed_arm_alike() -> None:
    p = predictions()
    policy = random_policy(p, None)
    count = p.allowed.sum(axis=1)
    some = count > 0
    assert policy.sum(axis=1)[some] == pytest.approx(np.ones(some.sum()))
    assert not policy[~some].any()
    assert policy[p.allowed] == pytest.approx(np.repeat(1 / count[some], count[some]))
    cheap = random_policy(p, 0.1)
    assert cheap == pytest.approx(policy * 0.1 / spend(policy, p))
    assert np.array_equal(random_policy(p, 1e9), policy)


def test_values_are_means_of_the_scores() -> None:
    p = predictions()
    policy = model_policy(p, 0.3, 0.0)
    made = scored(p).value("model", policy, p.cost)
    assert made.gain.value == pytest.approx((policy * p.reward).sum() / N)
    assert made.spend.value == pytest.approx(made.predicted_spend)
    assert made.treated_share == pytest.approx(policy.sum() / N)
    for name, rival in rival_policies(p, choose_rivals(scored(p), p, 0.3), 0.3).items():
        other = scored(p).value(name, rival, p.cost)
        assert other.gain.value < made.gain.value, "the optimum is best when the models are right"


def test_rivals_choose_their_best_arm_on_the_scores() -> None:
    p = predictions()
    chosen = choose_rivals(scored(p), p, 0.2)
    for name, rank in rankings(p).items():
        gains = [scored(p).gain.gain(single_arm(rank[k], k, p, 0.2)).value for k in (1, 2, 3)]
        assert chosen[name] == 1 + int(np.argmax(gains))
    assert RANDOM not in chosen


def test_equal_arms_go_to_the_lower_code_and_closed_arms_to_nobody() -> None:
    p = predictions()
    same = Predictions(np.ones((N, 3)), np.ones((N, 3)), p.response, np.ones((N, 3), dtype=bool))
    assert choose_rivals(scored(same), same, 0.2) == dict.fromkeys(rankings(same), 1)
    closed = np.tile([False, True, True], (N, 1))
    same = Predictions(same.reward, same.cost, same.response, closed)
    assert choose_rivals(scored(same), same, 0.2)[BEST_UPLIFT] == 2


def test_no_arm_at_all_is_refused() -> None:
    p = predictions()
    none = Predictions(p.reward, p.cost, p.response, np.zeros((N, 3), dtype=bool))
    with pytest.raises(DesignError, match="no arm may be offered to any of 600 rows"):
        best_arm_on(scored(none), rankings(none)[BEST_UPLIFT], none, 0.2)
    assert not model_policy(none, 1.0, 0.0).any()
    assert not random_policy(none, 1.0).any()
