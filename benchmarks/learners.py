"""Our learners beside causalml's and econml's, on simulated experiments whose effects are known.

Everybody learns from the same rows with the same LightGBM settings and one thread, is told the
same assignment probabilities, and predicts the same fresh rows. Ours also give an out-of-fold
effect of every training row, by which one of them is selected; the peers fit once, or split
rows as they see fit (R, econml's DR), and the table names their best in hindsight. In one world
causalml's learners are timed once more with our folds, for the same out-of-fold effects.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.stats import t as student

from benchmarks import peers
from benchmarks.report import WIDTH, Options, progress, text_table
from benchmarks.worlds import WORLDS as MEANS
from benchmarks.worlds import World, make_world, training_set
from uplift.boosting import Binned, Settings
from uplift.data import Float32Array, FloatArray, TrainingSet, draw_folds
from uplift.errors import DesignError
from uplift.learners import LEARNERS, Fitted, make_learner
from uplift.nuisances import Problem, prepare
from uplift.scores import Estimate, ScoreMatrix, top_up_to
from uplift.selection import select

Result = TypeVar("Result")
ROWS = 20_000
FULL_ROWS = 200_000
FEATURES = 30
REPEATS = 3
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
OURS = (*FIVE, "proportional", "two_part", "ensemble")
# Written out for everybody. Ours may stop before the last tree, where held-out rows say so.
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


@dataclass
class Answers:
    """Of one world and seed, by learner: `error`, RMSE of the effects of the fresh rows in
    standard deviations of the outcome; `worth`, the true value of treating 30%, in shares of the
    oracle's (0 where nothing can be gained); CPU `seconds` by piece of work (`shared`: bins, arm
    means and scores). `selected`: which of ours held-out rows choose."""

    error: dict[str, float] = field(default_factory=dict)
    worth: dict[str, float] = field(default_factory=dict)
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
    return float((top(effects, share) * truth).sum()) / len(effects)


def top(effects: FloatArray, share: float = TREATED) -> FloatArray:
    """(n, K) that policy: how far a row is sent each arm. Equal effects share what is left at the
    cut, so the order of the rows is nothing to win by."""
    rows, best = np.arange(len(effects)), effects.argmax(axis=1)
    policy = np.zeros_like(effects)
    policy[rows, best] = top_up_to(effects[rows, best], np.ones(len(rows)), share * len(rows))
    return policy


def top_of_folds(problem: Problem, oof: FloatArray, share: float = TREATED) -> FloatArray:
    """That policy within every fold. Across folds it would prefer those whose own outcomes happen
    to be low: the others' averages, from which their effects come, are then high."""
    policy = np.zeros_like(oof)
    for f in range(problem.folds):
        held = problem.fold == f
        policy[held] = top(oof[held], share)
    return policy


def selected(problem: Problem, fitted: Mapping[str, Fitted], share: float = TREATED) -> str:
    """Which one out-of-fold effects and held-out scores choose, by the value of that policy."""
    matrix = ScoreMatrix(problem.gamma, problem.data.cluster)
    policies = {name: top_of_folds(problem, one.oof, share) for name, one in fitted.items()}
    gains = {name: matrix.gain(policy).value for name, policy in policies.items()}

    def less_than(one: str, other: str) -> Estimate:
        return matrix.compare(policies[other], policies[one])

    return select(gains, less_than)


def ours(data: TrainingSet, X: Float32Array) -> tuple[dict[str, FloatArray], Answers]:
    """Everything that we fit, from a training set alone: effects (n, K) of the rows X by learner,
    and what was measured on the way."""
    answers = Answers()

    def shared() -> Problem:
        fold = draw_folds(data.cluster, data.arm, FOLDS, np.random.default_rng(SEED))
        binned = Binned(data.X, data.schema.categorical, SETTINGS.threads)
        return prepare(data, binned, data.y, fold, SETTINGS, SEED)

    answers.seconds["shared"], problem = timed(shared)
    fitted: dict[str, Fitted] = {}
    effects: dict[str, FloatArray] = {}
    for name in OURS:

        def work(name: str = name) -> FloatArray:
            fitted[name] = make_learner(name, fitted).fit(problem)
            return fitted[name].model.predict(X, SETTINGS.threads)

        answers.seconds[name], effects[name] = timed(work)
    answers.seconds["selection"], answers.selected = timed(lambda: selected(problem, fitted))
    effects["selected"] = effects[answers.selected]
    # What a constant can do: the average effect of each arm, told by the scores.
    average = (problem.gamma[:, 1:] - problem.gamma[:, :1]).mean(axis=0)
    effects["average"] = np.tile(average, (len(X), 1))
    return effects, answers


