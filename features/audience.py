"""Audiences: the customers who meet a filter as of a moment.

The language is in `features.audience_language` and docs/audiences.md, its evaluation in
`features.audience_facts`, named audiences in `features.audience_store`. Triggers, `eligible` of
coupons and campaign audiences use the same filters through `matches`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.audience_facts import Matches, customer_columns, match
from features.audience_language import All, AnyOf, Node, Not, filter_hash, parse
from features.audience_store import find_audience
from features.config import Config
from features.frozen import FrozenValues
from features.spine import all_customers, naive_utc
from features.tables import Tables


@dataclass(frozen=True)
class Audience:
    """The customers who meet a filter.

    ids: customer ids, sorted; count: how many; tiers: tier -> count of them, by size, empty
    without transactions; filter_hash: sha256 of the canonical filter, references resolved; as_of:
    the moment, UTC; missing: what is NULL for everyone because a table is absent.
    """

    ids: tuple[str, ...]
    count: int
    tiers: dict[str, int]
    filter_hash: str
    as_of: datetime
    missing: tuple[str, ...]


def check_filter(
    raw: Any, config: Config, tables: Tables | None = None, *, where: str = "filter"
) -> Node:
    """Parse a filter against the names that are known.

    Args:
        raw: the filter as read from YAML or JSON.
        config: offers, named audiences, score levels.
        tables: for the columns of the customers table; None: any column passes.
        where: place of the filter, for messages.

    Raises:
        ConfigError: the first mistake, with its place.
    """
    columns = None if tables is None else customer_columns(tables)
    return parse(raw, config, finder(config), columns=columns, where=where)


def finder(config: Config) -> Any:
    """How a reference is looked up: (name, place) -> the filter and its place."""

    def find(name: str, where: str) -> tuple[Any, str]:
        named = find_audience(config, name, where)
        return named.filter, named.where

    return find


def matches(
    tables: Tables,
    spine: pd.DataFrame,
    filters: Mapping[str, Any],
    config: Config,
    frozen: FrozenValues,
    churn: npt.NDArray[np.float64] | None = None,
) -> Matches:
    """Evaluate several filters at once for each row of a spine (customer_id, as_of).

    churn: calibrated probability of churn per row, where a model exists.

    Raises:
        ConfigError: the first mistake of a filter, its place beginning with the filter's name.
    """
    nodes = {name: check_filter(raw, config, tables, where=name) for name, raw in filters.items()}
    return match(tables, spine, nodes, config, frozen, churn)


def audience(
    tables: Tables,
    filter_: Any,
    as_of: datetime,
    config: Config,
    frozen: FrozenValues,
    churn: npt.NDArray[np.float64] | None = None,
    *,
    where: str = "filter",
) -> Audience:
    """The customers seen before a moment who meet a filter, from rows strictly before it.

    Args:
        tables: the source's tables.
        filter_: the filter as read from YAML or JSON.
        as_of: the moment; without a zone it is UTC.
        config: time zone, offers, named audiences, segments.
        frozen: population values, fitted earlier.
        churn: as for `matches`, a row per customer of `all_customers`.
        where: place of the filter, for messages.

    Raises:
        ConfigError: a mistake in the filter.
        DataError: nobody was seen before the moment.
    """
    node = check_filter(filter_, config, tables, where=where)
    spine = all_customers(tables, as_of, config)
    found = match(tables, spine, {"filter": node}, config, frozen, churn)
    met = found.met["filter"].to_numpy()
    ids = tuple(sorted(spine["customer_id"][met]))
    return Audience(
        ids,
        len(ids),
        tier_counts(found.tier[met]),
        filter_hash(filter_, finder(config)),
        naive_utc(as_of).replace(tzinfo=UTC),
        found.missing,
    )


def tier_counts(tiers: pd.Series[Any]) -> dict[str, int]:
    """Tier -> how many, the largest first, then by name."""
    counts = tiers.value_counts()
    return {
        str(tier): int(n) for tier, n in sorted(counts.items(), key=lambda kv: (-kv[1], str(kv[0])))
    }


def steps(node: Node, where: str = "filter") -> dict[str, Node]:
    """Every node of a parsed filter by its place, outermost first; for the preview's counts."""
    found = {where: node}
    if isinstance(node, All | AnyOf):
        head = "all" if isinstance(node, All) else "any"
        for i, child in enumerate(node.nodes):
            found |= steps(child, f"{where}.{head}[{i}]")
    elif isinstance(node, Not):
        found |= steps(node.node, f"{where}.not")
    return found
