"""The features, by theme. Importing this package registers them; the order is the catalogue's."""

from features.catalogue import (  # noqa: I001
    helpers,
    rfm,
    rhythm,
    times,
    baskets,
    discounts,
    channels,
    response,
    profile,
    value,
)

__all__ = [
    "baskets",
    "channels",
    "discounts",
    "helpers",
    "profile",
    "response",
    "rfm",
    "rhythm",
    "times",
    "value",
]
