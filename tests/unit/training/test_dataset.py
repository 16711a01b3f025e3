"""Outcomes, money and probabilities of a training set, by hand-computed numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.config import Config
from features.errors import ConfigError, DataError
from features.sources import open_source
from tests.unit.training.shops import (
    OFFERS,
    config_of,
    exposure,
    line,
    random_experiment,
    wide_config,
    write,
)
from training.dataset import Dataset, build_dataset
from training.train import offers_of


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build(config: Config) -> Dataset:
    return build_dataset(open_source(config).tables(), config, offers_of(config))


def shop(folder: Path) -> Path:
    """Six exposures whose windows [10 January, 24 January) bring known amounts."""
    return write(
        folder,
        transactions=[
            line("a", "a0", "2025-12-01T10:00:00", 40.0),
            line("b", "b0", "2025-12-02T10:00:00", 40.0),
            line("c", "c0", "2025-12-03T10:00:00", 40.0),
            line("d", "d0", "2025-12-04T10:00:00", 40.0),
            line("e", "e0", "2025-12-05T10:00:00", 40.0),
            # a, control: an order in the window, one a second too late
            line("a", "a1", "2026-01-10T00:00:00", 50.0, discount=10.0),
            line("a", "a2", "2026-01-24T00:00:00", 70.0),
            # b, c5: redeems 5 off, two lines in one order
            line("b", "b1", "2026-01-12T09:00:00", 25.0, discount=5.0, coupon_id="c5"),
            line("b", "b1", "2026-01-12T09:00:00", 10.0),
            # c, tote: the gift's cost is logged, no discount
            line("c", "c1", "2026-01-13T09:00:00", 60.0),
            # d, c5: buys and returns everything within the window
            line("d", "d1", "2026-01-14T09:00:00", 30.0),
            line("d", "d1", "2026-01-15T09:00:00", -30.0),
            line("z", "z1", "2026-02-20T09:00:00", 5.0),
        ],
        exposures=[
            exposure(1, "a", "control"),
            exposure(2, "b", "c5"),
            exposure(3, "c", "tote", cost=3.2),
            exposure(4, "d", "c5"),
            exposure(5, "e", "control"),
            exposure(6, "e", "tote", at="2026-02-19", cost=0.2),
        ],
    )


def test_profit_cost_and_conversion_by_hand(tmp_path: Path) -> None:
    data = build(config_of(shop(tmp_path / "t"))).training
    assert data.customer.tolist() == ["a", "b", "c", "d", "e"]
    assert data.converted.tolist() == [1, 1, 1, 0, 0]
    # amount - 0.6 * list value - contact - (gift): a 50 - 36; b 35 - 24 - .1; c 60 - 36 - .2 - 3;
    # d 0 - 0 - .1
    np.testing.assert_allclose(data.reward, [14.0, 10.9, 20.8, -0.1, 0.0], atol=1e-12)
    np.testing.assert_allclose(data.y, data.reward)
    # b: contact and 5 off its own coupon; c as logged; d contact alone
    np.testing.assert_allclose(data.cost, [0.0, 5.1, 3.2, 0.1, 0.0], atol=1e-12)


def test_spend_is_net_and_its_reward_is_the_profit(tmp_path: Path) -> None:
    config = config_of(shop(tmp_path / "t"), outcome={"kind": "spend", "margin_rate": 0.4})
    data = build(config).training
    np.testing.assert_allclose(data.y, [50.0, 35.0, 60.0, 0.0, 0.0])
    np.testing.assert_allclose(data.reward, [14.0, 10.9, 20.8, -0.1, 0.0], atol=1e-12)


def test_conversion_is_worth_its_value_less_the_cost(tmp_path: Path) -> None:
    config = config_of(shop(tmp_path / "t"), outcome={"kind": "conversion", "value": 8.0})
    data = build(config).training
    assert data.y.tolist() == [1, 1, 1, 0, 0]
    np.testing.assert_allclose(data.reward, [8.0, 2.9, 4.8, -0.1, 0.0], atol=1e-12)


def test_profit_has_three_forms_that_agree(tmp_path: Path) -> None:
    """Summed line by line; m x gross - discount - contact; m x amount - (1 - m) x discount -
    contact. Returns are negative amounts, and count like all lines of the window."""
    rng = np.random.default_rng(8)
    margin, contact = 0.35, 0.1
    ids = [f"k{i}" for i in range(60)]
    lines = [line("z", "z1", "2026-02-20T09:00:00", 5.0)]
    for i in range(300):
        day = int(rng.integers(5, 29))  # before, in and after the window from the 10th to the 23rd
        back = rng.random() < 0.15
        amount = -rng.uniform(1, 30) if back else rng.uniform(1, 90)
        off = 0.0 if back else rng.choice([0.0, rng.uniform(0, 9)])
        coupon = "c5" if rng.random() < 0.3 else None
        at = f"2026-01-{day:02}T10:00:00"
        lines.append(
            line(str(rng.choice(ids)), f"o{i}", at, round(float(amount), 2),
                 discount=round(float(off), 2), coupon_id=coupon)
        )  # fmt: skip
    arms = ["control", *rng.choice(["control", "c5"], len(ids) - 1)]
    folder = write(
        tmp_path / "t",
        transactions=lines,
        exposures=[exposure(i, name, arms[i]) for i, name in enumerate(ids)],
    )
    outcome = {"kind": "profit", "margin_rate": margin, "window_days": 14}
    data = build(config_of(folder, outcome=outcome, offers=OFFERS[:1])).training
    told = dict(zip(data.customer.tolist(), data.reward.tolist(), strict=True))
    for name, arm in zip(ids, arms, strict=True):
        mine = [
            (q["amount"], q["discount"])
            for q in lines
            if q["customer_id"] == name and 10 <= int(q["transacted_at"][8:10]) <= 23
        ]
        amount, discount = (sum(column) for column in zip(*mine, strict=True)) if mine else (0, 0)
        paid = contact if arm == "c5" else 0.0
        forms = (
            sum(a - (1 - margin) * (a + d) for a, d in mine) - paid,
            margin * (amount + discount) - discount - paid,
            margin * amount - (1 - margin) * discount - paid,
        )
        assert forms == pytest.approx([told[name]] * 3, abs=1e-9)


def test_open_windows_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = build(config_of(shop(tmp_path / "t")))
    assert dataset.counts == {"exposures": 6, "open_windows": 1, "used": 5}


def test_features_know_nothing_of_the_window(tmp_path: Path) -> None:
    data = build(config_of(shop(tmp_path / "t"))).training
    place = data.schema.names.index("orders_total")
    assert data.X[:, place].tolist() == [1, 1, 1, 1, 1]


def test_no_control_is_said_plainly(tmp_path: Path) -> None:
    folder = shop(tmp_path / "t")
    write(folder, exposures=[exposure(1, "a", "c5"), exposure(2, "b", "tote", cost=1.0)])
    with pytest.raises(DataError, match=r"control"):
        build(config_of(folder))


def test_an_offer_without_exposures_is_named(tmp_path: Path) -> None:
    folder = shop(tmp_path / "t")
    write(folder, exposures=[exposure(1, "a", "control"), exposure(2, "b", "c5")])
    with pytest.raises(DataError, match=r"found none of tote"):
        build(config_of(folder))


def test_no_exposures_at_all(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", transactions=[line("a", "a0", "2025-12-01T10:00:00", 40.0)])
    with pytest.raises(DataError, match=r"exposures"):
        build(config_of(folder))


def test_every_window_still_open(tmp_path: Path) -> None:
    folder = shop(tmp_path / "t")
    source = {"kind": "files", "path": str(folder), "complete_until": "2026-01-11"}
    with pytest.raises(DataError, match=r"found none of 6 \(6 still open\)"):
        build(config_of(folder, source=source))


def test_what_partners_bear_comes_back(tmp_path: Path) -> None:
    """Half of c5 is funded: b's five off cost 2.5, and 2.5 of profit come back."""
    offers = [dict(o, funded_share=0.5) if o["coupon_id"] == "c5" else o for o in OFFERS]
    data = build(config_of(shop(tmp_path / "t"), offers=offers)).training
    np.testing.assert_allclose(data.reward, [14.0, 13.4, 20.8, -0.1, 0.0], atol=1e-12)
    np.testing.assert_allclose(data.cost, [0.0, 2.6, 3.2, 0.1, 0.0], atol=1e-12)


