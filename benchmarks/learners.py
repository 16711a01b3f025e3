"""Our learners beside causalml's, on simulated experiments whose effects are known.

Everybody learns from the same rows with the same LightGBM settings and one thread, is told the
same assignment probabilities, and predicts the same fresh rows. Ours also give an out-of-fold
effect of every training row, with which one of them is selected; causalml's fit once, or split
rows as they see fit (R, DR), and the table names their best in hindsight. In one world causalml's
learners are timed once more with our folds, for the same out-of-fold effects.

econml would be the other peer; it is no dependency of this project and left out.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import lightgbm as lgb
import numpy as np

from benchmarks.report import Options, progress, text_table
from benchmarks.worlds import World, make_world, training_set
from uplift.boosting import Binned, Settings
from uplift.data import Float32Array, FloatArray, TrainingSet, draw_folds
from uplift.learners import LEARNERS, Fitted, make_learner
from uplift.nuisances import Problem, prepare
from uplift.scores import ScoreMatrix

Result = TypeVar("Result")
ROWS = 20_000
FOLDS = 5
SEED = 7
TREATED = 0.3
# Simulated worlds, by the name that the table gives them.
WORLDS = {
    "null": "null",
    "constant": "constant",
    "dense": "heterogeneous",
    "sparse": "sparse",
    "confounded": "confounded",
    "unequal": "unequal",
    "zeros": "zeros",
}
SAME_FOLDS = "dense"
FIVE = ("s", "t", "x", "r", "dr")
OURS = (*FIVE, "proportional", "ensemble")
PEERS = ("S", "T", "X", "R", "DR")
# Written out for both sides. Ours may stop before the last tree, where held-out rows say so.
SETTINGS = Settings(
    rounds=100,
    learning_rate=0.05,
    num_leaves=15,
    min_child_samples=50,
    feature_fraction=1.0,
    lambda_l2=0.0,
    seed=SEED,
    threads=1,
)
PEER_SETTINGS: dict[str, Any] = {
    "n_estimators": SETTINGS.rounds,
    "learning_rate": SETTINGS.learning_rate,
    "num_leaves": SETTINGS.num_leaves,
    "min_child_samples": SETTINGS.min_child_samples,
    "random_state": SEED,
    "n_jobs": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass
class Answers:
    """Of one world: effects (n, K) of the fresh rows by learner, and CPU seconds by piece of work
    (`shared`: bins, arm means and scores); `selected`, ours by held-out value."""

    effects: dict[str, FloatArray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    selected: str = ""


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """CPU seconds of this process, all threads, and the result."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def value(effects: FloatArray, truth: FloatArray, share: float = TREATED) -> float:
    """True value per row of sending each one's best arm to the `share` with the highest effects;
    effects, truth (n, K)."""
    best = effects.argmax(axis=1)
    top = np.argsort(-effects.max(axis=1), kind="stable")[: round(share * len(effects))]
    return float(truth[top, best[top]].sum()) / len(effects)


def held_out_gain(problem: Problem, fitted: Fitted) -> float:
    """Doubly robust value per training row of the same policy, by out-of-fold effects."""
    oof = fitted.oof
    best = oof.argmax(axis=1)
    top = np.argsort(-oof.max(axis=1), kind="stable")[: round(TREATED * len(oof))]
    policy = np.zeros_like(oof)
    policy[top, best[top]] = 1.0
    return ScoreMatrix(problem.gamma, problem.data.cluster).gain(policy).value


def ours(data: TrainingSet, X: Float32Array) -> Answers:
    """Everything that we fit, from a training set alone, and its effects on the rows X."""
    answers = Answers()

    def shared() -> Problem:
        fold = draw_folds(data.cluster, data.arm, FOLDS, np.random.default_rng(SEED))
        binned = Binned(data.X, data.schema.categorical, SETTINGS.threads)
        return prepare(data, binned, data.y, fold, SETTINGS, SEED)

    answers.seconds["shared"], problem = timed(shared)
    fitted: dict[str, Fitted] = {}
    gains: dict[str, float] = {}
    for name in OURS:

        def work(name: str = name) -> FloatArray:
            fitted[name] = make_learner(name, fitted).fit(problem)
            gains[name] = held_out_gain(problem, fitted[name])
            return fitted[name].model.predict(X, SETTINGS.threads)

        answers.seconds[name], answers.effects[name] = timed(work)
    answers.selected = max(gains, key=lambda name: gains[name])
    answers.effects["selected"] = answers.effects[answers.selected]
    # What a constant can do: the average effect of each arm, told by the scores.
    average = (problem.gamma[:, 1:] - problem.gamma[:, :1]).mean(axis=0)
    answers.effects["average"] = np.tile(average, (len(X), 1))
    return answers


