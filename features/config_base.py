"""What all sections of the configuration share: ids, times, and keys that came later."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}"
CONTROL = "control"
TIERS = ("prospect", "lost", "sleeping", "champion", "new", "potential", "regular")


def _id(value: str) -> str:
    if not re.fullmatch(ID_PATTERN, value):
        raise ValueError(f"an id that matches {ID_PATTERN}")
    return value


def utc(value: object) -> object:
    """Read a time as UTC; a time without a zone is UTC."""
    if isinstance(value, str) and value != "now":
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError("an ISO 8601 time, for example 2026-01-01T00:00:00Z") from error
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if value is None or value == "now":
        return value
    raise ValueError("an ISO 8601 time, for example 2026-01-01T00:00:00Z")


def _window(value: object) -> object:
    if isinstance(value, dict):
        for key in value:
            if not re.fullmatch(r"[1-9][0-9]*d", str(key)):
                raise ValueError("windows written in days, for example {7d: 2, 28d: 4}")
    return value


def _constant(value: object) -> object:
    """YAML reads 2026-01-01 as a date and 7 as a number; a constant is their text."""
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, int | float) else value


Id = Annotated[str, AfterValidator(_id)]
Moment = Annotated[Literal["now"] | datetime, BeforeValidator(utc)]
Share = Annotated[float, Field(ge=0, le=1)]
Constant = Annotated[str, BeforeValidator(_constant)]
Windows = Annotated[dict[str, int], BeforeValidator(_window)]


def later(default: Any, **more: Any) -> Any:
    """A key that came later: left out of dumps where it has its default, so that the digests of
    configurations that do not know it stay as they were."""
    return Field(default, exclude_if=lambda value: value == default, **more)


class Section(BaseModel):
    """A part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
