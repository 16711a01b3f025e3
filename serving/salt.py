"""The salt of every draw and decision id: a secret that must stay the same while campaigns run."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from features.errors import ConfigError

VARIABLE = "PERSUADABLES_SALT"
MIN_BYTES = 32
# Nobody's holdout is to be kept secret in a simulated shop, and its documentation shows decisions
# that everybody should get.
SIMULATED = b"the simulated shop keeps no secret"
log = logging.getLogger("serving")


@dataclass(frozen=True)
class Salt:
    """The secret and where it came from. The secret never stands in `repr`."""

    value: bytes = field(repr=False)
    origin: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell two salts apart and give neither away."""
        return hmac.digest(self.value, b"fingerprint", hashlib.sha256).hex()[:16]


def load_salt(
    root: Path = Path("data"),
    environ: Mapping[str, str] = os.environ,
    *,
    simulated: bool = False,
    loopback: bool = True,
) -> Salt:
    """The salt of the environment; without one, that of `<root>/salt`, made once with mode 0600.

    A file is enough for a server that listens on this machine only, and a simulated shop has a
    public one there; beyond `loopback` the salt comes from the environment. Raises ConfigError for
    a salt that is missing there, is too short or public, or lies in a file that others may read.
    """
    given = environ.get(VARIABLE)
    if given is not None:
        value = given.encode()
        known = value == SIMULATED and not simulated
        if len(value.strip()) < MIN_BYTES or known:
            raise ConfigError(
                VARIABLE,
                expected="one that nobody knows" if known else f"at least {MIN_BYTES} bytes",
                found="the public salt" if known else f"{len(value.strip())} bytes",
                remedy="Make one with: python -c 'import secrets; print(secrets.token_hex(32))'",
            )
        return Salt(value, VARIABLE)
    if simulated and loopback:
        return Salt(SIMULATED, "the simulated shop's public salt")
    if not loopback:
        raise ConfigError(
            VARIABLE,
            expected="a salt in the environment, where not only this machine listens",
            found="none",
            remedy="Set the one that the decision log was begun with, or make one with: "
            "python -c 'import secrets; print(secrets.token_hex(32))'",
        )
    path = root / "salt"
    root.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    with os.fdopen(handle, "w") as out:
        out.write(secrets.token_hex(MIN_BYTES))
        out.flush()
        os.fsync(out.fileno())
    log.warning("made a new salt in %s; keep it, since holdouts and draws follow from it", path)
    return _read(path)


def _read(path: Path) -> Salt:
    try:
        mode, value = path.stat().st_mode, path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            str(path),
            expected="a readable salt",
            found=str(error.strerror),
            remedy=f"Mend its permissions, or set {VARIABLE}.",
        ) from None
    if mode & 0o077:
        raise ConfigError(
            str(path),
            expected="a file that only its owner may read",
            found=f"mode {mode & 0o777:04o}",
            remedy=f"Run: chmod 600 {path}",
        )
    if len(value) < MIN_BYTES:
        raise ConfigError(
            str(path),
            expected=f"at least {MIN_BYTES} bytes",
            found=f"{len(value)} bytes",
            remedy="Restore it from a copy; a new salt draws all holdouts anew.",
        )
    return Salt(value, str(path))
