"""Saved audiences, and `python -m features audience`: what it prints, writes, and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from features.__main__ import main
from features.audience_store import audience_names, find_audience, save_audience, saved_path
from features.config import read_yaml
from features.errors import ConfigError
from tests.unit.features.conftest import make_config
from tests.unit.features.worked_example import EXPOSURES, OFFERS, TRANSACTIONS, ZONE

P1 = {"purchase": {"product": "P1"}, "within_days": 90}
RAW: dict[str, Any] = {"all": [P1, {"not": {"purchase": {"product": "P2"}}}]}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """The worked example as a folder of CSV files and a configuration."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/transactions.csv").write_text(TRANSACTIONS)
    (tmp_path / "shop/exposures.csv").write_text(EXPOSURES)
    raw = {
        "name": "example",
        "source": {"kind": "files", "path": "shop", "as_of": "2026-01-01T00:00:00+08:00"},
        "outcome": {"kind": "conversion"},
        "timezone": ZONE,
        "offers": OFFERS,
        "segments": {"min_size": 3},
        "audiences": {"p1": {"filter": P1, "version": 4}},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(raw))
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(RAW))
    return "c.yaml"


def run(shop: str, *args: str) -> int:
    return main(["audience", "--config", shop, *args])


def test_count_tiers_hash_ids_and_save(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shop, "--filter", "f.yaml", "--out", "out/ids.parquet", "--save", "fans") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "f: 3 customers as of 2025-12-31T16:00:00Z"
    assert lines[1].startswith("filter hash: ")
    assert lines[2] == "tiers: potential 1 (33.3%), regular 1 (33.3%), sleeping 1 (33.3%)"
    assert lines[3:] == ["ids: out/ids.parquet", "saved: fans version 1"]
    assert "warning" not in printed.err
    table = pq.read_table("out/ids.parquet")
    assert table.to_pydict() == {"customer_id": ["B", "D", "G"]}
    meta = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert meta["filter_hash"] == lines[1].removeprefix("filter hash: ")
    assert (meta["as_of"], meta["count"]) == ("2025-12-31T16:00:00+00:00", "3")
    # The saved one is the same question, by name and by its file.
    assert run(shop, "--name", "fans", "--out", "ids.csv") == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "fans version 1: 3 customers as of 2025-12-31T16:00:00Z",
        lines[1],
    ]
    assert Path("ids.csv").read_text().replace('"', "").split() == ["customer_id", "B", "D", "G"]
    assert not list(Path().rglob(".*"))  # nothing half written stays


def test_preview_counts_every_node_and_writes_nothing(
    shop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    as_of = "2025-12-12T00:00:00Z"
    assert run(shop, "--filter", "f.yaml", "--preview", "--as-of", as_of) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    assert lines[0][-1] == as_of
    assert lines[1][:3] == ["7", "customers", "known,"]
    assert lines[2:6] == [
        ["3", "filter"],
        ["4", "filter.all[0]"],
        ["5", "filter.all[1]"],
        ["2", "filter.all[1].not"],
    ]
    assert sorted(Path().rglob("*")) == before


def test_a_small_audience_warns(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shop, "--name", "p1", "--set", "segments.min_size=5") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("p1 version 4: 4 customers as of ")
    assert "warning: 4 customers, fewer than segments.min_size (5)" in printed.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--name", "p2"], "error: --name: expected one of the audiences p1, found 'p2'"),
        (["--filter", "none.yaml"], "error: --filter: expected a file with a filter, found no"),
        (["--filter", "bad.yaml"], "error: filter.purchase.prodcut: expected one of product, "),
        (["--filter", "list.yaml"], "error: list.yaml: expected a mapping of keys, found list"),
        (["--filter", "more.yaml"], "error: more.yaml: owner: expected name, version, descr"),
        (["--filter", "broken.yaml"], "error: broken.yaml: expected valid YAML"),
        (["--name", "p1", "--out", "ids.txt"], "error: --out: expected a file name that ends"),
        (["--name", "p1", "--out", "c.yaml/x.csv"], "error: --out: expected a file that can be"),
        (["--name", "p1", "--preview", "--save", "x"], "error: --preview: expected no --out and"),
        (["--name", "p1", "--save", "../x"], "error: --save: expected a name that matches"),
        (["--name", "p1", "--save", "p1"], "error: --save: expected a name that the config"),
        (["--name", "p1", "--as-of", "soon"], "error: --as-of: expected an ISO 8601 time"),
        (["--name", "p1", "--as-of", "2020-01-01"], "error: transactions.transacted_at: exp"),
    ],
)
def test_what_is_refused(
    shop: str, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    Path("bad.yaml").write_text("purchase: {prodcut: P1}")
    Path("list.yaml").write_text("[1]")
    Path("more.yaml").write_text("{filter: {purchase: {}}, owner: me}")
    Path("broken.yaml").write_text("{")
    assert run(shop, *args) == 2
    assert message in capsys.readouterr().err


def test_the_version_counts_up_when_the_filter_changed() -> None:
    config = make_config()
    assert save_audience(config, "a", RAW, "first").version == 1
    path = saved_path(config, "a")
    first = path.read_bytes()
    # Other order of keys, no description: the same filter, and the description stays.
    again = save_audience(config, "a", json.loads(json.dumps(RAW, sort_keys=True)))
    assert (again.version, again.description) == (1, "first")
    changed = save_audience(config, "a", {"all": [P1]})
    assert (changed.version, changed.description) == (2, "first")
    assert save_audience(config, "a", RAW, "third").version == 3
    assert read_yaml(path)["filter"] == RAW
    assert path.read_bytes() != first
    assert audience_names(config) == ["a"]
    named = find_audience(config, "a")
    assert (named.version, named.description, named.filter) == (3, "third", RAW)
    assert named.where == f"{path}: filter"


def test_texts_that_yaml_could_misread_come_back() -> None:
    config = make_config()
    raw = {"purchase": {"store": ["NO", "off", "2025-01-01", "0123"]}}
    save_audience(config, "texts", raw)
    assert find_audience(config, "texts").filter == raw


def test_a_saved_filter_does_not_lead_back_to_itself() -> None:
    config = make_config()
    save_audience(config, "a", P1)
    save_audience(config, "b", {"not": {"audience": "a"}})
    with pytest.raises(ConfigError, match=r"found the cycle a -> b -> a\. Break it"):
        save_audience(config, "a", {"any": [P1, {"audience": "b"}]})
    with pytest.raises(ConfigError, match=r"^filter\.audience: .* found the cycle new -> new"):
        save_audience(config, "new", {"audience": "new"})
    assert audience_names(config) == ["a", "b"]
    assert find_audience(config, "a").filter == P1


def test_a_name_means_one_audience() -> None:
    save_audience(make_config(), "a", RAW)
    both = make_config(audiences={"a": {"filter": P1}})
    with pytest.raises(ConfigError, match=r"audiences\.a: expected one audience of this name"):
        find_audience(both, "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: a, version: 1, filter: [1]}", r"a\.yaml: filter: expected name, version"),
        ("{name: a, version: 0, filter: {}}", r"a\.yaml: version: "),
        ("{name: b, filter: {}}", r"a\.yaml: name: expected a, as the file is called, found 'b'"),
        ("{name: a, filter: {}, sql: x}", r"a\.yaml: sql: "),
        ("- a", r"a\.yaml: expected a mapping of keys, found list"),
    ],
)
def test_a_bad_file_is_refused(text: str, message: str) -> None:
    config = make_config()
    path = saved_path(config, "a")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_audience(config, "a")
