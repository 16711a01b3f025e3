"""One configuration file for one use: the keys, their types, defaults and meaning.

Every key is declared once, here, with its description; `configs/reference.md` is held to it by a
test. Names that belong to a registry (coupon kinds, learners) are text here and are checked by the
package that owns the registry.
"""

from __future__ import annotations

import difflib
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from features.config_base import CONTROL as CONTROL
from features.config_base import ID_PATTERN as ID_PATTERN
from features.config_base import TIERS as TIERS
from features.config_base import Constant, Moment, Section, Share, later, utc
from features.config_base import Id as Id
from features.config_decisions import ContactConfig as ContactConfig
from features.config_decisions import LimitConfig as LimitConfig
from features.config_decisions import OfferConfig as OfferConfig
from features.config_decisions import PolicyConfig as PolicyConfig
from features.config_decisions import Trigger
from features.config_decisions import TriggerConfig as TriggerConfig
from features.config_segments import AudienceConfig as AudienceConfig
from features.config_segments import SegmentsConfig as SegmentsConfig
from features.config_segments import StageClockConfig as StageClockConfig
from features.errors import ConfigError


class SourceConfig(Section):
    kind: Literal["files", "simulated", "completejourney", "hillstrom"] = Field(
        description="where the tables come from"
    )
    path: str | None = Field(
        None,
        description="files: a folder of tables, or one .parquet or .csv file of transactions; "
        "hillstrom: a CSV or Parquet file or an address; "
        "relative to the working directory",
    )
    columns: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="per table: canonical column name <- your name"
    )
    constants: dict[str, dict[str, Constant]] = Field(
        default_factory=dict,
        description="per table: columns that are one constant, for one-shot experiments "
        "(campaign_id, assigned_at)",
    )
    drop_duplicates: bool = Field(False, description="drop identical order lines, counted")
    incremental: bool = Field(
        False,
        description="files: keep the checked transactions per day in data/store and read only "
        "files that are new or changed (docs/ingest.md)",
    )
    max_bad_share: Share = Field(0.01, description="share of bad rows above which the job stops")
    as_of: Moment = Field(
        "now",
        description="the moment of scoring; a fixed time switches age checks off and is shown as "
        "degraded",
    )
    complete_until: Annotated[datetime | None, BeforeValidator(utc)] = Field(
        None,
        description="end of complete data; null: the end of the local day of the newest "
        "transaction or event",
    )
    customers: int = Field(100_000, ge=100, description="simulated: number of customers")
    seed: int = Field(7, ge=0, description="simulated: seed of the shop")
    world: int = Field(
        0,
        ge=0,
        description="simulated: 0, the shop of docs/simulated-shop.md; every other number is a "
        "shop with parameters drawn blindly around it",
    )

    @model_validator(mode="after")
    def _files_alone_grow(self) -> SourceConfig:
        if self.incremental and self.kind != "files":
            raise ValueError("source.incremental: true only with source.kind: files")
        return self


class FeaturesConfig(Section):
    set: Literal["core", "all"] | list[str] = Field(
        "core", description="core, all, or a list of feature names (an empty list: none)"
    )
    given: list[str] = Field(
        default_factory=list,
        description="columns of exposures or customers used as they are "
        "(numbers, booleans, categories)",
    )
    response_window_days: int = Field(
        14, ge=1, description="window in which an offer counts as responded to"
    )
    interval_prior_weight: float = Field(
        2.0, gt=0, description="weight of the population's median gap in interval_expected_days"
    )
    weekend_overrides: dict[str, bool] = Field(
        default_factory=dict,
        description="local date -> is it a weekend day (调休); other dates follow the week",
    )
    holidays: list[date] = Field(
        default_factory=list, description="local dates of holidays, for holiday_next_days"
    )
    online_channels: list[str] = Field(
        default_factory=lambda: ["app", "web", "online", "mini_program"],
        description="order channels that count as online",
    )
    mobile_payments: list[str] = Field(
        default_factory=lambda: ["wechat", "alipay", "apple_pay", "google_pay", "mobile"],
        description="payment methods that count as mobile (移动支付)",
    )
    windows_days: list[Annotated[int, Field(ge=1, le=3650)]] = Field(
        default_factory=list,
        description="further windows N: each adds orders_Nd, order_days_Nd and spend_Nd to the "
        "catalogue",
    )
    gender: bool = Field(
        False, description="true: `set: all` has gender too; otherwise it is for reports only"
    )


class TargetsConfig(Section):
    repurchase_days: int = Field(90, ge=1, description="repurchase: an order within so many days")
    churn_days: int = Field(90, ge=1, description="churn: no order in the next so many days")
    active_days: int = Field(
        180, ge=1, description="churn is asked of customers with an order in so many days"
    )
    clv_days: int = Field(365, ge=1, description="clv: contribution in the next so many days")


