"""One row of features per (customer, moment): the one way from tables to numbers.

Training, scoring and the snapshot all come through `build_features`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa

from features.config import Config
from features.grains import Facts, Workbench
from features.registry import (
    COLUMNS,
    Feature,
    available,
    check_names,
    closure,
    feature_names,
    get,
)
from features.relations import RELATIONS
from features.spine import Scratch, load_spine
from features.tables import Tables

if TYPE_CHECKING:
    from features.frozen import FrozenValues

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureFrame:
    """Features of a spine.

    frame: row i belongs to row i of the spine; columns are the feature names, then the given
    columns of the spine. Numbers are float64 with NaN for NULL, texts are objects with None.
    missing: features that are NULL because a table they need is absent.
    """

    frame: pd.DataFrame
    missing: tuple[str, ...]


def build_features(
    tables: Tables,
    spine: pd.DataFrame,
    names: Sequence[str] | None,
    config: Config,
    frozen: FrozenValues,
) -> FeatureFrame:
    """Features of each row of the spine, from rows strictly before its moment.

    Args:
        tables: the source's tables.
        spine: columns customer_id and as_of (UTC), and any of the columns `features.given`;
            rows may repeat, and a customer may have many moments.
        names: features in the order wanted; None: what `features.set` says.
        config: time zone, windows, offers.
        frozen: population values, fitted earlier.

    Raises:
        ConfigError: an unknown feature name.
        DataError: the spine lacks a column or a value.
    """
    wanted = feature_names(config) if names is None else check_names(names, "names")
    present = present_tables(tables, config)
    computed = [f for f in closure(wanted) if available(f.name, present)]
    missing = tuple(name for name in wanted if not available(name, present))
    if missing:
        log.info("features without their table, NULL: %s", ", ".join(missing))

    columns: dict[str, pd.Series[Any]] = {}
    if computed:
        with Scratch(tables.con) as scratch:
            loaded = load_spine(spine, config.timezone, scratch)
            work = Workbench(tables, loaded, config, frozen, scratch)
            columns = compute(work, computed)
    for name in wanted:
        if name in missing:
            columns[name] = _null(get(name), len(spine))
    data = {name: columns[name] for name in wanted}
    data |= {n: spine[n].reset_index(drop=True) for n in config.features.given if n in spine}
    frame = pd.DataFrame(data, index=pd.RangeIndex(len(spine)))
    return FeatureFrame(frame, missing)


def present_tables(tables: Tables, config: Config) -> set[str]:
    """What a feature may need that is there: tables, columns, sections of the configuration."""
    names = ("transactions", "exposures", "events", "customers")
    present = {name for name in names if getattr(tables, name) is not None}
    if "transactions" in present:
        present |= set(COLUMNS) - tables.absent
    sections = {
        "offers": config.offers,
        "stage_clocks": config.stage_clocks,
        "holidays": config.features.holidays,
    }
    return present | {name for name, value in sections.items() if value}


def compute(work: Workbench, features: Sequence[Feature]) -> dict[str, pd.Series[Any]]:
    """Columns of features (a `closure`, all of whose tables are present) in the spine's order."""
    table = _assemble(work, features).to_pyarrow().sort_by("row")
    return {f.name: _column(table[f.name], f) for f in features}


def _assemble(work: Workbench, features: Sequence[Feature]) -> ir.Table:
    """Join one aggregate per relation to the spine, then compute features of features."""
    wide = work.spine.rows.select("row", "today")
    for of in dict.fromkeys(f.of for f in features if f.of != "features"):
        facts = Facts(RELATIONS[of](work), work.frozen, work.config)
        own = [f for f in features if f.of == of]
        values = facts.table.group_by("row").agg(**{f.name: f.build(facts) for f in own})
        values = work.scratch.keep(values).rename(_row="row")
        wide = wide.left_join(values, wide.row == values._row).drop("_row")
        # A customer without any fact has no row in the aggregate.
        wide = _filled(wide, own)
    # One after the other: a feature may use the one before it.
    for f in features:
        if f.of == "features":
            wide = wide.mutate(**{f.name: f.build(Facts(wide, work.frozen, work.config))})
            wide = _filled(wide, [f])
    return wide


def _filled(wide: ir.Table, features: Sequence[Feature]) -> ir.Table:
    return wide.mutate(
        **{f.name: wide[f.name].fill_null(f.none) for f in features if f.none is not None}
    )


def _column(values: pa.ChunkedArray, f: Feature) -> pd.Series[Any]:
    if f.dtype == "text":
        return pd.Series(values.to_pylist(), dtype=object)
    numbers = values.cast(pa.float64(), safe=False).to_numpy()
    return pd.Series(np.array(numbers, dtype=np.float64))


def _null(f: Feature, n: int) -> pd.Series[Any]:
    if f.dtype == "text":
        return pd.Series([None] * n, dtype=object)
    return pd.Series(np.full(n, np.nan))
