"""The scoring bundle: everything that turns features into scores, as files without code.

A bundle is a folder of LightGBM text files and arrays with one `manifest.json`, which holds the
sha256 of every other file, the feature names and their order, the arms, the frozen values of the
features, and rows with their scores (golden rows) that a loaded bundle must reproduce. It holds
no pickle. What is registered is what is served.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lightgbm.basic import LightGBMError

from uplift.calibration import Calibrated, Calibration
from uplift.costs import TERMS, calibrated, in_order
from uplift.data import Float32Array, FloatArray, Schema
from uplift.effects import EffectModel, TermValues
from uplift.errors import BundleError, UpliftError
from uplift.offers import Offer, ladder, parse_offers
from uplift.response import ResponseModel
from uplift.value import ValueModels

FORMAT = 1
MANIFEST = "manifest.json"
GOLDEN_ROWS = 16
# Written for whoever reads a bundle later; what counts at loading is that golden rows agree.
VERSIONED = ("persuadables", "lightgbm", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Scores:
    """What a bundle says of n customers and K arms, as float32.

    cate      (n, K) effect of each arm against control, in units of the outcome
    reward    (n, K) expected incremental profit, currency
    cost      (n, K) expected cost, coupon and contact, currency
    response  (n,)   P(conversion | control); NaN without such a model
    """

    cate: Float32Array
    reward: Float32Array
    cost: Float32Array
    response: Float32Array


@dataclass(frozen=True)
class Money:
    """How an effect in units of the outcome becomes incremental profit (statistics.md, 7).

    profit      r = cate
    conversion, column   r = value * cate - cost
    spend       r = margin * cate - (1 - margin) * coupon cost that shows as a discount
                    - contact - other coupon cost; what partners bear of a discount comes back
    """

    kind: str
    value: float = 1.0
    margin: float = 1.0

    def reward(self, cate: FloatArray, cost: FloatArray, offers: tuple[Offer, ...]) -> FloatArray:
        """(n, K) incremental profit from effects and costs of the same shape."""
        if self.kind == "profit":
            return cate
        if self.kind == "spend":
            contact = np.array([o.contact_cost for o in offers])
            discount = np.array([o.shows_as_discount for o in offers])
            coupon = np.maximum(cost - contact, 0)
            # The cost is the share s of the discount that we bear: less margin on the whole of it.
            share = np.maximum([o.funded_share for o in offers], 1e-9)
            paid = np.where(discount, (1 - self.margin / share) * coupon, coupon)
            out: FloatArray = self.margin * cate - paid - contact
            return out
        return self.value * cate - cost


@dataclass(frozen=True)
class ScoringBundle:
    """A policy's models. `policy` names the learner, or the fallback that took its place.

    `effect_calibration` maps what `effects` predict to the effects that decide, where training
    found that needed; `cost_calibration` belongs to the latter.
    `offered` (K,) says which arms may be sent: retired coupons and arms that a fallback leaves
    out are False. `frozen` and `features` are handed to the feature builder as they are. A source
    without exposures gives no arms and no `response`, one without value targets no `values`.
    """

    schema: Schema
    offers: tuple[Offer, ...]
    offered: tuple[bool, ...]
    policy: str
    effects: EffectModel
    costs: EffectModel
    cost_calibration: FloatArray
    response: ResponseModel | None
    money: Money
    frozen: Mapping[str, Any]
    features: Mapping[str, Any]
    info: Mapping[str, Any] = field(default_factory=dict)
    values: ValueModels | None = None
    effect_calibration: Calibration | None = None
    golden: Float32Array | None = None
    sha256: str = ""

    @property
    def arms(self) -> tuple[str, ...]:
        """Coupon ids in the order of the columns."""
        return tuple(o.coupon_id for o in self.offers)

    @property
    def calibrated_effects(self) -> EffectModel | Calibrated:
        """The effects that decide, in units of the outcome."""
        if self.effect_calibration is None:
            return self.effects
        return Calibrated(self.effects, self.effect_calibration)

    def expected_costs(self, predicted: FloatArray, cate: FloatArray) -> FloatArray:
        """(n, K) what is told of what `costs` predict, beside the effects that decide: calibrated,
        at least the contact, and no coupon below the same one with a lower face value."""
        contact = np.array([o.contact_cost for o in self.offers])
        cost = np.maximum(calibrated(self.cost_calibration, predicted, cate), contact)
        return in_order(cost, ladder(self.offers))

    def score(self, X: Float32Array, threads: int = 0) -> Scores:
        """Scores of n customers, X (n, d) float32 as `schema.encode` makes it.

        A row's scores do not depend on the rows that it is scored with.
        """
        if X.ndim != 2 or X.shape[1] != len(self.schema.names):
            raise BundleError(
                f"expected {len(self.schema.names)} features, found an array of shape {X.shape}"
            )
        return self.at(TermValues(np.ascontiguousarray(X, dtype=np.float32), threads))

    def at(self, values: TermValues) -> Scores:
        """Scores at the rows of `values`; what another bundle of the same terms has asked is not
        computed again."""
        cate = self.calibrated_effects.at(values)
        cost = self.expected_costs(self.costs.at(values), cate)
        reward = self.money.reward(cate, cost, self.offers)
        missing = np.full(len(cate), np.nan)
        response = missing if self.response is None else self.response.at(values)
        return Scores(
            cate.astype(np.float32),
            reward.astype(np.float32),
            cost.astype(np.float32),
            response.astype(np.float32),
        )

    def save(self, folder: str | Path) -> ScoringBundle:
        """Write the bundle to a folder, aside and then by rename; returns it with its hash.

        The hash is the manifest's sha256: through the manifest it covers every file. A bundle
        that stands there already gives way last, and comes back when the rename fails.
        """
        folder = Path(folder)
        files: dict[str, bytes] = {}
        specs: dict[str, Any] = {}
        parts = (("effects", self.effects), ("costs", self.costs), ("response", self.response))
        for name, part in parts:
            specs[name], made = (None, {}) if part is None else part.to_files(name)
            files |= made
        specs["values"], made = (None, {}) if self.values is None else self.values.to_files()
        files |= made
        # The texts that are written are what is served: score the golden rows with them.
        reloaded = _assemble(self._manifest(specs), files)
        golden = self.golden if self.golden is not None else np.zeros((0, len(self.schema.names)))
        golden = np.asarray(golden[:GOLDEN_ROWS], dtype=np.float32)
        scores = reloaded.score(golden, threads=1)
        manifest = self._manifest(specs) | {
            "golden": {"X": _listed(golden), **{k: _listed(v) for k, v in vars(scores).items()}},
            "files": {
                name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                for name, content in sorted(files.items())
            },
        }
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder.parent))
        try:
            for name, content in [*files.items(), (MANIFEST, text)]:
                with (aside / name).open("wb") as out:
                    out.write(content)
                    out.flush()
                    os.fsync(out.fileno())
            aside.chmod(0o755)
            _put(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return replace(reloaded, golden=golden, sha256=hashlib.sha256(text).hexdigest())

    def _manifest(self, specs: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema": self.schema.to_json(),
            "offers": [o.spec() for o in self.offers],
            "offered": list(self.offered),
            "policy": self.policy,
            "money": vars(self.money),
            "frozen": dict(self.frozen),
            "features": dict(self.features),
            "info": dict(self.info),
            "versions": {name: version(name) for name in VERSIONED},
            "cost_calibration": [[float(b) for b in row] for row in self.cost_calibration],
            "effect_calibration": None
            if self.effect_calibration is None
            else self.effect_calibration.to_json(),
            "models": dict(specs),
        }


def _put(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what stood there goes away, unless the rename fails."""
    if not folder.exists():
        new.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder.parent))
    folder.rename(old)  # an empty folder gives way to a rename
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def load_bundle(folder: str | Path, sha256: str | None = None) -> ScoringBundle:
    """Load and verify a bundle: its hash where given, every file, and the golden rows.

    Each file is read once, and the bytes that were hashed are the bytes that are loaded. Raises
    BundleError for anything missing, altered, damaged, or of another format. A damaged LightGBM
    text can crash the process, which is why nothing is loaded before its hash is checked.
    """
    folder = Path(folder)
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder} holds no readable {MANIFEST}: {error.strerror}") from None
    digest = hashlib.sha256(text).hexdigest()
    if sha256 is not None and digest != sha256:
        raise BundleError(f"{MANIFEST} was altered: expected sha256 {sha256}, found {digest}")
    try:
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise BundleError(
                f"the bundle has format {manifest['format']}, expected {FORMAT}: train it again"
            )
        listed = manifest["files"]
        files: dict[str, bytes] = {}
        for name, entry in listed.items():
            if Path(name).name != name:
                raise BundleError(f"the manifest names a file outside the bundle: {name!r}")
            try:
                content = (folder / name).read_bytes()
            except OSError as error:
                raise BundleError(f"{name} cannot be read: {error.strerror}") from None
            held = hashlib.sha256(content).hexdigest()
            if held != entry["sha256"]:
                raise BundleError(
                    f"{name} was altered or cut: expected {entry['bytes']} bytes with sha256 "
                    f"{entry['sha256'][:12]}…, found {len(content)} with {held[:12]}…"
                )
            files[name] = content
        bundle = _assemble(manifest, files)
        golden = {k: _array(v) for k, v in manifest["golden"].items()}
        X = golden["X"].reshape(-1, len(bundle.schema.names))
        for name, found in vars(bundle.score(X, threads=1)).items():
            if not np.array_equal(found, golden[name].reshape(found.shape), equal_nan=True):
                raise BundleError(f"the golden rows are not reproduced: {name} differs")
    except BundleError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        UpliftError,
        LightGBMError,
    ) as error:
        raise BundleError(f"{MANIFEST} is damaged: {error!r}") from None
    return replace(bundle, golden=X, sha256=digest)


