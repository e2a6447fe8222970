"""Time-to-door windows: quantile models, and the moves that make them cover what they promise, lane by lane.

Everything is temporal. The latest quarter of the training period, whose outcomes the models have not seen, sets the
moves (split-conformal, after Romano, Patterson and Candès, arXiv 1905.03222): for n later parcels, the k-th smallest of
what a quantile q lay short by, in units of the predicted spread, with k = ceil((n + 1) q). That holds for each quantile
on its own, whatever the models are worth, as long as parcels to come are like those of that quarter. A lane's own move
is drawn towards its parent's, so that a few odd weeks on a small lane are not taken for the lane.

Only parcels that arrived have a time to the door; what never arrives is `undelivered`'s to tell. A parcel is judged
when lost_after_days have passed since its decision: before that, only the quick ones would be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from features.arrays import HOUR, Array, match
from features.history import ENTITIES, key
from features.matrix import FeatureSet
from features.snapshot import Facts
from serving.bundle import Bundle
from serving.windows import (
    COVERAGE,
    LEVELS,
    NAME,
    PARTS,
    QUANTILES,
    Group,
    WindowModel,
    chance_late,
    contradictions,
    moved,
    spread,
    times,
)
from training.evaluate import wilson
from training.evaluate.slices import meaning, slices
from training.labels import Labels, maturity_rule
from training.models import LEAST_GAIN, patient, threads
from training.models.compile import compile_booster
from training.splits import Fold, rolling, split

if TYPE_CHECKING:
    import lightgbm

MIN_DELIVERIES = 1_000
"""Fewer deliveries than this before the holdout and no window is trained: its outer twentieths would be a few dozen."""

MOST_ALIKE = 0.5
"""Where more of the deliveries than this took exactly as long, the shop's records do not say when parcels arrived."""

MIN_ROWS = 100
"""A lane with fewer calibration rows has no move of its own. From so many on, what finite samples add to the level is
under one point."""

STRENGTH = 100.0
"""A lane's own move is drawn towards its parent's as if so many more rows there had shown the parent's."""

MOST_ROWS = 150_000
"""Deliveries the models learn from, the latest; more would take longer and say the same."""

CALIBRATION_SHARE = 0.25
"""The latest share of the training period, which sets the moves."""

