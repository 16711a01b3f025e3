"""The page of a training's run in MLflow: the whole story, in the order in which it is read."""

from __future__ import annotations

from features.config import Config
from features.tables import Tables
from training.dataset import Dataset
from training.diagnostics import Diagnostics
from training.evaluate import Evaluation
from training.gate import Verdict
from uplift.diagnostics import PASS
from uplift.scores import Estimate

PER = 1000
STORY_FILE = "story.md"
# MLflow keeps 8,000 characters of a description.
LONGEST = 7900
FIGURES = {
    "leaderboard.png": "what each policy earns at the budget",
    "qini_over_cost.png": "what every budget would bring, with the interval of the chosen learner",
    "qini.png": "what reaching the most responsive customers first brings",
    "toc.png": "how much more the first customers gain than the average one",
    "uplift_by_decile.png": "measured beside predicted effect, by tenth of the customers",
    "effect_calibration.png": "are predicted effects right",
    "segments.png": "who gets what, as a rule of a few sentences",
    "features.png": "what the chosen learner looks at",
    "balance.png": "were the arms alike before",
    "gate.png": "every step of the gate",
}


def story(
    config: Config,
    tables: Tables,
    dataset: Dataset,
    evaluation: Evaluation,
    diagnostics: Diagnostics,
    verdict: Verdict,
    summary: str,
) -> str:
    """The whole as Markdown: data, diagnostics, leaderboard, gate, figures, what was printed."""
    parts = _parts(config, tables, dataset, evaluation, diagnostics, verdict, brief=False)
    return "\n".join([*parts, "## What the command printed", "", f"```\n{summary}\n```", ""])


def page(
    config: Config,
    tables: Tables,
    dataset: Dataset,
    evaluation: Evaluation,
    diagnostics: Diagnostics,
    verdict: Verdict,
) -> str:
    """The run's description, as long as MLflow keeps it: of checks and of the fallbacks' steps,
    those that did not simply pass."""
    lines = _parts(config, tables, dataset, evaluation, diagnostics, verdict, brief=True)
    while sum(len(line) + 1 for line in lines) > LONGEST:
        lines.pop()
    return "\n".join([*lines, "", f"All of it: `{STORY_FILE}` among the artifacts."])


def _parts(
    config: Config,
    tables: Tables,
    dataset: Dataset,
    evaluation: Evaluation,
    diagnostics: Diagnostics,
    verdict: Verdict,
    brief: bool,
) -> list[str]:
    money = config.currency
    out = [f"# {config.name}: {'new champion' if verdict.promote else 'no new champion'}", ""]
    if tables.simulated:
        out += ["**The shop is simulated: these numbers say nothing about a real one.**", ""]
    out += [f"Policy **{verdict.policy}**, because {verdict.reason}.", ""]
    out += ["## Data", "", "| table | rows kept | set aside |", "|---|---|---|"]
    for name, counts in tables.counts.items():
        kept, read = counts.get("kept", 0), counts.get("read", 0)
        out.append(f"| {name} | {kept:,} | {read - kept:,} |")
    effects = "observational" if dataset.estimated else "randomised"
    checks = [c for c in diagnostics.checks if c.outcome != PASS or not brief]
    fine = [c.name for c in diagnostics.checks if c not in checks]
    first = verdict.steps[0].candidate if verdict.steps else ""
    return [
        *out,
        "",
        f"{len(dataset.training):,} exposures with a complete outcome, {evaluation.rows:,} of them "
        f"held out; {len(dataset.features) + len(dataset.given)} features; {effects} effects.",
        *(f"- {note}" for note in [*tables.notes, *dataset.notes]),
        "",
        "## Can the experiment be believed",
        "",
        *([f"Passed: {', '.join(fine)}.", ""] if fine else []),
        *_table(
            ("check", "outcome", "number", "threshold", "what was found"),
            [
                (c.name, _strong(c.outcome), _shown(c.number), _shown(c.threshold), c.text)
                for c in checks
            ],
        ),
        "",
        "## Leaderboard",
        "",
        f"Incremental profit per {PER:,} exposures at the budget, {money}, 95% intervals; chosen "
        "by the first column, judged by the second.",
        "",
        *_table(
            ("learner", "training rows, out of fold", "held out", "calibration slope", "Qini"),
            [
                (
                    f"**{c.name}**" if c is evaluation.chosen else c.name,
                    _interval(c.validation, PER),
                    _interval(c.value.gain, PER),
                    _interval(c.slope, 1, 2) + f" ({c.calibrating.kind})",
                    _interval(c.report.estimates["qini"], PER),
                )
                for c in evaluation.candidates
            ],
        ),
        "",
        "## Gate",
        "",
        *_table(
            ("step", "candidate", "test", "outcome", "numbers"),
            [
                (str(s.number), s.candidate, s.test, _strong(s.outcome), s.text)
                for s in verdict.steps
                if s.candidate == first or not (brief and s.passed)
            ],
        ),
        "",
        "## Figures (below `figures/` among the artifacts)",
        "",
        *(f"- `{name}`: {what}" for name, what in FIGURES.items()),
        "",
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def _strong(outcome: str) -> str:
    return outcome if outcome == PASS else f"**{outcome}**"


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}"


def _interval(e: Estimate, per: float, digits: int = 1) -> str:
    return f"{e.value * per:.{digits}f} [{e.lo * per:.{digits}f}, {e.hi * per:.{digits}f}]"
