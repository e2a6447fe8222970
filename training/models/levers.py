"""Estimating levers: what changing one raw column does to a risk, freed from why the column was as it was.

Per target a logistic partially linear model: log-odds of the outcome = sum over levers of (effect * column) + anything
of the rest. Its effects solve the Neyman-orthogonal score of Liu, Zhang and Zhou (2021, "Double/debiased machine
learning for logistic partially linear model", Econometrics Journal 24(3), after Tan 2019)

    sum of weight(x) * (y exp(-effect'd) - (1 - y) exp(l(x))) * d,   d = (column - E[column | x, y = 0]) * terms

whose nuisances, l(x), the log-odds without the levers, and the expected column, are learned by boosted trees on other
rows (cross-fitting: Chernozhukov et al. 2018, Econometrics Journal 21(1)). Errors in either matter only by their
product, and leaving out some of the rows without the outcome moves nothing but an intercept. The covariance is the
sandwich of that score, by order. What it stands on: everything that moves both the column and the outcome is in a
column, or shows in what is done with the product's other parcels. An experiment stands on nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.arrays import Array, hash_codes
from features.contracts import TABLES
from features.matrix import FeatureSet, inputs
from features.settings import Settings
from features.snapshot import Facts
from serving.levers import BETTER, ONE, Lever, terms
from training.labels import Labels
from training.models import MIN_POSITIVES, patient, threads
from training.splits import split

ABROAD = "orders.destination_country"

LEVERS: dict[str, dict[str, tuple[str, ...]]] = {
    "damaged": {"protection_level": (ONE, "fragility"), "void_fill_ratio": (ONE, "fragility")},
    "undelivered": {"protection_level": (ONE,), "label_grade": (ONE,), "address_quality": (ONE,)},
    "returned": {"protection_level": (ONE,), "void_fill_ratio": (ONE,)},
    "late": {"label_grade": (ONE,), "documents_complete": (ABROAD,), "address_quality": (ONE,)},
    "failed_attempt": {"address_quality": (ONE,)},
}
"""Per target the columns that are levers on it, and what their effects depend on."""

PACKED = ("package_type", "protection_level", "package_length_mm", "package_width_mm", "package_height_mm", "weight_g")
"""Columns of `parcels` that a choice of package changes: no part of the rest where the package is a lever."""

FOLDS = 3
MOST_ROWS = 40_000
"""Rows that the estimate of a target is made on at most: all with the outcome, and others as they come, up to this."""

TREES: dict[str, Any] = {
    "learning_rate": 0.1,
    "num_leaves": 15,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.5,
    "lambda_l2": 5.0,
    "max_bin": 63,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
ROUNDS = 50

DEPENDS = 0.1
"""Standard deviation of how much an effect of one standard deviation of a treatment may change per unit of a term."""

HABIT = 5.0
"""What is done with a product otherwise is drawn towards nothing as if so many more parcels had shown nothing."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Estimate:
    """Effects of several columns on one target.

    Attributes:
        effects: (k,) log-odds per unit of column and term.
        covariance: (k, k).
        rows, positives: what they stand on.
    """

    effects: Array
    covariance: Array
    rows: int
    positives: int


def estimate_levers(
    facts: Facts,
    units: Mapping[str, Labels],
    matrix: Callable[[FeatureSet, Array], Array],
    start: np.datetime64,
    end: np.datetime64,
    seed: int,
    say: Say,
) -> tuple[tuple[Lever, ...], list[dict[str, Any]]]:
    """Levers from the rows a training trains on.

    Args:
        facts: the joined dataset.
        units: labels per target that is trained.
        matrix: values (n, f) of features for rows of their unit.
        start, end: as of the split of the training.
        seed: of the trees.
        say: told what is being done.

    Returns:
        The levers whose effect has the beneficial sign, and for `metrics.json` one entry per pair of target and column:
        what was found, or why nothing was.
    """
    found: list[Lever] = []
    told: list[dict[str, Any]] = []
    for target, columns in LEVERS.items():
        if target not in units:
            continue
        say(f"levers of {target}: {', '.join(columns)}")
        levers, words = _levers_of(facts, units[target], columns, matrix, start, end, seed)
        found += levers
        told += words
    return tuple(found), told


