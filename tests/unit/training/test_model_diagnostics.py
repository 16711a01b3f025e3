"""Diagnostics that need the fitted models, and an experiment without control, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.errors import DataError
from tests.unit.training.shops import random_experiment, wide_config
from training.__main__ import main
from training.diagnostics import Diagnostics, diagnose_models
from uplift.data import FloatArray
from uplift.diagnostics import PASS, WARN, Check
from uplift.scores import Estimate

BEFORE = Diagnostics(None, None, (), 0.5)
CUSTOMERS = np.array(["k0", "k1", "k1", "k2", "k3", "k3"], dtype=object)
SIDES = np.array([False, True, True, False, False, False])
CLEAR, NOUGHT = Estimate(0.9, 0.1), Estimate(0.1, 0.1)


def constant_effect(effects: FloatArray, slope: Estimate) -> Check:
    config = wide_config(Path("."))
    found = diagnose_models(BEFORE, config, CUSTOMERS, SIDES, "x", effects, slope)
    assert found.check("both sides").outcome == PASS
    return found.check("constant effect")


def test_effects_that_are_the_same_for_everybody_are_warned_about() -> None:
    alike = constant_effect(np.tile([2.0, -1.0], (6, 1)), CLEAR)
    assert (alike.outcome, alike.number) == (WARN, 0.0)
    assert "x sees the same effect in every customer: nobody to prefer" in alike.text


def test_effects_that_held_out_customers_do_not_follow_are_warned_about() -> None:
    effects = np.column_stack([np.zeros(6), np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])])
    followed, doubtful = constant_effect(effects, CLEAR), constant_effect(effects, NOUGHT)
    assert followed.number == doubtful.number == 1.0  # the standard deviation of plus and minus 1
    assert followed.outcome == PASS
    assert doubtful.outcome == WARN
    assert "it is not shown that effects differ" in doubtful.text


def test_a_customer_on_both_sides_of_the_split_stops_by_name() -> None:
    torn = np.array([False, True, False, True, False, False])  # k1 on both, k3 on one
    with pytest.raises(
        DataError,
        match=r"^both sides: .*1 customers stand in several sides of the "
        r"split \(for example k1\)",
    ):
        diagnose_models(
            BEFORE, wide_config(Path(".")), CUSTOMERS, torn, "x", np.zeros((6, 1)), CLEAR
        )


def test_an_experiment_without_control_stops_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = random_experiment(tmp_path / "t", 400)
    frame = pd.read_parquet(folder / "exposures.parquet")
    frame[frame["arm"] != "control"].to_parquet(folder / "exposures.parquet")
    config = tmp_path / "wide.yaml"
    config.write_text(wide_config(folder).model_dump_json(), encoding="utf-8")
    assert main(["train", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "control" in said
    assert len(said.strip().splitlines()) == 1
