"""Tables of the decision log.

Times are microseconds of Unix time (UTC), money is millionths of the campaign's currency: whole
numbers that both databases store and compare alike. Nested values are JSON texts.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = String(64)
Money = BigInteger
Time = BigInteger

# One value each: the fingerprint of the salt that all draws of this log follow from.
facts = Table(
    "facts",
    metadata,
    Column("name", Id, primary_key=True),
    Column("value", Text, nullable=False),
)

campaigns = Table(
    "campaigns",
    metadata,
    Column("campaign_id", Id, primary_key=True),
    Column("resource", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("configured", Boolean, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("paused_at", Time),
    Column("comment", Text),
)

# Apart from the resource, since every decision with an offer writes here.
campaign_budget = Table(
    "campaign_budget",
    metadata,
    Column("campaign_id", Id, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("cap_micros", Money),
    Column("committed_micros", Money, nullable=False),
    Column("realised_micros", Money, nullable=False),
    CheckConstraint("committed_micros >= 0", name="committed"),
    CheckConstraint("realised_micros >= 0", name="realised"),
    CheckConstraint("state IN ('active', 'paused')", name="state"),
)

# Coupons of which there are only so many, whichever campaign offers them.
coupon_stock = Table(
    "coupon_stock",
    metadata,
    Column("coupon_id", Id, primary_key=True),
    Column("pieces", BigInteger),
    Column("given", BigInteger, nullable=False),
    CheckConstraint("given >= 0", name="given"),
)

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", Id, primary_key=True),
    Column("campaign_id", Id, nullable=False),
    Column("customer_id", Id, nullable=False),
    Column("window_id", BigInteger, nullable=False),
    Column("sticky", Boolean, nullable=False),
    Column("action", String(8), nullable=False),
    Column("arm", Id, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("holdout_kind", String(8), nullable=False),
    Column("is_exploration", Boolean, nullable=False),
    Column("assignment_prob", Float(53), nullable=False),
    # arm -> probability given not held out, of the arms that took part; null before randomisation
    Column("probs", Text),
    Column("holdout_share", Float(53), nullable=False),
    Column("exploration_share", Float(53), nullable=False),
    Column("response_propensity", Float(53)),
    Column("uplift", Float(53)),
    Column("expected_profit_micros", Money, nullable=False),
    Column("expected_cost_micros", Money, nullable=False),
    # What the budget bears for this decision, and in which state: none, held, realised, released.
    Column("reserved_micros", Money, nullable=False),
    Column("realised_micros", Money, nullable=False),
    Column("reservation", String(8), nullable=False),
    Column("profile_state", String(16), nullable=False),
    Column("warnings", Text, nullable=False),
    Column("valid_until", Time),
    Column("retry_at", Time),
    Column("decided_at", Time, nullable=False),
    Column("sent_at", Time),
    Column("as_of", Time, nullable=False),
    Column("snapshot_id", String(96), nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("policy_version", String(64), nullable=False),
    CheckConstraint("action IN ('offer', 'none')", name="action"),
    CheckConstraint("assignment_prob > 0 AND assignment_prob <= 1", name="probability"),
)
# The first assignment of a customer in a campaign's window is the only one.
Index(
    "uq_decisions_sticky",
    decisions.c.campaign_id,
    decisions.c.customer_id,
    decisions.c.window_id,
    unique=True,
    sqlite_where=text("sticky"),
    postgresql_where=text("sticky"),
)
# The decisions of a customer from the newest, and the offers that contact caps count.
Index("ix_decisions_customer", decisions.c.customer_id, decisions.c.decided_at)
Index(
    "ix_decisions_held",
    decisions.c.valid_until,
    sqlite_where=text("reservation = 'held'"),
    postgresql_where=text("reservation = 'held'"),
)

events = Table(
    "events",
    metadata,
    Column("event_id", Id, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("type", String(16), nullable=False),
    Column("decision_id", Id, index=True),
    Column("customer_id", Id, nullable=False, index=True),
    Column("campaign_id", Id),
    Column("arm", Id),
    Column("occurred_at", Time, nullable=False),
    Column("received_at", Time, nullable=False),
    Column("value_micros", Money),
    Column("cost_micros", Money),
)

# Customers who must not be contacted, by keyed hash of their id: consent withdrawn, or erased.
refusals = Table(
    "refusals",
    metadata,
    Column("customer_hash", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("at", Time, nullable=False),
    CheckConstraint("kind IN ('consent', 'erased')", name="kind"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("erasure_id", Id, primary_key=True),
    Column("customer_hash", String(64), nullable=False, unique=True),
    Column("key_id", Id, nullable=False),
    Column("requested_at", Time, nullable=False),
    Column("complete_by", Time, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Id, primary_key=True),
    Column("secret_sha256", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),
    Column("label", String(128), nullable=False),
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time),
    Column("revoked_at", Time),
)

# The result holds ids and times, from which the answer is rendered again; never a body.
idempotency = Table(
    "idempotency",
    metadata,
    Column("key_id", Id, primary_key=True),
    Column("route", String(64), primary_key=True),
    Column("idempotency_key", String(255), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("result", Text, nullable=False),
    Column("stored_at", Time, nullable=False, index=True),
)

# Work that a process of its own does. Who holds the lease works on it; when it has run out, by the
# time of the database, another takes the job up. `decided_at`: the moment it decides as of.
jobs = Table(
    "jobs",
    metadata,
    Column("job_id", Id, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("campaign_id", Id, nullable=False),
    Column("key_id", Id, nullable=False),
    Column("request", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rows_done", BigInteger, nullable=False),
    Column("rows_total", BigInteger),
    Column("error", String(64)),
    Column("created_at", Time, nullable=False),
    Column("finished_at", Time),
    Column("lease_until", Time),
    Column("owner", Id),
    Column("decided_at", Time),
)
UNFINISHED = text("state IN ('queued', 'running', 'committing')")
# One job of a campaign at a time, whatever the number of servers.
Index(
    "uq_jobs_unfinished",
    jobs.c.campaign_id,
    unique=True,
    sqlite_where=UNFINISHED,
    postgresql_where=UNFINISHED,
)
