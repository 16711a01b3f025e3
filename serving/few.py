"""The decisions of `evaluation.evaluate_many` for a few customers, in plain numbers.

Under load most groups are of one to three customers, and each of the two hundred steps of numpy
that decide for them takes as long as for a hundred (ADR 0024). So they are decided one after the
other. The result is the same to the last bit (tests/unit/serving/test_few.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from features.config import CONTROL
from serving import schemas
from serving.arms import NOW
from serving.evaluated import Evaluated, Kept, short, warned
from serving.judging import MICROS, Facts, Standing, no_arm, stands
from serving.population import FOREVER
from serving.rules import Rules
from serving.times import micros, shown_time
from uplift.alone import Alone, Drawn
from uplift.data import BoolArray
from uplift.policy import Reason

if TYPE_CHECKING:
    from serving.scorer import Scorer

FEW = 12
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
    shop = _Shop(scorer, rules, standing, facts, left)
    rows = scorer.snapshot.population.find_few(ids)
    made = [
        shop.unknown(one) if row is None or erased else shop.known(one, row, i)
        for i, (one, row, erased) in enumerate(zip(ids, rows, facts.erased, strict=True))
    ]
    window, warnings = standing.window, warned(scorer, rules, now)
    names = (CONTROL, *scorer.snapshot.arms)
    return Evaluated(
        scorer,
        window.campaign,
        window.ends,
        now,
        [
            _item(i, one, each, names, window.shown, warnings)
            for i, (one, each) in enumerate(zip(ids, made, strict=True))
        ],
        [each.retry_at for each in made],
        window.campaign.shares,
        lambda: Kept(
            [each.drawn.arm for each in made],
            [each.drawn.assignment_prob for each in made],
            [each.drawn.probs for each in made],
            [each.reserve for each in made],
            [each.drawn.profit for each in made],
            list(facts.erased),
        ),
    )


class _Made(NamedTuple):
    """What is decided for one customer."""

    drawn: Drawn
    profile: schemas.Profile
    response: float | None = None
    uplift: float | None = None
    reserve: int = 0
    retry_at: int | None = None


class _Shop:
    """What decides for one customer after the other. `left`: of the budget, millionths."""

    def __init__(
        self, scorer: Scorer, rules: Rules, standing: Standing, facts: Facts, left: int | None
    ) -> None:
        self.people, self.rules, self.standing = scorer.snapshot.population, rules, standing
        self.facts, self.left, self.told = facts, left, scorer.told.tolist()
        self.offered = standing.offered.tolist()
        self.on = list(map(bool.__and__, self.offered, standing.in_stock.tolist()))
        campaign, arms = standing.window.campaign, len(self.on)
        self.nothing, self.no_arm = [0.0] * arms, [False] * arms
        self.silent = (
            [min(campaign.min_profit, 0.0) - 1.0] * arms if campaign.sends_nothing else None
        )
        only = campaign.exploration_only
        self.alone = Alone(
            campaign.shares,
            scorer.salt.value,
            campaign.campaign_id,
            campaign.window_id,
            rules.shadow_price,
            campaign.min_profit,
            self.no_arm if only is None else only.tolist(),
        )

    def unknown(self, one: str) -> _Made:
        """A customer whom the snapshot does not know, or who was erased."""
        why, nothing = self.standing.closed or Reason.UNKNOWN_CUSTOMER, self.nothing
        return _Made(self.alone.decide(one, nothing, nothing, None, self.no_arm, why), "unknown")

    def known(self, one: str, row: int, i: int) -> _Made:
        """The customer in this row of the snapshot, whose facts stand at i."""
        people, rules, standing, facts = self.people, self.rules, self.standing, self.facts
        scores, toll = people.scores, None
        reward, cost = scores.reward[row].tolist(), scores.cost[row].tolist()
        if people.toll is not None and standing.ours:
            toll = people.toll[row].tolist()
        opened = people.open_one(row, standing.at, entering=standing.ours)
        log_free = facts.free_at[i]
        held = opened.free_at > standing.at or (log_free is not None and log_free > standing.wall)
        reserve = _reserve(rules, cost)
        in_draw = [
            here and on and (self.left is None or need <= self.left)
            for here, on, need in zip(opened.arms, self.on, reserve, strict=True)
        ]
        refusals = standing.refusals(
            False,
            not all(map(math.isfinite, (*reward, *cost, scores.response.item(row)))),
            not opened.consent or facts.withheld[i],
            not (opened.eligible and (rules.eligible is None or rules.eligible.item(row))),
            facts.converted is not None and facts.converted[i],
            held,
        )
        if not any(in_draw):
            in_date = any(map(bool.__and__, opened.arms, self.offered))
            available = any(map(bool.__and__, opened.arms, self.on))
            refusals += no_arm(not in_date, not available, True)
        refused = next((reason for reason, holds in refusals if holds), None)
        found = self.alone.decide(one, self.silent or reward, cost, toll, in_draw, refused)
        shown = found.arm - 1 if found.arm else _best(reward, self.told)
        retry = None
        if found.reason == Reason.QUIET_HOURS and standing.quiet_until is not None:
            retry = micros(standing.quiet_until)
        elif found.reason == Reason.CONTACT_CAP:
            free = max(opened.free_at, NOW if log_free is None else log_free)
            retry = free if free < _FOREVER else None
        return _Made(
            found,
            "no_history" if people.tier.text(row) == "prospect" else "known",
            short(scores.response[row]),
            short(scores.cate[row, shown]),
            reserve[found.arm - 1] if found.arm else 0,
            retry,
        )


def _item(
    i: int,
    one: str,
    made: _Made,
    names: Sequence[str],
    until: Sequence[str | None],
    warnings: list[str],
) -> schemas.Decision:
    found, arm = made.drawn, made.drawn.arm
    return schemas.Decision(
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
        made.response,
        made.uplift,
        round(found.profit * MICROS),
        round(found.cost * MICROS),
        made.profile,
        False,
        until[arm] if arm else None,
        shown_time(made.retry_at),
        warnings,
    )


def _reserve(rules: Rules, cost: Sequence[float]) -> Sequence[int]:
    """As `judging._reserve`, (K,)."""
    if rules.worst_micros is not None:
        return rules.worst_micros
    micro = [round(c * MICROS) if math.isfinite(c) and c > 0 else 0 for c in cost]
    factor = rules.safety_factor
    return micro if factor == 1.0 else [math.ceil(each * factor) for each in micro]


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
