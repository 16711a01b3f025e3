"""Two years of the simulated shop, fortnight by fortnight: orders, campaign waves, and the truth.

Within a fortnight everything is vectorised over customers; what a wave induces or suppresses
changes the state in which the next fortnight finds the customer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.sources.shop_world import (
    CELL_DAYS,
    Bools,
    Floats,
    Ints,
    State,
    Traits,
    Truth,
    World,
    draw_traits,
    expected,
    face_cost,
    money_off,
    respond,
)

DAY = 86_400
CELL = CELL_DAYS * DAY  # seconds
UNSUBSCRIBED = 0.004  # per contact


@dataclass(frozen=True)
class Orders:
    """One row per order; times in seconds since the first fortnight."""

    customer: Ints
    at: Ints
    cell: Ints
    value: Floats  # list value, two decimals
    arm: Ints  # code of the coupon used, 0 for none
    face: Floats  # what the coupon came to cost
    exposure: Ints  # row of the exposure whose coupon was used, -1 for none


@dataclass(frozen=True)
class Wave:
    """One campaign: its exposures and their truth."""

    cell: int
    customer: Ints
    arm: Ints
    truth: Truth


@dataclass(frozen=True)
class History:
    traits: Traits
    joined: Ints  # seconds since the first fortnight, negative before it
    consent: Bools
    unsubscribed: Ints  # seconds, -1 for never
    orders: Orders
    waves: list[Wave]
    truth: Truth  # of every customer, at the end


def start_of(world: World) -> np.datetime64:
    """UTC start of the first fortnight."""
    return np.datetime64(world.end, "s") - np.timedelta64(world.cells * CELL, "s")


def assignment(world: World) -> Floats:
    """Probability of control and of each coupon, in a wave."""
    k = len(world.coupons)
    return np.array([world.control_share] + [(1 - world.control_share) / k] * k)


def _times(traits: Traits, who: Ints, rng: np.random.Generator) -> Ints:
    """Seconds into the fortnight, by the customer's weekday habit and the hours of the day."""
    n = len(who)
    weekend = rng.random(n) < traits.weekend[who]
    day = np.where(weekend, 5 + rng.integers(0, 2, n), rng.integers(0, 5, n))
    day += 7 * rng.integers(0, 2, n)
    lunch = rng.random(n) < np.where(weekend, 0.2, 0.35)
    hour = np.where(lunch, rng.normal(12.5, 0.8, n), rng.normal(18.5, 2.0, n))
    seconds = np.clip(hour, 6.0, 23.9) * 3600
    return day * DAY + seconds.astype(np.int64)


def _doy(world: World, cell: int) -> float:
    day = (start_of(world) + np.timedelta64(cell * CELL, "s")).astype("datetime64[D]")
    return float((day - day.astype("datetime64[Y]")).astype(int)) + CELL_DAYS / 2


class _Shop:
    """The moving state of all customers."""

    def __init__(self, world: World, n: int, rng: np.random.Generator) -> None:
        self.world, self.n, self.rng = world, n, rng
        self.traits = draw_traits(world, n, rng)
        existing = rng.random(n) < world.existing_share
        # Newcomers arrive in a fortnight of their own; with the order that brings them, or without.
        self.arrival = np.where(existing, -1, rng.integers(0, world.cells, n))
        self.brought = ~existing & (rng.random(n) >= world.registered_share)
        self.joined = np.where(
            existing,
            -rng.integers(1, 900 * DAY, n),
            self.arrival * CELL + rng.integers(6 * 3600, CELL - 6 * 3600, n),
        )
        self.last = np.where(existing, -rng.random(n) * self.traits.interval * DAY, np.nan)
        self.mood = rng.standard_normal(n) * 0.35
        # Some of those who were customers at the start have gone already.
        self.alive = ~(existing & (rng.random(n) < 0.10))
        self.consent = rng.random(n) < world.consent_share
        self.unsubscribed = np.full(n, -1)
        self.offered = np.full(n, -99)  # fortnight of the last offer

    def state(self, cell: int) -> State:
        overdue = (cell * CELL - self.last) / DAY / self.traits.interval
        return State(
            overdue=overdue,
            mood=self.mood,
            alive=self.alive,
            contacted=cell - self.offered <= 28 // CELL_DAYS,
        )

    def step(self, cell: int) -> None:
        rng, world = self.rng, self.world
        self.mood = world.mood_memory * self.mood + world.mood_sd * rng.standard_normal(self.n)
        self.alive &= ~((rng.random(self.n) < self.traits.drop_out) & (self.arrival < cell))


