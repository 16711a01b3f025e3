"""Audience jobs over HTTP: what goes in and out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from serving.schemas import Id, Micros, Time

MAX_AUDIENCE_BODY = 1 << 16
Format = Literal["ndjson", "csv", "parquet"]
FORMATS: tuple[Format, ...] = ("ndjson", "csv", "parquet")


class AudienceBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Score every customer of the snapshot who passes the filter (as a campaign's `eligibility`;
    none: everyone). `allocate` false: scores alone, nothing is decided or stored. `dry_run` true:
    decisions as they would be, nothing is stored or charged."""

    campaign_id: Id
    filter: dict[str, Any] | None = None
    allocate: bool = True
    dry_run: bool = False
    formats: Annotated[tuple[Format, ...], Meta(min_length=1, max_length=3)] = ("ndjson",)


class JobQueued(Struct, frozen=True):
    """The job that was made."""

    job_id: str
    state: Literal["queued"]


class Progress(Struct, frozen=True):
    """Customers scored while `running`, decided and written while `committing`; `rows_total` null:
    not counted yet."""

    rows_done: int
    rows_total: int | None


class JobAnswer(Struct, frozen=True):
    """A job. `manifest` is where its results are listed, once it has succeeded; they go at
    `expires_at`. `error`: `attempts` (its worker vanished three times), `result_disk_full`,
    `filter`, `campaign` (the model and snapshot of today do not know a name in it), `internal`."""

    job_id: str
    kind: Literal["audience"]
    state: Literal["queued", "running", "committing", "succeeded", "failed", "cancelled"]
    campaign_id: str
    progress: Progress
    attempt: int
    error: Literal["attempts", "result_disk_full", "filter", "campaign", "internal"] | None
    manifest: str | None
    created_at: Time
    finished_at: Time | None
    expires_at: Time | None


class JobList(Struct, frozen=True):
    """One page, the newest first."""

    items: list[JobAnswer]
    next_cursor: str | None


class ResultFile(Struct, frozen=True):
    """A file of results."""

    name: str
    format: Format
    rows: int
    bytes: int
    sha256: str


class Manifest(Struct, frozen=True):
    """What a job gave, written last. The files of each format together hold all rows once."""

    job_id: str
    campaign_id: str
    window_id: int
    allocate: bool
    dry_run: bool
    rows: int
    offers: int
    expected_cost_micros: Micros
    reasons: dict[str, int]
    decided_at: Time
    as_of: Time
    snapshot_id: str
    model_version: str
    policy_version: str
    simulated: bool
    columns: list[str]
    files: list[ResultFile]


RESOURCES = (AudienceBody, JobQueued, JobAnswer, JobList, Manifest)
