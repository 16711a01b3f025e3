"""Files of results: written aside, all formats from the same tables, the manifest last.

A folder of results is there whole or not at all: its files are written and synced under another
name, then the manifest, and then the folder is renamed.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from serving.jobs_resources import Format, Manifest, ResultFile
from serving.load import sync_folder
from serving.score import csv_bytes

MANIFEST = "manifest.json"
PART_ROWS = 250_000
SUFFIXES: dict[Format, str] = {"ndjson": "ndjson.gz", "csv": "csv", "parquet": "parquet"}
MEDIA_TYPES = {
    "ndjson.gz": "application/gzip",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "json": "application/json",
}
# What a worker has left behind is removed once nobody can be writing it any more.
_LEFT_SECONDS = 86_400.0
_encode_lines = msgspec.json.Encoder().encode_lines


def results_home(name: str, root: Path = Path("data")) -> Path:
    """Where the results of the jobs of a configuration called `name` are."""
    return root / "jobs" / name


class _Part:
    """One open file of one format."""

    def __init__(self, path: Path, form: Format, schema: pa.Schema) -> None:
        self.path, self.form, self.rows = path, form, 0
        self._out: BinaryIO = path.open("wb")
        self._zipped: gzip.GzipFile | None = None
        self._parquet: Any = None
        if form == "ndjson":
            self._zipped = gzip.GzipFile("", "wb", 3, self._out, mtime=0)
        elif form == "parquet":
            self._parquet = pq.ParquetWriter(self._out, schema, compression="zstd")

    def add(self, table: pa.Table) -> None:
        if self._zipped is not None:
            self._zipped.write(_encode_lines(table.to_pylist()))
        elif self._parquet is not None:
            self._parquet.write_table(table)
        else:
            self._out.write(csv_bytes(table, header=self.rows == 0))
        self.rows += table.num_rows

    def close(self) -> ResultFile:
        if self._zipped is not None:
            self._zipped.close()
        if self._parquet is not None:
            self._parquet.close()
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        with self.path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        size = self.path.stat().st_size
        return ResultFile(self.path.name, self.form, self.rows, size, digest)

    def drop(self) -> None:
        """Let go of a file that is of no use; what can't be flushed is lost on purpose."""
        for each in (self._zipped, self._parquet, self._out):
            try:
                if each is not None:
                    each.close()
            except (OSError, ValueError, pa.ArrowException):
                continue


class ResultWriter:
    """Writes the results of one job; as a context, it leaves nothing behind unless published.

    Raises OSError where the disk takes no more.
    """

    def __init__(
        self, home: Path, job_id: str, formats: Sequence[Format], part_rows: int = PART_ROWS
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        # Of an attempt whose worker has vanished.
        for old in home.glob(f".{job_id}-*"):
            shutil.rmtree(old, ignore_errors=True)
        self._home, self._job_id, self._most = home, job_id, part_rows
        self._aside = Path(tempfile.mkdtemp(prefix=f".{job_id}-", dir=home))
        self._formats = tuple(dict.fromkeys(formats))
        self._open: list[_Part] = []
        self._files: list[ResultFile] = []
        self._number, self._rows = 0, 0

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        for part in self._open:
            part.drop()
        shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, table: pa.Table) -> None:
        """Append rows, in parts of so many."""
        while table.num_rows:
            if self._rows == self._most:
                self._close()
            if not self._open:
                self._begin(table.schema)
            room = self._most - self._rows
            for part in self._open:
                part.add(table.slice(0, room))
            self._rows += min(room, table.num_rows)
            table = table.slice(room)

    def finish(self, schema: pa.Schema) -> list[ResultFile]:
        """Close the files; without any row there is one of each format all the same."""
        if not self._open and not self._files:
            self._begin(schema)
            for part in self._open:
                part.add(schema.empty_table())
        self._close()
        return sorted(self._files, key=lambda file: (self._formats.index(file.format), file.name))

    def publish(self, manifest: Manifest) -> Path:
        """Write the manifest, and give the folder its name."""
        with (self._aside / MANIFEST).open("wb") as out:
            out.write(msgspec.json.format(msgspec.json.encode(manifest)))
            out.flush()
            os.fsync(out.fileno())
        sync_folder(self._aside)
        folder = self._home / self._job_id
        if folder.exists():  # of an attempt that ended between this step and the next
            folder.rename(self._aside / "replaced")
        self._aside.rename(folder)
        shutil.rmtree(folder / "replaced", ignore_errors=True)
        sync_folder(self._home)
        return folder

    def _begin(self, schema: pa.Schema) -> None:
        for form in self._formats:
            path = self._aside / f"part-{self._number:04d}.{SUFFIXES[form]}"
            self._open.append(_Part(path, form, schema))
        self._number, self._rows = self._number + 1, 0

    def _close(self) -> None:
        while self._open:
            self._files.append(self._open[0].close())
            self._open.pop(0)


@dataclass(frozen=True)
class Result:
    """A file that may be downloaded."""

    path: Path
    media_type: str
    etag: str
    size: int


def find_result(home: Path, job_id: str, name: str) -> Result | None:
    """The result called `name` of a job, or its manifest; None for what the manifest does not
    name. job_id: of the log, never of a request."""
    folder = home / job_id
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError:
        return None
    if name == MANIFEST:
        digest = hashlib.sha256(content).hexdigest()
        return Result(folder / MANIFEST, MEDIA_TYPES["json"], f'"{digest[:32]}"', len(content))
    for file in msgspec.json.decode(content, type=Manifest).files:
        if file.name == name:
            kind = MEDIA_TYPES[file.name.partition(".")[2]]
            return Result(folder / file.name, kind, f'"{file.sha256[:32]}"', file.bytes)
    return None


def remove_results(home: Path, keep: Collection[str]) -> int:
    """Remove the results of all jobs but those in `keep`, and what was left unfinished a day ago;
    returns how many folders."""
    removed = 0
    if not home.is_dir():
        return 0
    for folder in home.iterdir():
        young = time.time() - folder.stat().st_mtime < _LEFT_SECONDS
        if folder.name in keep or (folder.name.startswith(".") and young):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed += 1
    return removed
