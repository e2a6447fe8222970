"""Why goods come back: a calibrated model of P(reason | return), learned from words that are often not true.

What customers state is a noisy label (`training.evaluate.confusion`). The model is fitted to what was *said*, through
the confusion of words and truth: with p the softmax of one additive score per reason, a return with stated reason s and
inspected reason i costs `-log sum_k p_k C[k, s] D[k, i]` (the forward correction of Patrini et al., arXiv 1609.03683).
Its gradient is p less the posterior of the true reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from features.arrays import Array, match
from features.matrix import FeatureSet
from features.reasons import NOT_STATED, owners, read
from features.settings import Settings
from features.snapshot import Facts
from serving.explain import softmax
from serving.reasons import ReasonModel
from training.evaluate import METRICS, verdict
from training.evaluate.confusion import LEAST_INSPECTED, Noise, confusion, log_losses, mixture, posterior
from training.evaluate.intervals import auc, mean
from training.labels import Labels
from training.models import LEAST_GAIN, PARAMS, PLATT_PRIOR, STAGE, medians, threads
from training.models.compile import compile_classes
from training.splits import Fold

if TYPE_CHECKING:
    import lightgbm

__all__ = [
    "FittedReasons",
    "Returns",
    "Told",
    "fit_reasons",
    "judge_reasons",
    "returns_of",
    "told",
]

LEAST_RETURNS = 30
"""A reason with fewer training returns that state it, or were inspected for it, is no class of its own."""

FOLD_RETURNS = 50_000
"""Returns a rolling fold trains on at most: the number of rounds and the calibration need no more."""

MAX_ROUNDS = 200
PATIENCE = 30
ROUNDS = {"learning_rate": 0.1, "lambda_l2": 20.0}
"""Every round grows a tree per reason, which the bench pays for with every line: few and small ones are enough."""


@dataclass(frozen=True)
class Told:
    """What is said about the returns of lines.

    Attributes:
        reasons: names of the reasons the numbers stand for, and the team that owns each.
        stated: (lines,) int8, the customer's reason, `NOT_STATED` for none or no return.
        inspected: (lines,) int8, what the inspection found, `NOT_STATED` for none.
        unknown: codes that are no reason, with their number of returns.
    """

    reasons: Mapping[str, str]
    stated: Array
    inspected: Array
    unknown: dict[str, int]


def told(facts: Facts, as_of: np.datetime64) -> Told:
    """What was said about the return of each line (row of `facts.rows.lines`) just before a moment.

    A line that came back more than once counts with the first stated and the first inspected reason.
    """
    names = owners(facts.snapshot.settings)
    returns = facts.tables.get("returns", {})
    n = facts.rows.lines.n
    line = match(returns.get("line_id", np.empty(0, dtype=object)), facts.rows.line_id)
    never = np.full(len(line), np.datetime64("NaT", "us"))
    requested, known = returns.get("requested_at", never), returns.get("known_at", never)
    known = np.where(np.isnat(known), requested, known)
    seen = returns.get("inspected_at", never)
    seen = np.where(np.isnat(seen), known, seen)
    unknown: dict[str, int] = {}

    def column(name: str, at: Array) -> Array:
        out = np.full(n, NOT_STATED, dtype=np.int8)
        if name not in returns:
            return out
        reason, strange = read(returns[name], facts.snapshot.settings)
        for code, count in strange.items():
            unknown[code] = unknown.get(code, 0) + count
        use = np.flatnonzero((line >= 0) & (reason != NOT_STATED) & (at < as_of))
        use = use[np.argsort(at[use], kind="stable")[::-1]]  # the first one is written last
        out[line[use]] = reason[use]
        return out

    return Told(names, column("reason", known), column("inspected_reason", seen), unknown)


@dataclass(frozen=True)
class FittedReasons:
    """A fitted model of return reasons.

    Attributes:
        model: what is served.
        booster: LightGBM's model.
        noise: the confusion it was fitted through.
        params: LightGBM's parameters, and the number of rounds.
    """

    model: ReasonModel
    booster: lightgbm.Booster
    noise: Noise
    params: dict[str, Any]


def fit_reasons(
    names: Sequence[str],
    features: FeatureSet,
    matrix: Array,
    stated: Array,
    inspected: Array,
    folds: Sequence[tuple[Array, Array]],
    settings: Settings,
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> FittedReasons:
    """Fit P(reason | return).

    Args:
        names: the K reasons that are told apart, two at least.
        features: columns of the matrix.
        matrix: (n, f) float32, one row per mature return, oldest decision first.
        stated, inspected: (n,) position in `names`, -1 for nothing, or nothing of these.
        folds: positions to train on and, later ones, to choose the number of rounds and to calibrate on.
        settings: the shop's.
        seed: of bagging and feature sampling.
        progress: told what is being done.
    """
    k = len(names)
    right = settings.inspections_right
    grown, gains, judged = [], np.zeros(len(features.features)), []
    for number, (train, test) in enumerate(folds, 1):
        train = train[-FOLD_RETURNS:]  # the latest, as positions go by the time of the decision
        progress(f"return_reason: rolling fold {number} of {len(folds)}, {len(train):,} returns")
        noise = confusion(stated[train], inspected[train], k, right)
        heard = noise.chance(stated[train], inspected[train])
        later = matrix[test], noise.chance(stated[test], inspected[test])
        booster = _boost(matrix[train], heard, noise.mix, seed, MAX_ROUNDS, later)
        staged = _staged(booster, matrix[test], np.log(noise.mix))
        gain = booster.feature_importance("gain")
        gains += gain / max(1e-12, gain.sum()) / len(folds)
        grown.append([log_losses(softmax(raw), later[1]).mean() for raw in staged])
        judged.append((staged, later[1]))
    rounds, slope = MAX_ROUNDS // 2, 1.0
    if folds:
        most = min(len(g) for g in grown)
        sizes = [len(test) for _, test in folds]
        best = int(np.argmin(np.average([g[:most] for g in grown], axis=0, weights=sizes)))
        rounds = (best + 1) * STAGE
        slope = _slope([(staged[best], chance) for staged, chance in judged])
        keep = gains >= min(LEAST_GAIN, gains.max())
        features = features.only(keep)
        matrix = matrix[:, keep]
    progress(f"return_reason: fitting {rounds} rounds on {len(matrix):,} returns, {len(features.features)} features")
    noise = confusion(stated, inspected, k, right)
    heard = noise.chance(stated, inspected)
    booster = _boost(matrix, heard, noise.mix, seed, rounds)
    trees, bases = compile_classes(booster)
    start = np.log(noise.mix)
    raw = np.asarray(booster.predict(matrix, raw_score=True, num_threads=threads(len(matrix)))) + start
    intercepts = _centred(slope * raw, heard)
    own = owners(settings)
    model = ReasonModel(
        tuple(names),
        tuple(own[name] for name in names),
        features,
        trees,
        tuple((bases + start).tolist()),
        slope,
        tuple(intercepts.tolist()),
        tuple(noise.mix.tolist()),
        tuple(float(v) for v in medians(matrix)),
    )
    return FittedReasons(model, booster, noise, {**_parameters(len(matrix), k, seed), "rounds": rounds})


def _parameters(n: int, k: int, seed: int) -> dict[str, Any]:
    return {
        **PARAMS,
        **ROUNDS,
        "num_class": k,
        "num_leaves": int(np.clip(n // 8_000, 4, 8)),  # of a few thousand returns, larger trees learn the noise
        "min_data_in_leaf": int(np.clip(n // 400, 20, 50)),
        "num_threads": threads(n),
        "seed": seed,
    }


def _boost(
    matrix: Array,
    chance: Array,
    mix: Array,
    seed: int,
    rounds: int,
    later: tuple[Array, Array] | None = None,
) -> lightgbm.Booster:
    """Grow the trees from the mix on; with `later` rows (matrix, chance) until more of them only make these worse.

    `chance` (n, K) is that of what was said, for each true reason.
    """
    import lightgbm as lgb

    n, k = len(matrix), len(mix)

    def objective(scores: Array, _: Any) -> tuple[Array, Array]:
        p = softmax(scores)
        # The expected curvature of softmax, times k / (k - 1) as in LightGBM's own: the exact one may be negative.
        return p - posterior(p, chance), np.maximum(p * (1 - p), 1e-6) * (k / (k - 1))

    def judge(scores: Array, _: Any) -> tuple[str, float, bool]:
        assert later is not None
        return "noisy_log_loss", float(log_losses(softmax(scores), later[1]).mean()), False

    def dataset(rows: Array, like: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        start = np.repeat(np.log(mix), len(rows))
        return lgb.Dataset(rows, np.zeros(len(rows)), init_score=start, reference=like, free_raw_data=True)

    data = dataset(matrix)
    params = {**_parameters(n, k, seed), "objective": objective, "metric": "None"}
    if later is None:
        return lgb.train(params, data, num_boost_round=rounds)
    return lgb.train(
        params,
        data,
        num_boost_round=rounds,
        valid_sets=[dataset(later[0], data)],
        feval=judge,
        callbacks=[lgb.early_stopping(PATIENCE, verbose=False)],
    )


def _staged(booster: lightgbm.Booster, matrix: Array, start: Array) -> list[Array]:
    """Raw scores (n, K) after every `STAGE` rounds."""
    total = np.tile(start, (len(matrix), 1))
    out = []
    for first in range(0, booster.current_iteration(), STAGE):
        total = total + booster.predict(
            matrix, raw_score=True, start_iteration=first, num_iteration=STAGE, num_threads=threads(len(matrix))
        )
        out.append(total)
    return out


def _slope(judged: Sequence[tuple[Array, Array]]) -> float:
    """Slope that best calibrates the raw scores of the folds, drawn towards 1; their own intercepts are thrown away.

    As in `training.models.calibration_slope`: what a fold's model missed by the time it was judged, the served model
    has seen.

    Args:
        judged: per fold the raw scores, and the chance of what was said for each reason, both (n, K).
    """
    from scipy.optimize import minimize

    k = judged[0][0].shape[1]

    def cost(at: Array) -> tuple[float, Array]:
        slope, shifts = at[0], at[1:].reshape(len(judged), k)
        gradient = PLATT_PRIOR * (at - usual)
        total = float(PLATT_PRIOR / 2 * ((at - usual) ** 2).sum())
        for f, (raw, chance) in enumerate(judged):
            p = softmax(slope * raw + shifts[f])
            total += float(log_losses(p, chance).sum())
            pull = p - posterior(p, chance)
            gradient[0] += (pull * raw).sum()
            gradient[1 + f * k : 1 + (f + 1) * k] += pull.sum(axis=0)
        return total, gradient

    usual = np.concatenate([[1.0], np.zeros(k * len(judged))])
    found = minimize(cost, usual, jac=True, method="L-BFGS-B")
    return float(np.clip(found.x[0], 0.05, 5.0))


def _centred(raw: Array, chance: Array) -> Array:
    """Intercepts (K,) with which the mean share of each reason is the mean of its posterior, given what was said."""
    at = np.zeros(raw.shape[1])
    for _ in range(100):
        p = softmax(raw + at)
        step = np.log(np.maximum(posterior(p, chance).mean(axis=0), 1e-12) / p.mean(axis=0))
        at += step
        if np.abs(step).max() < 1e-9:
            break
    return at - at.mean()


@dataclass(frozen=True)
class Returns:
    """The mature returns on both sides of a split, and what is said about them.

    Attributes:
        names: the reasons that are told apart.
        owners: the team that owns each.
        train, test: positions in the labels of `returned`.
        stated, inspected: per side (n,) positions in `names`, -1 for nothing; as known at the end of the side.
        document: counts for `metrics.json`; its `why` says why nothing can be trained, empty otherwise.
    """

    names: tuple[str, ...]
    owners: tuple[str, ...]
    train: Array
    test: Array
    stated: tuple[Array, Array]
    inspected: tuple[Array, Array]
    document: dict[str, Any]


def returns_of(facts: Facts, units: Labels, fold: Fold) -> Returns:
    """The returns a fold of `returned` trains on and is judged by. No row of it is young: quick returns come first.

    Args:
        facts: the joined dataset.
        units: labels of `returned`.
        fold: a split of them.
    """
    sides = (fold.train[fold.train_label == 1], fold.test[fold.test_label == 1])
    at = (fold.at, fold.until)
    said = [told(facts, moment) for moment in at]
    own = said[0].reasons
    stated = [t.stated[units.row[side]] for t, side in zip(said, sides, strict=True)]
    inspected = [t.inspected[units.row[side]] for t, side in zip(said, sides, strict=True)]
    seen = np.array([((stated[0] == k) | (inspected[0] == k)).sum() for k in range(len(own))])
    kept = np.flatnonzero(seen >= LEAST_RETURNS)
    place = np.full(len(own) + 1, NOT_STATED, dtype=np.int8)  # the last place stands for nothing said
    place[kept] = np.arange(len(kept))
    every = list(own)
    names = tuple(every[k] for k in kept)
    stated, inspected = [place[s] for s in stated], [place[i] for i in inspected]
    unknown = said[1].unknown
    why = ""
    if not len(sides[0]):
        why = "no mature return before the holdout"
    elif len(names) < 2:
        told_apart = f"{len(names)} of {len(own)} reasons have {LEAST_RETURNS} mature returns before the holdout"
        strange = f"; {sum(unknown.values()):,} codes are no reason Doorstep knows: see `doorstep check`"
        why = f"{told_apart}, two are needed{strange if unknown else ''}"

    def period(side: int) -> dict[str, Any]:
        said = {"stated": stated[side], "inspected": inspected[side]}
        return units.span(sides[side]) | {name: int((reason >= 0).sum()) for name, reason in said.items()}

    _, mature = units.known(fold.until)
    came = facts.outcomes["returned"].label(fold.until)[0][units.row]
    document: dict[str, Any] = {
        "status": "not_trained",
        "why": why,
        "unit": "line",
        "given": "delivered and sent back",
        "excluded_immature": int((came[~mature] == 1).sum()),
        "reasons": {name: own[name] for name in names},
        "left_out": {r: int(n) for r, n in zip(every, seen, strict=True) if 0 < n < LEAST_RETURNS},
        # A code that few returns have may be what a customer typed: it is counted, not repeated.
        "unknown_codes": {c: n for c, n in unknown.items() if n >= LEAST_RETURNS and len(c) <= 40},
        "unknown_rows": sum(unknown.values()),
        "train": period(0),
        "holdout": period(1),
    }
    teams = tuple(own[name] for name in names)
    return Returns(names, teams, *sides, (stated[0], stated[1]), (inspected[0], inspected[1]), document)


def judge_reasons(
    shares: Array,
    noise: Noise,
    returns: Returns,
    matrix: tuple[Array, Array],
    category: tuple[Array, Array],
    groups: Array,
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Judge the model that would be served on the returns of the holdout, and estimate their mix of true reasons.

    Inspected returns judge where there are enough, else what was stated does.

    Args:
        shares: (n, K) what the model says of the returns of the holdout.
        noise: the confusion it was fitted through.
        returns: the split.
        matrix: (n, f) float32 of the model's features, for either side.
        category: (n,) what the lookup baseline groups by, for either side.
        groups: order of each return of the holdout.
        settings: the shop's.
        seed: of the bootstrap.
    """
    k = len(returns.names)
    stated, inspected = returns.stated[1], returns.inspected[1]
    trained = np.where(returns.inspected[0] >= 0, returns.inspected[0], returns.stated[0])
    by = inspected if (inspected >= 0).sum() >= LEAST_INSPECTED else stated
    judged = np.flatnonzero(by >= 0)
    # What is held against a word is the chance of that word, through what is known of its noise.
    said = noise.inspection[:, :k] if by is inspected else noise.stated[:, :k] / noise.stated[:, :k].sum(1)[:, None]
    label, group = by[judged], np.unique(groups[judged].astype(str), return_inverse=True)[1]

    def loss(p: Array) -> Array:
        return np.asarray(-np.log(np.maximum(p[np.arange(len(judged)), label], 1e-15)))

    rivals = _rivals(matrix, category, trained, k, seed)
    ours = shares[judged] @ said
    losses = {name: loss(p[judged]) for name, p in rivals.items()}
    hit = (ours.argmax(axis=1) == label).astype(np.float64)
    document: dict[str, Any] = {
        "judged_on": "inspected" if by is inspected else "stated",
        "metrics": {"log_loss": _figure(loss(ours), group), "accuracy": _figure(hit, group)},
        "baselines": {
            name: {
                "log_loss": _figure(losses[name], group),
                "accuracy": _figure((p[judged].argmax(axis=1) == label).astype(np.float64), group),
            }
            for name, p in rivals.items()
        },
        "against_baselines": {},
        "by_reason": {},
        "mix": {},
    }
    for name in rivals:
        found = _figure(loss(ours) - losses[name], group)
        difference = {"difference": found["value"], "low": found["low"], "high": found["high"]}
        document["against_baselines"][name] = {"log_loss": verdict(METRICS["log_loss"], difference)}
    mix, least, most = mixture(stated, inspected, k, settings.inspections_right, groups, seed)
    words = np.bincount(stated[stated >= 0], minlength=k) / max(1, (stated >= 0).sum())
    for r, name in enumerate(returns.names):
        mine = label == r
        document["by_reason"][name] = {
            "owner": returns.owners[r],
            "rows": int(mine.sum()),
            "auc": auc(mine, ours[:, r], group).to_dict(0, 1) if 0 < mine.sum() < len(mine) else None,
            "calibration_gap": _figure(ours[:, r] - mine, group),
        }
        document["mix"][name] = {
            "stated": float(words[r]),
            "corrected": float(mix[r]),
            "low": float(least[r]),
            "high": float(most[r]),
            "predicted": float(shares[:, r].mean()) if len(shares) else None,
        }
    return document


