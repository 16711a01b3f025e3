"""Exactly one tier, RFM class and stage for everyone: hypothesis against plain if-chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from features.build import build_features
from features.config import TIERS, SegmentsConfig
from features.segments import RFM_CLASSES, SEGMENT_FEATURES, STAGES, TIER_DETAILS, segments, tiers
from tests.unit.features.conftest import make_config, make_tables
from tests.unit.features.test_segments import FROZEN
from tests.unit.features.worked_example import AS_OF, ZONE

MOMENT = AS_OF.replace(tzinfo=None)  # local midnight, UTC+8 the year round
EDGES = [0, 1, 13, 14, 15, 29, 30, 31, 45, 46, 89, 90, 91, 180, 181, 364, 365, 366]
AMOUNTS = [0.0, 0.01, 100.0, 190.0, 260.0, 280.0, 520.0]


@dataclass(frozen=True)
class Order:
    """`back`: seconds until everything is returned, or None."""

    at: datetime
    amount: float
    back: int | None

    def valid(self) -> bool:
        returned = self.back is not None and self.at + timedelta(seconds=self.back) < MOMENT
        return self.at < MOMENT and not returned


# Around local midnight of a day: a second before and after it, at it, and some time later.
times = st.builds(
    lambda age, seconds: MOMENT - timedelta(days=age) + timedelta(seconds=seconds),
    st.sampled_from(EDGES) | st.integers(-3, 800),
    st.sampled_from([-1, 0, 1, 40_000, 86_399]),
)
orders = st.builds(
    Order,
    times,
    st.sampled_from(AMOUNTS),
    st.none() | st.none() | st.sampled_from([1, 86_400, 30 * 86_400]),
)
customers = st.lists(st.lists(orders, max_size=8), min_size=1, max_size=12)
precedences = st.permutations(TIERS[1:-1]).map(lambda some: [TIERS[0], *some, TIERS[-1]])


def day(time: datetime) -> date:
    return (time + timedelta(hours=8)).date()


def expected(bought: list[Order], precedence: list[str]) -> dict[str, object]:
    """Segments of a customer, by the rules' words."""
    known = [o for o in bought if o.valid()]
    if not known:
        nothing = {"tier": "prospect", "tier_detail": None, "rfm_class": "prospect"}
        scores = dict.fromkeys(("r_score", "f_score", "m_score"))
        return nothing | {"lifecycle_stage": "novice"} | scores
    days = sorted({day(o.at) for o in known})
    r, t, n = (day(MOMENT) - days[-1]).days, (day(MOMENT) - days[0]).days, len(days)
    f = sum((day(MOMENT) - d).days <= 365 for d in days)
    moved = [(o.at, o.amount) for o in bought if o.at < MOMENT]
    backs = [(o.at + timedelta(seconds=o.back), -o.amount) for o in bought if o.back is not None]
    moved += [(at, amount) for at, amount in backs if at < MOMENT]
    total = round(sum(amount for _, amount in moved), 2)
    m = round(sum(a for at, a in moved if (day(MOMENT) - day(at)).days <= 365), 2)
    o = r / ((2 * 30.0 + t - r) / (2 + n - 1))
    rules: dict[str, Callable[[], bool]] = {
        "prospect": lambda: False,
        "lost": lambda: r > 180,
        "sleeping": lambda: 90 <= r <= 180,
        "champion": lambda: r <= 30 and n > 5 and total >= 520,
        "new": lambda: t <= 30,
        "potential": lambda: r <= 90 and 2 <= n <= 4,
        "regular": lambda: True,
    }
    tier = next(name for name in precedence if rules[name]())
    detail = None
    if tier == "regular":
        if n == 1:
            detail = "single_cooling"
        elif n == 5:
            detail = "five_orders"
        else:
            detail = "frequent_low_value" if r <= 30 else "champion_cooling"
    if r > 365 or (o > 3 and r >= 30):
        stage = "lost"
    elif o > 1.5 and r >= 14:
        stage = "declining"
    elif n >= 6 and m > 370:
        stage = "mature"
    else:
        stage = "growth" if n >= 2 else "novice"
    letters = "".join("H" if high else "L" for high in (r < 30, f > 2, m > 280))
    return {
        "tier": tier,
        "tier_detail": detail,
        "lifecycle_stage": stage,
        "rfm_class": letters,
        "r_score": 1 + (r < 43.333333) + (r < 13.333333),
        "f_score": 1 + (f > 1.333333) + (f > 2.666667),
        "m_score": 1 + (m > 190) + (m > 370),
    }


def shop(everyone: list[list[Order]]) -> Any:
    """Tables: a line per order and one per return; everyone was once in a control group."""
    lines = []
    for i, bought in enumerate(everyone):
        for j, o in enumerate(bought):
            line = {"customer_id": f"c{i}", "order_id": f"o{i}-{j}", "product_id": "p"}
            lines.append(line | {"transacted_at": o.at, "quantity": 1.0, "amount": o.amount})
            if o.back is not None:
                back = {"transacted_at": o.at + timedelta(seconds=o.back), "quantity": -1.0}
                lines.append(line | back | {"amount": -o.amount})
    columns = ["customer_id", "order_id", "product_id", "transacted_at", "quantity", "amount"]
    seen = {"customer_id": [f"c{i}" for i in range(len(everyone))], "arm": "control"}
    return make_tables(
        transactions=pd.DataFrame(lines, columns=columns),
        exposures=pd.DataFrame(seen | {"assigned_at": datetime(2023, 1, 1)}),
    )


