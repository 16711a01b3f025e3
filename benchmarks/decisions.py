"""True value of the decisions on the simulated shop: ours beside causalml's learners.

Everybody learns from the same exposures, decides for the same held-out ones, and spends the same
budget with the same `uplift.allocation`. The peers are causalml's S, T and X learners on LightGBM
with fixed settings, with one LightGBM cost model per coupon, on fourteen plain RFM features (what
one writes first) and again on our core features. Needs the rows that `make train` wrote.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.report import THREADS, Options, progress, text_table
from benchmarks.truth import (
    PER,
    Line,
    Truth,
    compare,
    policy_at,
    read_rows,
    read_truth,
    regress,
)
from features.config import Config, load_config
from features.errors import ConfigError, DataError
from features.sources import open_source
from features.tables import Tables
from training.dataset import build_dataset
from training.train import offers_of

FloatArray = npt.NDArray[np.float64]
PEERS = ("S", "T", "X")
WINDOWS = (30, 90, 180, 365)
# LightGBM's and causalml's own defaults, written out; a seed and two threads besides.
SETTINGS: dict[str, Any] = {
    "n_estimators": 100,
    "num_leaves": 31,
    "learning_rate": 0.1,
    "min_child_samples": 20,
    "random_state": 7,
    "n_jobs": THREADS,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
PEER_AT_MOST = 0.65
OURS_AT_LEAST = 0.75


@dataclass(frozen=True)
class Experiment:
    """n exposures: what happened to them, who is held out, and the probabilities of the arms.

    arm (n,) codes; reward, cost (n,) observed; test (n,) bool; assignment (K + 1,) or per row.
    """

    arms: tuple[str, ...]
    arm: npt.NDArray[np.int64]
    reward: FloatArray
    cost: FloatArray
    test: npt.NDArray[np.bool_]
    assignment: FloatArray
    contact: FloatArray


def rfm(tables: Tables, exposure_id: Any) -> pd.DataFrame:
    """Fourteen plain features of each exposure from order lines strictly before its assignment.

    Rows in the order of exposure_id. Recency, tenure and mean order value are NaN for a customer
    without a line; counts and sums are 0.
    """
    con = tables.con
    if tables.exposures is None or tables.transactions is None:
        raise DataError(
            "source",
            expected="exposures and transactions",
            found="one of them only",
            remedy="Use a simulated source.",
        )
    windows = ", ".join(
        f"count(DISTINCT t.order_id) FILTER ({inside}) AS orders_{d}, "
        f"coalesce(sum(t.amount) FILTER ({inside}), 0) AS spend_{d}"
        for d in WINDOWS
        for inside in [f"t.transacted_at >= e.assigned_at - INTERVAL {d} DAY"]
    )
    frame: pd.DataFrame = con.raw_sql(
        f"""
        SELECT e.exposure_id,
               epoch(any_value(e.assigned_at) - max(t.transacted_at)) / 86400 AS recency_days,
               epoch(any_value(e.assigned_at) - min(t.transacted_at)) / 86400 AS tenure_days,
               {windows},
               count(DISTINCT t.order_id) AS orders_total,
               coalesce(sum(t.amount), 0) AS spend_total,
               count(t.amount) AS lines_total,
               sum(t.amount) / nullif(count(DISTINCT t.order_id), 0) AS order_value_mean
        FROM ({con.compile(tables.exposures)}) e
        LEFT JOIN ({con.compile(tables.transactions)}) t
          ON t.customer_id = e.customer_id AND t.transacted_at < e.assigned_at
        GROUP BY e.exposure_id
        """
    ).df()
    return frame.set_index("exposure_id").loc[list(exposure_id)].astype(float)


def read_experiment(config: Config, tables: Tables, frame: pd.DataFrame) -> Experiment:
    """Observed outcomes of the training's rows, by training's own definition of profit."""
    # Outcomes do not depend on features, so one cheap feature is enough here.
    little = config.features.model_copy(update={"set": ["recency_days"], "given": []})
    dataset = build_dataset(
        tables, config.model_copy(update={"features": little}), offers_of(config)
    )
    data = dataset.training
    place = pd.Index(dataset.exposure).get_indexer(pd.Index(frame["exposure_id"]))
    if (place < 0).any():
        raise DataError(
            "rows of the training",
            expected="exposures of the source",
            found="others",
            remedy="Run make train again.",
        )
    return Experiment(
        data.arms,
        data.arm[place],
        data.reward[place],
        data.cost[place],
        frame["is_test"].to_numpy(dtype=bool),
        data.assignment[place],
        np.array([offer.contact_cost for offer in config.offers]),
    )


def peer_effects(
    peer: str, X: FloatArray, experiment: Experiment
) -> tuple[FloatArray, FloatArray, float]:
    """(n_test, K) effects and costs by a learner of causalml, and its seconds to fit and predict.

    The X learner is told the true probabilities of assignment.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from causalml.inference.meta import BaseSRegressor, BaseTRegressor, BaseXRegressor

    kinds = {"S": BaseSRegressor, "T": BaseTRegressor, "X": BaseXRegressor}
    # Codes of fixed width, because causalml orders the arms by name.
    names = np.array([f"{k:03d}" for k in range(len(experiment.arms) + 1)])
    train, test = ~experiment.test, experiment.test
    learner = kinds[peer](lgb.LGBMRegressor(**SETTINGS), control_name=names[0])
    share = experiment.assignment
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        learner.fit(
            X[train],
            treatment=names[experiment.arm[train]],
            y=experiment.reward[train],
            **({"p": _against_control(share[train], names)} if peer == "X" else {}),
        )
        effect = learner.predict(
            X[test], **({"p": _against_control(share[test], names)} if peer == "X" else {})
        )
        seconds = time.perf_counter() - started
    return np.asarray(effect, dtype=float), peer_costs(X, experiment), seconds


