from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.contact import FOREVER, caps_free_at, consented
from features.errors import DataError
from features.sources import open_source
from features.tables import Tables
from serving.population import Labels, from_features, from_source
from serving.score import write_decisions
from tests.unit.serving.small_shop import (
    AS_OF,
    CAPPED,
    NO_ORDERS,
    OFFERS,
    REFUSED,
    SALT,
    SILENT,
    UNSUBSCRIBED,
    Shop,
    make_config,
)
from uplift.bundle import ScoringBundle


def _row(shop: Shop, customer: str) -> int:
    rows, known = shop.population.find([customer])
    assert known[0]
    return int(rows[0])


def test_everyone_is_there_once_in_order(shop: Shop) -> None:
    ids = shop.population.customer_id.astype(str).tolist()
    assert ids == [f"c-{i:03d}" for i in range(300)]
    assert shop.population.tier.texts([_row(shop, NO_ORDERS)]).tolist() == ["prospect"]


def test_find_tells_known_from_unknown_ids(shop: Shop) -> None:
    ids = ["c-299", "a", "zz", "c-0000", "c-000", "x" * 64, "c-299" + "9" * 60, "é-000", ""]
    rows, known = shop.population.find(ids)
    assert known.tolist() == [True, False, False, False, True, *[False] * 4]
    assert (rows[0], rows[4]) == (299, 0)
    assert shop.population.find_few(ids) == [299, None, None, None, 0, *[None] * 4]
    nobody = replace(shop.population, customer_id=shop.population.customer_id[:0])
    assert nobody.find_few(["c-299", ""]) == [None, None]


def test_a_row_does_not_depend_on_the_rows_beside_it(shop: Shop) -> None:
    bundle, X = shop.model.bundle, shop.population.X
    for i in (0, 17, 299):
        alone = bundle.score(X[i : i + 1], threads=1)
        for name, values in vars(alone).items():
            whole = getattr(shop.population.scores, name)[i : i + 1]
            assert values.tobytes() == whole.tobytes()


def test_consent_is_refused_by_the_table_by_silence_and_by_unsubscribing(shop: Shop) -> None:
    consent = shop.population.consent
    assert [bool(consent[_row(shop, c)]) for c in (REFUSED, UNSUBSCRIBED, SILENT)] == [False] * 3
    # c-010 unsubscribes after the moment, which nobody can know at the moment.
    assert consent.sum() == 297


@pytest.fixture(scope="module")
def tables(shop: Shop) -> Tables:
    return open_source(shop.config).tables()


@pytest.fixture(scope="module")
def ids(shop: Shop) -> pd.Series:
    return pd.Series(shop.population.customer_id.astype(str).astype(object))


class TestRules:
    def test_assumed_consent_never_overrides_a_refusal(
        self, shop: Shop, tables: Tables, ids: pd.Series
    ) -> None:
        config = make_config(shop.root / "tables", contact={"assume_consent": True})
        consent = consented(tables, ids, AS_OF, config)
        assert [bool(consent[_row(shop, c)]) for c in (REFUSED, UNSUBSCRIBED)] == [False, False]
        assert consent.sum() == 298
        assert consented(tables, ids, AS_OF + timedelta(days=2), config).sum() == 297

    def test_without_a_customers_table_nobody_has_consented(
        self, shop: Shop, tables: Tables, ids: pd.Series
    ) -> None:
        without = replace(tables, customers=None)
        assert not consented(without, ids, AS_OF, shop.config).any()

    @pytest.mark.parametrize(
        ("caps", "until"),
        [
            ({"7d": 2, "28d": 4}, "2026-01-04T06:00"),  # the second newest of 28 December
            ({"28d": 3}, "2026-01-07T00:00"),  # the third newest of 10 December
            ({"7d": 2, "28d": 3}, "2026-01-07T00:00"),  # the later of both
            ({"7d": 3}, "NaT"),
            ({"2d": 1}, "NaT"),  # 30 December is exactly two days ago, so outside
            ({"3d": 1}, "2026-01-02T00:00"),
            ({}, "NaT"),
        ],
    )
    def test_caps_end_when_the_oldest_counted_offer_leaves_the_window(
        self, shop: Shop, tables: Tables, ids: pd.Series, caps: dict[str, int], until: str
    ) -> None:
        config = make_config(shop.root / "tables", contact={"overall": caps})
        free_at = caps_free_at(tables, ids, AS_OF, config)
        assert str(free_at[_row(shop, CAPPED)]) == str(np.datetime64(until, "us"))
        assert np.isnat(np.delete(free_at, _row(shop, CAPPED))).all()

    def test_a_cap_of_nothing_lets_nobody_through(
        self, shop: Shop, tables: Tables, ids: pd.Series
    ) -> None:
        config = make_config(shop.root / "tables", contact={"overall": {"7d": 0}})
        assert (caps_free_at(tables, ids, AS_OF, config) == FOREVER).all()