def _figure(values: Array, groups: Array) -> dict[str, Any]:
    return mean(values, groups).to_dict() if len(values) else {"value": None, "low": None, "high": None}


def _rivals(
    matrix: tuple[Array, Array], category: tuple[Array, Array], label: Array, k: int, seed: int
) -> dict[str, Array]:
    """Shares (n, K) for the holdout from what the words say alone: their mix, their mix by category, and a logistic
    regression on the model's features (at most 10,000 returns)."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    use = np.flatnonzero(label >= 0)
    n = len(matrix[1])
    base = np.bincount(label[use], minlength=k) + 1.0
    base /= base.sum()
    names, place = np.unique(np.concatenate(category).astype(str), return_inverse=True)
    first, second = place[: len(category[0])], place[len(category[0]) :]
    counts = np.zeros((len(names), k))
    np.add.at(counts, (first[use], label[use]), 1.0)
    table = (counts + 20 * base) / (counts.sum(axis=1, keepdims=True) + 20)
    few = np.random.default_rng(seed).permutation(use)[:10_000]
    model = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(C=0.1, max_iter=100),
    )
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # a hundred steps are what a rival gets
        model.fit(matrix[0][few], label[few])
    logistic = np.zeros((n, k))
    if n:
        logistic[:, model.classes_] = model.predict_proba(matrix[1])
    return {"base_rate": np.tile(base, (n, 1)), "lookup": table[second], "logistic": logistic}
