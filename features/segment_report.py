"""What `python -m features segments` and `... migrate` write: tables and pictures."""

from __future__ import annotations

import argparse
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from features.churn import NO_MODEL, add_churn_argument, read_churn
from features.clock import GRADUATED
from features.config import Config, parse_time
from features.frozen import fit_frozen
from features.labels import LABELS
from features.migration import MIGRATION_SCHEMES, NOT_SEEN, Migration, migration
from features.outputs import write_aside, write_parquet
from features.segment_names import COLUMNS, SCHEMES, SCORES, Segment, score_ids, segments_of
from features.segment_table import segment_table
from features.segments import rfm_warnings
from features.spine import all_customers, naive_utc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#1b3a57", "#d1495b", "#8d99ae"
PICTURED = {"tier": "Tiers", "rfm_class": "RFM classes", "stage": "Lifecycle stages"}


def add_segments_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m features segments`, besides --config and --set."""
    parser.add_argument("--as-of", help="moment, ISO 8601, UTC; default: source.as_of")
    parser.add_argument("--out", required=True, help="folder to write into")
    add_churn_argument(parser)


def add_migrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m features migrate`, besides --config and --set."""
    parser.add_argument(
        "--from", dest="start", required=True, help="first moment, ISO 8601, UTC; cuts are of it"
    )
    parser.add_argument("--to", dest="end", required=True, help="second moment")
    parser.add_argument("--scheme", default="tier", choices=MIGRATION_SCHEMES, help="default: tier")
    parser.add_argument("--out", required=True, help="folder to write into")


def run(config: Config, args: argparse.Namespace) -> int:
    """Run `segments` or `migrate`; 0.

    Raises:
        InputError: bad arguments, data or folder.
    """
    out = Path(args.out)
    if args.command == "segments":
        given = None if args.as_of is None else parse_time(args.as_of, "--as-of")
        churn = None if args.churn is None else Path(args.churn)
        return write_segments(config, config.as_of(given), out, churn)
    start, end = parse_time(args.start, "--from"), parse_time(args.end, "--to")
    return write_migration(config, start, end, args.scheme, out)


def write_segments(
    config: Config, as_of: datetime, out: Path, churn_file: Path | None = None
) -> int:
    """Write segments.parquet, segment_counts.csv and segments.png into a folder; 0.

    churn_file: probabilities of churn for the label churn_warning, see `features.churn`.

    Raises:
        DataError: no transactions, or none before the moment; or the file of probabilities is not
            of this moment.
        ConfigError: the folder cannot be written.
    """
    from features.sources import open_source  # heavy readers, needed only here

    tables = open_source(config).tables()
    frozen = fit_frozen(tables, as_of, config)
    spine = all_customers(tables, as_of, config)
    churn = None if churn_file is None else read_churn(churn_file, spine["customer_id"], as_of)
    frame, missing = segment_table(tables, spine, config, frozen, churn)
    counts = segment_counts(frame, config)
    moment = f"{naive_utc(as_of).isoformat()}Z"
    write_parquet(frame, out / "segments.parquet", {"frozen": frozen.to_json()})
    write_aside(out / "segment_counts.csv", partial(counts.to_csv, index=False))
    picture = segments_figure(counts, f"{len(frame):,} customers of {config.name} as of {moment}")
    write_aside(out / "segments.png", partial(picture.savefig, format="png"))
    for note in tables.notes:
        print(note)
    print(f"{len(frame)} customers as of {moment}: {out}/segments.parquet")
    if missing:
        print(f"NULL, because a table is absent: {', '.join(missing)}")
    for _, row in counts[counts["scheme"] == "tier"].iterrows():
        stated = "" if pd.isna(row.stated_share) else f" (stated {100 * row.stated_share:.0f}%)"
        name = f"{row.id} {row.chinese}"
        print(f"  {name}: {row.customers} customers, {100 * row.share:.1f}%{stated}")
    said = 0 if churn is None else int(np.isfinite(churn).sum())
    print(NO_MODEL if churn is None else f"churn_warning: {said} customers with a probability")
    for warning in rfm_warnings(frame):
        print(f"warning: {warning}")
    return 0


def write_migration(config: Config, t0: datetime, t1: datetime, scheme: str, out: Path) -> int:
    """Write migration_<scheme>.csv, ..._shares.csv, ..._changed.parquet and .png into a folder; 0.

    Raises:
        DataError: no transactions, or none before t0.
        ConfigError: an unknown scheme, t1 not after t0, or the folder cannot be written.
    """
    from features.sources import open_source  # heavy readers, needed only here

    tables = open_source(config).tables()
    found = migration(tables, scheme, t0, t1, config)
    levels = config.segments.score_levels
    stem = f"migration_{scheme}"
    for name, matrix in ((stem, found.counts), (f"{stem}_shares", found.shares)):
        named = _named_rows(matrix, scheme, levels)
        write_aside(out / f"{name}.csv", partial(named.to_csv, index=False))
    write_parquet(
        found.changed, out / f"{stem}_changed.parquet", {"frozen": found.frozen.to_json()}
    )
    picture = migration_figure(found, levels, config.name)
    write_aside(out / f"{stem}.png", partial(picture.savefig, format="png"))
    for note in tables.notes:
        print(note)
    known = int(found.counts.to_numpy().sum())
    newcomers = int(found.counts.to_numpy()[-1].sum())
    moved = len(found.changed) - newcomers
    print(
        f"{scheme}, {found.t0.isoformat()}Z to {found.t1.isoformat()}Z, cuts {found.frozen.version}"
    )
    print(
        f"{known} customers known at the end: {known - newcomers - moved} stayed, {moved} moved, "
        f"{newcomers} are new: {out}/{stem}.csv"
    )
    before = found.changed[found.changed["before"] != NOT_SEEN]
    for move, n in (before["before"] + " to " + before["after"]).value_counts()[:5].items():
        print(f"  {move}: {n}")
    return 0


def segment_counts(frame: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Customers and shares per segment of a segment table.

    Columns: scheme, id, english, chinese, customers, share (of all customers), stated_share (of
    the tiers' source, NaN elsewhere). Labels may overlap; tier details are of the tier regular.
    """
    rows = []
    for scheme in (*SCHEMES, *SCORES):
        column = COLUMNS.get(scheme, scheme)
        if scheme == "label":
            sizes = frame[list(LABELS)].sum()
        elif scheme in SCORES:
            sizes = score_ids(frame[column]).value_counts()
        else:
            sizes = frame[column].value_counts()
        names = segments_of(scheme, config.segments.score_levels)
        rows += [(scheme, s, int(sizes.get(s.id, 0))) for s in names]
    if "product_stage" in frame:
        clock = next(iter(config.stage_clocks.values()))
        sizes = frame["product_stage"].value_counts()
        rows += [
            ("product_stage", Segment(name, name, name, ""), int(sizes.get(name, 0)))
            for name in (*clock.stages, GRADUATED)
        ]
    return pd.DataFrame(
        {
            "scheme": [scheme for scheme, _, _ in rows],
            "id": [s.id for _, s, _ in rows],
            "english": [s.english for _, s, _ in rows],
            "chinese": [s.chinese for _, s, _ in rows],
            "customers": [n for _, _, n in rows],
            "share": [n / max(len(frame), 1) for _, _, n in rows],
            "stated_share": [np.nan if s.stated is None else s.stated for _, s, _ in rows],
        }
    )