def _against_control(share: FloatArray, names: npt.NDArray[Any]) -> dict[str, FloatArray]:
    """Per arm, its probability among those who got it or nothing: what causalml asks for."""
    return {
        str(name): share[:, k] / (share[:, k] + share[:, 0])
        for k, name in enumerate(names)
        if k > 0
    }


def peer_costs(X: FloatArray, experiment: Experiment) -> FloatArray:
    """(n_test, K) plain regression of the observed cost, per arm, at least what contact costs."""
    test = experiment.test
    out = np.empty((int(test.sum()), len(experiment.arms)))
    for k in range(len(experiment.arms)):
        rows = ~test & (experiment.arm == k + 1)
        model = lgb.LGBMRegressor(**SETTINGS).fit(X[rows], experiment.cost[rows])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out[:, k] = np.maximum(model.predict(X[test]), experiment.contact[k])
    return out


def one_hot_texts(frame: pd.DataFrame, categorical: list[str]) -> FloatArray:
    """The training's encoded features; of texts, one column of 0 and 1 per value."""
    plain = frame.rename(columns=lambda c: c[2:])
    wide = pd.get_dummies(plain, columns=categorical, dummy_na=True)
    return wide.to_numpy(dtype=float)


def at_truth(name: str, policy: FloatArray, truth: Truth) -> Line:
    """A policy (n, K) of probabilities at its true value and cost per row."""
    value = float((policy * truth.tau).sum(axis=1).mean())
    return Line(name, value, float((policy * truth.cost).sum(axis=1).mean()), None)


