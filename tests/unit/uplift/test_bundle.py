"""What is saved is what is served; whatever was altered is refused."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.uplift.small_bundle import OFFERS, make_bundle
from uplift import bundle as bundle_module
from uplift.bundle import GOLDEN_ROWS, MANIFEST, Money, ScoringBundle, load_bundle
from uplift.calibration import ArmCalibration, Calibration
from uplift.data import Float32Array
from uplift.errors import BundleError
from uplift.offers import parse_offers


@pytest.fixture(scope="module")
def made() -> tuple[ScoringBundle, Float32Array]:
    return make_bundle()


@pytest.fixture
def folder(made: tuple[ScoringBundle, Float32Array], tmp_path: Path) -> Path:
    made[0].save(tmp_path / "bundle")
    return tmp_path / "bundle"


def same_scores(a: ScoringBundle, b: ScoringBundle, X: Float32Array) -> bool:
    one, two = vars(a.score(X, 1)), vars(b.score(X, 1))
    return all(one[k].dtype == np.float32 and np.array_equal(one[k], two[k]) for k in one)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def state(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_round_trip_to_the_last_bit(
    made: tuple[ScoringBundle, Float32Array], tmp_path: Path
) -> None:
    bundle, X = made
    saved = bundle.save(tmp_path / "one")
    loaded = load_bundle(tmp_path / "one", saved.sha256)
    assert same_scores(bundle, loaded, X)
    assert same_scores(bundle, saved, X)
    for name in ("schema", "offers", "offered", "policy", "money", "frozen", "features", "info"):
        assert getattr(loaded, name) == getattr(bundle, name), name
    assert np.array_equal(loaded.cost_calibration, bundle.cost_calibration)
    np.testing.assert_array_equal(loaded.golden, bundle.golden[:GOLDEN_ROWS])
    assert loaded.sha256 == hashlib.sha256((tmp_path / "one" / MANIFEST).read_bytes()).hexdigest()
    assert not [p.name for p in tmp_path.iterdir() if p.name != "one"], "nothing is left aside"


def test_saved_twice_is_the_same_to_the_last_byte(
    made: tuple[ScoringBundle, Float32Array], folder: Path, tmp_path: Path
) -> None:
    load_bundle(folder).save(tmp_path / "again")
    assert state(tmp_path / "again") == state(folder)


def test_a_row_scores_the_same_alone(made: tuple[ScoringBundle, Float32Array]) -> None:
    bundle, X = made
    together = vars(bundle.score(X, 1))
    alone = [vars(bundle.score(X[[i]], 1)) for i in range(len(X))]
    for name, expected in together.items():
        assert np.array_equal(np.concatenate([row[name] for row in alone]), expected), name


def test_scores_by_hand(made: tuple[ScoringBundle, Float32Array]) -> None:
    """Cost = bent line of predicted cost and effect, at least the contact; profit = effect."""
    bundle, X = made
    scores = bundle.score(X, 1)
    cate, raw = bundle.effects.predict(X, 1), bundle.costs.predict(X, 1)
    b = bundle.cost_calibration.T
    line = b[0] + b[1] * raw + b[2] * cate + np.where(cate > 0, b[3] * cate + b[4] * cate * raw, 0)
    cost = np.maximum(line, [0.02, 0.05])
    assert (np.isclose(cost, [0.02, 0.05])).any(), "the floor is met somewhere"
    np.testing.assert_allclose(scores.cost, cost, rtol=1e-6)
    np.testing.assert_array_equal(scores.cate, cate.astype(np.float32))
    np.testing.assert_array_equal(scores.reward, scores.cate)
    assert ((scores.response > 0) & (scores.response < 1)).all()
    assert bundle.arms == ("c5", "hello")


def test_money_turns_effects_into_profit() -> None:
    cate, cost = np.array([[10.0, 4.0]]), np.array([[2.02, 0.05]])
    assert Money("profit").reward(cate, cost, OFFERS).tolist() == [[10.0, 4.0]]
    conversion = Money("conversion", value=3.0).reward(cate, cost, OFFERS)
    np.testing.assert_allclose(conversion, [[30 - 2.02, 12 - 0.05]])
    # r = m * amount - (1 - m) * discount - contact: .4 * 10 - .6 * 2 - .02; .4 * 4 - 0 - .05
    spend = Money("spend", margin=0.4).reward(cate, cost, OFFERS)
    np.testing.assert_allclose(spend, [[2.78, 1.55]])
    gift = parse_offers([{"coupon_id": "g", "kind": "gift", "params": {"unit_cost": 4.0}}])
    # A gift shows on no order as a discount, so its whole cost is borne.
    # Of 2.3 off we bear half: 0.4 x 10 - 0.6 x 2.3 + 1.15 from the partner - 0.2 contact.
    half = parse_offers([{**OFFERS[0].spec(), "contact_cost": 0.2, "funded_share": 0.5}])
    funded = Money("spend", margin=0.4).reward(np.array([[10.0]]), np.array([[1.35]]), half)
    np.testing.assert_allclose(funded, [[3.57]])
    kept = Money("spend", margin=0.4).reward(np.array([[10.0]]), np.array([[2.0]]), gift)
    np.testing.assert_allclose(kept, [[2.0]])


def test_a_wrong_number_of_features_is_refused(made: tuple[ScoringBundle, Float32Array]) -> None:
    with pytest.raises(BundleError, match=r"expected 3 features, found an array of shape \(5, 2\)"):
        made[0].score(np.zeros((5, 2), dtype=np.float32))


def test_every_byte_of_every_file_counts(folder: Path) -> None:
    names = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST)
    suffixes = {name.rsplit(".", 1)[1] for name in names}
    assert suffixes == {"txt", "npz", "json"}
    for name in names:
        path, content = folder / name, (folder / name).read_bytes()
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        for damaged in (
            content[:middle] + flipped + content[middle + 1 :],
            content[:-1],
            content + b"\n",
            b"",
        ):
            path.write_bytes(damaged)
            with pytest.raises(BundleError, match=f"{name} was altered or cut: expected"):
                load_bundle(folder)
        path.unlink()
        with pytest.raises(BundleError, match=f"{name} cannot be read: No such file"):
            load_bundle(folder)
        path.write_bytes(content)
    assert load_bundle(folder)


def test_an_altered_manifest_is_refused_by_its_hash(folder: Path) -> None:
    expected = load_bundle(folder).sha256
    rewrite(folder, lambda m: m.update(offered=[True, True]))
    with pytest.raises(BundleError, match=f"altered: expected sha256 {expected}, found"):
        load_bundle(folder, expected)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "a/b.txt", "..", "", "a\0b"])
def test_no_file_outside_the_bundle_is_read(folder: Path, name: str) -> None:
    (folder.parent / "outside.txt").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    rewrite(folder, lambda m: m["files"].update({name: {"sha256": digest, "bytes": 1}}))
    with pytest.raises(BundleError, match=r"outside the bundle|cannot be read|is damaged"):
        load_bundle(folder)


def test_another_format_says_what_to_do(folder: Path) -> None:
    rewrite(folder, lambda m: m.update(format=99))
    with pytest.raises(BundleError, match="has format 99, expected 1: train it again"):
        load_bundle(folder)


@pytest.mark.parametrize("score", ["cate", "reward", "cost", "response"])
def test_golden_rows_must_be_reproduced(folder: Path, score: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        value = np.float32(manifest["golden"][score][3])
        manifest["golden"][score][3] = float(np.nextafter(value, np.float32(np.inf)))

    rewrite(folder, change)
    with pytest.raises(BundleError, match=f"golden rows are not reproduced: {score} differs"):
        load_bundle(folder)


def test_altered_weights_fail_the_golden_rows(folder: Path) -> None:
    rewrite(folder, lambda m: m["models"]["effects"]["terms"][0]["weights"].__setitem__(0, 2.0))
    with pytest.raises(BundleError, match="golden rows are not reproduced: cate"):
        load_bundle(folder)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no golden rows": lambda m: m.pop("golden"),
    "no golden response": lambda m: m["golden"].pop("response"),
    "golden rows cut": lambda m: m["golden"]["X"].pop(),
    "files as a list": lambda m: m.update(files=[]),
    "no models": lambda m: m.pop("models"),
    "a term without its file": lambda m: m["models"]["effects"]["terms"][0].update(file="gone"),
    "an unknown term": lambda m: m["models"]["effects"]["terms"][0].update(type="code"),
    "weights for a third arm": lambda m: m["models"]["effects"]["terms"][0]["weights"].append(1.0),
    "an unknown coupon kind": lambda m: m["offers"][0].update(kind="lottery"),
    "an unknown money key": lambda m: m["money"].update(x=1),
    "a schema without levels": lambda m: m["schema"].pop("levels"),
    "no cost calibration": lambda m: m.update(cost_calibration=[]),
    "a booster as a forest": lambda m: m["models"]["effects"]["terms"][0].update(
        type="forest", output=0
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_one_clear_error(folder: Path, damage: str) -> None:
    rewrite(folder, DAMAGES[damage])
    with pytest.raises(BundleError, match=r"damaged|unknown term type|golden"):
        load_bundle(folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"null", b"\xff\xfe", b'{"format": 1}'])
def test_a_manifest_that_is_none(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=f"{MANIFEST} is damaged"):
        load_bundle(folder)


def test_a_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"holds no readable {MANIFEST}: No such file"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("step", ["a file", "the last rename", "a key pressed"])
def test_a_failed_save_leaves_the_old_bundle(
    made: tuple[ScoringBundle, Float32Array],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    before = state(folder)
    other = replace(made[0], policy="t")
    error: type[BaseException] = KeyboardInterrupt if step == "a key pressed" else OSError
    if step == "a file":

        def fail(_file: int) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(bundle_module.os, "fsync", fail)
    else:
        rename = Path.rename

        def sometimes(self: Path, target: Path) -> Path:
            if (self / MANIFEST).exists() and b'"policy": "t"' in (self / MANIFEST).read_bytes():
                raise error("stopped")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", sometimes)
    with pytest.raises(error, match=r"disk full|stopped"):
        other.save(folder)
    monkeypatch.undo()
    assert state(folder) == before
    assert load_bundle(folder).policy == "s"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name], "nothing is left aside"


def test_a_save_replaces_the_old_bundle(
    made: tuple[ScoringBundle, Float32Array], folder: Path
) -> None:
    (folder / "stray.txt").write_text("of the old one")
    replace(made[0], policy="t").save(folder)
    assert load_bundle(folder).policy == "t"
    assert not (folder / "stray.txt").exists()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_there_is_no_pickle_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, never)
    loaded = load_bundle(folder)
    loaded.save(folder)
    for name, content in state(folder).items():
        if name.endswith(".npz"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for member in archive.namelist():
                    array = np.load(io.BytesIO(archive.read(member)), allow_pickle=False)
                    assert array.dtype != object
        else:
            assert content.decode().isprintable() or "\n" in content.decode()


def test_a_bundle_without_golden_rows(
    made: tuple[ScoringBundle, Float32Array], tmp_path: Path
) -> None:
    bundle, _ = made
    replace(bundle, golden=None).save(tmp_path / "none")
    assert load_bundle(tmp_path / "none").golden.shape == (0, 3)


CALIBRATION = Calibration(
    (ArmCalibration("linear", (), (0.1, 0.5)), ArmCalibration("isotonic", (0.0, 0.5), (-0.2, 0.3)))
)


def test_calibrated_effects_are_what_is_scored_saved_and_loaded(
    made: tuple[ScoringBundle, Float32Array], tmp_path: Path
) -> None:
    plain, X = made
    bundle = replace(plain, effect_calibration=CALIBRATION)
    raw, scores = bundle.effects.predict(X, 1), bundle.score(X, 1)
    np.testing.assert_array_equal(scores.cate[:, 0], (0.1 + 0.5 * raw[:, 0]).astype(np.float32))
    assert set(np.unique(scores.cate[:, 1])) == {np.float32(-0.2), np.float32(0.3)}
    np.testing.assert_array_equal(scores.reward, scores.cate)  # the outcome is the profit
    assert not np.array_equal(scores.cost, plain.score(X, 1).cost), "costs rest on the effects"
    saved = bundle.save(tmp_path / "one")
    loaded = load_bundle(tmp_path / "one", saved.sha256)
    assert loaded.effect_calibration == CALIBRATION
    assert same_scores(bundle, loaded, X)
    assert same_scores(replace(loaded, effect_calibration=None), plain, X)


def test_a_bundle_from_before_calibration_is_read(
    made: tuple[ScoringBundle, Float32Array], folder: Path
) -> None:
    rewrite(folder, lambda manifest: manifest.pop("effect_calibration"))
    assert same_scores(load_bundle(folder), made[0], made[1])


def test_a_damaged_calibration_is_refused(folder: Path) -> None:
    def damage(manifest: dict[str, Any]) -> None:
        manifest["effect_calibration"] = [{"kind": "cubic", "at": [], "value": [1.0]}] * 2

    rewrite(folder, damage)
    with pytest.raises(BundleError, match="damaged calibration of kind 'cubic'"):
        load_bundle(folder)


def test_a_coupon_is_never_expected_to_cost_less_than_the_same_with_a_lower_face_value(
    tmp_path: Path,
) -> None:
    bundle, X = make_bundle()
    plain = bundle.score(X)
    pair = parse_offers(
        [
            {"coupon_id": "c10", "kind": "fixed_off", "params": {"off": 10.0}},
            {"coupon_id": "c5", "kind": "fixed_off", "params": {"off": 5.0}},
        ]
    )
    # The models say what they said; the second arm was the dearer one.
    money = Money("conversion", value=3.0)
    made = replace(bundle, offers=pair, money=money).save(tmp_path / "b")
    scores = load_bundle(tmp_path / "b", made.sha256).score(X)
    assert (plain.cost[:, 0] < plain.cost[:, 1]).any()
    assert (scores.cost[:, 0] >= scores.cost[:, 1]).all()
    turned = plain.cost[:, 0] < plain.cost[:, 1] - 0.06
    assert np.array_equal(scores.cost[turned, 0], scores.cost[turned, 1])
    # The profit is told of the costs that are told, and the effects are left alone.
    assert np.array_equal(scores.cate, plain.cate)
    np.testing.assert_allclose(scores.reward, 3.0 * scores.cate - scores.cost, rtol=1e-5, atol=1e-5)
