"""The catalogue: its core set, its names, its documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.errors import ConfigError
from features.reference import reference
from features.registry import (
    CATALOGUE,
    available,
    check_names,
    closure,
    feature,
    feature_names,
    get,
)
from features.relations import RELATIONS
from tests.unit.features.conftest import make_config

ROOT = Path(__file__).parents[3]
CORE = {
    *("recency_days", "order_days_365d", "spend_365d", "tenure_days", "orders_30d", "spend_90d"),
    *("interval_mean_days", "overdue_ratio", "weekend_share_365d", "categories_365d"),
    *("category_favourite_365d", "novelty_share_365d", "order_value_mean_365d"),
    *("discount_rate_365d", "discounted_order_share_365d", "kind_favourite_365d"),
    *("channel_favourite_365d", "response_rate_365d", "offers_28d", "spend_trend_90d"),
}


def test_core_is_the_twenty_of_the_rules() -> None:
    assert len(CORE) == 20
    assert {name for name, f in CATALOGUE.items() if f.core} == CORE
    assert set(feature_names(make_config())) == CORE
    assert len(CATALOGUE) == 67
    opted_in = make_config(features={"set": "all", "gender": True})
    assert feature_names(opted_in) == list(CATALOGUE)
    assert set(CATALOGUE) - set(feature_names(make_config(features={"set": "all"}))) == {"gender"}


def test_a_window_of_any_length_is_a_feature() -> None:
    config = make_config(features={"set": ["recency_days"], "windows_days": [45]})
    assert feature_names(config) == ["recency_days"]
    config = make_config(features={"set": "core", "windows_days": [30, 45]})
    added = feature_names(config)[20:]
    assert added == [*("order_days_30d", "spend_30d", "orders_45d", "order_days_45d", "spend_45d")]
    assert check_names(["spend_7d"]) == ["spend_7d"]
    with pytest.raises(ConfigError, match="spend_0d"):
        check_names(["spend_0d"])


def test_a_list_is_taken_in_its_order() -> None:
    names = ["spend_90d", "recency_days"]
    assert feature_names(make_config(features={"set": names})) == names
    assert feature_names(make_config(features={"set": []})) == []


def test_unknown_and_repeated_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'recency_day'\. Did you mean recency_days\?"):
        feature_names(make_config(features={"set": ["recency_day"]}))
    with pytest.raises(ConfigError, match=r"each feature once.*spend_90d"):
        check_names(["spend_90d", "offers_28d", "spend_90d"])


def test_every_relation_is_used_and_known() -> None:
    used = {f.of for f in CATALOGUE.values()} - {"features"}
    assert used == set(RELATIONS)


def test_what_a_feature_uses_comes_first_and_its_needs_are_shared() -> None:
    assert [f.name for f in closure(["overdue_ratio"])] == [
        *("recency_days", "interval_expected_days", "overdue_ratio")
    ]
    for f in CATALOGUE.values():
        for used in f.uses:
            assert set(get(used).needs) <= set(f.needs)
            assert get(used).population <= f.population
    assert available("offers_28d", {"exposures"})
    assert not available("response_rate_365d", {"exposures"})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("spend_90d", {}, "stands twice"),
        ("new_one", {"group": "no"}, "group no is not one of"),
        ("new_one", {"needs": ("weather",)}, r"needs \['weather'\]"),
        ("new_one", {"uses": ("later",)}, r"uses \['later'\]"),
    ],
)
def test_a_faulty_registration_is_refused(
    name: str, values: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"group": "rfm", "of": "orders", "doc": "."}
    with pytest.raises(ValueError, match=message):
        feature(name, **(arguments | values))  # type: ignore[arg-type]
    assert "new_one" not in CATALOGUE


def test_the_documentation_is_the_catalogue() -> None:
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    assert page == reference(), "run python -m features.reference"
    for name in CATALOGUE:
        assert page.count(f"| `{name}`") == 1