def segments_figure(counts: pd.DataFrame, subtitle: str) -> Figure:
    """Shares of tiers (with the stated ones), RFM classes, lifecycle stages and labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.6), layout="constrained", dpi=110, facecolor="white")
    figure.suptitle(f"Segments: {subtitle}", x=0.01, ha="left", fontweight="bold", color=INK)
    panels = figure.subplots(2, 2).ravel()
    for axes, (scheme, title) in zip(panels, (PICTURED | {"label": "Labels"}).items(), strict=True):
        own = counts[counts["scheme"] == scheme]
        _bars(axes, own)
        note = ", share of customers"
        axes.set_title(title + (" (may overlap)" if scheme == "label" else "") + note, loc="left")
    return figure


def migration_figure(found: Migration, levels: int, name: str) -> Figure:
    """Heat map of row shares with the counts in the cells."""
    from matplotlib.figure import Figure

    english = {s.id: s.english for s in segments_of(found.scheme, levels)} | {NOT_SEEN: "not seen"}
    n_rows, n_columns = found.counts.shape
    figure = Figure(
        figsize=(3.4 + 1.05 * n_columns, 2.6 + 0.55 * n_rows),
        layout="constrained",
        dpi=110,
        facecolor="white",
    )
    axes = figure.subplots()
    shares = found.shares.to_numpy(dtype=np.float64)
    image = axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    counts = found.counts.to_numpy()
    for i, j in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[i, j] > 0.55 else INK
        text = f"{counts[i, j]:,}\n{100 * shares[i, j]:.0f}%"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    columns = [_label(i, english[i]) for i in found.counts.columns]
    axes.set_xticks(range(n_columns), columns, rotation=35, ha="right")
    totals = counts.sum(axis=1)
    rows = [
        f"{_label(i, english[i])} ({n:,})" for i, n in zip(found.counts.index, totals, strict=True)
    ]
    axes.set_yticks(range(n_rows), rows)
    axes.set_xlabel(f"{found.scheme} at {found.t1:%Y-%m-%d %H:%M} UTC")
    axes.set_ylabel(f"{found.scheme} at {found.t0:%Y-%m-%d %H:%M} UTC (customers)")
    axes.set_title(f"Who moved, {name}: customers and shares of the row", loc="left", color=INK)
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    return figure


def _label(segment: str, english: str) -> str:
    """English name, after the id where that is a code (HHL, 3)."""
    return f"{segment} {english}" if segment.isupper() or segment.isdigit() else english


def _named_rows(matrix: pd.DataFrame, scheme: str, levels: int) -> pd.DataFrame:
    """The matrix with the names of its rows in front; a column per id at the end date."""
    names = {s.id: s for s in segments_of(scheme, levels)}
    names[NOT_SEEN] = Segment(NOT_SEEN, "not seen", "未见", "")
    named = matrix.reset_index(drop=True)
    named.columns.name = None
    for place, (column, values) in enumerate(
        (
            ("before", list(matrix.index)),
            ("english", [names[i].english for i in matrix.index]),
            ("chinese", [names[i].chinese for i in matrix.index]),
        )
    ):
        named.insert(place, column, values)
    return named


def _bars(axes: Axes, own: pd.DataFrame) -> None:
    labels = [_label(i, e) for i, e in zip(own["id"], own["english"], strict=True)]
    places = np.arange(len(own))[::-1]
    percent = 100 * own["share"].to_numpy()
    stated = 100 * own["stated_share"].to_numpy(dtype=np.float64)
    axes.barh(places, percent, color=INK, height=0.62, label="actual")
    if np.isfinite(stated).any():
        axes.plot(stated, places, "D", color=ACCENT, markersize=6, label="stated by the source")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=2, frameon=False, fontsize=8)
    widest = max(float(np.nanmax([*percent, *stated[np.isfinite(stated)]], initial=0.0)), 1.0)
    for place, share, n, mark in zip(places, percent, own["customers"], stated, strict=True):
        # Clear of the mark of a stated share that lies a little further out.
        end = mark + 0.01 * widest if share <= mark < share + 0.2 * widest else share
        axes.text(
            end + 0.01 * widest, place, f"{share:.1f}%  {n:,}", va="center", fontsize=8, color=MUTED
        )
    axes.set_yticks(places, labels)
    axes.set_xlim(0, 1.25 * widest)
    axes.set_xlabel("%")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis="x")
