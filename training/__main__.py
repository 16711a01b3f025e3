"""`python -m training train|promote|placebo --config C [--set key=value]`."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
import warnings
from typing import TYPE_CHECKING

from features.config import Config, load_config
from features.errors import InputError
from uplift.errors import UpliftError

if TYPE_CHECKING:
    from training.train import Training, ValueTraining


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done; 2: bad input or configuration, one message; 1: a defect."""
    parser = argparse.ArgumentParser(prog="python -m training")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="fit, evaluate, judge and register the models")
    train.add_argument("--config", required=True)
    train.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    promote = commands.add_parser(
        "promote", help="show the gate's verdict of challenger and champion, and override it"
    )
    promote.add_argument("--config", required=True)
    promote.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE"
    )
    promote.add_argument("--by", metavar="NAME", help="who puts a version in the champion's place")
    promote.add_argument("--reason", metavar="TEXT", help="why; both are recorded")
    promote.add_argument("--version", metavar="N", help="default: the challenger")
    promote.add_argument(
        "--rollback", action="store_true", help="back to what the champion took the place of"
    )
    placebo = commands.add_parser(
        "placebo", help="the same training on permuted arms, and with a random feature"
    )
    placebo.add_argument("--config", required=True)
    placebo.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE"
    )
    placebo.add_argument("--runs", type=int, default=1, metavar="N", help="with permuted arms (1)")
    arguments = parser.parse_args(argv)
    # Registering without an input example is meant: the signature is written by hand.
    warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.command == "promote":
            _promote(config, arguments)
        elif arguments.command == "placebo":
            _placebo(config, arguments.runs)
        else:
            _train(config, arguments.config)
    except (InputError, UpliftError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print("This is a defect of the program, not of your input.", file=sys.stderr)
        return 1
    return 0


def _promote(config: Config, arguments: argparse.Namespace) -> None:
    from training.promote import promote

    print(
        promote(
            config,
            arguments.config,
            by=arguments.by,
            reason=arguments.reason,
            version=arguments.version,
            rollback=arguments.rollback,
        )
    )


def _placebo(config: Config, runs: int) -> None:
    from training.placebo import evidence
    from training.train import progress_lines

    with progress_lines(total=runs + 1) as progress:
        told = evidence(config, progress, runs)
    print(told)


def _train(config: Config, path: str) -> None:
    # MLflow and matplotlib take seconds to import: a wrong key must not wait for them.
    from training.tracking import MlflowHistory
    from training.train import ValueTraining, progress_lines, run

    with progress_lines(total=12) as progress:
        training = run(config, progress, MlflowHistory(config))
        if isinstance(training, ValueTraining):
            told = _log_values(training, config, path)
        else:
            told = _log(training, config, path)
        progress("logged to MLflow")
    print(told)


def _log(training: Training, config: Config, path: str) -> str:
    """Log a training to MLflow; returns what the user reads at the end."""
    from training.figures import all_figures, segment_figure
    from training.rows import save_rows
    from training.tracking import log_training
    from training.train import PER, summary
    from uplift.plan_report import plan_figure
    from uplift.planning import PLAN, BudgetPlan

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
        training.values.reports,
        config.currency,
        subtitle,
    )
    figures = {
        **figures,
        "segments.png": segment_figure(training.explanation, config.currency, subtitle),
        "budget_plan.png": plan_figure(
            BudgetPlan.from_json(training.verdict.bundle.info[PLAN]).scaled(PER),
            "What a budget brings",
            subtitle,
            f"{config.currency} per {PER:,} exposures",
        ),
    }
    told = summary(training, config)
    registered = log_training(
        config,
        training.tables,
        training.dataset,
        training.models,
        training.evaluation,
        training.explanation,
        training.diagnostics,
        training.reports,
        training.verdict,
        training.values,
        figures,
        told,
    )
    if simulated:
        save_rows(
            config,
            registered.run_id,
            training.tables.digest,
            training.dataset,
            training.models,
            training.evaluation,
            training.verdict,
        )
    verdict = training.verdict
    if verdict.promote:
        named = f"Champion: {config.name} version {registered.version}, policy {verdict.policy}."
    else:
        named = f"No new champion: version {registered.version} stays challenger."
        if registered.champion_version:
            named += f"\nVersion {registered.champion_version} stays champion."
    ready = verdict.promote or registered.champion_version is not None
    return f"{told}\n\n{named}\nBecause {verdict.reason}.\n{_next(path, ready)}"


def _log_values(training: ValueTraining, config: Config, path: str) -> str:
    """As `_log`, for a training on transactions alone."""
    from training.figures import value_figures
    from training.tracking import Served, log_value_training
    from training.value import NO_EFFECTS, VALUE_ALONE, value_summary

    told = "\n".join(value_summary(training.values))
    registered = log_value_training(
        config,
        training.tables,
        training.values,
        Served(training.bundle, VALUE_ALONE, NO_EFFECTS, promote=True),
        value_figures(training.values.reports, f"{config.name}, {config.source.kind}"),
        told,
    )
    named = f"Champion: {config.name} version {registered.version}, policy {VALUE_ALONE}."
    return f"{told}\n\n{named}\nBecause {NO_EFFECTS}.\n{_next(path, True)}"


def _next(path: str, ready: bool) -> str:
    serve = f"  make serve CONFIG={path}   # ask the scorer at http://127.0.0.1:8000"
    check = f"  python -m features check --config {path}   # what the data allow"
    look = "  make mlflow                # compare the runs at http://127.0.0.1:5000"
    return "\n".join(["\nNext:", look, serve if ready else check])


if __name__ == "__main__":
    sys.exit(main())