def test_before_the_first_transaction_there_is_a_clear_answer(shop: Shop) -> None:
    with pytest.raises(DataError, match="Give a later --as-of"):
        from_source(shop.config, shop.model.bundle, AS_OF - timedelta(days=9999), threads=1)


def test_a_wide_experiment_gives_its_customers_and_their_given_columns(
    shop: Shop, tmp_path: Path
) -> None:
    pd.DataFrame(
        {
            "customer_id": ["b", "a", "c", "b"],
            "campaign_id": "once",
            "assigned_at": ["2025-11-01", "2025-11-02", "2026-02-01", "2025-12-01"],
            "arm": ["c5", "control", "p10", "p10"],
            "recency_days": [1.0, 2.0, 3.0, 4.0],
            "order_days_365d": [1, 2, 3, 4],
            "spend_365d": [9.5, 8.5, 7.5, 6.5],
            "channel_favourite_365d": ["app", "store", "app", None],
        }
    ).to_csv(tmp_path / "exposures.csv", index=False)
    given = list(shop.model.bundle.schema.names)
    config = make_config(
        tmp_path, features={"set": [], "given": given}, contact={"assume_consent": True}
    )
    wide = replace(shop.model.bundle, features={"names": [], "given": given})
    people = from_source(config, wide, AS_OF, threads=1)
    # c comes after the moment; b's latest row before it counts.
    assert people.customer_id.tolist() == [b"a", b"b"]
    assert people.X[:, :3].tolist() == [[2.0, 2.0, 8.5], [4.0, 4.0, 6.5]]
    assert people.tier.texts().tolist() == [None, None]
    assert people.consent.all()
    written = write_decisions(people, shop.model, config, SALT, tmp_path / "d.parquet")
    frame = pd.read_parquet(written.path)
    assert frame["tier"].isna().all()


def test_labels_come_back() -> None:
    values = ["b", None, "a", "b"]
    assert Labels.of(values).texts().tolist() == values
    assert Labels.of([None, None]).texts().tolist() == [None, None]


class TestGivenFeatures:
    @pytest.fixture
    def wide(self, shop: Shop) -> ScoringBundle:
        return replace(shop.model.bundle, features={"names": [], "given": ["a"]})

    @pytest.fixture
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "customer_id": ["k2", "k1"],
                "recency_days": [3.0, 80.0],
                "order_days_365d": [2, 9],
                "spend_365d": [50.0, np.nan],
                "channel_favourite_365d": ["app", None],
            }
        )

    def test_rows_are_scored_in_order_of_id(
        self, shop: Shop, wide: ScoringBundle, frame: pd.DataFrame, tmp_path: Path
    ) -> None:
        frame.to_parquet(tmp_path / "f.parquet")
        frame.to_csv(tmp_path / "f.csv", index=False)
        config = shop.config.model_copy(
            update={"contact": shop.config.contact.model_copy(update={"assume_consent": True})}
        )
        direct = wide.score(wide.schema.encode(frame), threads=1)
        for name in ("f.parquet", "f.csv"):
            people = from_features(tmp_path / name, config, wide, AS_OF, threads=1)
            assert people.customer_id.tolist() == [b"k1", b"k2"]
            np.testing.assert_array_equal(people.scores.cate, direct.cate[::-1])
            assert people.consent.all()

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda f: f.drop(columns="spend_365d"), "none called spend_365d"),
            (lambda f: f.assign(customer_id=["k1", "k1"]), "1 rows with customers twice.*row 2"),
            (lambda f: f.assign(customer_id=["k1", "="]), "1 rows with others.*row 2"),
            (lambda f: f.iloc[:0], "expected rows, found none"),
        ],
    )
    def test_a_file_that_cannot_be_used(
        self,
        shop: Shop,
        wide: ScoringBundle,
        frame: pd.DataFrame,
        tmp_path: Path,
        spoil,  # type: ignore[no-untyped-def]
        message: str,
    ) -> None:
        path = tmp_path / "f.parquet"
        spoil(frame).to_parquet(path)
        with pytest.raises(DataError, match=message):
            from_features(path, shop.config, wide, AS_OF, threads=1)

    def test_no_file_and_no_table(self, shop: Shop, wide: ScoringBundle, tmp_path: Path) -> None:
        (tmp_path / "f.parquet").write_bytes(b"no table")
        for name in ("f.parquet", "absent.parquet", "absent.csv"):
            with pytest.raises(DataError, match="a readable Parquet or CSV file"):
                from_features(tmp_path / name, shop.config, wide, AS_OF, threads=1)

    def test_a_model_of_transactions_wants_the_source(self, shop: Shop, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="Leave --features out"):
            from_features(tmp_path / "f", shop.config, shop.model.bundle, AS_OF, threads=1)


def test_the_offers_of_the_small_shop_are_the_bundles(shop: Shop) -> None:
    assert shop.model.bundle.arms == tuple(o["coupon_id"] for o in OFFERS)
