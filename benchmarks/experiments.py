"""Real experiments: the selected policy beside simple ones and causalml's learners.

Customers are split into random halves; everybody learns from one half and decides for the other.
The value of a policy is doubly robust, per customer of the other half, and policies are compared
on the same customers. The files are no part of this project: --data FOLDER (or the environment
variable PERSUADABLES_DATA) names the folder that has hillstrom.parquet (the MineThatData e-mail
challenge), charitable.parquet (Karlan and List 2007) and social_pressure.parquet (Gerber, Green
and Larimer 2008); an experiment whose file is not there is left out, and the table says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from benchmarks import peers
from benchmarks.learners import OURS, selected, top
from benchmarks.report import Options, progress, text_table
from benchmarks.worlds import training_set
from uplift.boosting import Binned, Settings
from uplift.data import (
    Float32Array,
    FloatArray,
    IntArray,
    Schema,
    TrainingSet,
    draw_folds,
)
from uplift.errors import DesignError
from uplift.learners import LEARNERS, Fitted, make_learner
from uplift.nuisances import Problem, doubly_robust, prepare, realised
from uplift.scores import ScoreMatrix

SEED = 11
FOLDS = 5
SHARES = (0.3, 0.5)
HALVES = 20
FOLDER = "PERSUADABLES_DATA"
# The same for everybody: 60 small trees.
SETTINGS = Settings(
    rounds=60,
    learning_rate=0.05,
    num_leaves=7,
    min_child_samples=200,
    feature_fraction=1.0,
    lambda_l2=0.0,
    seed=SEED,
    threads=1,
)
# Before what combines them.
CANDIDATES = (*OURS[:-1], "per_conversion", OURS[-1])
RANDOM, RESPONSE = "best single arm, random", "best single arm, by response"
RIVALS = (RANDOM, RESPONSE)


@dataclass(frozen=True)
class Experiment:
    """One file's columns: `arm` (n,) codes, 0 control; `cluster` (n,) what was randomised."""

    name: str
    features: pd.DataFrame
    arm: IntArray
    arms: int
    cluster: IntArray
    outcomes: Mapping[str, FloatArray]


def hillstrom(frame: pd.DataFrame) -> Experiment:
    names = ["No E-Mail", "Mens E-Mail", "Womens E-Mail"]
    kept = ["recency", "history", "mens", "womens", "zip_code", "newbie", "channel"]
    return Experiment(
        "hillstrom",
        frame[kept],
        pd.Index(names).get_indexer(pd.Index(frame["segment"])).astype(np.int64),
        2,
        np.arange(len(frame)),
        {"visit": _numbers(frame["visit"]), "spend": _numbers(frame["spend"])},
    )


def charitable(frame: pd.DataFrame) -> Experiment:
    """Arms: a match of 1:1, 2:1, 3:1. The other crossed factors are not looked at. Donors whose
    amount is not recorded (two) are left out."""
    frame = frame[frame["out_amountgive"].notna()].reset_index(drop=True)
    arm = frame["treatment"] * (1 + frame["treat_ratio2"] + 2 * frame["treat_ratio3"])
    drawn = [c for c in frame.columns if c.startswith(("treat", "out_"))]
    return Experiment(
        "charitable",
        frame.drop(columns=drawn),
        arm.to_numpy(dtype=np.int64),
        3,
        np.arange(len(frame)),
        {"gave": _numbers(frame["out_gavedum"]), "amount": _numbers(frame["out_amountgive"])},
    )


def social_pressure(frame: pd.DataFrame) -> Experiment:
    """Arms in the order of their names; control first. Randomised by household."""
    texts = frame["treatment"].str.strip()
    names = sorted(set(texts) - {"Control"})
    kept = ["sex", "yob", "g2000", "g2002", "g2004", "p2000", "p2002", "p2004", "hh_size"]
    return Experiment(
        "social_pressure",
        frame[kept],
        pd.Index(["Control", *names]).get_indexer(pd.Index(texts)).astype(np.int64),
        len(names),
        np.unique(frame["hh_id"], return_inverse=True)[1].astype(np.int64),
        {"voted": _numbers(frame["voted"].str.strip() == "Yes")},
    )


EXPERIMENTS: dict[str, Callable[[pd.DataFrame], Experiment]] = {
    "hillstrom": hillstrom,
    "charitable": charitable,
    "social_pressure": social_pressure,
}


