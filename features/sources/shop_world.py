"""The world of the simulated shop: its parameters, its customers, and what an offer does to them.

Everything that an exposure can change is a probability or an expectation in closed form, given
the customer's traits and state at the start of a fortnight; `expected` is the truth. The words
and the numbers are explained in docs/simulated-shop.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CELL_DAYS = 14  # the shop moves in fortnights; an outcome window is one fortnight


@dataclass(frozen=True)
class Coupon:
    """A coupon kind with its parameters (customer-facing terms) and the response it meets."""

    coupon_id: str
    kind: str
    params: dict[str, float]
    gain_base: float  # chance to win an order that would not have come, for anybody
    gain_match: float  # the same, for the customers whom this coupon suits
    stretch: float  # growth of the log basket of those customers
    annoyance: float  # how much of the general annoyance this coupon carries


@dataclass(frozen=True)
class World:
    """All parameters of the shop. Money in currency units, times in days."""

    end: str = "2026-03-02"  # exclusive end of the data (UTC midnight, a Monday)
    cells: int = 52
    waves: tuple[int, ...] = (36, 38, 40, 46, 48, 50)  # fortnights with a campaign
    wave_share: float = 0.27  # share of all customers in one wave
    control_share: float = 0.30
    contact_cost: float = 0.05
    margin_rate: float = 0.40
    coupons: tuple[Coupon, ...] = field(
        default_factory=lambda: (
            Coupon("fix5", "fixed_off", {"off": 5.0}, 0.02, 0.24, 0.0, 0.8),
            Coupon(
                "save12",
                "threshold_off",
                {"threshold": 60.0, "off": 12.0},
                0.01,
                0.17,
                0.15,
                1.0,
            ),
            Coupon(
                "pct15",
                "percent_off",
                {"rate_off": 0.15, "max_off": 15.0, "min_spend": 20.0},
                0.01,
                0.20,
                0.08,
                1.2,
            ),
            Coupon("gift", "gift", {"unit_cost": 3.0, "min_spend": 25.0}, 0.01, 0.17, 0.05, 0.4),
        )
    )
    # who the customers are
    existing_share: float = 0.50  # already customers when the data begin
    registered_share: float = 0.15  # of the others: join without an order
    interval_log_mean: float = 4.25
    interval_log_sd: float = 0.75
    basket_floor: float = 8.0  # smallest order of the shop
    basket_log_mean: float = 3.40
    basket_log_sd: float = 0.50
    basket_log_noise: float = 0.40  # from order to order of one customer
    lines_extra: float = 1.75
    deal_hunters: float = 0.32
    deal_line_share: float = 0.75  # lines marked down in an order that is about deals
    deal_depth: tuple[float, float] = (0.10, 0.32)
    weekenders: float = 0.38
    broad_tastes: float = 0.42
    drop_out: tuple[float, float] = (0.002, 0.016)  # per fortnight
    drop_out_rest: float = 0.02  # what remains of the rate
    return_rate: tuple[float, float] = (0.02, 0.14)
    mood_memory: float = 0.93  # activity drifts: log rate, first order autoregression
    mood_sd: float = 0.14
    season: float = 0.30
    consent_share: float = 0.90
    # how they respond
    receptive_log_sd: float = 0.35  # what no table shows
    fresh_at: float = 0.35  # share of the own interval below which nothing is needed yet
    overdue_from: float = 1.15
    overdue_until: float = 4.5
    redeem_base: float = 0.12  # share of orders that come anyway and still use the coupon
    redeem_deal: float = 0.83  # the same, added in proportion to the love of deals
    deal_numbness: float = 0.85  # how much less a lover of deals is moved
    annoyed_always: float = 0.16  # share of the orders of a full-price buyer that contact loses
    annoyed_recent: float = 0.45  # more, when the last offer is at most 28 days old


@dataclass(frozen=True)
class Traits:
    """What a customer is, one row per customer."""

    interval: Floats  # own days between orders
    basket: Floats  # mean of the log basket above the floor
    lines: Floats  # mean number of lines beyond the first
    deal: Floats  # share of orders that are about deals
    weekend: Floats  # share of orders at the weekend
    breadth: Ints  # number of categories liked
    returns: Floats  # chance that an order of several lines sends one back
    further: Floats  # mean number of further orders in a fortnight with one
    drop_out: Floats
    season_peak: Floats  # day of the year
    receptive: Floats  # (n, K) unseen factor of the gain

    def take(self, rows: Ints | Bools) -> Traits:
        return Traits(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class State:
    """What a customer is like at the start of a fortnight, one row per customer."""

    overdue: Floats  # days since the last order over the own interval; NaN before the first order
    mood: Floats  # log activity
    alive: Bools
    contacted: Bools  # an offer within 28 days

    def take(self, rows: Ints | Bools) -> State:
        return State(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Response:
    """Chances in one fortnight. Column 0 is control, then the coupons."""

    p: Floats  # (n, 1 + K) at least one order
    redeem_anyway: Floats  # (n,) a coupon is used on an order that comes anyway
    stretch: Floats  # (n, 1 + K) shift of the log basket of the first order

    def take(self, rows: Ints | Bools) -> Response:
        return Response(self.p[rows], self.redeem_anyway[rows], self.stretch[rows])


def draw_traits(world: World, n: int, rng: np.random.Generator) -> Traits:
    """Traits of `n` customers."""
    hunter = rng.random(n) < world.deal_hunters
    weekender = rng.random(n) < world.weekenders
    broad = rng.random(n) < world.broad_tastes
    z = rng.standard_normal(n)
    interval = np.exp(world.interval_log_mean + world.interval_log_sd * rng.standard_normal(n))
    interval = np.clip(interval, 9.0, 500.0)
    basket = world.basket_log_mean + world.basket_log_sd * z
    return Traits(
        interval=interval,
        basket=basket,
        lines=world.lines_extra * np.exp(0.4 * z),
        deal=np.where(hunter, rng.beta(9, 3, n), rng.beta(1.3, 9, n)),
        weekend=np.where(weekender, rng.beta(9, 3, n), rng.beta(2, 9, n)),
        breadth=np.where(broad, rng.integers(6, 10, n), rng.integers(1, 4, n)),
        returns=rng.uniform(*world.return_rate, n),
        further=np.clip(0.35 * CELL_DAYS / interval, 0.02, 0.5),
        drop_out=rng.uniform(*world.drop_out, n),
        season_peak=np.where(rng.random(n) < 0.6, 345.0, 170.0),
        receptive=np.exp(
            world.receptive_log_sd * rng.standard_normal((n, len(world.coupons)))
            - world.receptive_log_sd**2 / 2
        ),
    )


def respond(world: World, traits: Traits, state: State, day_of_year: float) -> Response:
    """Chances of every customer under control and under each coupon, in the coming fortnight."""
    bought = ~np.isnan(state.overdue)
    overdue = np.where(bought, state.overdue, 0.0)
    # A rhythm: little need right after an order, most when the own interval has passed.
    need = (
        0.45
        + 0.95 * expit((overdue - 0.75) / 0.15)
        - 0.40 * expit((overdue - 2.2) / 0.3)
        - 0.35 * expit((overdue - 5.0) / 0.8)
    )
    need = np.where(bought, need, 0.5)
    season = 1 + world.season * np.cos(2 * np.pi * (day_of_year - traits.season_peak) / 365.25)
    alive = np.where(state.alive, 1.0, world.drop_out_rest)
    rate = CELL_DAYS / traits.interval * need * season * np.exp(state.mood) * alive
    p_control = -np.expm1(-rate)

    fresh = np.where(bought, expit((overdue - world.fresh_at) / 0.10), 0.5)
    late = expit((overdue - world.overdue_from) / 0.12)
    late *= expit((world.overdue_until - overdue) / 0.6)
    late = np.where(bought, late, 0.25)
    cooling = expit(-state.mood / 0.25)
    big = expit((traits.basket - world.basket_log_mean - 0.35) / 0.15)
    weekend = expit((traits.weekend - 0.5) / 0.08)
    broad = expit((traits.breadth - 4.5) / 0.5)
    match = {
        "fixed_off": late * (0.6 + 0.4 * cooling),
        "threshold_off": big,
        "percent_off": weekend,
        "gift": broad,
    }
    moved = (1 - world.deal_numbness * traits.deal) * alive * (0.1 + 0.9 * fresh)
    full_price = expit((0.22 - traits.deal) / 0.05)
    harm = full_price * (world.annoyed_always + world.annoyed_recent * state.contacted)

    n, arms = len(overdue), 1 + len(world.coupons)
    p = np.empty((n, arms))
    stretch = np.zeros((n, arms))
    p[:, 0] = p_control
    for k, coupon in enumerate(world.coupons, start=1):
        suits = match[coupon.kind]
        gain = (coupon.gain_base + coupon.gain_match * suits) * moved * traits.receptive[:, k - 1]
        gain = np.minimum(gain, 0.9)
        p[:, k] = p_control * (1 - coupon.annoyance * harm) + (1 - p_control) * gain
        stretch[:, k] = coupon.stretch * suits
    redeem = world.redeem_base + world.redeem_deal * traits.deal
    return Response(p=p, redeem_anyway=redeem, stretch=stretch)


def face_cost(coupon: Coupon, value: Floats) -> tuple[Bools, Floats]:
    """Is an order of this list value eligible, and what the coupon then costs, in cents' precision.

    Kinds and parameters are those of the coupon catalogue; `value` has shape (n,).
    """
    p = coupon.params
    if coupon.kind == "fixed_off":
        return np.ones(len(value), bool), np.minimum(p["off"], value)
    if coupon.kind == "threshold_off":
        return value >= p["threshold"], np.full(len(value), p["off"])
    if coupon.kind == "percent_off":
        off = np.minimum(p["max_off"], np.floor(value * p["rate_off"] * 100 + 0.5) / 100)
        return value >= p["min_spend"], off
    return value >= p["min_spend"], np.full(len(value), p["unit_cost"])


def money_off(coupon: Coupon) -> bool:
    """Does the coupon's cost show as a discount on the order?"""
    return coupon.kind != "gift"


