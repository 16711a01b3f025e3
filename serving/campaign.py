"""One campaign decided for its whole population: what the batch command writes, and what fixes the
shadow price that the server decides by."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt

from features.config import Config, LimitConfig
from features.errors import ConfigError
from serving.population import Population
from serving.salt import Salt
from uplift.bundle import ScoringBundle
from uplift.data import BoolArray, FloatArray
from uplift.limits import Limit
from uplift.policy import Decisions, Reason, Shares, decide

Texts = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Campaign:
    """The rules that turn scores into decisions. Money in currency.

    offered: (K,) arms that may be sent: kept by the bundle and active in the configuration.
    sends_nothing: the bundle keeps none of the active arms, since no policy was shown to earn its
    cost. Then holdouts are drawn as ever, nothing is explored, and the rest are below threshold.
    version: changes whenever a rule changes.
    """

    campaign_id: str
    window_id: int
    offered: tuple[bool, ...]
    sends_nothing: bool
    valid_days: tuple[int, ...]
    shares: Shares
    budget: float | None
    min_profit: float
    version: str
    arms: tuple[str, ...] = ()
    dates: tuple[tuple[datetime | None, datetime | None], ...] = ()
    """(K,) from when and until when each coupon is offered, naive UTC."""
    stock: tuple[int | None, ...] = ()
    """(K,) pieces that may still be offered; None: no limit."""
    limits: tuple[LimitConfig, ...] = ()
    unseen: int = 0
    """How many of the arms, the last ones, the bundle does not know."""

    @classmethod
    def of(
        cls,
        config: Config,
        bundle: ScoringBundle,
        window_id: int = 0,
        unseen: tuple[str, ...] = (),
    ) -> Campaign:
        """The campaign called `name`, which exists from the configuration. unseen: coupons that the
        bundle does not know and draws may try; they come after its arms."""
        ours = {offer.coupon_id: offer for offer in config.offers}
        active = tuple(arm in ours and ours[arm].active for arm in bundle.arms)
        kept = tuple(a and k for a, k in zip(active, bundle.offered, strict=True))
        silent = any(active) and not any(kept)
        arms = (*bundle.arms, *unseen)
        days = tuple(ours[arm].valid_days if arm in ours else 0 for arm in arms)
        policy = config.policy
        known = [ours.get(arm) for arm in arms]
        return cls(
            campaign_id=config.name,
            window_id=window_id,
            offered=(*(active if silent else kept), *(not silent for _ in unseen)),
            sends_nothing=silent,
            valid_days=days,
            shares=Shares(
                policy.holdout_share,
                0.0 if silent else policy.exploration_share,
                policy.global_holdout_share,
            ),
            budget=policy.budget,
            min_profit=policy.min_incremental_profit,
            version=config_digest(config, ("offers", "policy", "contact", "triggers"))[:8],
            arms=arms,
            unseen=len(unseen),
            dates=tuple(
                (None, None) if o is None else (_naive(o.valid_from), _naive(o.valid_until))
                for o in known
            ),
            stock=tuple(None if o is None else o.stock for o in known),
            limits=tuple(policy.limits),
        )

    def offered_at(self, moment: datetime) -> BoolArray:
        """(K,) arms that may be sent at a moment."""
        if not self._dated:
            return self._ever_offered
        now = _naive(moment)
        assert now is not None
        in_date = [
            (start is None or start <= now) and (end is None or now < end)
            for start, end in self.dates
        ]
        found: BoolArray = np.logical_and(self._ever_offered, in_date)
        return found

    @cached_property
    def _dated(self) -> bool:
        return any(date is not None for dates in self.dates for date in dates)

    @cached_property
    def _ever_offered(self) -> BoolArray:
        return _fixed(self.offered)

    @cached_property
    def exploration_only(self) -> BoolArray | None:
        """(K,) arms that only draws may give; None without any."""
        if not self.unseen:
            return None
        seen = len(self.offered) - self.unseen
        return _fixed([k >= seen for k in range(len(self.offered))])

    @cached_property
    def in_stock(self) -> BoolArray:
        """(K,) arms of which a piece is left."""
        stock = self.stock or (None,) * len(self.offered)
        return _fixed([left != 0 for left in stock])

    @cached_property
    def limited(self) -> frozenset[str]:
        """Arms of which there are only so many pieces."""
        return frozenset(a for a, n in zip(self.arms, self.stock, strict=False) if n is not None)

    def worth(self, reward: FloatArray) -> FloatArray:
        """(n, K) the profit to decide by: below any threshold where the policy sends nothing."""
        return (
            np.full_like(reward, min(self.min_profit, 0.0) - 1.0) if self.sends_nothing else reward
        )

    def with_shares(self, shares: Shares) -> Campaign:
        """The same campaign with the exploration share that its budget can bear."""
        return replace(self, shares=shares)


def _fixed(values: Sequence[bool]) -> BoolArray:
    """An array that is made once, for many readers."""
    found = np.array(values, dtype=bool)
    found.flags.writeable = False
    return found


def config_digest(config: Config, parts: Sequence[str] | None = None) -> str:
    """sha256 of the configuration, or of these sections of it."""
    content = config.model_dump(mode="json", include=set(parts) if parts is not None else None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def untrained_offers(config: Config, bundle: ScoringBundle) -> list[str]:
    """Active offers of the configuration that the model has never seen; they are only drawn."""
    return [o.coupon_id for o in config.offers if o.active and o.coupon_id not in bundle.arms]


def first_reason(n: int, refusals: Sequence[tuple[Reason, BoolArray | bool]]) -> Texts:
    """(n,) the first of these reasons that holds for each customer, or None. refusals: in the order
    of the table of reasons, each with (n,) whom it concerns, or whether everyone."""
    reason = np.full(n, None, dtype=object)
    for code, holds in reversed(refusals):
        if isinstance(holds, np.ndarray):
            reason[holds] = code
        elif holds:
            reason[:] = code
    return reason


def usable(reward: FloatArray, cost: FloatArray, response: FloatArray) -> BoolArray:
    """(n,) customers whose scores are all there. reward, cost: (n, K); response: (n,)."""
    found = np.logical_and(np.isfinite(reward).all(axis=1), np.isfinite(cost).all(axis=1))
    # Without any arm, no model of the response is needed.
    return np.logical_and(found, np.isfinite(response)) if reward.shape[1] else found


def decide_all(population: Population, campaign: Campaign, salt: Salt) -> Decisions:
    """Decide for everyone under the campaign's budget and limits, as of the population's moment."""
    scores = population.scores
    reward, cost = _double(scores.reward), _double(scores.cost)
    moment = np.datetime64(population.as_of.replace(tzinfo=None), "us")
    left = population.open_at(moment)
    quiet = population.quiet_until
    reasons = first_reason(
        len(population),
        [
            (Reason.SCORING_UNAVAILABLE, ~usable(reward, cost, _double(scores.response))),
            (Reason.NO_CONSENT, ~left.consent),
            (Reason.NOT_ELIGIBLE, ~left.eligible),
            (Reason.CONTACT_CAP, left.free_at > moment),
            (Reason.QUIET_HOURS, False if quiet is None else quiet > moment),
        ],
    )
    new = population.unseen
    if new is not None:
        # Any reward will do: what nobody knows the effect of is drawn, never chosen.
        reward = np.hstack([reward, np.zeros(new.cost.shape)])
        cost = np.hstack([cost, _double(new.cost)])
    return decide(
        population.customer_id.astype(str).tolist(),
        campaign.worth(reward),
        cost,
        shares=campaign.shares,
        salt=salt.value,
        campaign_id=campaign.campaign_id,
        window_id=campaign.window_id,
        budget=campaign.budget,
        min_profit=campaign.min_profit,
        eligible=None if population.arms is None else left.arms,
        offered=campaign.offered_at(population.as_of),
        in_stock=campaign.in_stock,
        exploration_only=campaign.exploration_only,
        limits=limits_of(campaign, population, cost),
        pre_reasons=reasons,
    )


def limits_of(campaign: Campaign, population: Population, cost: FloatArray) -> list[Limit]:
    """The limits besides the budget: stock of each coupon, and what policy.limits names. cost:
    (n, K) expected costs, of unseen coupons too.

    Raises ConfigError for a limit on a coupon or a channel that no offer of the model has.
    """
    k = len(campaign.offered)
    limits = [
        Limit(f"stock of {arm}", np.eye(k)[i : i + 1], float(left))
        for i, (arm, left) in enumerate(zip(campaign.arms, campaign.stock, strict=False))
        if left is not None and left > 0
    ]
    for given in campaign.limits:
        where = f"policy.limits.{given.name}"
        columns = np.ones((1, k))
        if given.coupons:
            _require(f"{where}.coupons", given.coupons, campaign.arms)
            columns = np.array([[float(arm in given.coupons) for arm in campaign.arms]])
        uses = columns * cost if given.of == "cost" else columns
        rules = population.arms
        if given.who is not None:
            if rules is None or given.name not in rules.who:
                raise ConfigError(
                    f"{where}.who",
                    expected="a population that was made with this limit",
                    found="one without it",
                    remedy="Build the snapshot again: python -m serving snapshot --config ...",
                )
            uses = uses * rules.who[given.name][:, None]
        if given.channels:
            names = () if rules is None else rules.channels
            _require(f"{where}.channels", given.channels, names)
            assert rules is not None
            codes = [names.index(name) for name in given.channels]
            uses = uses * np.isin(rules.channel, codes)
        limits.append(Limit(given.name, np.nan_to_num(uses), given.most))
    return limits


def _require(where: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(
            where,
            expected=f"names of offers ({', '.join(known) or 'there are none'})",
            found=unknown[0],
            remedy="Mend the limit, or name it in offers.",
        )


def _naive(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def decision_ids(
    customer_ids: Sequence[str], campaign: Campaign, salt: Salt, snapshot_id: str, sha256: str
) -> list[str]:
    """A name per decision: the same customer, campaign, window, snapshot and bundle have the same
    one, on every server that has the salt."""
    scope = "\x1f".join(
        ("decision", campaign.campaign_id, str(campaign.window_id), snapshot_id, sha256, "")
    ).encode()
    key = salt.value
    return [
        "d-" + hmac.digest(key, scope + i.encode("ascii", "replace"), "sha256").hex()[:32]
        for i in customer_ids
    ]


def _double(values: npt.NDArray[np.float32]) -> FloatArray:
    return np.asarray(values, dtype=np.float64)
