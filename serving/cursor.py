"""Cursors of lists: where the last page ended, signed, and bound to what was asked."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from serving.problems import ProblemError

_TAG = 16


def write_cursor(key: bytes, place: list[Any], asked: str) -> str:
    """A cursor for a place in the list that `asked` describes."""
    text = json.dumps([place, _hash(asked)], separators=(",", ":")).encode()
    return _shown(_tag(key, text) + text)


def read_cursor(key: bytes, cursor: str, asked: str) -> list[Any]:
    """The place of a cursor. Raises ProblemError for one that was altered or is of another list."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        tag, text = raw[:_TAG], raw[_TAG:]
        if _shown(raw) != cursor:  # the last character may hold bits that nothing reads
            raise ValueError
        if not hmac.compare_digest(tag, _tag(key, text)):
            raise ValueError
        place, filtered = json.loads(text)
        if filtered != _hash(asked):
            raise ValueError
    except (ValueError, TypeError):
        raise ProblemError("bad_cursor") from None
    return list(place)


def _shown(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _hash(asked: str) -> str:
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _tag(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")[:_TAG]