def test_what_is_paid_with_the_grant_is_paid_by_everyone_who_got_it(tmp_path: Path) -> None:
    folder = shop(tmp_path / "t")
    write(
        folder,
        exposures=[exposure(1, "a", "control"), exposure(2, "b", "salon"), exposure(3, "c", "vip")],
    )
    salon = {"coupon_id": "salon", "kind": "non_cash", "contact_cost": 0.1}
    offers = [
        {**salon, "params": {"unit_cost": 30, "cost_on": "grant"}},
        {**salon, "coupon_id": "vip", "params": {"unit_cost": 30}},
    ]
    data = build(config_of(folder, offers=offers)).training
    np.testing.assert_allclose(data.cost, [0.0, 30.1, 0.1], atol=1e-12)


POINTS: dict[str, Any] = {"base_per_unit": 1, "multiplier": 2, "bonus": 50, "point_value": 0.01}


def points_shop(folder: Path) -> Path:
    """Who was sent double points and 50 more, and what they bought in the two weeks after it."""
    at = "2026-01-12T09:00:00"
    return write(
        folder,
        transactions=[
            line("z", "z1", "2026-02-20T09:00:00", 5.0),
            # b: two lines of the order that bears the coupon, one of them returned later; another
            # order beside it counts for nothing
            line("b", "b1", at, 25.5, coupon_id="pts", category="tea"),
            line("b", "b1", at, 10.0, coupon_id="pts", category="cups"),
            line("b", "b1", "2026-01-13T09:00:00", -10.0, coupon_id="pts", category="cups"),
            line("b", "b2", at, 500.0, category="tea"),
            # c: the redemption is an event, and no order bears the coupon: the first one counts
            line("c", "c2", "2026-01-20T09:00:00", 99.0, category="tea"),
            line("c", "c1", "2026-01-11T09:00:00", 30.99, category="tea"),
            # d: bought without the coupon
            line("d", "d1", at, 80.0, category="tea"),
            # e: everything came back
            line("e", "e1", at, 40.0, coupon_id="pts", category="tea"),
            line("e", "e1", "2026-01-14T09:00:00", -40.0, coupon_id="pts", category="tea"),
            # f: logged; g: redeemed twice
            line("f", "f1", at, 10.0, coupon_id="pts", category="tea"),
            line("g", "g1", at, 10.0, coupon_id="pts", category="tea"),
            line("g", "g2", "2026-01-13T09:00:00", 20.0, coupon_id="pts", category="tea"),
        ],
        exposures=[
            exposure(1, "a", "control", cost=None),
            *(exposure(2 + i, name, "pts", cost=None) for i, name in enumerate("bcde")),
            exposure(6, "f", "pts", cost=9.9),
            exposure(7, "g", "pts", cost=None),
        ],
        events=[
            {"event_id": "v1", "customer_id": "c", "campaign_id": "jan", "type": "redeemed",
             "occurred_at": "2026-01-11T09:00:00", "coupon_id": "pts"},
        ],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "cost"),
    [
        # b: floor(25.5) + 50 points, a cent each, and the contact; c: 30 + 50; e: no order is left
        ({}, [0.75, 0.80, 0.0, 0.0, 9.8, 0.60]),
        ({"params": {**POINTS, "breakage": 0.2}}, [0.60, 0.64, 0.0, 0.0, 9.8, 0.48]),
        ({"per_customer_limit": 2}, [0.75, 2.29, 0.0, 0.0, 9.8, 1.30]),
        ({"scope": {"categories": ["cups"]}}, [0.50, 0.50, 0.0, 0.0, 9.8, 0.50]),
        ({"funded_share": 0.5}, [0.375, 0.40, 0.0, 0.0, 9.8, 0.30]),
        # The bonus alone has a bound; whoever redeems gets it.
        ({"params": {"bonus": 50, "point_value": 0.01, "breakage": 0.2}},
         [0.40, 0.40, 0.0, 0.0, 9.8, 0.40]),
    ],
)  # fmt: skip
def test_points_cost_what_the_orders_tell(
    tmp_path: Path, keys: dict[str, Any], cost: list[float]
) -> None:
    pts = {"coupon_id": "pts", "kind": "points", "params": POINTS, "contact_cost": 0.1, **keys}
    data = build(config_of(points_shop(tmp_path / "t"), offers=[pts])).training
    paid = data.cost[data.arm == 1]
    np.testing.assert_allclose(paid, np.array(cost) + 0.1, atol=1e-12)
    # They do not stand in a discount, so they come off the profit.
    net = np.array([525.5, 129.99, 80.0, 0.0, 10.0, 30.0])
    np.testing.assert_allclose(data.reward[data.arm == 1], 0.4 * net - paid, atol=1e-12)


