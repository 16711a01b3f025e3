"""Are the recorded arms the ones that were sent?

Shares and balance cannot tell: arms that were shuffled among the exposures keep both. What arms
leave behind can: redeemed coupons, booked costs, logged probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import beta, norm

from features.config import Config
from features.tables import Tables
from training.dataset import Dataset
from uplift.data import BoolArray, FloatArray
from uplift.diagnostics import NOT_RUN, PASS, SIGNIFICANCE, STOP, WARN, Check, Outcome

# Share of exposures whose arm is not theirs: told, and not trained on.
WARN_SHARE, STOP_SHARE = 0.02, 0.10
MIN_REDEMPTIONS = 20
MISMATCH = 0.02
STOP_MISMATCHES = 0.01


def arm_checks(tables: Tables, dataset: Dataset, config: Config) -> list[Check]:
    """Redemptions, costs and logged probabilities against the recorded arms."""
    assert tables.exposures is not None
    con = tables.con
    exposures = con.compile(tables.exposures)
    present = set(tables.exposures.columns)
    wanted = [c for c in ("cost", "assignment_prob", "assignment_probs") if c in present]
    logged = con.raw_sql(f"SELECT {', '.join(['exposure_id', *wanted])} FROM ({exposures})").df()
    logged = logged.set_index("exposure_id").reindex(pd.Index(dataset.exposure))
    used = con.raw_sql(_used_sql(tables, config)).df() if _has_redemptions(tables) else None
    return [
        redemptions_check(dataset, used),
        cost_check(dataset, _numbers(logged, "cost")),
        probability_check(dataset, config, logged),
    ]


def _numbers(frame: pd.DataFrame, column: str) -> FloatArray:
    if column not in frame.columns:
        return np.full(len(frame), np.nan)
    return frame[column].to_numpy(dtype=np.float64, na_value=np.nan)


def _has_redemptions(tables: Tables) -> bool:
    return tables.transactions is not None or tables.events is not None


def _used_sql(tables: Tables, config: Config) -> str:
    """SQL of exposure_id, coupon_id, sent: which offers' coupons the customer redeemed in the
    exposure's window, and whether a record says that they were sent to the customer before."""
    assert tables.exposures is not None
    con = tables.con
    names = ", ".join("'" + arm.replace("'", "''") + "'" for arm in config.arms)
    parts = []
    if tables.transactions is not None:
        parts.append(
            "SELECT customer_id, coupon_id, transacted_at AS at "
            f"FROM ({con.compile(tables.transactions)}) WHERE coupon_id IN ({names})"
        )
    if tables.events is not None:
        parts.append(
            "SELECT customer_id, coupon_id, occurred_at AS at "
            f"FROM ({con.compile(tables.events)}) "
            f"WHERE type = 'redeemed' AND coupon_id IN ({names})"
        )
    return f"""
        WITH sent AS (SELECT exposure_id, customer_id, assigned_at, arm
                      FROM ({con.compile(tables.exposures)})),
        used AS ({" UNION ".join(parts)}),
        pairs AS (
            SELECT e.exposure_id, e.customer_id, u.coupon_id, max(u.at) AS at
            FROM sent e JOIN used u ON u.customer_id = e.customer_id AND u.at >= e.assigned_at
             AND u.at < e.assigned_at + INTERVAL {int(config.outcome.window_days)} DAY
            GROUP BY ALL
        )
        SELECT p.exposure_id, p.coupon_id, coalesce(bool_or(s.assigned_at <= p.at), false) AS sent
        FROM pairs p LEFT JOIN sent s ON s.customer_id = p.customer_id AND s.arm = p.coupon_id
        GROUP BY ALL
    """


def redemptions_check(dataset: Dataset, used: pd.DataFrame | None) -> Check:
    """Coupons redeemed by customers to whom, by the records, nobody had sent them.

    With m redemptions, O of them of a coupon that was sent, and E that chance would give if the
    recorded arms were drawn anew, the share of exposures with a wrong arm is s = (m - O) / (m - E);
    its lower bound (Clopper & Pearson 1934, one-sided .001) decides. Other ways to a coupon (public
    codes, other lists) look the same, and spoil the comparison with control just as much.
    """
    name = "redemptions by arm"
    data = dataset.training
    if used is None or not len(used):
        return Check(
            name, NOT_RUN, None, STOP_SHARE, "no order and no event names an offer's coupon"
        )
    row = pd.Index(dataset.exposure).get_indexer(pd.Index(used["exposure_id"]))
    code = pd.Index(data.arms).get_indexer(pd.Index(used["coupon_id"])) + 1
    seen = row >= 0
    row, code = row[seen], code[seen]
    sent = used["sent"].to_numpy(dtype=bool)[seen]
    m, chance = len(row), float(data.assignment[row, code].sum())
    if m < MIN_REDEMPTIONS or m - chance < 1:
        text = f"{m} redemptions in outcome windows, at least {MIN_REDEMPTIONS} are needed"
        return Check(name, NOT_RUN, None, STOP_SHARE, text)
    strange = int((~sent).sum())
    share = strange / (m - chance)
    low = _low(strange, m) * m / (m - chance)
    culprits = _named(data.arms, code[~sent])
    text = (
        f"{strange:,} of {m:,} redemptions by customers to whom the coupon was not sent"
        f"{_of(culprits)}; the recorded arms of {min(1.0, share):.1%} of the exposures "
        f"(at least {min(1.0, low):.1%}) are not those that were sent"
        if strange
        else f"all {m:,} redemptions are of coupons that were sent"
    )
    return Check(name, _outcome(low, dataset.estimated), low, STOP_SHARE, text, culprits)


