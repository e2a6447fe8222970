"""What others would have reached with the same parcels: expected failures after case mix and handoff quality.

For each carrier the chance of failure is learned from the parcels of all OTHER carriers, and then said of its own. What
it reads is what the shop hands over: goods, package, label, papers, time to the pickup, promise, payment, address,
distance, service, region and week. It reads nothing of carriers, so whatever their doing is stays in what is observed.

Trees smooth over regions; how hard a region is for whoever goes there is therefore read off the others' own parcels in
it, by what they had beyond their expectation (out of fold), and how little of that there may be is kept as doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.arrays import Array
from features.matrix import FeatureSet
from training.diagnosis.shrink import ratios
from training.models import patient

ROWS = 300_000
"""Parcels that the expectation is learned from at most; more make it hardly better."""

FOLDS = 2

PARAMS = {
    "objective": "binary",
    "learning_rate": 0.08,
    "num_leaves": 15,
    "lambda_l2": 20.0,
    "cat_l2": 20.0,
    "max_cat_threshold": 16,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
TREES = 80


@dataclass(frozen=True)
class Cases:
    """Parcels of one target that are old enough to judge.

    Attributes:
        target: name of the target.
        label: (n,) int8.
        matrix: (n, f) float32, what is read of each parcel; no column of the carrier's but the distance.
        names: the columns' names.
        coded: names of the columns that are codes.
        carrier, service, region: (n,) int64 codes.
        decided_at: (n,) datetime64[us].
        order: (n,) int64, the order a parcel belongs to.
    """

    target: str
    label: Array
    matrix: Array
    names: list[str]
    coded: list[str]
    carrier: Array
    service: Array
    region: Array
    decided_at: Array
    order: Array

    def __len__(self) -> int:
        return len(self.label)


def kept(features: FeatureSet) -> list[bool]:
    """Which features tell of the parcel and not of its carrier."""
    return [f.team != "carrier" or f.name == "distance" for f in features.features]


def held_out(
    matrix: Array,
    label: Array,
    fold: Array,
    coded: list[int],
    seed: int,
    threads: int,
    also: Array | None = None,
    leaf: int = 100,
    trees: Sequence[int] = (TREES,),
) -> tuple[Array, Array]:
    """Chances of each row by a model that has not seen its fold.

    Args:
        matrix: (n, f) float32.
        label: (n,) 0 or 1.
        fold: (n,) int64, the folds from 0.
        coded: columns that are codes.
        seed: of the model and of which rows are taken where there are more than `ROWS`.
        threads: of LightGBM.
        also: (m, f) float32, rows of no fold.
        leaf: rows that a leaf holds at least.
        trees: numbers of trees, upwards.

    Returns:
        (s, n) chances with each number of trees, and (s, m) the mean of all models for the rows of no fold; NaN where a
        fold's rest holds one label.
    """
    patient()
    import lightgbm

    folds, beside = int(fold.max(initial=0)) + 1, matrix[:0] if also is None else also
    out = np.full((len(trees), len(label)), np.nan)
    extra = np.zeros((len(trees), len(beside)))
    settings = PARAMS | {"min_data_in_leaf": leaf, "seed": seed, "num_threads": threads}
    for k in range(folds):
        train, own = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if len(train) > ROWS:
            train = np.sort(np.random.default_rng(seed).choice(train, ROWS, replace=False))
        if not len(train) or label[train].min() == label[train].max():
            return np.full(out.shape, np.nan), np.full(extra.shape, np.nan)
        data = lightgbm.Dataset(matrix[train], label[train], categorical_feature=coded)
        model = lightgbm.train(settings, data, max(trees))

        def said(rows: Array, many: int, model: lightgbm.Booster = model) -> Array:
            found = model.predict(rows, num_iteration=many, num_threads=threads) if len(rows) else np.empty(0)
            return np.asarray(found)

        for i, many in enumerate(trees):
            out[i, own] = said(matrix[own], many)
            extra[i] += said(beside, many) / folds
    return out, extra


def others(cases: Cases, carrier: int, seed: int, threads: int) -> tuple[Array, Array]:
    """Chances of failure as the other carriers would have it.

    Returns:
        (own,) chances of the carrier's parcels, and (rest,) out-of-fold chances of all others', both in the order of
        the cases. NaN where there is nothing to learn from.
    """
    own, rest = np.flatnonzero(cases.carrier == carrier), np.flatnonzero(cases.carrier != carrier)
    fold = (pd.util.hash_array(cases.order[rest].astype(np.uint64)) % FOLDS).astype(np.int64)
    coded = [cases.names.index(c) for c in cases.coded]
    held, chance = held_out(cases.matrix[rest], cases.label[rest], fold, coded, seed, threads, cases.matrix[own])
    return chance[0], held[0]


def levels(label: Array, chance: Array, group: Array, groups: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """How much harder each group (region and service) is for the others than their parcels say.

    Args:
        label, chance: (n,) of the others' parcels, out of fold.
        group: (n,) int64 in [0, groups).

    Returns:
        (groups,) posterior means and (DRAWS, groups) draws, 1 where a group is as expected; a group that the others do
        not serve has what groups usually have.
    """
    observed = np.bincount(group, weights=label, minlength=groups)
    expected = np.bincount(group, weights=chance, minlength=groups)
    draws = ratios(observed, expected, rng)
    return draws.mean(axis=0), draws
