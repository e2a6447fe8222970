"""Closed-form intervals of a mean and of an AUC where rows go together in clusters: as quick as one pass.

`training.evaluate` draws resamples, which holds for any figure and costs a few seconds. Where there are dozens of
slices or of comparisons, and levels far out in the tail, the sandwich estimate does instead: a figure is, up to what
vanishes, a sum over rows; summed within each cluster first, the spread of those sums is the figure's own (Liang and
Zeger 1986; for the AUC the rows' terms are those of DeLong, DeLong and Clarke-Pearson 1988, in clusters Obuchowski
1997).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Estimate", "auc", "log_losses", "mean", "of_influence"]

_CLIP = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Estimate:
    """A figure and how far it may be off.

    Attributes:
        value: the figure.
        error: its standard error, NaN where fewer than two clusters tell it.
        clusters: how many there are.
    """

    value: float
    error: float
    clusters: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval, by Student's t with a degree of freedom per cluster but one."""
        from scipy.stats import t

        half = float(t.ppf(0.5 + level / 2, max(self.clusters - 1, 1))) * self.error
        return self.value - half, self.value + half

    def chance_above(self, bound: float = 0.0) -> float:
        """The p-value against "at most `bound`": small where the figure is clearly above it.

        Without an error there is nothing to go by, and it is 1; with an error of 0, it is 0 or 1.
        """
        from scipy.stats import t

        if np.isnan(self.error):
            return 1.0
        if self.error == 0:
            return float(self.value <= bound)
        return float(t.sf((self.value - bound) / self.error, max(self.clusters - 1, 1)))

    def to_dict(self, low: float = -np.inf, high: float = np.inf) -> dict[str, Any]:
        """Value and 95 % interval for JSON, cut at what the figure can be; `None` where there is no interval."""
        if np.isnan(self.error):
            return {"value": self.value, "low": None, "high": None}
        ends = np.clip(self.interval(), low, high)
        return {"value": self.value, "low": float(ends[0]), "high": float(ends[1])}


def mean(values: ArrayLike, groups: NDArray[np.int64]) -> Estimate:
    """The mean of some values, (n,), in clusters numbered from 0, (n,); at least one value."""
    x = np.asarray(values, dtype=np.float64)
    middle = float(x.mean())
    return of_influence(middle, (x - middle) / len(x), groups)


def auc(label: ArrayLike, probability: ArrayLike, groups: NDArray[np.int64]) -> Estimate:
    """The area under the ROC curve, ties counting half.

    Args:
        label: (n,) 0 or 1, both of them.
        probability: (n,).
        groups: (n,) clusters, numbered from 0.
    """
    from scipy.stats import rankdata

    y, p = np.asarray(label, dtype=bool), np.asarray(probability, dtype=np.float64)
    positives, negatives = int(y.sum()), int((~y).sum())
    # Of each row, the share of the other class that it is on the right side of.
    right = np.empty(len(y))
    every = rankdata(p)
    right[y] = (every[y] - rankdata(p[y])) / negatives
    right[~y] = 1 - (every[~y] - rankdata(p[~y])) / positives
    area = float(right[y].mean())
    return of_influence(area, (right - area) / np.where(y, positives, negatives), groups)


def of_influence(value: float, influence: NDArray[np.float64], groups: NDArray[np.int64]) -> Estimate:
    """The estimate whose rows pull at it by `influence`, (n,): each row's part of the error, summing to about 0."""
    sums = np.bincount(groups, weights=influence)
    # Rows of a subset keep the numbers of the whole: clusters without a row are none.
    clusters = int(np.count_nonzero(np.bincount(groups)))
    if clusters < 2:
        return Estimate(value, float("nan"), clusters)
    error = float(np.sqrt(clusters / (clusters - 1) * np.einsum("i,i", sums, sums)))
    return Estimate(value, error, clusters)


def log_losses(label: ArrayLike, probability: ArrayLike) -> NDArray[np.float64]:
    """Each row's negative log-likelihood in nats, (n,), with probabilities clipped as `training.evaluate` does."""
    p = np.clip(np.asarray(probability, dtype=np.float64), _CLIP, 1 - _CLIP)
    return np.asarray(-np.where(np.asarray(label) == 1, np.log(p), np.log1p(-p)), dtype=np.float64)
