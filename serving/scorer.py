"""The scorer: one immutable object of model, snapshot and rules that answers for any customers.

It reads the score table of the snapshot and predicts nothing. An answer depends on the customer,
the snapshot, the model, the rules and the salt, not on what else is asked or when the server was
started; only age checks and contact caps look at the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt

from features.config import CONTROL, Config
from serving import schemas
from serving.campaign import Campaign, decision_ids, pre_reasons, untrained_offers
from serving.load import LoadedModel
from serving.population import FOREVER
from serving.salt import Salt
from serving.snapshot import Snapshot
from uplift.policy import Decisions, Reason, decide

AGING = timedelta(hours=26)
MICROS = 1_000_000

Texts = npt.NDArray[np.object_]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Scorer:
    """Answers from one model and one snapshot; replaced as a whole, never changed."""

    model: LoadedModel
    snapshot: Snapshot
    config: Config
    salt: Salt
    clock: Callable[[], datetime] = utc_now
    window_id: int = 0
    loaded_at: datetime = field(default_factory=utc_now)
    campaign: Campaign = field(init=False)

    def __post_init__(self) -> None:
        campaign = Campaign.of(self.config, self.model.bundle, self.window_id)
        object.__setattr__(self, "campaign", campaign.with_shares(self.snapshot.shares))

    @property
    def simulated(self) -> bool:
        return self.snapshot.population.simulated

    @property
    def fixed(self) -> bool:
        """The moment is fixed by the configuration: ages are not checked, caps stand still."""
        return self.config.source.as_of != "now"

    @property
    def degraded(self) -> list[str]:
        """What a careful reader must know of these answers."""
        found = list(self.model.degraded)
        if self.fixed:
            found.append("fixed_as_of")
        if self.simulated:
            found.append("simulated_data")
        if self.snapshot.population.missing:
            found.append("features_missing")
        if untrained_offers(self.config, self.model.bundle):
            found.append("offers_untrained")
        if self.campaign.sends_nothing:
            found.append("policy_sends_nothing")
        return found

    def answer(
        self, ids: Sequence[str], *, request_id: str, dry_run: bool = False
    ) -> schemas.DecisionsAnswer:
        """Decisions for distinct customer ids, in their order. A dry run has no decision ids."""
        now = self.clock()
        rows, known = self.snapshot.population.find(ids)
        decisions = self._decide(ids, rows, known, now)
        items = self._items(ids, rows, known, decisions, now, dry_run)
        offers = int(decisions.is_offer.sum())
        return schemas.DecisionsAnswer(
            request_id=request_id,
            campaign_id=self.campaign.campaign_id,
            window_id=self.campaign.window_id,
            dry_run=dry_run,
            decided_at=timestamp(now.replace(microsecond=0)),
            as_of=timestamp(self.snapshot.as_of),
            snapshot_id=self.snapshot.snapshot_id,
            model_version=self.model.version,
            policy_version=self.campaign.version,
            counts=schemas.Counts(offer=offers, none=len(ids) - offers),
            decisions=items,
        )

    def customer(self, customer_id: str) -> schemas.CustomerAnswer | None:
        """What is known of a customer as of the snapshot; None for an unknown id."""
        people = self.snapshot.population
        rows, known = people.find([customer_id])
        if not known[0]:
            return None
        row = int(rows[0])
        recency, frequency, monetary = (
            None if np.isnan(value) else float(value) for value in people.rfm[row]
        )
        cate = shortest(people.scores.cate[row])
        label = people.labels.texts([row])[0]
        return schemas.CustomerAnswer(
            customer_id=customer_id,
            as_of=timestamp(self.snapshot.as_of),
            tier=people.tier.texts([row])[0],
            lifecycle_stage=people.stage.texts([row])[0],
            labels=None if label is None else label.split(",") if label else [],
            profile_state=self._profiles(rows, known)[0],
            rfm=schemas.Rfm(
                recency_days=None if recency is None else int(recency),
                frequency_365d=None if frequency is None else int(frequency),
                monetary_365d_micros=None if monetary is None else round(monetary * MICROS),
            ),
            consent=bool(people.consent[row]),
            scores=self._scores(row),
            uplift=dict(zip(self.model.bundle.arms, cate, strict=True)),
            recent_decisions=[],
        )

    def _scores(self, row: int) -> schemas.CustomerScores:
        people, models = self.snapshot.population, self.model.bundle.values
        value = {name: shortest(v[row : row + 1])[0] for name, v in people.values.items()}
        money = value.get("clv")
        clv = None if money is None else round(money * MICROS)
        days = {} if models is None else {name: m.days for name, m in models.models.items()}
        label: Literal["contribution", "revenue"] = (
            "revenue" if models is not None and models.revenue else "contribution"
        )
        return schemas.CustomerScores(
            response_propensity=shortest(people.scores.response[row : row + 1])[0],
            clv_365d_micros=clv if days.get("clv") == 365 else None,
            repurchase_probability=value.get("repurchase"),
            churn_probability=value.get("churn"),
            clv_micros=clv,
            clv_is=label if "clv" in days else None,
            value_days=days,
        )

    def current(self) -> schemas.ModelAnswer:
        """Which model and snapshot are served."""
        return schemas.ModelAnswer(
            model_name=self.model.name,
            alias=self.model.alias,
            model_version=self.model.version,
            bundle_sha256=self.model.sha256,
            loaded_at=timestamp(self.loaded_at.replace(microsecond=0)),
            arms=[CONTROL, *self.model.bundle.arms],
            snapshot=schemas.SnapshotInfo(
                snapshot_id=self.snapshot.snapshot_id,
                as_of=timestamp(self.snapshot.as_of),
                customers=len(self.snapshot.population),
            ),
            degraded=self.degraded,
        )

    def _decide(
        self,
        ids: Sequence[str],
        rows: npt.NDArray[np.int64],
        known: npt.NDArray[np.bool_],
        now: datetime,
    ) -> Decisions:
        people, campaign = self.snapshot.population, self.campaign
        reward = people.scores.reward[rows].astype(np.float64)
        cost = people.scores.cost[rows].astype(np.float64)
        offered = np.array(campaign.offered, dtype=bool)
        reason = pre_reasons(
            reward,
            cost,
            people.scores.response[rows].astype(np.float64),
            np.asarray(people.consent[rows]),
            people.free_at[rows] > self._caps_at(now),
        )
        if campaign.budget is not None and offered.any():
            # As in the whole campaign: an arm dearer than all of the budget is out.
            dear = cost > campaign.budget
            broke = (dear | ~offered).all(axis=1) & (reason == None)  # noqa: E711
            reason[broke] = Reason.BUDGET_EXHAUSTED
            eligible = ~dear
        else:
            eligible = np.ones(cost.shape, dtype=bool)
        if not self.fixed:
            age = now - self.snapshot.as_of
            if age > timedelta(hours=self.config.serving.max_feature_age_hours):
                reason[:] = Reason.STALE_FEATURES
        reason[~known] = Reason.UNKNOWN_CUSTOMER
        return decide(
            ids,
            campaign.worth(reward),
            cost,
            shares=campaign.shares,
            salt=self.salt.value,
            campaign_id=campaign.campaign_id,
            window_id=campaign.window_id,
            shadow_price=self.snapshot.shadow_price,
            min_profit=campaign.min_profit,
            eligible=eligible,
            offered=offered,
            pre_reasons=reason,
        )

    def _caps_at(self, now: datetime) -> np.datetime64:
        """The moment at which caps are looked at: with a fixed as_of the shop's time stands."""
        moment = self.snapshot.as_of if self.fixed else now
        return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")

    def _items(
        self,
        ids: Sequence[str],
        rows: npt.NDArray[np.int64],
        known: npt.NDArray[np.bool_],
        made: Decisions,
        now: datetime,
        dry_run: bool,
    ) -> list[schemas.Decision]:
        people, campaign, arms = self.snapshot.population, self.campaign, self.model.bundle.arms
        names = np.array([CONTROL, *arms], dtype=object)
        offered = np.array(campaign.offered, dtype=bool)
        uplift: list[float | None] = [None] * len(ids)
        if arms:
            reward = np.where(offered, people.scores.reward[rows], -np.inf)
            shown = np.where(made.is_offer, made.arm - 1, reward.argmax(axis=1))
            uplift = shortest(people.scores.cate[rows, shown])
        response = shortest(people.scores.response[rows])
        start = self.snapshot.as_of + timedelta(
            days=self.config.outcome.window_days * campaign.window_id
        )
        ends = [None, *(timestamp(start + timedelta(days=d)) for d in campaign.valid_days)]
        names_of = (
            [None] * len(ids)
            if dry_run
            else decision_ids(
                ids, campaign, self.salt, self.snapshot.snapshot_id, self.model.sha256
            )
        )
        profit = np.rint(made.expected_incremental_profit * MICROS).astype(np.int64).tolist()
        cost = np.rint(made.expected_cost * MICROS).astype(np.int64).tolist()
        probability = np.round(made.assignment_prob, 6).tolist()
        free_at = people.free_at[rows]
        profiles = self._profiles(rows, known)
        warnings = self._warnings(now)
        return [
            schemas.Decision(
                index=i,
                customer_id=ids[i],
                decision_id=names_of[i],
                action="offer" if offer else "none",
                arm=names[a],
                coupon_id=names[a] if offer else None,
                reason=Reason(made.reason[i]),
                is_holdout=held,
                is_exploration=drawn,
                assignment_prob=probability[i],
                response_propensity=response[i] if known[i] else None,
                uplift=uplift[i] if known[i] else None,
                expected_incremental_profit_micros=profit[i],
                expected_cost_micros=cost[i],
                profile_state=profiles[i],
                sticky_hit=False,
                valid_until=ends[a] if offer else None,
                retry_at=(
                    timestamp(free_at[i].item())
                    if made.reason[i] == Reason.CONTACT_CAP and free_at[i] < FOREVER
                    else None
                ),
                warnings=warnings,
            )
            for i, (offer, a, held, drawn) in enumerate(
                zip(
                    made.is_offer.tolist(),
                    made.arm.tolist(),
                    made.is_holdout.tolist(),
                    made.is_exploration.tolist(),
                    strict=True,
                )
            )
        ]

    def _profiles(
        self, rows: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]
    ) -> list[schemas.Profile]:
        none = self.snapshot.population.tier.texts(rows) == "prospect"
        state = np.where(known, np.where(none, "no_history", "known"), "unknown")
        profiles: list[schemas.Profile] = state.tolist()
        return profiles

    def _warnings(self, now: datetime) -> list[str]:
        found = []
        if not self.fixed and now - self.snapshot.as_of > AGING:
            found.append("features_aging")
        if self.simulated:
            found.append("simulated_data")
        return found


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC; a time without a zone is UTC."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return moment.isoformat() + "Z"


def shortest(values: npt.NDArray[np.float32]) -> list[float | None]:
    """Each float32 as the double of its shortest decimals, which float32 reads back bit for bit;
    None for what is not finite."""
    finite = np.isfinite(values)
    return [
        float(text) if fine else None
        for text, fine in zip(values.astype("U16").tolist(), finite.tolist(), strict=True)
    ]