def simulate(world: World, n: int, rng: np.random.Generator) -> History:
    """Run the shop from its first fortnight to its end, for `n` customers."""
    shop = _Shop(world, n, rng)
    parts: list[tuple[Ints, ...]] = []
    values: list[Floats] = []
    waves: list[Wave] = []
    exposures = 0
    for cell in range(world.cells):
        response = respond(world, shop.traits, shop.state(cell), _doy(world, cell))
        here = shop.arrival < cell
        p = np.where(here, response.p[:, 0], 0.0)
        p[(shop.arrival == cell) & shop.brought] = 1.0
        arm = np.zeros(n, np.int64)
        row = np.full(n, -1)
        if cell in world.waves:
            able = np.flatnonzero(here & shop.consent & (shop.unsubscribed < 0))
            size = min(len(able), round(world.wave_share * n))
            who = np.sort(rng.choice(able, size, replace=False))
            code = rng.choice(len(world.coupons) + 1, size, p=assignment(world))
            arm[who], row[who] = code, exposures + np.arange(size)
            exposures += size
            truth = expected(world, shop.traits.take(who), response.take(who))
            waves.append(Wave(cell, who, code, truth))
            p[who] = response.p[who, code]
        u = rng.random(n)
        buyers = np.flatnonzero(u < p)
        # A coupon is used by habit on an order that comes anyway, and always on one that it won.
        means = rng.random(n) < response.redeem_anyway
        means |= u >= response.p[:, 0]
        means &= (arm > 0) & (row >= 0)
        further = np.repeat(buyers, rng.poisson(shop.traits.further[buyers]))
        who = np.concatenate([buyers, further])
        first = np.arange(len(who)) < len(buyers)
        stretch = np.where(first, response.stretch[who, arm[who]], 0.0)
        noise = world.basket_log_noise * rng.standard_normal(len(who))
        value = world.basket_floor + np.exp(shop.traits.basket[who] + stretch + noise)
        at = cell * CELL + _times(shop.traits, who, rng)
        new = (shop.arrival[who] == cell) & first
        at[new] = np.maximum(shop.joined[who[new]] + 60, cell * CELL)
        at = np.minimum(at, (cell + 1) * CELL - 3600)
        late = shop.arrival[who] == cell
        at[late] = np.maximum(at[late], shop.joined[who[late]] + 60)
        used = np.where(first & means[who], arm[who], 0)
        parts.append((who, at, np.full(len(who), cell), used, np.where(used > 0, row[who], -1)))
        values.append(np.floor(value * 100 + 0.5) / 100)
        np.fmax.at(shop.last, who, at.astype(np.float64))
        shop.offered[arm > 0] = cell
        gone = (arm > 0) & (rng.random(n) < UNSUBSCRIBED)
        shop.unsubscribed[gone] = cell * CELL + rng.integers(3600, CELL, int(gone.sum()))
        shop.step(cell)
    orders = _use(
        world,
        [np.concatenate(c) for c in zip(*parts, strict=True)],
        np.concatenate(values),
    )
    final = respond(world, shop.traits, shop.state(world.cells), _doy(world, world.cells))
    return History(
        traits=shop.traits,
        joined=shop.joined,
        consent=shop.consent,
        unsubscribed=shop.unsubscribed,
        orders=orders,
        waves=waves,
        truth=expected(world, shop.traits, final),
    )


def _use(world: World, columns: list[Ints], value: Floats) -> Orders:
    """Orders in the order of time; a coupon counts as used where the order is eligible."""
    customer, at, cell, arm, exposure = columns
    face = np.zeros(len(value))
    for k, coupon in enumerate(world.coupons, start=1):
        rows = np.flatnonzero(arm == k)
        eligible, cost = face_cost(coupon, value[rows])
        face[rows] = np.where(eligible, cost, 0.0)
        arm[rows[~eligible]] = 0
    exposure[arm == 0] = -1
    by_time = np.lexsort((customer, at))
    return Orders(
        customer[by_time],
        at[by_time],
        cell[by_time],
        value[by_time],
        arm[by_time],
        face[by_time],
        exposure[by_time],
    )


