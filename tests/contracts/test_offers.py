"""What every registered coupon kind owes: worked examples, refusals, a documentation row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uplift.errors import OfferError
from uplift.kinds import KINDS, Example, Line, Order
from uplift.offers import Offer, documentation, parse_offers

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    pytest.param(name, example, id=f"{name}-{example.text}")
    for name, kind in KINDS.items()
    for example in kind.examples
]


def offer(kind: str, /, **params: Any) -> Offer:
    return parse_offers([{"coupon_id": "c1", "kind": kind, "params": params}])[0]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_a_worked_example_and_words(name: str) -> None:
    kind = KINDS[name]
    assert kind.examples, f"{name}: add a worked example to the class"
    assert kind.name == name
    assert kind.title
    assert kind.rule
    assert isinstance(kind.shows_as_discount, bool)
    assert all(param.meaning for param in kind.params)


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_worked_examples(name: str, example: Example) -> None:
    made = offer(name, **example.params)
    assert made.face_cost(example.order) == example.cost


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_every_kind_keeps_its_bound_and_ignores_returns(name: str, example: Example) -> None:
    made = offer(name, **example.params)
    dear = Order(
        tuple(
            Line(1_000.0 * line.list_value, line.quantity, line.product)
            for line in example.order.lines
        ),
        first=example.order.first,
    )
    most = made.max_face_cost
    for order in (example.order, dear):
        cost = made.face_cost(order)
        assert 0 <= cost == round(cost, 2)
        assert most is None or cost <= most
        if made.shows_as_discount:
            assert cost <= float(order.list_value)
        returned = Order((*order.lines, Line(-50.0, -1.0, "P1")), first=order.first)
        assert made.face_cost(returned) == cost


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_costs_nothing_off_an_empty_order(name: str) -> None:
    made = offer(name, **KINDS[name].examples[0].params)
    if made.shows_as_discount:
        assert made.face_cost(Order(first=True)) == 0


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_refuses_what_it_does_not_know(name: str) -> None:
    given = {**KINDS[name].examples[0].params, "colour": 1}
    with pytest.raises(OfferError, match=r"offer c1: params\.colour: expected .*an unknown key"):
        offer(name, **given)


@pytest.mark.parametrize(
    ("name", "param"),
    [(name, param) for name, kind in KINDS.items() for param in kind.params],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_parameter_is_checked(name: str, param: Any) -> None:
    given = dict(KINDS[name].examples[0].params)
    with pytest.raises(OfferError, match=rf"offer c1: params\.{param.name}: expected .* found"):
        offer(name, **{**given, param.name: object()})
    given.pop(param.name, None)
    if param.required:
        with pytest.raises(OfferError, match=rf"params\.{param.name}: expected .*, found nothing"):
            offer(name, **given)
    else:
        assert param.accepts(param.default)


HIGHER = {
    "threshold": 80.0, "off": 60.0, "repeat": True, "min_spend": 50.0, "rate_off": 0.9,
    "max_off": 90.0, "n": 3, "base_per_unit": 2.0, "multiplier": 3.0, "bonus": 40,
    "point_value": 0.5, "breakage": 0.6, "unit_cost": 70.0, "price": 60.0,
}  # fmt: skip
LOWER = {
    "threshold": 70.0, "off": 20.0, "repeat": False, "min_spend": 20.0, "rate_off": 0.25,
    "max_off": 8.0, "n": 2, "base_per_unit": 0.5, "multiplier": 1.5, "bonus": 3,
    "point_value": 0.02, "breakage": 0.1, "unit_cost": 4.0, "price": 15.0,
}  # fmt: skip


def random_orders(count: int) -> list[Order]:
    """Baskets of up to five lines of three products, to cents."""
    rng = np.random.default_rng(2)
    return [
        Order(
            tuple(
                Line(
                    float(rng.integers(1, 9_000)) / 100,
                    float(rng.integers(1, 7)),
                    str(rng.choice(["P1", "P2", "P3"])),
                )
                for _ in range(int(rng.integers(1, 6)))
            ),
            first=bool(rng.integers(0, 2)),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "param"),
    [(name, param) for name, kind in KINDS.items() for param in kind.params if param.face],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_declared_direction_of_the_cost_is_kept_on_any_order(name: str, param: Any) -> None:
    first = {**KINDS[name].examples[0].params}
    # Of what else binds, so little that the parameter is seen; both values are allowed then.
    first |= {"threshold": 70.0} if "threshold" in first and param.name != "threshold" else {}
    first |= {"off": 20.0} if name == "threshold_off" and param.name != "off" else {}
    first |= {"price": 15.0} if "price" in first else {}
    less, more = (
        offer(name, **{**first, param.name: values[param.name]})
        for values in ((LOWER, HIGHER) if param.face == "rising" else (HIGHER, LOWER))
    )
    assert more.costs_at_least(less)
    assert not less.costs_at_least(more)
    costs = np.array(
        [
            [made.coupon.expected_face_cost(order) for made in (less, more)]
            for order in random_orders(300)
        ]
    )
    assert (costs[:, 1] >= costs[:, 0]).all()
    assert (costs[:, 1] > costs[:, 0]).any(), "the parameter does not matter here"


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_survives_its_plain_form(name: str) -> None:
    made = offer(name, **KINDS[name].examples[0].params)
    again = parse_offers([json.loads(json.dumps(made.spec()))])[0]
    assert again == made
    assert hash(again) == hash(made)
    assert again.spec() == made.spec()


def test_the_documentation_is_current() -> None:
    text = (ROOT / "docs/coupons.md").read_text(encoding="utf-8")
    assert text == documentation(), "docs/coupons.md lags: its first lines say how to renew it"
    for name, kind in KINDS.items():
        assert f"\n|`{name}` {kind.title}|" in text
