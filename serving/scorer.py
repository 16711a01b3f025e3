"""The scorer: one immutable object of model, snapshot and rules that answers for any customers.

It reads the score table of the snapshot and predicts nothing. An answer depends on the customer,
the snapshot, the model, the rules and the salt, not on what else is asked or when the server was
started; only age checks and contact caps look at the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal

import numpy as np

from features.config import CONTROL, Config
from serving import schemas
from serving.campaign import Campaign, untrained_offers
from serving.evaluation import MICROS as MICROS
from serving.evaluation import envelope, evaluate, profile_states, shortest, timestamp
from serving.load import LoadedModel
from serving.rules import Rules
from serving.salt import Salt
from serving.snapshot import Snapshot
from uplift.data import BoolArray


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
    loaded_at: datetime = field(default_factory=utc_now)
    rules: Rules = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", Rules.of_config(self))

    @property
    def campaign(self) -> Campaign:
        """The campaign called `name`, which exists from the configuration."""
        return self.rules.campaign

    @property
    def unseen(self) -> tuple[str, ...]:
        """Coupons that the model has not seen, which only draws of the configuration's own campaign
        give; the last columns of the snapshot."""
        return self.snapshot.arms[len(self.model.bundle.arms) :]

    @cached_property
    def told(self) -> BoolArray:
        """(K,) arms whose effect may be told: the model knows it, and the campaign called `name`
        has them."""
        seen = len(self.model.bundle.arms)
        return np.array([on and k < seen for k, on in enumerate(self.campaign.offered)], dtype=bool)

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
        return self.degraded_by(self.model.degraded)

    def degraded_by(self, model: Iterable[str]) -> list[str]:
        """The same, where by now these things are not as they should be with the model."""
        found = list(model)
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

    def orders_per_piece(self, coupon_id: str) -> int:
        """On how many orders one piece may be used; as the model was trained, where it knows it."""
        limits = {o.coupon_id: o.per_customer_limit for o in self.config.offers}
        limits |= {o.coupon_id: o.per_customer_limit for o in self.model.bundle.offers}
        return limits.get(coupon_id, 1)

    def answer(
        self, ids: Sequence[str], *, request_id: str, dry_run: bool = True
    ) -> schemas.DecisionsAnswer:
        """Decisions for distinct customer ids, in their order, as if there were no log: nothing
        is stored or counted, nothing stored is looked at, and they have no decision ids."""
        budget = self.campaign.budget
        left = None if budget is None else round(budget * MICROS)
        made = evaluate(self, self.rules, ids, self.clock(), left=left)
        return envelope(self, self.rules, made.window, made.now, made.items, request_id, dry_run)

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
            profile_state=profile_states(self, rows, known)[0],
            rfm=schemas.Rfm(
                recency_days=None if recency is None else int(recency),
                frequency_365d=None if frequency is None else int(frequency),
                monetary_365d_micros=None if monetary is None else round(monetary * MICROS),
            ),
            consent=bool(people.consent[row]),
            scores=self._scores(row),
            uplift=dict(zip(self.model.bundle.arms, cate, strict=False)),
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

    def current(self, degraded: list[str] | None = None) -> schemas.ModelAnswer:
        """Which model and snapshot are served, and what a careful reader must know."""
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
            degraded=self.degraded if degraded is None else degraded,
        )