def peer(name: str, data: TrainingSet, X: Float32Array, assignment: FloatArray) -> FloatArray:
    """Effects (n, K) of the rows X by causalml's learner; `assignment` (n, K + 1) of those rows."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another project's deprecations and feature names
        try:
            from causalml.inference import meta

            classes: Mapping[str, Any] = {
                "S": meta.BaseSRegressor,
                "T": meta.BaseTRegressor,
                "X": meta.BaseXRegressor,
                "R": meta.BaseRRegressor,
                "DR": meta.BaseDRRegressor,
            }
            folds = {"n_fold": FOLDS} if name == "R" else {}
            model = classes[name](
                learner=lgb.LGBMRegressor(**PEER_SETTINGS), control_name="control", **folds
            )
            # One process, so that its CPU seconds are counted.
            model.cv_n_jobs = 1
            arms = np.array(["control", *data.arms])[data.arm]
            told = {} if name in ("S", "T") else {"p": _against_control(data, data.assignment)}
            model.fit(X=data.X.astype(np.float64), treatment=arms, y=data.y, **told)
            asked = {"p": _against_control(data, assignment)} if name == "X" else {}
            found: FloatArray = np.asarray(model.predict(X.astype(np.float64), **asked))
            return found
        finally:
            logging.disable(level)


def _against_control(data: TrainingSet, e: FloatArray) -> dict[str, FloatArray]:
    return {arm: e[:, k] / (e[:, k] + e[:, 0]) for k, arm in enumerate(data.arms, start=1)}


def with_our_folds(name: str, data: TrainingSet) -> float:
    """CPU seconds of causalml's learner for what ours give: out-of-fold effects, and a model of
    all rows."""
    fold = draw_folds(data.cluster, data.arm, FOLDS, np.random.default_rng(SEED))

    def work() -> None:
        for f in range(FOLDS + 1):
            inside = fold != f
            asked = ~inside if f < FOLDS else inside
            peer(name, data.rows(inside), data.X[asked], data.assignment[asked])

    return timed(work)[0]


def solve(name: str, rows: int) -> tuple[World, Answers]:
    """One world, `rows` to learn from and as many fresh ones to predict; everyone's answers."""
    learned = make_world(WORLDS[name], rows, np.random.default_rng([SEED, 1]))
    fresh = make_world(WORLDS[name], rows, np.random.default_rng([SEED, 2]))
    data = training_set(learned.X, learned.arm, learned.y, learned.assignment)
    answers = ours(data, fresh.X)
    for other in PEERS:
        seconds, effects = timed(partial(peer, other, data, fresh.X, fresh.assignment))
        answers.seconds[f"causalml {other}"] = seconds
        answers.effects[f"causalml {other}"] = effects
    if name == SAME_FOLDS:
        for other in PEERS:
            answers.seconds[f"causalml {other}, our folds"] = with_our_folds(other, data)
    return fresh, answers


def run(options: Options, rows: int = ROWS) -> str:
    """The suite's tables."""
    # Imported before anything is timed.
    peer("T", *_tiny())
    solved: dict[str, tuple[World, Answers]] = {}
    for name in WORLDS:
        progress(f"learners: {name}")
        solved[name] = solve(name, rows)
    return "\n\n".join([_errors(solved, rows), _values(solved), _seconds(solved)])


def _tiny() -> tuple[TrainingSet, Float32Array, FloatArray]:
    world = make_world("constant", 2_000, np.random.default_rng(SEED))
    data = training_set(world.X, world.arm, world.y, world.assignment)
    return data, world.X[:10], world.assignment[:10]


Solved = Mapping[str, tuple[World, Answers]]
LABELS = {
    **{name: f"ours {name}" for name in OURS},
    "selected": "ours, selected by held-out value",
    "average": "the average effects, for all alike",
    **{f"causalml {name}": f"causalml {name}" for name in PEERS},
}
BREAKS = ("ensemble", "average")


def _by_learner(
    solved: Solved, cell: Callable[[World, FloatArray], float]
) -> dict[str, list[float]]:
    return {
        name: [cell(world, answers.effects[name]) for world, answers in solved.values()]
        for name in LABELS
    }


def _rows(cells: Mapping[str, list[str]]) -> list[list[str] | None]:
    table: list[list[str] | None] = []
    for name, texts in cells.items():
        table.append([LABELS[name], *texts])
        if name in BREAKS:
            table.append(None)
    return table


