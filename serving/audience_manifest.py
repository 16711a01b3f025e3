"""The manifest beside a decisions file, and the check that a campaign tool runs before sending.

The manifest is written last, so a file without one was not finished. What it says of rows, offers,
coupons, costs and limits can all be found again in the file, and the check finds it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from features.errors import DataError

MANIFEST_FORMAT = 1
# Sums of a CSV file's decimals and of the manifest may differ so far, relatively.
_CLOSE = 1e-9


def manifest_path(out: Path) -> Path:
    """Where the manifest of a decisions file stands."""
    return out.with_name(out.name + ".manifest.json")


def customers_digest(ids: Sequence[str]) -> str:
    """sha256 of the customer ids in ascending order, a line each: the audience, whatever the file's
    form."""
    return hashlib.sha256("".join(f"{i}\n" for i in sorted(ids)).encode()).hexdigest()


def check_decisions(path: Path) -> str:
    """Check a decisions file against its manifest; returns a sentence where everything holds.

    Raises DataError for what is missing or differs.
    """
    manifest = _manifest(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _differs(path, "a readable file", str(error.strerror)) from None
    digest = hashlib.sha256(content).hexdigest()
    if (len(content), digest) != (manifest["bytes"], manifest["sha256"]):
        raise _differs(
            path,
            f"{manifest['bytes']:,} bytes with sha256 {manifest['sha256'][:12]}…",
            f"{len(content):,} with {digest[:12]}…",
        )
    frame = _read(path)
    if list(frame.columns) != manifest["columns"]:
        raise _differs(path, f"the columns {', '.join(manifest['columns'])}", "others")
    offers = frame[frame["action"] == "offer"]
    facts: list[tuple[str, Any, Any]] = [
        ("rows", manifest["rows"], len(frame)),
        ("customers", manifest["rows"], int(frame["customer_id"].nunique())),
        ("offers", manifest["offers"], len(offers)),
        ("customers_sha256", manifest["customers_sha256"],
         customers_digest(frame["customer_id"].tolist())),
    ]  # fmt: skip
    for coupon, count in manifest["offers_by_coupon"].items():
        own = offers[offers["coupon_id"] == coupon]
        facts.append((f"offers of {coupon}", count, len(own)))
        cost = manifest["expected_cost_by_coupon"][coupon]
        facts.append((f"expected cost of {coupon}", cost, float(own["expected_cost"].sum())))
    facts.append(("expected cost", manifest["expected_cost"], float(frame["expected_cost"].sum())))
    for what, said, found in facts:
        same = said == found if isinstance(said, int | str) else _close(said, found)
        if not same:
            raise _differs(path, f"{what} {said}, as the manifest says", str(found))
    budget = manifest["budget"]
    if budget is not None and manifest["expected_cost"] > budget:
        raise _differs(path, f"an expected cost up to the budget {budget}", "more")
    for limit in manifest["limits"]:
        if limit["used"] > limit["most"]:
            raise _differs(path, f"at most {limit['most']} of {limit['name']}", str(limit["used"]))
    return (
        f"{path.name}: {len(frame):,} customers, {len(offers):,} offers, expected cost "
        f"{manifest['expected_cost']:,.2f} {manifest['currency']}: as the manifest says"
    )


def _manifest(path: Path) -> Mapping[str, Any]:
    where = manifest_path(path)
    try:
        found: Any = json.loads(where.read_bytes())
        if found["format"] != MANIFEST_FORMAT or found["file"] != path.name:
            raise ValueError
        return found  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, TypeError):
        raise _differs(where, f"the manifest of {path.name}", "none that can be read") from None


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".csv":
            texts = {"customer_id": "string", "coupon_id": "string"}
            return pd.read_csv(path, dtype=texts)
        return pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _differs(path, "a readable decisions file", type(error).__name__) from None


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _differs(path: Path, expected: str, found: str) -> DataError:
    return DataError(
        str(path),
        expected=expected,
        found=found,
        remedy="Do not send it; make it again: python -m serving score --config ...",
    )