PARAMS: dict[str, Any] = {
    "objective": "quantile",
    "learning_rate": 0.1,
    "num_leaves": 31,
    "max_depth": 8,  # the compiled trees know at most 8 conditions a leaf
    "max_bin": 127,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "min_data_in_leaf": 60,  # an outer quantile of fewer is one parcel's word
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
"""LightGBM's parameters. Monotone signs are not among them: it refuses them for quantiles."""

MAX_TREES = 100
"""Most trees of a quantile: the bench waits for three models."""

STAGE = 10
"""Numbers of trees that are compared: every tenth."""

Progress = Callable[[str], None]

Read = Callable[[FeatureSet, Array], Array]
"""From features of parcels and (n,) rows of `facts.rows.parcels` to (n, f) float32."""


@dataclass
class Deliveries:
    """The parcels of a dataset with the time they took, as far as it is known.

    Attributes:
        units: the parcels, oldest decision first, with the label `undelivered`.
        hours: (n,) from decision to door, NaN where no delivery is known.
    """

    units: Labels
    hours: Array
    early: int = field(init=False)

    def __post_init__(self) -> None:
        """Leave out deliveries dated before the decision: a mistake of a clock, no time to the door."""
        wrong = self.hours <= 0
        self.early = int(np.count_nonzero(wrong))
        self.hours = np.where(wrong, np.nan, self.hours)

    @staticmethod
    def of(facts: Facts, units: Labels) -> Deliveries:
        """Join the first delivery that came to be known of each parcel."""
        return Deliveries(units, ((doors(facts) - facts.rows.parcels.decided_at) / HOUR)[units.row])

    def arrived(self, at: Array, label: Array) -> Array:
        """Those of some positions that arrived, by their label of `undelivered`."""
        return at[(label == 0) & ~np.isnan(self.hours[at])]


@dataclass(frozen=True)
class WindowFit:
    """A fitted window.

    Attributes:
        model: what is served.
        texts: LightGBM's model text per quantile.
        took: the parcels with the time they took.
        fold: the split into training and holdout.
        train, test: positions in the labels of the deliveries of either side.
    """

    model: WindowModel
    texts: dict[str, str]
    took: Deliveries
    fold: Fold
    train: Array
    test: Array


def doors(facts: Facts) -> Array:
    """When each parcel was delivered, (n,) datetime64[us]: its delivery known first; NaT where none is known."""
    events = facts.tables.get("events", {})
    out = np.full(facts.rows.parcels.n, np.datetime64("NaT", "us"))
    at = np.flatnonzero(np.equal(events["kind"], "delivered")) if "kind" in events else np.empty(0, dtype=np.int64)
    if not len(at):
        return out
    happened = events["happened_at"][at]
    known = events["known_at"][at] if "known_at" in events else happened
    known = np.where(np.isnat(known), happened, known)
    parcel = match(events["parcel_id"][at], facts.rows.parcel_id)
    late_first = np.lexsort((happened, known))[::-1]
    late_first = late_first[parcel[late_first] >= 0]
    out[parcel[late_first]] = happened[late_first]  # the last assignment stays: the one known first
    return out


def conformal(scores: Array, level: float) -> float:
    """The ceil((n + 1) level)-th smallest of n scores: a new one is at most that with probability `level` or more.

    Infinite where there are too few scores to say.
    """
    n = len(scores)
    k = math.ceil(round((n + 1) * level, 9))
    return float(np.partition(scores, k - 1)[k - 1]) if k <= n else math.inf


def _scores(log_hours: Array, target: Array) -> Array:
    """What each quantile lay short by, (n, 3) spreads; for the start, how far it lay too late."""
    off = (target[:, None] - log_hours) / spread(log_hours)[:, None]
    off[:, 0] *= -1
    return off


def _moves(scores: Array) -> Array:
    """Moves (3,) of the quantiles from scores (n, 3)."""
    start, likely, end = (
        conformal(scores[:, i], level) for i, level in enumerate((1 - QUANTILES[0], QUANTILES[1], QUANTILES[2]))
    )
    return np.array([-start, likely, end])


def calibrate(log_hours: Array, target: Array, keys: dict[str, Array], names: dict[str, Array]) -> dict[str, Any]:
    """Moves of all parcels and of every lane, carrier's service and carrier with rows enough.

    Args:
        log_hours: (n, 3) quantiles of rows the models have not seen.
        target: (n,) log hours they took.
        keys: per level but `all` the (n,) uint64 keys, 0 unknown.
        names: per level but `all` the (n,) keys in words.

    Returns:
        Groups per level, as `serving.windows.WindowModel` takes them.

    Raises:
        ValueError: fewer than `MIN_ROWS` rows.
    """
    if len(target) < MIN_ROWS:
        raise ValueError(f"{len(target)} rows to calibrate on; at least {MIN_ROWS} are needed")
    scores = _scores(log_hours, target)
    whole = _moves(scores)
    groups: dict[str, tuple[Group, ...]] = {"all": (Group(1, "all parcels", len(target), _floats(whole)),)}
    parent = np.tile(whole, (len(target), 1))
    for level in reversed(LEVELS[:-1]):
        found, own = [], parent.copy()
        code, place = np.unique(keys[level], return_inverse=True)
        order = np.argsort(place, kind="stable")
        for k, at in zip(code, np.split(order, np.cumsum(np.bincount(place))[:-1]), strict=True):
            if k == 0 or len(at) < MIN_ROWS:
                continue
            weight = len(at) / (len(at) + STRENGTH)
            own[at] = weight * _moves(scores[at]) + (1 - weight) * parent[at[0]]
            found.append(Group(int(k), str(names[level][at[0]]), len(at), _floats(own[at[0]])))
        groups[level] = tuple(found)
        parent = own
    return {level: groups[level] for level in LEVELS}


def _floats(moves: Array) -> tuple[float, float, float]:
    start, likely, end = moves.tolist()
    return start, likely, end


def fit_windows(
    facts: Facts, units: Labels, read: Read, start: np.datetime64, end: np.datetime64, seed: int, say: Progress
) -> tuple[WindowFit | None, dict[str, Any]]:
    """Fit and calibrate on what was known before `start`.

    Args:
        facts: the joined dataset.
        units: its parcels with the label `undelivered`.
        read: gives the values of the features of `late` and `failed_attempt`.
        start, end: of the holdout.
        seed: of everything random.
        say: told what is being done.

    Returns:
        The fit, None if it could not be trained, and its document in `metrics.json`, which says why.
    """
    settings = facts.snapshot.settings
    took = Deliveries.of(facts, units)
    fold = split(units, start, end)
    train, test = took.arrived(fold.train, fold.train_label), took.arrived(fold.test, fold.test_label)
    inner = rolling(units, start, 1, 1 - CALIBRATION_SHARE)
    seen = took.arrived(inner[0].train, inner[0].train_label)[-MOST_ROWS:] if inner else train[:0]
    later = took.arrived(inner[0].test, inner[0].test_label) if inner else train[:0]
    rule = maturity_rule("undelivered", settings.return_window_days, settings.lost_after_days)
    document: dict[str, Any] = {
        "status": "not_trained",
        "why": _why_not(facts, took, train, seen, later),
        "unit": "parcel",
        "maturity": f"of delivered parcels; {rule[rule.index('judged') :]}",
        "excluded_immature": fold.immature_train + fold.immature_test,
        "excluded": {"train": fold.immature_train, "holdout": fold.immature_test},
        "excluded_before_decision": took.early,
        "nominal": COVERAGE,
        "train": units.span(train) | {"learned": len(seen), "calibrated": len(later)},
        "holdout": units.span(test),
    }
    if document["why"]:
        say(f"{NAME}: not trained: {document['why']}")
        return None, document
    say(f"{NAME}: three quantiles of {len(seen):,} deliveries, calibrated on {len(later):,} later ones")
    boosters, features = _boosters(units, took, facts, read, inner[0].at, seen, seed)
    start_trees, likely_trees, end_trees = (compile_booster(b) for b in boosters)
    trees = (start_trees, likely_trees, end_trees)
    parcels, row = facts.rows.parcels, units.row[later]
    log_hours = WindowModel(features, trees, {}).log_hours(read(features, row))
    groups = calibrate(
        log_hours,
        np.log(took.hours[later]),
        {level: key(ENTITIES[level], parcels)[row] for level in LEVELS[:-1]},
        {level: _words(parcels, level, row) for level in LEVELS[:-1]},
    )
    document |= {
        "status": "trained",
        "features": features.names,
        "trees": {part: b.num_trees() for part, b in zip(PARTS, boosters, strict=True)},
        "groups": {level: len(found) for level, found in groups.items()},
    }
    texts = {f"{NAME}_{part}": b.model_to_string() for part, b in zip(PARTS, boosters, strict=True)}
    return WindowFit(WindowModel(features, trees, groups), texts, took, fold, train, test), document


def _why_not(facts: Facts, took: Deliveries, train: Array, seen: Array, later: Array) -> str:
    """Why no window can be trained, or an empty text."""
    if "parcels" not in facts.tables:
        return "the dataset has no table parcels"
    if not np.equal(facts.tables.get("events", {}).get("kind", np.empty(0, dtype=object)), "delivered").any():
        return "no event of kind delivered is in the table events"
    if len(train) < MIN_DELIVERIES:
        return f"{len(train)} mature deliveries before the holdout; at least {MIN_DELIVERIES} are needed"
    hours, often = np.unique(took.hours[train].round(2), return_counts=True)
    if often.max() > MOST_ALIKE * len(train):
        return (
            f"{often.max() / len(train):.0%} of the deliveries took exactly {hours[often.argmax()]:g} hours: these are "
            "stand-ins, no times of delivery"
        )
    if len(later) < MIN_ROWS or len(seen) < MIN_ROWS:
        return (
            f"{len(seen)} deliveries to learn from and {len(later)} later ones to calibrate on before the holdout; at "
            f"least {MIN_ROWS} of each are needed: the history is short, or most parcels lie in a few weeks"
        )
    return ""


def _words(parcels: Any, level: str, row: Array) -> Array:
    """A level's keys as a person reads them, (n,) object."""
    parts = [parcels[c][row] for c in ENTITIES[level].columns]
    return np.array([", ".join("-" if v is None else str(v) for v in values) for values in zip(*parts, strict=True)])


def _boosters(
    units: Labels, took: Deliveries, facts: Facts, read: Read, until: np.datetime64, seen: Array, seed: int
) -> tuple[list[lightgbm.Booster], FeatureSet]:
    """A model per quantile; their sizes and features are chosen on a later part of what they learn from."""
    patient()
    import lightgbm as lgb

    every = FeatureSet.union(FeatureSet.for_target(t, facts.snapshot.settings) for t in ("late", "failed_attempt"))
    x, y = read(every, units.row[seen]), np.log(took.hours[seen])

    def grow(rows: Array, columns: Array, quantile: float, trees: int) -> lightgbm.Booster:
        params = {**PARAMS, "alpha": quantile, "seed": seed, "num_threads": threads(len(rows))}
        return lgb.train(params, lgb.Dataset(x[np.ix_(rows, columns)], y[rows]), num_boost_round=trees)

    varied = ~((x == x[0]) | (np.isnan(x) & np.isnan(x[0]))).all(axis=0)
    columns, trees = np.flatnonzero(varied), [MAX_TREES // 2] * len(QUANTILES)
    inner = rolling(units, until, 1, 1 - CALIBRATION_SHARE)
    early = np.flatnonzero(np.isin(seen, inner[0].train)) if inner else seen[:0]
    late = np.flatnonzero(np.isin(seen, inner[0].test)) if inner else seen[:0]
    if min(len(early), len(late)) >= MIN_ROWS:
        gains = np.zeros(len(columns))
        for i, quantile in enumerate(QUANTILES):
            booster = grow(early, columns, quantile, MAX_TREES)
            gain = booster.feature_importance("gain")
            gains += gain / max(1e-12, gain.sum()) / len(QUANTILES)
            losses = [pinball(y[late], said, quantile) for said in _staged(booster, x[np.ix_(late, columns)])]
            trees[i] = (int(np.argmin(losses)) + 1) * STAGE
        columns = columns[gains >= min(LEAST_GAIN, gains.max())]
    features = FeatureSet(every.unit, tuple(every.features[i] for i in columns))
    everything = np.arange(len(seen))
    return [grow(everything, columns, q, n) for q, n in zip(QUANTILES, trees, strict=True)], features


def _staged(booster: lightgbm.Booster, matrix: Array) -> list[Array]:
    """Predictions after every `STAGE` trees, each (n,)."""
    out, total = [], np.zeros(len(matrix))
    for first in range(0, booster.num_trees(), STAGE):
        total = total + booster.predict(
            matrix, raw_score=True, start_iteration=first, num_iteration=STAGE, num_threads=threads(len(matrix))
        )
        out.append(total)
    return out


def pinball(value: Array, quantile: Array | float, level: float) -> float:
    """Mean pinball loss of a predicted quantile, in the unit of the values (Koenker and Bassett 1978)."""
    off = value - quantile
    return float(np.maximum(level * off, (level - 1) * off).mean())


def judge_windows(
    facts: Facts, units: Labels, read: Read, bundle: Bundle, fit: WindowFit, document: dict[str, Any], say: Progress
) -> pd.DataFrame:
    """Judge the loaded model, as it would answer, on the holdout: what it covers, how wide it is, beside its rivals.

    Args:
        facts, units, read: as in `fit_windows`.
        bundle: the loaded bundle.
        fit: what was fitted.
        document: its document in `metrics.json`, which is completed.
        say: told what is being done.

    Returns:
        The holdout: unit_id, decided_at, promised_to, delivered_at, from, likely, to, and a flag per slice.

    Raises:
        ValueError: the bundle has no window.
    """
    model = bundle.window
    if model is None:
        raise ValueError("the bundle has no window to judge")
    fold, test, took = fit.fold, fit.test, fit.took
    say(f"{NAME}: judging on {len(test):,} deliveries")
    # Every parcel of the holdout is asked whether its window contradicts P(late), whatever became of it.
    asked = np.flatnonzero((units.decided_at >= fold.at) & (units.decided_at < fold.until))
    row, decided = units.row[asked], units.decided_at[asked]
    promised = facts.rows.parcels["orders", "promised_to"][row]
    chances = {
        n: m.probability(read(m.features, row)) for n, m in bundle.targets.items() if n in ("late", "undelivered")
    }
    chance = chance_late(chances.get("late"), chances.get("undelivered"))
    log_hours = model.log_hours(read(model.features, row))
    hours = moved(log_hours, model.moves(facts.rows.parcels)[0][row])
    served = times(decided, hours, promised, chance)
    alone = times(decided, hours, promised, None)

    at = np.searchsorted(asked, test)
    door, since = took.hours[test], decided[at][:, None]
    where = slices(facts, "parcel", fold.at, units.row[test])
    said = (served[at] - since) / HOUR
    document["metrics"] = _figures(said, door)
    document["rivals"] = {
        "not_reconciled": _figures((alone[at] - since) / HOUR, door),
        "not_calibrated": _figures(moved(log_hours[at], np.zeros(3)), door),
        "global_quantile": _figures(np.tile(np.quantile(took.hours[fit.train], QUANTILES), (len(test), 1)), door),
    }
    document["slices"] = {
        name: {"meaning": meaning(name), **_figures(said[hit], door[hit])}
        for name, hit in ((str(name), where[name].to_numpy()) for name in where)
        if hit.any()
    }
    document["contradictions"] = {"checked": 0, "before": 0, "after": 0}
    if chance is not None:
        count = [int(contradictions(w, decided, promised, chance).sum()) for w in (alone, served)]
        checked = int(np.count_nonzero(~np.isnat(promised)))
        document["contradictions"] = {"checked": checked, "before": count[0], "after": count[1]}
    moments = {part: served[at, i] for i, part in enumerate(PARTS)}
    delivered = decided[at] + np.round(door * 3.6e9).astype("timedelta64[us]")
    columns = {"decided_at": decided[at], "promised_to": promised[at], "delivered_at": delivered, **moments}
    frame = pd.DataFrame({name: pd.DatetimeIndex(value).tz_localize("UTC") for name, value in columns.items()})
    frame.insert(0, "unit_id", pd.Series(units.unit_id[test], dtype="str"))
    return pd.concat([frame, where.set_axis([f"slice: {name}" for name in where], axis=1)], axis=1)


def _figures(hours: Array, door: Array) -> dict[str, Any]:
    """What windows (n, 3) hours say of n deliveries that took `door` hours."""
    inside = (hours[:, 0] <= door) & (door <= hours[:, 2])
    rate, width = float(inside.mean()), hours[:, 2] - hours[:, 0]
    low, high = wilson(rate, len(door))
    return {
        "rows": len(door),
        "coverage": {"value": rate, "low": low, "high": high},
        "before": float((door < hours[:, 0]).mean()),
        "after": float((door > hours[:, 2]).mean()),
        "mean_width_hours": float(width.mean()),
        "median_width_hours": float(np.median(width)),
        "pinball_hours": {
            p: pinball(door, hours[:, i], q) for i, (p, q) in enumerate(zip(PARTS, QUANTILES, strict=True))
        },
    }
