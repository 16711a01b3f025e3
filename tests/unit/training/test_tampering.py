"""A tampered shop is stopped by name, by the command, with exit code 2; a clean one is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from features.config import Config, load_config
from features.errors import ConfigError, DataError
from features.sources import open_source
from tests.unit.training.shops import random_experiment, wide_config
from training.__main__ import main
from training.dataset import Dataset, build_dataset
from training.diagnostics import Diagnostics, diagnose
from training.train import offers_of, population
from uplift.diagnostics import NOT_RUN, PASS, STOP, WARN

ROOT = Path(__file__).parents[3]
SMALL = ["source.customers=1500", "training.threads=1", "training.learners=[t]", "training.folds=2"]
COMPARED = ("sample ratio", "balance", "placebo", "two-sample classifier")
Tamper = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables of a small simulated shop, as files of a user."""
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        open_source(load_config(ROOT / "configs/demo-small.yaml", SMALL)).tables()
        (tables,) = (folder / "data/simulated").glob("*/tables")
        shutil.copytree(tables, folder / "tables")
    return folder / "tables"


def configured(folder: Path, tables: Path, **changes: object) -> Path:
    """configs/demo-small.yaml on a folder of files; `changes` per section."""
    raw = json.loads(load_config(ROOT / "configs/demo-small.yaml").model_dump_json())
    raw["source"] = {"kind": "files", "path": str(tables), "as_of": raw["source"]["as_of"]}
    raw["features"]["set"] = ["recency_days", "orders_total", "spend_90d", "spend_365d"]
    raw["training"] |= {"threads": 1, "learners": ["t"], "folds": 2, "response_targets": []}
    for section, values in changes.items():
        raw[section] |= values
    path = folder / "shop.yaml"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def tampered(folder: Path, shop: Path, tamper: Tamper) -> Path:
    """A copy of the shop whose exposures went through `tamper`."""
    shutil.copytree(shop, folder / "tables")
    file = folder / "tables" / "exposures.parquet"
    tamper(pd.read_parquet(file), np.random.default_rng(1)).to_parquet(file, index=False)
    return folder / "tables"


