"""The benchmark of scoring, on a few customers: the same boosters, the same rows, a kept budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import scoring
from benchmarks.report import WIDTH
from uplift.bundle import load_bundle

CUSTOMERS = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scoring")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "LEARNED", 1_500)
        patch.setattr(scoring, "MEMBERS", ("s", "x"))
        scoring.make_bundle(made)
    scoring.make_features(made, CUSTOMERS)
    return made


def test_every_booster_is_predicted_once(folder: Path) -> None:
    bundle = load_bundle(folder / "bundle")
    terms = scoring.terms_of(bundle)
    boosters = list({id(term.booster): term.booster for term in terms}.values())
    asked = [(id(term.booster), term.appended) for term in terms]
    assert len(set(asked)) == len(asked)
    files = list((folder / "bundle").glob("*.txt"))
    assert len(boosters) == len(files) > 5
    held = {path.read_text().split("parameters:")[0] for path in files}
    assert {b.model_to_string(num_iteration=-1).split("parameters:")[0] for b in boosters} == held
    for term in terms:
        assert term.booster.num_feature() == 60 + len(term.appended)


def test_both_ways_see_the_same_customers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bare, ours = scoring.plain(folder), scoring.score(folder, CUSTOMERS)
    for found in (bare, ours):
        assert found["memory"] > 10e6
        assert all(wall > 0 for wall, _ in found["steps"].values())
    decisions = pq.read_table(folder / "decisions.parquet")
    assert decisions.num_rows == CUSTOMERS
    offers = np.asarray(decisions["action"].to_pylist()) == "offer"
    assert offers.sum() == ours["offers"] > 0
    cost = decisions["expected_cost"].to_numpy()[offers].sum()
    assert cost <= scoring.BUDGET * CUSTOMERS * (1 + 1e-9)
    # What the file says of a customer is what the bundle says of the customer's row.
    X = pq.read_table(folder / "features.parquet")
    rows = np.column_stack([X[name].to_numpy() for name in scoring.NAMES])
    scores = load_bundle(folder / "bundle").score(rows, 1)
    np.testing.assert_array_equal(decisions["cate_c3"].to_numpy(), scores.cate[:, 2])
    text = scoring.table(CUSTOMERS, bare, ours)
    assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_the_ratio_is_to_plain_prediction() -> None:
    bare = {
        "steps": {"read": (0.5, 0.5), "all": (2.0, 4.0)},
        "memory": 2**30, "predictions": 3, "trees": 90,
    }  # fmt: skip
    ours = {
        "steps": {"scored": (3.0, 5.0), "all": (5.0, 10.0)},
        "memory": 2**31, "offers": 7, "bytes": 10**6,
    }  # fmt: skip
    lines = scoring.table(1000, bare, ours).splitlines()
    whole = next(line.split() for line in lines if "serving score" in line)
    assert whole[-6:] == ["5.0", "10.0", "200", "2.50", "2.50", "2.00"]
