"""The features, by theme. Importing this package registers them; the order is the catalogue's."""

from features.catalogue import behaviour, response, rfm

__all__ = ["behaviour", "response", "rfm"]
