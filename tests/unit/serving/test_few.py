"""A few customers are decided as many are: the same answers, and the same rows of the log."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from serving.arms import ArmRules, in_micros, open_arms, open_one
from serving.evaluation import Facts, evaluate, evaluate_few, evaluate_many
from serving.few import FEW, can
from serving.rules import DefaultOffer, Quiet, Rules
from serving.scorer import Scorer
from serving.times import micros
from tests.unit.serving.small_shop import AS_OF, CUSTOMERS, Shop
from uplift.policy import Reason, Shares

IDS = [f"c-{i:03d}" for i in range(CUSTOMERS)] + ["nobody", "x" * 64]
DAY = timedelta(days=1)
REACHED: Counter[str] = Counter()


def varied(shop: Shop, rng: np.random.Generator) -> tuple[Scorer, Rules]:
    """A scorer and rules in which much is set, each part in some of the cases."""

    def some(share: float = 0.5) -> bool:
        return bool(rng.random() < share)

    people = shop.snapshot.population
    n, arms = people.scores.reward.shape
    scores = people.scores
    if some():
        reward, response = scores.reward.copy(), scores.response.copy()
        reward[rng.random((n, arms)) < 0.05] = np.nan
        response[rng.random(n) < 0.05] = np.inf
        scores = replace(scores, reward=reward, response=response)
    rules_of_arms = None
    if some():
        free = np.where(rng.random((n, arms)) < 0.3, np.datetime64("2026-01-20", "us"), None)
        free = np.where(rng.random((n, arms)) < 0.1, np.datetime64("9999-12-31", "us"), free)
        rules_of_arms = ArmRules(
            (), rng.random((n, arms)) < 0.9, rng.random((n, arms)) < 0.8, rng.random(n) < 0.9,
            free.astype("datetime64[us]"), np.full((n, arms), -1, dtype=np.int8),
        )  # fmt: skip
    toll = rng.gamma(1, 0.2, (n, arms)).astype(np.float32) if some() else None
    capped = people.free_at
    if some():
        held = np.where(rng.random(n) < 0.1, np.datetime64(AS_OF.replace(tzinfo=None)), capped)
        capped = np.where(rng.random(n) < 0.1, np.datetime64("9999-12-31", "us"), held)
    people = replace(people, scores=scores, arms=rules_of_arms, toll=toll, free_at=capped)
    live = shop.config.source.model_copy(update={"as_of": "now"})
    config = shop.config if some() else shop.config.model_copy(update={"source": live})
    model = replace(shop.model, registered_at=AS_OF - timedelta(days=80)) if some() else shop.model
    snapshot = replace(shop.snapshot, population=people)
    scorer = shop.scorer(snapshot=snapshot, config=config, model=model)
    scorer.__dict__["told"] = np.array([True, some()])
    campaign = replace(
        scorer.rules.campaign,
        campaign_id="spring" if some(0.7) else "other",
        shares=Shares(*rng.choice([0.0, 0.1, 0.4], 3).tolist()),
        min_profit=float(rng.choice([-1.0, 0.0, 1.5])),
        offered=(True, some(0.8)),
        unseen=int(some(0.3)),
        sends_nothing=some(0.1),
        stock=(None, 0) if some(0.3) else (),
    )
    changes: dict[str, Any] = {
        "campaign": campaign,
        "starts_at": AS_OF + (DAY if some(0.1) else -40 * DAY if some() else 0 * DAY),
        "ends_at": AS_OF if some(0.1) else None,
        "eligible": rng.random(n) < 0.8 if some() else None,
        "quiet": Quiet(time(0), time(8), ZoneInfo("Europe/Berlin")) if some(0.2) else None,
        "safety_factor": 1.25 if some() else 1.0,
        "worst_micros": (7_000_000, 3_000_000) if some() else None,
        **({"max_feature_age": None} if some() else {}),
        "shadow_price": float(rng.choice([0.0, 0.7])),
    }
    return scorer, replace(scorer.rules, **changes)


@pytest.mark.parametrize("seed", range(60))
def test_few_are_decided_as_many(shop: Shop, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scorer, rules = varied(shop, rng)
    now = AS_OF + timedelta(seconds=int(rng.choice([0, 3600, 86_400, 60 * 3600, 50 * 86_400])))
    left = int(rng.choice([0, 3_000_000, 10**9])) if rng.random() < 0.6 else None
    active = bool(rng.random() < 0.95)
    in_stock = rng.random(2) < 0.7 if rng.random() < 0.3 else None
    ids = rng.permutation(IDS).tolist()
    for at in range(0, len(ids), FEW):
        some = ids[at : at + int(rng.integers(1, FEW + 1))]
        facts = None
        if rng.random() < 0.8:
            n = len(some)
            free = micros(now) + int(rng.choice([-1, 0, 1])) * 3_600_000_000
            facts = Facts(
                (rng.random(n) < 0.1).tolist(), (rng.random(n) < 0.1).tolist(),
                [free if capped else None for capped in rng.random(n) < 0.2],
                (rng.random(n) < 0.1).tolist() if rng.random() < 0.5 else None,
            )  # fmt: skip
        assert can(scorer, rules, len(some))
        asked = (scorer, rules, some, now, facts, left, active, in_stock)
        few, many = evaluate_few(*asked), evaluate_many(*asked)
        # Texts tell -0.0 from 0.0, and 1 from 1.0 and True.
        assert list(map(repr, few.items)) == list(map(repr, many.items))
        assert repr(few.kept) == repr(many.kept)
        names = [f"d-{i}" for i in range(len(some))]
        assert repr(few.rows(names)) == repr(many.rows(names))
        REACHED.update(item.reason for item in few.items)


@pytest.mark.parametrize("seed", range(20))
def test_one_customer_is_opened_as_many_are(seed: int) -> None:
    rng, n, arms = np.random.default_rng(seed), 30, 3
    days = np.array(["NaT", "2026-01-10", "2026-01-15", "2026-01-20", "9999-12-31"], "M8[us]")

    def some(*shape: int) -> Any:
        return rng.random(shape) < 0.7

    rules = ArmRules(
        (), some(n, arms), some(n, arms), some(n), rng.choice(days, (n, arms)),
        np.full((n, arms), -1, dtype=np.int8),
    )  # fmt: skip
    consent, free, at = some(n), rng.choice(days, n), days[2]
    for asked, entering in ((rules, True), (rules, False), (None, True)):
        many = open_arms(asked, consent, free, arms, at, entering=entering)
        shop_free = in_micros(many.free_at).tolist()
        for row in range(n):
            mine, when = bool(consent[row]), in_micros(free).item(row)
            one = open_one(asked, row, mine, when, arms, in_micros(at).item(), entering=entering)
            assert one == (
                many.consent[row], many.eligible[row], shop_free[row], many.arms[row].tolist()
            )  # fmt: skip


def test_every_reason_was_among_them() -> None:
    if sum(REACHED.values()) < 60 * CUSTOMERS / FEW:
        pytest.skip("the cases above ran elsewhere, or not all of them")
    assert set(REACHED) == set(Reason) - {Reason.DEFAULT_OFFER}, REACHED


def test_many_customers_and_default_offers_go_the_other_way(shop: Shop) -> None:
    scorer = shop.scorer()
    assert can(scorer, scorer.rules, FEW)
    assert not can(scorer, scorer.rules, FEW + 1)
    default = replace(scorer.rules, default=DefaultOffer(0, 0.5))
    assert not can(scorer, default, 1)
    facts = replace(Facts.none(1), stated=[True])
    assert evaluate(scorer, default, ["nobody"], AS_OF, facts=facts).items[0].action == "offer"
