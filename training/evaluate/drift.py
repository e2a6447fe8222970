"""What has moved between two periods: features by the population stability index, figures by a test between origins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.arrays import Array
from features.matrix import FeatureSet

BINS = 10
"""Tenths of the earlier period; what is missing is a bin of its own."""

MOVED = 0.1
"""Index from which a feature counts as moved; 0.25 and more is customarily called much."""

ROWS = 50_000
"""Rows of either period that are looked at, evenly over its time."""

_OUTSIDE = 1.959963984540054


def stability_index(before: Array, after: Array) -> tuple[float, float]:
    """Population stability index of a feature between two periods, and what chance alone stays under.

    `sum((q - p) * log(q / p))` over tenths of `before` (p, q the shares of either period, half a row added to each bin
    so that none is empty). Without any change it is distributed as chi-squared with bins - 1 degrees of freedom, times
    1/n + 1/m (Yurdakul, Statistical Properties of Population Stability Index, 2018): with few rows it is never near 0.

    Args:
        before: (n,) values, NaN where missing.
        after: (m,) values.

    Returns:
        The index, and what it exceeds once in a thousand features that have not moved.

    Raises:
        ValueError: a period without rows.
    """
    from scipy.stats import chi2

    if not len(before) or not len(after):
        raise ValueError(f"{len(before)} rows before and {len(after)} after: both periods need some")
    known = before[~np.isnan(before)]
    # A value that many rows share ends its own bin: the edges are those that part something.
    edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])) if len(known) else np.zeros(0)
    counts = np.array([_counted(edges, values) for values in (before, after)], dtype=np.float64)
    counts = counts[:, counts.sum(axis=0) > 0]
    bins = counts.shape[1]
    shares = (counts + 0.5) / (counts.sum(axis=1, keepdims=True) + 0.5 * bins)
    index = float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
    return index, float(chi2.ppf(0.999, bins - 1) * (1 / len(before) + 1 / len(after))) if bins > 1 else 0.0


def _counted(edges: Array, values: Array) -> Array:
    gone = np.isnan(values)
    counts = np.bincount(np.searchsorted(edges, values[~gone], side="left"), minlength=len(edges) + 1)
    return np.append(counts, gone.sum())


def movers(features: FeatureSet, before: Array, after: Array) -> list[dict[str, Any]]:
    """How far each feature has moved, farthest first.

    Args:
        features: columns of both matrices.
        before: (n, f) float32.
        after: (m, f) float32.

    Returns:
        Per feature `feature`, `team`, `history` (it counts what was known of the past), `index`, `chance` (as in
        `stability_index`), `moved` (the index is above `MOVED` and above chance) and `before`, `after`: the usual value
        (median) of each period in words.
    """
    first, later = (m[np.linspace(0, len(m) - 1, min(len(m), ROWS)).astype(np.int64)] for m in (before, after))
    found = []
    for i, feature in enumerate(features.features):
        index, chance = stability_index(first[:, i], later[:, i])
        words = []
        for values in (first[:, i], later[:, i]):
            known = values[~np.isnan(values)]
            words.append(feature.words(float(np.median(known)) if len(known) else np.nan))
        found.append(
            {
                "feature": feature.name,
                "team": feature.team,
                "history": bool(feature.about),
                "index": index,
                "chance": chance,
                "moved": bool(index > max(MOVED, chance)),
                "before": words[0],
                "after": words[1],
            }
        )
    return sorted(found, key=lambda f: -f["index"])


def between(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether a figure differs between origins by more than chance, and how the latest compares with the others.

    Cochran's Q, weighting each origin by the inverse of its variance, taken from its 95 % interval; the origins' rows
    are different ones.

    Args:
        figures: per origin, in order of time, `{"at", "value", "low", "high"}`; those without an interval do not count.

    Returns:
        `{"lowest", "highest"}`: `{"at", "value"}` each; `p`, the chance of such differences where there are none;
        `verdict`: `steady`, or `differs` below p = 0.01; `latest`: `{"difference", "low", "high"}` of the latest origin
        to the weighted mean of the others. With fewer than two origins `{"verdict": "one origin only"}`.
    """
    from scipy.stats import chi2

    usable = [f for f in figures if f["value"] is not None and f["low"] is not None and f["high"] > f["low"]]
    if len(usable) < 2:
        return {"verdict": "one origin only"}
    value = np.array([f["value"] for f in usable])
    variance = (np.array([f["high"] - f["low"] for f in usable]) / 2 / _OUTSIDE) ** 2
    weight = 1 / variance
    mean = weight @ value / weight.sum()
    p = float(chi2.sf(weight @ (value - mean) ** 2, len(usable) - 1))
    others = weight[:-1] @ value[:-1] / weight[:-1].sum()
    step, error = float(value[-1] - others), float(np.sqrt(variance[-1] + 1 / weight[:-1].sum()))
    ends = {"lowest": usable[int(value.argmin())], "highest": usable[int(value.argmax())]}
    return {
        **{name: {"at": f["at"], "value": f["value"]} for name, f in ends.items()},
        "p": p,
        "verdict": "differs" if p < 0.01 else "steady",
        "latest": {"difference": step, "low": step - _OUTSIDE * error, "high": step + _OUTSIDE * error},
    }
