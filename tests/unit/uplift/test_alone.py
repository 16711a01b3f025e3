"""Customers decided one by one get what they get in columns, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from uplift.alone import Alone
from uplift.policy import Reason, Shares, decide

ARMS, CUSTOMERS = 3, 400
REFUSALS = (None, None, None, Reason.NO_CONSENT, Reason.CONTACT_CAP)


@pytest.mark.parametrize("seed", range(12))
def test_one_by_one_is_as_in_columns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (CUSTOMERS, ARMS)
    # Coarse numbers tie often.
    coarse = bool(seed % 2)
    reward = np.round(rng.normal(0.5, 1, shape), 1) if coarse else rng.normal(0.5, 1, shape)
    cost = np.round(rng.gamma(2, 0.5, shape), 1) if coarse else rng.gamma(2, 0.5, shape)
    toll = np.round(rng.gamma(1, 0.2, shape), 1) if seed % 3 == 0 else None
    price = float(rng.choice([0.0, 0.5, 1.3]))
    least = float(rng.choice([-1.0, 0.0, 0.4]))
    shares = Shares(*rng.choice([0.0, 0.05, 0.3, 1.0], 3, p=[0.3, 0.3, 0.3, 0.1]).tolist())
    in_draw = rng.random(shape) < 0.7
    refused = [REFUSALS[k] for k in rng.integers(0, len(REFUSALS), CUSTOMERS)]
    for i in np.flatnonzero(~in_draw.any(axis=1)).tolist():
        refused[i] = refused[i] or Reason.COUPON_EXPIRED
    only = np.array([False, False, seed % 4 == 0])
    ids = [f"c{i}" for i in range(CUSTOMERS)]
    made = decide(
        ids, reward, cost, shares=shares, salt=b"salt", campaign_id="spring", window_id=seed,
        shadow_price=price, min_profit=least, eligible=in_draw, exploration_only=only, toll=toll,
        pre_reasons=refused,
    )  # fmt: skip
    alone = Alone(shares, b"salt", "spring", seed, price, least, only.tolist())
    for i in range(CUSTOMERS):
        one = alone.decide(
            ids[i], reward[i].tolist(), cost[i].tolist(),
            None if toll is None else toll[i].tolist(), in_draw[i].tolist(), refused[i],
        )  # fmt: skip
        assert one == (
            made.arm[i], made.reason[i], made.assignment_prob[i], tuple(made.probs[i]),
            made.is_holdout[i], made.is_exploration[i],
            made.expected_incremental_profit[i], made.expected_cost[i],
        )  # fmt: skip


def test_the_cases_differ() -> None:
    """Every way to be decided stands among those above."""
    alone = Alone(Shares(0.2, 0.3, 0.1), b"salt", "spring", 0, 0.5, 0.0, [False, False])
    found = [
        alone.decide(f"c{i}", [1.0, -1.0 + i % 3], [0.1, 0.2], None, [i % 5 > 0, True], None)
        for i in range(500)
    ]
    assert {one.reason for one in found} == {
        Reason.GLOBAL_HOLDOUT, Reason.HOLDOUT, Reason.EXPLORATION, Reason.BELOW_THRESHOLD,
        Reason.BEST_NET_VALUE,
    }  # fmt: skip
    assert {one.arm for one in found} == {0, 1, 2}