class OutcomeConfig(Section):
    kind: Literal["conversion", "spend", "profit", "column"] = Field(
        "profit", description="what an exposure is judged by"
    )
    column: str | None = Field(None, description="for kind column: a column of the exposures")
    window_days: int = Field(14, ge=1, description="days from assigned_at")
    margin_rate: float | None = Field(
        None, gt=0, le=1, description="margin on list value; required for profit and spend"
    )
    value: float = Field(
        1.0, gt=0, description="money per unit of outcome, for conversion and column"
    )

    @model_validator(mode="after")
    def _complete(self) -> OutcomeConfig:
        if self.kind == "column" and not self.column:
            raise ValueError("outcome.column, because outcome.kind is column")
        if self.kind in ("profit", "spend") and self.margin_rate is None:
            raise ValueError(f"outcome.margin_rate, because outcome.kind is {self.kind}")
        return self


class ExperimentConfig(Section):
    randomised: bool = Field(True, description="false: effects are reported as observational")
    assignment: dict[str, float] | dict[str, dict[str, float]] | None = Field(
        None, description="{arm: probability}, or one such map per campaign_id; checked"
    )
    cluster: str = Field(
        "customer_id", description="unit of randomisation and of clustered intervals"
    )
    strata: list[str] = Field(
        default_factory=list, description="columns within which arms were drawn"
    )


class GateConfig(Section):
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="one-sided level of the gate's tests; a test fold used n times has alpha / n",
    )
    ranking: Literal["qini", "autoc"] = Field(
        "qini",
        description="what must show that effects differ: qini where many customers are changed a "
        "little, autoc where few are changed much",
    )
    calibration: Literal["auto", "none", "linear", "isotonic"] = Field(
        "auto",
        description="of effects, learned out of fold; auto: linear where the training rows say so",
    )
    margin: float = Field(
        0.1,
        ge=0,
        le=1,
        description="how much less than a rival a challenger may gain and still not be worse: "
        "share of its own gain on the training rows",
    )
    champion_days: int = Field(
        45, ge=1, description="a champion of this age is replaced by one that is not worse"
    )
    budget_tolerance: float = Field(
        0.05, ge=0, description="share by which the upper bound of the cost may pass the budget"
    )
    unsubscribe_margin: float = Field(
        0.005, ge=0, description="further unsubscriptions per customer that are still no harm"
    )
    return_margin: float = Field(
        0.01, ge=0, description="further customers with a return, per customer, that are no harm"
    )


LEARNERS = (
    "s",
    "t",
    "x",
    "r",
    "dr",
    "proportional",
    "per_conversion",
    "two_part",
    "ensemble",
    "causalml_forest",
)


class TuningConfig(Section):
    seconds: float = Field(
        0, ge=0, description="time for trials of other settings of the trees; 0: none, or `trials`"
    )
    trials: int = Field(0, ge=0, description="number of trials; 0: as many as `seconds` allow")


class TrainingConfig(Section):
    learners: list[str] = Field(
        default_factory=lambda: list(LEARNERS),
        min_length=1,
        description="uplift learners to fit; not given: all that learn such an outcome",
    )
    monotone: dict[str, Literal["rising", "falling"]] = Field(
        default_factory=dict, description="numeric features with which no effect may fall, or rise"
    )
    response_targets: list[str] = Field(
        default_factory=lambda: ["response"],
        description="models to fit: response, redemption (both need exposures), repurchase, churn, "
        "clv (need transactions)",
    )
    folds: int = Field(5, ge=2, le=20, description="cross-fitting folds, drawn by customer")
    test_share: float = Field(
        0.3, gt=0, lt=0.9, description="share of customers no model and no model choice sees"
    )
    tuning: TuningConfig = TuningConfig()
    seed: int = Field(7, ge=0, description="seed of every random draw")
    threads: int = Field(0, ge=0, description="fits at a time, or threads of one; 0: all cores")
    gate: GateConfig = GateConfig()
    accept_observational: bool = Field(
        False, description="let a model of observational data become champion (recorded)"
    )
    accept_checks: list[str] = Field(
        default_factory=list,
        description="diagnostics that would stop the training and shall only warn (recorded)",
    )


class ServingConfig(Section):
    model_alias: str = Field("champion", description="alias of the model to serve")
    max_feature_age_hours: float = Field(
        50, gt=0, description="older snapshots refuse with stale_features"
    )
    max_model_age_days: float = Field(
        120, gt=0, description="models registered longer ago refuse with stale_model"
    )


