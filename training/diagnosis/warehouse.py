"""How ready the parcels were when the carrier came, by warehouse and shift; never by person.

Each measure of a warehouse's shift is held against the same shift in the shop's other warehouses, in the same week and
for the same service: a peak, or a carrier that comes early everywhere, is nobody's fault. Failures come in bad weeks,
not one by one, so intervals are from leaving out one week after the other (the jackknife).
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import pandas as pd

from features.arrays import Array, absent
from features.snapshot import Facts
from serving.diagnosis import ratio_text
from training.diagnosis.parcels import Parcels
from training.diagnosis.shrink import WORSE

POOR = ("D", "F")
"""Label grades that scanners often fail on (ISO/IEC 15416: C passes in most specifications)."""

LEAST_WEEKS = 4
RECENT = 4
"""Weeks that a trend holds against all before."""


def measures(facts: Facts, parcels: Parcels, as_of: np.datetime64) -> dict[str, Array]:
    """What is measured of each parcel, (n,) float64, NaN where it is not known.

    missed_cutoff: the carrier had it after the pickup it was meant for. backlog_hours: from the order to packed.
    label_poor: a grade of `POOR`. documents_missing: not all papers were attached.
    """
    rows, row = facts.rows.parcels, parcels.row
    missed, known = facts.outcomes["handover"].label(as_of)
    grade = rows["parcels", "label_grade"][row]
    hours = (rows["parcels", "packed_at"][row] - rows["orders", "ordered_at"][row]) / np.timedelta64(1, "h")
    return {
        "missed_cutoff": np.where(known[row], missed[row].astype(np.float64), np.nan),
        "backlog_hours": np.maximum(hours, 0.0),
        "label_poor": np.where(absent(grade), np.nan, np.isin(grade.astype(str), POOR).astype(np.float64)),
        "documents_missing": 1.0 - rows["parcels", "documents_complete"][row].astype(np.float64),
    }


def readiness(
    parcels: Parcels, measured: Mapping[str, Array], confidence: float
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Readiness by warehouse and shift, and by warehouse and week.

    Args:
        parcels: the parcels.
        measured: from `measures`.
        confidence: of the intervals.

    Returns:
        The tables `readiness` and `readiness_weeks`, and why they are empty if they are.
    """
    node, shift = parcels.places["node"], parcels.places["shift"]
    if not (node != "").any():
        return pd.DataFrame(), pd.DataFrame(), "no parcel says which warehouse packed it"
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rows, weeks = [], []
    for name, values in measured.items():
        keep = ~np.isnan(values) & (node != "")
        frame = pd.DataFrame(
            {
                "node": node[keep],
                "shift": shift[keep],
                "week": parcels.week[keep],
                "service": parcels.places["service_given"][keep],
                "value": values[keep],
            }
        )
        if not len(frame):
            continue
        cells = frame.groupby(["node", "shift", "service", "week"])["value"].agg(["sum", "size"]).reset_index()
        every = cells.groupby(["shift", "service", "week"])[["sum", "size"]].transform("sum")
        others = every[["sum", "size"]].to_numpy(float) - cells[["sum", "size"]].to_numpy(float)
        wide = cells.groupby(["shift", "service"])[["sum", "size"]].transform("sum").to_numpy(float)
        own = cells.groupby(["node", "shift", "service"])[["sum", "size"]].transform("sum").to_numpy(float)
        usual = (wide - own)[:, 0] / np.where((wide - own)[:, 1] > 0, (wide - own)[:, 1], np.nan)
        # A week's own rate elsewhere, drawn towards that of all weeks where few parcels tell it.
        cells["expected"] = (others[:, 0] + usual * 20) / (others[:, 1] + 20) * cells["size"]
        for (at, when), own_cells in cells.groupby(["node", "shift"], sort=True):
            rows.append(_held(str(at), str(when), name, own_cells, z))
        by_week = cells.groupby(["node", "week"], as_index=False)[["size", "sum", "expected"]].sum(skipna=False)
        weeks.append(
            by_week.rename(columns={"size": "parcels", "sum": "observed"}).assign(target=name)[
                ["node", "target", "week", "parcels", "observed", "expected"]
            ]
        )
    if not rows:
        return pd.DataFrame(), pd.DataFrame(), "nothing is known of labels, papers, packing times or pickups"
    order = {"worse": 0, "cannot tell": 1, "as expected": 2}
    out = pd.DataFrame(rows)
    out = out.iloc[np.lexsort((-(out["rate"] / out["elsewhere"]).fillna(0.0), out["verdict"].map(order)))]
    return out.reset_index(drop=True), pd.concat(weeks, ignore_index=True), ""