def cost_check(dataset: Dataset, cost: FloatArray) -> Check:
    """Costs (n,) logged in rows of control, which cost nothing, beside those of the offers."""
    name = "costs of control"
    data = dataset.training
    control, known = data.arm == 0, ~np.isnan(cost)
    treated = (cost > 0)[~control & known]
    mine = (cost > 0)[control & known]
    if not len(mine) or not treated.any():
        return Check(name, NOT_RUN, None, STOP_SHARE, "no costs are logged for control and offers")
    ratio = treated.mean()
    low = _low(int(mine.sum()), len(mine)) / ratio
    text = f"{int(mine.sum()):,} of {len(mine):,} exposures of control have a cost"
    if mine.any():
        text += f" ({mine.mean():.1%}; offers {ratio:.1%}): control costs nothing"
    culprits = ("control",) if mine.any() else ()
    return Check(name, _outcome(low, dataset.estimated), low, STOP_SHARE, text, culprits)


def probability_check(dataset: Dataset, config: Config, logged: pd.DataFrame) -> Check:
    """The logged probability of each row's arm against the design.

    Against the configured one, row by row. Where none is configured, 1[W = k] / p has a mean of at
    most 1 for each arm (of exactly 1 where all could get it).
    """
    name = "logged probabilities"
    data = dataset.training
    p = _numbers(logged, "assignment_prob")
    whole = _maps(logged)
    rows = ~np.isnan(p) & ~whole
    if dataset.estimated or not rows.any():
        text = "no assignment_prob is logged"
        if rows.any():
            text = "the arms were not drawn by lot"
        elif whole.any():
            text = "rows have the map of all arms, which stands for itself"
        return Check(name, NOT_RUN, None, STOP_MISMATCHES, text)
    if config.experiment.assignment:
        off = rows & (np.abs(p / data.own_probability - 1) > MISMATCH)
        share = float(off.sum() / rows.sum())
        culprits = _named(("control", *data.arms), data.arm[off] + 1)
        text = f"{share:.1%} of the logged probabilities are not those of experiment.assignment"
        outcome: Outcome = STOP if share > STOP_MISMATCHES else WARN if share > 0 else PASS
        return Check(name, outcome, share, STOP_MISMATCHES, text + _of(culprits), culprits)
    sums = []
    for k, arm in enumerate(("control", *data.arms)):
        weight = np.where(data.arm[rows] == k, 1 / p[rows], 0.0)
        error = float(weight.std()) / np.sqrt(len(weight))
        z = (float(weight.mean()) - 1) / error if error > 0 else 0.0
        sums.append((float(norm.sf(z)), float(weight.mean()), arm))
    threshold = SIGNIFICANCE / len(sums)
    least, mean, arm = min(sums)
    culprits = tuple(a for q, _, a in sorted(sums) if q <= threshold)
    text = f"1 / probability over the exposures of {arm} comes to {mean:.3f} per exposure"
    text += "; more than 1 contradicts the draw" if culprits else ""
    return Check(name, STOP if culprits else PASS, least, threshold, text, culprits)


def _maps(logged: pd.DataFrame) -> BoolArray:
    """(n,) rows with a whole map of probabilities, which stands for itself."""
    if "assignment_probs" not in logged.columns:
        return np.zeros(len(logged), dtype=bool)
    given: BoolArray = logged["assignment_probs"].notna().to_numpy()
    return given


def _low(hits: int, of: int) -> float:
    """One-sided lower bound of a share."""
    return float(beta.ppf(SIGNIFICANCE, hits, of - hits + 1)) if hits else 0.0


def _outcome(low: float, estimated: bool) -> Outcome:
    if low > STOP_SHARE and not estimated:
        return STOP
    return WARN if low > WARN_SHARE else PASS


def _named(names: Sequence[str], code: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Names by how often their codes 1.. occur, the most frequent first."""
    counts = np.bincount(code, minlength=len(names) + 1)[1:]
    return tuple(names[i] for i in np.argsort(-counts, kind="stable") if counts[i])


def _of(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:5])})" if names else ""
