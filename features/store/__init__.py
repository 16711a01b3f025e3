"""The incremental store: checked lines and sums of orders per local day, taken in file by file."""

from features.store.intake import Found, Ingest, find, ingest
from features.store.snapshot import Store

__all__ = ["Found", "Ingest", "Store", "find", "ingest"]