def test_points_without_costs_or_orders_are_refused(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "t",
        exposures=[
            exposure(1, "a", "control", visit=1, x0=1.0),
            exposure(2, "b", "pts", visit=0, x0=2.0),
        ],
    )
    pts = {"coupon_id": "pts", "kind": "points", "params": POINTS}
    with pytest.raises(DataError, match=r"what each exposure of pts \(points\) came to cost"):
        build(
            config_of(
                folder,
                features={"set": [], "given": ["x0"]},
                outcome={"kind": "column", "column": "visit", "value": 1.0},
                offers=[pts],
            )
        )


def test_a_given_outcome_with_gaps_is_refused(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "t",
        exposures=[
            exposure(1, "a", "control", visit=1, x0=1.0),
            exposure(2, "b", "c5", visit=None, x0=2.0),
            exposure(3, "c", "tote", visit=0, x0=3.0),
        ],
    )
    config = config_of(
        folder,
        features={"set": [], "given": ["x0"]},
        outcome={"kind": "column", "column": "visit"},
        offers=[
            {"coupon_id": c, "kind": "message", "params": {}, "contact_cost": 0.1}
            for c in ("c5", "tote")
        ],
    )
    with pytest.raises(DataError, match=r"exposures.visit: .*1 missing_number in visit"):
        build(config)


