"""The configuration: every error names file, key, expected, found and remedy."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from features.config import Config, load_config, parse_time, validate
from features.config_reference import reference
from features.errors import ConfigError

ROOT = Path(__file__).parents[3]

FULL = """
name: spring_coupons
source:
  kind: files
  path: data/spring
  columns:
    transactions: {customer_id: household_id}
  constants:
    exposures: {assigned_at: 2025-03-01, campaign_id: 7}
  as_of: now
outcome:
  kind: profit
  margin_rate: 0.35
offers:
  - {coupon_id: c5, kind: fixed_off, params: {off: 5.0}, contact_cost: 0.02}
  - {coupon_id: p10, kind: percent_off, params: {rate_off: 0.10, max_off: 20, min_spend: 30}}
policy: {budget: 5000}
contact: {overall: {7d: 2, 28d: 4}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.yaml"
    path.write_text(FULL)
    return path


def test_the_reference_is_up_to_date() -> None:
    text = (ROOT / "configs/reference.md").read_text(encoding="utf-8")
    assert text == reference(), "run python -m features.config_reference"


def test_the_reference_has_every_key() -> None:
    text = reference()

    def keys(schema: dict[str, Any], node: dict[str, Any]) -> set[str]:
        found = set()
        for name, inner in node.get("properties", {}).items():
            found.add(name)
            refs = [inner, inner.get("items", {}), *inner.get("allOf", []), *inner.get("anyOf", [])]
            for part in refs:
                if "$ref" in part:
                    found |= keys(schema, schema["$defs"][part["$ref"].split("/")[-1]])
        return found

    schema = Config.model_json_schema()
    for key in keys(schema, schema) - {"source", "outcome"}:
        assert f"`{key}`" in text or f"## {key}" in text or f".{key}\n" in text, key
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert all(row.split(" | ")[-1].strip(" |") for row in rows), "a key without a meaning"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configurations_that_come_along_are_valid(path: Path) -> None:
    assert load_config(path).name


def test_what_yaml_would_misread(file: Path) -> None:
    """`off` is no boolean, a date and a number may be constants."""
    config = load_config(file)
    assert config.offers[0].params == {"off": 5.0}
    assert config.source.constants["exposures"] == {"assigned_at": "2025-03-01", "campaign_id": "7"}
    assert load_config(file, ["policy.budget=null"]).policy.budget is None


def test_overrides_reach_any_key(file: Path) -> None:
    config = load_config(
        file,
        [
            "policy.budget=2000",
            "source.as_of=2025-05-01",
            "source.complete_until=2025-05-01T08:00:00+08:00",
            "features.given=[age, region]",
            "contact.assume_consent=true",
            "experiment.assignment={control: 0.5, c5: 0.25, p10: 0.25}",
        ],
    )
    assert config.policy.budget == 2000
    assert config.source.as_of == config.source.complete_until == datetime(2025, 5, 1, tzinfo=UTC)
    assert config.features.given == ["age", "region"]
    assert config.contact.assume_consent is True
    assert config.experiment.assignment == {"control": 0.5, "c5": 0.25, "p10": 0.25}
    assert config.arms == ["c5", "p10"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (["nmae=x"], r"shop.yaml: nmae: expected a known key .*found 'nmae'. Did you mean name\?"),
        (["policy.bugdet=1"], r"policy.bugdet: .*Did you mean budget\?"),
        (["source.kind=kafka"], r"source.kind: expected .*'files'.*found 'kafka'"),
        (
            ["policy.holdout_share=1.5"],
            r"policy.holdout_share: .*less than or equal to 1, found 1.5",
        ),
        (["policy.budget=.inf"], r"policy.budget: .*finite number"),
        (["outcome={kind: profit}"], r"outcome: expected outcome.margin_rate"),
        (["outcome={kind: column}"], r"outcome: expected outcome.column"),
        (["timezone=Mars/Olympus"], r"timezone: expected an IANA time zone"),
        (["source.as_of=tomorrow"], r"source.as_of: expected an ISO 8601 time.*found 'tomorrow'"),
        (["source.complete_until=3"], r"source.complete_until: expected an ISO 8601 time"),
        (["name=a b"], r"name: expected an id that matches"),
        (["name=null"], r"name: "),
        (["offers=[{coupon_id: control, kind: message}]"], "other than control"),
        (
            ["offers=[{coupon_id: a, kind: message}, {coupon_id: a, kind: message}]"],
            "these stand twice: a",
        ),
        (["contact.quiet_hours=['09:00', '09:00']"], "begin and end at different times"),
        (["contact.overall={week: 2}"], "windows written in days"),
        (["training.learners=[]"], r"training.learners: .*at least 1"),
        (["engine=abacus"], r"engine: expected 'duckdb'"),
        (["policy.budget"], r"--set policy.budget: expected key=value"),
        (["name.first=x"], r"--set name.first: expected a key of the configuration"),
        (["policy.budget=[1"], r"--set policy.budget: expected a YAML value"),
    ],
)
def test_every_mistake_has_its_message(file: Path, change: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        load_config(file, change)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"name: [", "expected valid YAML"),
        (b"\xff\xfe\x00", "expected valid YAML"),
        (b"- a\n- b\n", "expected a mapping of keys, found list"),
        (b"", "expected a mapping of keys, found NoneType"),
        (b"name: x\n", r"source: expected a value, found nothing. Add source"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=match):
        load_config(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file. Copy configs/demo.yaml"):
        load_config(tmp_path / "none.yaml")


def test_times_are_utc(file: Path) -> None:
    raw = yaml.safe_load(FULL)
    raw["offers"] = []
    raw["source"]["as_of"] = "2025-03-01T08:00:00+08:00"
    config = validate(raw)
    assert config.as_of() == datetime(2025, 3, 1, tzinfo=UTC)
    later = datetime(2025, 6, 1, tzinfo=UTC)
    assert config.as_of(later) == later
    assert parse_time("2025-03-01", "--as-of") == datetime(2025, 3, 1, tzinfo=UTC)
    with pytest.raises(ConfigError, match=r"--as-of: expected an ISO 8601 time.*'soon'"):
        parse_time("soon", "--as-of")


def test_now_moves(file: Path) -> None:
    config = load_config(file)
    before = datetime.now(UTC)
    assert before <= config.as_of() <= datetime.now(UTC)
