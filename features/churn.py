"""Probabilities of churn that a model gave, for the label churn_warning: read from a file.

Features know no models: what a model said comes as a column, for instance of a decisions file.
"""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from features.errors import DataError
from features.spine import naive_utc

COLUMN = "churn_probability"
NO_MODEL = "churn_warning follows the lifecycle stage alone: no probabilities (--churn) are given"


def add_churn_argument(parser: ArgumentParser) -> None:
    """The option `--churn` of a command that labels customers."""
    parser.add_argument(
        "--churn",
        metavar="FILE",
        help=f"customer_id and {COLUMN} as .parquet or .csv, for instance a decisions file",
    )


def read_churn(path: Path, customers: pd.Series[Any], as_of: datetime) -> npt.NDArray[np.float64]:
    """(n,) probability of each of n customers; NaN of those whom the file does not name, or of
    whom it says nothing.

    A column as_of, as decisions files have, must say the moment `as_of`.

    Raises:
        DataError: no such file, other columns, another moment, a customer twice, or no probability.
    """
    where = f"--churn {path}"
    table = _read(path, where)
    said = pd.to_numeric(table[COLUMN], errors="coerce").to_numpy(dtype=np.float64)
    given = table[COLUMN].notna().to_numpy()
    ids = table["customer_id"].astype(str)
    faults = (
        (ids.duplicated().to_numpy(), "each customer once", "some twice"),
        (given & ~((said >= 0) & (said <= 1)), "probabilities from 0 to 1", "others"),
    )
    for bad, expected, found in faults:
        if bad.any():
            raise DataError(
                where,
                expected=expected,
                found=f"{found}: {int(bad.sum())} rows",
                remedy="Take the file that `python -m serving score` wrote.",
                keys=ids[bad].tolist(),
            )
    if "as_of" in table.columns:
        moment = pd.Timestamp(naive_utc(as_of), tz="UTC")
        others = pd.to_datetime(table["as_of"], utc=True, errors="coerce") != moment
        if others.any():
            raise DataError(
                where,
                expected=f"probabilities as of {moment.isoformat()}",
                found=f"{int(others.sum())} rows of another moment",
                remedy="Score as of the same moment (--as-of), or leave --churn out.",
            )
    known = pd.Series(said, index=ids.to_numpy())
    out: npt.NDArray[np.float64] = known.reindex(customers.astype(str)).to_numpy(dtype=np.float64)
    return out


def _read(path: Path, where: str) -> pd.DataFrame:
    wanted = ["customer_id", COLUMN]
    try:
        if path.suffix == ".csv":
            text = pyarrow.csv.ConvertOptions(column_types={"customer_id": pa.string()})
            table = pyarrow.csv.read_csv(path, convert_options=text)
        else:
            table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            where,
            expected="a readable Parquet or CSV file",
            found=type(error).__name__,
            remedy="Name a file that exists, with the suffix .parquet or .csv.",
        ) from None
    lacking = [name for name in wanted if name not in table.column_names]
    if lacking:
        raise DataError(
            where,
            expected=f"the columns {' and '.join(wanted)}",
            found=f"no {', '.join(lacking)}",
            remedy="Take the file that `python -m serving score` wrote with a model of churn.",
        )
    kept = [name for name in (*wanted, "as_of") if name in table.column_names]
    frame: pd.DataFrame = table.select(kept).to_pandas()
    return frame
