"""The simulated shop: the embedded default source, made on first use and then reused.

The tables are Parquet files in the canonical format, read like anybody's; what is true of every
customer is written beside them, in a folder that no source reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.config import Config
from features.errors import ConfigError
from features.problems import Problems
from features.sources import shop_history, shop_world
from features.sources.base import source
from features.sources.files import FilesSource
from features.sources.shop_history import (
    CELL,
    DAY,
    History,
    Lines,
    assignment,
    draw_lines,
    simulate,
    start_of,
)
from features.sources.shop_variants import numbered_world
from features.sources.shop_world import Floats, Ints, Truth, World
from features.tables import Tables

CATEGORIES = (
    "bakery",
    "beauty",
    "books",
    "coffee",
    "fashion",
    "garden",
    "home",
    "kids",
    "pets",
    "produce",
    "sports",
    "wine",
)
PRODUCTS = 40  # per category
REGIONS = ("north", "south", "east", "west", "centre")
PAYMENTS = ("card", "wallet", "invoice", "cash")
TABLES = ("transactions", "exposures", "customers", "events")
NOTE = "The shop is simulated: its customers and their purchases are made up."


LOG = logging.getLogger("features.sources")


@source("simulated")
class SimulatedSource:
    """`source.kind: simulated`. Size and seed come from `source.customers` and `source.seed`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def tables(self, problems: Problems | None = None) -> Tables:
        """The checked tables of the shop; it is made first if it is not there yet.

        Raises ConfigError when an offer has the name of one of the shop's coupons and is another.
        """
        config = self.config
        world = numbered_world(config.source.world)
        _check_offers(config, world)
        folder = shop_folder(config)
        if not _complete(folder):
            LOG.info("making the simulated shop of %d customers", config.source.customers)
            make_shop(folder, config.source.customers, config.source.seed, world)
        there = config.source.model_copy(update={"path": str(folder / "tables")})
        files = FilesSource(config.model_copy(update={"source": there}))
        tables = files.tables(problems)
        return replace(tables, simulated=True, notes=(NOTE, *tables.notes))


def shop_folder(config: Config) -> Path:
    """Where the shop of this configuration is kept, below the working directory."""
    world = numbered_world(config.source.world)
    digest = shop_digest(world, config.source.customers, config.source.seed)
    return Path("data") / "simulated" / digest


def _complete(folder: Path) -> bool:
    files = ["shop.json", *(f"tables/{name}.parquet" for name in TABLES)]
    return all((folder / file).is_file() for file in files)


def _check_offers(config: Config, world: World) -> None:
    """The truth holds for the shop's own coupons: an offer of the same name must be the same."""
    coupons = {coupon.coupon_id: coupon for coupon in world.coupons}
    for i, offer in enumerate(config.offers):
        coupon = coupons.get(offer.coupon_id)
        if coupon is None:
            continue
        for key, expected, found in (
            ("kind", coupon.kind, offer.kind),
            ("params", coupon.params, offer.params),
            ("contact_cost", world.contact_cost, offer.contact_cost),
        ):
            if expected != found:
                raise ConfigError(
                    f"offers.{i}.{key}",
                    expected=f"{expected}, as in the simulated shop's coupon {offer.coupon_id}",
                    found=str(found),
                    remedy="Copy the offer from configs/demo.yaml, or give it another coupon_id.",
                )


def shop_digest(world: World, customers: int, seed: int) -> str:
    """Name of a shop: parameters, size, seed and the code that makes it (12 hex digits)."""
    digest = hashlib.sha256(json.dumps([asdict(world), customers, seed], sort_keys=True).encode())
    for module in (shop_world.__file__, shop_history.__file__, __file__):
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:12]


