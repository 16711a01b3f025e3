"""Scores of papers: causalml's own answers, scikit-uplift's printed ones, and why they mislead."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from uplift.data import FloatArray
from uplift.errors import DesignError
from uplift.papers import paper_scores, radcliffe_qini_curve
from uplift.ranking import rank_rows

CAUSALML = pytest.importorskip("causalml.metrics")


def rows(
    n: int = 400, seed: int = 0, distinct: int = 10**9, share: float = 0.5, binary: bool = True
) -> tuple[FloatArray, np.ndarray, FloatArray]:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, distinct, n) / distinct
    treated = rng.random(n) < share
    chance = 0.2 + 0.3 * score * treated
    y = (rng.random(n) < chance).astype(float) if binary else chance + rng.standard_normal(n)
    return score, treated, y


def values(*given: np.ndarray) -> dict[str, float]:
    return {name: made.value for name, made in paper_scores(*given).items()}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_causalml_agrees_where_no_scores_are_tied(binary: bool, share: float) -> None:
    for seed in range(4):
        score, treated, y = rows(seed=seed, share=share, binary=binary)
        made = values(score, treated, y)
        frame = pd.DataFrame({"y": y, "w": treated.astype(int), "model": score})
        assert made["causalml_qini"] == pytest.approx(
            CAUSALML.qini_score(frame, normalize=True)["model"], abs=1e-12
        )
        assert made["causalml_auuc"] == pytest.approx(
            CAUSALML.auuc_score(frame, normalize=True)["model"], abs=1e-12
        )


@pytest.mark.parametrize(
    ("seed", "distinct", "qini", "auuc"),
    [
        (0, 10**9, 0.12742438445599955, 0.12252624506611492),
        (1, 10**9, 0.10693852747186768, 0.10089546678035059),
        (2, 4, 0.12274092137539742, 0.10824111589093106),
        (3, 10, 0.08725087016033725, 0.09232487049297976),
    ],
)
def test_what_scikit_uplift_gives_for_these_rows(
    seed: int, distinct: int, qini: float, auuc: float
) -> None:
    """The answers of scikit-uplift 0.5.1 for the same rows, tied scores among them."""
    made = values(*rows(seed=seed, distinct=distinct))
    assert made["sklift_qini_auc"] == pytest.approx(qini, abs=1e-12)
    assert made["sklift_uplift_auc"] == pytest.approx(auuc, abs=1e-12)


def test_row_order_does_not_matter() -> None:
    score, treated, y = rows(distinct=4)
    base = values(score, treated, y)
    assert len(base) == 6
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(400)
        again = values(score[order], treated[order], y[order])
        assert again == pytest.approx(base, abs=1e-12)


def test_every_score_names_its_origin() -> None:
    made = paper_scores(*rows())
    for name, score in made.items():
        source = {"sklift": "scikit-uplift", "x5": "X5", "radcliffe": "Radcliffe"}
        first = name.split("_")[0]
        assert score.origin.startswith(source.get(first, first))


def test_only_zero_one_outcomes_have_a_perfect_ranking() -> None:
    assert set(values(*rows(binary=False))) == {
        "radcliffe_qini",
        "x5_uplift_at_30_percent",
        "causalml_qini",
        "causalml_auuc",
    }


def test_uplift_at_thirty_percent_by_group() -> None:
    score, treated, y = rows(n=50)
    top = []
    for group in (treated, ~treated):
        ranked = y[group][np.argsort(-score[group])]
        top.append(ranked[: int(0.3 * len(ranked))].mean())
    assert values(score, treated, y)["x5_uplift_at_30_percent"] == pytest.approx(top[0] - top[1])


def test_counts_grow_with_the_treated_share_and_the_engine_s_qini_does_not() -> None:
    rng = np.random.default_rng(1)
    n = 100_000
    score = rng.random(n)
    raw, ours = [], []
    for share in (0.1, 0.5, 0.9):
        treated = rng.random(n) < share
        y = (rng.random(n) < 0.2 + 0.2 * score * treated).astype(float)
        raw.append(values(score, treated, y)["radcliffe_qini"])
        contrast = y * np.where(treated, 1 / share, -1 / (1 - share))
        ours.append(rank_rows(score, contrast, np.arange(n)).qini().estimate)
    assert raw[2] > 5 * raw[0]
    for found in ours:
        assert abs(found.value - 0.2 / 12) < 3.3 * found.se


def test_the_curve_ends_at_the_effect_on_the_treated() -> None:
    score, treated, y = rows()
    taken, curve = radcliffe_qini_curve(score, treated, y)
    assert (taken[0], curve[0], taken[-1]) == (0.0, 0.0, 400.0)
    effect = (y[treated].mean() - y[~treated].mean()) * treated.sum()
    assert curve[-1] == pytest.approx(effect)


def test_causalml_weighs_toc_by_one_over_q_and_so_drifts_with_the_number_of_rows() -> None:
    """A perfect ranking of effects uniform on (0, 1): the area under TOC is 1/4."""
    drift = []
    for n in (500, 50_000):
        tau = (np.random.default_rng(2).permutation(n) + 0.5) / n
        frame = pd.DataFrame({"y": tau, "w": 1, "tau": tau, "model": tau})
        drift.append(float(CAUSALML.rate_score(frame, weighting="autoc")["model"]))
        assert rank_rows(tau, tau, np.arange(n)).autoc().value == pytest.approx(0.25, abs=1e-3)
    assert drift[0] == pytest.approx(0.378, abs=2e-3)
    assert drift[1] > drift[0] + 0.03


def test_causalml_s_toc_is_right_and_its_qini_is_twice_the_area() -> None:
    """Given contrasts and no ties it computes the same curve; its weights sum to 1 where those of
    the area, q itself, have mean 1/2."""
    rng = np.random.default_rng(3)
    score, contrast = rng.random(800), rng.standard_normal(800)
    frame = pd.DataFrame({"y": contrast, "w": 1, "tau": contrast, "model": score})
    theirs = CAUSALML.get_toc(frame)["model"].to_numpy()[1:]
    made = rank_rows(score, contrast, np.arange(800))
    ours = [row["value"] for row in made.toc_curve(800)]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    twice = float(CAUSALML.rate_score(frame, weighting="qini")["model"])
    assert twice == pytest.approx(2 * made.qini().value, abs=1e-4)


def test_refusals() -> None:
    score, treated, y = rows()
    with pytest.raises(DesignError, match="need treated and control rows, found 400 treated"):
        paper_scores(score, np.ones(400, dtype=bool), y)
    with pytest.raises(DesignError, match="rank holds 400 values"):
        paper_scores(score * np.nan, treated, y)
