"""The alarm for columns that know the outcome: one feature alone that tells it too well."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from features.arrays import Array
from features.feature import Feature

BOUND = 0.9
"""AUC that no single honest feature reaches. In the simulated shops who knows every cause of everything reaches 0.72 to
0.82, on the real data sets whole models reach 0.76 to 0.81."""

LEAST = 30
"""Rows of each class with a value, at least: of two or three, chance puts all on one side."""

ROWS = 20_000
"""Rows of each class that are looked at; AUC does not depend on how many there are of either."""


@dataclass(frozen=True)
class Leak:
    """A feature that alone tells the outcome too well.

    Attributes:
        target: name of the target.
        feature: the feature.
        auc: of its value, or of whether it is there; 0.5 or more, whichever way it points.
        by_absence: the outcome is told by whether there is a value at all.
    """

    target: str
    feature: Feature
    auc: float
    by_absence: bool

    def __str__(self) -> str:
        how = "whether it is filled in" if self.by_absence else "its value"
        return (
            f"{self.target}: {self.feature.name} ({self.feature.help.rstrip('.')}) alone tells the outcome, by {how}: "
            f"AUC {self.auc:.3f}"
        )


class LeakError(ValueError):
    """Training stopped: a feature knows the outcome. The message names it, its AUC, and what to check."""

    exit_code = 1

    def __init__(self, leaks: Collection[Leak]) -> None:
        names = ", ".join(dict.fromkeys(leak.feature.name for leak in leaks))
        super().__init__(
            "\n".join(str(leak) for leak in leaks)
            + f"\nNo honest column is that good (the bound is {BOUND}): it was filled in, or changed, after the fact. "
            "Check when it gets its value; in dataset.toml give it the known_at it really has, or leave it "
            f"out. If it is right all the same, say so with --trust {names.split(', ')[0]}"
        )


def leaks(
    target: str, features: Collection[Feature], matrix: Array, label: Array, trusted: Collection[str] = ()
) -> Iterator[Leak]:
    """The features that tell the outcome too well, each alone.

    A feature is named if the lower end of its AUC's 95 % interval (Hanley and McNeil, Radiology 143, 1982) is above
    `BOUND`, and it has a value in `LEAST` rows of each class, so that chance among a few raises no alarm.

    Args:
        target: name of the target.
        features: columns of the matrix.
        matrix: (n, f) float32.
        label: (n,) 0 or 1.
        trusted: names of features that are not looked at.
    """
    # Evenly spread over the rows, which are in the order of time.
    classes = [np.flatnonzero(label == value) for value in (1, 0)]
    at = np.sort(np.concatenate([c[np.linspace(0, len(c) - 1, min(len(c), ROWS)).astype(np.int64)] for c in classes]))
    positive = label[at] == 1
    for i, feature in enumerate(features):
        if feature.name in trusted:
            continue
        values = matrix[at, i]
        gone = np.isnan(values)
        for by_absence, scored, of in ((False, values[~gone], positive[~gone]), (True, gone, positive)):
            found = _auc(scored, of)
            if found is not None and found[0] - 1.96 * found[1] > BOUND:
                yield Leak(target, feature, found[0], by_absence)
                break


def _auc(values: Array, positive: Array) -> tuple[float, float] | None:
    """AUC in the direction in which it is above one half, and its standard error; None with too few rows of a class."""
    _, place = np.unique(values, return_inverse=True)
    n, m = int(positive.sum()), int((~positive).sum())
    if min(n, m) < LEAST:
        return None
    hits = np.bincount(place, weights=positive)
    others = np.bincount(place, weights=~positive)
    auc = float((hits * (np.cumsum(others) - others / 2)).sum() / n / m)
    auc = max(auc, 1 - auc)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m)
    return auc, float(np.sqrt(max(variance, 0.0)))
