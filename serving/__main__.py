"""Commands of the scorer: `api`, `jobs`, `score`, `plan`, `check`, `snapshot`, `explain`,
`migrate`, `keys`, `export`, `openapi`.

Exit code 0: done; 2: bad input or configuration, with one message; 1: a defect.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from features.config import Config, load_config, parse_time
from features.errors import ConfigError, InputError
from uplift.errors import UpliftError

CHECK = "check"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # Threads of OpenMP that wait must not burn the core that a training beside us needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("serving").setLevel(logging.INFO)
    try:
        if options.run is None:
            return _openapi(options.out)
        if options.run == CHECK:
            print(_check(options.decisions))
            return 0
        config = load_config(options.config, options.set)
        code: int = options.run(config, options)
        return code
    except (InputError, UpliftError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        told = _log_is_away(error)
        if not told:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2


def _log_is_away(error: Exception) -> str:
    """What to say when a command ended since the decision log did not answer; empty otherwise."""
    if type(error).__module__ != "serving.log.engine":  # to import it takes a while
        return ""
    from serving.log.engine import LogUnavailable
    from serving.log.ready import silent

    return str(silent(error)) if isinstance(error, LogUnavailable) else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description="Score and serve.")
    commands = parser.add_subparsers(required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", required=True, help="configuration file")
    common.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key"
    )
    moment = argparse.ArgumentParser(add_help=False)
    moment.add_argument("--as-of", help="UTC time to score as of; default: source.as_of")

    api = commands.add_parser("api", parents=[common], help="start the HTTP scorer")
    api.add_argument("--port", type=int, default=8000)
    api.add_argument("--host", default="127.0.0.1", help="other than loopback needs API keys")
    api.add_argument("--workers", type=int, default=1, help="processes; one per core")
    api.add_argument(
        "--bind", action="store_true", help="each worker to one core, where nothing else is to run"
    )
    api.add_argument(
        "--drain-seconds",
        type=float,
        default=5.0,
        help="how long to answer after a signal to stop, while not ready any more; default 5",
    )
    api.add_argument(
        "--jobs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="start a process for audience jobs when there is one to do; default: yes",
    )
    api.set_defaults(run=_api)

    jobs = commands.add_parser("jobs", parents=[common], help="do audience jobs, until a signal")
    jobs.add_argument("--idle", type=float, help="end after so many seconds without any")
    jobs.add_argument("--parent", type=int, help="end when this process, the starter, has gone")
    jobs.add_argument("--owner", help="the name under which jobs are held; default: one made up")
    jobs.set_defaults(run=_jobs)

    snapshot = commands.add_parser(
        "snapshot", parents=[common, moment], help="build the feature snapshot of the server"
    )
    snapshot.set_defaults(run=_snapshot)

    score = commands.add_parser(
        "score", parents=[common, moment], help="decide for everyone, into a file"
    )
    score.add_argument("--features", type=Path, help="rows of given features, with customer_id")
    score.add_argument("--budget", type=float, help="currency; default: policy.budget")
    score.add_argument("--holdout-share", type=float, help="default: policy.holdout_share")
    score.add_argument("--exploration-share", type=float, help="default: policy.exploration_share")
    score.add_argument("--out", type=Path, required=True, help="decisions.parquet or .csv")
    score.set_defaults(run=_score)

    plan = commands.add_parser(
        "plan", parents=[common, moment], help="what a budget brings, measured at training"
    )
    plan.add_argument("--features", type=Path, help="rows of given features, with customer_id")
    plan.add_argument("--out", type=Path, required=True, help="folder of plan.json, .csv and .png")
    plan.set_defaults(run=_plan)

    check = commands.add_parser(
        "check", help="check a decisions file against the manifest beside it"
    )
    check.add_argument("--decisions", type=Path, required=True, help="decisions.parquet or .csv")
    check.set_defaults(run=CHECK)

    why = commands.add_parser(
        "explain", parents=[common], help="why customers get what they get, by the snapshot"
    )
    why.add_argument("--customer", nargs="+", required=True, metavar="ID", help="customer ids")
    why.add_argument("--most", type=int, default=5, help="features to show of each; default 5")
    why.set_defaults(run=_explain)

    sync = commands.add_parser(
        "sync",
        parents=[common],
        help="bring the model of the alias and its snapshot to this disk; servers take them up",
    )
    sync.add_argument("--every", type=float, help="seconds; again and again, default: once")
    sync.set_defaults(run=_sync)

    migrate = commands.add_parser(
        "migrate", parents=[common], help="bring the decision log to this release's schema"
    )
    migrate.set_defaults(run=_migrate)

    keys = commands.add_parser("keys", parents=[common], help="make, list and revoke API keys")
    doing = keys.add_subparsers(required=True, metavar="create|list|revoke")
    create = doing.add_parser("create", help="make a key; it is shown once")
    create.add_argument("--scopes", required=True, help="score,events,read,admin: one or several")
    create.add_argument("--label", default="", help="what it is for")
    create.add_argument("--days", type=int, help="days until it expires; default: never")
    create.set_defaults(run=_keys_create)
    doing.add_parser("list", help="show all keys, without their secrets").set_defaults(
        run=_keys_list
    )
    revoke = doing.add_parser("revoke", help="end a key; servers know within 30 seconds")
    revoke.add_argument("key_id")
    revoke.set_defaults(run=_keys_revoke)

    purge = commands.add_parser(
        "purge", parents=[common], help="remove from the log what is past its time"
    )
    purge.set_defaults(run=_purge)

    export = commands.add_parser(
        "export", parents=[common], help="write the log as exposures and events, for training"
    )
    export.add_argument("--out", type=Path, required=True, help="folder of the two tables")
    export.set_defaults(run=_export)

    document = commands.add_parser("openapi", help="write docs/openapi.json")
    document.add_argument("--out", type=Path, default=Path("docs/openapi.json"))
    document.set_defaults(run=None)
    return parser


def _openapi(out: Path) -> int:
    import json

    from serving.app import create_app, openapi
    from serving.gate import Holder

    document = openapi(create_app(Holder()).app)
    out.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    print(f"wrote {out}")
    return 0


def _api(config: Config, options: argparse.Namespace) -> int:
    if options.workers < 1:
        raise ConfigError(
            "--workers", expected="1 or more", found=str(options.workers), remedy="One per core."
        )
    if options.bind and not hasattr(os, "sched_setaffinity"):
        raise ConfigError(
            "--bind",
            expected="a system that binds processes to cores",
            found=sys.platform,
            remedy="Leave it out.",
        )
    from serving.workers import Start, run

    return run(
        config,
        Start(
            options.config,
            tuple(options.set),
            options.host,
            options.port,
            options.workers,
            options.drain_seconds,
            options.jobs,
            bound=options.bind,
        ),
    )


def _jobs(config: Config, options: argparse.Namespace) -> int:
    from serving.jobs_process import work

    return work(config, idle=options.idle, parent=options.parent, owner=options.owner)


def _sync(config: Config, options: argparse.Namespace) -> int:
    from serving.renewal import sync, sync_forever
    from serving.salt import load_salt

    if options.every is not None and options.every < 1:
        raise ConfigError(
            "--every", expected="1 or more", found=str(options.every), remedy="60 is usual."
        )
    salt = load_salt(simulated=config.source.kind == "simulated")
    if options.every is not None:
        sync_forever(config, salt, options.every)
    snapshot = sync(config, salt)
    print(f"current: model {snapshot.bundle_sha256[:12]}, snapshot {snapshot.snapshot_id}")
    return 0


def _migrate(config: Config, options: argparse.Namespace) -> int:
    from serving.log.engine import LogUnavailable, log_url, open_log
    from serving.log.migrate import upgrade
    from serving.log.ready import silent

    log = open_log(log_url(config.name)[0])
    try:
        before = log.revision()
        after = upgrade(log)
    except LogUnavailable as error:
        raise silent(error, log.place) from None
    print(f"{log.place}: {before or 'empty'} -> {after}")
    return 0


def _keys_create(config: Config, options: argparse.Namespace) -> int:
    from serving.log.keys import SCOPES, make
    from serving.log.ready import open_ready
    from serving.times import now_micros

    scopes = [scope.strip() for scope in options.scopes.split(",")]
    wrong = [scope for scope in scopes if scope not in SCOPES]
    if wrong:
        raise ConfigError(
            "--scopes",
            expected=f"some of {', '.join(SCOPES)}",
            found=", ".join(wrong),
            remedy="Separate several by commas.",
        )
    if options.days is not None and options.days < 1:
        raise ConfigError(
            "--days",
            expected="1 or more",
            found=str(options.days),
            remedy="Leave it out for never.",
        )
    if len(options.label) > 128:
        raise ConfigError(
            "--label", expected="at most 128 characters", found="more", remedy="Shorten it."
        )
    log, now = open_ready(config), now_micros()
    end = None if options.days is None else now + options.days * 86_400_000_000
    with log.write() as connection:
        token = make(connection, scopes, options.label, now, end)
    print(f"{token}\nThis is shown once: only its hash is stored.")
    return 0


def _keys_list(config: Config, options: argparse.Namespace) -> int:
    from serving.log.keys import every
    from serving.log.ready import open_ready
    from serving.times import now_micros, shown_time

    log = open_ready(config)
    with log.read() as connection:
        keys = every(connection)
    now = now_micros()
    for key in keys.values():
        state = "valid" if key.valid(now) else "revoked" if key.revoked_at else "expired"
        until = shown_time(key.expires_at) or "no end"
        print(f"{key.key_id}  {state:8}  {','.join(sorted(key.scopes)):26}  {until}  {key.label}")
    if not keys:
        print("no keys")
    return 0


def _keys_revoke(config: Config, options: argparse.Namespace) -> int:
    from serving.log.keys import revoke
    from serving.log.ready import open_ready
    from serving.times import now_micros

    log = open_ready(config)
    with log.write() as connection:
        done = revoke(connection, options.key_id, now_micros())
    if not done:
        raise ConfigError(
            "key_id",
            expected="the id of a key that is not revoked",
            found=options.key_id,
            remedy="See them with: python -m serving keys --config ... list",
        )
    print(f"revoked {options.key_id}")
    return 0


def _purge(config: Config, options: argparse.Namespace) -> int:
    from serving.jobs_files import remove_results, results_home
    from serving.log.jobs import Jobs
    from serving.log.ready import open_ready
    from serving.log.retention import purge
    from serving.times import now_micros

    log = open_ready(config)
    with log.write() as connection:
        log.patient(connection)
        removed = purge(connection, now_micros())
        keep = Jobs(log).with_results(connection, now_micros())
    removed["folders of results"] = remove_results(results_home(config.name), keep)
    print("removed: " + ", ".join(f"{rows:,} {table}" for table, rows in removed.items()))
    return 0


def _export(config: Config, options: argparse.Namespace) -> int:
    from serving.export import export_log
    from serving.log.ready import open_ready

    written = export_log(open_ready(config), options.out)
    for path, rows in written.items():
        print(f"wrote {rows:,} rows to {path}")
    return 0


def _snapshot(config: Config, options: argparse.Namespace) -> int:
    from serving.load import resolve
    from serving.salt import load_salt
    from serving.score import SIMULATED
    from serving.snapshot import build_snapshot

    salt = load_salt(simulated=config.source.kind == "simulated")
    moment = parse_time(options.as_of, "--as-of") if options.as_of else None
    snapshot = build_snapshot(config, resolve(config), salt, as_of=moment)
    m = snapshot.manifest
    print(f"snapshot {snapshot.snapshot_id}: {m['rows']:,} customers as of {m['as_of']}")
    if m["simulated"]:
        print(f"  {SIMULATED}")
    print(f"  shadow price {snapshot.shadow_price:.4f}, reasons {m['reasons']}")
    for note in m["notes"]:
        print(f"  note: {note}")
    return 0


def _explain(config: Config, options: argparse.Namespace) -> int:
    if options.most < 1:
        raise ConfigError(
            "--most", expected="1 or more", found=str(options.most), remedy="Leave it out for 5."
        )
    from serving.explain import explain, sentences
    from serving.load import resolve
    from serving.salt import load_salt
    from serving.scorer import Scorer
    from serving.snapshot import ensure_snapshot

    salt = load_salt(simulated=config.source.kind == "simulated")
    model = resolve(config)
    scorer = Scorer(model, ensure_snapshot(config, model, salt), config, salt)
    ids = list(dict.fromkeys(options.customer))
    money = config.outcome.kind in ("profit", "spend")
    unit = config.currency if money else f"of the outcome ({config.outcome.kind})"
    print(sentences(explain(scorer, ids, options.most), config.currency, unit))
    return 0


def _plan(config: Config, options: argparse.Namespace) -> int:
    from serving.load import resolve
    from serving.plan import keep_plan, make_plan, plan_summary, write_plan
    from serving.population import from_features, from_source

    moment = config.as_of(parse_time(options.as_of, "--as-of") if options.as_of else None)
    model = resolve(config)
    if options.features is not None:
        population = from_features(options.features, config, model.bundle, moment, threads=0)
    else:
        population = from_source(config, model.bundle, moment, threads=0)
    planned = make_plan(population, model, config)
    written = write_plan(planned, config, options.out)
    print(plan_summary(planned, config, options.out))
    print(keep_plan(planned, model, written))
    return 0


def _check(decisions: Path) -> str:
    from serving.audience_manifest import check_decisions

    return check_decisions(decisions)


def _score(config: Config, options: argparse.Namespace) -> int:
    from serving.load import resolve
    from serving.population import from_features, from_source
    from serving.salt import load_salt
    from serving.score import check_out, summary, write_decisions

    check_out(options.out)
    flags = {
        "policy.budget": options.budget,
        "policy.holdout_share": options.holdout_share,
        "policy.exploration_share": options.exploration_share,
    }
    given = [f"{key}={value!r}" for key, value in flags.items() if value is not None]
    if given:
        config = load_config(options.config, [*options.set, *given])
    moment = config.as_of(parse_time(options.as_of, "--as-of") if options.as_of else None)
    salt = load_salt(simulated=config.source.kind == "simulated")
    model = resolve(config)
    bundle = model.bundle
    if options.features is not None:
        population = from_features(options.features, config, bundle, moment, threads=0)
    else:
        population = from_source(config, bundle, moment, threads=0)
    print(summary(write_decisions(population, model, config, salt, options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
