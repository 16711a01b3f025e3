from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from serving import schemas
from serving.campaign import Campaign, decide_all, decision_ids
from serving.population import FOREVER, Population
from serving.scorer import Scorer, shortest
from tests.unit.serving.small_shop import (
    AS_OF,
    CAPPED,
    NO_ORDERS,
    OFFERS,
    REFUSED,
    SALT,
    Shop,
    make_config,
)
from uplift.bundle import Scores
from uplift.policy import Reason, Shares

ALL = [f"c-{i:03d}" for i in range(300)]


def _answer(scorer: Scorer, ids: list[str], **more: Any) -> schemas.DecisionsAnswer:
    return scorer.answer(ids, request_id="r-1", **more)


def _with(shop: Shop, **columns: Any) -> Scorer:
    """A scorer of a population with some columns changed."""
    people: Population = replace(shop.population, **columns)
    return shop.scorer(snapshot=replace(shop.snapshot, population=people))


def test_one_by_one_in_any_order_and_after_a_restart_the_decisions_are_the_same(
    shop: Shop,
) -> None:
    whole = _answer(shop.scorer(), ALL).decisions
    backwards = _answer(shop.scorer(), ALL[::-1]).decisions[::-1]
    alone = [_answer(shop.scorer(), [customer]).decisions[0] for customer in ALL]
    for others in (backwards, alone):
        assert [replace_index(d, 0) for d in others] == [replace_index(d, 0) for d in whole]


def replace_index(decision: schemas.Decision, index: int) -> schemas.Decision:
    import msgspec

    return msgspec.structs.replace(decision, index=index)


def test_the_server_decides_as_the_whole_campaign_did_but_for_the_marginal_customer(
    shop: Shop,
) -> None:
    made = decide_all(shop.population, Campaign.of(shop.config, shop.model.bundle), SALT)
    answers = _answer(shop.scorer(), ALL).decisions
    arms = np.array([None, *shop.model.bundle.arms], dtype=object)
    differ = [
        d.customer_id
        for d, arm in zip(answers, arms[np.where(made.is_offer, made.arm, 0)], strict=True)
        if d.coupon_id != arm
    ]
    assert len(differ) <= 1
    for i, decision in enumerate(answers):
        assert decision.is_holdout == made.is_holdout[i]
        assert decision.is_exploration == made.is_exploration[i]


