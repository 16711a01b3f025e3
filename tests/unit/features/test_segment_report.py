"""`python -m features segments` and `migrate`: what they write and print; docs/segments.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.__main__ import main
from features.config import TIERS, Config
from features.frozen import FrozenValues
from features.labels import LABELS
from features.migration import MIGRATION_SCHEMES
from features.segment_names import MARK, SCHEMES, SCORES, score_ids, segments_of, tables
from features.segment_report import segment_counts, segments_figure
from features.segments import RFM_CLASSES, STAGES, TIER_DETAILS
from tests.unit.features.conftest import make_config
from tests.unit.features.worked_example import (
    EXPOSURES,
    OFFERS,
    SEGMENTS,
    TRANSACTIONS,
    ZONE,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The worked example as files; the working directory; arguments that name it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "transactions.csv").write_text(TRANSACTIONS)
    (folder / "exposures.csv").write_text(EXPOSURES)
    raw = {
        "name": "example",
        "source": {"kind": "files", "path": "shop", "as_of": "2026-01-01T00:00:00+08:00"},
        "outcome": {"kind": "conversion"},
        "timezone": ZONE,
        "offers": OFFERS,
    }
    (tmp_path / "example.yaml").write_text(json.dumps(raw))
    return ["--config", "example.yaml"]


def test_segments(shop: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segments", *shop, "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "9 customers as of 2025-12-31T16:00:00Z" in printed
    assert "champion 王者: 1 customers, 11.1% (stated 5%)" in printed
    assert "prospect 未购: 1 customers, 11.1%\n" in printed
    assert sorted(p.name for p in Path("out").iterdir()) == [
        *("segment_counts.csv", "segments.parquet", "segments.png")
    ]
    frame = pd.read_parquet("out/segments.parquet")
    assert frame["customer_id"].tolist() == list("ABCDEFGHI")
    for name, want in SEGMENTS.items():
        assert [None if pd.isna(v) else v for v in frame[name]] == want, name
    assert frame["labels"][1] == "repeat_buyer,novelty_seeker"
    assert frame["labels"][3] == "repeat_buyer,churn_warning"
    metadata = pq.read_metadata("out/segments.parquet").metadata
    assert FrozenValues.from_json(metadata[b"frozen"].decode()).spend_high == 520
    counts = pd.read_csv("out/segment_counts.csv", keep_default_na=False)
    tiers = counts[counts["scheme"] == "tier"].set_index("id")
    assert tiers["customers"].to_dict() == {t: SEGMENTS["tier"].count(t) for t in TIERS}
    assert tiers.loc["new", ["chinese", "stated_share"]].tolist() == ["新客户", "0.4"]
    assert Path("out/segments.png").read_bytes()[:4] == b"\x89PNG"


def test_precedence_and_moment_from_the_command_line(shop: list[str]) -> None:
    order = "prospect,new,sleeping,lost,potential,champion,regular"
    settings = ["--set", f"segments.tier_order=[{order}]", "--set", "segments.frequency_unit=order"]
    moment = ["--as-of", "2025-12-13T00:00:00+08:00"]
    assert main(["segments", *shop, *settings, *moment, "--out", "out"]) == 0
    frame = pd.read_parquet("out/segments.parquet").set_index("customer_id")
    # Before midnight of the 13th: G has six orders; C and I have not come or came yesterday.
    assert frame["tier"].to_dict() == {
        **{"A": "regular", "B": "potential", "D": "potential", "E": "sleeping", "F": "new"},
        **{"G": "champion", "H": "prospect", "I": "new"},
    }


def test_migrate(shop: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    moments = ["--from", "2025-12-02T00:00:00+08:00", "--to", "2026-01-01T00:00:00+08:00"]
    assert main(["migrate", *shop, *moments, "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "9 customers known at the end: 1 stayed, 5 moved, 3 are new" in printed
    assert "  potential to regular: 1" in printed
    counts = pd.read_csv("out/migration_tier.csv").set_index("before")
    assert counts.loc["potential", ["sleeping", "potential", "regular"]].tolist() == [1, 1, 1]
    assert counts.loc["not_seen", ["chinese", "new", "prospect"]].tolist() == ["未见", 2, 1]
    assert counts[list(TIERS)].to_numpy().sum() == 9
    shares = pd.read_csv("out/migration_tier_shares.csv").set_index("before")
    assert shares.loc["not_seen", "new"] == pytest.approx(2 / 3)
    changed = pd.read_parquet("out/migration_tier_changed.parquet")
    assert changed["customer_id"].tolist() == list("ACDEFGHI")
    assert changed.set_index("customer_id").loc["A"].tolist() == ["regular", "champion"]
    assert Path("out/migration_tier.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segments", "--as-of", "2020-01-01", "--out", "o"], "before as_of 2020-01-01"),
        (["segments", "--out", "example.yaml"], "--out: expected a file that can be written"),
        (["segments", "--set", "segments.tier_order=[new]", "--out", "o"], "segments.tier_order"),
        (["segments", "--set", "segments.rfm_method=fixed", "--out", "o"], "rfm_cuts"),
        (["migrate", "--from", "x", "--to", "2026-01-01", "--out", "o"], "--from: expected an ISO"),
        (
            ["migrate", "--from", "2026-01-01", "--to", "2025-12-01", "--out", "o"],
            "expected the first moment before the second",
        ),
    ],
)
def test_bad_input_is_one_message_and_code_2(
    shop: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([arguments[0], *shop, *arguments[1:]]) == 2
    printed = capsys.readouterr().err
    assert re.search(re.escape(message), printed)
    assert printed.count("\n") == 1
    assert not Path("o").exists()


def test_segments_need_transactions(shop: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("shop/transactions.csv").unlink()
    assert main(["segments", *shop, "--out", "out"]) == 2
    assert "transactions: expected orders" in capsys.readouterr().err


def test_an_unknown_scheme_is_a_usage_error(
    shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["migrate", *shop, "--from", "x", "--to", "y", "--out", "o", "--scheme", "colour"])
    assert stopped.value.code == 2
    assert "colour" in capsys.readouterr().err


def _table(n: int) -> pd.DataFrame:
    """A segment table of n customers, all alike, for counting and drawing."""
    same = {"tier": "new", "tier_detail": None, "lifecycle_stage": "novice", "rfm_class": "HLL"}
    same |= {"r_score": 3.0, "f_score": 1.0, "m_score": float("nan"), "response": "unknown"}
    same |= dict.fromkeys(LABELS, False) | {"new_buyer": True, "product_stage": "幼儿"}
    return pd.DataFrame([same] * n, columns=list(same))


CLOCK = {"baby": {"anchors": {"a": 0}, "stages": {"新生儿": [0, 10], "幼儿": [10, 20]}}}


@pytest.mark.parametrize("levels", [3, 5])
def test_counts_of_every_scheme_sum_to_the_customers(levels: int) -> None:
    config: Config = make_config(segments={"score_levels": levels}, stage_clocks=CLOCK)
    counts = segment_counts(_table(4), config)
    sums = counts.groupby("scheme")["customers"].sum().to_dict()
    assert sums.pop("tier_detail") == 0
    assert set(sums) == {*SCHEMES, *SCORES, "product_stage"} - {"tier_detail"}
    assert set(sums.values()) == {4}
    assert len(counts[counts["scheme"] == "m_score"]) == levels + 1
    assert counts[counts["customers"] > 0]["share"].eq(1).all()
    assert counts[counts["scheme"] == "product_stage"]["id"].tolist() == [
        *("新生儿", "幼儿", "graduated")
    ]


def test_pictures_of_nobody_can_be_drawn(tmp_path: Path) -> None:
    config = make_config()
    counts = segment_counts(_table(0).drop(columns="product_stage"), config)
    segments_figure(counts, "nobody").savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_tier_picture_shows_actual_and_stated_shares() -> None:
    counts = segment_counts(_table(4).drop(columns="product_stage"), make_config())
    axes = segments_figure(counts, "four").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0, 0, 0, 0, 100, 0, 0]
    stated = axes.lines[0].get_xdata()
    assert [None if pd.isna(v) else round(v) for v in stated] == [None, 15, 25, 5, 40, 15, None]


def test_the_page_is_made_of_the_names() -> None:
    page = (ROOT / "docs" / "segments.md").read_text(encoding="utf-8")
    assert page.split(MARK)[1] == f"\n\n{tables()}", "run python -m features.segment_names"
    assert all(f"`{scheme}`" in page for scheme in MIGRATION_SCHEMES)


def test_every_id_has_its_names() -> None:
    ids = {scheme: [s.id for s in found] for scheme, found in SCHEMES.items()}
    assert ids["tier"] == list(TIERS)
    assert set(ids["tier_detail"]) == set(TIER_DETAILS)
    assert ids["rfm_class"] == list(RFM_CLASSES)
    assert ids["stage"] == list(STAGES)
    assert ids["label"] == list(LABELS)
    assert sum(s.stated or 0 for s in SCHEMES["tier"]) == pytest.approx(1)
    assert "".join(s.chinese for s in segments_of("m_score")) == "低中高未购"
    assert [s.id for s in segments_of("r_score", 5)] == ["1", "2", "3", "4", "5", "prospect"]
    assert score_ids(pd.Series([1.0, float("nan"), 5.0])).tolist() == ["1", "prospect", "5"]
