from __future__ import annotations

import pytest
from sqlalchemy import insert, select, update

from serving.log import ledger
from serving.log.campaigns import Campaigns
from serving.log.engine import Log
from serving.log.schema import campaign_budget, decisions
from tests.unit.serving.log.processes import run_together

CAP = 1_000_000
# Each process charges until it has been refused often; it prints what it was granted.
SPEND = """
import random, sys
from serving.log.engine import open_log
from serving.log.ledger import charge
log, rng = open_log(sys.argv[1]), random.Random(int(sys.argv[2]))
granted = refused = 0
print("ready", flush=True)
sys.stdin.readline()  # all start together, however busy the machine is
while refused < 8:
    with log.write() as connection:
        for _ in range(rng.randint(1, 5)):
            cost = rng.randint(1, 5_000)
            if charge(connection, "c", cost):
                granted += cost
            else:
                refused += 1
print(granted)
"""


def campaign(log: Log, cap: int | None, name: str = "c") -> None:
    with log.write() as connection:
        assert Campaigns(log).create(connection, name, "{}", cap, 0)


def budget(log: Log, name: str = "c") -> ledger.Budget:
    with log.read() as connection:
        return ledger.budgets(log, connection, [name])[name]


def test_eight_processes_spend_the_cap_and_never_more(log: Log, url: str) -> None:
    campaign(log, CAP)
    granted = run_together(SPEND, url, 8)
    found = budget(log)
    assert sum(granted) == found.committed
    assert 0.99 * CAP <= found.committed <= CAP
    assert sum(amount > 0 for amount in granted) >= 2  # they did compete


def test_a_charge_is_granted_up_to_the_last_millionth(log: Log) -> None:
    campaign(log, 10)
    with log.write() as connection:
        assert ledger.charge(connection, "c", 7)
        assert not ledger.charge(connection, "c", 4)
        assert ledger.charge(connection, "c", 3)
        assert ledger.charge(connection, "c", 0)
        assert not ledger.charge(connection, "c", 1)
    assert budget(log) == ledger.Budget("active", 10, 10, 0)


def test_without_a_cap_everything_is_granted_and_counted(log: Log) -> None:
    campaign(log, None)
    with log.write() as connection:
        assert ledger.charge(connection, "c", 10**12)
    assert (budget(log).committed, budget(log).left) == (10**12, None)


def test_a_paused_campaign_grants_nothing_not_even_what_is_free(log: Log) -> None:
    campaign(log, 10)
    with log.write() as connection:
        Campaigns(log).pause(connection, "c", "wrong coupon", 5)
        assert not ledger.charge(connection, "c", 0)
        Campaigns(log).resume(connection, "c")
        assert ledger.charge(connection, "c", 1)


def decided(log: Log, decision_id: str, reserved: int, until: int = 100, name: str = "c") -> None:
    row = {
        "decision_id": decision_id, "campaign_id": name, "customer_id": decision_id,
        "window_id": 0, "sticky": True, "action": "offer", "arm": "a", "reason": "best_net_value",
        "holdout_kind": "none", "is_exploration": False, "assignment_prob": 0.9,
        "holdout_share": 0.0, "exploration_share": 0.0, "expected_profit_micros": 1,
        "expected_cost_micros": reserved, "reserved_micros": reserved, "realised_micros": 0,
        "reservation": "held", "profile_state": "known", "warnings": "", "valid_until": until,
        "decided_at": 0, "as_of": 0, "snapshot_id": "s", "model_version": "1",
        "policy_version": "1",
    }  # fmt: skip
    with log.write() as connection:
        connection.execute(insert(decisions), row)
        assert ledger.charge(connection, name, reserved)


def state(log: Log, decision_id: str) -> tuple[str, int]:
    with log.read() as connection:
        row = connection.execute(
            select(decisions).where(decisions.c.decision_id == decision_id)
        ).one()
        return row.reservation, row.realised_micros


def test_a_redemption_moves_what_was_reserved_to_what_it_cost_once(log: Log) -> None:
    campaign(log, 100)
    decided(log, "d1", 30)
    decided(log, "d2", 30)
    for cost in (50, 50, 20):  # the dearest counts
        with log.write() as connection:
            ledger.realise(connection, {"d1": cost})
    assert budget(log) == ledger.Budget("active", 100, 30, 50)
    assert state(log, "d1") == ("realised", 50)
    with log.write() as connection:
        ledger.realise(connection, {"d2": 90})
    spent = budget(log)
    assert (spent.committed, spent.realised, spent.overshoot, spent.left) == (0, 140, 40, 0)
    with log.write() as connection:
        assert not ledger.charge(connection, "c", 1)


@pytest.mark.parametrize("late", [False, True])
def test_what_expired_is_given_back_and_a_late_redemption_still_counts(
    log: Log, late: bool
) -> None:
    campaign(log, 100)
    campaign(log, 100, "other")
    decided(log, "d1", 30, until=100)
    decided(log, "d2", 40, until=200)
    decided(log, "d3", 50, until=100, name="other")
    moment = 150 + ledger.RELEASE_AFTER
    with log.write() as connection:
        assert ledger.release(connection, moment) == 2
        assert ledger.release(connection, moment) == 0
    assert (budget(log).committed, budget(log, "other").committed) == (40, 0)
    if late:
        with log.write() as connection:
            ledger.realise(connection, {"d1": 25})
        assert (budget(log).committed, budget(log).realised) == (40, 25)


def test_the_database_itself_refuses_a_negative_promise(log: Log) -> None:
    campaign(log, 100)
    with pytest.raises(Exception, match="ck_campaign_budget_committed"), log.write() as connection:
        connection.execute(update(campaign_budget).values(committed_micros=-1))