def test_money_is_the_tables_in_millionths(shop: Shop) -> None:
    scores, arms = shop.population.scores, shop.model.bundle.arms
    offers = [d for d in _answer(shop.scorer(), ALL).decisions if d.action == "offer"]
    assert len(offers) > 20
    for d in offers:
        row, k = ALL.index(d.customer_id), arms.index(d.arm)
        assert d.expected_cost_micros == round(float(scores.cost[row, k]) * 1e6)
        assert d.expected_incremental_profit_micros == round(float(scores.reward[row, k]) * 1e6)
        assert np.float32(d.uplift) == scores.cate[row, k]
        assert np.float32(d.response_propensity) == scores.response[row]
        days = {"c5": 14, "p10": 7}[d.arm]
        assert d.valid_until == (AS_OF + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_probabilities_follow_the_shares(shop: Shop) -> None:
    # h = 0.1, eps = 0.1, three arms with control: greedy .9 (.9 + .1/3), other .9 * .1/3.
    by_reason: dict[str, set[float]] = {}
    for d in _answer(shop.scorer(), ALL).decisions:
        by_reason.setdefault(d.reason, set()).add(d.assignment_prob)
    assert by_reason["best_net_value"] == {0.84}
    assert by_reason["below_threshold"] == {0.94}
    assert by_reason["holdout"] <= {0.94, 0.13}
    assert by_reason["exploration"] <= {0.84, 0.94, 0.13, 0.03}


def test_decision_ids_of_a_file_follow_from_salt_window_and_model(shop: Shop) -> None:
    campaign = Campaign.of(shop.config, shop.model.bundle)
    ids = {
        decision_ids(["c-050"], made, salt, shop.snapshot.snapshot_id, sha256)[0]
        for made, salt, sha256 in (
            (campaign, SALT, shop.model.sha256),
            (replace(campaign, window_id=1), SALT, shop.model.sha256),
            (campaign, replace(SALT, value=b"x" * 40), shop.model.sha256),
            (campaign, SALT, "0" * 64),
        )
    }
    assert len(ids) == 4


class TestReasons:
    """Every reason that can occur now."""

    def reason(self, scorer: Scorer, customer: str = "c-050") -> schemas.Decision:
        return _answer(scorer, [customer]).decisions[0]

    def test_unknown_customer(self, shop: Shop) -> None:
        d = self.reason(shop.scorer(), "nobody")
        assert (d.reason, d.action, d.profile_state) == ("unknown_customer", "none", "unknown")
        assert (d.uplift, d.response_propensity, d.assignment_prob) == (None, None, 1.0)

    def test_stale_features(self, shop: Shop) -> None:
        live = shop.config.model_copy(
            update={"source": shop.config.source.model_copy(update={"as_of": "now"})}
        )

        def at(age: timedelta) -> schemas.Decision:
            return self.reason(shop.scorer(config=live, clock=lambda: AS_OF + age))

        assert at(timedelta(hours=26)).warnings == []
        assert at(timedelta(hours=27)).warnings == ["features_aging"]
        assert at(timedelta(hours=50)).reason != "stale_features"
        assert at(timedelta(hours=50, seconds=1)).reason == "stale_features"
        fixed = shop.scorer(clock=lambda: AS_OF + timedelta(days=400))
        assert self.reason(fixed).reason != "stale_features"
        assert "fixed_as_of" in fixed.degraded
        assert "fixed_as_of" not in shop.scorer(config=live).degraded

    def test_scoring_unavailable(self, shop: Shop) -> None:
        reward = shop.population.scores.reward.copy()
        reward[50, 1] = np.nan
        broken = _with(shop, scores=replace(shop.population.scores, reward=reward))
        d = self.reason(broken)
        assert (d.reason, d.action, d.expected_cost_micros) == ("scoring_unavailable", "none", 0)

    def test_no_consent_goes_before_the_cap(self, shop: Shop) -> None:
        assert self.reason(shop.scorer(), REFUSED).reason == "no_consent"
        everyone = _with(shop, free_at=np.full(300, FOREVER))
        assert self.reason(everyone, REFUSED).reason == "no_consent"

    def test_contact_cap_says_when_to_try_again(self, shop: Shop) -> None:
        d = self.reason(shop.scorer(), CAPPED)
        assert (d.reason, d.retry_at) == ("contact_cap", "2026-01-04T06:00:00Z")
        live = shop.config.model_copy(
            update={"source": shop.config.source.model_copy(update={"as_of": "now"})}
        )
        later = shop.scorer(config=live, clock=lambda: AS_OF + timedelta(hours=49))
        assert self.reason(later, CAPPED).reason == "contact_cap"
        patient = live.serving.model_copy(update={"max_feature_age_hours": 999})
        slack = live.model_copy(update={"serving": patient})
        due = shop.scorer(config=slack, clock=lambda: AS_OF + timedelta(days=3, hours=6))
        assert self.reason(due, CAPPED).reason not in ("contact_cap", "stale_features")
        never = _with(shop, free_at=np.full(300, FOREVER))
        assert self.reason(never).retry_at is None

    def test_coupon_expired_when_no_arm_is_active(self, shop: Shop) -> None:
        retired = [{**offer, "active": False} for offer in OFFERS]
        config = make_config(shop.root / "tables", offers=retired)
        assert self.reason(shop.scorer(config=config)).reason == "coupon_expired"

    def test_budget_exhausted_when_every_arm_costs_more_than_all_of_it(self, shop: Shop) -> None:
        config = make_config(shop.root / "tables", policy={"budget": 0.001})
        assert self.reason(shop.scorer(config=config)).reason == "budget_exhausted"
        made = decide_all(shop.population, Campaign.of(config, shop.model.bundle), SALT)
        assert made.reason[50] == Reason.BUDGET_EXHAUSTED

    def test_global_holdout(self, shop: Shop) -> None:
        everyone = replace(shop.snapshot, shares=Shares(global_holdout=1.0))
        d = self.reason(shop.scorer(snapshot=everyone))
        assert (d.reason, d.is_holdout, d.arm, d.assignment_prob) == (
            "global_holdout",
            True,
            "control",
            1.0,
        )

    def test_the_others_occur_in_the_small_shop(self, shop: Shop) -> None:
        reasons = {d.reason for d in _answer(shop.scorer(), ALL).decisions}
        assert reasons == {
            "no_consent",
            "contact_cap",
            "holdout",
            "exploration",
            "below_threshold",
            "best_net_value",
        }

    def test_an_offer_of_the_draw_is_named_so(self, shop: Shop) -> None:
        drawn = [d for d in _answer(shop.scorer(), ALL).decisions if d.is_exploration]
        assert {d.reason for d in drawn} == {"exploration"}
        assert {d.action for d in drawn} == {"offer", "none"}
        for d in drawn:
            assert (d.action == "none") == (d.arm == "control") == (d.coupon_id is None)


def test_a_policy_that_sends_nothing_still_holds_out_and_explores_nothing(shop: Shop) -> None:
    silent = replace(shop.model.bundle, offered=(False, False), policy="fallback_no_offer")
    model = replace(shop.model, bundle=silent)
    made = decide_all(shop.population, Campaign.of(shop.config, silent), SALT)
    shares = replace(shop.snapshot, shares=made.shares)
    scorer = shop.scorer(model=model, snapshot=shares)
    answers = _answer(scorer, ALL).decisions
    reasons = {d.reason for d in answers}
    assert reasons == {"no_consent", "contact_cap", "holdout", "below_threshold"}
    assert [d.reason for d in answers] == made.reason.tolist()
    assert {d.action for d in answers} == {"none"}
    assert {d.assignment_prob for d in answers} == {1.0}
    assert "policy_sends_nothing" in scorer.degraded


def test_an_arm_that_a_fallback_leaves_out_is_not_even_explored(shop: Shop) -> None:
    one = replace(shop.model.bundle, offered=(False, True))
    answers = _answer(shop.scorer(model=replace(shop.model, bundle=one)), ALL).decisions
    assert {d.arm for d in answers} == {"control", "p10"}


def test_a_coupon_the_model_never_saw_is_not_sent_and_is_told(shop: Shop) -> None:
    new = [*OFFERS, {"coupon_id": "new", "kind": "fixed_off", "params": {"off": 9.0}}]
    scorer = shop.scorer(config=make_config(shop.root / "tables", offers=new))
    assert "offers_untrained" in scorer.degraded
    assert "new" not in {d.arm for d in _answer(scorer, ALL).decisions}


def test_a_simulated_shop_is_named_in_every_row(shop: Shop) -> None:
    scorer = _with(shop, simulated=True)
    assert "simulated_data" in scorer.degraded
    assert {tuple(d.warnings) for d in _answer(scorer, ALL).decisions} == {("simulated_data",)}


def test_what_is_known_of_a_customer(shop: Shop) -> None:
    row = ALL.index("c-010")
    known = shop.scorer().customer("c-010")
    assert known is not None
    recency, orders, spend = shop.population.rfm[row]
    assert known.rfm.recency_days == recency
    assert known.rfm.frequency_365d == orders
    assert known.rfm.monetary_365d_micros == round(spend * 1e6)
    assert known.consent is True
    assert {arm: np.float32(v) for arm, v in known.uplift.items()} == dict(
        zip(shop.model.bundle.arms, shop.population.scores.cate[row], strict=True)
    )
    fresh = shop.scorer().customer(NO_ORDERS)
    assert fresh is not None
    assert (fresh.profile_state, fresh.tier, fresh.rfm.recency_days) == (
        "no_history",
        "prospect",
        None,
    )
    assert shop.scorer().customer("nobody") is None


def test_the_score_table_is_what_the_bundle_predicts_online(shop: Shop) -> None:
    people = shop.snapshot.population
    rows, _ = people.find(["c-007", "c-299", "c-120"])
    online = shop.model.bundle.score(people.X[rows], threads=1)
    for name, values in vars(online).items():
        assert values.tobytes() == getattr(people.scores, name)[rows].tobytes()


@pytest.mark.parametrize("seed", [1, 2])
def test_shortest_decimals_read_back_bit_for_bit(seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    for value, back in zip(values, shortest(values), strict=True):
        if back is None:
            assert not math.isfinite(value)
        else:
            assert np.float32(back).tobytes() == value.tobytes()


def test_scores_of_the_small_shop_are_no_constants(shop: Shop) -> None:
    scores: Scores = shop.population.scores
    for values in vars(scores).values():
        assert (np.std(values, axis=0) > 0).all()
