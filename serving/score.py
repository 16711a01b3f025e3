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

from features.config import Config
from features.errors import ConfigError
from serving.campaign import Campaign, config_digest, decide_all, decision_ids
from serving.load import LoadedModel, sync_folder, write_atomically
from serving.population import Population
from serving.salt import Salt
from uplift.policy import Decisions

METADATA = b"persuadables"
SIMULATED = "The shop is simulated: no real customer stands behind these rows."
SUFFIXES = (".parquet", ".csv")


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
    campaign = Campaign.of(config, model.bundle)
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
            for code, arm in enumerate(model.bundle.arms, 1)
        },
        "reasons": dict(zip(reasons.tolist(), counts.tolist(), strict=True)),
        "currency": config.currency,
        "budget": campaign.budget,
        "expected_cost": certificate.spend,
        "expected_incremental_profit": float(made.expected_incremental_profit.sum()),
        "shadow_price": made.shadow_price,
        "upper_bound": certificate.upper_bound,
        "gap": certificate.gap,
        "exploration_cost": certificate.exploration_spend,
        "shares": vars(made.shares),
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
        written = _csv(table)
    else:
        packed = table.replace_schema_metadata({METADATA: json.dumps(facts, sort_keys=True)})
        buffer = io.BytesIO()
        pq.write_table(packed, buffer, compression="zstd")
        written = buffer.getvalue()
    _write(out, written)
    manifest = {
        **facts,
        "file": out.name,
        "bytes": len(written),
        "sha256": hashlib.sha256(written).hexdigest(),
    }
    write_atomically(manifest_path(out), manifest)
    return DecisionsFile(out, manifest)


def manifest_path(out: Path) -> Path:
    return out.with_name(out.name + ".manifest.json")


def decisions_table(
    population: Population,
    model: LoadedModel,
    campaign: Campaign,
    made: Decisions,
    salt: Salt,
) -> pa.Table:
    """The columns of the decisions file, in their order, ordered by customer id."""
    n, arms, scores = len(population), model.bundle.arms, population.scores
    ids = made.customer_id.tolist()
    # No snapshot stands behind a file: the moment takes its place in the decision's name.
    name = f"as_of={population.as_of.isoformat()}"
    coupons = np.array([None, *arms], dtype=object)
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
    for k, arm in enumerate(arms):
        columns[f"cost_{arm}"] = pa.array(scores.cost[:, k])
    columns |= {
        "response_propensity": pa.array(scores.response),
        "tier": pa.array(population.tier.texts().tolist(), pa.string()),
        "lifecycle_stage": pa.array(population.stage.texts().tolist(), pa.string()),
        "labels": pa.array(population.labels.texts().tolist(), pa.string()),
        "churn_probability": pa.array(
            population.values.get("churn", np.full(n, np.nan)), pa.float32(), from_pandas=True
        ),
        "assignment_prob": pa.array(made.assignment_prob),
        "is_holdout": pa.array(made.is_holdout),
        "is_exploration": pa.array(made.is_exploration),
        "model_version": pa.array([model.version] * n, pa.string()),
    }
    return pa.table(columns)


def _notes(population: Population, campaign: Campaign, made: Decisions) -> list[str]:
    notes = list(population.notes)
    if population.simulated:
        notes.insert(0, SIMULATED)
    wished, used = campaign.shares.exploration, made.shares.exploration
    if used < wished:
        notes.append(
            f"explored a share of {used:g} in place of {wished:g}: more might pass the budget"
        )
    if campaign.sends_nothing:
        notes.append("no policy was shown to earn its cost, so nothing is sent")
    return notes


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
        f"expected profit    {m['expected_incremental_profit']:,.2f} {money} more than without "
        "offers, as predicted; within "
        f"{m['gap']:,.2f} {money} of the best allocation",
        f"shadow price       {m['shadow_price']:.4f} {money} per {money} of budget",
        "reasons            "
        + ", ".join(f"{reason} {count:,}" for reason, count in m["reasons"].items()),
    ]
    lines += [f"note: {note}" for note in m["notes"] if note != SIMULATED]
    lines += [f"degraded: {', '.join(m['degraded'])}"] if m["degraded"] else []
    return "\n".join([*lines, f"wrote {written.path} and {manifest_path(written.path).name}"])


def _csv(table: pa.Table) -> bytes:
    """UTF-8, CRLF, text in quotes; numbers read back bit for bit; text can't start a formula."""
    frame = table.to_pandas()
    for field in table.schema:
        if pa.types.is_timestamp(field.type):
            frame[field.name] = frame[field.name].dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        elif pa.types.is_string(field.type):
            text = frame[field.name].astype(object)
            risky = text.str.match(r"[=+\-@\t\r\n\0＝＋－＠]", na=False)
            frame[field.name] = text.where(~risky, "'" + text)
    text = frame.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    return str(text).encode()


def _write(path: Path, content: bytes) -> None:
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
