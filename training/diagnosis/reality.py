"""Plan against reality: what a bundle predicted of parcels it had not seen, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import pandas as pd

from features.arrays import Array, local
from features.vocabulary import TARGETS
from serving.bundle import Bundle
from training.labels import Labels
from training.pipeline import Matrices, cut

TEAM = {
    "late": "fulfilment",
    "failed_attempt": "carrier",
    "damaged": "packing",
    "undelivered": "carrier",
    "returned": "listing",
}
"""The team that a target is first of all told to."""


def reality(
    bundle: Bundle | None,
    units: Mapping[str, Labels],
    matrices: Matrices,
    zone: str,
    as_of: np.datetime64,
    since: np.datetime64 | None,
    confidence: float,
) -> tuple[pd.DataFrame, str]:
    """Predicted and observed failures by month, of what was decided after the data that the bundle learned from.

    The interval is of the number that would be observed if every probability were right.

    Args:
        bundle: whose predictions they are; None: there are none.
        units: the labels of every target.
        matrices: from `training.pipeline.matrices_of`.
        zone: the shop's time zone: months are its own.
        as_of: only what was known before is used.
        since: only what was decided from then on.
        confidence: of the intervals.
    """
    if bundle is None:
        return pd.DataFrame(), "no predictions are given: name a bundle with --bundle"
    seen = np.datetime64(str(bundle.meta["holdout_from"]).removesuffix("Z"), "us")
    z, rows = NormalDist().inv_cdf((1 + confidence) / 2), []
    for target, model in bundle.targets.items():
        if target not in units or TARGETS[target].unit not in matrices:
            continue
        label, mature = units[target].known(as_of)
        decided = units[target].decided_at
        keep = mature & (decided >= seen) & (decided < as_of)
        if since is not None:
            keep &= decided >= since
        at = np.flatnonzero(keep)
        if not len(at):
            continue
        p: Array = model.probability(cut(matrices, model.features, units[target].row[at]))
        months = local(decided[at], zone).astype("datetime64[M]")
        for month in np.unique(months):
            mine = months == month
            predicted, observed = float(p[mine].sum()), int(label[at][mine].sum())
            half = z * float(np.sqrt((p[mine] * (1 - p[mine])).sum())) + 0.5
            low, high = max(0.0, predicted - half), predicted + half
            verdict = "more" if observed > high else "fewer" if observed < low else "as predicted"
            rows.append((TEAM[target], target, str(month), int(mine.sum()), predicted, observed, low, high, verdict))
    names = ["team", "target", "period", "units", "predicted", "observed", "low", "high", "verdict"]
    out = pd.DataFrame(rows, columns=names)
    why = (
        "" if len(out) else f"nothing that can be judged was decided after what the bundle learned from ended ({seen}Z)"
    )
    return out, why
