"""Commands on features: `python -m features build`, `check`, `segments`, `migrate`, `audience`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from features import audience_command, segment_report
from features.build import build_features
from features.config import Config, load_config, parse_time
from features.errors import InputError
from features.frozen import FrozenValues, fit_frozen
from features.outputs import write_parquet, write_parts
from features.registry import feature_names
from features.segments import SEGMENT_FEATURES, segments
from features.spine import all_customers, naive_utc
from features.tables import Tables

log = logging.getLogger("features")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 bad input or configuration, 1 a defect."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = _parser().parse_args(argv)
    try:
        config = load_config(args.config, args.set)
        if args.command == "check":
            from features import check  # reads every table; the build does not need it

            return int(check.run(config))
        if args.command == "drift":
            from features import drift  # needs SciPy and the readers

            return drift.run(config, args)
        if args.command == "ingest":
            from features import ingest_command  # heavy readers, needed only here

            return ingest_command.run(config)
        if args.command == "audience":
            return audience_command.run(config, args)
        if args.command in ("segments", "migrate"):
            return segment_report.run(config, args)
        given = None if args.as_of is None else parse_time(args.as_of, "--as-of")
        return _build(config, config.as_of(given), Path(args.out))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def feature_table(
    tables: Tables, as_of: datetime, config: Config, frozen: FrozenValues
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The feature table of all customers seen before a moment, and the features without a table.

    Columns: customer_id, as_of, the configured features, given columns, tier, lifecycle_stage
    (the last two NULL without transactions).

    Raises:
        DataError: the moment is before the first transaction.
    """
    spine = all_customers(tables, as_of, config)
    names = feature_names(config)
    extra = [name for name in SEGMENT_FEATURES if name not in names]
    built = build_features(tables, spine, [*names, *extra], config, frozen)
    frame = built.frame.drop(columns=extra)
    frame.insert(0, "customer_id", spine["customer_id"])
    frame.insert(1, "as_of", spine["as_of"])
    if tables.transactions is None:
        nothing = pd.Series([None] * len(frame), dtype=object)
        frame["tier"], frame["lifecycle_stage"] = nothing, nothing
    else:
        found = segments(built.frame, frozen, config.segments)
        frame["tier"], frame["lifecycle_stage"] = found["tier"], found["lifecycle_stage"]
    return frame, tuple(name for name in built.missing if name in names)


def write_table(
    frame: pd.DataFrame,
    path: Path,
    frozen: FrozenValues,
    missing: Sequence[str],
    engine: str = "duckdb",
) -> None:
    """Write a feature table as Parquet, aside and then renamed: a file, or from Spark a folder of
    parts by customer.

    The metadata of a file hold the frozen values (`frozen`, JSON) and the features that are NULL
    because a table is absent (`missing`, separated by commas).

    Raises:
        ConfigError: the folder cannot be written.
    """
    write = write_parts if engine == "spark" else write_parquet
    write(frame, path, {"frozen": frozen.to_json(), "missing": ",".join(missing)})


def _build(config: Config, as_of: datetime, out: Path) -> int:
    from features.sources import open_source  # heavy readers, needed only here

    tables = open_source(config).tables()
    frozen = fit_frozen(tables, as_of, config)
    frame, missing = feature_table(tables, as_of, config, frozen)
    write_table(frame, out, frozen, missing, config.engine)
    for note in tables.notes:
        print(note)
    features = len(feature_names(config))
    print(
        f"{len(frame)} customers, {features} features as of {naive_utc(as_of).isoformat()}Z: {out}"
    )
    if missing:
        print(f"NULL, because a table is absent: {', '.join(missing)}")
    counts = frame["tier"].value_counts()
    if len(counts):
        shares = (f"{tier} {np.round(100 * n / len(frame), 1)}%" for tier, n in counts.items())
        print(f"tiers: {', '.join(shares)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m features", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    build = commands.add_parser("build", help="write the feature table of all customers")
    build.add_argument("--as-of", help="moment, ISO 8601, UTC; default: source.as_of")
    build.add_argument(
        "--out", required=True, help="Parquet file to write; with engine: spark a folder of them"
    )
    check = commands.add_parser("check", help="check the data before any training")
    segment = commands.add_parser("segments", help="segments and labels of all customers")
    segment_report.add_segments_arguments(segment)
    migrate = commands.add_parser("migrate", help="who moved between segments")
    segment_report.add_migrate_arguments(migrate)
    audience = commands.add_parser("audience", help="the customers who meet a filter")
    audience_command.add_arguments(audience)
    drifted = commands.add_parser("drift", help="features against the profile of a training")
    drifted.add_argument(
        "--reference", required=True, help="feature_profile.json of a training's run"
    )
    drifted.add_argument("--as-of", help="moment, ISO 8601, UTC; default: source.as_of")
    drifted.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    taken = commands.add_parser("ingest", help="take new files into the incremental store")
    for command in (build, check, segment, migrate, audience, drifted, taken):
        command.add_argument("--config", required=True, help="configuration file")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