def _tail(world: World, log_mean: Floats, bound: float) -> tuple[Floats, Floats]:
    """P(V >= bound) and E[V; V >= bound] of a basket V = floor + exp(N(log_mean, noise^2))."""
    sd, over = world.basket_log_noise, bound - world.basket_floor
    mean = np.exp(log_mean + sd**2 / 2)
    if over <= 0:
        return np.ones_like(log_mean), world.basket_floor + mean
    z = (log_mean - np.log(over)) / sd
    chance = ndtr(z)
    return chance, world.basket_floor * chance + mean * ndtr(z + sd)


def _expected_face(world: World, coupon: Coupon, log_mean: Floats) -> tuple[Floats, Floats]:
    """E[cost; eligible] and E[V; eligible] of one order whose owner uses the coupon."""
    p = coupon.params
    if coupon.kind == "fixed_off":  # the smallest order is larger than the coupon
        chance, value = _tail(world, log_mean, 0.0)
        return p["off"] * chance, value
    if coupon.kind == "percent_off":
        _, value = _tail(world, log_mean, p["min_spend"])
        capped, value_capped = _tail(world, log_mean, p["max_off"] / p["rate_off"])
        return p["rate_off"] * (value - value_capped) + p["max_off"] * capped, value
    bound, cost = (
        (p["threshold"], p["off"])
        if coupon.kind == "threshold_off"
        else (p["min_spend"], p["unit_cost"])
    )
    chance, value = _tail(world, log_mean, bound)
    return cost * chance, value


