"""Consent by channel, rolling caps, quiet hours, and when and by what to write, by hand."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from features.config import Config
from features.contact import FOREVER, by_channel, caps_free_at, consented, quiet_at, quiet_until
from features.contact import unsubscribed_channels as one_channel
from features.send_times import BASES, allowed_hours, send_times
from features.tables import Tables
from tests.unit.features.conftest import make_config, make_tables

AS_OF = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday
IDS = pd.Series(["a", "b", "c", "d"])


def exposure(customer: str, at: str, channel: str | None = "sms", **more: Any) -> dict[str, Any]:
    return {"customer_id": customer, "campaign_id": "k1", "assigned_at": at, "arm": "c5",
            "channel": channel, **more}  # fmt: skip


def event(customer: str, what: str, at: str, campaign: str | None = "k1") -> dict[str, Any]:
    return {"event_id": f"{customer}{what}{at}", "customer_id": customer, "type": what,
            "occurred_at": at, "campaign_id": campaign}  # fmt: skip


def shop(**tables: list[dict[str, Any]]) -> Tables:
    return make_tables(**{name: pd.DataFrame(rows) for name, rows in tables.items()})


def config_of(**contact: Any) -> Config:
    return make_config(contact=contact)


def test_min_gap_and_caps_end_at_the_later_of_both() -> None:
    tables = shop(
        exposures=[
            exposure("a", "2026-02-28T13:00"),  # 1 day 23 hours ago
            exposure("b", "2026-02-28T12:00"),  # exactly two days ago
            exposure("c", "2026-03-01T00:00", arm="control"),
            exposure("d", "2026-03-02T12:00"),  # at the moment: not seen
        ]
    )
    free = caps_free_at(tables, IDS, AS_OF, config_of(overall={}))
    assert str(free[0]) == "2026-03-02T13:00:00.000000"
    assert np.isnat(free[1:]).all()
    free = caps_free_at(tables, IDS, AS_OF, config_of(overall={"7d": 1}))
    assert [str(t)[:13] for t in free] == ["2026-03-07T13", "2026-03-07T12", "NaT", "NaT"]
    free = caps_free_at(tables, IDS, AS_OF, config_of(overall={}, min_gap_days=0))
    assert np.isnat(free).all()


class TestChannels:
    def test_consent_by_channel(self) -> None:
        tables = shop(
            customers=[
                {"customer_id": "a", "consented_channels": "sms, push"},
                {"customer_id": "b", "consented_channels": ""},
                {"customer_id": "c", "consented_channels": None},
            ]
        )
        found = by_channel(tables, IDS, AS_OF, config_of(), ["sms", "push", "email"])
        assert found.consent.tolist() == [[True, True, False], *[[False] * 3] * 3]
        assumed = config_of(assume_consent=True)
        found = by_channel(tables, IDS, AS_OF, assumed, ["sms", "push", "email"])
        assert found.consent[2:].all()
        assert not found.consent[1].any()

    def test_where_nothing_is_said_of_channels_consent_is_for_all(self) -> None:
        tables = shop(customers=[{"customer_id": "a", "marketing_consent": True}])
        assert by_channel(tables, IDS, AS_OF, config_of(), ["sms"]).consent.all()

    def test_unsubscribing_from_one_channel_leaves_the_others(self) -> None:
        tables = shop(
            customers=[{"customer_id": i, "marketing_consent": True} for i in IDS],
            exposures=[
                exposure("a", "2026-02-01"),
                exposure("b", "2026-02-01"),
                exposure("b", "2026-02-01", "push"),
                exposure("c", "2026-02-01", None),
            ],
            events=[
                event("a", "unsubscribed", "2026-02-02"),
                event("b", "unsubscribed", "2026-02-02"),  # by sms or push: unknown
                event("c", "unsubscribed", "2026-02-02"),
                event("d", "unsubscribed", "2026-03-02T12:00"),  # at the moment: not seen
            ],
        )
        one = one_channel(tables, AS_OF)
        assert one[["customer_id", "channel"]].to_numpy().tolist() == [["a", "sms"]]
        config = config_of()
        assert consented(tables, IDS, AS_OF, config).tolist() == [False, False, False, True]
        all_of_them = consented(tables, IDS, AS_OF, config, one["event_id"])
        assert all_of_them.tolist() == [True, False, False, True]
        by = by_channel(tables, IDS, AS_OF, config, ["sms", "push"])
        assert by.consent.tolist() == [[False, True], *[[True, True]] * 3]

    def test_caps_count_their_own_channel_alone(self) -> None:
        rows = [exposure("a", "2026-02-27"), exposure("a", "2026-02-25"),
                exposure("b", "2026-02-27"), exposure("b", "2026-02-25", "push")]  # fmt: skip
        config = config_of(caps={"sms": {"7d": 2}, "default": {"7d": 1}})
        found = by_channel(shop(exposures=rows), IDS, AS_OF, config, ["sms", "push", "fax"])
        # a's second sms of 25 February leaves the window on 4 March.
        assert str(found.free_at[0, 0])[:13] == "2026-03-04T00"
        assert str(found.free_at[1, 1])[:13] == "2026-03-04T00"
        others = np.delete(found.free_at.ravel(), [0, 4])
        assert np.isnat(others).all()
        shut = by_channel(shop(exposures=rows), IDS, AS_OF, config_of(caps={"sms": {"7d": 0}}),
                          ["sms", "push"])  # fmt: skip
        assert (shut.free_at[:, 0] == FOREVER).all()
        assert np.isnat(shut.free_at[:, 1]).all()

    def test_the_channel_that_is_clicked_most_smoothed(self) -> None:
        """sms: 1 click of 2 offers in all; push: 1 of 4. a: (1 + 2.5) / 6 and (0 + 1.25) / 6."""
        tables = shop(
            exposures=[
                exposure("a", "2026-02-01"),
                exposure("a", "2026-02-02", "push", campaign_id="k2"),
                exposure("b", "2026-02-01"),
                *[exposure(i, "2026-02-03", "push", campaign_id="k3") for i in "bcd"],
            ],
            events=[
                event("a", "clicked", "2026-02-01T08:00"),
                event("c", "clicked", "2026-02-04", "k3"),
                event("d", "clicked", "2026-03-02T12:00", "k3"),  # at the moment: not seen
            ],
        )
        found = by_channel(tables, IDS, AS_OF, config_of(), ["push", "sms"])
        expected = [
            [1.25 / 6, 3.5 / 6],
            [1.25 / 6, 2.5 / 6],
            [2.25 / 6, 2.5 / 5],
            [1.25 / 6, 2.5 / 5],
        ]
        np.testing.assert_allclose(found.rate, expected)
        every = np.ones((4, 2), dtype=bool)
        assert found.best(every, {}).tolist() == [1, 1, 1, 1]
        assert found.best(np.array([[True, False]] * 3 + [[False, False]]), {}).tolist() == [
            0, 0, 0, -1
        ]  # fmt: skip

    def test_of_channels_that_are_alike_the_cheapest_then_the_first(self) -> None:
        found = by_channel(shop(customers=[{"customer_id": "a"}]), IDS[:1], AS_OF, config_of(),
                           ["sms", "push", "email"])  # fmt: skip
        every = np.ones((1, 3), dtype=bool)
        assert found.best(every, {}).tolist() == [0]
        assert found.best(every, {"sms": 0.05, "push": 0.01, "email": 0.01}).tolist() == [1]


class TestQuietHours:
    @pytest.mark.parametrize(
        ("at", "until"),
        [
            ("2026-03-02T20:59:59Z", None),
            ("2026-03-02T21:00:00Z", "2026-03-03T09:00:00+00:00"),
            ("2026-03-03T08:59:59Z", "2026-03-03T09:00:00+00:00"),
            ("2026-03-03T09:00:00Z", None),
        ],
    )
    def test_half_open_and_over_midnight(self, at: str, until: str | None) -> None:
        found = quiet_until(datetime.fromisoformat(at), time(21), time(9), ZoneInfo("UTC"))
        assert (found and found.isoformat()) == until

    def test_an_end_that_the_clocks_skip_is_the_later_reading(self) -> None:
        """On 29 March 2026 Berlin has no 02:30; it is then 01:30 or 00:30 UTC: the later."""
        at = datetime(2026, 3, 29, 0, 10, tzinfo=UTC)
        found = quiet_until(at, time(0), time(2, 30), ZoneInfo("Europe/Berlin"))
        assert found == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)

    def test_by_the_region_of_the_customer(self) -> None:
        """At noon UTC it is 20:00 in Shanghai and 21:00 in Tokyo."""
        tables = shop(
            customers=[
                {"customer_id": "a", "region": "tokyo"},
                {"customer_id": "b", "region": "elsewhere"},
            ]
        )
        config = make_config(
            timezone="Asia/Shanghai", contact={"region_timezones": {"tokyo": "Asia/Tokyo"}}
        )
        quiet, until = quiet_at(tables, IDS, AS_OF, config)
        assert quiet.tolist() == [True, False, False, False]
        assert str(until[0]) == "2026-03-03T00:00:00.000000"
        quiet, _ = quiet_at(tables, IDS, AS_OF, make_config(contact={"quiet_hours": None}))
        assert not quiet.any()


class TestSendTimes:
    def test_own_hours_against_the_shape_of_all(self) -> None:
        """Ten opens in all. a opens three times on Tuesdays at 10; b once on Sunday at 15; six
        others on Friday at 18, whose share of ten pseudo-counts is 6 of 10."""
        opens = [
            *[event("a", "opened", f"2026-02-{day:02}T10:1{day % 10}") for day in (3, 10, 17)],
            event("b", "clicked", "2026-02-01T15:59"),
            *[event("z", "opened", f"2026-02-06T18:0{i}") for i in range(6)],
        ]
        tables = shop(events=opens, customers=[{"customer_id": "z"}])
        found = send_times(tables, IDS, AS_OF, config_of())
        # z is not among the customers, so the shape is of a and b: 3/4 and 1/4 of ten.
        assert (found.weekday[0], found.hour[0]) == (1, 10)
        # b: 1 + 2.5 of its own hour against 7.5 of Tuesday.
        assert (found.weekday[1], found.hour[1]) == (1, 10)
        assert found.bases().tolist() == [BASES[0], BASES[0], BASES[2], BASES[2]]
        everyone = pd.Series([*IDS, "z"])
        found = send_times(tables, everyone, AS_OF, config_of())
        # Friday has 6 pseudo-counts; a has 3 + 3 of its own and the earlier of equals is not meant:
        # equal sums keep to the shape of all.
        assert (found.weekday[0], found.hour[0]) == (4, 18)
        assert (found.weekday[4], found.hour[4]) == (4, 18)

    def test_orders_where_nothing_is_opened_and_never_in_quiet_hours(self) -> None:
        line = {"amount": 10.0, "discount": 0.0, "quantity": 1.0}
        orders = [
            *[{"customer_id": "a", "order_id": f"o{i}", "transacted_at": "2026-02-07T11:30", **line}
              for i in range(9)],
            {"customer_id": "b", "order_id": "p", "transacted_at": "2026-02-08T22:00", **line},
        ]  # fmt: skip
        found = send_times(shop(transactions=orders), IDS, AS_OF, config_of())
        assert (found.weekday[0], found.hour[0], found.basis[0]) == (5, 11, 1)
        # b orders at night alone: of it nothing is known for the day.
        assert (found.weekday[1], found.hour[1], found.basis[1]) == (5, 11, 2)

    def test_hours_are_local(self) -> None:
        tables = shop(events=[event("a", "opened", "2026-03-01T20:30")])
        config = make_config(timezone="Asia/Shanghai")
        found = send_times(tables, IDS[:1], AS_OF, config)
        assert (found.weekday[0], found.hour[0], found.basis[0]) == (0, 9, 2)
        late = make_config(timezone="Asia/Shanghai", contact={"quiet_hours": ["21:00", "04:00"]})
        found = send_times(tables, IDS[:1], AS_OF, late)
        assert (found.weekday[0], found.hour[0], found.basis[0]) == (0, 4, 0)

    def test_quiet_hours_of_the_week(self) -> None:
        assert allowed_hours(config_of(quiet_hours=None)).all()
        day = allowed_hours(config_of(quiet_hours=["21:30", "08:15"])).reshape(7, 24)
        assert (day == day[0]).all()
        assert np.flatnonzero(day[0]).tolist() == list(range(9, 21))
        day = allowed_hours(config_of(quiet_hours=["12:00", "14:00"])).reshape(7, 24)
        assert np.flatnonzero(~day[0]).tolist() == [12, 13]
