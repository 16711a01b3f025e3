"""One campaign decided for its whole population: what the batch command writes, and what fixes the
shadow price that the server decides by."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from features.config import Config
from serving.population import Population
from serving.salt import Salt
from uplift.bundle import ScoringBundle
from uplift.data import BoolArray, FloatArray
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

    @classmethod
    def of(cls, config: Config, bundle: ScoringBundle, window_id: int = 0) -> Campaign:
        """The campaign called `name`, which exists from the configuration."""
        ours = {offer.coupon_id: offer for offer in config.offers}
        active = tuple(arm in ours and ours[arm].active for arm in bundle.arms)
        kept = tuple(a and k for a, k in zip(active, bundle.offered, strict=True))
        silent = any(active) and not any(kept)
        days = tuple(ours[arm].valid_days if arm in ours else 0 for arm in bundle.arms)
        policy = config.policy
        return cls(
            campaign_id=config.name,
            window_id=window_id,
            offered=active if silent else kept,
            sends_nothing=silent,
            valid_days=days,
            shares=Shares(
                policy.holdout_share,
                0.0 if silent else policy.exploration_share,
                policy.global_holdout_share,
            ),
            budget=policy.budget,
            min_profit=policy.min_incremental_profit,
            version=config_digest(config, ("offers", "policy", "contact"))[:8],
        )

    def worth(self, reward: FloatArray) -> FloatArray:
        """(n, K) the profit to decide by: below any threshold where the policy sends nothing."""
        return (
            np.full_like(reward, min(self.min_profit, 0.0) - 1.0) if self.sends_nothing else reward
        )

    def with_shares(self, shares: Shares) -> Campaign:
        """The same campaign with the exploration share that its budget can bear."""
        return replace(self, shares=shares)


def config_digest(config: Config, parts: Sequence[str] | None = None) -> str:
    """sha256 of the configuration, or of these sections of it."""
    content = config.model_dump(mode="json", include=set(parts) if parts is not None else None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def untrained_offers(config: Config, bundle: ScoringBundle) -> list[str]:
    """Active offers of the configuration that the model has never seen; they are not sent."""
    return [o.coupon_id for o in config.offers if o.active and o.coupon_id not in bundle.arms]


def pre_reasons(
    reward: FloatArray,
    cost: FloatArray,
    response: FloatArray,
    consent: BoolArray,
    capped: BoolArray,
) -> Texts:
    """(n,) the first reason before randomisation that comes from the customer alone, or None."""
    usable = np.isfinite(reward).all(axis=1) & np.isfinite(cost).all(axis=1)
    if reward.shape[1]:  # without any arm, no model of the response is needed
        usable &= np.isfinite(response)
    reason = np.full(len(reward), None, dtype=object)
    # In reverse order of precedence: a later line overwrites an earlier one.
    reason[capped] = Reason.CONTACT_CAP
    reason[~consent] = Reason.NO_CONSENT
    reason[~usable] = Reason.SCORING_UNAVAILABLE
    return reason


def decide_all(population: Population, campaign: Campaign, salt: Salt) -> Decisions:
    """Decide for everyone under the campaign's budget, as of the population's moment."""
    scores = population.scores
    reward, cost = _double(scores.reward), _double(scores.cost)
    moment = np.datetime64(population.as_of.replace(tzinfo=None), "us")
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
        offered=np.array(campaign.offered, dtype=bool),
        pre_reasons=pre_reasons(
            reward,
            cost,
            _double(scores.response),
            population.consent,
            population.free_at > moment,
        ),
    )


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
