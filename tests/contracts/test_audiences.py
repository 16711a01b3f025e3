"""Audience jobs over HTTP: asked for once, followed, cancelled, downloaded."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import update

from serving.jobs_files import ResultWriter, remove_results
from serving.jobs_resources import Manifest
from serving.log.jobs import QUEUED
from serving.log.keys import make
from serving.log.retention import RESULTS
from serving.log.schema import jobs as table
from serving.service import now_micros
from tests.contracts.test_api import documented
from tests.contracts.test_log_api import create
from tests.unit.serving import jobs
from tests.unit.serving.answering import Client, post, serving
from tests.unit.serving.small_shop import Shop, shared_shop

JOB, RESULT = "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/result/{name}"


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


@pytest.fixture
def client(shop: Shop, tmp_path: Path) -> Iterator[Client]:
    with serving(shop.scorer(), tmp_path) as found:
        found.folder = tmp_path
        yield found


def refusal(answer: Any) -> tuple[int, str]:
    """Status and code of an answer that refuses."""
    return answer.status_code, answer.json()["code"]


# Asking


def test_a_job_is_queued_followed_done_and_listed(client: Client) -> None:
    answer = jobs.ask(client)
    documented("post", "/v1/audiences", answer)
    job_id = answer.json()["job_id"]
    assert answer.status_code == 202
    assert answer.json() == {"job_id": job_id, "state": "queued"}
    assert answer.headers["location"] == f"/v1/jobs/{job_id}"
    assert answer.headers["retry-after"] == "5"
    followed = client.get(answer.headers["location"])
    documented("get", JOB, followed)
    assert followed.headers["retry-after"] == "5"
    assert followed.json() | {"created_at": ""} == {
        "job_id": job_id, "kind": "audience", "state": "queued", "campaign_id": "spring",
        "progress": {"rows_done": 0, "rows_total": None}, "attempt": 0, "error": None,
        "manifest": None, "created_at": "", "finished_at": None, "expires_at": None,
    }  # fmt: skip
    assert jobs.worker(client, client.folder).run_one()
    found = client.get(f"/v1/jobs/{job_id}")
    assert "retry-after" not in found.headers
    assert found.json()["state"] == "succeeded"
    assert found.json()["progress"] == {"rows_done": 300, "rows_total": 300}
    assert found.json()["manifest"] == f"/v1/jobs/{job_id}/result/manifest.json"
    listed = client.get("/v1/jobs")
    documented("get", "/v1/jobs", listed)
    assert listed.json() == {"items": [found.json()], "next_cursor": None}


def test_a_key_is_required_and_a_retry_names_the_same_job(client: Client) -> None:
    body = {"campaign_id": "spring"}
    assert refusal(post(client, body, "/v1/audiences")) == (400, "missing_key")
    assert refusal(post(client, body, "/v1/audiences", **{"idempotency-key": "a b"})) == (
        400,
        "bad_key",
    )
    key = {"idempotency-key": "one"}
    first = post(client, body, "/v1/audiences", **key)
    assert jobs.worker(client, client.folder).run_one()
    again = post(client, body, "/v1/audiences", **key)
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert refusal(post(client, {**body, "dry_run": True}, "/v1/audiences", **key)) == (
        422,
        "key_reused",
    )
    assert len(client.get("/v1/jobs").json()["items"]) == 1


def test_one_job_of_a_campaign_and_five_queued_of_a_key(client: Client) -> None:
    first = jobs.queue(client)
    assert refusal(jobs.ask(client)) == (409, "job_running")
    for i in range(QUEUED - 1):
        create(client, f"c{i}")
        jobs.queue(client, f"c{i}")
    create(client, "more")
    refused = jobs.ask(client, "more")
    assert refusal(refused) == (429, "too_many_jobs")
    assert refused.headers["retry-after"] == "5"
    documented("post", "/v1/audiences", refused)
    assert client.request("DELETE", f"/v1/jobs/{first}").status_code == 200
    assert jobs.ask(client, "more").status_code == 202


@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        ({"formats": []}, "#/formats", "length"),
        ({"formats": ["xlsx"]}, "#/formats/0", "invalid"),
        ({"filter": []}, "#/filter", "type"),
        ({"filter": {}}, "#/filter", "unknown_field"),
        ({"filter": {"segment": "shoe", "in": ["x"]}}, "#/filter/segment", "unknown_feature"),
        ({"filter": {"all": [{"feature": "nope", "op": "=", "value": 1}]}},
         "#/filter/all/0/feature", "unknown_feature"),
        ({"filter": {"all": [{"all": [{"all": [{"segment": "tier", "in": ["a"]}]}]}]}}, "#",
         "length"),
        ({"allocate": "yes"}, "#/allocate", "type"),
        ({"surprise": 1}, "#", "unknown_field"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_place(
    client: Client, change: dict[str, Any], pointer: str, code: str
) -> None:
    refused = jobs.ask(client, **change)
    assert refused.status_code == 422, refused.text
    documented("post", "/v1/audiences", refused)
    assert [(e["pointer"], e["code"]) for e in refused.json()["errors"]] == [(pointer, code)]
    assert client.get("/v1/jobs").json()["items"] == []


def test_other_campaigns_and_large_bodies_are_refused(client: Client) -> None:
    assert refusal(jobs.ask(client, "other")) == (404, "unknown_campaign")
    key = {"idempotency-key": "k"}
    assert refusal(post(client, b" " * 70_000, "/v1/audiences", **key)) == (413, "too_large")
    other_type = key | {"content-type": "a/b"}
    assert refusal(post(client, b"{}", "/v1/audiences", **other_type)) == (415, "media_type")


def test_pages_of_jobs_hold_each_once_and_their_cursors_are_signed(client: Client) -> None:
    made = [jobs.done(client, client.folder, dry_run=True) for _ in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        page = client.get(f"/v1/jobs?limit=2&cursor={cursor}").json()
        found += [job["job_id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        other = "A" if cursor[5] != "A" else "B"
        altered = client.get(f"/v1/jobs?cursor={cursor[:5]}{other}{cursor[6:]}")
        assert refusal(altered) == (400, "bad_cursor")
        assert refusal(client.get(f"/v1/campaigns?cursor={cursor}")) == (400, "bad_cursor")
    assert found == made[::-1]


# Cancelling and expiring


def test_a_job_is_cancelled_before_it_commits(client: Client) -> None:
    job_id = jobs.queue(client)
    for _ in range(2):
        answer = client.request("DELETE", f"/v1/jobs/{job_id}")
        documented("delete", JOB, answer)
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert not jobs.worker(client, client.folder).run_one()
    assert refusal(jobs.download(client, job_id, "manifest.json")) == (409, "unfinished")
    second = jobs.done(client, client.folder)
    refused = client.request("DELETE", f"/v1/jobs/{second}")
    assert refusal(refused) == (409, "not_cancellable")
    documented("delete", JOB, refused)
    with client.service.log.write() as connection:
        connection.execute(update(table).where(table.c.job_id == second).values(state="committing"))
    assert refusal(client.request("DELETE", f"/v1/jobs/{second}")) == (409, "not_cancellable")


def test_unknown_jobs_are_not_found_and_old_ones_are_gone(client: Client) -> None:
    job_id = jobs.done(client, client.folder)
    paths = [("GET", ""), ("DELETE", ""), ("GET", "/result/manifest.json")]
    for method, rest in paths:
        assert refusal(client.request(method, f"/v1/jobs/none{rest}")) == (404, "unknown_job")
        assert refusal(client.request(method, f"/v1/jobs/a%0A{rest}")) == (422, "validation")
    home = client.folder / "jobs" / "spring"
    assert remove_results(home, {job_id}) == 0
    with client.service.log.write() as connection:
        connection.execute(update(table).values(finished_at=now_micros() - RESULTS))
    for method, rest in paths:
        gone = client.request(method, f"/v1/jobs/{job_id}{rest}")
        assert refusal(gone) == (410, "gone")
        documented(method.lower(), RESULT if rest else JOB, gone)
    assert client.get("/v1/jobs").json()["items"] == []
    assert remove_results(home, set()) == 1
    assert list(home.iterdir()) == []


# Downloading


def test_all_formats_hold_the_same_rows_and_are_what_the_manifest_says(client: Client) -> None:
    job_id = jobs.done(client, client.folder, formats=["ndjson", "csv", "parquet"])
    answer = jobs.download(client, job_id, "manifest.json")
    documented("get", RESULT, answer)
    told = answer.json()
    content = {}
    for file in told["files"]:
        answer = jobs.download(client, job_id, file["name"])
        assert answer.status_code == 200
        assert len(answer.content) == file["bytes"] == int(answer.headers["content-length"])
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        disposition = answer.headers["content-disposition"]
        assert disposition == f'attachment; filename="{file["name"]}"'
        assert answer.headers["x-content-type-options"] == "nosniff"
        content[file["format"]] = answer
    assert {form: a.headers["content-type"] for form, a in content.items()} == {
        "ndjson": "application/gzip", "csv": "text/csv; charset=utf-8",
        "parquet": "application/vnd.apache.parquet",
    }  # fmt: skip
    lines = gzip.decompress(content["ndjson"].content).splitlines()
    rows = [json.loads(line) for line in lines]
    assert pq.read_table(io.BytesIO(content["parquet"].content)).to_pylist() == rows
    text = content["csv"].content.decode()
    assert text.count("\r\n") == text.count("\n") == 301
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    for row, cells in zip(rows, read, strict=True):
        assert list(row) == list(cells) == told["columns"]
        for name, value in row.items():
            shown = "" if value is None else repr(value) if isinstance(value, float) else str(value)
            assert cells[name] == shown
    assert (told["rows"], len(rows)) == (300, 300)
    assert told["offers"] == sum(row["action"] == "offer" for row in rows)
    assert told["expected_cost_micros"] == sum(row["expected_cost_micros"] for row in rows)
    assert sum(told["reasons"].values()) == 300


def test_ranges_and_etags(client: Client) -> None:
    job_id = jobs.done(client, client.folder, formats=["csv"])
    name = "part-0000.csv"
    whole = jobs.download(client, job_id, name)
    size, tag = len(whole.content), whole.headers["etag"]
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, start, stop in (
        ("0-0", 0, 1), ("0-99", 0, 100), (f"{size - 5}-", size - 5, size),
        ("100-", 100, size), ("-7", size - 7, size), (f"-{size * 2}", 0, size),
        (f"10-{size * 2}", 10, size),
    ):  # fmt: skip
        part = jobs.download(client, job_id, name, Range=f"bytes={asked}")
        assert part.status_code == 206, asked
        assert part.content == whole.content[start:stop]
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert part.headers["etag"] == tag
    for asked in (f"{size}-", "-0"):
        refused = jobs.download(client, job_id, name, Range=f"bytes={asked}")
        assert refusal(refused) == (416, "range")
        assert refused.headers["content-range"] == f"bytes */{size}"
        documented("get", RESULT, refused)
    for asked in ("bytes=5-2", "bytes=-", "lines=1-2", "bytes=0-1,3-4", "bytes=a-b"):
        assert jobs.download(client, job_id, name, Range=asked).content == whole.content
    fresh = jobs.download(client, job_id, name, Range="bytes=0-1", **{"if-range": tag})
    assert fresh.status_code == 206
    stale = jobs.download(client, job_id, name, Range="bytes=0-1", **{"if-range": '"x"'})
    assert (stale.status_code, stale.content) == (200, whole.content)
    same = jobs.download(client, job_id, name, **{"if-none-match": f'"x", {tag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)


def test_only_what_the_manifest_names_is_sent(client: Client) -> None:
    job_id = jobs.done(client, client.folder)
    folder = client.folder / "jobs" / "spring" / job_id
    (folder / "planted.txt").write_text("secret")
    (folder.parent / "planted.txt").write_text("secret")
    for name in ("planted.txt", "part-0001.ndjson.gz", "part-0000.csv", "..."):
        answer = jobs.download(client, job_id, name)
        assert answer.status_code == 404
        assert "secret" not in answer.text
    for name in ("..%2fplanted.txt", "%2e%2e%2fplanted.txt", "..%5cplanted.txt", "a%00b", "A"):
        answer = jobs.download(client, job_id, name)
        assert answer.status_code in (404, 422)
        assert "secret" not in answer.text
    assert (folder.parent / job_id).stat().st_mode & 0o077 == 0  # of the server's user alone


def test_every_address_asks_for_the_scope(client: Client) -> None:
    with client.service.log.write() as connection:
        other = make(connection, ["events", "read", "admin"], "", now_micros(), None)
        right = make(connection, ["score"], "", now_micros(), None)
    client.service._keys_until = -1.0
    for method, path in (
        ("POST", "/v1/audiences"), ("GET", "/v1/jobs"), ("GET", "/v1/jobs/x"),
        ("DELETE", "/v1/jobs/x"), ("GET", "/v1/jobs/x/result/manifest.json"),
    ):  # fmt: skip
        for token, status in ((None, 401), (other, 403)):
            headers = {} if token is None else {"authorization": f"Bearer {token}"}
            assert client.request(method, path, headers=headers).status_code == status
        headers = {"authorization": f"Bearer {right}"}
        answer = client.request(method, path, headers=headers)
        assert answer.status_code not in (401, 403), answer.text


def test_no_log_line_names_a_customer(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        job_id = jobs.done(client, client.folder)
    line = json.loads(next(r.message for r in caplog.records if r.name == "serving.jobs.done"))
    assert (line["job_id"], line["state"], line["attempt"]) == (job_id, "succeeded", 1)
    assert not any(f"c-{i:03d}" in caplog.text for i in range(300))
    metrics = client.get("/metrics").text
    assert 'persuadables_jobs{state="succeeded"} 1.0' in metrics
    jobs.queue(client)
    waited = re.search(r"persuadables_jobs_waiting_seconds ([0-9.]+)", client.get("/metrics").text)
    assert waited is not None
    assert 0 < float(waited[1]) < 60


# Files


def told(files: Any, columns: list[str]) -> Manifest:
    return Manifest(
        "job-x", "c", 0, True, False, 7, 0, 0, {}, "", "", "s", "1", "1", False, columns, files
    )


def test_parts_hold_so_many_rows_and_text_can_not_start_a_formula(tmp_path: Path) -> None:
    risky = ["=1", "+1", "-1", "@x", "\tx", "\rx", "\nx", "\0x", "＝1", "＋1", "－1", "＠x"]
    texts = [*risky, "a=1", 'say "x"', "ü,;", ""]
    rows = pa.table({"text": texts, "number": list(range(-len(texts), 0))})
    with ResultWriter(tmp_path, "job-x", ["csv", "parquet", "ndjson"], part_rows=7) as results:
        for start in range(0, len(texts), 5):
            results.add(rows.slice(start, 5))
        files = results.finish(rows.schema)
        folder = results.publish(told(files, rows.column_names))
    assert [file.rows for file in files] == [7, 7, 2] * 3
    assert [file.name for file in files[:3]] == [f"part-{i:04d}.csv" for i in range(3)]
    cells = []
    for file in files[:3]:
        text = (folder / file.name).read_bytes().decode()
        cells += list(csv.DictReader(io.StringIO(text, newline="")))
    assert [c["text"] for c in cells] == ["'" + t for t in risky] + texts[len(risky) :]
    assert [int(c["number"]) for c in cells] == rows["number"].to_pylist()
    kept = pa.concat_tables(pq.read_table(folder / file.name) for file in files[3:6])
    assert kept == rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job-x"]


def test_what_was_not_published_is_removed_and_what_was_is_replaced_whole(tmp_path: Path) -> None:
    rows = pa.table({"text": ["a"]})
    with ResultWriter(tmp_path, "job-x", ["parquet", "ndjson"]) as results:
        results.add(rows)
        assert len(list(next(tmp_path.iterdir()).iterdir())) == 2
    assert list(tmp_path.iterdir()) == []
    for content in ("a", "b"):
        with ResultWriter(tmp_path, "job-x", ["csv"]) as results:
            results.add(pa.table({"text": [content]}))
            results.publish(told(results.finish(rows.schema), ["text"]))
    assert (tmp_path / "job-x" / "part-0000.csv").read_bytes() == b'"text"\r\n"b"\r\n'
    assert sorted(p.name for p in (tmp_path / "job-x").iterdir()) == [
        "manifest.json", "part-0000.csv",
    ]  # fmt: skip