def _levers_of(
    facts: Facts,
    units: Labels,
    columns: Mapping[str, tuple[str, ...]],
    matrix: Callable[[FeatureSet, Array], Array],
    start: np.datetime64,
    end: np.datetime64,
    seed: int,
) -> tuple[list[Lever], list[dict[str, Any]]]:
    settings, target, unit = facts.snapshot.settings, units.target, units.unit
    fold = split(units, start, end)
    row, y = units.row[fold.train], fold.train_label.astype(np.float64)
    level = facts.rows.parcels if unit == "parcel" else facts.rows.lines
    home = _commonest(level["orders", "destination_country"][row])
    treated = FeatureSet.named(unit, columns, settings)
    doses = matrix(treated, row).astype(np.float64)
    use = np.flatnonzero(~np.isnan(doses).any(axis=1))
    use = use[sampled(y[use], MOST_ROWS)]
    row, y, doses = row[use], y[use], doses[use]
    group = units.group[fold.train][use]
    moves = [np.ptp(dose) > 0 if len(dose) else False for dose in doses.T]
    told: list[dict[str, Any]] = []
    positives = int(y.sum())
    if min(positives, len(y) - positives) < MIN_POSITIVES or not any(moves):
        few = min(positives, len(y) - positives) < MIN_POSITIVES
        why = f"{positives} positives among {len(y)} rows" if few else "the columns are missing or always the same"
        return [], [{"target": target, "column": c, "status": "not_estimated", "why": why} for c in columns]
    names: dict[str, tuple[str, ...]] = {}
    for (column, own), move in zip(columns.items(), moves, strict=True):
        if not move:
            why = "the column is missing or always the same"
            told.append({"target": target, "column": column, "status": "not_estimated", "why": why})
            continue
        names[column] = tuple(f"{ABROAD} != {home}" if t == ABROAD else t for t in own if t != ABROAD or home)
    doses = doses[:, moves]
    rest = _rest(facts, target, unit, tuple(columns), settings)
    x = np.column_stack([matrix(rest, row).astype(np.float64), _codes(level, row)])
    parts = folds_of(group)
    if any(c in PACKED or c == "void_fill_ratio" for c in names):
        x = np.column_stack([x, _habits(facts, unit, row, doses, parts)])
    every = {c: terms(own, unit, facts.rows)[row] for c, own in names.items()}
    usual = {c: np.nanmedian(at, axis=0) for c, at in every.items()}
    every = {c: np.where(np.isnan(at), usual[c], at) for c, at in every.items()}
    # What an effect depends on is centred where the outcome is, and held near nothing: with few failures the slope over
    # fragility is noise, and a box would be said to do nothing where it is estimated to do harm.
    centre = {c: _centre(own, every[c][y == 1]) for c, own in names.items()}
    estimate = orthogonal(y, doses, [at @ centre[c] for c, at in every.items()], x, parts, group, seed)
    at = 0
    levers = []
    for column, own in names.items():
        k = slice(at, at := at + len(own))
        turn = centre[column]
        effects, covariance = turn @ estimate.effects[k], turn @ estimate.covariance[k, k] @ turn.T
        lever = Lever(
            target,
            column,
            own,
            tuple(float(v) for v in effects),
            tuple(tuple(float(v) for v in line) for line in covariance),
            tuple(float(v) for v in usual[column]),
            estimate.rows,
            estimate.positives,
        )
        mean = every[column][y == 1].mean(axis=0)[None]
        low, high = lever.interval(mean)
        kept = bool(float((mean @ effects)[0]) * BETTER[column] < 0)
        told.append(
            {
                "target": target,
                "column": column,
                "status": "estimated" if kept else "no_effect",
                "effect": float((mean @ effects)[0]),
                "low": float(low[0]),
                "high": float(high[0]),
                "terms": dict(zip(own, lever.coefficients, strict=True)),
                "rows": estimate.rows,
                "positives": estimate.positives,
            }
        )
        if kept:
            levers.append(lever)
    return levers, told