def with_our_folds(name: str, data: TrainingSet, known: peers.Known) -> float:
    """CPU seconds of causalml's learner for what ours give: out-of-fold effects, and a model of
    all rows."""
    fold = draw_folds(data.cluster, data.arm, FOLDS, np.random.default_rng(SEED))

    def work() -> None:
        for f in range(FOLDS + 1):
            inside = fold != f
            asked = ~inside if f < FOLDS else inside
            peers.peer(name, data.rows(inside), data.X[asked], known, SETTINGS, FOLDS)

    return timed(work)[0]


def design(name: str) -> peers.Known:
    """(n, K + 1) probabilities of the arms at features (n, d) of a world."""
    return lambda x: MEANS[name](x)[1]


def solve(name: str, rows: int, features: int, seed: int, folds_too: bool) -> Answers:
    """One world, `rows` to learn from and as many fresh ones to predict; everyone's answers."""
    world = WORLDS[name]
    learned = make_world(world, rows, np.random.default_rng([seed, 1]), features)
    fresh = make_world(world, rows, np.random.default_rng([seed, 2]), features)
    data = training_set(learned.X, learned.arm, learned.y, learned.assignment)
    effects, answers = ours(data, fresh.X)
    for other in peers.peers():
        progress(f"learners: {name}, seed {seed}: {other}")
        answers.seconds[other], effects[other] = timed(
            lambda other=other: peers.peer(  # type: ignore[misc]
                other, data, fresh.X, design(world), SETTINGS, FOLDS
            )
        )
    if folds_too:
        for learner in peers.CAUSALML:
            other = f"causalml {learner}"
            progress(f"learners: {name}, seed {seed}: {other} with our folds")
            answers.seconds[f"{other}, our folds"] = with_our_folds(other, data, design(world))
    _judge(answers, effects, fresh)
    return answers


def _judge(answers: Answers, effects: Mapping[str, FloatArray], fresh: World) -> None:
    best, scale = value(fresh.tau, fresh.tau), float(np.std(fresh.y))
    for name, tau in effects.items():
        answers.error[name] = float(np.sqrt(np.mean((tau - fresh.tau) ** 2))) / scale
        answers.worth[name] = value(tau, fresh.tau) / best if best > 0 else 0.0


def kept(folder: str | None, key: str, work: Callable[[], Answers]) -> Answers:
    """What `work` gives, or what a run before left under this key in the folder."""
    if folder is None:
        return work()
    path = Path(folder) / f"{key}.json"
    if path.is_file():
        progress(f"learners: {key} is there already")
        return Answers(**json.loads(path.read_text()))
    answers = work()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(asdict(answers)))
    aside.replace(path)
    return answers


def run(options: Options) -> str:
    """The suite's tables."""
    rows = options.rows or (FULL_ROWS if options.full else ROWS)
    repeats = options.repeats or REPEATS
    names = options.worlds or list(WORLDS)
    unknown = sorted(set(names) - set(WORLDS))
    if unknown:
        raise DesignError(
            f"--worlds: expected some of {', '.join(WORLDS)}, found {', '.join(unknown)}. "
            "Leave it out for all."
        )
    for other in peers.peers():  # imported before anything is timed
        tiny = make_world("constant", 2_000, np.random.default_rng(SEED))
        data = training_set(tiny.X, tiny.arm, tiny.y, tiny.assignment)
        peers.peer(other, data, tiny.X[:10], design("constant"), SETTINGS, FOLDS)
    solved: dict[str, list[Answers]] = {name: [] for name in names}
    for seed in range(SEED, SEED + repeats):
        for name in names:
            progress(f"learners: {name}, seed {seed}")
            again = name == SAME_FOLDS and seed == SEED
            solved[name].append(
                kept(
                    options.keep,
                    f"learners-{name}-{rows}x{FEATURES}-{seed}",
                    lambda name=name, seed=seed, again=again: solve(  # type: ignore[misc]
                        name, rows, FEATURES, seed, again
                    ),
                )
            )
    tables = [_errors(solved, rows), _values(solved), _differences(solved), _seconds(solved)]
    tables.append(aims(solved))
    return "\n\n".join(tables)


Solved = Mapping[str, Sequence[Answers]]
LABELS = {
    **{name: f"ours {name}" for name in OURS},
    "selected": "ours, selected on held-out rows",
    "average": "the average effects, for all alike",
    **{name: name for name in peers.peers()},
}
BREAKS = ("ensemble", "average", "causalml DR")


