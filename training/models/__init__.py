"""Fitting: LightGBM per target with monotone signs, its size set by the data, calibrated by two numbers.

Rolling origins inside the training period do two jobs with one set of fits. Each fold's model has never seen the
fold's test rows, so their pooled predictions choose the number of trees (lowest log loss) and fit the calibration
(linear in log-odds, after Platt, 1999; kept near the identity where positives are few). The model itself is then
fitted on all mature rows, and on young ones for what is known of them already (`training.maturity`). No resampling and
no class weights: they buy no ranking and ruin probabilities.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from features.arrays import Array
from features.matrix import FeatureSet
from serving.bundle import TargetModel
from training.maturity import News
from training.models.compile import compile_booster
from training.splits import Fold

if TYPE_CHECKING:
    import lightgbm

MIN_POSITIVES = 30
"""Fewer mature positives than this (or negatives) and a target is not trained: nothing could be told from noise."""

PLATT_PRIOR = 10.0
"""Strength with which calibration is held near the identity, in units of information about its two numbers."""


@dataclass(frozen=True)
class ModelSpec:
    """How a target is modelled.

    Attributes:
        target: name of the target.
        max_trees: most trees that are tried.
        params: LightGBM parameters that differ from `PARAMS`.
        monotone: the signs that features declare are kept.
        max_leaves: most leaves of a tree.
        tree_positives: a tree has about one leaf for so many positives.
        leaf_positives: a leaf holds about so many expected positives at least.
        young: rows too young to judge are trained on for what is known of them (docs/decisions/20-young-rows.md).
    """

    target: str
    max_trees: int = 800
    monotone: bool = True
    max_leaves: int = 31
    tree_positives: float = 25
    leaf_positives: float = 5
    young: bool = True
    params: dict[str, Any] = field(default_factory=dict)


MODELS: dict[str, ModelSpec] = {
    "late": ModelSpec("late", young=False),  # judged within days: there is nothing to gain
    **{name: ModelSpec(name) for name in ("failed_attempt", "damaged", "undelivered", "returned")},
}

PARAMS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.02,
    "max_depth": 8,  # the compiled trees explain at most 8 conditions a leaf
    "max_bin": 127,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "min_sum_hessian_in_leaf": 1e-3,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


MANY_ROWS = 150_000
"""From so many training rows on trees are added in larger steps, and one rolling fold says what three say of fewer."""

MANY_ROWS_RATE = 0.04
"""Learning rate for many rows: half the trees of `PARAMS` for the same log loss."""


def parameters(spec: ModelSpec, features: FeatureSet, label: Array, seed: int, beside: int = 1) -> dict[str, Any]:
    """LightGBM parameters for these rows: the fewer positives, the smaller the trees; the more rows, the larger steps.

    Leaves hold about five expected positives at least, and a tree has about one leaf for 25 positives, 4 to 31 (or as
    `spec` says).
    """
    n, positives = len(label), max(1, int(min(label.sum(), len(label) - label.sum())))
    return {
        **PARAMS,
        "num_leaves": int(np.clip(positives // spec.tree_positives, 4, spec.max_leaves)),
        "min_data_in_leaf": int(np.clip(spec.leaf_positives * n / positives, 20, max(20, n // 20))),
        "monotone_constraints": [f.signs.get(spec.target, 0) * spec.monotone for f in features.features],
        "monotone_constraints_method": "basic",
        "learning_rate": PARAMS["learning_rate"] if n < MANY_ROWS else MANY_ROWS_RATE,
        "num_threads": threads(n, beside),
        "seed": seed,
        **spec.params,
    }


ONE_THREAD_ROWS = 50_000
"""Below this, threads wait for one another longer than they work (on a busy machine, a hundred times longer)."""


def threads(rows: int, beside: int = 1) -> int:
    """Threads for so many rows: 1, or 0 for all cores. Fixed by the data, so that a training can be repeated.

    Args:
        rows: how many.
        beside: how many models are fitted at the same time; they share the cores.
    """
    if rows < ONE_THREAD_ROWS:
        return 1
    return 0 if beside == 1 else max(1, cores() // beside)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def patient() -> None:
    """Have LightGBM's threads sleep while they wait, unless the environment says otherwise.

    To be called before LightGBM is imported: OpenMP reads it once, when it is loaded, and threads that spin while they
    wait make a busy machine crawl.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True)