def stopped(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a training that ends with exit code 2."""
    assert main(["train", "--config", str(path)]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert shown.err.startswith("error: ")
    return shown.err


def found(path: Path, *overrides: str) -> tuple[Diagnostics, Dataset, Config]:
    config = load_config(path, list(overrides))
    tables = open_source(config).tables()
    dataset = build_dataset(tables, config, offers_of(config))
    return diagnose(dataset, tables, config, population(tables, config)), dataset, config


def shuffled(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Arms mixed inside each wave: every share stays what it was."""
    mixed = frame.groupby("campaign_id")["arm"].transform(
        lambda arms: arms.to_numpy()[rng.permutation(len(arms))]
    )
    return frame.assign(arm=mixed)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_clean_shop_passes_and_every_check_says_its_number(shop: Path, tmp_path: Path) -> None:
    diagnostics, _, _ = found(configured(tmp_path, shop))
    assert {c.name for c in diagnostics.checks} >= {
        *COMPARED,
        "overlap",
        "leak scan",
        "redemptions by arm",
        "costs of control",
        "logged probabilities",
        "both sides",
        "rows per arm",
        "size",
    }
    assert all(c.number is not None and c.threshold is not None for c in diagnostics.checks)
    assert [c.name for c in diagnostics.checks if c.outcome != PASS] == ["size"]
    assert "all" in diagnostics.check("redemptions by arm").text


def test_shuffled_arms_are_stopped_by_what_the_real_ones_left_behind(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = stopped(configured(tmp_path, tampered(tmp_path, shop, shuffled)), capsys)
    for name in ("redemptions by arm", "costs of control", "logged probabilities"):
        assert name in message
    assert "to whom the coupon was not sent" in message
    assert "sample ratio" not in message


def test_redemptions_alone_betray_shuffled_arms(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bare(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        return shuffled(frame, rng).drop(columns=["cost", "assignment_prob"])

    tables = tampered(tmp_path, shop, bare)
    # A gift is no discount on the order: what it came to cost must be logged, so it goes.
    path = configured(tmp_path, tables)
    raw = json.loads(path.read_text(encoding="utf-8"))
    for offer in raw["offers"]:
        if offer["kind"] == "gift":
            offer |= {"kind": "fixed_off", "params": {"off": 5.0}}
    path.write_text(json.dumps(raw), encoding="utf-8")
    message = stopped(path, capsys)
    assert message.startswith("error: redemptions by arm: ")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_share_of_wrong_arms_is_what_was_mixed(
    shop: Path, tmp_path: Path, share: float
) -> None:
    def some(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        mixed = frame.index[rng.random(len(frame)) < share]
        out = frame.copy()
        out.loc[mixed, "arm"] = rng.permutation(frame.loc[mixed, "arm"].to_numpy())
        return out

    accept = "training.accept_checks=[redemptions by arm, costs of control, logged probabilities]"
    diagnostics, _, _ = found(configured(tmp_path, tampered(tmp_path, shop, some)), accept)
    check = diagnostics.check("redemptions by arm")
    told = float(check.text.split("recorded arms of ")[1].split("%")[0]) / 100
    assert told == pytest.approx(share, abs=0.12)
    # Of about 120 redemptions 5% are too few to be sure of more than the threshold.
    assert check.outcome == (WARN if share == 0.5 else PASS)
    assert ("accepted" in check.text) == (share == 0.5)
    assert check.number is not None
    assert check.number < told
    assert (check.number > 0.10) == (share == 0.5)


def test_a_leaked_column_is_stopped_by_name(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = pd.read_parquet(shop / "transactions.parquet")

    def leak(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        bought = frame[["exposure_id", "customer_id", "assigned_at"]].merge(
            orders[["customer_id", "transacted_at", "amount"]], on="customer_id"
        )
        away = bought["transacted_at"] - bought["assigned_at"]
        inside = bought[(away >= pd.Timedelta(0)) & (away < pd.Timedelta(days=14))]
        spent = inside.groupby("exposure_id")["amount"].sum()
        return frame.assign(loyalty_index=frame["exposure_id"].map(spent).fillna(0.0))

    path = configured(
        tmp_path, tampered(tmp_path, shop, leak), features={"given": ["loyalty_index"]}
    )
    message = stopped(path, capsys)
    assert "leak scan" in message
    assert "loyalty_index" in message


def test_a_column_from_after_the_assignment_is_stopped_by_name(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def delivered(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        reached = (frame["arm"] != "control") & (rng.random(len(frame)) < 0.3)
        return frame.assign(engagement=rng.normal(size=len(frame)) + reached)

    path = configured(
        tmp_path, tampered(tmp_path, shop, delivered), features={"given": ["engagement"]}
    )
    message = stopped(path, capsys)
    assert "balance" in message
    assert "the arms differ before assignment in engagement;" in message
    assert "written down after the assignment" in message


def test_shares_that_contradict_the_design_are_stopped_by_name(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fewer(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        return frame[(frame["arm"] != "save12") | (rng.random(len(frame)) < 0.7)]

    message = stopped(configured(tmp_path, tampered(tmp_path, shop, fewer)), capsys)
    assert message.startswith("error: sample ratio")
    assert "sample ratio mismatch" in message
    shares = message.split("mismatch: arms ")[1].split(", by the design ")
    assert float(shares[0].split("save12 ")[1].split(",")[0]) < 0.15
    assert "save12 0.1750" in shares[1]


def judged(folder: Path, frame: pd.DataFrame, **sections: object) -> Diagnostics:
    """Diagnostics of a wide experiment whose rows are `frame`."""
    frame.to_parquet(folder / "exposures.parquet")
    config = wide_config(folder, **sections)
    tables = open_source(config).tables()
    return diagnose(build_dataset(tables, config, offers_of(config)), tables, config, len(frame))


DESIGN = {"assignment": {"control": 0.4, "c5": 0.3, "tote": 0.3}}


def test_departures_of_two_campaigns_do_not_cancel(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 4000)
    frame = pd.read_parquet(folder / "exposures.parquet")
    frame["campaign_id"] = np.where(np.arange(4000) < 2000, "jan", "feb")
    assert judged(folder, frame, experiment=DESIGN).check("sample ratio").outcome == PASS
    # Every fourth c5 of one campaign was booked as control, and as many the other way round.
    lost = frame.index[(frame["campaign_id"] == "jan") & (frame["arm"] == "c5")][::4]
    won = frame.index[(frame["campaign_id"] == "feb") & (frame["arm"] == "control")][: len(lost)]
    frame.loc[lost, "arm"], frame.loc[won, "arm"] = "control", "c5"
    with pytest.raises(DataError, match=r"sample ratio: .*mismatch.* in campaign (jan|feb)"):
        judged(folder, frame, experiment=DESIGN)


def test_logged_probabilities_that_are_not_the_designs_are_stopped(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 3000)
    frame = pd.read_parquet(folder / "exposures.parquet")
    frame["assignment_prob"] = frame["arm"].map(DESIGN["assignment"])
    name = "logged probabilities"
    assert judged(folder, frame, experiment=DESIGN).check(name).outcome == PASS
    wrong = frame.assign(assignment_prob=frame["assignment_prob"].replace(0.4, 0.2))
    with pytest.raises(DataError, match=r"logged probabilities: .*\(control\)"):
        judged(folder, wrong, experiment=DESIGN)
    # Without a configured design they must still add up: shuffled arms give themselves away.
    frame["assignment_prob"] = np.where(frame["x0"] > 0, 0.999, 1.0) * frame["assignment_prob"]
    assert judged(folder, frame).check(name).outcome == PASS
    mixed = frame.assign(arm=np.random.default_rng(1).permutation(frame["arm"].to_numpy()))
    with pytest.raises(DataError, match=r"logged probabilities: .*contradicts the draw"):
        judged(folder, mixed)


def test_costs_in_rows_of_control_are_stopped(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 3000)
    frame = pd.read_parquet(folder / "exposures.parquet")
    frame["cost"] = np.where(frame["arm"] == "control", 0.0, 0.05)
    assert judged(folder, frame).check("costs of control").outcome == PASS
    mixed = frame.assign(arm=np.random.default_rng(1).permutation(frame["arm"].to_numpy()))
    with pytest.raises(DataError, match=r"costs of control: .*control costs nothing"):
        judged(folder, mixed)


def test_observational_sources_are_warned_about_and_never_stopped(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 3000)
    frame = pd.read_parquet(folder / "exposures.parquet")
    targeted = (frame["x1"] > 0.5) & (frame["arm"] == "control")
    frame = frame[~targeted]
    diagnostics = judged(folder, frame, experiment={"randomised": False})
    assert not diagnostics.of(STOP)
    assert diagnostics.srm_p is None
    assert diagnostics.check("two-sample classifier").outcome == WARN
    with pytest.raises(DataError, match=r"balance and .*x1"):
        judged(folder, frame)


def test_a_unit_of_randomisation_that_tears_customers_apart_is_stopped(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 2000)
    file = folder / "exposures.parquet"
    frame = pd.read_parquet(file)
    frame["customer_id"] = [f"k{i // 2}" for i in range(2000)]
    frame["device"] = [f"d{i}" for i in range(2000)]
    frame.to_parquet(file)
    config = wide_config(folder, experiment={"cluster": "device"})
    tables = open_source(config).tables()
    dataset = build_dataset(tables, config, offers_of(config))
    with pytest.raises(DataError, match=r"both sides: .*1,000 customers .*k0"):
        diagnose(dataset, tables, config, 1000)


def test_the_customers_that_would_do_are_those_of_the_formula(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 4000)
    frame = pd.read_parquet(folder / "exposures.parquet")
    frame["cost"] = np.where(frame["arm"] == "control", 0.0, np.where(frame["arm"] == "c5", 2, 0.5))
    check = judged(folder, frame, policy={"budget": 2000.0}).check("size")
    needed = {}
    for arm, cost in (("c5", 2.0), ("tote", 0.5)):
        one, none = frame[frame["arm"] == arm], frame[frame["arm"] == "control"]
        spread = one["gain"].var() / (len(one) / 4000) + none["gain"].var() / (len(none) / 4000)
        reached = min(1.0, 2000 / 4000 / cost)
        z = stats.norm.isf(0.05) + stats.norm.ppf(0.8)
        needed[arm] = z**2 * spread / cost**2 / reached / 0.3
    assert needed["c5"] < needed["tote"]
    assert check.threshold == pytest.approx(needed["c5"], rel=0.03)  # whole customers
    assert check.outcome == PASS
    assert "spent on c5" in check.text
    tenth = frame.iloc[:100]
    assert judged(folder, tenth, policy={"budget": 50.0}).check("size").outcome == WARN


def test_only_checks_that_stop_can_be_accepted(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 500)
    settings = {"learners": ["t"], "threads": 1, "accept_checks": ["overlap"]}
    config = wide_config(folder, training=settings)
    tables = open_source(config).tables()
    dataset = build_dataset(tables, config, offers_of(config))
    with pytest.raises(ConfigError, match=r"training\.accept_checks: .*found overlap"):
        diagnose(dataset, tables, config, 500)


def test_clean_experiments_are_not_stopped(tmp_path: Path) -> None:
    """20 experiments, all checks: nothing stops and nothing is warned about."""
    design = {"control": 0.4, "c5": 0.3, "tote": 0.3}
    for seed in range(100, 120):
        folder = random_experiment(tmp_path / f"s{seed}", 1200, seed, effect=1.0)
        config = wide_config(folder, experiment={"assignment": design})
        tables = open_source(config).tables()
        dataset = build_dataset(tables, config, offers_of(config))
        diagnostics = diagnose(dataset, tables, config, 1200)
        assert not diagnostics.of(STOP)
        assert not diagnostics.of(WARN)
        assert {c.name for c in diagnostics.of(NOT_RUN)} == {
            "placebo",
            "redemptions by arm",
            "costs of control",
            "logged probabilities",
            "size",
        }


def test_arms_drawn_anew_are_not_stopped(shop: Path, tmp_path: Path) -> None:
    """The small shop's customers with 15 other draws of the design: real, skewed features."""
    _, dataset, config = found(configured(tmp_path, shop))
    tables = open_source(config).tables()
    mine = {"redemptions by arm", "costs of control", "logged probabilities"}
    accepted = config.training.model_copy(update={"accept_checks": sorted(mine)})
    config = config.model_copy(update={"training": accepted})
    rng = np.random.default_rng(5)
    p = []
    for _ in range(15):
        drawn = rng.random(len(dataset.training))[:, None]
        arm = (drawn > np.cumsum(dataset.training.assignment, axis=1)).sum(axis=1)
        anew = replace(dataset, training=replace(dataset.training, arm=arm.astype(np.int64)))
        diagnostics = diagnose(anew, tables, config, 1500)
        assert all(diagnostics.check(name).outcome == PASS for name in COMPARED)
        p.append(diagnostics.srm_p)
    assert 0.2 < float(np.mean(np.array(p, dtype=float))) < 0.8


@pytest.mark.slow
def test_clean_simulated_shops_are_not_stopped() -> None:
    """24 shops of 1,000 customers each, made anew from other seeds."""
    for seed in range(24):
        sets = [f"source.seed={seed}", "source.customers=1000", "training.threads=1"]
        diagnostics, _, _ = found(ROOT / "configs/demo-small.yaml", *sets)
        assert {c.name for c in diagnostics.of(WARN)} <= {"size"}