def run(options: Options) -> str:
    """The suite's table."""
    config = load_config(options.config, options.overrides)
    if config.source.kind != "simulated":
        raise ConfigError(
            "source.kind",
            expected="simulated, because only there the truth is known",
            found=config.source.kind,
            remedy="Use configs/demo.yaml or configs/demo-small.yaml.",
        )
    frame, report = read_rows(config)
    tables = open_source(config).tables()
    if tables.digest != report["source_digest"]:
        raise DataError(
            "rows of the training",
            expected="the data of this configuration",
            found="another digest",
            remedy="Run make train again.",
        )
    progress("decisions: oracle and attainable")
    known = {line.policy: line for line in compare(config, frame, report)}
    progress("decisions: outcomes and RFM features")
    experiment = read_experiment(config, tables, frame)
    truth = read_truth(config, frame["exposure_id"], report["arms"])
    test = experiment.test
    held = Truth(truth.tau[test], truth.cost[test])
    plain = rfm(tables, frame["exposure_id"]).to_numpy(dtype=float)
    ours = one_hot_texts(
        frame[[c for c in frame.columns if c.startswith("x_")]], report["categorical"]
    )
    per_row = report["budget_per_row"]

    k = len(report["arms"])
    both = np.hstack([truth.tau, truth.cost])
    expected = regress(plain[~test], both[~test], plain[test], [])
    policy = policy_at(expected[:, :k], np.maximum(expected[:, k:], 0), per_row)
    known["attainable, RFM"] = at_truth("attainable, RFM", policy, held)

    peers: list[tuple[Line, float]] = []
    for label, X in (("14 RFM features", plain), ("our core features", ours)):
        for peer in PEERS:
            progress(f"decisions: causalml {peer}, {label}")
            effect, cost, seconds = peer_effects(peer, X, experiment)
            policy = policy_at(effect, cost, per_row)
            line = at_truth(f"causalml {peer}, {label}", policy, held)
            progress(f"  true value per {PER:,}: {line.value * PER:.1f}")
            peers.append((line, seconds))
    return decisions_table(config, report, known, peers, len(held.tau))


def decisions_table(
    config: Config,
    report: dict[str, Any],
    known: dict[str, Line],
    peers: list[tuple[Line, float]],
    rows: int,
) -> str:
    """The suite's table; the bounds first, then ours, its rivals, the peers."""
    attainable = known["attainable"].value
    served = report["served"]
    labels = {
        "oracle": "oracle: the true effects and costs",
        "attainable": "attainable: core features, trained on the truth",
        "attainable, RFM": "14 RFM features, trained on the truth",
        served: f"ours, {served.replace(':', ' ')}",
        "random": "random customers and coupons",
        "best_coupon_random": "best single coupon, random customers",
        "best_coupon_by_response": "best single coupon, by response propensity",
        "best_coupon_by_uplift": "best single coupon, by its uplift",
        "no_offer": "no offer",
    }

    def row(label: str, line: Line, seconds: float | None = None) -> list[str]:
        share = f"{line.value / attainable:.0%}" if attainable > 0 else ""
        return [
            label,
            f"{line.value * PER:.1f}",
            share,
            f"{line.cost * PER:.1f}",
            "" if seconds is None else f"{seconds:.1f}",
        ]

    bounds = ("oracle", "attainable", "attainable, RFM")
    candidates = [name for name in known if name not in labels]
    table: list[list[str] | None] = [row(labels[name], known[name]) for name in bounds]
    table += [None, row(labels[served], known[served])]
    table += [row(f"our candidate {name}", known[name]) for name in candidates]
    rivals = [name for name in labels if name in known and name not in (*bounds, served)]
    table += [None, *(row(labels[name], known[name]) for name in rivals)]
    half = len(peers) // 2
    table += [None, *(row(line.policy, line, s) for line, s in peers[:half])]
    table += [None, *(row(line.policy, line, s) for line, s in peers[half:])]

    best = max((line for line, _ in peers[:half]), key=lambda line: line.value)
    budget = report["budget_per_row"]
    return text_table(
        f"Decisions on the SIMULATED shop {config.name}: {rows:,} held-out exposures, "
        f"{config.currency} per {PER:,}"
        + ("" if budget is None else f", budget {budget * PER:,.0f}"),
        ("policy", "true value", "of attainable", "true cost", "seconds"),
        table,
        (
            _verdict("ours", known[served].value / attainable, OURS_AT_LEAST, above=True),
            _verdict(
                f"the best peer on RFM features ({best.policy.split(',')[0]})",
                best.value / attainable,
                PEER_AT_MOST,
                above=False,
            ),
            "Peers: LightGBM, "
            + ", ".join(f"{name} {SETTINGS[name]}" for name in list(SETTINGS)[:4])
            + ".",
            "Seconds to fit and predict effects, without costs.",
        ),
    )


def _verdict(who: str, share: float, bound: float, *, above: bool) -> str:
    holds = share >= bound if above else share <= bound
    word = "at least" if above else "at most"
    return f"Aim: {who} {word} {bound:.0%} of the attainable: {share:.0%}, " + (
        "holds." if holds else "DOES NOT HOLD."
    )