class Fitted:
    """A fitted target.

    Attributes:
        model: what is served.
        booster: LightGBM's model.
        params: parameters it was fitted with, and the number of trees.
        calibration_rows, calibration_positives: what the calibration stands on.
        young_rows: rows too young to judge that were trained on as well.
        young_worth: what one of them told on average, as a share of a mature row.
        recent_level: what the last four weeks, mature and young, put on the log-odds of all rows.
    """

    model: TargetModel
    booster: lightgbm.Booster
    params: dict[str, Any]
    calibration_rows: int
    calibration_positives: int
    young_rows: int = 0
    young_worth: float = 0.0
    recent_level: float = 0.0


def fit(
    spec: ModelSpec,
    features: FeatureSet,
    matrix: Array,
    label: Array,
    folds: list[Fold],
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
    news: News | None = None,
    beside: int = 1,
    offset: Array | None = None,
) -> Fitted:
    """Fit one target.

    Args:
        spec: how.
        features: columns of the matrix.
        matrix: (n, f) float32, one row per label of the target; rows outside `folds[-1]` and training are not read.
        label: (n,) int8 as known at the end of training, -1 for rows that may not be trained on.
        folds: rolling folds inside the training period, may be empty.
        seed: of bagging and feature sampling.
        progress: told what is being done.
        news: what is known of all rows decided before the end of training, young ones too; None to leave those out.
        beside: how many models are fitted at the same time.
        offset: (n,) what has been done to a row moved its log-odds by so much: the model learns the rest; None: nothing
            was done to any.

    Raises:
        ValueError: the training rows hold one class only.
    """
    patient()
    import lightgbm as lgb

    train = np.flatnonzero(label >= 0)
    y = label[train]
    if y.min() == y.max():
        raise ValueError(f"{spec.target}: all {len(y)} training rows have the label {y[0]}; both classes are needed")
    folds = [f for f in folds if min(f.train_label.sum(), len(f.train_label) - f.train_label.sum()) >= 5]
    grown, curves = [], []
    gains = np.zeros(len(features.features))
    for k, fold in enumerate(folds, 1):
        progress(f"{spec.target}: rolling fold {k} of {len(folds)}, {len(fold.train):,} rows")
        ours = parameters(spec, features, fold.train_label, seed, beside)
        booster, curve = _grow(ours, matrix, fold, spec.max_trees, offset)
        gain = booster.feature_importance("gain")
        gains += gain / max(1e-12, gain.sum()) / len(folds)
        grown.append(booster)
        curves.append(curve)
    if folds:
        most = min(len(c) for c in curves)  # what every fold has grown
        weights = [len(f.test) for f in folds]
        trees = (int(np.argmin(np.average([c[:most] for c in curves], axis=0, weights=weights))) + 1) * STAGE
        scores = [_raw(booster, matrix[f.test], trees, beside) for booster, f in zip(grown, folds, strict=True)]
        slope = calibration_slope(scores, [f.test_label for f in folds])
        happened = np.concatenate([f.test_label for f in folds])
        rows, positives = len(happened), int(happened.sum())
        keep = gains >= min(LEAST_GAIN, gains.max())
        features = features.only(keep)
    else:
        trees, slope, rows, positives = spec.max_trees // 3, 1.0, 0, 0
        keep = np.ones(len(features.features), dtype=bool)
    params, columns = parameters(spec, features, y, seed, beside), np.flatnonzero(keep)
    young = "" if news is None or not news.young else f" and {news.young:,} young ones"
    progress(f"{spec.target}: fitting {trees} trees on {len(train):,} rows{young}, {len(features.features)} features")
    read = matrix[np.ix_(train, columns)]
    usual = tuple(float(v) for v in medians(read))
    used = 0
    worth = lately = 0.0
    if offset is not None:
        news = news or News.of(train, y)
    if news is None or (not news.young and offset is None):
        booster = lgb.Booster(params, lgb.Dataset(read, y, params=params))
        del read
        for _ in range(trees):
            booster.update()
        intercept = centred(slope * _training_scores(booster), y)
        # Read from its own text as `lightgbm.train` does it: the rows it was fitted on are let go.
        booster.model_from_string(booster.model_to_string()).free_dataset()
    else:
        read = matrix[np.ix_(news.where, columns)]
        moved = np.zeros(len(news.where)) if offset is None else offset[news.where]
        booster = _grown(params, read, news, trees, moved)
        raw = _raw(booster, read, trees, beside)
        intercept = settled(slope * raw + moved, news.slopes)
        z = slope * raw + moved + intercept
        used, worth = news.young, news.worth(z)
        # What has changed of late shows in no feature before its units are mature: the level may follow it sooner.
        lately = settled(z[news.recent], news.only(news.recent).slopes, PLATT_PRIOR)
    progress(f"{spec.target}: compiling {trees} trees")
    compiled = compile_booster(booster)
    model = TargetModel(spec.target, features, compiled, slope, intercept + lately, float(y.mean()), usual)
    return Fitted(model, booster, {**params, "num_trees": trees}, rows, positives, used, worth, lately)