def _numbers(column: pd.Series) -> FloatArray:
    out: FloatArray = column.to_numpy(dtype=np.float64)
    return out


def data_of(experiment: Experiment, outcome: str) -> tuple[TrainingSet, Float32Array]:
    """Everybody's rows: with categories as they are, for us, and as columns of 0 and 1, for peers
    that know none."""
    schema = Schema.learn(experiment.features)
    X = schema.encode(experiment.features)
    shares = np.bincount(experiment.arm, minlength=experiment.arms + 1) / len(X)
    data = training_set(
        X,
        experiment.arm,
        experiment.outcomes[outcome],
        np.tile(shares, (len(X), 1)),
        cluster=experiment.cluster,
        schema=schema,
    )
    wide = pd.get_dummies(experiment.features, dtype=float)
    return data, wide.to_numpy(dtype=np.float32)


def half(data: TrainingSet, wide: Float32Array, number: int) -> dict[str, float]:
    """Doubly robust value per row of the half that nobody learned from, by `policy @ share`.

    Which arm is the best single one, and which learner is selected, the other half says.
    """
    rng = np.random.default_rng([SEED, number])
    held = draw_folds(data.cluster, data.arm, 2, rng) == 0
    train, test = data.rows(~held), data.rows(held)
    fold = draw_folds(train.cluster, train.arm, FOLDS, rng)
    binned = Binned(train.X, data.schema.categorical, SETTINGS.threads)
    problem = prepare(train, binned, train.y, fold, SETTINGS, SEED)
    means = problem.mean_on(test.X)
    gamma = doubly_robust(means, realised(test.assignment, test.arm), test.arm, test.y)
    matrix = ScoreMatrix(gamma, test.cluster)
    fitted: dict[str, Fitted] = {}
    for name in [name for name in CANDIDATES if problem.kind in LEARNERS[name].outcomes]:
        fitted[name] = make_learner(name, fitted).fit(problem)
    effects = {name: one.model.predict(test.X, SETTINGS.threads) for name, one in fitted.items()}
    narrow = train.assignment[:1]
    for name in peers.CAUSALML:
        # Peers see the columns of 0 and 1, and the same probabilities for everyone.
        effects[f"causalml {name}"] = peers.peer(
            f"causalml {name}",
            _with(train, wide[~held]),
            wide[held],
            lambda x: np.repeat(narrow, len(x), axis=0),
            SETTINGS,
            FOLDS,
        )
    out: dict[str, float] = {}
    for share in SHARES:
        policies = {name: top(tau, share) for name, tau in effects.items()}
        policies["selected"] = policies[selected(problem, fitted, share)]
        policies |= simple(problem, means[:, 0], share)
        for name, policy in policies.items():
            out[f"{name} @ {share}"] = matrix.gain(policy).value
    return out


def simple(problem: Problem, response: FloatArray, share: float) -> dict[str, FloatArray]:
    """(n, K) policies that need no effect of anyone: the arm that did best on average among the
    problem's rows, to a random share, or to those with the highest `response` (n,), the mean
    that is predicted without an offer."""
    n, arms = len(response), problem.data.n_arms
    average = (problem.gamma[:, 1:] - problem.gamma[:, :1]).mean(axis=0)
    random = np.zeros((n, arms))
    random[:, average.argmax()] = share
    ranked = np.zeros((n, arms))
    first = np.argsort(-response, kind="stable")[: round(share * n)]
    # Its own best arm: the one that gained most among the same share of the rows learned from.
    seen = np.argsort(-problem.mu[:, 0], kind="stable")[: round(share * len(problem.mu))]
    top_scores = problem.gamma[seen]
    ranked[first, (top_scores[:, 1:] - top_scores[:, :1]).mean(axis=0).argmax()] = 1.0
    return {RANDOM: random, RESPONSE: ranked}


def _with(data: TrainingSet, X: Float32Array) -> TrainingSet:
    return training_set(X, data.arm, data.y, data.assignment, cluster=data.cluster)