def make_shop(path: Path, customers: int, seed: int, world: World | None = None) -> None:
    """Write a shop to the folder `path`: tables/, truth/ and shop.json. All there or nothing."""
    world = world or World()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for name, table in shop_tables(customers, seed, world).items():
            file = aside / f"{name}.parquet"
            file.parent.mkdir(exist_ok=True)
            # Expectations hardly ever repeat: a dictionary of them only costs time.
            repeats = name.startswith("tables/")
            pq.write_table(
                table, file, compression="zstd", store_schema=False, use_dictionary=repeats
            )
        about = {"customers": customers, "seed": seed, "as_of": world.end, "world": asdict(world)}
        (aside / "shop.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        aside.chmod(0o755)
        try:
            aside.rename(path)
        except OSError:
            if not _complete(path):  # else another process was faster
                shutil.rmtree(path)
                aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def shop_tables(customers: int, seed: int, world: World | None = None) -> dict[str, pa.Table]:
    """The shop as Arrow tables by path: tables/transactions, ..., truth/customers."""
    world = world or World()
    rng = np.random.default_rng([seed, customers])
    history = simulate(world, customers, rng)
    lines = draw_lines(world, history, len(CATEGORIES), PRODUCTS, rng)
    ids = _ids("c", np.arange(customers), 6)
    exposures = _exposures(world, history, ids)
    return {
        "tables/transactions": _transactions(world, history, lines, ids, rng),
        "tables/exposures": exposures,
        "tables/customers": _customers(world, history, ids, rng),
        "tables/events": _events(world, history, exposures, rng),
        "truth/exposures": _truth_exposures(world, history, exposures),
        "truth/customers": pa.table(
            {"customer_id": ids, **history.truth.columns([c.coupon_id for c in world.coupons])}
        ),
    }


def _ids(prefix: str, numbers: Ints, width: int) -> pa.Array:
    text = pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), width, "0")
    return pc.binary_join_element_wise(prefix, text, "")


def _pick(words: Sequence[str | None], codes: Ints) -> pa.Array:
    return pa.array(list(words), pa.string()).take(pa.array(codes))


def _times(world: World, seconds: Ints) -> pa.Array:
    start = start_of(world).astype("datetime64[us]")
    return pa.array(start + seconds.astype("timedelta64[s]"), pa.timestamp("us", tz="UTC"))


