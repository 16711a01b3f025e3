"""This project and its peers side by side in one run: one table per suite, with ratios.

Usage: python -m benchmarks [--only decisions,allocation,catalogue,features,ingest,learners]
"""

from __future__ import annotations

import argparse
import importlib
import sys

from benchmarks.report import Options, machine
from features.errors import InputError
from uplift.errors import UpliftError

SUITES = {
    "allocation": "one million customers and five coupons under a budget",
    "catalogue": "true value of what is learned from every feature, beside the core set (minutes)",
    "features": "one row of features per customer from order lines",
    "ingest": "the incremental store: daily ingests, and snapshots from it",
    "learners": "learners of effects on simulated experiments, beside causalml's and econml's",
    "experiments": "policies on real experiments, beside simple ones and causalml's (--data)",
    "scoring": "from 60 features to a decisions file, beside plain LightGBM (--full: a million)",
    "scale": "the learners and their evaluation on 60 features and five arms (--full: a million)",
    "serving": "the server under load, beside a bare route and MLflow's own (--full: a soak too)",
    "audiences": "audience jobs end to end: scores, dry run, stored (--full: a million customers)",
    "decisions": "the true value of decisions on the simulated shop (after make train)",
}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done; 2: bad input, one message; a wrong answer of a peer or of us raises."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="suites: " + "; ".join(f"{name}: {what}" for name, what in SUITES.items()),
    )
    parser.add_argument("--only", default=",".join(SUITES), help="suites, separated by commas")
    parser.add_argument("--config", default=Options.config, help="decisions: the simulated shop")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--full",
        action="store_true",
        help="features: 10 million lines; learners: 200,000 rows; scale, scoring, serving: a "
        "million",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=0,
        help="learners, scale: rows to learn from; scoring, serving: customers; features --full: "
        "a further number of lines",
    )
    parser.add_argument(
        "--repeats", type=int, default=0, help="learners: seeds; experiments: random halves"
    )
    parser.add_argument(
        "--worlds", default="", help="learners, experiments: some of them, separated by commas"
    )
    parser.add_argument("--keep", help="learners, experiments: folder for parts that are done")
    parser.add_argument("--data", help="experiments: folder with the real experiments")
    arguments = parser.parse_args(argv)
    chosen = [name.strip() for name in arguments.only.split(",")]
    for name in chosen:
        if name not in SUITES:
            known = ", ".join(SUITES)
            print(f"error: --only: expected some of {known}, found {name!r}", file=sys.stderr)
            return 2
    options = Options(
        arguments.config,
        arguments.overrides,
        arguments.full,
        arguments.rows,
        arguments.repeats,
        [name.strip() for name in arguments.worlds.split(",") if name.strip()],
        arguments.keep,
        arguments.data,
    )
    print(f"Machine: {machine()}")
    for name in chosen:
        # Each suite imports its peers when its turn comes: causalml alone takes many seconds.
        suite = importlib.import_module(f"benchmarks.{name}")
        try:
            print(f"\n{suite.run(options)}", flush=True)
        except (InputError, UpliftError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