@dataclass(frozen=True)
class Lines:
    """One row per order line, returns among them; money in cents."""

    order: Ints  # row of the order
    at: Ints
    amount: Ints
    discount: Ints
    quantity: Ints
    category: Ints
    product: Ints


def draw_lines(
    world: World, history: History, categories: int, products: int, rng: np.random.Generator
) -> Lines:
    """Split every order into lines, mark some down, take the coupon off, send some back."""
    orders, traits = history.orders, history.traits
    n = len(orders.customer)
    count = 1 + rng.poisson(traits.lines[orders.customer])
    order = np.repeat(np.arange(n), count)
    ends = np.cumsum(count)
    starts = ends - count
    listed = _split(
        np.rint(orders.value * 100).astype(np.int64),
        rng.gamma(2.5, 1, len(order)),
        order,
        starts,
        ends,
    )
    dealing = rng.random(n) < traits.deal[orders.customer]
    down = dealing[order] & (rng.random(len(order)) < world.deal_line_share)
    depth = rng.uniform(*world.deal_depth, len(order))
    marked = np.where(down, np.rint(listed * depth), 0).astype(np.int64)
    takes_off = np.array([False] + [money_off(c) for c in world.coupons])
    off = np.where(takes_off[orders.arm], np.rint(orders.face * 100), 0).astype(np.int64)
    coupon = _split(off, (listed - marked).astype(np.float64), order, starts, ends)
    discount = np.minimum(marked + coupon, listed)
    who = orders.customer[order]
    quantity = 1 + (rng.random(len(order)) < 0.15) + (rng.random(len(order)) < 0.05)
    category, product = _goods(traits, who, listed / quantity, categories, products, rng)
    # The last line of an order of several comes back, within the same fortnight.
    back = (count > 1) & (orders.arm == 0) & (rng.random(n) < traits.returns[orders.customer])
    line = ends[back] - 1
    end = (orders.cell[back] + 1) * CELL - 1
    back_at = orders.at[back] + np.minimum(
        end - orders.at[back], (rng.uniform(0.5, 12, int(back.sum())) * DAY).astype(np.int64)
    )
    amount = listed - discount
    at = np.concatenate([orders.at[order], back_at])
    rows = np.concatenate([np.arange(len(order)), line])
    sign = np.concatenate([np.ones(len(order), np.int64), -np.ones(len(line), np.int64)])
    by_time = np.argsort(at, kind="stable")
    rows, sign = rows[by_time], sign[by_time]
    return Lines(
        order=order[rows],
        at=at[by_time],
        amount=amount[rows] * sign,
        discount=np.where(sign > 0, discount[rows], 0),
        quantity=quantity[rows] * sign,
        category=category[rows],
        product=product[rows],
    )


def _split(total: Ints, weight: Floats, group: Ints, starts: Ints, ends: Ints) -> Ints:
    """Split whole cents of each group over its rows in proportion to `weight`; sums are exact."""
    cum = np.cumsum(weight)
    before = np.where(starts > 0, cum[starts - 1], 0.0)
    share = (cum - before[group]) / (cum[ends - 1] - before)[group]
    upto = np.rint(total[group] * np.clip(share, 0.0, 1.0)).astype(np.int64)
    upto[ends - 1] = total
    parts = np.diff(upto, prepend=0)
    parts[starts] = upto[starts]
    return parts


def _goods(
    traits: Traits,
    who: Ints,
    price: Floats,
    categories: int,
    products: int,
    rng: np.random.Generator,
) -> tuple[Ints, Ints]:
    """Category by the customer's tastes; product by price, or the customer's usual one."""
    n = len(who)
    home = who * 7919 % categories
    stride = np.array([1, 5, 7, 11])[who * 104_729 % 4]
    rank = (traits.breadth[who] * rng.random(n) ** 1.2).astype(np.int64)
    category = (home + stride * rank) % categories
    place = np.log(np.maximum(price, 100.0)) - np.log(1600.0) + 0.35 * rng.standard_normal(n)
    by_price = np.clip(products / (1 + np.exp(-1.8 * place)), 0, products - 1).astype(np.int64)
    usual = (who * 31 + category * 17) % products
    habit = 0.15 + 0.6 * (who * 2_654_435_761 % 1000) / 1000
    return category.astype(np.int64), np.where(rng.random(n) < habit, usual, by_price)