def best_peer(answers: Sequence[Answers]) -> str:
    """The peer whose mean worth over the seeds is highest, in hindsight."""
    there = [name for name in answers[0].worth if name in peers.peers()]
    return max(there, key=lambda name: float(np.mean([one.worth[name] for one in answers])))


def paired(answers: Sequence[Answers], one: str, other: str) -> tuple[float, float]:
    """Mean over the seeds of worth of `one` less that of `other`, and half of the width of its
    95% interval (Student's t); NaN of a single seed."""
    gaps = np.array([a.worth[one] - a.worth[other] for a in answers])
    if len(gaps) < 2:
        return float(gaps.mean()), float("nan")
    wide = student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    return float(gaps.mean()), float(wide)


def _rows(solved: Solved, cell: Callable[[Answers, str], float], mean: Sequence[str]) -> list:  # type: ignore[type-arg]
    table: list[list[str] | None] = []
    for name, label in LABELS.items():
        cells = {
            world: float(np.mean([cell(one, name) for one in answers]))
            for world, answers in solved.items()
        }
        texts = [f"{cells[world]:.3f}" for world in solved]
        if mean:
            texts.append(f"{np.mean([cells[world] for world in mean]):.3f}")
        table.append([label, *texts])
        if name in BREAKS:
            table.append(None)
    return table


def _errors(solved: Solved, rows: int) -> str:
    count = len(next(iter(solved.values())))
    return text_table(
        f"Learners: error of the effects (RMSE), standard deviations of the outcome, {rows:,} rows",
        ("learner", *solved),
        _rows(solved, lambda answers, name: answers.error[name], ()),
        (
            f"Mean of {count} seed(s), {FEATURES} features. unequal: control 80%, arms 5% and 15%;",
            "confounded: known probabilities that follow the features;",
            "zeros: nine in ten buy nothing, and most effects follow the baseline.",
        ),
    )


def _varied(solved: Solved) -> list[str]:
    """Worlds in which effects differ between customers."""
    return [name for name in solved if name not in ("null", "constant")]


def _values(solved: Solved) -> str:
    chosen = "; ".join(
        f"{name} {', '.join(dict.fromkeys(one.selected for one in answers))}"
        for name, answers in solved.items()
    )
    return text_table(
        f"Learners: true value of sending the best arm to the top {TREATED:.0%}, share of the "
        "oracle's",
        ("learner", *solved, *(["mean"] if _varied(solved) else [])),
        _rows(solved, lambda answers, name: answers.worth[name], _varied(solved)),
        (
            *textwrap.wrap(f"Selected: {chosen}.", WIDTH),
            "Mean: over the worlds where effects differ.",
        ),
    )


def _differences(solved: Solved) -> str:
    table: list[list[str] | None] = []
    for name, answers in solved.items():
        other = best_peer(answers)
        gap, wide = paired(answers, "selected", other)
        table.append(
            [
                name,
                other,
                f"{gap:+.3f}",
                "" if np.isnan(wide) else f"{gap - wide:+.3f} to {gap + wide:+.3f}",
            ]
        )
    varied = _varied(solved)
    notes = []
    if varied:
        pooled = [one for name in varied for one in solved[name]]
        top_peer = best_peer(pooled)
        gap = float(np.mean([paired(solved[name], "selected", top_peer)[0] for name in varied]))
        notes = [
            f"Mean over the worlds where effects differ, against the one best peer, {top_peer}: "
            f"{gap:+.3f}."
        ]
    return text_table(
        "Learners: the selected one less the best peer of the world in hindsight, share of the "
        "oracle's",
        ("world", "best peer", "difference", "95% over the seeds"),
        table,
        notes,
    )