def _held(node: str, shift: str, measure: str, cells: pd.DataFrame, z: float) -> dict[str, object]:
    """A measure of a warehouse's shift against the others'."""
    every = cells[["sum", "size"]].sum()
    if cells["expected"].notna().any():  # what only this warehouse does is held against nothing
        cells = cells[cells["expected"].notna()]
    week = cells.groupby("week")[["sum", "size", "expected"]].sum(min_count=1).sort_index()
    o, n, e = (week[c].to_numpy(float) for c in ("sum", "size", "expected"))
    rate, trend = o.sum() / n.sum(), np.nan
    out: dict[str, object] = {
        "node": node,
        "shift": shift,
        "measure": measure,
        "parcels": int(every["size"]),
        "observed": float(every["sum"]),
    }
    out |= {"low": np.nan, "high": np.nan, "elsewhere": np.nan}
    if len(week) > RECENT:
        trend = o[-RECENT:].sum() / n[-RECENT:].sum() - o[:-RECENT].sum() / n[:-RECENT].sum()
    told = ~np.isnan(e)
    o, e, size = o[told], e[told], n[told].sum()
    why = ""
    if not told.any():
        why = "one warehouse only in this shift: there is no other to hold it against"
    elif told.sum() < LEAST_WEEKS:
        why = f"{int(told.sum())} weeks: {LEAST_WEEKS} are needed"
    elif e.sum() < 5 and o.sum() < 5:
        why = "too few to tell"
    if why:
        return out | {"rate": rate, "verdict": "cannot tell", "why": why, "trend": trend}
    spread = _spread(o, e)
    log = np.log((o.sum() + 0.5) / (e.sum() + 0.5))
    half = z * spread
    verdict = "worse" if log - half > np.log(WORSE) else "as expected" if log + half <= np.log(WORSE) else "cannot tell"
    elsewhere = e.sum() / size
    ratio = rate / elsewhere if elsewhere else np.inf  # of the rates that are shown, as pages say it
    told_why = {
        "worse": f"{ratio_text(ratio)} times what the same shift elsewhere has"
        if elsewhere
        else "the same shift elsewhere has none",
        "as expected": "not a quarter more than the same shift elsewhere",
        "cannot tell": "its weeks differ too much, or are too few, to tell",
    }[verdict]
    return out | {
        "rate": rate,
        "low": rate * np.exp(-half),
        "high": rate * np.exp(half),
        "elsewhere": elsewhere,
        "verdict": verdict,
        "why": told_why,
        "trend": trend,
    }


def _spread(observed: Array, expected: Array) -> float:
    """Standard error of the log of the ratio of two sums over weeks, by leaving out one week after the other; never
    less than chance alone makes it."""
    k = len(observed)
    left = np.log((observed.sum() - observed + 0.5) / (expected.sum() - expected + 0.5))
    return float(max(np.sqrt((k - 1) / k * ((left - left.mean()) ** 2).sum()), 1 / np.sqrt(observed.sum() + 1)))


def corridor_weeks(parcels: pd.DataFrame, targets: tuple[str, ...]) -> pd.DataFrame:
    """The table `corridor_weeks`, from the table `parcels`."""
    keys, found = ["carrier", "service", "region", "week"], []
    for target in targets:
        known = parcels[parcels[target].notna() & (parcels["carrier"] != "")]
        of = known.groupby(keys, as_index=False).agg(
            parcels=(target, "size"),
            observed=(target, "sum"),
            expected=(f"expected_{target}", lambda x: x.sum(min_count=1)),
        )
        found.append(of.assign(target=target))
    return pd.concat(found, ignore_index=True)[
        ["carrier", "service", "region", "target", "week", "parcels", "observed", "expected"]
    ]
