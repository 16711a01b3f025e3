from __future__ import annotations

import pytest
from sqlalchemy import update

from serving.log import stock
from serving.log.engine import Log
from serving.log.schema import coupon_stock
from tests.unit.serving.log.processes import run_together

PIECES = 3_000
# Each process takes a few pieces at a time until it has been refused often; it prints its sum.
TAKE = """
import random, sys
from serving.log.engine import open_log
from serving.log import stock
log, rng = open_log(sys.argv[1]), random.Random(int(sys.argv[2]))
taken = refused = 0
print("ready", flush=True)
sys.stdin.readline()  # all start together, however busy the machine is
while refused < 8:
    with log.write() as connection:
        count = rng.randint(1, 6)
        if stock.take(connection, "c5", count):
            taken += count
        else:
            refused += 1
print(taken)
"""


def left(log: Log, *coupons: str) -> dict[str, int]:
    with log.read() as connection:
        return stock.left(log, connection, coupons)


def test_processes_never_take_more_pieces_than_there_are(log: Log, url: str) -> None:
    with log.write() as connection:
        stock.declare(log, connection, {"c5": PIECES})
    taken = run_together(TAKE, url, 4)
    assert PIECES - 5 <= sum(taken) <= PIECES
    assert left(log, "c5") == {"c5": PIECES - sum(taken)}
    assert sum(count > 0 for count in taken) >= 2  # they did compete


def test_a_new_number_keeps_what_was_given(log: Log) -> None:
    with log.write() as connection:
        stock.declare(log, connection, {"c5": 3, "p10": None})
        assert stock.take(connection, "c5", 3)
        assert not stock.take(connection, "c5", 1)
        stock.give_back(connection, "c5", 1)
        assert stock.locked(connection, "c5") == 1
    assert left(log, "c5", "p10", "x") == {"c5": 1}
    for pieces, rest in ((5, {"c5": 3}), (1, {"c5": 0}), (None, {})):
        with log.write() as connection:
            stock.declare(log, connection, {"c5": pieces})
        assert left(log, "c5") == rest
    with log.write() as connection:
        assert stock.take(connection, "c5", 1000)  # no limit any more


def test_the_database_itself_refuses_to_take_back_more_than_was_given(log: Log) -> None:
    with log.write() as connection:
        stock.declare(log, connection, {"c5": 3})
    with pytest.raises(Exception, match="ck_coupon_stock_given"), log.write() as connection:
        connection.execute(update(coupon_stock).values(given=-1))