def _assemble(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> ScoringBundle:
    models = manifest["models"]
    return ScoringBundle(
        schema=Schema.from_json(manifest["schema"]),
        offers=parse_offers(manifest["offers"]),
        offered=tuple(bool(v) for v in manifest["offered"]),
        policy=manifest["policy"],
        effects=EffectModel.from_files(models["effects"], files),
        costs=EffectModel.from_files(models["costs"], files),
        cost_calibration=np.asarray(manifest["cost_calibration"], dtype=np.float64).reshape(
            len(manifest["offers"]), -1 if manifest["offers"] else TERMS
        ),
        response=None
        if models["response"] is None
        else ResponseModel.from_files(models["response"], files),
        effect_calibration=None
        if manifest.get("effect_calibration") is None
        else Calibration.from_json(manifest["effect_calibration"]),
        money=Money(**manifest["money"]),
        frozen=manifest["frozen"],
        features=manifest["features"],
        info=manifest["info"],
        values=None
        if models.get("values") is None
        else ValueModels.from_files(models["values"], files),
    )


def _listed(values: Float32Array) -> list[float | None]:
    """Flat list; float32 survives the way through JSON's doubles, NaN becomes null."""
    return [None if np.isnan(v) else float(v) for v in np.ravel(values)]


def _array(values: list[float | None]) -> Float32Array:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float32)
