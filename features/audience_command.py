"""`python -m features audience`: how many customers meet a filter, which, and who they are."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from features.audience import Audience, audience, check_filter, steps, tier_counts
from features.audience_facts import match
from features.audience_store import Named, check_save, find_audience, save_audience
from features.churn import add_churn_argument, read_churn
from features.config import Config, parse_time, read_yaml
from features.errors import ConfigError
from features.frozen import fit_frozen
from features.outputs import write_aside
from features.spine import all_customers, naive_utc


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own options; --config and --set are everyone's."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--name", help="an audience of the configuration, or a saved one")
    which.add_argument("--filter", metavar="FILE", help="a filter in YAML or JSON")
    parser.add_argument("--as-of", help="moment, ISO 8601, UTC; default: source.as_of")
    parser.add_argument("--out", metavar="FILE", help="write the ids as .parquet or .csv")
    add_churn_argument(parser)
    parser.add_argument("--save", metavar="NAME", help="save the filter under this name")
    parser.add_argument(
        "--preview", action="store_true", help="count every condition; write and save nothing"
    )


def run(config: Config, args: Namespace) -> int:
    """Print count, tiers, hash and moment of an audience; write ids and save it if asked.

    Raises:
        ConfigError, DataError: a mistake in the options, the filter or the data.
    """
    if args.preview and (args.out or args.save):
        raise ConfigError(
            "--preview",
            expected="no --out and no --save, because a preview shows counts only",
            found="--out" if args.out else "--save",
            remedy="Leave --preview out to write or save.",
        )
    out = None if args.out is None else Path(args.out)
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise ConfigError(
            "--out",
            expected="a file name that ends with .parquet or .csv",
            found=repr(args.out),
            remedy="Name it so.",
        )
    as_of = config.as_of(None if args.as_of is None else parse_time(args.as_of, "--as-of"))
    named = find_audience(config, args.name) if args.name is not None else _read(Path(args.filter))
    check_filter(named.filter, config, where=named.where)  # before the data are read
    if args.save is not None:
        check_save(config, args.save, named.filter)
    from features.sources import open_source  # heavy readers, needed only from here

    tables = open_source(config).tables()
    frozen = fit_frozen(tables, as_of, config)
    spine = all_customers(tables, as_of, config)
    churn = None
    if args.churn is not None:
        churn = read_churn(Path(args.churn), spine["customer_id"], as_of)
    if args.preview:
        nodes = steps(check_filter(named.filter, config, tables, where=named.where))
        found = match(tables, spine, nodes, config, frozen, churn)
        print(f"{named.name}: preview as of {naive_utc(as_of).isoformat()}Z")
        print(f"{len(spine)} customers known, of whom meet")
        for place, count in found.met.sum().items():
            print(f"{count:>9}  {place}")
        met = found.met["filter"].to_numpy()
        _report(config, int(met.sum()), tier_counts(found.tier[met]), found.missing)
        return 0
    result = audience(tables, named.filter, as_of, config, frozen, churn, where=named.where)
    version = f" version {named.version}" if named.version else ""
    print(
        f"{named.name}{version}: {result.count} customers as of "
        f"{result.as_of.replace(tzinfo=None).isoformat()}Z"
    )
    print(f"filter hash: {result.filter_hash}")
    _report(config, result.count, result.tiers, result.missing)
    if out is not None:
        write_ids(result, named.name, out)
        print(f"ids: {out}")
    if args.save is not None:
        saved = save_audience(config, args.save, named.filter, named.description)
        print(f"saved: {saved.name} version {saved.version}")
    return 0


def write_ids(found: Audience, name: str, path: Path) -> None:
    """Write the column customer_id as Parquet or CSV by suffix, aside and then renamed.

    Parquet has in its metadata audience, filter_hash, as_of and count.

    Raises:
        ConfigError: the file cannot be written.
    """
    table = pa.table({"customer_id": pa.array(found.ids, type=pa.string())})
    table = table.replace_schema_metadata(
        {
            "audience": name,
            "filter_hash": found.filter_hash,
            "as_of": found.as_of.isoformat(),
            "count": str(found.count),
        }
    )
    write: Any = pyarrow.csv.write_csv if path.suffix == ".csv" else pq.write_table
    write_aside(path, lambda aside: write(table, aside))


def _read(path: Path) -> Named:
    """A filter of a file: the filter itself, or a mapping with filter (and description)."""
    if not path.is_file():
        raise ConfigError(
            "--filter",
            expected="a file with a filter",
            found=f"no file {path}",
            remedy="docs/audiences.md shows filters.",
        )
    raw: dict[str, Any] = read_yaml(path)
    if "filter" not in raw:
        return Named(path.stem, 0, "", raw, "filter")
    for key in raw:
        if key not in ("name", "version", "description", "filter"):
            raise ConfigError(
                f"{path}: {key}",
                expected="name, version, description and filter",
                found=repr(key),
                remedy="Remove it.",
            )
    return Named(path.stem, 0, str(raw.get("description", "")), raw["filter"], "filter")


def _report(config: Config, count: int, tiers: dict[str, int], missing: tuple[str, ...]) -> None:
    if tiers:
        shares = (f"{tier} {n} ({100 * n / count:.1f}%)" for tier, n in tiers.items())
        print(f"tiers: {', '.join(shares)}")
    if missing:
        print(f"NULL, because a table is absent: {', '.join(missing)}")
    if count < config.segments.min_size:
        print(
            f"warning: {count} customers, fewer than segments.min_size "
            f"({config.segments.min_size}): too few to compare arms",
            file=sys.stderr,
        )
