"""The decisions of `evaluation.evaluate_many` for a few customers, in plain numbers.

Under load most groups are of one to three customers, and each of the two hundred steps of numpy
that decide for them takes as long as for a hundred (ADR 0024). So they are decided one after the
other. The result is the same to the last bit (tests/unit/serving/test_few.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from features.config import CONTROL
from serving import schemas
from serving.arms import NOW
from serving.evaluated import Evaluated, Kept, short, warned
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
_FOREVER = int(FOREVER.astype(np.int64))


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
    scores, campaign, toll = people.scores, window.campaign, None
    offered = standing.offered.tolist()
    on = list(map(bool.__and__, offered, standing.in_stock.tolist()))
    silent = [min(campaign.min_profit, 0.0) - 1.0] * len(arms) if campaign.sends_nothing else None
    only, told = campaign.exploration_only, scorer.told.tolist()
    warnings, names = warned(scorer, rules, now), (CONTROL, *arms)
    alone = Alone(
        campaign.shares,
        scorer.salt.value,
        campaign.campaign_id,
        campaign.window_id,
        rules.shadow_price,
        campaign.min_profit,
        [False] * len(arms) if only is None else only.tolist(),
    )
    nothing = [0.0] * len(arms)
    closed = standing.closed or Reason.UNKNOWN_CUSTOMER
    drawn: list[Drawn] = []
    items: list[schemas.Decision] = []
    reserves: list[int] = []
    retry: list[int | None] = []
    for i, (one, row) in enumerate(zip(ids, people.find_few(ids), strict=True)):
        response = uplift = None
        held, free = False, NOW
        reserve: Sequence[int] = ()
        if row is None or facts.erased[i]:
            profile: schemas.Profile = "unknown"
            found = alone.decide(one, nothing, nothing, None, [False] * len(arms), closed)
        else:
            profile = "no_history" if people.tier.text(row) == "prospect" else "known"
            reward, cost = scores.reward[row].tolist(), scores.cost[row].tolist()
            if people.toll is not None and standing.ours:
                toll = people.toll[row].tolist()
            left_open = people.open_one(row, standing.at, entering=standing.ours)
            log_free = facts.free_at[i]
            held = left_open.free_at > standing.at
            if log_free is not None:
                held, free = held or log_free > standing.wall, log_free
            free = max(free, left_open.free_at)
            reserve = _reserve(rules, cost)
            in_draw = [
                here and now_on and (left is None or need <= left)
                for here, now_on, need in zip(left_open.arms, on, reserve, strict=True)
            ]
            refusals = standing.refusals(
                False,
                not all(map(math.isfinite, (*reward, *cost, scores.response.item(row)))),
                not left_open.consent or facts.withheld[i],
                not (left_open.eligible and (rules.eligible is None or rules.eligible.item(row))),
                facts.converted is not None and facts.converted[i],
                held,
            )
            if not any(in_draw):
                in_date = any(map(bool.__and__, left_open.arms, offered))
                available = any(map(bool.__and__, left_open.arms, on))
                refusals += no_arm(not in_date, not available, True)
            refused = next((reason for reason, holds in refusals if holds), None)
            found = alone.decide(one, silent or reward, cost, toll, in_draw, refused)
            shown = found.arm - 1 if found.arm else _best(reward, told)
            response, uplift = short(scores.response[row]), short(scores.cate[row, shown])
        arm = found.arm
        drawn.append(found)
        reserves.append(reserve[arm - 1] if arm else 0)
        retry.append(_retry(found.reason, standing.quiet_until, held, free))
        items.append(
            schemas.Decision(
                i,
                one,
                None,
                "offer" if arm else "none",
                names[arm],
                names[arm] if arm else None,
                found.reason,
                found.is_holdout,
                found.is_exploration,
                round(found.assignment_prob, 6),
                response,
                uplift,
                round(found.profit * MICROS),
                round(found.cost * MICROS),
                profile,
                False,
                window.shown[arm] if arm else None,
                shown_time(retry[i]),
                warnings,
            )
        )
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
            list(facts.erased),
        ),
    )


def _reserve(rules: Rules, cost: Sequence[float]) -> Sequence[int]:
    """As `judging._reserve`, (K,)."""
    if rules.worst_micros is not None:
        return rules.worst_micros
    micro = [round(c * MICROS) if math.isfinite(c) and c > 0 else 0 for c in cost]
    factor = rules.safety_factor
    return micro if factor == 1.0 else [math.ceil(each * factor) for each in micro]


def _retry(reason: Reason, quiet: datetime | None, capped: bool, free: int) -> int | None:
    """When to ask again, microseconds; of contact caps and quiet hours alone."""
    if reason == Reason.QUIET_HOURS:
        return None if quiet is None else micros(quiet)
    return free if reason == Reason.CONTACT_CAP and capped and free < _FOREVER else None


def _best(reward: Sequence[float], told: Sequence[bool]) -> int:
    """The arm of greatest reward whose effect may be told, the first of equal ones; as numpy, one
    that is not a number is the greatest."""
    best, found = -math.inf, 0
    for k, (worth, may) in enumerate(zip(reward, told, strict=True)):
        if may and (worth > best or math.isnan(worth)):
            best, found = worth, k
            if math.isnan(worth):
                break
    return found
