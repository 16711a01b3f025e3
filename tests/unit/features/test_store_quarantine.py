"""Bad rows of an incremental store: all files', counted, and gone with their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from features.errors import DataError
from features.quarantine import quarantine_path
from tests.unit.features.store_files import (
    HEAD,
    assert_as_raw,
    config_of,
    from_scratch,
    take_in,
)


def test_bad_rows_are_counted_by_file(folder: Path) -> None:
    good = "A,o1,2024-05-01T10:00Z,10.5\nB,o2,2024-05-01T11:00Z,1\n"
    (folder / "a.csv").write_text(HEAD + good + "A,o1,yesterday,1\n")
    (folder / "b.csv").write_text(HEAD + good.replace("o1", "o7") + "C,o3\nD,o4,2024-05-02,ten\n")
    assert_as_raw()
    taken = take_in()
    counts = {"bad_line": 1, "bad_number": 1, "bad_time": 1}
    assert taken.cleaned.counts == {"read": 7, "kept": 4, **counts}
    (folder / "a.csv").unlink()
    assert_as_raw()
    assert "bad_time" not in take_in().cleaned.counts


def quarantine() -> list[list[Any]]:
    """File, row number and reason of each row in the quarantine."""
    path = quarantine_path(config_of(), "transactions")
    if not path.is_file():
        return []
    frame = pq.read_table(path).to_pandas().astype(object)
    frame = frame.where(frame.notna(), None)
    names = frame["taken_from"].str.removeprefix("transactions/")
    return [list(row) for row in zip(names, frame["row_number"], frame["reason"], strict=True)]


def test_the_quarantine_has_the_bad_rows_of_all_files(folder: Path) -> None:
    good = "A,o1,2024-05-01T10:00Z,10.5\nB,o2,2024-05-01T11:00Z,1\n"
    (folder / "a.csv").write_text(HEAD + good + "A,o1,yesterday,1\n")
    take_in()
    of_a = ["a.csv", 3, "bad_time"]
    assert quarantine() == [of_a]
    (folder / "b.csv").write_text(HEAD + "C,o3\nD,o4,2024-05-02,ten\n" + good.replace("o", "p"))
    (folder / "c.csv").write_text(HEAD + good.replace("o", "q"))
    take_in()
    of_b = [["b.csv", 1, "bad_number"], ["b.csv", None, "bad_line"]]
    assert quarantine() == [of_a, *of_b]
    # A file that had none before.
    (folder / "c.csv").write_text(HEAD + good.replace("o", "q") + "E,o5,2024-05-01T09:00Z,\n")
    take_in()
    of_c = ["c.csv", 3, "missing_number"]
    assert quarantine() == [of_a, *of_b, of_c]
    # A corrected file's rows go, those of others stay; a moved file is not read again.
    (folder / "b.csv").write_text(HEAD + good.replace("o", "p"))
    (folder / "a.csv").rename(folder / "z.csv")
    assert take_in().read == 2
    assert quarantine() == [of_c, ["z.csv", 3, "bad_time"]]
    rows = quarantine()
    from_scratch()
    assert quarantine() == rows
    (folder / "c.csv").unlink()
    take_in()
    assert quarantine() == rows[1:]
    (folder / "z.csv").unlink()
    take_in()
    assert quarantine() == []


def test_refused_rows_are_shown_until_they_are_taken_away(folder: Path) -> None:
    (folder / "a.csv").write_text(HEAD + "A,o1,2024-05-01T10:00Z,1\nA,o1,yesterday,1\n")
    take_in()
    rows = quarantine()
    (folder / "b.csv").write_text(HEAD + "A,o1,2024-05-01T10:00Z,x\nA,o1,2024-05-01T10:00Z,y\n")
    with pytest.raises(DataError, match=r"transactions.amount: expected .* that can be read"):
        take_in()
    assert [reason for *_, reason in quarantine()] == ["bad_number"] * 2
    (folder / "b.csv").unlink()
    assert take_in().read == 0
    assert quarantine() == rows
