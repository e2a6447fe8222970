"""Estimating what carriers do to a risk, lane by lane: against others with the same parcels, shrunken, with intervals.

Per target a logistic model with random effects,

    log-odds = a + b l(x) + place + sum over terms of (effect * (1[term] - P(carrier | x))),

whose terms are the carrier, the carrier in a service, and the carrier in a region. l(x), the log-odds by what was
handed over (goods, package, label, papers, time to the pickup, promise, service, region, node, but nothing that reads
the carrier), and P(carrier | x) are learned by boosted trees on other orders (cross-fitting: Chernozhukov et al. 2018,
Econometrics Journal 21(1)); with residual treatments errors in l matter only by their product with errors in P
(Robinson 1988, Econometrica 56(4)). `place` is how hard a service and region are for whoever goes there.

The effects of each kind of term are normal around 0. Their variances are those under which the outcomes are likeliest
(empirical Bayes: the penalised quasi-likelihood of Breslow and Clayton 1993, JASA 88(421), by the fixed point of MacKay
1992, Neural Computation 4(3)), beside `GUESS` terms that vary as usual: four carriers say little of how much carriers
differ. A lane with few failures is drawn to what its carrier does elsewhere, and the covariance says how much is open.
What it stands on is what levers stand on: whatever moves both the choice of the carrier and the outcome is in a column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from features.arrays import Array, absent
from features.matrix import FeatureSet, inputs
from features.rows import Level
from features.snapshot import Facts
from serving.carriers import CarrierLever, region_of
from training.labels import Labels
from training.models import MIN_POSITIVES, patient, threads
from training.models.levers import FOLDS, MOST_ROWS, TREES, fit, folds_of, sampled
from training.splits import split

USUAL = 0.2
"""How much effects of a kind vary where the data do not say: standard deviation, log-odds."""

USUAL_OF = {"returned": 0.05}
"""Of targets where it is less: a carrier moves a return only by what it breaks or brings late."""

GUESS = 4.0
"""How many effects that vary as usual stand beside those there are when their variance is estimated."""

LEAST = 50
"""Parcels that a carrier's service must have taken, and a region received, to be held against others."""

MOST_REGIONS = 100
"""Regions with effects of their own at most, those with most parcels."""

FLAT = 5.0
"""In a service and region the expected carrier is corrected by what is left there, drawn to none by so many parcels."""

