"""The decisions of `evaluation.evaluate_many` for a few customers, in plain numbers.

Under load most groups are of one to three customers, and each of the two hundred steps of numpy
that decide for them takes as long as for a hundred (ADR 0024). What is looked up in the snapshot is
looked up together; the rest is done for one customer after the other. The result is the same to the
last bit (tests/unit/serving/test_few.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from features.config import CONTROL
from serving import schemas
from serving.evaluated import Evaluated, Kept, profile_states, shortest, warned
from serving.judging import MICROS, Facts, no_arm, stands
from serving.population import FOREVER
from serving.rules import Rules
from serving.times import micros, shown_time
from uplift.alone import Alone, Drawn
from uplift.data import BoolArray
from uplift.policy import Reason

if TYPE_CHECKING:
    from serving.scorer import Scorer

FEW = 16


def can(scorer: Scorer, rules: Rules, n: int) -> bool:
    """Whether so many customers are few, and nothing is asked for that is only done for many."""
    return n <= FEW and rules.default is None and bool(scorer.snapshot.arms)


def evaluate_few(
    scorer: Scorer,
    rules: Rules,
    ids: Sequence[str],
    now: datetime,
    facts: Facts | None,
    left: int | None,
    active: bool,
    in_stock: BoolArray | None,
) -> Evaluated:
    """As `evaluation.evaluate`, where `can`."""
    facts = facts or Facts.none(len(ids))
    standing = stands(scorer, rules, now, active, in_stock)
    people, arms, window = scorer.snapshot.population, scorer.snapshot.arms, standing.window
    scores, campaign = people.scores, window.campaign
    rows, known = people.find(ids)
    known = known & ~facts.erased
    opened = people.open_at(standing.at, rows, entering=standing.ours)
    fits = opened.eligible if rules.eligible is None else opened.eligible & rules.eligible[rows]
    capped = (opened.free_at > standing.at) | (facts.free_at > standing.wall)
    everyone = zip(
        ids,
        scores.reward[rows].tolist(),
        scores.cost[rows].tolist(),
        scores.response[rows].tolist(),
        opened.arms.tolist(),
        known.tolist(),
        (~opened.consent | facts.withheld).tolist(),
        fits.tolist(),
        [False] * len(ids) if facts.converted is None else facts.converted.tolist(),
        capped.tolist(),
        [None] * len(ids)
        if people.toll is None or not standing.ours
        else people.toll[rows].tolist(),
        strict=True,
    )
    on = [
        o and i for o, i in zip(standing.offered.tolist(), standing.in_stock.tolist(), strict=True)
    ]
    offered = standing.offered.tolist()
    silent = [min(campaign.min_profit, 0.0) - 1.0] * len(arms) if campaign.sends_nothing else None
    only = campaign.exploration_only
    alone = Alone(
        campaign.shares,
        scorer.salt.value,
        campaign.campaign_id,
        campaign.window_id,
        rules.shadow_price,
        campaign.min_profit,
        [False] * len(arms) if only is None else only.tolist(),
    )
    drawn: list[Drawn] = []
    reserves: list[int] = []
    for one, reward, cost, response, left_open, there, withheld, fit, done, held, toll in everyone:
        reserve = _reserve(rules, cost)
        in_draw = [
            here and now_on and (left is None or need <= left)
            for here, now_on, need in zip(left_open, on, reserve, strict=True)
        ]
        usable = all(map(math.isfinite, (*reward, *cost, response)))
        refusals = standing.refusals(not there, not usable, withheld, not fit, done, held)
        if not any(in_draw):
            in_date = any(map(bool.__and__, left_open, offered))
            available = any(map(bool.__and__, left_open, on))
            refusals += no_arm(not in_date, not available, True)
        refused = next((reason for reason, holds in refusals if holds), None)
        found = alone.decide(
            one, reward if silent is None else silent, cost, toll, in_draw, refused
        )
        drawn.append(found)
        reserves.append(reserve[found.arm - 1] if found.arm else 0)
    retry = [
        _retry(each.reason, standing.quiet_until, held, free)
        for each, held, free in zip(
            drawn, capped.tolist(), np.fmax(opened.free_at, facts.free_at), strict=True
        )
    ]
    items = _items(scorer, rows, known, ids, drawn, window.shown, retry, warned(scorer, rules, now))
    return Evaluated(
        scorer,
        campaign,
        window.ends,
        now,
        items,
        retry,
        campaign.shares,
        lambda: Kept(
            [each.arm for each in drawn],
            [each.assignment_prob for each in drawn],
            [each.probs for each in drawn],
            reserves,
            [each.profit for each in drawn],
            facts.erased.tolist(),
        ),
    )


def _reserve(rules: Rules, cost: Sequence[float]) -> Sequence[int]:
    """As `judging._reserve`, (K,)."""
    if rules.worst_micros is not None:
        return rules.worst_micros
    micro = [round(c * MICROS) if math.isfinite(c) and c > 0 else 0 for c in cost]
    factor = rules.safety_factor
    return micro if factor == 1.0 else [math.ceil(each * factor) for each in micro]


def _retry(reason: Reason, quiet: datetime | None, capped: bool, free: np.datetime64) -> int | None:
    """When to ask again, microseconds; of contact caps and quiet hours alone."""
    if reason == Reason.QUIET_HOURS:
        return None if quiet is None else micros(quiet)
    if reason != Reason.CONTACT_CAP or not capped or free >= FOREVER:
        return None
    return int(free.astype(np.int64))


def _items(
    scorer: Scorer,
    rows: npt.NDArray[np.int64],
    known: BoolArray,
    ids: Sequence[str],
    drawn: Sequence[Drawn],
    until: Sequence[str | None],
    retry: Sequence[int | None],
    warnings: list[str],
) -> list[schemas.Decision]:
    scores, n = scorer.snapshot.population.scores, len(ids)
    best = np.where(scorer.told, scores.reward[rows], -np.inf).argmax(axis=1).tolist()
    shown = [each.arm - 1 if each.arm else k for each, k in zip(drawn, best, strict=True)]
    told: list[Any] = shortest(np.concatenate([scores.response[rows], scores.cate[rows, shown]]))
    names = (CONTROL, *scorer.snapshot.arms)
    states = profile_states(scorer, rows, known)
    items = []
    for i, (one, there, each) in enumerate(zip(ids, known.tolist(), drawn, strict=True)):
        arm = each.arm
        items.append(
            schemas.Decision(
                i,
                one,
                None,
                "offer" if arm else "none",
                names[arm],
                names[arm] if arm else None,
                each.reason,
                each.is_holdout,
                each.is_exploration,
                round(each.assignment_prob, 6),
                told[i] if there else None,
                told[n + i] if there else None,
                round(each.profit * MICROS),
                round(each.cost * MICROS),
                states[i],
                False,
                until[arm] if arm else None,
                shown_time(retry[i]),
                warnings,
            )
        )
    return items