def _grown(params: dict[str, Any], matrix: Array, news: News, trees: int, moved: Array) -> lightgbm.Booster:
    """Trees on young rows too. Their scores begin where the base rate is, as those of LightGBM's own losses do."""
    import lightgbm as lgb

    start = settled(moved, news.slopes)
    rows = lgb.Dataset(matrix, np.zeros(len(matrix)), init_score=start + moved, free_raw_data=True)
    booster = lgb.train({**params, "objective": lambda raw, _: news.slopes(raw)}, rows, num_boost_round=trees)
    return _lifted(booster, start)


def _lifted(booster: lightgbm.Booster, start: float) -> lightgbm.Booster:
    """The model with what its scores began with in its first tree."""
    for leaf in range(booster.dump_model(num_iteration=1)["tree_info"][0]["num_leaves"]):
        booster.set_leaf_output(0, leaf, booster.get_leaf_output(0, leaf) + start)
    return booster


STAGE = 10
"""Numbers of trees that are compared: every tenth."""


LEAST_GAIN = 0.005
"""A feature with a smaller share of the gain over the rolling folds is left out of the model that is served.

It would cost the bench time on every parcel, and readers patience in every explanation, for no ranking that could be
measured."""

PATIENCE = 2.0
"""What a rolling fold adds without a lower log loss before it stops growing: trees times learning rate."""

JUDGED_ROWS = 60_000
"""Later rows of a rolling fold, at most, that say when it has enough trees; all of them say how it is calibrated."""


def _grow(
    params: dict[str, Any], matrix: Array, fold: Fold, most: int, offset: Array | None
) -> tuple[lightgbm.Booster, Array]:
    """Grow a fold's model until more trees only make its later rows worse.

    Returns:
        The model up to its lowest log loss on the later rows, and that log loss after every `STAGE` trees.
    """
    import lightgbm as lgb

    start, begin, later = 0.0, None, None
    if offset is not None:  # scores that begin with something given do not begin at the base rate of themselves
        start = centred(offset[fold.train], fold.train_label)
        begin, later = start + offset[fold.train], start + offset[fold.test]
    data = lgb.Dataset(matrix[fold.train], fold.train_label, init_score=begin, params=params)
    # Evenly over time where there are more than it takes: every tree is followed by a look at each of them.
    some = np.linspace(0, len(fold.test) - 1, min(JUDGED_ROWS, len(fold.test))).astype(np.int64)
    seen: dict[str, dict[str, list[float]]] = {}
    booster = lgb.train(
        {**params, "metric": "binary_logloss"},
        data,
        num_boost_round=most,
        valid_sets=[
            lgb.Dataset(
                matrix[fold.test[some]],
                fold.test_label[some],
                init_score=None if later is None else later[some],
                reference=data,
                params=params,
            )
        ],
        valid_names=["later"],
        callbacks=[
            lgb.record_evaluation(seen),
            lgb.early_stopping(round(PATIENCE / params["learning_rate"]), verbose=False),
        ],
    )
    grown = booster.current_iteration()  # LightGBM lets go of the trees after the lowest log loss
    after = np.minimum(np.arange(STAGE, grown + STAGE, STAGE), grown)
    if offset is not None:
        booster = _lifted(booster, start)
    return booster, np.array(seen["later"]["binary_logloss"])[after - 1]