NO_ORDER: list[Order] = []
ONLY_RETURNED = [Order(MOMENT - timedelta(days=9), 100.0, 86_400)]
FUTURE = [Order(MOMENT, 100.0, None), Order(MOMENT + timedelta(days=3), 100.0, None)]
ONE_SECOND_APART = [
    Order(MOMENT - timedelta(days=1, seconds=1), 280.0, None),
    Order(MOMENT - timedelta(days=1), 260.0, None),
    Order(MOMENT - timedelta(seconds=1), 100.0, 1),
]
ON_THE_EDGES = [[Order(MOMENT - timedelta(days=age), 520.0, None)] for age in EDGES]
FREQUENT = [
    Order(MOMENT - timedelta(days=d, seconds=s), 260.0, None)
    for d, s in ((0, 1), (5, 0), (9, 0), (30, 0), (31, 0), (60, 0))
]

# Eight days in a row: an order is expected every 7.4 days, so r = 14 and 30 are bounds of stages.
RHYTHMIC = [
    [Order(MOMENT - timedelta(days=last + k), 100.0, None) for k in range(8)]
    for last in (13, 14, 29, 30)
]


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(everyone=customers, precedence=precedences)
@example(
    everyone=[
        *(NO_ORDER, ONLY_RETURNED, FUTURE, ONE_SECOND_APART, FREQUENT, *RHYTHMIC, *ON_THE_EDGES)
    ],
    precedence=list(TIERS),
)
def test_from_tables_to_one_tier_class_and_stage(
    everyone: list[list[Order]], precedence: list[str]
) -> None:
    config = make_config(timezone=ZONE, segments={"tier_order": precedence})
    names = [f"c{i}" for i in range(len(everyone))]
    spine = pd.DataFrame({"customer_id": names, "as_of": MOMENT})
    frame = build_features(shop(everyone), spine, SEGMENT_FEATURES, config, FROZEN).frame
    found = segments(frame, FROZEN, config.segments)
    assert set(found["tier"]) <= set(TIERS)
    assert set(found["lifecycle_stage"]) <= set(STAGES)
    assert set(found["rfm_class"]) <= set(RFM_CLASSES)
    want = pd.DataFrame([expected(bought, precedence) for bought in everyone])
    for name in found.columns:
        got = [None if pd.isna(v) else v for v in found[name]]
        assert got == [None if pd.isna(v) else v for v in want[name]], name


def _states(seed: int) -> pd.DataFrame:
    """Features of 3000 possible customers, many on a bound, a tenth without an order."""
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 9, 3000)
    r = np.where(rng.random(3000) < 0.5, rng.choice(EDGES, 3000), rng.integers(0, 800, 3000))
    t = np.where(n == 1, r, r + rng.integers(n - 1, 60 * n))
    spend = rng.choice([0.0, 100, 280, 370, 519.99, 520, 900], 3000)
    frame = pd.DataFrame(
        {
            "recency_days": r,
            "tenure_days": t,
            "orders_total": n + rng.integers(0, 3, 3000),
            "order_days_total": n,
            "order_days_365d": np.where(r <= 365, n, 0),
            "spend_365d": spend,
            "spend_total": spend,
            "overdue_ratio": r / ((60 + t - r) / (n + 1)),
        },
        dtype=float,
    )
    never = rng.random(3000) < 0.1
    frame.loc[never, ["recency_days", "tenure_days", "overdue_ratio"]] = np.nan
    frame.loc[never, ["orders_total", "order_days_total", "order_days_365d"]] = 0.0
    return frame


def test_every_precedence_gives_one_tier_and_the_same_regulars() -> None:
    frame = _states(1)
    r, n, t, spend = (
        frame[name].to_numpy()
        for name in ("recency_days", "order_days_total", "tenure_days", "spend_total")
    )
    first, detail = tiers(r, n, t, spend >= 520, n > 0)
    assert set(first) == set(TIERS)
    assert set(detail) == {None, *TIER_DETAILS}
    differing = 0
    for some in permutations(TIERS[1:-1]):
        found, same = tiers(r, n, t, spend >= 520, n > 0, [TIERS[0], *some, TIERS[-1]])
        assert set(found) <= set(TIERS)
        for name in (TIERS[0], TIERS[-1]):
            assert ((found == name) == (first == name)).all()
        assert (same == detail).all()
        differing += bool((found != first).any())
    assert differing > 0


def test_precedence_decides_between_rules_that_both_match() -> None:
    """A first order 5 days ago, six order days and high spend: champion or new."""
    frame = _states(2)[:1].assign(
        recency_days=5.0, tenure_days=20.0, order_days_total=6.0, orders_total=6.0, spend_total=520
    )
    assert segments(frame, FROZEN, SegmentsConfig())["tier"].tolist() == ["champion"]
    rules = SegmentsConfig(
        tier_order=["prospect", "new", "lost", "sleeping", "champion", "potential", "regular"]
    )
    assert segments(frame, FROZEN, rules)["tier"].tolist() == ["new"]
