"""Every segment's id, names and rule: what reports show and docs/segments.md lists.

`python -m features.segment_names` writes the tables of docs/segments.md; a test holds the two
together. The rules themselves are in `features.segments`, `features.labels` and `features.clock`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PATH = Path("docs/segments.md")
MARK = "<!-- The tables below are made by `python -m features.segment_names`. -->"


@dataclass(frozen=True)
class Segment:
    """One segment of a scheme. stated: the share that the tiers' source states, or None."""

    id: str
    english: str
    chinese: str
    rule: str
    stated: float | None = None


SCHEMES: dict[str, tuple[Segment, ...]] = {
    "tier": (
        Segment("prospect", "prospect", "未购", "no valid order"),
        Segment("lost", "lost", "流失", "r > 180", 0.15),
        Segment("sleeping", "sleeping", "瞌睡", "90 ≤ r ≤ 180", 0.25),
        Segment("champion", "champion", "王者", "r ≤ 30, n > 5, high spend", 0.05),
        Segment("new", "new", "新客户", "t ≤ 30", 0.40),
        Segment("potential", "potential", "潜力", "r ≤ 90, 2 ≤ n ≤ 4", 0.15),
        Segment("regular", "regular", "常规", "everyone else"),
    ),
    "tier_detail": (
        Segment("single_cooling", "one order, cooling", "单次渐冷", "n = 1, 31 ≤ r ≤ 89"),
        Segment("five_orders", "five order days", "五次购买", "n = 5, r < 90, t > 30"),
        Segment(
            "frequent_low_value",
            "frequent, low value",
            "高频低额",
            "n > 5, r ≤ 30, not high spend, t > 30",
        ),
        Segment("champion_cooling", "frequent, cooling", "高频渐冷", "n > 5, 31 ≤ r ≤ 89"),
    ),
    "rfm_class": (
        Segment("HHH", "important value", "重要价值客户", "recent, frequent, high spend"),
        Segment("HLH", "important develop", "重要发展客户", "recent, rare, high spend"),
        Segment("LHH", "important keep", "重要保持客户", "not recent, frequent, high spend"),
        Segment("LLH", "important win-back", "重要挽留客户", "not recent, rare, high spend"),
        Segment("HHL", "general value", "一般价值客户", "recent, frequent, low spend"),
        Segment(
            "HLL",
            "recent light buyer",
            "潜力客户 (一般发展客户)",
            "recent, rare, low spend; not the tier `potential`",
        ),
        Segment("LHL", "general keep", "一般保持客户", "not recent, frequent, low spend"),
        Segment("LLL", "general win-back", "一般挽留客户", "not recent, rare, low spend"),
        Segment("prospect", "prospect", "未购", "no valid order"),
    ),
    "stage": (
        Segment("lost", "lost", "流失期", "r > 365, or o > 3.0 and r ≥ 30"),
        Segment("declining", "declining", "衰退期", "o > 1.5 and r ≥ 14"),
        Segment("mature", "mature", "成熟期", "order days ≥ 6, spend in the top third"),
        Segment("growth", "growth", "成长期", "order days ≥ 2"),
        Segment("novice", "novice", "新手期", "everyone else, prospects included"),
    ),
    "response": (
        Segment(
            "high_responder",
            "high responder",
            "高响应",
            "≥ 3 matured offers, response rate in the top 20%",
        ),
        Segment("mid", "middle", "中响应", "≥ 3 matured offers, in between"),
        Segment(
            "low_responder",
            "low responder",
            "低响应",
            "≥ 3 matured offers, response rate in the bottom 40%",
        ),
        Segment("unknown", "unknown", "未知", "fewer matured offers"),
    ),
    "label": (
        Segment("high_responder", "high responder", "高响应", "as in response"),
        Segment("low_responder", "low responder", "低响应", "as in response"),
        Segment("new_buyer", "new buyer", "首购客户", "one order day"),
        Segment("repeat_buyer", "repeat buyer", "复购客户", "≥ 2 order days"),
        Segment(
            "price_sensitive",
            "price sensitive",
            "价格敏感",
            "price_sensitivity_score ≥ 0.6, ≥ 3 valid orders in 365 days",
        ),
        Segment(
            "novelty_seeker",
            "novelty seeker",
            "尝鲜型",
            "novelty_share_365d ≥ 0.5, order_days_365d ≥ 3",
        ),
        Segment(
            "deal_hunter",
            "deal hunter",
            "薅羊毛",
            "no full-price order in 365 days, discount_rate_365d ≥ 0.25, and order_days_365d ≥ 3 "
            "or a single order day with o > 1.5",
        ),
        Segment(
            "churn_warning",
            "churn warning",
            "流失预警",
            "stage `declining` and spend not in the bottom third; or a given churn probability "
            "≥ 0.6",
        ),
    ),
}
SCORES = {
    "r_score": ("longest ago", "most recent"),
    "f_score": ("rarest", "most frequent"),
    "m_score": ("lowest spend", "highest spend"),
}
COLUMNS = {"stage": "lifecycle_stage"}  # where the column is not called like the scheme


def segments_of(scheme: str, levels: int = 3) -> tuple[Segment, ...]:
    """The segments of a scheme in the order of the tables; scores with 3 or 5 levels.

    Raises:
        KeyError: no such scheme.
    """
    if scheme not in SCORES:
        return SCHEMES[scheme]
    chinese = {3: "低中高", 5: ("低", "中低", "中", "中高", "高")}[levels]
    lowest, highest = SCORES[scheme]
    words = [lowest, *(f"level {i}" for i in range(2, levels)), highest]
    scores = [Segment(str(i + 1), words[i], chinese[i], "") for i in range(levels)]
    return (*scores, Segment("prospect", "prospect", "未购", "no valid order"))


def score_ids(scores: pd.Series[float]) -> pd.Series[Any]:
    """Ids of scores: "1" and up, "prospect" where there is none (NaN)."""
    names = np.array(["prospect", "1", "2", "3", "4", "5"], dtype=object)
    return pd.Series(names[scores.fillna(0).to_numpy(dtype=np.int64)], scores.index)


def tables() -> str:
    """A Markdown table per scheme; the scores need none."""
    parts = []
    for scheme, found in SCHEMES.items():
        stated = any(s.stated is not None for s in found)
        head = "| id | English | Chinese | rule |" + (" stated share |" if stated else "")
        lines = [f"## {scheme}", "", head, "|---|---|---|---|" + ("---|" if stated else "")]
        for s in found:
            share = "–" if s.stated is None else f"{s.stated:.0%}"
            row = f"| `{s.id}` | {s.english} | {s.chinese} | {s.rule} |"
            lines.append(row + (f" {share} |" if stated else ""))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Renew the tables of the page in the working directory."""
    above = PATH.read_text(encoding="utf-8").split(MARK)[0]
    PATH.write_text(f"{above}{MARK}\n\n{tables()}", encoding="utf-8")


if __name__ == "__main__":
    main()