ROUNDS = 30
STEPS = 30
DIGITS = 6
"""What is kept of a number: more would only be the machine's."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Handed:
    """Who carried what, and who was to be expected to; n rows of `row`.

    Attributes:
        row: (n,) rows of `parcels`.
        at: position in `row` of every row of `parcels`, -1 for one that is not among them.
        pairs, kinds: see `CarrierLever.carriers`.
        arm, kind: (p,) the carrier of each pair as its effects see it, and its kind, as numbers.
        region: (n,) number of the region, `len(regions)` for all others; `regions` are their names.
        spot: (n,) number of kind and region.
        left: (n, a) which arm it was, less what was to be expected.
    """

    row: Array
    at: Array
    pairs: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    arm: Array
    kind: Array
    regions: tuple[str, ...]
    region: Array
    of: Array
    spot: Array
    left: Array


def estimate_carriers(
    facts: Facts,
    units: Mapping[str, Labels],
    matrix: Callable[[FeatureSet, Array], Array],
    start: np.datetime64,
    end: np.datetime64,
    seed: int,
    say: Say,
) -> tuple[tuple[CarrierLever, ...], list[dict[str, Any]]]:
    """What carriers do, from the rows a training trains on.

    Args:
        facts: the joined dataset.
        units: labels per target that is trained.
        matrix: values (n, f) of features for rows of their unit.
        start, end: as of the split of the training.
        seed: of the trees.
        say: told what is being done.

    Returns:
        A lever per target, and for `metrics.json` one entry per target: what was found, or why nothing was.
    """
    found: list[CarrierLever] = []
    told: list[dict[str, Any]] = []
    if not units:
        return (), []
    say("who carries what")
    handed = _handed(facts, [t for t, u in units.items() if u.unit == "parcel"], matrix, start, seed)
    for target, own in units.items():
        if isinstance(handed, str):
            told.append({"target": target, "status": "not_estimated", "why": handed})
            continue
        say(f"carriers' effects on {target}")
        lever, words = _lever(facts, own, handed, matrix, start, end, seed)
        found += [lever] if lever is not None else []
        told.append({"target": target, **words})
    return tuple(found), told


def _handed(
    facts: Facts, targets: list[str], matrix: Callable[[FeatureSet, Array], Array], start: np.datetime64, seed: int
) -> _Handed | str:
    """Parcels before a moment with who carried them, or why nobody can be held against anybody."""
    if not targets:
        return "no target of parcels is trained"
    parcels = facts.rows.parcels
    row = np.flatnonzero((parcels.decided_at < start) & ~absent(parcels["parcels", "carrier"]))
    names = _pairs(parcels, row)
    every, pair, count = np.unique(names, return_inverse=True, return_counts=True)
    often = count >= LEAST
    row, names = row[often[pair]], names[often[pair]]
    every, pair = np.unique(names, return_inverse=True)
    pairs = tuple((c, s) for c, _, s in (name.partition(APART) for name in every.tolist()))
    services = [s for _, s in pairs]
    # A service with one carrier's name on it says who carried: it is a choice beside other such ones.
    kinds = tuple(s if services.count(s) > 1 else "" for s in services)
    arms = [c if k else f"{c}{APART}{s}" for (c, s), k in zip(pairs, kinds, strict=True)]
    if all(kinds.count(k) < 2 for k in kinds):
        return "one carrier only: there is none to hold it against"
    arm, kind = (np.unique(np.array(x), return_inverse=True)[1] for x in (arms, kinds))
    region = region_of(facts.rows, "parcel")[row]
    region = np.where(absent(region), "", region).astype(str)
    there, of, times = np.unique(region, return_inverse=True, return_counts=True)
    large = np.sort(np.argsort(-times, kind="stable")[:MOST_REGIONS])
    large = large[(times[large] >= LEAST) & (there[large] != "")]
    place = np.full(len(there), len(large))
    place[large] = np.arange(len(large))
    number = place[of]
    spot = number * (int(kind.max()) + 1) + kind[pair]

    unit = FeatureSet.union([FeatureSet.for_target(t, facts.snapshot.settings) for t in targets])
    x = np.column_stack([matrix(_rest(unit, facts), row).astype(np.float64), *_codes(parcels, row, number, kind[pair])])
    parts = folds_of(parcels["orders", "order_id"][row])
    left = np.eye(int(arm.max()) + 1)[arm[pair]]
    for k in range(FOLDS):
        out = parts == k
        learn = np.flatnonzero(~out)
        learn = learn[np.linspace(0, len(learn) - 1, min(len(learn), MOST_ROWS)).astype(np.int64)]
        left[out] -= _chances(x[learn], arm[pair][learn], left.shape[1], x[out], seed)
    # Trees smooth over lanes, and a lane's usual carrier would be taken for what the lane is like.
    sizes = np.bincount(spot)
    for a in range(left.shape[1]):
        left[:, a] -= (np.bincount(spot, weights=left[:, a]) / (sizes + FLAT))[spot]
    at = np.full(parcels.n, -1)
    at[row] = np.arange(len(row))
    names_ = tuple(str(r) for r in there[large])
    return _Handed(row, at, pairs, kinds, arm, kind, names_, number, pair, spot, left)


APART = "\x1f"


def _pairs(level: Level, row: Array) -> Array:
    """Carrier and service of rows as one text, (n,)."""
    carrier, service = level["parcels", "carrier"][row], level["parcels", "service"][row]
    service = np.where(absent(service), "", service)
    return np.char.add(np.char.add(carrier.astype(str), APART), service.astype(str))


def _rest(every: FeatureSet, facts: Facts) -> FeatureSet:
    """The features that read nothing of who carries."""
    settings, gone = facts.snapshot.settings, {"parcels.carrier", "parcels.service"}
    return every.only([not gone & set(inputs(FeatureSet(every.unit, (f,)), settings)) for f in every.features])


def _codes(level: Level, row: Array, region: Array, kind: Array) -> list[Array]:
    node = level["parcels", "node"][row]
    node = np.unique(np.where(absent(node), "", node).astype(str), return_inverse=True)[1]
    return [region.astype(np.float64), kind.astype(np.float64), node.astype(np.float64)]


def _lever(
    facts: Facts,
    units: Labels,
    handed: _Handed,
    matrix: Callable[[FeatureSet, Array], Array],
    start: np.datetime64,
    end: np.datetime64,
    seed: int,
) -> tuple[CarrierLever | None, dict[str, Any]]:
    fold = split(units, start, end)
    row, y = units.row[fold.train], fold.train_label.astype(np.float64)
    parcel = row if units.unit == "parcel" else facts.rows.line_parcel[row]
    at = np.where(parcel >= 0, handed.at[parcel], -1)
    use = np.flatnonzero(at >= 0)
    use = use[sampled(y[use], MOST_ROWS)]
    row, y, at, group = row[use], y[use], at[use], units.group[fold.train][use]
    positives = int(y.sum())
    if min(positives, len(y) - positives) < MIN_POSITIVES:
        return None, {"status": "not_estimated", "why": f"{positives} positives among {len(y)} rows"}
    level = facts.rows.parcels if units.unit == "parcel" else facts.rows.lines
    rest = _rest(FeatureSet.for_target(units.target, facts.snapshot.settings), facts)
    codes = _codes(level, row, handed.region[at], handed.kind[handed.of[at]])
    x = np.column_stack([matrix(rest, row).astype(np.float64), *codes])
    parts, log_odds = folds_of(group), np.empty(len(y))
    for k in range(FOLDS):
        out = parts == k
        log_odds[out] = fit(x[~out], y[~out], x[out], seed, binary=True)
    left, kind, region = handed.left[at], handed.kind[handed.of[at]], handed.region[at]
    arms, kinds, regions = left.shape[1], int(handed.kind.max()) + 1, len(handed.regions)
    terms = {"carrier": sparse.csr_matrix(left)}
    if kinds > 1:
        terms["service"] = _each(left, kind, kinds)
    terms["region"] = _each(left, region, regions)
    terms["place"] = _each(np.ones((len(y), 1)), handed.spot[at], (regions + 1) * kinds)
    effects, covariance, varies = shrunken(y, log_odds, list(terms.values()), USUAL_OF.get(units.target, USUAL))
    first = dict(zip(terms, np.cumsum([0, *(t.shape[1] for t in terms.values())]), strict=False))

    pairs = np.arange(len(handed.pairs))
    both = handed.kind[:, None] == handed.kind[None]
    out_effects, out_covariance = [], []
    for r in range(regions + 1):
        take = np.zeros((len(pairs), len(effects)))
        take[pairs, handed.arm] = 1.0
        if kinds > 1:
            take[pairs, first["service"] + handed.kind * arms + handed.arm] = 1.0
        own = np.zeros_like(both, dtype=np.float64)
        if r < regions:
            take[pairs, first["region"] + r * arms + handed.arm] = 1.0
        else:  # somewhere else carriers differ as much from themselves as they usually do
            own = varies[list(terms).index("region")] * (handed.arm[:, None] == handed.arm[None])
        out_effects.append(_kept(take @ effects))
        out_covariance.append(tuple(_kept(line) for line in np.where(both, take @ covariance @ take.T + own, 0.0)))
    lever = CarrierLever(
        units.target,
        handed.pairs,
        handed.kinds,
        handed.regions,
        tuple(out_effects),
        tuple(out_covariance),
        len(y),
        positives,
    )
    names = ["/".join(n for n in p if n) for p in handed.pairs]
    error = np.sqrt(np.diag(np.array(lever.covariance[-1]) - own))
    told = {
        "status": "estimated",
        "rows": len(y),
        "positives": positives,
        "varies": {name: float(np.sqrt(v)) for name, v in zip(terms, varies, strict=True)},
        "effects": {
            name: {"effect": float(e), "low": float(e - 1.96 * s), "high": float(e + 1.96 * s)}
            for name, e, s in zip(names, lever.effects[-1], error, strict=True)
        },
    }
    return lever, told


def shrunken(y: Array, log_odds: Array, terms: list[Any], usual: float) -> tuple[Array, Array, Array]:
    """Effects of kinds of terms on an outcome, each kind normal around 0 with a variance of its own; see the module.

    Args:
        y: (n,) 0 or 1, both of them.
        log_odds: (n,) what is known without the terms, up to an intercept and a factor.
        terms: per kind (n, k_j), dense or sparse.
        usual: how much effects vary where the data do not say, standard deviation.

    Returns:
        Effects (k,) of all kinds one after the other, their covariance (k, k), and the variance of each kind.
    """
    ends = np.cumsum([t.shape[1] for t in terms])
    parts = [slice(end - t.shape[1], end) for t, end in zip(terms, ends, strict=True)]
    k = int(ends[-1])
    fixed = np.column_stack([log_odds - log_odds.mean(), np.ones(len(y))])
    design = sparse.hstack([*terms, fixed]).tocsr()
    across = design.T.tocsr()
    varies = np.full(len(terms), usual**2)
    at = np.zeros(k + 2)
    at[k:] = 1.0, np.log(y.mean() / (1 - y.mean()))
    for _ in range(STEPS):
        hold = np.full(k + 2, 1e-6)
        for part, variance in zip(parts, varies, strict=True):
            hold[part] = 1.0 / variance
        p = 1 / (1 + np.exp(-np.clip(design @ at, -30, 30)))
        curve = (across @ sparse.diags_array(p * (1 - p)) @ design).toarray() + np.diag(hold)
        covariance = np.linalg.inv(curve)
        step = covariance @ (across @ (y - p) - hold * at)
        at += np.clip(step, -1.0, 1.0)
        before = varies
        varies = np.array(
            [
                (at[part] @ at[part] + GUESS * usual**2)
                / (np.clip((1 - np.diag(covariance)[part] / v).sum(), 0.0, None) + GUESS)
                for part, v in zip(parts, varies, strict=True)
            ]
        )
        if np.abs(step).max() < 1e-3 and np.abs(np.log(varies / before)).max() < 1e-2:
            break
    return at[:k], covariance[:k, :k], varies


def _each(values: Array, code: Array, n: int) -> Any:
    """Columns (rows, n * a) that hold the values (rows, a) in the place of each row's code; nothing if it is n."""
    rows, a = values.shape
    at = np.flatnonzero(code < n)
    column = (code[at, None] * a + np.arange(a)).ravel()
    return sparse.csr_matrix((values[at].ravel(), (np.repeat(at, a), column)), shape=(rows, n * a))


def _kept(numbers: Array) -> tuple[float, ...]:
    return tuple(float(f"{v:.{DIGITS}g}") for v in numbers.tolist())


def _chances(x: Array, arm: Array, arms: int, at: Array, seed: int) -> Array:
    """P(arm) of the rows `at`, (m, arms), by trees that learned on (x, arm); the last three columns are codes."""
    patient()
    import lightgbm as lgb

    params = {**TREES, "objective": "multiclass", "num_class": arms, "seed": seed, "num_threads": threads(len(arm))}
    codes = list(range(x.shape[1] - 3, x.shape[1]))
    booster = lgb.train(params, lgb.Dataset(x, arm, params=params, categorical_feature=codes), num_boost_round=ROUNDS)
    return np.asarray(booster.predict(at, num_threads=threads(len(at))))
