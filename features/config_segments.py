"""The sections of segments: stage clocks, cuts, and named audiences."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from features.config_base import TIERS, Section


class StageClockConfig(Section):
    anchors: dict[str, Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="category -> assumed position of its buyer, days"
    )
    stages: dict[str, tuple[int, int]] = Field(
        min_length=1, description="stage -> [first day, end), the end exclusive"
    )


class RfmCutsConfig(Section):
    recency: float = Field(description="days; fewer is high")
    frequency: float = Field(description="order days in 365 days; more is high")
    monetary: float = Field(description="spend in 365 days, currency; more is high")


class SegmentsConfig(Section):
    frequency_unit: Literal["order_day", "order"] = Field(
        "order_day", description="what counts as n in the tiers"
    )
    tier_order: list[str] = Field(
        default_factory=lambda: list(TIERS),
        description="tiers by precedence: the first rule that matches; prospect stays first and "
        "regular, which takes the rest, last",
    )
    high_spend_quantile: float = Field(
        0.80, gt=0, lt=1, description="quantile of spend_total above which spend is high (金额高)"
    )
    rfm_method: Literal["quantile", "fixed"] = Field(
        "quantile", description="cuts of the eight classes: frozen medians, or rfm_cuts"
    )
    rfm_cuts: RfmCutsConfig | None = Field(None, description="for rfm_method fixed")
    score_levels: Literal[3, 5] = Field(3, description="levels of r_score, f_score and m_score")
    min_size: int = Field(50, ge=1, description="smaller audiences are reported with a warning")

    @field_validator("tier_order")
    @classmethod
    def _every_tier_once(cls, value: list[str]) -> list[str]:
        first, *between, last = TIERS
        if sorted(value) != sorted(TIERS) or (value[0], value[-1]) != (first, last):
            raise ValueError(f"{first}, then {', '.join(between)} in any order, then {last}")
        return value

    @model_validator(mode="after")
    def _complete(self) -> SegmentsConfig:
        if self.rfm_method == "fixed" and self.rfm_cuts is None:
            raise ValueError("segments.rfm_cuts, because segments.rfm_method is fixed")
        return self


class AudienceConfig(Section):
    version: int = Field(1, ge=1, description="counts up with each change")
    description: str = Field("", description="what it is for")
    filter: dict[str, Any] = Field(description="a filter of docs/audiences.md")