def _seconds(solved: Solved) -> str:
    everyone = [one for answers in solved.values() for one in answers]

    def mean(piece: str) -> float:
        return float(np.mean([one.seconds[piece] for one in everyone]))

    folded = _folded(solved)
    shared = mean("shared")
    pieces = [*FIVE, "all five"]

    def cells(piece: str, name: str, own: float, alone: float) -> list[str]:
        plain = _of_peers(mean, "causalml", name)
        there = peers.econml_is_there()
        text = [piece, f"{own:.2f}", f"{alone:.2f}", f"{plain:.2f}", f"{plain / alone:.2f}"]
        text.append(f"{_of_peers(mean, 'econml', name):.2f}" if there else "")
        if folded is None:
            return [*text, "", ""]
        again, here = at_our_folds(folded, [n.lower() for n in _asked(name)])
        return [*text, f"{again:.1f}", f"{again / here:.2f}"]

    table: list[list[str] | None] = []
    for piece in pieces:
        if piece == "all five":
            own = sum(mean(name) for name in FIVE) + mean("selection")
            table.append(cells(piece, "all", own, own + shared))
        else:
            alone = mean(piece) + (shared if LEARNERS[piece].nuisances else 0.0)
            table.append(cells(piece, piece.upper(), mean(piece), alone))
    table += [
        None,
        *([name, f"{mean(name):.2f}", *[""] * 6] for name in OURS if name not in FIVE),
    ]
    return text_table(
        "Learners: CPU seconds to fit and predict, mean over the worlds and seeds",
        ("learner", "own", "shared too", "causalml", "ratio", "econml", "our folds", "ratio"),
        table,
        (
            f"Shared among ours: bins, arm means and scores, {shared:.2f} s; ours include "
            "out-of-fold effects, all five the selection too.",
            f"Our folds (world {SAME_FOLDS}): causalml's learner fitted {FOLDS} + 1 times, "
            "for the same out-of-fold effects.",
            f"Everybody: LightGBM, {SETTINGS.rounds} trees, {SETTINGS.num_leaves} leaves, rate "
            f"{SETTINGS.learning_rate}, {SETTINGS.min_child_samples} rows to a leaf, one thread.",
        ),
    )


def _folded(solved: Solved) -> Mapping[str, float] | None:
    """Seconds of the world and seed in which causalml's learners were fitted with our folds too."""
    everyone = [one.seconds for answers in solved.values() for one in answers]
    return next((seconds for seconds in everyone if "causalml S, our folds" in seconds), None)


def at_our_folds(seconds: Mapping[str, float], names: Sequence[str]) -> tuple[float, float]:
    """causalml's seconds with our folds and ours for these learners: ours with what they share,
    several with the selection among them too."""
    theirs = sum(seconds[f"causalml {name.upper()}, our folds"] for name in names)
    own = sum(seconds[name] for name in names)
    if any(LEARNERS[name].nuisances for name in names):
        own += seconds["shared"]
    return theirs, own + (seconds["selection"] if len(names) > 1 else 0.0)


def aims(solved: Solved) -> str:
    """What was aimed at, beside what was measured."""
    lines = []
    folded = _folded(solved)
    if folded is None:
        lines.append(f"Aims of time: not measured, the world {SAME_FOLDS} is not among these.")
    else:
        ratio = {name: np.divide(*at_our_folds(folded, [name])) for name in FIVE}
        slowest = min(FIVE, key=lambda name: ratio[name])
        theirs, own = at_our_folds(folded, FIVE)
        lines += [
            _aim(
                "no learner slower than causalml's own, our folds",
                f"least {slowest} with {ratio[slowest]:.2f} times as fast",
                ratio[slowest] >= 1,
            ),
            _aim("R at least twice as fast, our folds", f"{ratio['r']:.2f} times", ratio["r"] >= 2),
            _aim(
                "all five with the evaluation in less than half of causalml's time, our folds",
                f"{own / theirs:.0%}",
                own < theirs / 2,
            ),
        ]
    below, unclear = [], []
    for name, answers in solved.items():
        gap, wide = paired(answers, "selected", best_peer(answers))
        if gap + wide < 0:
            below.append(name)
        elif np.isnan(wide) and gap < 0:  # a single seed has no interval
            unclear.append(name)
    told = f"below in {', '.join(below)}" if below else "nowhere below it"
    told += f"; not known of {', '.join(unclear)}, of one seed" if unclear else ""
    lines.append(
        _aim(
            "the selected one's value at least the best peer's, in its interval",
            told,
            not below,
        )
    )
    varied = _varied(solved)
    if varied:
        gaps = [paired(solved[name], "selected", best_peer(solved[name]))[0] for name in varied]
        mean = float(np.mean(gaps))
        lines.append(
            _aim("better on average than each world's best peer", f"{mean:+.3f}", mean > 0)
        )
    return "\n".join(lines)


def _aim(what: str, found: str, holds: bool) -> str:
    return f"Aim: {what}: {found}, {'holds' if holds else 'DOES NOT HOLD'}."


def _asked(name: str) -> tuple[str, ...]:
    return peers.CAUSALML if name == "all" else (name,)


def _of_peers(mean: Callable[[str], float], library: str, name: str) -> float:
    return sum(mean(f"{library} {one}") for one in _asked(name))