def _errors(solved: Solved, rows: int) -> str:
    found = _by_learner(solved, lambda world, tau: float(np.sqrt(np.mean((tau - world.tau) ** 2))))
    scale = [float(np.std(world.y)) for world, _ in solved.values()]
    return text_table(
        f"Learners: error of the effects (RMSE), standard deviations of the outcome, {rows:,} rows",
        ("learner", *solved),
        _rows(
            {
                name: [f"{e / s:.3f}" for e, s in zip(errors, scale, strict=True)]
                for name, errors in found.items()
            }
        ),
        (
            "unequal: control 80%, arms 5% and 15%; confounded: known probabilities that follow "
            "the features;",
            "zeros: nine in ten buy nothing, and most effects follow the baseline.",
        ),
    )


def _values(solved: Solved) -> str:
    found = _by_learner(solved, lambda world, tau: value(tau, world.tau))
    best = [value(world.tau, world.tau) for world, _ in solved.values()]
    useful = [i for i, name in enumerate(solved) if name not in ("null", "constant")]
    shares = {
        name: [v / b if b > 0 else np.nan for v, b in zip(values, best, strict=True)]
        for name, values in found.items()
    }
    means = {name: float(np.mean([share[i] for i in useful])) for name, share in shares.items()}
    peers = [f"causalml {name}" for name in PEERS]
    top = max(peers, key=lambda name: means[name])
    chosen = ", ".join(f"{name} {answers.selected}" for name, (_, answers) in solved.items())
    return text_table(
        f"Learners: true value of sending the best arm to the top {TREATED:.0%}, share of the "
        "oracle's",
        ("learner", *solved, "mean"),
        _rows(
            {
                name: [*("" if np.isnan(v) else f"{v:.3f}" for v in share), f"{means[name]:.3f}"]
                for name, share in shares.items()
            }
        ),
        (
            f"Selected: {chosen}.",
            f"Mean over the worlds where effects differ: selected {means['selected']:.3f}, the "
            f"best peer in hindsight ({top}) {means[top]:.3f}.",
        ),
    )


def _seconds(solved: Solved) -> str:
    all_answers = [answers for _, answers in solved.values()]

    def mean(piece: str) -> float:
        return float(np.mean([answers.seconds[piece] for answers in all_answers]))

    shared = mean("shared")
    at_folds = solved[SAME_FOLDS][1].seconds
    table: list[list[str] | None] = []
    for name, other in zip(FIVE, PEERS, strict=True):
        own = mean(name)
        alone = own + (shared if LEARNERS[name].nuisances else 0.0)
        plain, folded = mean(f"causalml {other}"), at_folds[f"causalml {other}, our folds"]
        here = at_folds[name] + (at_folds["shared"] if LEARNERS[name].nuisances else 0.0)
        table.append(
            [
                name,
                f"{own:.2f}",
                f"{alone:.2f}",
                f"{plain:.2f}",
                f"{plain / alone:.2f}",
                f"{folded:.1f}",
                f"{folded / here:.2f}",
            ]
        )
    total = shared + sum(mean(name) for name in FIVE)
    peers = sum(mean(f"causalml {name}") for name in PEERS)
    here = at_folds["shared"] + sum(at_folds[name] for name in FIVE)
    folded = sum(at_folds[f"causalml {name}, our folds"] for name in PEERS)
    table += [
        [
            "all five",
            f"{total - shared:.2f}",
            f"{total:.2f}",
            f"{peers:.2f}",
            f"{peers / total:.2f}",
            f"{folded:.1f}",
            f"{folded / here:.2f}",
        ],
        None,
        ["proportional", f"{mean('proportional'):.2f}", *[""] * 5],
        ["ensemble of these six", f"{mean('ensemble'):.2f}", *[""] * 5],
    ]
    return text_table(
        "Learners: CPU seconds to fit and predict, mean over the worlds",
        ("learner", "own", "with shared", "causalml", "ratio", "with our folds", "ratio"),
        table,
        (
            f"Shared among ours: bins, arm means and scores, {shared:.2f} s; ours include "
            "out-of-fold effects and their evaluation.",
            f"With our folds (world {SAME_FOLDS}): causalml's learner fitted {FOLDS} + 1 times, "
            "for the same out-of-fold effects.",
            f"Everybody: LightGBM, {SETTINGS.rounds} trees, {SETTINGS.num_leaves} leaves, rate "
            f"{SETTINGS.learning_rate}, {SETTINGS.min_child_samples} rows to a leaf, one thread.",
        ),
    )
