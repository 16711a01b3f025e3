"""`python -m training train --config C [--set key=value]`."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
import warnings

from features.config import Config, load_config
from features.errors import InputError
from uplift.errors import UpliftError


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done; 2: bad input or configuration, one message; 1: a defect."""
    parser = argparse.ArgumentParser(prog="python -m training")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="fit, evaluate, judge and register the models")
    train.add_argument("--config", required=True)
    train.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args(argv)
    # Registering without an input example is meant: the signature is written by hand.
    warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        _train(load_config(arguments.config, arguments.overrides), arguments.config)
    except (InputError, UpliftError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print("This is a defect of the program, not of your input.", file=sys.stderr)
        return 1
    return 0


def _train(config: Config, path: str) -> None:
    # MLflow and matplotlib take seconds to import: a wrong key must not wait for them.
    from training.train import progress_lines, run, summary

    with progress_lines(total=12) as progress:
        training = run(config, progress)
        from training.figures import all_figures
        from training.rows import save_rows
        from training.tracking import log_training

        simulated = training.tables.simulated
        subtitle = f"{config.name}, {'SIMULATED shop' if simulated else config.source.kind}"
        if training.dataset.estimated:
            subtitle += ", observational"
        figures = all_figures(
            training.evaluation,
            training.verdict,
            training.before,
            training.diagnostics,
            training.reports,
            config.currency,
            subtitle,
        )
        registered = log_training(
            config,
            training.tables,
            training.dataset,
            training.models,
            training.evaluation,
            training.diagnostics,
            training.reports,
            training.verdict,
            figures,
            summary(training, config),
        )
        if simulated:
            save_rows(
                config.name,
                registered.run_id,
                training.tables.digest,
                training.dataset,
                training.models,
                training.evaluation,
                training.verdict,
            )
        progress("logged to MLflow")
    print(summary(training, config))
    verdict = training.verdict
    if verdict.promote:
        print(f"\nChampion: {config.name} version {registered.version}, policy {verdict.policy}.")
    else:
        print(f"\nNo new champion: version {registered.version} stays challenger.")
        if registered.champion_version:
            print(f"Version {registered.champion_version} stays champion.")
    print(f"Because {verdict.reason}.")
    print("\nNext:")
    print("  make mlflow                # compare the runs at http://127.0.0.1:5000")
    if verdict.promote or registered.champion_version:
        print(f"  make serve CONFIG={path}   # ask the scorer at http://127.0.0.1:8000")
    else:
        print(f"  python -m features check --config {path}   # what the data allow")


if __name__ == "__main__":
    sys.exit(main())
