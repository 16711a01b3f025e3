"""Draws that need no state: keyed hashes of customer ids.

A draw does not depend on who else is in the batch, and can be repeated by anyone who has the salt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from uplift.data import BoolArray, IntArray

BUCKETS = 10_000
_BLOCK = 64  # bytes, of SHA-256
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def bucket(salt: bytes, label: str, scope: str, customer_ids: Sequence[str]) -> IntArray:
    """(n,) hash buckets in [0, 10000).

    int(HMAC_SHA256(salt, label \\x1f scope \\x1f customer_id)[:8], big-endian) * 10000 >> 64; a
    customer is in a share when the bucket is below it, so a larger share only adds customers.
    """
    return scaled(words(hashed(salt, label, scope, customer_ids))[:, 0], BUCKETS)


def index(
    salt: bytes, scope: str, customer_ids: Sequence[str], arms: int | npt.NDArray[Any]
) -> IntArray:
    """(n,) indexes in [0, arms) of the draw among `arms` (a number, or one per customer).

    int(HMAC_SHA256(salt, "arm" \\x1f scope \\x1f customer_id)[:8], big-endian) * arms >> 64.
    """
    return scaled(words(hashed(salt, "arm", scope, customer_ids))[:, 0], arms)


def draw(salt: bytes, scope: str, customer_ids: Sequence[str], in_draw: BoolArray) -> IntArray:
    """(n,) uniform draw among control and the eligible arms, in order of their code."""
    position = index(salt, scope, customer_ids, in_draw.sum(axis=1) + 1)
    # Columns before the position-th eligible one have a smaller running count.
    column = (in_draw.cumsum(axis=1) < position[:, None]).sum(axis=1)
    return np.where(position > 0, column + 1, 0)


def hashed(salt: bytes, label: str, scope: str, customer_ids: Sequence[str]) -> bytes:
    """The digests that a draw goes by: its label, and a campaign or one window of it."""
    return digests(salt, f"{label}\x1f{scope}\x1f".encode(), customer_ids)


def words(found: bytes) -> npt.NDArray[Any]:
    """(n, 4) digests as four unsigned integers each."""
    return np.frombuffer(found, dtype=">u8").reshape(-1, 4)


def digests(salt: bytes, prefix: bytes, customer_ids: Sequence[str]) -> bytes:
    """The HMAC-SHA256 digests of prefix + customer_id, 32 bytes each, one after the other."""
    inner, outer = _absorbed(salt, prefix)
    found = bytearray()
    for customer_id in customer_ids:
        message, keyed = inner.copy(), outer.copy()
        message.update(customer_id.encode())
        keyed.update(message.digest())
        found += keyed.digest()
    return bytes(found)


@lru_cache(maxsize=64)
def _absorbed(salt: bytes, prefix: bytes) -> tuple[Any, Any]:
    """Both halves of HMAC written out (RFC 2104) that have taken in the key and the prefix: once,
    and not per customer or request. To be copied, never to be updated."""
    key = hashlib.sha256(salt).digest() if len(salt) > _BLOCK else salt
    key = key.ljust(_BLOCK, b"\0")
    return hashlib.sha256(key.translate(_INNER) + prefix), hashlib.sha256(key.translate(_OUTER))


def scaled(numbers: npt.NDArray[Any], size: int | npt.NDArray[Any]) -> IntArray:
    """numbers * size >> 64 without the overflow, for size < 2**32."""
    numbers, times = numbers.astype(np.uint64), np.asarray(size, dtype=np.uint64)
    carried = ((numbers & _LOW) * times) >> _HALF
    return (((numbers >> _HALF) * times + carried) >> _HALF).astype(np.int64)
