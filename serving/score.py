"""The decisions file: everyone scored, the budget allocated, one row per customer."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.churn import COLUMN as CHURN
from features.config import Config
from features.errors import ConfigError
from serving.audience_manifest import MANIFEST_FORMAT, customers_digest, manifest_path
from serving.campaign import Campaign, config_digest, decide_all, decision_ids
from serving.load import LoadedModel, sync_folder, write_atomically
from serving.population import Population
from serving.salt import Salt
from uplift.allocation import allocate
from uplift.planning import PLAN, BudgetPlan
from uplift.policy import Decisions, Reason

METADATA = b"persuadables"
SIMULATED = "The shop is simulated: no real customer stands behind these rows."
SUFFIXES = (".parquet", ".csv")
# Beyond this share of one arm, or below this benefit of old against new customers, a note is made.
ONE_ARM = 0.9
OLD_TO_NEW = 0.8


@dataclass(frozen=True)
class DecisionsFile:
    """What was written: the path, and the manifest that stands beside it."""

    path: Path
    manifest: Mapping[str, Any]


def check_out(path: Path) -> None:
    """Refuse a path that the decisions can't be written to, before any work is done."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            "--out",
            expected="a file that ends with .parquet or .csv",
            found=str(path),
            remedy="For example --out decisions.parquet.",
        )
    if path.is_dir() or not (path.parent.is_dir() or not path.parent.exists()):
        raise ConfigError(
            "--out", expected="a file in a folder", found=str(path), remedy="Name another file."
        )