def _hash(numbers: Ints, salt: int) -> Floats:
    """A fixed uniform number per whole number: habits that need no place in the traits."""
    mixed = (numbers.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _transactions(
    world: World, history: History, lines: Lines, ids: pa.Array, rng: np.random.Generator
) -> pa.Table:
    orders = history.orders
    who = orders.customer
    online = rng.random(len(who)) < np.where(_hash(who, 1) < 0.45, 0.85, 0.15)
    app = _hash(who, 2) < 0.5
    channel = np.where(online, np.where(app, 0, 1), 2)
    store = np.where(online, 0, 1 + (_hash(who, 3) * 24).astype(np.int64))
    usual = (_hash(who, 4) * 3).astype(np.int64)
    cash = ~online & (rng.random(len(who)) < 0.25)
    payment = np.where(cash, 3, usual)
    o = lines.order
    store_names = [None, *(f"s{i:02d}" for i in range(1, 25))]
    names = [f"{c}-{i:02d}" for c in CATEGORIES for i in range(1, PRODUCTS + 1)]
    return pa.table(
        {
            "line_id": _ids("l", np.arange(1, len(o) + 1), 7),
            "order_id": _ids("o", np.arange(1, len(who) + 1), 7).take(pa.array(o)),
            "customer_id": ids.take(pa.array(who[o])),
            "transacted_at": _times(world, lines.at),
            "amount": lines.amount / 100.0,
            "discount": lines.discount / 100.0,
            "product_id": _pick(names, lines.category * PRODUCTS + lines.product),
            "category": _pick(CATEGORIES, lines.category),
            "quantity": lines.quantity.astype(np.float64),
            "channel": _pick(("app", "web", "store"), channel[o]),
            "store_id": _pick(store_names, store[o]),
            "payment_method": _pick(PAYMENTS, payment[o]),
            "coupon_id": _pick([None, *(c.coupon_id for c in world.coupons)], orders.arm[o]),
        }
    )


def _exposures(world: World, history: History, ids: pa.Array) -> pa.Table:
    arms = ("control", *(c.coupon_id for c in world.coupons))
    customer = np.concatenate([w.customer for w in history.waves])
    arm = np.concatenate([w.arm for w in history.waves])
    cell = np.repeat([w.cell for w in history.waves], [len(w.arm) for w in history.waves])
    number = np.repeat(np.arange(len(history.waves)), [len(w.arm) for w in history.waves])
    used = history.orders.exposure >= 0
    cost = np.where(arm > 0, world.contact_cost, 0.0)
    cost[history.orders.exposure[used]] += history.orders.face[used]
    return pa.table(
        {
            "exposure_id": _ids("e", np.arange(1, len(arm) + 1), 6),
            "customer_id": ids.take(pa.array(customer)),
            "campaign_id": _pick([f"wave{i + 1}" for i in range(len(history.waves))], number),
            "assigned_at": _times(world, cell * CELL),
            "arm": _pick(arms, arm),
            "assignment_prob": assignment(world)[arm],
            "cost": np.round(cost, 2),
        }
    )


def _customers(world: World, history: History, ids: pa.Array, rng: np.random.Generator) -> pa.Table:
    n = len(history.joined)
    channels = [["email"], ["email", "push"], ["email", "sms"], ["email", "push", "sms"]]
    chosen = rng.choice(4, n, p=[0.35, 0.3, 0.15, 0.2])
    listed = pa.array([",".join(c) for c in channels]).take(pa.array(chosen))
    return pa.table(
        {
            "customer_id": ids,
            "joined_at": _times(world, history.joined),
            "birth_month": rng.integers(1, 13, n),
            "gender": _pick(["f", "m", None], rng.choice(3, n, p=[0.5, 0.42, 0.08])),
            "region": _pick(REGIONS, rng.choice(5, n, p=[0.3, 0.25, 0.2, 0.15, 0.1])),
            "marketing_consent": history.consent,
            "consented_channels": pc.if_else(pa.array(history.consent), listed, ""),
        }
    )


def _events(
    world: World, history: History, exposures: pa.Table, rng: np.random.Generator
) -> pa.Table:
    orders = history.orders
    arm = np.concatenate([w.arm for w in history.waves])
    customer = np.concatenate([w.customer for w in history.waves])
    sent_at = np.repeat([w.cell for w in history.waves], [len(w.arm) for w in history.waves]) * CELL
    sent_at = sent_at + 9 * 3600
    offers = np.flatnonzero(arm > 0)
    opened = offers[rng.random(len(offers)) < 0.15 + 0.4 * _hash(customer[offers], 5)]
    opened_at = sent_at[opened] + (rng.exponential(0.8, len(opened)).clip(0, 12) * DAY).astype(int)
    clicks = rng.random(len(opened)) < 0.2
    clicked, clicked_at = opened[clicks], opened_at[clicks] + rng.integers(5, 300, clicks.sum())
    used = np.flatnonzero(orders.exposure >= 0)
    # the latest exposure of a customer who unsubscribed is the one that did it
    left = np.flatnonzero(history.unsubscribed >= 0)
    latest = np.zeros(len(history.joined), np.int64)
    latest[customer[offers]] = offers
    rows = np.concatenate([opened, clicked, orders.exposure[used], latest[left]])
    at = np.concatenate([opened_at, clicked_at, orders.at[used], history.unsubscribed[left]])
    kind = np.repeat([0, 1, 2, 3], [len(opened), len(clicked), len(used), len(left)])
    value = np.concatenate(
        [np.full(len(opened) + len(clicked), np.nan), orders.face[used], np.full(len(left), np.nan)]
    )
    order = np.lexsort((rows, kind, at))
    rows, at, kind, value = rows[order], at[order], kind[order], value[order]
    coupon = np.where(kind == 3, 0, arm[rows])
    return pa.table(
        {
            "event_id": _ids("v", np.arange(1, len(rows) + 1), 6),
            "customer_id": exposures["customer_id"].take(pa.array(rows)),
            "campaign_id": exposures["campaign_id"].take(pa.array(rows)),
            "type": _pick(("opened", "clicked", "redeemed", "unsubscribed"), kind),
            "occurred_at": _times(world, at),
            "coupon_id": _pick([None, *(c.coupon_id for c in world.coupons)], coupon),
            "value": pa.array(value, from_pandas=True),
        }
    )


def _truth_exposures(world: World, history: History, exposures: pa.Table) -> pa.Table:
    truth = Truth(
        *(
            np.concatenate([getattr(w.truth, name) for w in history.waves])
            for name in ("conversion", "spend", "profit", "cost")
        )
    )
    keys = {n: exposures[n] for n in ("exposure_id", "customer_id", "assigned_at", "arm")}
    return pa.table({**keys, **truth.columns([c.coupon_id for c in world.coupons])})
