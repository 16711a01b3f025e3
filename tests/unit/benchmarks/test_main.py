"""`make bench ARGS="--only ..."`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.__main__ import SUITES, main


def test_every_suite_can_be_run() -> None:
    for name in SUITES:
        assert callable(importlib.import_module(f"benchmarks.{name}").run)


def test_an_unknown_suite_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "speed"]) == 2
    named = ", ".join(SUITES)
    assert named.startswith("allocation, catalogue, features, ingest")
    assert f"expected some of {named}, found 'speed'" in capsys.readouterr().err


def test_decisions_without_a_training_say_what_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path("configs/demo-small.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    assert main(["--only", "decisions", "--config", str(config)]) == 2
    assert "Run make train first" in capsys.readouterr().err


def test_decisions_need_a_shop_whose_truth_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "decisions", "--config", "configs/hillstrom.yaml"]) == 2
    assert "only there the truth is known" in capsys.readouterr().err
