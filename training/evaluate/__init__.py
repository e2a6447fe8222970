"""How good a probability is, with intervals, and whether it beats another one.

Every figure comes with a 95 % interval from a bootstrap over **clusters** (order lines of one order are returned
together, so they are drawn together). All models of one evaluation are scored on the same resamples, so a difference
between two of them has an interval of its own, far tighter than the two intervals side by side suggest.

The figures, all per row of the holdout (a parcel or an order line):

| name | what it is |
|---|---|
| `auc` | chance that a random positive is ranked above a random negative; ties count half |
| `average_precision` | area under the precision-recall steps, tied probabilities taken as one step |
| `brier` | mean squared error of the probability |
| `log_loss` | mean negative log-likelihood in nats, probabilities clipped to [2.2e-16, 1 - 2.2e-16] |
| `calibration_error` | mean over 10 equal-count bins, weighted by rows, of abs(mean probability - share of positives) |
| `top_decile_capture` | share of all positives found in the 10 % of rows with the highest probability |

Sorting happens once per model; a replicate is a few passes over the rows, and for a model with few different
probabilities (a table, the base rate) one pass. Models are scored side by side in threads, which changes no figure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CALIBRATION_BINS",
    "METRICS",
    "Metric",
    "bin_starts",
    "compare",
    "evaluate",
    "gap",
    "metrics",
    "reliability",
]


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Attributes:
        name: key in `metrics.json`.
        words: its name for people.
        higher_is_better: which direction is good.
        ranks: it judges the order of the rows and so needs both classes.
    """

    name: str
    words: str
    higher_is_better: bool
    ranks: bool


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("auc", "AUC", higher_is_better=True, ranks=True),
        Metric("average_precision", "average precision", higher_is_better=True, ranks=True),
        Metric("brier", "Brier score", higher_is_better=False, ranks=False),
        Metric("log_loss", "log loss", higher_is_better=False, ranks=False),
        Metric("calibration_error", "calibration error", higher_is_better=False, ranks=False),
        Metric("top_decile_capture", "positives in the top tenth", higher_is_better=True, ranks=True),
    )
}

CALIBRATION_BINS = 10
TOP_SHARE = 0.1
_TOGETHER = 20  # resamples that are drawn before they are scored
_FEW = 4  # a model with fewer probabilities than a quarter of the rows has the weights of equal ones added up first
_CLIP = float(np.finfo(np.float64).eps)
_LEVEL = (0.025, 0.975)
_NORMAL = 1.959963984540054  # the same of a normal distribution


def metrics(
    label: ArrayLike,
    probability: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 500,
) -> dict[str, dict[str, Any]]:
    """Return every metric of `METRICS` with its 95 % bootstrap interval.

    Args:
        label: shape (n,), 0 or 1.
        probability: shape (n,), in [0, 1].
        groups: shape (n,), what is resampled as a whole (the order of a line); `None` resamples rows.
        seed: of the bootstrap; the same seed gives the same interval.
        replicates: number of resamples; 0 gives the values alone.

    Returns:
        `{name: {"value", "low", "high"}}`, in addition `"why"` where a value or an interval does not exist (and is
        `None`): no rows, one class only, fewer than two groups with a positive (or a negative).

        The interval is the bootstrap's percentile interval, except for `calibration_error`. That one is a sum of
        absolute deviations: noise only ever adds to it, and a resample has more noise than the sample. Its value is
        the plain one, so that anybody can recompute it, and is **not** debiased; its interval is the basic ("reverse
        percentile") one, which subtracts that bias, cut at 0 and widened to the value where the bias exceeds it.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, a probability is NaN or outside [0, 1], `groups` has gaps.
    """
    return evaluate(label, probability, groups=groups, seed=seed, replicates=replicates)["metrics"]


