"""One row of features per (customer, moment): the one way from tables to numbers.

Training, scoring and the snapshot all come through `build_features`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.config import Config
from features.engines import on_engine
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
# Order lines times moments of one pass; more are built customer by customer in several.
PART_LINES = 16_000_000


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
    parts = list(build_parts(tables, spine, names, config, frozen))
    if len(parts) == 1:
        return parts[0][1]
    names = [str(name) for name in parts[0][1].frame]
    columns = {name: _together(name, parts, len(spine)) for name in names}
    return FeatureFrame(_framed(columns, len(spine)), parts[0][1].missing)


def build_parts(
    tables: Tables,
    spine: pd.DataFrame,
    names: Sequence[str] | None,
    config: Config,
    frozen: FrozenValues,
) -> Iterator[tuple[npt.NDArray[np.int64], FeatureFrame]]:
    """As `build_features`, some rows of the spine at a time: which (positions), and theirs.

    Each part needs a bounded memory; a customer's rows are in one part, in the spine's order. The
    parts follow the ids of the customers.
    """
    wanted = feature_names(config) if names is None else check_names(names, "names")
    present = present_tables(tables, config)
    computed = [f for f in closure(wanted) if available(f.name, present)]
    missing = tuple(name for name in wanted if not available(name, present))
    if missing:
        log.info("features without their table, NULL: %s", ", ".join(missing))
    there = on_engine(tables, config) if computed else tables
    for rows in _parts(tables, spine):
        own = spine.iloc[rows]
        found = _build_part(there, own, computed, config, frozen) if computed else {}
        data = {n: _null(get(n), len(own)) if n in missing else found[n] for n in wanted}
        data |= {n: own[n].reset_index(drop=True) for n in config.features.given if n in own}
        yield rows, FeatureFrame(_framed(data, len(own)), missing)


def _framed(columns: Mapping[str, pd.Series[Any]], size: int) -> pd.DataFrame:
    # Not copied side by side into one block: columns are used one by one.
    return pd.DataFrame(columns, index=pd.RangeIndex(size), copy=False)


def _parts(tables: Tables, spine: pd.DataFrame) -> list[npt.NDArray[np.int64]]:
    """Rows of the spine by parts that fit into memory; a customer's rows stay together.

    The customers of a part follow each other by id: so their lines lie together (`features.lines`).
    """
    every = np.arange(len(spine), dtype=np.int64)
    if tables.transactions is None or len(spine) == 0 or "customer_id" not in spine:
        return [every]
    lines = int(tables.transactions.count().to_pyarrow().as_py())
    ids = pa.array(spine["customer_id"].astype(str), type=pa.string())
    if ids.null_count == 0 and pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py():
        # As `all_customers` gives them: millions need no looking up.
        n = min(int(np.ceil(lines / PART_LINES)), len(spine))
        return np.array_split(every, max(n, 1))
    customers, known = pd.factorize(spine["customer_id"].astype(str))
    n = int(np.ceil(lines * len(spine) / max(len(known), 1) / PART_LINES))
    if n <= 1:
        return [every]
    part = np.empty(len(known), dtype=np.int64)
    order = pc.sort_indices(pa.array(known, type=pa.string())).to_numpy()
    part[order] = np.arange(len(known)) * n // len(known)
    return [rows for i in range(n) if len(rows := np.flatnonzero(part[customers] == i))]


def _build_part(
    tables: Tables,
    spine: pd.DataFrame,
    features: Sequence[Feature],
    config: Config,
    frozen: FrozenValues,
) -> dict[str, pd.Series[Any]]:
    with Scratch(tables.con) as scratch:
        loaded = load_spine(spine, config.timezone, scratch)
        return compute(Workbench(tables, loaded, config, frozen, scratch), features)


def _together(
    name: str, parts: Sequence[tuple[npt.NDArray[np.int64], FeatureFrame]], size: int
) -> pd.Series[Any]:
    """One column of all parts, which are emptied of it."""
    found = [(rows, part.frame.pop(name)) for rows, part in parts]
    whole = np.empty(size, dtype=np.result_type(*(values.to_numpy().dtype for _, values in found)))
    for rows, values in found:
        whole[rows] = values.to_numpy()
    return pd.Series(whole, dtype=whole.dtype)


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
    columns: dict[str, pd.Series[Any]] = {}
    for of in dict.fromkeys(f.of for f in features if f.of != "features"):
        facts = Facts(RELATIONS[of](work), work.frozen, work.config)
        own = [f for f in features if f.of == of]
        found = facts.table.group_by("row").agg(**{f.name: f.build(facts) for f in own})
        table = work.scratch.fetch(found)
        row = table["row"].to_numpy()
        # A customer without any fact has no row in the aggregate.
        columns |= {f.name: _placed(table[f.name], row, f, work.spine.size) for f in own}
    further = [f for f in features if f.of == "features"]
    if further:
        columns |= _of_features(work, further, columns)
    return columns


def _of_features(
    work: Workbench, features: Sequence[Feature], columns: Mapping[str, pd.Series[Any]]
) -> dict[str, pd.Series[Any]]:
    """Features of features of the same row, one after the other: one may use the one before it."""
    known = {n: pa.array(v, from_pandas=True) for n, v in columns.items() if v.dtype != object}
    row = np.arange(work.spine.size)
    wide = work.scratch.load(pa.table({"row": row, "today": work.spine.today, **known}))
    for f in features:
        wide = wide.mutate(**{f.name: f.build(Facts(wide, work.frozen, work.config))})
        if f.none is not None:
            wide = wide.mutate(**{f.name: wide[f.name].fill_null(f.none)})
    table = work.scratch.fetch(wide.select("row", *(f.name for f in features)))
    row = table["row"].to_numpy()
    return {f.name: _placed(table[f.name], row, f, work.spine.size) for f in features}


def _placed(
    values: pa.ChunkedArray, row: npt.NDArray[np.int64], f: Feature, size: int
) -> pd.Series[Any]:
    """A column in the order of the spine; the feature's value of none where there is no row."""
    if f.dtype == "text":
        texts = np.full(size, None, dtype=object)
        texts[row] = values.to_numpy(zero_copy_only=False)
        return pd.Series(texts, dtype=object)
    none = np.nan if f.none is None else float(f.none)
    numbers = np.full(size, none)
    found = values.cast(pa.float64(), safe=False).to_numpy()
    numbers[row] = found if f.none is None else np.where(np.isnan(found), none, found)
    return pd.Series(numbers)


def _null(f: Feature, n: int) -> pd.Series[Any]:
    if f.dtype == "text":
        return pd.Series([None] * n, dtype=object)
    return pd.Series(np.full(n, np.nan))
