"""Errors of the engine that a user can mend; commands turn them into one message, exit code 2.

UpliftError
├── DesignError   an experiment that cannot be learned from (no control, an empty arm, ...)
├── OfferError    an offer whose kind or parameters are wrong
└── BundleError   a saved bundle that is damaged, altered, or of another version
"""

from __future__ import annotations


class UpliftError(Exception):
    """Bad input to the engine."""


class DesignError(UpliftError):
    """An experiment that cannot be learned from."""


class OfferError(UpliftError):
    """An offer whose kind or parameters are wrong."""


class BundleError(UpliftError):
    """A bundle that is damaged, altered, or of another version. Never retried as it stands."""
