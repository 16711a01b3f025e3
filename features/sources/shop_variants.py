"""Other worlds of the simulated shop: the same mechanics with other numbers, drawn blindly.

World 0 is the default. Every other number draws who the customers are and how they and each coupon
respond, from laws that were fixed before any of these worlds was looked at: they answer whether
what holds in world 0 holds in shops that nobody set parameters for (docs/simulated-shop.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from features.sources.shop_world import World

SCALED = 1.5  # a scaled parameter is multiplied by a log-uniform factor between 1 / 1.5 and 1.5
MOVED = 0.3  # a log mean moves by a uniform amount between -0.3 and 0.3
MOST = 0.95  # no share or chance passes this
SCALES = (
    "interval_log_sd",
    "basket_log_sd",
    "basket_log_noise",
    "lines_extra",
    "deal_hunters",
    "weekenders",
    "broad_tastes",
    "mood_sd",
    "season",
    "receptive_log_sd",
    "fresh_at",
    "overdue_from",
    "overdue_until",
    "redeem_base",
    "redeem_deal",
    "deal_numbness",
    "annoyed_always",
    "annoyed_recent",
)
MEANS = ("interval_log_mean", "basket_log_mean")
CHANCES = ("deal_hunters", "weekenders", "broad_tastes", "redeem_deal", "deal_numbness")
MOST_GAIN_BASE = 0.03  # a coupon's gain_base is uniform between 0 and this


def numbered_world(number: int) -> World:
    """World `number`; the same number is the same world everywhere."""
    world = World()
    if number == 0:
        return world
    rng = np.random.default_rng([number, 2026])

    def factor() -> float:
        return float(np.exp(rng.uniform(-np.log(SCALED), np.log(SCALED))))

    drawn: dict[str, Any] = {name: getattr(world, name) * factor() for name in SCALES}
    drawn |= {name: getattr(world, name) + rng.uniform(-MOVED, MOVED) for name in MEANS}
    drawn |= {name: min(drawn[name], MOST) for name in CHANCES}
    # A chance to redeem is base plus love of deals, and must stay one.
    drawn["redeem_deal"] = min(drawn["redeem_deal"], MOST - drawn["redeem_base"])
    drawn["annoyed_always"] = min(drawn["annoyed_always"], MOST - drawn["annoyed_recent"])
    coupons = tuple(
        replace(
            coupon,
            gain_base=float(rng.uniform(0, MOST_GAIN_BASE)),
            gain_match=coupon.gain_match * factor(),
            stretch=coupon.stretch * factor(),
            annoyance=min(coupon.annoyance * factor(), 1.0),
        )
        for coupon in world.coupons
    )
    return replace(world, coupons=coupons, **drawn)