def test_probabilities_configured_logged_or_counted(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 1000)
    counted = build(wide_config(folder)).training
    shares = np.bincount(counted.arm, minlength=3) / len(counted)
    np.testing.assert_allclose(counted.assignment, np.tile(shares, (1000, 1)))
    design = {"control": 0.4, "c5": 0.3, "tote": 0.3}
    configured = build(wide_config(folder, experiment={"assignment": design})).training
    np.testing.assert_allclose(configured.assignment, np.tile([0.4, 0.3, 0.3], (1000, 1)))


def test_probabilities_that_do_not_sum_to_one(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 200)
    design = {"control": 0.4, "c5": 0.3, "tote": 0.1}
    with pytest.raises(ConfigError, match=r"sum to 1"):
        build(wide_config(folder, experiment={"assignment": design}))


def test_a_given_feature_that_is_not_there(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 200)
    config = wide_config(folder)
    raw = config.model_dump() | {"features": {"set": [], "given": ["x0", "nonsense"]}}
    with pytest.raises((ConfigError, DataError), match=r"nonsense"):
        build(Config.model_validate(raw))


def test_a_profit_outcome_needs_transactions(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 200)
    config = wide_config(folder)
    raw = config.model_dump() | {"outcome": {"kind": "profit", "margin_rate": 0.3}}
    with pytest.raises(ConfigError, match=r"outcome.kind.*no transactions"):
        build(Config.model_validate(raw))
