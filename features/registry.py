"""The catalogue of features: one decorated function each.

A feature is an aggregate over one relation (`of`), of which every row belongs to a row of the
spine; all features of a relation are computed in one GROUP BY. The relations are in
`features.relations`. A feature `of="features"` is computed from other features of the same row and
its local day `today`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from features.config import Config
from features.errors import ConfigError

Build = Callable[[Any], Any]
Kind = Literal["int", "float", "text"]

GROUPS = {
    "rfm": "RFM, windows",
    "rhythm": "Rhythm",
    "time": "Time",
    "category": "Category",
    "price": "Price, basket",
    "discount": "Discount",
    "kind": "Coupon kind",
    "channel": "Channel, payment",
    "response": "Response",
    "fatigue": "Fatigue",
    "profile": "Lifecycle, profile, calendar",
    "trend": "Trends",
    "clv": "CLV inputs",
}
TABLES = ("transactions", "exposures", "events", "customers", "offers", "stage_clocks", "holidays")
# Columns without which a feature has nothing to say.
COLUMNS = tuple(
    f"transactions.{name}"
    for name in ("product_id", "category", "channel", "payment_method", "coupon_id")
)


@dataclass(frozen=True)
class Feature:
    """One column of the feature frame.

    name: the column; of: the relation it aggregates, or "features"; uses: features it is computed
    from; also: features it looks at where their tables are present; needs: tables, columns and
    sections of the configuration (offers, the coupon catalogue) without which it is NULL; dtype:
    int, float or text; none: the value of a customer without history; core: in the default set;
    population: looks at other customers, through frozen values; doc: definition.
    """

    name: str
    group: str
    of: str
    build: Build
    dtype: Kind
    none: int | None
    needs: tuple[str, ...]
    doc: str
    uses: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    core: bool = False
    population: bool = False


CATALOGUE: dict[str, Feature] = {}
# A name such as orders_90d with any number of days, and the function that makes the feature.
WINDOWED: dict[str, Callable[[int], Feature]] = {}
# Counts that segments and labels ask for and that are no features of a model: computed and named
# like features, but in neither `features.set: all` nor the documentation.
HELPERS: dict[str, Feature] = {}


def feature(
    name: str,
    *,
    group: str,
    of: str,
    doc: str,
    dtype: Kind = "float",
    none: int | None = None,
    needs: Sequence[str] = ("transactions",),
    uses: Sequence[str] = (),
    also: Sequence[str] = (),
    core: bool = False,
    population: bool = False,
    helper: bool = False,
) -> Callable[[Build], Build]:
    """Register the decorated function, which returns the feature's expression.

    `helper`: it stands beside the catalogue, in `HELPERS`.

    Raises:
        ValueError: the name is taken, or the group, a needed or a used name is unknown.
    """
    if name in CATALOGUE or name in HELPERS:
        raise ValueError(f"feature {name} stands twice in the catalogue")
    if group not in GROUPS:
        raise ValueError(f"feature {name}: group {group} is not one of {', '.join(GROUPS)}")
    if unknown := set(needs) - {*TABLES, *COLUMNS}:
        known = ", ".join((*TABLES, *COLUMNS))
        raise ValueError(f"feature {name}: needs {sorted(unknown)} but knows {known}")
    if unknown := {used for used in (*uses, *also) if find(used) is None}:
        raise ValueError(f"feature {name}: uses {sorted(unknown)}, not in the catalogue before it")

    def register(build: Build) -> Build:
        tables = dict.fromkeys((*needs, *(n for u in uses for n in get(u).needs)))
        (HELPERS if helper else CATALOGUE)[name] = Feature(
            name,
            group,
            of,
            build,
            dtype,
            none,
            tuple(tables),
            doc,
            tuple(uses),
            tuple(also),
            core,
            population,
        )
        return build

    return register


def windowed(stem: str) -> Callable[[Callable[[int], Feature]], Callable[[int], Feature]]:
    """Register a function that makes the feature `<stem>_<N>d` of a window of N days."""

    def register(make: Callable[[int], Feature]) -> Callable[[int], Feature]:
        WINDOWED[stem] = make
        return make

    return register


def find(name: str) -> Feature | None:
    """The feature of that name: of the catalogue, a helper, or of a window of any length."""
    if name in CATALOGUE or name in HELPERS:
        return CATALOGUE.get(name) or HELPERS[name]
    match = re.fullmatch(r"(\w+)_([1-9][0-9]{0,3})d", name)
    return WINDOWED[match[1]](int(match[2])) if match and match[1] in WINDOWED else None


def get(name: str) -> Feature:
    """The feature of a name that `check_names` let through."""
    found = find(name)
    if found is None:
        raise KeyError(name)
    return found


def closure(names: Iterable[str]) -> list[Feature]:
    """The named features and all that they use, each after those it uses."""
    found: dict[str, Feature] = {}

    def visit(name: str) -> None:
        if name not in found:
            for used in (*get(name).uses, *get(name).also):
                visit(used)
            found[name] = get(name)

    for name in names:
        visit(name)
    return list(found.values())


def check_names(names: Iterable[str], where: str = "features.set") -> list[str]:
    """The names as a list, if all are features and none stands twice.

    Raises:
        ConfigError: an unknown name, or one that stands twice.
    """
    wanted = list(names)
    for name in wanted:
        if find(name) is None:
            close = difflib.get_close_matches(name, CATALOGUE, n=1)
            raise ConfigError(
                where,
                expected="names of docs/features.md",
                found=repr(name),
                remedy=f"Did you mean {close[0]}?" if close else "See docs/features.md.",
            )
    if twice := sorted({n for n in wanted if wanted.count(n) > 1}):
        raise ConfigError(
            where,
            expected="each feature once",
            found="some twice",
            remedy="Remove one of each.",
            keys=twice,
        )
    return wanted


def feature_names(config: Config) -> list[str]:
    """The names that `features.set` stands for: core, all, or the list itself.

    `core` and `all` come with the features of `features.windows_days`; gender is in `all` only
    when `features.gender` opts in.
    """
    chosen = config.features.set
    if not isinstance(chosen, str):
        return check_names(chosen)
    names = [
        f.name
        for f in CATALOGUE.values()
        if f.core or (chosen == "all" and (f.name != "gender" or config.features.gender))
    ]
    further = (f"{stem}_{n}d" for n in config.features.windows_days for stem in WINDOWED)
    return list(dict.fromkeys((*names, *further)))


def available(name: str, present: Iterable[str]) -> bool:
    """Whether every table, column and section that a feature needs is present."""
    return set(get(name).needs) <= set(present)


# At the end, because the catalogue registers through the decorator above: who imports the
# registry gets the whole catalogue.
import features.catalogue  # noqa: E402, F401
