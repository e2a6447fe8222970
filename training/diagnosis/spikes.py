"""Series that depart from their forecast: a corridor, a product, a warehouse, a reason; day by day.

Each series is forecast from its own past: its level against what was expected of it is a Gamma posterior that forgets
by half in `HALF_LIFE` days and does not yet know the last `LAG`. A day's count is held against that forecast (negative
binomial, as the level is uncertain) and against `RATIO` times it; the log-likelihood ratios are added up and start anew
at 0 (CUSUM, Page 1954, "Continuous inspection schemes"). A series is reported where the sum passes log(n x 365 / f): as
the mean time between false alarms is at least the exponential of the bound (Lorden 1971, "Procedures for reacting to a
change in distribution"), n series of a kind raise no more than f false ones a year, if forecasts are right.

Days are those on which the parcels were packed. When an alarm can be raised depends besides on how long outcomes take.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.special import gammaln

from features.arrays import Array

FALSE = 1.5
"""False alarms a year, of each kind."""

RATIO = 2.0
"""A departure of this size is looked for."""

HALF_LIFE, LAG = 90.0, 14
PRIOR = 4.0
"""Expected events that a series' level is thought to be 1 by, before it has a past."""

ROUGH = 0.03
"""Squared coefficient of variation of days that nothing explains."""

WARM = 28
"""Days of a past before which nothing is said."""

LEAST = 4.0
"""Expected events of a series in all from which it is watched."""


def spikes(kind: str, target: str, key: Array, day: Array, observed: Array, expected: Array) -> pd.DataFrame:
    """The departures of all series of a kind.

    Args:
        kind: corridor, sku, node or reason.
        target: what is counted.
        key: (n,) object, the series each unit belongs to.
        day: (n,) datetime64[D].
        observed: (n,) events of each unit.
        expected: (n,) what was expected of it.

    Returns:
        A row per departure, the surest first, with the columns of the table `spikes`.
    """
    code, keys = pd.factorize(key, sort=True)
    if not len(keys):
        return pd.DataFrame()
    sums = np.bincount(code, expected)
    watched = sums >= LEAST
    place = np.cumsum(watched) - 1
    keep = watched[code]
    if not keep.any():
        return pd.DataFrame()
    first = day.min()
    at, days = (day[keep] - first).astype(np.int64), int((day.max() - first).astype(np.int64)) + 1
    series, n = place[code[keep]], int(watched.sum())
    o, e = (np.bincount(at * n + series, x[keep], days * n).reshape(days, n) for x in (observed, expected))
    bound = np.log(n * 365 / FALSE)
    names = np.asarray(keys, dtype=object)[watched]
    found = [
        {
            "kind": kind,
            "key": names[s],
            "target": target,
            "began": first + began,
            "until": first + until,
            "observed": seen,
            "forecast": due,
            "chance": float(np.exp(-sure)),
            "false_alarms": FALSE,
            "alarm": first + alarm,
        }
        for s, began, alarm, until, seen, due, sure in _departures(o, e, float(bound))
    ]
    out = pd.DataFrame(found)
    return out.sort_values(["chance", "key"], kind="stable").reset_index(drop=True) if len(out) else out


def _departures(o: Array, e: Array, bound: float) -> Iterator[tuple[int, int, int, int, float, float, float]]:
    """(series, began, alarm, until, observed, forecast, peak) of each departure, by day from 0."""
    days, n = o.shape
    fade = 0.5 ** (1 / HALF_LIFE)
    seen, due = np.zeros(n), np.zeros(n)
    score, began = np.zeros(n), np.zeros(n, dtype=np.int64)
    total, forecast = np.zeros(n), np.zeros(n)
    peak, alarm, until = np.zeros(n), np.full(n, -1), np.zeros(n, dtype=np.int64)
    at_peak = np.zeros((2, n))
    for d in range(days):
        if d > LAG:
            seen, due = seen * fade + o[d - LAG - 1], due * fade + e[d - LAG - 1]
        shape = 1 / (1 / (PRIOR + seen) + ROUGH)
        mean = e[d] * (PRIOR + seen) / (PRIOR + due)
        fresh = score <= 0
        began[fresh], total[fresh], forecast[fresh] = d, 0.0, 0.0
        if d >= WARM:
            score = score + _gain(o[d], mean, shape)
        total, forecast = total + o[d], forecast + mean
        rises = score > peak
        peak[rises], until[rises] = score[rises], d
        at_peak[:, rises] = total[rises], forecast[rises]
        alarm[(score > bound) & (alarm < 0)] = d
        over = (score <= 0) | (d == days - 1)
        for s in np.flatnonzero(over & (alarm >= 0)).tolist():
            yield s, int(began[s]), int(alarm[s]), int(until[s]), at_peak[0, s], at_peak[1, s], float(peak[s])
        score[score <= 0] = 0.0
        ended = over
        peak[ended], alarm[ended], score[ended] = 0.0, -1, 0.0


def _gain(observed: Array, mean: Array, shape: Array) -> Array:
    """Log-likelihood of `RATIO` times the mean over that of the mean, negative binomial."""
    return np.asarray(_log(observed, RATIO * mean, shape) - _log(observed, mean, shape))


def _log(observed: Array, mean: Array, shape: Array) -> Array:
    m = np.maximum(mean, 1e-12)
    return np.asarray(
        gammaln(shape + observed) + shape * np.log(shape / (shape + m)) + observed * np.log(m / (shape + m))
    )