def orthogonal(
    y: Array, doses: Array, moderators: list[Array], x: Array, parts: Array, group: Array, seed: int
) -> Estimate:
    """Effects of treatments on an outcome by the orthogonal score of the logistic partially linear model.

    Args:
        y: (n,) 0 or 1.
        doses: (n, c) treatments.
        moderators: per treatment (n, k_c) terms its effect is a sum over.
        x: (n, f) everything else that may move either.
        parts: (n,) fold of each row, 0 .. `FOLDS` - 1; rows that go together share one.
        group: (n,) what rows go together by.
        seed: of the trees.

    Raises:
        ValueError: the outcome is the same in all rows of a fold.
    """
    n = len(y)
    log_odds = np.empty(n)
    left = np.empty_like(doses)
    for k in range(FOLDS):
        out = parts == k
        learn = ~out
        log_odds[out] = fit(x[learn], y[learn], x[out], seed, binary=True)
        controls = learn & (y == 0)
        for c in range(doses.shape[1]):
            left[out, c] = doses[out, c] - fit(x[controls], doses[controls, c], x[out], seed, binary=False)
    d = np.column_stack([at * left[:, [c]] for c, at in enumerate(moderators)])
    # The first term of a treatment is free, the others are held near 0, in standard deviations of what is left of it.
    hold = [[0.0, *[(left[:, c].std() / DEPENDS) ** 2] * (at.shape[1] - 1)] for c, at in enumerate(moderators)]
    return solved(y, d, log_odds, group, np.concatenate(hold))


def solved(y: Array, d: Array, log_odds: Array, group: Array, hold: Array | None = None) -> Estimate:
    """Solve the score for residual treatments (n, k), given the log-odds without them (n,); see the module.

    `hold` (k,) is the precision with which each effect is held near 0.
    """
    weight = 1 / (1 + np.exp(np.clip(log_odds, -30, 30)))
    odds = np.exp(np.clip(log_odds, -30, 30))
    z = np.column_stack([d, np.ones(len(y))])
    at = np.zeros(z.shape[1])
    held = np.zeros(len(at)) if hold is None else np.append(hold, 0.0)
    at[-1] = np.log(max(y @ weight, 1e-9) / max((1 - y) * weight @ odds, 1e-9))

    def parts(at: Array) -> tuple[Array, Array]:
        happened = weight * y * np.exp(-np.clip(d @ at[:-1], -8, 8))
        did_not = weight * (1 - y) * odds * np.exp(at[-1])
        return happened, did_not

    for _ in range(60):
        happened, did_not = parts(at)
        score = (happened - did_not) @ z - held * at
        # Derivatives of the score by the effects, and by the intercept.
        curve = np.column_stack([-(z * happened[:, None]).T @ d, -(z * did_not[:, None]).sum(axis=0)])
        step = np.linalg.solve(curve - np.diag(held + 1e-9), score)
        at -= np.clip(step, -0.5, 0.5)
        if np.abs(step).max() < 1e-10:
            break
    happened, did_not = parts(at)
    curve = np.column_stack([-(z * happened[:, None]).T @ d, -(z * did_not[:, None]).sum(axis=0)])
    each = (happened - did_not)[:, None] * z
    _, place = np.unique(group.astype(str), return_inverse=True)
    sums = np.stack([np.bincount(place, weights=column) for column in each.T])
    bread = np.linalg.inv(curve - np.diag(held + 1e-9))
    covariance = bread @ (sums @ sums.T) @ bread.T
    return Estimate(at[:-1], covariance[:-1, :-1], len(y), int(y.sum()))


def _centre(own: tuple[str, ...], of: Array) -> Array:
    """What turns terms into themselves less their mean where the first is `1`, (k, k): terms @ it are centred."""
    turn = np.eye(len(own))
    if own[0] == ONE:
        turn[0, 1:] = -of[:, 1:].mean(axis=0)
    return turn


def folds_of(group: Array) -> Array:
    """Fold of each row, (n,) int64: by a hash of its order, so that rows of one order are in one."""
    return (hash_codes(group) >> np.uint64(17)).astype(np.int64) % FOLDS


