from __future__ import annotations

import re
from pathlib import Path

import pytest

from features.errors import ConfigError
from serving.salt import SIMULATED, VARIABLE, load_salt


def test_a_salt_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    first = load_salt(tmp_path, {})
    assert load_salt(tmp_path, {}) == first
    assert (tmp_path / "salt").stat().st_mode & 0o777 == 0o600
    assert len(first.value) >= 32
    assert load_salt(tmp_path / "other", {}).value != first.value


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    salt = load_salt(tmp_path, {VARIABLE: "x" * 32})
    assert salt.value == b"x" * 32
    assert salt.origin == VARIABLE
    assert not (tmp_path / "salt").exists()


def test_the_secret_is_not_shown(tmp_path: Path) -> None:
    salt = load_salt(tmp_path, {VARIABLE: "secret-" * 8})
    assert "secret" not in repr(salt)
    assert re.fullmatch("[0-9a-f]{16}", salt.fingerprint)


def test_a_short_salt_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 32 bytes, found 5 bytes") as refused:
        load_salt(tmp_path, {VARIABLE: "abcde"})
    assert "abcde" not in str(refused.value)


def test_a_salt_that_everybody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found 0 bytes"):
        load_salt(tmp_path, {VARIABLE: " " * 40})
    public = SIMULATED.decode()
    with pytest.raises(ConfigError, match="found the public salt"):
        load_salt(tmp_path, {VARIABLE: public})
    with pytest.raises(ConfigError, match="a salt in the environment"):
        load_salt(tmp_path, {}, simulated=True, loopback=False)
    # Who has shown a simulated shop around may go on with its log.
    assert load_salt(tmp_path, {VARIABLE: public}, simulated=True).value == SIMULATED


def test_a_salt_that_others_may_read_is_refused(tmp_path: Path) -> None:
    load_salt(tmp_path, {})
    (tmp_path / "salt").chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644.*chmod 600"):
        load_salt(tmp_path, {})


def test_a_simulated_shop_has_a_public_salt_and_writes_no_file(tmp_path: Path) -> None:
    first = load_salt(tmp_path / "a", {}, simulated=True)
    assert first == load_salt(tmp_path / "b", {}, simulated=True)
    assert not (tmp_path / "a").exists()
    own = load_salt(tmp_path, {VARIABLE: "x" * 32}, simulated=True)
    assert own.value == b"x" * 32
