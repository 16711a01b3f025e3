"""Files that commands write: aside and then renamed, so that nobody reads half a file."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError

PARTS = 16


def write_aside(path: Path, write: Callable[[Path], object], where: str = "--out") -> None:
    """Let `write` make the file under another name, then rename it; folders are made.

    Raises:
        ConfigError: it cannot be written; `where` says which argument or key names it.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        aside.replace(path)
    except OSError as error:
        raise ConfigError(
            where,
            expected="a file that can be written",
            found=f"{path}: {error.strerror or error}",
            remedy="Name another file.",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where a folder is a file, nothing was left
            aside.unlink(missing_ok=True)


def write_parquet(frame: pd.DataFrame, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a table as Parquet with these metadata; columns of NULLs alone are text.

    Raises:
        ConfigError: it cannot be written.
    """
    table = _arrow(frame, metadata)
    write_aside(path, lambda aside: pq.write_table(table, aside))


def write_parts(
    frame: pd.DataFrame, folder: Path, metadata: Mapping[str, str], parts: int = PARTS
) -> None:
    """Write a table as a folder of Parquet files, each of the same columns and metadata.

    `part-00.parquet` and so on hold the rows of part `parts_of`: a customer's rows are in one
    file, whatever else the table holds. An earlier folder of parts is replaced as a whole.

    Raises:
        ConfigError: it cannot be written, or the folder holds something else.
    """
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if folder.is_file() or any(not re.fullmatch(r"part-\d+\.parquet", name) for name in there):
        raise ConfigError(
            "--out",
            expected="a new folder, or one of such parts, which is replaced",
            found=f"{folder}, which is {'a file' if folder.is_file() else 'used otherwise'}",
            remedy="Name another folder.",
        )
    table, part = _arrow(frame, metadata), parts_of(frame["customer_id"], parts)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    before = folder.with_name(f"{aside.name}.before")
    try:
        aside.mkdir(parents=True)
        for i in range(parts):
            pq.write_table(table.filter(part == i), aside / f"part-{i:02d}.parquet")
        if folder.exists():
            folder.replace(before)
        aside.replace(folder)
    except OSError as error:
        raise ConfigError(
            "--out",
            expected="a folder that can be written",
            found=f"{folder}: {error.strerror or error}",
            remedy="Name another folder.",
        ) from error
    finally:
        if before.exists() and not folder.exists():
            before.replace(folder)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def parts_of(customers: pd.Series[Any], parts: int = PARTS) -> npt.NDArray[np.int64]:
    """The part of each customer id, 0 to parts - 1; the same in every run and version."""
    hashed = pd.util.hash_array(customers.to_numpy(dtype=object), categorize=False)
    return (hashed % np.uint64(parts)).astype(np.int64)


def _arrow(frame: pd.DataFrame, metadata: Mapping[str, str]) -> pa.Table:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    texts = {f.name: pa.string() for f in table.schema if pa.types.is_null(f.type)}
    table = table.cast(pa.schema([f.with_type(texts.get(f.name, f.type)) for f in table.schema]))
    return table.replace_schema_metadata(dict(metadata))