def sampled(y: Array, most: int) -> Array:
    """Positions of all rows with the outcome and of evenly spaced ones without it, `most` in all at most."""
    happened, did_not = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    if len(happened) > most // 2:
        happened = happened[np.linspace(0, len(happened) - 1, most // 2).astype(np.int64)]
    some = min(len(did_not), most - len(happened))
    if some < len(did_not):
        did_not = did_not[np.linspace(0, len(did_not) - 1, some).astype(np.int64)]
    return np.sort(np.concatenate([happened, did_not]))


def fit(x: Array, y: Array, at: Array, seed: int, *, binary: bool) -> Array:
    """What trees learned on (x, y) say of the rows `at`: log-odds, or a mean."""
    patient()
    import lightgbm as lgb

    params = {**TREES, "objective": "binary" if binary else "l2", "seed": seed, "num_threads": threads(len(y))}
    if binary:
        positives = max(1.0, min(y.sum(), len(y) - y.sum()))
        params["num_leaves"] = int(np.clip(positives // 25, 4, 15))
        params["min_data_in_leaf"] = int(np.clip(5 * len(y) / positives, 20, max(20, len(y) // 20)))
        params["learning_rate"] = 0.05
    booster = lgb.train(params, lgb.Dataset(x, y, params=params), num_boost_round=ROUNDS)
    return np.asarray(booster.predict(at, raw_score=True, num_threads=threads(len(at))))


def _rest(facts: Facts, target: str, unit: str, columns: tuple[str, ...], settings: Settings) -> FeatureSet:
    """Features of a target that are neither its levers nor what comes of them."""
    every = FeatureSet.for_target(target, settings)
    gone = set(columns) | (set(PACKED) if "protection_level" in columns else set())
    gone = {f"parcels.{c}" for c in gone}
    return every.only(not gone & set(inputs(FeatureSet(unit, (f,)), settings)) for f in every.features)


def _codes(level: Any, row: Array) -> Array:
    """Node, carrier, service and region as numbers in the order of their names, (n, 4)."""
    named = (("parcels", "node"), ("parcels", "carrier"), ("parcels", "service"), ("orders", "destination_region"))
    columns = [level[t, c][row] for t, c in named if TABLES[t][c].kind == "code"]
    return np.column_stack([np.unique(c.astype(str), return_inverse=True)[1].astype(np.float64) for c in columns])


def _habits(facts: Facts, unit: str, row: Array, doses: Array, parts: Array) -> Array:
    """What is done with the products of each row in the other folds, (n, 2c): mean over its lines, and the highest.

    Packers know their products better than any column does. What a product's other parcels got tells what they saw.
    """
    rows = facts.rows
    sku = np.unique(rows.lines["order_lines", "sku"].astype(str), return_inverse=True)[1]
    order, first = rows.lines_of()
    parcel = row if unit == "parcel" else rows.line_parcel[row]
    parcel = np.maximum(parcel, 0)
    times = first[parcel + 1] - first[parcel]
    within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    owner = np.repeat(np.arange(len(row)), times)
    product = sku[order[first[parcel[owner]] + within]]
    out = []
    for dose in doses.T:
        gap = dose - dose.mean()
        sums = np.zeros((FOLDS, sku.max() + 1))
        counts = np.zeros_like(sums)
        np.add.at(sums, (parts[owner], product), gap[owner])
        np.add.at(counts, (parts[owner], product), 1.0)
        others = (sums.sum(axis=0) - sums) / (counts.sum(axis=0) - counts + HABIT)
        each = others[parts[owner], product]
        mean = np.bincount(owner, weights=each, minlength=len(row)) / np.maximum(times, 1)
        top = np.full(len(row), -np.inf)
        np.maximum.at(top, owner, each)
        out += [mean, np.where(times > 0, top, 0.0)]
    return np.column_stack(out)


def _commonest(codes: Array) -> str:
    known = [c for c in codes.tolist() if c]
    return max(sorted(set(known)), key=known.count) if known else ""
