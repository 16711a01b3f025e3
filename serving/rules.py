"""The rules of one campaign as a scorer applies them: windows, arms, price, caps, quiet hours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from functools import cached_property
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from features.contact import quiet_until
from serving.campaign import Campaign
from serving.times import micros, shown_time
from uplift.data import BoolArray
from uplift.policy import Reason

if TYPE_CHECKING:
    from serving.scorer import Scorer


@dataclass(frozen=True)
class Quiet:
    """Local hours in which nobody is contacted: half open, and they may cross midnight."""

    start: time
    end: time
    zone: ZoneInfo

    def until(self, now: datetime) -> datetime | None:
        """When the quiet hours that hold at `now` end, UTC; None outside of them.

        An end that the clocks skip or repeat is the later of its two readings.
        """
        return quiet_until(now, self.start, self.end, self.zone)


@dataclass(frozen=True)
class DefaultOffer:
    """What a campaign offers to customers whom the snapshot does not know, and who are stated to
    consent. arm: its position; cost: currency that it is expected to cost with each of them;
    eligible: the campaign's filter lets through of whom nothing is known."""

    arm: int
    cost: float
    eligible: bool = True


@dataclass(frozen=True)
class Window:
    """What all decisions of one window of a campaign have in common.

    campaign: as its draws depend on the window; start: microseconds; ends: (K + 1,) when the coupon
    of each arm expires, microseconds, None for control; shown: the same as answers show it.
    """

    campaign: Campaign
    start: int
    ends: tuple[int | None, ...]
    shown: tuple[str | None, ...]


@dataclass(frozen=True)
class Rules:
    """One campaign under one model and snapshot; made anew when any of them changes.

    version: of the stored campaign; with another one these rules are outdated.
    stands_at: the shop's time, where the configuration fixes it; then no time passes.
    shadow_price: profit per currency of expected cost.
    eligible: (n,) of the snapshot's customers; None: everyone.
    caps: at most so many offers, of any campaign in the log, in so many days.
    worst_micros: (K,) full face value and contact of each arm, reserved in place of the expected
    cost; None: the expected cost times `safety_factor` is reserved.
    max_feature_age, max_model_age: beyond them nothing is offered; None: any age will do.
    default: for unknown customers; None: they get nothing.
    """

    campaign: Campaign
    starts_at: datetime
    window_days: int
    shadow_price: float
    version: int = 1
    ends_at: datetime | None = None
    stands_at: datetime | None = None
    eligible: BoolArray | None = None
    caps: tuple[tuple[int, int], ...] = ()
    quiet: Quiet | None = None
    safety_factor: float = 1.0
    worst_micros: tuple[int, ...] | None = None
    max_feature_age: timedelta | None = None
    max_model_age: timedelta | None = None
    default: DefaultOffer | None = None

    @classmethod
    def of_config(
        cls, scorer: Scorer, starts_at: datetime | None = None, version: int = 1
    ) -> Rules:
        """The campaign that exists from the configuration, as the snapshot priced it."""
        config, snapshot = scorer.config, scorer.snapshot
        quiet, hours = None, config.contact.quiet_hours
        if config.contact.send == "immediate" and hours is not None:
            start, end = (time.fromisoformat(text) for text in hours)
            quiet = Quiet(start, end, config.zone)
        campaign = Campaign.of(config, scorer.model.bundle, unseen=scorer.unseen)
        campaign = campaign.with_shares(snapshot.shares)
        return cls(
            campaign=campaign,
            starts_at=starts_at or snapshot.as_of,
            window_days=config.outcome.window_days,
            shadow_price=snapshot.shadow_price,
            version=version,
            stands_at=snapshot.as_of if scorer.fixed else None,
            caps=(
                *((most, int(days[:-1])) for days, most in config.contact.overall.items()),
                *([(1, config.contact.min_gap_days)] if config.contact.min_gap_days else []),
            ),
            quiet=quiet,
            max_feature_age=timedelta(hours=config.serving.max_feature_age_hours),
            max_model_age=timedelta(days=config.serving.max_model_age_days),
        )

    @property
    def campaign_id(self) -> str:
        return self.campaign.campaign_id

    def window_at(self, now: datetime) -> int:
        """floor((now - starts_at) / window_days)."""
        moment = self.stands_at or now
        return (moment - self.starts_at) // self._length

    def window(self, now: datetime) -> Window:
        """The window at a moment: made once, and kept until the next one is asked for."""
        number = self.window_at(now)
        kept = self._windows.get(number)
        if kept is None:
            start = self.starts_at + self._length * number
            ends = [micros(start + timedelta(days=days)) for days in self.campaign.valid_days]
            kept = Window(
                replace(self.campaign, window_id=number),
                micros(start),
                (None, *ends),
                (None, *map(shown_time, ends)),
            )
            self._windows.clear()
            self._windows[number] = kept
        return kept

    @cached_property
    def _length(self) -> timedelta:
        return timedelta(days=self.window_days)

    @cached_property
    def _windows(self) -> dict[int, Window]:
        return {}

    def closed(self, now: datetime, active: bool) -> Reason | None:
        """Why the campaign offers nothing to anybody, if so."""
        moment = self.stands_at or now
        if moment < self.starts_at:
            return Reason.CAMPAIGN_NOT_STARTED
        if self.ends_at is not None and moment >= self.ends_at:
            return Reason.CAMPAIGN_ENDED
        return None if active else Reason.CAMPAIGN_PAUSED

    def older(self, now: datetime, since: datetime | None, most: timedelta | None) -> bool:
        """Whether what is of `since` is older than `most`; never where the shop's time stands."""
        if self.stands_at is not None or most is None or since is None:
            return False
        return now - since > most

    def capped_until(self, offers: list[int]) -> int | None:
        """When the caps let the next offer through, after offers at these microseconds, the
        newest first; None if no cap was ever reached."""
        reached = [
            offers[most - 1] + days * 86_400_000_000
            for most, days in self.caps
            if 0 < most <= len(offers)
        ]
        return max(reached, default=None)
