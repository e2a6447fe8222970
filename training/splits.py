"""Splits in time: what could have been known when, and a validator that does not trust the splitter.

One worked example. A model for `returned` goes live on 1 May. A line packed on 20 April is delivered on the 23rd and
its return window closes on 23 May: on 1 May nobody knows whether it was kept, so it can train no model of 1 May,
although the label is in today's extract. The gap between training and holdout is not a number somebody chose; it is
the time labels take to mature, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.arrays import Array
from training.labels import Labels


@dataclass(frozen=True)
class Fold:
    """Train before `at`, test from `at` on, with what was known at `at` and at `until`.

    Attributes:
        at: the moment the model would go live.
        until: the moment the test labels are read.
        train: (t,) positions in the labels: decided before `at` and mature at `at`.
        train_label: (t,) int8, as known at `at`.
        test: (s,) positions: decided in [at, until) and mature at `until`.
        test_label: (s,) int8, as known at `until`.
        immature_train: rows decided before `at` that were too young at `at`.
        immature_test: rows decided in [at, until) that were too young at `until`.
    """

    at: np.datetime64
    until: np.datetime64
    train: Array
    train_label: Array
    test: Array
    test_label: Array
    immature_train: int
    immature_test: int


def split(labels: Labels, at: np.datetime64, until: np.datetime64) -> Fold:
    """Split at a moment, reading the test labels at a later one.

    Raises:
        ValueError: `until` is not after `at`.
    """
    if not at < until:
        raise ValueError(f"split at {at} with labels read at {until}: the labels must be read after the split")
    before = labels.decided_at < at
    label, mature = labels.known(at)
    could = before & ~np.isnat(labels.matures_at)
    train = np.flatnonzero(before & mature)
    inside = ~before & (labels.decided_at < until)
    later, old_enough = labels.known(until)
    test = np.flatnonzero(inside & old_enough)
    young = inside & ~np.isnat(labels.matures_at) & ~(labels.matures_at < until)
    return Fold(
        at,
        until,
        train,
        label[train],
        test,
        later[test],
        int(np.count_nonzero(could & ~(labels.matures_at < at))),
        int(np.count_nonzero(young)),
    )


def rolling(labels: Labels, until: np.datetime64, folds: int, first_share: float = 0.4) -> list[Fold]:
    """Rolling origins over everything decided and mature before `until`: each fold trains on all that came before.

    Args:
        labels: the units.
        until: end of the last test period, and the moment its labels are read.
        folds: how many origins.
        first_share: share of the mature rows before the first origin.

    Returns:
        Folds in order of time, whose test periods follow one another; fewer where the time does not suffice.
    """
    _, mature = labels.known(until)
    decided = labels.decided_at[mature & (labels.decided_at < until)]
    if not len(decided):
        return []
    return folds_at(labels, evenly(decided, folds, first_share), until)


def evenly(decided_at: Array, origins: int, first_share: float = 0.4) -> Array:
    """Origins, at midnight UTC, with equally many of the decisions before each next one.

    Args:
        decided_at: (n,) datetime64[us], of the units that can be judged.
        origins: how many.
        first_share: share of the decisions before the first.

    Returns:
        (origins,) datetime64[us] in order of time; fewer where several would fall on one day.
    """
    cuts = np.quantile(decided_at.astype(np.int64), np.linspace(first_share, 1, origins + 1)[:-1])
    return np.unique(cuts.astype(np.int64).astype("datetime64[us]").astype("datetime64[D]").astype("datetime64[us]"))


def folds_at(labels: Labels, origins: Array, until: np.datetime64) -> list[Fold]:
    """A fold per origin, tested on what was decided from there to the next one, with labels as known at `until`.

    Folds without a row to train on or to test on are left out.
    """
    out = []
    for origin, end in zip(origins, [*origins[1:], until], strict=True):
        if not origin < end:
            continue
        fold = split(labels, origin, until)
        inside = labels.decided_at[fold.test] < end
        period = (labels.decided_at >= origin) & (labels.decided_at < end) & ~np.isnat(labels.matures_at)
        young = int(np.count_nonzero(period & ~(labels.matures_at < until)))
        out.append(replace(fold, test=fold.test[inside], test_label=fold.test_label[inside], immature_test=young))
    return [f for f in out if len(f.train) and len(f.test)]


def violations(
    decided_at: Array, matures_at: Array, train: Sequence[int] | Array, test: Sequence[int] | Array, at: np.datetime64
) -> list[str]:
    """Check a split from its output alone: what is wrong with it, in words; empty if nothing is.

    Args:
        decided_at, matures_at: (n,) datetime64[us] of all units.
        train, test: positions of the two sides.
        at: the moment the model would go live.
    """
    train, test = np.asarray(train, dtype=np.int64), np.asarray(test, dtype=np.int64)
    found = []
    if len(np.intersect1d(train, test)):
        found.append(f"{len(np.intersect1d(train, test))} units are on both sides")
    future = int(np.count_nonzero(~(decided_at[train] < at)))
    if future:
        found.append(f"{future} training units were decided at {at} or later")
    young = int(np.count_nonzero(~(matures_at[train] < at)))
    if young:
        found.append(f"{young} training labels were not mature at {at}")
    past = int(np.count_nonzero(~(decided_at[test] >= at)))
    if past:
        found.append(f"{past} test units were decided before {at}")
    if len(train) and len(test) and not matures_at[train].max() < decided_at[test].min():
        found.append("a training label matured after the first test decision")
    return found