class Config(Section):
    name: Id = Field(description="MLflow experiment, registered model, and campaign")
    source: SourceConfig
    engine: Literal["duckdb", "spark"] = Field(
        "duckdb", description="where features are computed; spark: docs/engines.md"
    )
    memory_gb: float = Field(
        4.0, ge=0.5, description="memory of tables and queries; what needs more goes to disk"
    )
    features: FeaturesConfig = FeaturesConfig()
    segments: SegmentsConfig = SegmentsConfig()
    stage_clocks: dict[str, StageClockConfig] = Field(
        default_factory=dict, description="product-stage clocks; the first gives stage_clock_days"
    )
    audiences: dict[Id, AudienceConfig] = Field(
        default_factory=dict, description="named audiences (标签组合)"
    )
    targets: TargetsConfig = TargetsConfig()
    outcome: OutcomeConfig
    experiment: ExperimentConfig = ExperimentConfig()
    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$", description="ISO 4217 code")
    timezone: str = Field("UTC", description="IANA zone of local days, hours and quiet hours")
    offers: list[OfferConfig] = Field(default_factory=list, description="the arms besides control")
    policy: PolicyConfig = PolicyConfig()
    contact: ContactConfig = ContactConfig()
    triggers: list[Trigger] = later(
        [],
        description="rules that edit the candidate arms; a name is a shipped rule of "
        "docs/contact.md",
    )
    training: TrainingConfig = TrainingConfig()
    serving: ServingConfig = ServingConfig()

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("an IANA time zone, for example Europe/Berlin")
        return value

    @model_validator(mode="after")
    def _arms(self) -> Config:
        ids = [offer.coupon_id for offer in self.offers]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"distinct coupon ids, but these stand twice: {', '.join(twice)}")
        return self

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def arms(self) -> list[str]:
        """Coupon ids in the order of the file; `control` is not among them."""
        return [offer.coupon_id for offer in self.offers]

    def as_of(self, given: datetime | None = None) -> datetime:
        """The moment of scoring, UTC: `given`, else source.as_of, else now."""
        if given is not None:
            return given
        return datetime.now(UTC) if self.source.as_of == "now" else self.source.as_of


def parse_time(text: str, where: str) -> datetime:
    """A UTC time from the command line."""
    try:
        return utc(text)  # type: ignore[return-value]
    except ValueError as error:
        raise ConfigError(
            where, expected=str(error), found=repr(text), remedy="Write it as ISO 8601."
        ) from error


class _Loader(yaml.SafeLoader):
    """YAML whose only booleans are true and false: `off` is a key of coupon parameters, and the
    country NO is not a denial."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read, override (`key.sub=value`, values in YAML) and validate a configuration file."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            str(path),
            expected="a configuration file",
            found="no such file",
            remedy="Copy configs/demo.yaml and name it with --config (or CONFIG=...).",
        )
    raw = read_yaml(path)
    for text in overrides:
        _override(raw, text)
    return validate(raw, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML or JSON file; ConfigError if it is none."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(
            str(path), expected="valid YAML", found=str(error), remedy="Mend the file."
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(
            str(path),
            expected="a mapping of keys",
            found=type(raw).__name__,
            remedy="Write `key: value` lines, as in configs/demo.yaml.",
        )
    return raw


def validate(raw: dict[str, Any], file: str = "configuration") -> Config:
    """Validate a mapping; the first problem is raised as ConfigError with its key and remedy."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, raw, file) from None


def _override(raw: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(
            f"--set {text}",
            expected="key=value",
            found=repr(text),
            remedy="For example --set policy.budget=2000.",
        )
    node = raw
    parts = key.strip().split(".")
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(
                f"--set {key}",
                expected="a key of the configuration",
                found=f"{part}, which holds a value",
                remedy="See configs/reference.md for the keys.",
            )
    try:
        node[parts[-1]] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {key}", expected="a YAML value", found=repr(value), remedy=str(error)
        ) from error


def _explain(error: ValidationError, raw: dict[str, Any], file: str) -> ConfigError:
    first = error.errors()[0]
    path = [
        str(p) for p in first["loc"] if not str(p).startswith(("literal[", "function-", "union-"))
    ]
    key = ".".join(path) or "the file"
    kind = first["type"]
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = repr(first["input"]) if kind != "missing" else "nothing"
    remedy = "See configs/reference.md."
    if kind == "extra_forbidden":
        known = _keys_at(path[:-1])
        expected = "a known key" + (f" ({', '.join(known)})" if known else "")
        found = repr(path[-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        remedy = f"Did you mean {close[0]}?" if close else "Remove it; see configs/reference.md."
    elif kind == "missing":
        expected = "a value"
        remedy = f"Add {key}; see configs/reference.md."
    elif kind == "value_error" and key == "the file":
        found = "something else"
    elif kind == "value_error" and isinstance(first["input"], dict):
        found = "an incomplete section"
    return ConfigError(f"{file}: {key}", expected=expected, found=found, remedy=remedy)


def _keys_at(path: list[str]) -> list[str]:
    model: Any = Config
    for part in path:
        if part.isdigit():
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return []
        model = field.annotation
        if part == "offers":
            model = OfferConfig
    return sorted(model.model_fields) if hasattr(model, "model_fields") else []