def resampled(gaps: Sequence[float]) -> tuple[float, float]:
    """Mean of a difference over random halves, and half of the width of its 95% interval.

    Halves overlap, so their spread alone would make it too narrow: the variance is
    (1 / H + n_test / n_train) times theirs (Nadeau & Bengio 2003), here 1 / H + 1.
    """
    values = np.asarray(gaps, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    spread = values.std(ddof=1) * np.sqrt(1 / len(values) + 1)
    return float(values.mean()), float(student.ppf(0.975, len(values) - 1) * spread)


def run(options: Options) -> str:
    """The suite's tables, one for each experiment and outcome."""
    folder = options.data or os.environ.get(FOLDER)
    names = options.worlds or list(EXPERIMENTS)
    unknown = sorted(set(names) - set(EXPERIMENTS))
    if unknown:
        raise DesignError(
            f"--worlds: expected some of {', '.join(EXPERIMENTS)}, found {', '.join(unknown)}. "
            "Leave it out for all."
        )
    texts = []
    for name in names:
        path = Path(folder or ".") / f"{name}.parquet"
        if not folder or not path.is_file():
            texts.append(
                f"Experiment {name}: left out, there is no {name}.parquet in "
                f"{'the folder of --data' if folder else f'--data or ${FOLDER}, which name none'}."
            )
            continue
        experiment = EXPERIMENTS[name](pd.read_parquet(path))
        texts += [_table(experiment, outcome, options) for outcome in experiment.outcomes]
    return "\n\n".join(texts)


def _table(experiment: Experiment, outcome: str, options: Options) -> str:
    data, wide = data_of(experiment, outcome)
    halves = []
    for number in range(options.repeats or HALVES):
        key = f"experiments-{experiment.name}-{outcome}-{number}"
        path = Path(options.keep) / f"{key}.json" if options.keep else None
        if path is not None and path.is_file():
            halves.append(json.loads(path.read_text()))
            continue
        progress(f"experiments: {experiment.name}, {outcome}, half {number + 1}")
        halves.append(half(data, wide, number))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".tmp")
            aside.write_text(json.dumps(halves[-1]))
            aside.replace(path)
    return report(experiment, outcome, halves)


def report(experiment: Experiment, outcome: str, halves: Sequence[Mapping[str, float]]) -> str:
    """Values per 1,000 held-out customers, how far every policy is from the two simple ones, and
    the selected one from causalml's."""
    share = SHARES[-1]

    def ahead(one: str, other: str) -> tuple[float, float]:
        return resampled([1000 * (h[f"{one} @ {share}"] - h[f"{other} @ {share}"]) for h in halves])

    def interval(mean: float, wide: float) -> str:
        return "" if np.isnan(wide) else f"{mean - wide:+.2f} to {mean + wide:+.2f}"

    peers_named = [f"causalml {p}" for p in peers.CAUSALML]
    fitted = [name for name in CANDIDATES if f"{name} @ {share}" in halves[0]]
    names = [*RIVALS, None, "selected", *fitted, None, *peers_named]
    table: list[list[str] | None] = []
    for name in names:
        if name is None:
            table.append(None)
            continue
        cells = [f"{1000 * np.mean([h[f'{name} @ {s}'] for h in halves]):.2f}" for s in SHARES]
        for rival in RIVALS:
            mean, wide = ahead(name, rival)
            cells += ["", ""] if name == rival else [f"{mean:+.2f}", interval(mean, wide)]
        table.append([f"ours {name}" if name in CANDIDATES else name, *cells])
    mean, wide = ahead("selected", RESPONSE)
    verdict = "cannot be told apart from"
    if mean - wide > 0 or mean + wide < 0:
        verdict = "is above" if mean > 0 else "is below"
    gaps = {peer: ahead("selected", peer) for peer in peers_named}
    return text_table(
        f"Experiment {experiment.name}, {outcome}: gain per 1,000 held-out customers, "
        f"{len(halves)} random halves",
        (
            "policy",
            *(f"{s:.0%}" for s in SHARES),
            "less random",
            "95%",
            "less response",
            "95%",
        ),
        table,
        (
            f"{len(experiment.arm):,} customers, {experiment.arms} arms and control, "
            f"{' and '.join(f'{s:.0%}' for s in SHARES)} treated;",
            f"differences at {share:.0%}, paired.",
            f"The selected one {verdict} the best single arm by response.",
            *(
                f"The selected one less {peer}: {gap[0]:+.2f}, 95% {interval(*gap) or 'unknown'}."
                for peer, gap in gaps.items()
            ),
            f"Everybody: LightGBM, {SETTINGS.rounds} trees, {SETTINGS.num_leaves} leaves, rate "
            f"{SETTINGS.learning_rate}, {SETTINGS.min_child_samples} rows to a leaf.",
        ),
    )