def write_decisions(
    population: Population, model: LoadedModel, config: Config, salt: Salt, out: Path
) -> DecisionsFile:
    """Decide for the whole population and write the decisions file and its manifest, atomically.

    Money is in currency; scores are the float32 that the bundle gave. The sum of the expected cost
    never passes the budget.
    """
    check_out(out)
    unseen = () if population.unseen is None else population.unseen.arms
    campaign = Campaign.of(config, model.bundle, unseen=unseen)
    made = decide_all(population, campaign, salt)
    table = decisions_table(population, model, campaign, made, salt)
    content = io.BytesIO()
    with pa.ipc.new_stream(content, table.schema) as stream:
        stream.write_table(table)
    certificate = made.certificate
    assert certificate is not None
    reasons, counts = np.unique(made.reason.astype(str), return_counts=True)
    facts: dict[str, Any] = {
        "campaign_id": campaign.campaign_id,
        "as_of": population.as_of.isoformat(),
        "rows": len(population),
        "offers": int(made.is_offer.sum()),
        "offers_by_coupon": {
            arm: int((made.is_offer & (made.arm == code)).sum())
            for code, arm in enumerate(campaign.arms, 1)
        },
        "reasons": dict(zip(reasons.tolist(), counts.tolist(), strict=True)),
        "currency": config.currency,
        "budget": campaign.budget,
        "expected_cost": certificate.spend,
        "expected_incremental_profit": float(made.expected_incremental_profit.sum()),
        "planned_gain": planned_gain(model, made, population, campaign),
        "shadow_price": made.shadow_price,
        "upper_bound": certificate.upper_bound,
        "gap": certificate.gap,
        "exploration_cost": certificate.exploration_spend,
        "shares": vars(made.shares),
        "limits": [use._asdict() for use in made.used],
        "expected_cost_by_coupon": {
            arm: float(made.expected_cost[made.is_offer & (made.arm == code)].sum())
            for code, arm in enumerate(campaign.arms, 1)
        },
        "policy": model.bundle.policy,
        "model_name": model.name,
        "model_version": model.version,
        "bundle_sha256": model.sha256,
        "config_digest": config_digest(config),
        "data_digest": population.data_digest,
        "salt_fingerprint": salt.fingerprint,
        "degraded": list(model.degraded),
        "simulated": population.simulated,
        "notes": _notes(population, campaign, made),
        "rows_sha256": hashlib.sha256(content.getbuffer()).hexdigest(),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        written = csv_bytes(table)
    else:
        packed = table.replace_schema_metadata({METADATA: json.dumps(facts, sort_keys=True)})
        buffer = io.BytesIO()
        pq.write_table(packed, buffer, compression="zstd")
        written = buffer.getvalue()
    write_bytes(out, written)
    manifest = {
        **facts,
        "format": MANIFEST_FORMAT,
        "file": out.name,
        "bytes": len(written),
        "sha256": hashlib.sha256(written).hexdigest(),
        "columns": table.column_names,
        "customers_sha256": customers_digest(made.customer_id.tolist()),
    }
    write_atomically(manifest_path(out), manifest)
    return DecisionsFile(out, manifest)


def decisions_table(
    population: Population,
    model: LoadedModel,
    campaign: Campaign,
    made: Decisions,
    salt: Salt,
) -> pa.Table:
    """The columns of the decisions file, in their order, ordered by customer id."""
    n, arms, scores = len(population), model.bundle.arms, population.scores
    new = population.unseen
    ids = made.customer_id.tolist()
    # No snapshot stands behind a file: the moment takes its place in the decision's name.
    name = f"as_of={population.as_of.isoformat()}"
    coupons = np.array([None, *campaign.arms], dtype=object)
    columns: dict[str, pa.Array] = {
        "decision_id": pa.array(decision_ids(ids, campaign, salt, name, model.sha256)),
        "customer_id": pa.array(ids, pa.string()),
        "campaign_id": pa.array([campaign.campaign_id] * n, pa.string()),
        "as_of": pa.array([population.as_of] * n, pa.timestamp("us", tz="UTC")),
        "action": pa.array(made.action.tolist(), pa.string()),
        "coupon_id": pa.array(coupons[np.where(made.is_offer, made.arm, 0)].tolist(), pa.string()),
        "reason": pa.array([str(r) for r in made.reason], pa.string()),
        "expected_incremental_profit": pa.array(made.expected_incremental_profit),
        "expected_cost": pa.array(made.expected_cost),
    }
    for k, arm in enumerate(arms):
        columns[f"cate_{arm}"] = pa.array(scores.cate[:, k])
    for arm in campaign.arms[len(arms) :]:
        columns[f"cate_{arm}"] = pa.nulls(n, pa.float32())
    for k, arm in enumerate(arms):
        columns[f"cost_{arm}"] = pa.array(scores.cost[:, k])
    for u, arm in enumerate(campaign.arms[len(arms) :]):
        assert new is not None
        columns[f"cost_{arm}"] = pa.array(new.cost[:, u])
    columns |= {
        "response_propensity": pa.array(scores.response),
        "tier": pa.array(population.tier.texts().tolist(), pa.string()),
        "lifecycle_stage": pa.array(population.stage.texts().tolist(), pa.string()),
        "assignment_prob": pa.array(made.assignment_prob),
        "is_holdout": pa.array(made.is_holdout),
        "is_exploration": pa.array(made.is_exploration),
        "model_version": pa.array([model.version] * n, pa.string()),
    }
    return pa.table(columns | _advice(population, made))


def _advice(population: Population, made: Decisions) -> dict[str, pa.Array]:
    """Columns that stand only where the configuration asks for them: the labels and the
    probability behind the churn warning, trigger rules that fired, by which channel and when to
    send."""
    columns: dict[str, pa.Array] = {}
    if "churn" in population.values:
        columns["labels"] = pa.array(population.labels.texts().tolist(), pa.string())
        columns[CHURN] = pa.array(population.values["churn"], pa.float32(), from_pandas=True)
    rules, hours = population.arms, population.hours
    if rules is not None and rules.fired is not None:
        columns["rules_fired"] = pa.array(rules.fired.tolist(), pa.string())
    if rules is not None and rules.channels:
        names = np.array([*rules.channels, None], dtype=object)
        code = rules.channel[np.arange(len(population)), made.arm - 1]
        columns["channel"] = pa.array(names[np.where(made.is_offer, code, -1)], pa.string())
    if hours is not None:
        columns["send_weekday"] = pa.array(hours.weekday)
        columns["send_hour"] = pa.array(hours.hour)
        columns["send_basis"] = pa.array(hours.bases().tolist(), pa.string())
    return columns


def _notes(population: Population, campaign: Campaign, made: Decisions) -> list[str]:
    notes = list(population.notes)
    if population.simulated:
        notes.insert(0, SIMULATED)
    if campaign.unseen:
        notes.append(
            f"{', '.join(campaign.arms[-campaign.unseen :])}: the model has not seen them, so they "
            "are only drawn; their cost is replayed from orders"
        )
    wished, used = campaign.shares.exploration, made.shares.exploration
    if used < wished:
        notes.append(
            f"explored a share of {used:g} in place of {wished:g}: more might pass the budget "
            "or a limit"
        )
    offers = np.bincount(made.arm[made.is_offer], minlength=2)[1:]
    if len(offers) > 1 and offers.max() > ONE_ARM * offers.sum():
        notes.append(
            f"one coupon, {campaign.arms[int(offers.argmax())]}, takes more than {ONE_ARM:.0%} of "
            "the offers"
        )
    notes += _dual_track(population, made)
    if campaign.sends_nothing:
        notes.append("no policy was shown to earn its cost, so nothing is sent")
    return notes


def planned_gain(
    model: LoadedModel, made: Decisions, population: Population, campaign: Campaign
) -> dict[str, float] | None:
    """What the offers that exploration left over are expected to gain: of the plan that was
    measured at training, at what these customers are expected to cost each. None without a plan.

    The plan does not know limits besides the budget. Within some the gain is what the same money
    would gain without them, times the share of the models' own sum that is left within them: both
    sums are too high, and in the same way.
    """
    plan = model.bundle.info.get(PLAN)
    certificate = made.certificate
    if plan is None or certificate is None:
        return None
    allocated = (made.reason == Reason.BEST_NET_VALUE) | (made.reason == Reason.BELOW_THRESHOLD)
    rows = np.flatnonzero(allocated)
    if not len(rows):
        return None
    spend, kept = certificate.spend - certificate.exploration_spend, 1.0
    if made.used:
        reward = campaign.worth(population.scores.reward[rows].astype(np.float64))
        free = allocate(
            reward,
            population.scores.cost[rows].astype(np.float64),
            budget=None
            if campaign.budget is None
            else max(campaign.budget - certificate.exploration_spend, 0.0),
            min_profit=campaign.min_profit,
            eligible=made.eligible[rows, : reward.shape[1]],
        )
        spend = free.spend
        kept = min(certificate.value / free.value, 1.0) if free.value > 0 else 1.0
    gain = BudgetPlan.from_json(plan).gain_at(spend / len(rows))
    return gain.scaled(len(rows) * (kept if gain.value > 0 else 1.0)).to_json()


def _gain_told(m: Mapping[str, Any]) -> str:
    """The expected gain in words: by the plan, never by the models' own sum alone."""
    gain, money = m["planned_gain"], m["currency"]
    if gain is not None:
        return (
            f"expected profit    {gain['value']:,.2f} {money} [{gain['lo']:,.2f}, "
            f"{gain['hi']:,.2f}] more than without offers, as held-out customers show"
        )
    return (
        f"predicted profit   {m['expected_incremental_profit']:,.2f} {money} more than without "
        "offers; the sum of what looks best is too high"
    )


def _dual_track(population: Population, made: Decisions) -> list[str]:
    """A warning where an offer to customers who bought before is expected to bring less than 0.8 of
    what one to new customers brings."""
    tier = population.tier.texts()
    new = made.is_offer & (tier == "prospect")
    old = made.is_offer & (tier != "prospect") & (population.tier.codes > 0)
    if not (new.any() and old.any()):
        return []
    means = [float(made.expected_incremental_profit[some].mean()) for some in (old, new)]
    if means[0] >= OLD_TO_NEW * means[1]:
        return []
    return [
        f"an offer to old customers is expected to bring {means[0]:.2f}, under {OLD_TO_NEW:g} of "
        f"the {means[1]:.2f} of one to new customers"
    ]


def summary(written: DecisionsFile) -> str:
    """What the command prints: who gets what, and at what cost."""
    m = written.manifest
    money = m["currency"]
    budget = "no limit" if m["budget"] is None else f"{m['budget']:,.2f} {money}"
    lines = [f"{m['rows']:,} customers decided as of {m['as_of']}, {m['offers']:,} offers"]
    if m["simulated"]:
        lines.append(f"  {SIMULATED}")
    lines.append(f"  by {m['policy']}, version {m['model_version']} of {m['model_name']}:")
    lines += [f"  {count:>9,}  {arm}" for arm, count in m["offers_by_coupon"].items()]
    lines += [
        f"expected cost      {m['expected_cost']:,.2f} {money} of {budget}",
        _gain_told(m),
        f"allocation         within {m['gap']:,.2f} {money} of the best one for these scores",
        f"shadow price       {m['shadow_price']:.4f} {money} per {money} of budget",
        *(
            f"limit {limit['name']}: {limit['used']:,.2f} of {limit['most']:,.2f}"
            for limit in m["limits"]
        ),
        "reasons            "
        + ", ".join(f"{reason} {count:,}" for reason, count in m["reasons"].items()),
    ]
    lines += [f"note: {note}" for note in m["notes"] if note != SIMULATED]
    lines += [f"degraded: {', '.join(m['degraded'])}"] if m["degraded"] else []
    return "\n".join([*lines, f"wrote {written.path} and {manifest_path(written.path).name}"])


def csv_bytes(table: pa.Table, *, header: bool = True) -> bytes:
    """UTF-8, CRLF, text in quotes; numbers read back bit for bit; text can't start a formula."""
    frame = table.to_pandas(integer_object_nulls=True)
    for field in table.schema:
        if pa.types.is_timestamp(field.type):
            frame[field.name] = frame[field.name].dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        elif pa.types.is_string(field.type):
            text = frame[field.name].astype(object)
            risky = text.str.match(r"[=+\-@\t\r\n\0＝＋－＠]", na=False)
            frame[field.name] = text.where(~risky, "'" + text)
    text = frame.to_csv(
        index=False, header=header, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n"
    )
    return str(text).encode()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside, sync it, and rename it into place."""
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
