"""The MineThatData e-mail experiment (Hillstrom, 2008): 64,000 customers, two e-mails, no e-mail.

Customers who had bought within twelve months were drawn by lot, a third each, to an e-mail for men,
an e-mail for women, or none; visits, conversions and spending of the following two weeks are given.
The file is not part of this project: the configuration names a file or an address.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from features.config import Config
from features.errors import ConfigError, DataError
from features.ingest import checked_tables, connect
from features.problems import Problems
from features.sources.base import source
from features.sources.files import read_raw
from features.tables import Tables

DOWNLOADS = Path("data/downloads")
TIMEOUT_SECONDS = 60
COLUMNS = (
    "recency",
    "history_segment",
    "history",
    "mens",
    "womens",
    "zip_code",
    "newbie",
    "channel",
    "segment",
    "visit",
    "conversion",
    "spend",
)


@source("hillstrom")
class HillstromSource:
    """`source.kind: hillstrom`. Arms: mens_email, womens_email, control. Exposures alone."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def tables(self, problems: Problems | None = None) -> Tables:
        """The experiment as one wide table; a customer's id is the row number, from 1.

        The digest covers the bytes of the file. Raises ConfigError, DataError.
        """
        file = self._file()
        backend = connect(self.config)
        con = backend.con
        with file.open("rb") as stream:
            parquet = stream.read(4) == b"PAR1"
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        raw = read_raw(con, "exposures", [file], parquet=parquet)
        have = [row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {raw.relation}").fetchall()]
        lacking = [name for name in COLUMNS if name not in have]
        if lacking:
            raise DataError(
                str(file),
                expected=f"the columns {', '.join(COLUMNS)}",
                found=f"{', '.join(have)}, without {', '.join(lacking)}",
                remedy="Name the file of the experiment as it was published.",
            )
        con.execute(
            f"""CREATE VIEW hillstrom AS SELECT row_number() OVER () AS customer_id,
                'hillstrom' AS campaign_id, TIMESTAMP '2008-03-20' AS assigned_at,
                CASE segment WHEN 'Mens E-Mail' THEN 'mens_email'
                    WHEN 'Womens E-Mail' THEN 'womens_email'
                    WHEN 'No E-Mail' THEN 'control' ELSE segment END AS arm,
                {", ".join(name for name in COLUMNS if name != "segment")}
            FROM {raw.relation}"""
        )
        wide = replace(raw, relation="hillstrom", origin=str(file), embedded=True)
        return checked_tables(
            backend,
            {"exposures": wide},
            self.config,
            digest=digest,
            problems=problems,
        )

    def _file(self) -> Path:
        path = self.config.source.path
        if not path:
            raise ConfigError(
                "source.path",
                expected="the file of the MineThatData e-mail challenge (CSV or Parquet), or its "
                "address",
                found="nothing",
                remedy="Name it: --set source.path=hillstrom.csv, or an https address.",
            )
        if urlsplit(path).scheme in ("http", "https"):
            return _download(path)
        file = Path(path)
        if not file.is_file():
            raise DataError(
                str(file),
                expected="a CSV or Parquet file",
                found="a folder" if file.is_dir() else "no such file",
                remedy="Mend source.path; it is relative to the working directory.",
            )
        return file


def _download(address: str) -> Path:
    """The file behind an address, fetched once; half a file never takes its place."""
    name = Path(urlsplit(address).path).name or "hillstrom"
    target = DOWNLOADS / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"
    if target.is_file():
        return target
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with (
            urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer,
            aside.open("wb") as stream,
        ):
            shutil.copyfileobj(answer, stream)
        os.replace(aside, target)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            address,
            expected="a file that can be fetched",
            found=str(reason),
            remedy="Fetch it by hand and set source.path to the file.",
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return target
