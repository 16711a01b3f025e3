"""Open the decision log of a configuration and make ready what the first request needs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from features.config import Config
from features.errors import ConfigError
from serving.evaluation import micros
from serving.log import stock
from serving.log.engine import json_text
from serving.log.ready import open_ready
from serving.salt import Salt
from serving.scorer import Scorer
from serving.service import Service


def open_service(
    config: Config, salt: Salt, *, root: Path = Path("data"), loopback: bool = True
) -> Service:
    """The service of a configuration's log, ready for requests.

    A new SQLite file below `root` is made ready at once; anything else needs the migration first.
    Raises ConfigError: no schema, another salt, or no keys where not only this machine listens.
    """
    log = open_ready(config, root)
    service = Service(log, salt, open_without_keys=loopback)
    service.start()
    if not loopback and not service.has_keys:
        raise ConfigError(
            "--host",
            expected="API keys, where not only this machine can ask",
            found="none",
            remedy="Make one: python -m serving keys --config ... create --scopes score,read",
        )
    return service


def register_configured(service: Service, scorer: Scorer) -> None:
    """Put the campaign of the configuration into the log; its rules and its budget follow the
    configuration, its first day stays."""
    service.stands_at = scorer.snapshot.as_of if scorer.fixed else None
    now = datetime.now(UTC)
    # The beginning of a day, so that windows don't depend on the second of the first start.
    first = now.replace(hour=0, minute=0, second=0, microsecond=0)
    start = (scorer.snapshot.as_of if scorer.fixed else first).isoformat()
    budget = scorer.config.policy.budget
    cap = None if budget is None else round(budget * 1_000_000)
    name, campaigns = scorer.config.name, service.campaigns
    version = scorer.campaign.version
    pieces = {offer.coupon_id: offer.stock for offer in scorer.config.offers}
    with service.log.write() as connection:
        stock.declare(service.log, connection, pieces)
        resource = json_text({"policy_version": version, "starts_at": start})
        if campaigns.create(connection, name, resource, cap, micros(now), configured=True):
            return
        entry = campaigns.get(connection, name)
        if entry is None or not entry.configured:
            return
        if not scorer.fixed:
            start = json.loads(entry.resource)["starts_at"]
        resource = json_text({"policy_version": version, "starts_at": start})
        if (entry.resource, entry.budget.cap) != (resource, cap):
            campaigns.replace(connection, entry, resource, cap, micros(now), force=True)
