"""Explanations of single decisions say what the server says, and add up."""

from __future__ import annotations

import numpy as np
import pytest

from serving.__main__ import main
from serving.explain import explain, sentences
from tests.unit.serving.small_shop import NO_ORDERS, Shop

ALL = [f"c-{i:03d}" for i in range(300)]


def test_decisions_are_the_servers_and_contributions_add_up_to_their_uplift(shop: Shop) -> None:
    scorer = shop.scorer()
    found = explain(scorer, ALL)
    assert [one.decision for one in found] == scorer.answer(
        ALL, request_id="r", dry_run=True
    ).decisions
    arms = shop.model.bundle.arms
    for row, one in enumerate(found):
        assert one.why is not None
        assert one.arm is not None
        if one.decision.action == "offer":
            assert one.arm == one.decision.coupon_id
        assert one.why.effect == pytest.approx(one.decision.uplift, abs=1e-6)
        cate = shop.population.scores.cate[row, arms.index(one.arm)]
        assert one.why.effect == pytest.approx(float(cate), abs=1e-6)
        amounts = [amount for _, _, amount in one.why.top]
        assert one.why.base + sum(amounts) + one.why.others == pytest.approx(one.why.effect)
        values = dict(
            zip(shop.model.bundle.schema.names, shop.population.X[row].tolist(), strict=True)
        )
        for name, value, _ in one.why.top:
            if value is None:
                assert np.isnan(values[name])
            elif isinstance(value, float):
                assert value == pytest.approx(values[name])
            else:
                assert shop.model.bundle.schema.levels[name][int(values[name])] == value
    assert any(one.why is not None and one.why.top for one in found)


def test_unknown_customers_have_no_reason_but_their_own(shop: Shop) -> None:
    nobody, none = explain(shop.scorer(), ["nobody", NO_ORDERS])
    assert nobody.why is None
    assert none.why is not None
    told = sentences([nobody, none], "EUR", "EUR")
    assert told.startswith("nobody: no offer (unknown_customer)\n" + NO_ORDERS)
    (alone,) = explain(shop.scorer(), ["nobody"])
    assert alone == nobody


def test_the_text_holds_every_contribution(shop: Shop) -> None:
    found = [one for one in explain(shop.scorer(), ALL, most=2) if one.decision.coupon_id][:5]
    assert found
    for one in found:
        assert one.why is not None
        told = sentences([one], "EUR", "orders")
        assert f"offer {one.arm} ({one.decision.reason})" in told
        assert f"predicted effect of {one.arm} {one.why.effect:+.4g} orders:" in told
        assert f"{one.why.base:+.4g}" in told
        assert len(one.why.top) <= 2
        for name, _, amount in one.why.top:
            assert f"{amount:+10.4g}  {name} " in told


def test_a_wrong_count_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["explain", "--config", "configs/demo.yaml", "--customer", "c", "--most", "0"])
    assert code == 2
    assert "--most" in capsys.readouterr().err