@dataclass(frozen=True)
class Truth:
    """Expectations of one exposure's window; column 0 is control, then the coupons."""

    conversion: Floats
    spend: Floats
    profit: Floats
    cost: Floats

    def columns(self, arms: list[str]) -> dict[str, Any]:
        """The columns of a truth table, by name."""
        out = {
            "p_conversion_control": self.conversion[:, 0],
            "spend_control": self.spend[:, 0],
            "profit_control": self.profit[:, 0],
        }
        for name, matrix in (
            ("profit", self.profit),
            ("conversion", self.conversion),
            ("spend", self.spend),
        ):
            for k, arm in enumerate(arms, start=1):
                out[f"tau_{name}_{arm}"] = matrix[:, k] - matrix[:, 0]
        for k, arm in enumerate(arms, start=1):
            out[f"cost_{arm}"] = self.cost[:, k]
        return out


def expected(world: World, traits: Traits, response: Response) -> Truth:
    """Expected conversion, spend, profit and cost of the window, under control and each coupon.

    Profit is the sum over order lines of `amount - (1 - margin) (amount + discount)`, less contact
    and less coupon costs that are not a discount. An order of list value V is marked down by a
    share of V, sends one of several lines back unless a coupon was used on it, and is followed by
    `further` orders of the same kind that no coupon touches.
    """
    m = world.margin_rate
    down = traits.deal * world.deal_line_share * (sum(world.deal_depth) / 2)
    # E[1 / L; L >= 2] for L = 1 + Poisson: the returned line's share of the order
    returned = (
        traits.returns
        * (-np.expm1(-traits.lines) / traits.lines - np.exp(-traits.lines))
        * (1 - down)
    )
    _, value = _tail(world, traits.basket, 0.0)
    spend_plain = value * (1 - down - returned)
    profit_plain = value * (m - down - m * returned)

    shape = response.p.shape
    spend, profit, cost = np.empty(shape), np.empty(shape), np.zeros(shape)
    spend[:, 0] = response.p[:, 0] * (1 + traits.further) * spend_plain
    profit[:, 0] = response.p[:, 0] * (1 + traits.further) * profit_plain
    for k, coupon in enumerate(world.coupons, start=1):
        p = response.p[:, k]
        won = np.maximum(p - response.p[:, 0], 0.0)
        # orders on which the owner means to use the coupon: those that come anyway by habit,
        # those that it won always
        used = (p - won) * response.redeem_anyway + won
        log_mean = traits.basket + response.stretch[:, k]
        _, value = _tail(world, log_mean, 0.0)
        face, value_eligible = _expected_face(world, coupon, log_mean)
        kept = p * value - used * value_eligible  # list value of orders that may come back
        off = used * face if money_off(coupon) else np.zeros(len(p))
        cost[:, k] = world.contact_cost + used * face
        spend[:, k] = (
            p * value * (1 - down) - off - returned * kept + p * traits.further * spend_plain
        )
        profit[:, k] = (
            p * value * (m - down)
            - m * returned * kept
            + p * traits.further * profit_plain
            - used * face
            - world.contact_cost
        )
    return Truth(conversion=response.p, spend=spend, profit=profit, cost=cost)
