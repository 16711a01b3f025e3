"""Scores are the same to the last bit wherever they come from: predicted at once, one by one or in
batches, read from the mapped table, answered over HTTP, written into the file or into the log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from serving.evaluation import MANY, evaluate, shortest
from serving.log.store import customer_hash, customer_hashes
from serving.renewal import sync
from serving.score import write_decisions
from serving.snapshot import write_snapshot
from tests.unit.serving.answering import asked, post, serving
from tests.unit.serving.small_shop import AS_OF, SALT, Shop
from uplift.bundle import Scores
from uplift.policy import STICKY

ALL = [f"c-{i:03d}" for i in range(300)]


@pytest.fixture(scope="module")
def live(shop: Shop) -> Scores:
    """Predicted at this moment from the mapped features."""
    return shop.model.bundle.score(shop.snapshot.population.X, threads=1)


def batches(size: int) -> Iterator[slice]:
    return (slice(at, at + size) for at in range(0, len(ALL), size))


@pytest.mark.parametrize("size", [1, 7, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_table_holds_what_the_model_predicts_in_any_batch(
    shop: Shop, size: int, threads: int
) -> None:
    people = shop.snapshot.population
    made = [shop.model.bundle.score(people.X[rows], threads=threads) for rows in batches(size)]
    for name, table in vars(people.scores).items():
        predicted = np.concatenate([getattr(scores, name) for scores in made])
        assert predicted.dtype == table.dtype == np.float32
        assert predicted.tobytes() == table.tobytes()


def test_answers_over_http_read_back_as_predicted(shop: Shop, live: Scores, tmp_path: Path) -> None:
    arms = list(shop.model.bundle.arms)
    with serving(shop.scorer(), tmp_path) as client:
        whole = post(client, asked(*ALL, dry_run=True)).json()["decisions"]
        alone = [post(client, asked(i, dry_run=True)).json()["decisions"][0] for i in ALL[:20]]
    assert [d | {"index": 0} for d in whole[:20]] == alone
    response = np.array([d["response_propensity"] for d in whole], dtype=np.float32)
    assert response.tobytes() == live.response.tobytes()
    best = live.reward.argmax(axis=1).tolist()
    shown = [
        arms.index(d["arm"]) if d["action"] == "offer" else k
        for d, k in zip(whole, best, strict=True)
    ]
    effects = np.array([d["uplift"] for d in whole], dtype=np.float32)
    assert effects.tobytes() == live.cate[np.arange(len(ALL)), shown].tobytes()
    offers = [i for i, d in enumerate(whole) if d["action"] == "offer"]
    assert len({shown[i] for i in offers}) == 2
    for i in offers:
        money = np.float64([live.cost[i, shown[i]], live.reward[i, shown[i]]]) * 1e6
        told = whole[i]["expected_cost_micros"], whole[i]["expected_incremental_profit_micros"]
        assert told == tuple(np.rint(money).astype(int).tolist())


def test_the_file_of_decisions_holds_the_same(shop: Shop, live: Scores, tmp_path: Path) -> None:
    out = tmp_path / "decisions.parquet"
    write_decisions(shop.snapshot.population, shop.model, shop.config, SALT, out)
    table = pq.read_table(out)
    assert table["customer_id"].to_pylist() == ALL
    for k, arm in enumerate(shop.model.bundle.arms):
        for name, values in (("cate", live.cate), ("cost", live.cost)):
            assert table[f"{name}_{arm}"].to_numpy().tobytes() == values[:, k].tobytes()
    assert table["response_propensity"].to_numpy().tobytes() == live.response.tobytes()


@pytest.mark.parametrize("seed", [3, 4])
def test_few_and_many_numbers_are_written_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    usual = rng.normal(0, 0.1, 20_000).astype(np.float32)
    tiny = np.nextafter(np.float32(0), np.float32(1))
    special = [0.0, -0.0, 1.0, 1e10, 0.1, tiny, np.finfo("f4").max, np.inf, -np.inf, np.nan]
    values = np.concatenate([bits, usual, np.array(special, dtype=np.float32)])
    many = shortest(values)
    few = [
        x for at in range(0, len(values), MANY - 1) for x in shortest(values[at : at + MANY - 1])
    ]
    assert [repr(x) for x in many] == [repr(x) for x in few]
    finite = np.isfinite(values)
    assert [x is not None for x in many] == finite.tolist()
    back = np.array([x for x in many if x is not None], dtype=np.float32)
    assert back.tobytes() == values[finite].tobytes()


def test_rows_of_the_log_say_what_was_decided(shop: Shop) -> None:
    scorer = shop.scorer()
    made = evaluate(scorer, scorer.rules, ALL, AS_OF)
    rows = made.rows([f"d-{i}" for i in range(len(ALL))])
    assert [row["decision_id"] for row in rows] == [f"d-{i}" for i in range(len(ALL))]
    for row, item in zip(rows, made.items, strict=True):
        for name in (
            "customer_id", "action", "arm", "reason", "is_exploration", "response_propensity",
            "uplift", "expected_cost_micros", "profile_state",
        ):  # fmt: skip
            assert row[name] == getattr(item, name)
        assert row["expected_profit_micros"] == item.expected_incremental_profit_micros
        assert (row["reservation"] == "held") == (item.action == "offer")
        assert row["reserved_micros"] == item.expected_cost_micros
        assert (row["valid_until"] is not None) == (item.valid_until is not None)
        assert row["sticky"] == (item.reason in STICKY) == (row["probs"] is not None)
        if row["sticky"]:
            # Given not held out; the assignment's own probability is over holdouts too.
            probs: dict[str, float] = json.loads(row["probs"])
            h = row["holdout_share"]
            assert sum(probs.values()) == pytest.approx(1, abs=1e-12)
            expected = (1 - h) * probs[row["arm"]] + h * (row["arm"] == "control")
            assert row["assignment_prob"] == pytest.approx(expected, abs=1e-12)
        else:
            assert row["assignment_prob"] == 1
    assert {row["holdout_kind"] for row in rows} == {"none", "campaign"}


def test_hashes_of_many_customers_are_those_of_each() -> None:
    ids = [f"c-{i}" for i in range(100)] + ["x" * 64]
    for salt in (b"short", b"of more than one block " * 4):
        assert customer_hashes(salt, ids) == [customer_hash(salt, i) for i in ids]
    assert customer_hashes(b"salt", []) == []


def test_a_live_snapshot_is_renewed_before_servers_refuse_it(shop: Shop, tmp_path: Path) -> None:
    """At half of the 50 hours: beyond all of them servers would decide nothing while it is made."""
    live = shop.config.source.model_copy(update={"as_of": "now"})
    config = shop.config.model_copy(update={"source": live})
    write_snapshot(shop.population, shop.model, config, SALT, tmp_path)

    def as_of(age: timedelta) -> datetime:
        now = AS_OF + age
        return sync(config, SALT, root=tmp_path, fetch=lambda _: shop.model, now=now).as_of

    assert as_of(timedelta(hours=25)) == AS_OF
    assert as_of(timedelta(hours=25, seconds=1)) > AS_OF