def compare(
    label: ArrayLike,
    p_a: ArrayLike,
    p_b: ArrayLike,
    metric: str,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 500,
) -> dict[str, Any]:
    """Return the difference of `metric` between two models on the same rows, with its paired 95 % interval.

    Args:
        label: shape (n,), 0 or 1.
        p_a: shape (n,), probabilities of the model in question.
        p_b: shape (n,), probabilities of the one to beat.
        metric: a key of `METRICS`.
        groups: as in `metrics`.
        seed: as in `metrics`.
        replicates: as in `metrics`, at least 1.

    Returns:
        `{"difference", "low", "high", "verdict"}`: a minus b in the metric's own direction, and whether a is
        `better` or `worse` than b (the interval excludes 0) or `undecided`. With `"why"` where it does not exist.

    Raises:
        ValueError: an unknown metric, or input that `metrics` refuses.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: {metric!r} is not known; use one of {', '.join(METRICS)}")
    found = evaluate(label, p_a, {"b": p_b}, groups=groups, seed=seed, replicates=max(1, replicates))
    return found["against"]["b"][metric]


def evaluate(
    label: ArrayLike,
    probability: ArrayLike,
    baselines: Mapping[str, ArrayLike] | None = None,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 500,
) -> dict[str, Any]:
    """Judge a model and its baselines on the same rows and the same resamples.

    Args:
        label: shape (n,), 0 or 1.
        probability: shape (n,), the model's.
        baselines: name to shape (n,), probabilities to beat.
        groups: as in `metrics`.
        seed: as in `metrics`.
        replicates: as in `metrics`.

    Returns:
        `{"metrics": as metrics(), "baselines": {name: as metrics()}, "against": {name: {metric: as compare()}}}`.

    Raises:
        ValueError: input that `metrics` refuses.
    """
    others = dict(baselines or {})
    y = _labels(label)
    cluster, clusters = _clusters(groups, len(y))
    models = [_Sorted(y, _probabilities(probability, len(y), "probability"), cluster)]
    models += [_Sorted(y, _probabilities(p, len(y), f"baseline {name}"), cluster) for name, p in others.items()]
    gaps = _gaps(y, cluster)

    values = np.full((len(models), len(METRICS)), np.nan)
    draws = np.full((len(models), replicates, len(METRICS)), np.nan)
    if len(y):
        values[:] = [m.score(np.ones(clusters, dtype=np.uint8)) for m in models]
        rng = np.random.default_rng(seed)
        with ThreadPoolExecutor(min(len(models), os.cpu_count() or 1)) as pool:
            for first in range(0, replicates, _TOGETHER):
                # No cluster is drawn more than a dozen times; one byte each keeps the reordering in the cache.
                weights = [
                    np.bincount(rng.integers(0, clusters, clusters), minlength=clusters).astype(np.uint8)
                    for _ in range(first, min(first + _TOGETHER, replicates))
                ]
                scored = pool.map(lambda m, w=weights: [m.score(each) for each in w], models)
                draws[:, first : first + len(weights)] = list(scored)

    judged = [
        {name: _interval(name, values[k, j], draws[k, :, j], gaps[name], "value") for j, name in enumerate(METRICS)}
        for k in range(len(models))
    ]
    against = {
        other: {
            name: verdict(
                METRICS[name],
                _interval(name, values[0, j] - values[k, j], draws[0, :, j] - draws[k, :, j], gaps[name], "difference"),
            )
            for j, name in enumerate(METRICS)
        }
        for k, other in enumerate(others, start=1)
    }
    return {"metrics": judged[0], "baselines": dict(zip(others, judged[1:], strict=True)), "against": against}


def reliability(
    label: ArrayLike,
    probability: ArrayLike,
    bins: int = CALIBRATION_BINS,
    *,
    groups: ArrayLike | None = None,
) -> pd.DataFrame:
    """Return predicted against observed rate in equal-count bins, for the calibration plot.

    Equal probabilities share a bin, so there may be fewer bins than asked for (one, for a constant model).

    Args:
        label: shape (n,), 0 or 1.
        probability: shape (n,), in [0, 1].
        bins: how many, at least 1.
        groups: as in `metrics`; widens the intervals by the design effect of the clusters in each bin.

    Returns:
        One row per bin in rising order: `predicted` (mean probability), `observed` (share of positives), `low` and
        `high` (Wilson's 95 % interval of `observed`), `rows`, `positives`, `start` and `end` (lowest and highest
        probability in the bin). No rows for no data.

    Raises:
        ValueError: input that `metrics` refuses, or `bins` below 1.
    """
    import pandas as pd

    if bins < 1:
        raise ValueError(f"bins: {bins} given; use 1 or more")
    y = _labels(label)
    p = _probabilities(probability, len(y), "probability")
    cluster, clusters = _clusters(groups, len(y))
    order = np.argsort(p, kind="stable")
    y, p, cluster = y[order].astype(np.float64), p[order], cluster[order]
    rows = []
    for part in np.split(np.arange(len(y)), bin_starts(p, bins)[1:]):
        n, inside = len(part), y[part]
        if n == 0:
            continue
        rate = float(inside.mean())
        spread = np.bincount(cluster[part], weights=inside - rate, minlength=clusters).astype(np.float64)
        plain = n * rate * (1 - rate)
        effective = n / max(1.0, _dot(spread, spread) / plain) if plain > 0 else float(n)
        low, high = wilson(rate, effective)
        ends = (float(p[part[0]]), float(p[part[-1]]))
        rows.append((float(p[part].mean()), rate, low, high, n, int(inside.sum()), *ends))
    columns = ["predicted", "observed", "low", "high", "rows", "positives", "start", "end"]
    return pd.DataFrame(rows, columns=columns).astype({"rows": "int64", "positives": "int64"})


def gap(label: ArrayLike, probability: ArrayLike, *, groups: ArrayLike | None = None) -> dict[str, Any]:
    """Return by how much is predicted too much (above 0) or too little on the whole.

    Args:
        label: shape (n,), 0 or 1.
        probability: shape (n,), in [0, 1].
        groups: as in `metrics`.

    Returns:
        `{"value", "low", "high"}`: mean probability minus share of positives, with its 95 % interval from the variance
        between groups; as in `metrics`, with `"why"` where it does not exist.

    Raises:
        ValueError: input that `metrics` refuses.
    """
    y = _labels(label)
    p = _probabilities(probability, len(y), "probability")
    if not len(y):
        return {"value": None, "low": None, "high": None, "why": "no rows"}
    cluster, clusters = _clusters(groups, len(y))
    value = float((p - y).mean())
    if clusters < 2:
        return {"value": value, "low": None, "high": None, "why": "all rows are in one group: nothing to compare"}
    sums = np.bincount(cluster, weights=p - y - value, minlength=clusters).astype(np.float64)
    error = float(np.sqrt(_dot(sums, sums) * clusters / (clusters - 1)) / len(y))
    return {"value": value, "low": value - _NORMAL * error, "high": value + _NORMAL * error}


class _Sorted:
    """One model's probabilities, sorted once, so that scoring a resample needs no sort.

    Rows are taken in falling probability. Rows with the same probability and label cannot be told apart by any figure:
    where there are few different ones their weights are added up first. Only tie groups that hold a positive enter
    AUC, average precision and the top share; `first` and `last` are the positions of each such group.
    """

    def __init__(self, y: NDArray[np.int8], p: NDArray[np.float64], cluster: NDArray[np.int64]) -> None:
        order = np.argsort(-p, kind="stable")
        self._cluster = cluster[order]
        p, label = p[order], y[order].astype(np.float64)
        bins = bin_starts(p, CALIBRATION_BINS)
        self._same: NDArray[np.int64] | None = None
        starts = _tie_starts(p)
        if len(starts) < len(p) / _FEW:
            # Two places for each probability: its negatives, then its positives.
            sizes = np.diff(np.r_[starts, len(p)])
            self._same = np.repeat(np.arange(0, 2 * len(starts), 2), sizes) + label.astype(np.int64)
            bins = 2 * np.searchsorted(starts, bins)
            p, label = np.repeat(p[starts], 2), np.tile([0.0, 1.0], len(starts))
            starts = np.arange(0, len(p), 2)
        self._bins = bins
        self._miss = label - p
        self._square = self._miss**2
        clipped = np.clip(p, _CLIP, 1 - _CLIP)
        self._surprise = -np.where(label == 1, np.log(clipped), np.log1p(-clipped))

        self._positive = np.flatnonzero(label == 1)
        ends = np.r_[starts[1:], len(p)]
        group = np.searchsorted(starts, self._positive, side="right") - 1
        held, self._groups = np.unique(group, return_index=True)
        self._first, self._last = starts[held], ends[held]

        # Scratch space: asking the system for fresh megabytes in every replicate costs more than the arithmetic.
        self._running, self._weighted = np.zeros(len(p) + 1), np.empty(len(p))
        self._weight = np.empty(len(p))

    def score(self, drawn: NDArray[np.uint8]) -> list[float]:
        """Return the metrics, in the order of `METRICS`; `drawn` has shape (clusters,), how often each was drawn."""
        running, weight = self._running, self._weight
        of_rows = drawn.take(self._cluster)
        if self._same is None:
            np.copyto(weight, of_rows)
        else:
            weight = np.asarray(np.bincount(self._same, of_rows, len(weight)), dtype=np.float64)
        np.cumsum(weight, out=running[1:])
        total = running[-1]
        auc = precision = captured = np.nan
        if len(self._positive):
            positives = np.add.reduceat(weight[self._positive], self._groups)
            found = np.cumsum(positives)
            above, upto = running[self._first], running[self._last]
            all_positive = found[-1]
            all_negative = total - all_positive
            if all_positive > 0 and all_negative > 0:
                # Negatives ranked below the group, and half of those tied with it.
                tied = upto - above - positives
                below = all_negative - (upto - found)
                auc = _dot(positives, below + 0.5 * tied) / (all_positive * all_negative)
                # Weights are whole numbers, so 1 stands in for 0 only where a group was not drawn at all.
                precision = _dot(positives, found / np.maximum(upto, 1.0)) / all_positive
                # The group on the border of the top share counts by the part of it that fits.
                width = np.maximum(upto - above, 1.0)
                inside = np.clip((TOP_SHARE * total - above) / width, 0.0, 1.0)
                captured = _dot(positives, inside) / all_positive
        gap = np.add.reduceat(np.multiply(weight, self._miss, out=self._weighted), self._bins)
        return [
            auc,
            precision,
            _dot(weight, self._square) / total,
            _dot(weight, self._surprise) / total,
            float(np.abs(gap).sum()) / total,
            captured,
        ]


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # Not BLAS: its threads gain nothing at this size, and wait for each other where cores are shared.
    return float(np.einsum("i,i", a, b))


def _tie_starts(ordered: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return where each run of equal values begins in sorted ones."""
    if not len(ordered):
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def bin_starts(ordered: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    """Return where each equal-count bin of sorted values begins; ties stay together, in the bin of their mid-rank."""
    n = len(ordered)
    if n == 0:
        return np.zeros(0, dtype=np.intp)
    starts = _tie_starts(ordered)
    middle = (starts + np.r_[starts[1:], n]) / 2
    number = np.minimum((middle * bins / n).astype(np.int64), bins - 1)
    return starts[np.r_[True, number[1:] != number[:-1]]]


def _interval(name: str, value: float, draws: NDArray[np.float64], gap: tuple[str, str], key: str) -> dict[str, Any]:
    no_value, no_interval = gap
    if no_value:
        return {key: None, "low": None, "high": None, "why": no_value}
    draws = draws[~np.isnan(draws)]
    if no_interval or not len(draws):
        return {key: float(value), "low": None, "high": None, "why": no_interval or "no resamples were asked for"}
    low, high = (float(q) for q in np.quantile(draws, _LEVEL))
    if name == "calibration_error":
        low, high = 2 * value - high, 2 * value - low
        if key == "value":
            low, high = max(0.0, min(low, value)), max(high, value)
    return {key: float(value), "low": float(low), "high": float(high)}


def verdict(metric: Metric, found: dict[str, Any]) -> dict[str, Any]:
    """The difference `found` of a metric, with what its interval (`low`, `high`) says: better, worse or undecided."""
    low, high = found["low"], found["high"]
    said = "undecided"
    if low is not None and low > 0:
        said = "better" if metric.higher_is_better else "worse"
    elif high is not None and high < 0:
        said = "worse" if metric.higher_is_better else "better"
    return {**found, "verdict": said}


def _gaps(y: NDArray[np.int8], cluster: NDArray[np.int64]) -> dict[str, tuple[str, str]]:
    """Return, per metric, why there is no value and why there is no interval; empty strings where there is."""
    n, positives = len(y), int(y.sum())
    if n == 0:
        return dict.fromkeys(METRICS, ("no rows", ""))
    both = (
        "" if 0 < positives < n else f"all {n} rows are {'positive' if positives else 'negative'}: needs both classes"
    )
    rows = "" if cluster.min() < cluster.max() else "all rows are in one group: nothing to resample"
    thin = rows
    for value, word in ((1, "positive"), (0, "negative")):
        if not thin and both == "" and cluster[y == value].min() == cluster[y == value].max():
            thin = f"all {word} rows are in one group: an interval needs two"
    return {name: (both, thin) if m.ranks else ("", rows) for name, m in METRICS.items()}


def _labels(label: ArrayLike) -> NDArray[np.int8]:
    y = np.asarray(label)
    if y.ndim != 1:
        raise ValueError(f"label: shape {y.shape} given; use one dimension")
    wrong = np.flatnonzero(~np.isin(y, (0, 1)))
    if len(wrong):
        raise ValueError(f"label: {y[wrong[0]]} at row {wrong[0]} ({len(wrong)} such rows); use 0 or 1")
    return y.astype(np.int8)


def _probabilities(probability: ArrayLike, rows: int, name: str) -> NDArray[np.float64]:
    p = np.asarray(probability, dtype=np.float64)
    if p.shape != (rows,):
        raise ValueError(f"{name}: shape {p.shape} given for {rows} labels; use one probability for each label")
    wrong = np.flatnonzero(~((p >= 0) & (p <= 1)))
    if len(wrong):
        raise ValueError(f"{name}: {p[wrong[0]]} at row {wrong[0]} ({len(wrong)} such rows); use values from 0 to 1")
    return p


def _clusters(groups: ArrayLike | None, rows: int) -> tuple[NDArray[np.int64], int]:
    if groups is None:
        return np.arange(rows, dtype=np.int64), rows
    import pandas as pd

    codes, found = pd.factorize(np.asarray(groups))
    if codes.shape != (rows,):
        raise ValueError(f"groups: shape {codes.shape} given for {rows} labels; use one group for each label")
    if (codes < 0).any():
        raise ValueError(f"groups: {int((codes < 0).sum())} rows without a group; give every row one")
    return codes.astype(np.int64), len(found)


def wilson(rate: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % score interval (1927) of a share seen in `n` rows; `n` may be a fraction."""
    z = _NORMAL
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
