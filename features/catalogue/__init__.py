"""The features, by theme. Importing this package registers them; the order is the catalogue's."""

from features.catalogue import rfm, behaviour, response, helpers  # noqa: I001

__all__ = ["behaviour", "helpers", "response", "rfm"]
