"""All segments and labels of a spine in one table, from one build of features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.build import build_features
from features.clock import product_stages
from features.config import Config
from features.errors import DataError
from features.frozen import FrozenValues
from features.labels import LABEL_FEATURES, labels
from features.segments import SEGMENT_FEATURES, segments
from features.tables import Tables


def segment_table(
    tables: Tables,
    spine: pd.DataFrame,
    config: Config,
    frozen: FrozenValues,
    churn: npt.NDArray[np.float64] | None = None,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Segments and labels of each row of a spine, and the features that are NULL for want of a
    table.

    Columns: customer_id, as_of, those of `segments` and `labels`, and product_stage where
    `stage_clocks` has a clock. churn: probability per row of the spine, see `labels`.

    Raises:
        DataError: there are no transactions.
    """
    if tables.transactions is None:
        raise DataError(
            "transactions",
            expected="orders, which segments are made of",
            found="no such table",
            remedy="Give a source with transactions.",
        )
    clock = next(iter(config.stage_clocks.values()), None)
    names = [*SEGMENT_FEATURES, *LABEL_FEATURES, *(["stage_clock_days"] if clock else [])]
    names = list(dict.fromkeys(names))
    keys = spine[["customer_id", "as_of"]].reset_index(drop=True)
    built = build_features(tables, keys, names, config, frozen)
    found = segments(built.frame, frozen, config.segments)
    parts = [keys, found, labels(built.frame, found["lifecycle_stage"], frozen, churn)]
    if clock is not None:
        position = built.frame["stage_clock_days"].to_numpy(dtype=np.float64)
        parts.append(pd.DataFrame({"product_stage": product_stages(position, clock)}, dtype=object))
    return pd.concat(parts, axis=1), built.missing