def _raw(booster: lightgbm.Booster, matrix: Array, trees: int, beside: int) -> Array:
    """Raw scores (n,) of the first trees of a model."""
    some = threads(len(matrix), beside)
    return np.asarray(booster.predict(matrix, raw_score=True, num_iteration=trees, num_threads=some))


def _training_scores(booster: lightgbm.Booster) -> Array:
    """Raw scores (n,) of the rows a model was just fitted on: it has them, and need not go through its trees again."""
    found: list[Array] = []

    def keep(probability: Array, _: Any) -> tuple[str, float, bool]:
        found.append(np.log(probability) - np.log1p(-probability))
        return "scores", 0.0, False

    booster.eval_train(keep)
    return found[0]


def medians(matrix: Array) -> Array:
    """Medians of the columns, NaN for a column without a value."""
    out = np.full(matrix.shape[1], np.nan)
    for i in range(matrix.shape[1]):
        known = matrix[~np.isnan(matrix[:, i]), i]
        if len(known):
            out[i] = np.median(known)
    return out


def calibration_slope(raw: Sequence[Array], label: Sequence[Array]) -> float:
    """Slope in log-odds that best calibrates the raw scores of several folds, drawn towards 1.

    Newton's method on the log loss of `slope * raw + intercept`, an intercept for each fold, plus
    `PLATT_PRIOR / 2 * ((slope - 1)^2 + sum(intercept^2))`: with many positives the prior is nothing, with few it keeps
    the calibration from following noise. A fold's intercept is what its model missed by the time it was judged, a fault
    that had come up since, say. The served model has seen that, so the intercepts are not its own: see `centred`. The
    slope is kept positive, so that calibration never turns the order round.

    Args:
        raw: per fold (n,) raw scores of a model that has not seen its rows.
        label: per fold (n,) 0 or 1.
    """
    at = np.array([1.0, *[0.0] * len(raw)])
    usual = np.array([1.0, *[0.0] * len(raw)])
    for _ in range(50):
        gradient = PLATT_PRIOR * (at - usual)
        curve = PLATT_PRIOR * np.eye(len(at))
        for k, (x, y) in enumerate(zip(raw, label, strict=True), 1):
            p = _logistic(at[0] * x + at[k])
            weight = p * (1 - p)
            gradient[0] += (p - y) @ x
            gradient[k] += (p - y).sum()
            curve[0, 0] += weight @ x**2
            curve[k, k] += weight.sum()
            curve[0, k] = curve[k, 0] = weight @ x
        step = np.linalg.solve(curve, gradient)
        at -= np.clip(step, -np.array([0.5, *[2.0] * len(raw)]), np.array([0.5, *[2.0] * len(raw)]))
        if np.abs(step).max() < 1e-10:
            break
    return max(float(at[0]), 0.05)


def centred(raw: Array, label: Array) -> float:
    """Intercept with which the probabilities of raw scores (n,) have the mean of the labels (n,)."""

    def slopes(z: Array) -> tuple[Array, Array]:
        p = _logistic(z)
        return p - label, p * (1 - p)

    return settled(raw, slopes)


def settled(raw: Array, slopes: Callable[[Array], tuple[Array, Array]], prior: float = 0.0) -> float:
    """What has to be added to raw scores (n,) to have the least loss, given its gradient and curvature, each (n,).

    `prior / 2` times its square is added to the loss: with few rows it stays near 0.
    """
    at = 0.0
    for _ in range(50):
        gradient, curve = slopes(raw + at)
        step = (gradient.sum() + prior * at) / max(1e-9, curve.sum() + prior)
        at -= float(np.clip(step, -2, 2))
        if abs(step) < 1e-12:
            break
    return at


def _logistic(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -500, 500))))
