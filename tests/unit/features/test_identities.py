"""Identities: who is whom is settled before anything else, or said to be impossible."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.build import build_features
from features.check import check
from features.config import Config, validate
from features.errors import DataError
from features.frozen import FrozenValues
from features.sources import open_source
from features.spine import all_customers
from features.tables import Tables

AS_OF = pd.Timestamp("2025-06-01", tz="UTC")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()


def config(**source: Any) -> Config:
    return validate(
        {
            "name": "shop",
            "source": {"kind": "files", "path": "t", "as_of": "2025-06-01", **source},
            "outcome": {"kind": "conversion"},
            "offers": [{"coupon_id": "c5", "kind": "message"}],
        }
    )


def save(name: str, frame: pd.DataFrame) -> None:
    frame.to_csv(f"t/{name}.csv", index=False)


def identities(*rows: tuple[str, str, str]) -> None:
    columns = ["source", "source_customer_id", "customer_id"]
    save("identities", pd.DataFrame(list(rows), columns=columns))


def lines(ids: list[str], sources: list[str] | None = None) -> None:
    frame = pd.DataFrame({"customer_id": ids, "transacted_at": "2025-03-01", "amount": 10.0})
    frame["order_id"] = [f"o{i}" for i in range(len(ids))]
    if sources is not None:
        frame["source"] = sources
    save("transactions", frame)


def customers(tables: Tables) -> list[str]:
    assert tables.transactions is not None
    return [str(v) for v in tables.transactions.order_by("order_id").customer_id.to_pyarrow()]


def found(level: str) -> list[str]:
    return [f"{p.where}: {p.text}" for p in check(config()) if p.level == level]


def test_two_channels_of_one_person_are_one_history() -> None:
    """Features of a history cut into two systems equal those of the whole one."""
    rng = np.random.default_rng(3)
    n = 400
    whole = pd.DataFrame(
        {
            "customer_id": rng.integers(0, 20, n).astype(str),
            "order_id": [f"o{i}" for i in range(n)],
            "transacted_at": pd.Timestamp("2024-06-01", tz="UTC")
            + pd.to_timedelta(rng.integers(0, 360 * 24, n), unit="h"),
            "amount": rng.lognormal(3, 1, n).round(2),
            "discount": rng.choice([0.0, 1.5], n),
            "category": rng.choice(["a", "b", "c"], n),
            "product_id": rng.choice(list("pqrs"), n),
        }
    )
    waves = pd.DataFrame(
        {
            "customer_id": [str(i) for i in range(20)],
            "campaign_id": "k",
            "assigned_at": "2025-04-01",
            "arm": ["control", "c5"] * 10,
        }
    )

    def features() -> pd.DataFrame:
        tables = open_source(config()).tables()
        spine = all_customers(tables, AS_OF.to_pydatetime(), config())
        frame = build_features(tables, spine, None, config(), FrozenValues()).frame
        return frame.set_index(spine["customer_id"]).sort_index()

    save("transactions", whole)
    save("exposures", waves)
    truth = features()

    cut = whole.assign(source=rng.choice(["web", "till"], n))
    cut["customer_id"] = cut["source"].str[0] + cut["customer_id"]
    save("transactions", cut)
    save("exposures", waves.assign(source="web", customer_id="w" + waves["customer_id"]))
    identities(*((s, f"{s[0]}{i}", str(i)) for s in ("web", "till") for i in range(20)))
    pd.testing.assert_frame_equal(features(), truth)


def test_a_chain_is_followed_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    identities(("web", "a", "till:b"), ("till", "b", "app:c"), ("app", "c", "D"))
    lines(["a", "b", "c", "x", "D"], ["web", "till", "app", "app", ""])
    with caplog.at_level(logging.WARNING):
        assert customers(open_source(config()).tables()) == ["D", "D", "D", "app:x", "D"]
    assert "2 rows lead to an id that leads on" in caplog.text
    assert any("till:b -> app:c -> D" in text for text in found("warning"))


def test_without_a_source_ids_share_one_name_space() -> None:
    identities(("web", "a", "b"), ("web", "b", "c"))
    lines(["a", "b", "c", "web:a"])
    assert customers(open_source(config()).tables()) == ["c"] * 4


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 100])
def test_chains_of_every_length(length: int) -> None:
    identities(*(("web", f"n{i}", f"n{i + 1}") for i in range(length)))
    lines([f"n{i}" for i in range(length + 1)])
    assert set(customers(open_source(config()).tables())) == {f"n{length}"}


def test_a_row_that_names_itself_ends_a_chain() -> None:
    identities(("web", "a", "b"), ("crm", "b", "b"))
    lines(["a", "b"])
    assert customers(open_source(config()).tables()) == ["b", "b"]
    assert found("error") == []


def test_a_cycle_is_refused_with_its_ids() -> None:
    identities(("web", "a", "b"), ("web", "b", "c"), ("web", "c", "a"), ("web", "x", "a"))
    lines(["a", "b"])
    with pytest.raises(DataError, match=r"identities.*cycle.*a -> b -> c -> a.*points back"):
        open_source(config()).tables()
    assert any("a -> b -> c -> a" in text for text in found("error"))


def test_a_cycle_in_full_names_is_refused_with_sources() -> None:
    identities(("web", "a", "till:b"), ("till", "b", "web:a"))
    lines(["a", "b"], ["web", "till"])
    with pytest.raises(DataError, match=r"2 ids in a cycle.*till:b -> web:a -> till:b"):
        open_source(config()).tables()


def test_numbers_of_two_systems_are_not_mixed_up() -> None:
    """With a source, 7 of the web shop and customer 7 are different things; a warning says so."""
    identities(("web", "3", "7"), ("web", "7", "3"))
    lines(["3", "7", "7"], ["web", "web", ""])
    assert customers(open_source(config()).tables()) == ["7", "3", "7"]
    assert found("error") == []
    assert any("2 customer ids are also ids" in t and "cycle" in t for t in found("warning"))


def test_contradictions_are_counted() -> None:
    identities(("web", "a", "A"), ("web", "a", "B"), ("web", "a", "B"), ("web", "c", "C"))
    lines(["a"], ["web"])
    with pytest.raises(DataError, match=r"3 rows of 1 ids that contradict.*web:a: A and B"):
        open_source(config()).tables()


def test_other_problems_show_beside_a_cycle() -> None:
    identities(("web", "a", "b"), ("web", "b", "a"))
    lines(["a"])
    save("exposures", pd.DataFrame({"customer_id": ["a"], "arm": ["c5"]}))
    errors = found("error")
    assert any("cycle" in text for text in errors)
    assert any(text.startswith("exposures.campaign_id") for text in errors)


def test_ids_that_identities_does_not_name() -> None:
    identities(("web", "a", "A"))
    lines(["a", "b", "b", "z"], ["web", "web", "web", "wbe"])
    assert any(
        "source web: 2 rows of 1 ids that identities does not name" in text and "web:b" in text
        for text in found("note")
    )
    assert any("identities has no source wbe" in text for text in found("warning"))


def test_two_systems_without_identities() -> None:
    lines(["1", "1", "2"], ["web", "till", "web"])
    assert any("1 customer ids stand in several sources" in text for text in found("warning"))


def test_a_sale_to_a_guest_is_counted_and_left_out() -> None:
    identities(("web", "a", "A"))
    lines(["a", "", "a"], ["web", "web", "web"])
    tables = open_source(config(max_bad_share=0.5)).tables()
    assert customers(tables) == ["A", "A"]
    assert tables.counts["transactions"] == {"read": 3, "kept": 2, "missing_key": 1}
