"""Files that commands write: aside and then renamed, so that nobody reads half a file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError


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
    table = pa.Table.from_pandas(frame, preserve_index=False)
    texts = {f.name: pa.string() for f in table.schema if pa.types.is_null(f.type)}
    table = table.cast(pa.schema([f.with_type(texts.get(f.name, f.type)) for f in table.schema]))
    table = table.replace_schema_metadata(dict(metadata))
    write_aside(path, lambda aside: pq.write_table(table, aside))
