"""Doorstep held against the truth of simulated shops: what it reaches of what can be reached, and where it errs.

    python benchmarks/truth.py [--scenario NAME ...] [--seeds 3] [--parcels 30000] [--write BLOCK] [--json FILE]

For each scenario and seed it makes a shop, trains on its tables as anybody would, and asks the oracle. Everything is
measured on the holdout, decisions the models have not learned from. Figures are means over the seeds; intervals hold
95 % of that mean's bootstrap resamples (of the parcels of each holdout). `--write` puts the tables into docs/truth.md.
The status is 1 if the truth does not agree with what happened (so nothing else here means anything), or if something is
found in the shop `null`, where there is nothing.

    agreement   largest z over all causes and targets, of the sum of (happened - true probability) * cause
    reach       share of the oracle's lift over the base rate that the model reaches, in AUC and in log loss
    calibration mean predicted less mean true probability: over deciles (root mean square), and in rare slices
    teams       the explanation's team shares against the oracle's: rank correlation, how often the top team is right
    packages    predicted against true change of damage when only the package changes: by the trees, with and without
                monotone signs, by crude rates, and by the adjusted lever that is served
    reasons     log loss of the reasons of returns, fitted through inspections and as stated; the mix of true reasons
    maturity    error of the latest four weeks' rate, counted so far, and counted from mature cohorts only
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from features.arrays import Array  # noqa: E402
from features.dataset import Dataset  # noqa: E402
from features.matrix import values  # noqa: E402
from features.rows import Rows  # noqa: E402
from features.snapshot import Facts  # noqa: E402
from features.vocabulary import TARGETS as UNITS  # noqa: E402
from features.vocabulary import TEAMS  # noqa: E402
from serving.bundle import Bundle  # noqa: E402
from serving.score import Scoring  # noqa: E402
from training.labels import Labels, labels  # noqa: E402
from training.models import MODELS  # noqa: E402
from training.pipeline import cut, fit_on, matrices_of, train, train_reasons  # noqa: E402
from training.splits import split  # noqa: E402
from training.world import Scenario, generate, shipped  # noqa: E402
from training.world.oracle import TARGETS, Oracle  # noqa: E402
from training.world.scenario import PACKAGE_TYPES  # noqa: E402

OUT = ROOT / "benchmarks" / "out" / "truth"
PAGE = ROOT / "docs" / "truth.md"
REPLICATES = 200
EXPLAINED = 1_000
"""Units per target whose team shares are compared."""
REFERENCES = 16
PACKED = 3_000
"""Parcels that are packed anew in every package."""
FOUR_WEEKS = np.timedelta64(28, "D")
TOO_MUCH = 4.5
"""A z that chance reaches in one of a thousand runs: there are about 150 pairs of a cause and a target in each."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """One figure of one run.

    Attributes:
        table: which table it belongs to.
        target: name of the target.
        what: name of the figure.
        value: the figure.
        resampled: bootstrap replicates of it, may be empty.
    """

    table: str
    target: str
    what: str
    value: float
    resampled: Array


@dataclass(frozen=True)
class Run:
    """One shop, trained, and its truth."""

    scenario: Scenario
    facts: Facts
    oracle: Oracle
    bundle: Bundle
    holdout: pd.DataFrame
    """unit_id, decided_at, target, label, probability, group (the parcel's number: lines go together), true."""
    reasons: pd.DataFrame
    """The returns of the holdout: unit_id, and the share of each reason."""
    mix: dict[str, dict[str, float]]
    """Per reason the share that is stated, and the corrected one with its interval."""


def prepare(folder: Path, scenario: Scenario, parcels: int, seed: int, say: Say) -> Run:
    """Make a shop, train on it and ask the oracle about the holdout."""
    dataset = Dataset.open(generate(folder / "shop", parcels=parcels, seed=seed, scenario=scenario))
    result = train(dataset, out=folder / "run", seed=0, progress=say)
    return Run(
        scenario,
        Facts.of(dataset),
        oracle := Oracle.open(folder / "shop"),
        Bundle.load(result.bundle_dir),
        with_truth(result.holdout, oracle),
        result.reasons if result.reasons is not None else pd.DataFrame({"unit_id": []}),
        result.metrics["return_reason"].get("mix", {}),
    )


def with_truth(holdout: pd.DataFrame, oracle: Oracle) -> pd.DataFrame:
    """The holdout with the true probability of each row, and what is resampled together."""
    parcels, lines = oracle.parcels().set_index("parcel_id"), oracle.lines().set_index("line_id")
    parts = []
    for target, rows in holdout.groupby("target", sort=False):
        truth = (lines if target == "returned" else parcels)[str(target)]
        parcel = rows.unit_id if target != "returned" else rows.unit_id.map(lines.parcel_id)
        parts.append(rows.assign(true=rows.unit_id.map(truth), group=pd.factorize(parcel)[0]))
    return pd.concat(parts, ignore_index=True)


# ---- what is measured


def agreement(facts: Facts, oracle: Oracle) -> Iterator[Found]:
    """Whether the probabilities are those of what was drawn: nothing may be left that goes with any cause.

    Under the true probabilities p, the sum of (y - p) * x over all mature units has mean 0 and variance
    sum(p (1 - p) x^2) for every cause x: its z is standard normal. Where the truth and what happened go by different
    equations, a sign turned round in one of them say, it is not. (Whether the signs are those a logistician would
    expect is another question, for the tests of the world.)

    Raises:
        ValueError: a unit is not in the truth, or a probability or a cause is no number.
    """
    true = {"line": oracle.lines().set_index("line_id"), "parcel": oracle.parcels().set_index("parcel_id")}
    for target in TARGETS:
        unit = UNITS[target].unit
        units = labels(facts, target)
        label, mature = units.known(facts.snapshot.as_of)
        truth = true[unit]
        at = truth.index.get_indexer(pd.Index(units.unit_id[mature]))
        p = truth[target].to_numpy()[at]
        if (at < 0).any() or not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"the truth about {target} lacks units, or holds what is no probability")
        causes = oracle.causes(unit).iloc[at].assign(everything=1.0)
        left, spread = label[mature] - p, p * (1 - p)
        z = {}
        for name, x in causes.astype(np.float64).items():
            x = x.to_numpy()
            x = np.clip(x, *np.quantile(x, (0.001, 0.999)))  # a few units must not carry the sum
            x = x - (x.mean() if name != "everything" else 0)
            if x.any():
                z[name] = float((left * x).sum() / np.sqrt((spread * x**2).sum()))
                if not np.isfinite(z[name]):
                    raise ValueError(f"{name}: a cause of {target} is no number")
        worst = max(z, key=lambda name: abs(z[name]))
        yield Found("agreement", target, worst, abs(z[worst]), np.empty(0))


def reach(holdout: pd.DataFrame, seed: int) -> Iterator[Found]:
    """AUC and log loss of the model, of the oracle, and the share of the lift."""
    for target, rows in holdout.groupby("target", sort=False):
        y, p, true = rows.label.to_numpy(), rows.probability.to_numpy(), rows.true.to_numpy()

        places = [np.unique(q, return_inverse=True)[1] for q in (p, true)]
        losses = [log_loss(y, q) for q in (p, true)]

        def figures(weight: Array, y: Array = y, places: list[Array] = places, losses: list[Array] = losses) -> Array:
            model, best = (auc(y, place, weight) for place in places)
            base = np.average(y, weights=weight)
            ours, truth = (np.average(loss, weights=weight) for loss in losses)
            alone = -(base * np.log(base) + (1 - base) * np.log1p(-base))
            # Where nothing can be reached, as in the shop without causes, there is no share of it.
            shares = [(model - 0.5) / (best - 0.5) if best > 0.51 else np.nan]
            shares.append((alone - ours) / (alone - truth) if best > 0.51 else np.nan)
            return np.array([model, best, shares[0], ours, truth, shares[1]])

        names = ("AUC", "AUC, oracle", "reached of AUC", "log loss", "log loss, oracle", "reached of log loss")
        yield from _bootstrapped("reach", str(target), names, figures, rows.group.to_numpy(), seed)


def calibration(run: Run, seed: int) -> Iterator[Found]:
    """Predicted against true probability, in percentage points."""
    for target, rows in run.holdout.groupby("target", sort=False):
        error = 100 * (rows.probability - rows.true).to_numpy()
        decile = (rows.probability.rank(method="first").to_numpy() - 1) * 10 // len(rows)
        slices = {name: hit for name, hit in _slices(run, str(target), rows).items() if hit.sum() >= 100}
        names, true, hits = ("rate", "deciles, rms", *slices), rows.true.to_numpy(), tuple(slices.values())

        def figures(
            weight: Array,
            y: Array = true,
            error: Array = error,
            decile: Array = decile,
            hits: tuple[Array, ...] = hits,
        ) -> Array:
            by_decile = [np.average(error[decile == k], weights=weight[decile == k]) for k in range(10)]
            inside = [np.average(error[h], weights=weight[h]) if weight[h].any() else np.nan for h in hits]
            return np.array([100 * np.average(y, weights=weight), np.sqrt(np.mean(np.square(by_decile))), *inside])

        yield from _bootstrapped("calibration", str(target), names, figures, rows.group.to_numpy(), seed)


def _slices(run: Run, target: str, rows: pd.DataFrame) -> dict[str, Array]:
    """Rows of a product new in the last 30 days, of a lane with fewer than 50 parcels so far, and packed in a peak."""
    tables, zone = run.facts.tables, run.scenario.calendar.timezone
    listings = pd.DataFrame({c: tables["listings"][c] for c in ("sku", "known_at")})
    first = listings.groupby("sku").known_at.min()
    lines = pd.DataFrame({c: tables["order_lines"][c] for c in ("line_id", "parcel_id", "sku")})
    parcels = pd.DataFrame(
        {c: tables["parcels"][c] for c in ("parcel_id", "order_id", "carrier", "service", "packed_at")}
    )
    orders = pd.DataFrame({c: tables["orders"][c] for c in ("order_id", "destination_region")})
    parcels = parcels.merge(orders, on="order_id").sort_values("packed_at", kind="stable")
    lane = parcels.groupby(["carrier", "service", "destination_region"])
    parcels["rare lane"] = lane.cumcount() < 50
    packed = parcels.packed_at.dt.tz_localize("UTC").dt.tz_convert(zone).dt.tz_localize(None)
    peaks = run.scenario.calendar.peaks
    parcels["peak"] = np.any([(packed >= str(a)) & (packed < str(b) + " 23:59:59") for a, b, _ in peaks], axis=0)
    parcels = parcels.set_index("parcel_id")
    lines["age"] = lines.parcel_id.map(parcels.packed_at) - lines.sku.map(first)
    lines["new product"] = lines.age < pd.Timedelta(days=30)
    if target == "returned":
        own = lines.set_index("line_id").loc[rows.unit_id]
        parcel = own.parcel_id
        new = own["new product"].to_numpy()
    else:
        parcel = rows.unit_id
        new = parcel.map(lines.groupby("parcel_id")["new product"].any()).fillna(False).to_numpy(dtype=bool)
    return {"new product": new, **{name: parcels[name].loc[parcel].to_numpy() for name in ("rare lane", "peak")}}


def teams(run: Run, seed: int) -> Iterator[Found]:
    """Team shares of explanations against the oracle's: over all units, and over the tenth with the highest risk."""
    rng = np.random.default_rng(seed)
    for target, rows in run.holdout.groupby("target", sort=False):
        risky = rows[rows.probability >= rows.probability.quantile(0.9)]
        for words, among in (("", rows), (", riskiest tenth", risky)):
            ids = among.unit_id.to_numpy()[np.sort(rng.choice(len(among), min(EXPLAINED, len(among)), replace=False))]
            true = run.oracle.teams(str(target), list(ids), REFERENCES, seed)[list(TEAMS)].to_numpy()
            ours = _explained(run, str(target), ids)
            rank = np.array([spearman(a, b) for a, b in zip(ours, true, strict=True)])
            top, right = ours.argmax(axis=1), true.argmax(axis=1)
            always = np.bincount(right, minlength=len(TEAMS)).argmax()

            def figures(
                weight: Array, rank: Array = rank, hit: Array = top == right, one: Array = right == always
            ) -> Array:
                return np.array([np.average(x, weights=weight) for x in (rank, hit, one)])

            names = (f"rank correlation{words}", f"top team right{words}", f"always the same team{words}")
            yield from _bootstrapped("teams", str(target), names, figures, np.arange(len(ids)), seed)


def _explained(run: Run, target: str, ids: Array) -> Array:
    """The explanation's points by team, (n, teams)."""
    rows = some(run.facts, ids, UNITS[target].unit)
    explained = dict(Scoring(run.bundle, rows).targets())[target]
    mine = rows.parcel_id if UNITS[target].unit == "parcel" else rows.line_id
    at = pd.Index(mine).get_indexer(pd.Index(ids))
    return np.column_stack([explained.teams[team][at] for team in TEAMS])


def some(facts: Facts, ids: Array, unit: str, **changed: Array) -> Rows:
    """The rows of a few parcels (or of the parcels of a few lines), with some columns of `parcels` changed."""
    tables = facts.tables
    if unit == "line":
        at = pd.Index(tables["order_lines"]["line_id"]).get_indexer(pd.Index(ids))
        ids = pd.unique(tables["order_lines"]["parcel_id"][at])
    parcel = pd.Index(tables["parcels"]["parcel_id"]).get_indexer(pd.Index(ids))
    parcels = {c: v[parcel] for c, v in tables["parcels"].items()} | changed
    order = pd.Index(tables["orders"]["order_id"]).get_indexer(pd.Index(pd.unique(parcels["order_id"])))
    line = np.flatnonzero(pd.Index(tables["order_lines"]["parcel_id"]).isin(ids))
    part = {
        "orders": {c: v[order] for c, v in tables["orders"].items()},
        "parcels": parcels,
        "order_lines": {c: v[line] for c, v in tables["order_lines"].items()},
    }
    return Rows(part, facts.snapshot)


def packages(run: Run, free: Bundle, seed: int) -> Iterator[Found]:
    """Change of P(damaged) when only the package changes: the models' against the true one, in points."""
    if "damaged" not in run.bundle.targets or "damaged" not in free.targets:
        return
    rng = np.random.default_rng(seed)
    ids = run.holdout.unit_id[run.holdout.target == "damaged"].to_numpy()
    ids = ids[np.sort(rng.choice(len(ids), min(PACKED, len(ids)), replace=False))]
    truth = run.oracle.packages().set_index("parcel_id").loc[ids]
    potential = truth[list(PACKAGE_TYPES)].to_numpy(dtype=np.float64)
    used = pd.Index(PACKAGE_TYPES).get_indexer(pd.Index(truth.package))
    at = np.arange(len(ids))
    other = np.arange(len(PACKAGE_TYPES)) != used[:, None]
    true = (100 * (potential - potential[at, used][:, None]))[other]
    unit = np.repeat(at, len(PACKAGE_TYPES) - 1)
    crude = crude_rates(run)
    guesses = {"crude rates of packages": (100 * (crude[None, :] - crude[used][:, None]))[other]}
    for words, bundle in (("monotone", run.bundle), ("not monotone", free)):
        model = bundle.targets["damaged"]
        each = []
        for level, name in enumerate(PACKAGE_TYPES):
            changed = {
                "package_type": np.full(len(ids), name, dtype=object),
                "protection_level": np.full(len(ids), float(level)),
            }
            rows = some(run.facts, ids, "parcel", **changed)
            place = pd.Index(rows.parcel_id).get_indexer(pd.Index(ids))
            each.append(model.probability(values(rows, model.features))[place])
        predicted = np.column_stack(each)
        guesses[words] = (100 * (predicted - predicted[at, used][:, None]))[other]
    guesses["adjusted lever"] = _by_lever(run, ids, used)[other]
    for words, guess in guesses.items():

        def figures(weight: Array, guess: Array = guess) -> Array:
            w = weight[unit]
            error = np.sqrt(np.average(np.square(guess - true), weights=w) / np.average(np.square(true), weights=w))
            sign = np.average(np.sign(guess) == np.sign(true), weights=w)
            return np.array([error, np.average(guess * true, weights=w) / np.average(true**2, weights=w), sign])

        names = (f"error, {words}", f"slope, {words}", f"sign right, {words}")
        with np.errstate(invalid="ignore"):
            yield from _bootstrapped("packages", "damaged", names, figures, at, seed)


def _by_lever(run: Run, ids: Array, used: Array) -> Array:
    """Change of P(damaged) in each package by the bundle's lever, (n, packages) in points; 0 where there is none."""
    lever = next((x for x in run.bundle.levers if (x.target, x.column) == ("damaged", "protection_level")), None)
    if lever is None:
        return np.zeros((len(ids), len(PACKAGE_TYPES)))
    rows, model = some(run.facts, ids, "parcel"), run.bundle.targets["damaged"]
    place = pd.Index(rows.parcel_id).get_indexer(pd.Index(ids))
    p = model.probability(values(rows, model.features))[place]
    moderators, odds = lever.moderators(rows)[place], np.log(p) - np.log1p(-p)
    shifts = np.stack([lever.shift(moderators, used, float(k)) for k in range(len(PACKAGE_TYPES))], axis=1)
    return np.asarray(100 * (1 / (1 + np.exp(-(odds[:, None] + shifts))) - p[:, None]))


def crude_rates(run: Run) -> Array:
    """Share of damaged parcels of each package before the holdout, as a spreadsheet would have it."""
    units = labels(run.facts, "damaged")
    start = np.datetime64(run.bundle.meta["holdout_from"].rstrip("Z"))
    label, mature = units.known(start)
    seen = mature & (units.decided_at < start)
    package = pd.Series(run.facts.rows.parcels["parcels", "package_type"][units.row[seen]])
    return pd.Series(label[seen]).groupby(package.to_numpy()).mean().reindex(PACKAGE_TYPES).to_numpy()


def reasons(run: Run, stated: pd.DataFrame | None, seed: int) -> Iterator[Found]:
    """Shares of the reasons against the oracle's, and the mix of true reasons; `stated` is the model of the words."""
    names = list(run.mix)
    if not names:
        return
    ids = run.reasons["unit_id"]
    truth = run.oracle.lines().set_index("line_id").loc[ids, names].to_numpy()
    truth = truth / truth.sum(axis=1, keepdims=True)
    true = run.oracle.returns().set_index("line_id").true_reason.reindex(ids).to_numpy()
    known = np.flatnonzero(np.isin(true, names))
    at = np.array([names.index(r) for r in true[known]])
    base = np.bincount(at, minlength=len(names)) / len(at)
    group = pd.factorize(ids.map(run.oracle.lines().set_index("line_id").parcel_id))[0][known]

    def macro(loss: Array, weight: Array) -> float:
        sums = np.bincount(at, weights=weight * loss, minlength=len(names))
        return float(np.mean(sums / np.maximum(np.bincount(at, weights=weight, minlength=len(names)), 1e-9)))

    def losses(p: Array) -> Array:
        return -np.log(np.clip(p[known, at], 1e-12, 1))

    models = {"corrected": run.reasons[names].to_numpy()}
    if stated is not None:
        models["as stated"] = stated.set_index("unit_id").loc[ids, names].to_numpy()
    best, alone = losses(truth), losses(np.tile(base, (len(ids), 1)))
    # Where nothing can be reached, as in the shop without causes, there is no share of it.
    reachable = float((alone - best).mean()) > 0.02
    for model, p in models.items():
        ours = losses(p)

        def figures(weight: Array, ours: Array = ours) -> Array:
            mean, floor, start = (np.average(x, weights=weight) for x in (ours, best, alone))
            reached = (start - mean) / (start - floor) if reachable else np.nan
            every = [macro(x, weight) for x in (ours, best, alone)]
            evenly = (every[2] - every[0]) / (every[2] - every[1]) if reachable else np.nan
            return np.array([mean, floor, start, reached, *every, evenly])

        what = ("log loss", "log loss, oracle", "log loss, mix alone", "reached of log loss")
        words = (*what, *(f"macro {w}" for w in what[:3]), "macro, reached of log loss")
        yield from _bootstrapped("reasons", model, words, figures, group, seed)
        column = "corrected" if model == "corrected" else "stated"
        share = np.array([run.mix[name][column] for name in names])
        yield Found(
            "reasons", model, "largest error of the mix, points", 100 * float(np.abs(share - base).max()), np.empty(0)
        )
        if model == "corrected":
            low, high = (np.array([run.mix[name][k] for name in names]) for k in ("low", "high"))
            inside = float(((low <= base) & (base <= high)).mean())
            yield Found("reasons", model, "reasons whose true share is in its interval", inside, np.empty(0))


def as_stated(run: Run) -> pd.DataFrame:
    """The same model of reasons, but for what the inspections tell: words are taken for the truth."""
    facts, target = run.facts, "returned"
    units = {target: labels(facts, target)}
    fold = split(units[target], _start(run), facts.snapshot.as_of)
    matrices = matrices_of(facts, units, lambda _: None)
    with mock.patch("training.evaluate.confusion.LEAST_INSPECTED", sys.maxsize):
        fitted, returns = train_reasons(facts, units[target], matrices, fold, 0, lambda _: None)
    assert fitted is not None
    rows = units[target].row[returns.test]
    shares = fitted.model.shares(cut(matrices, fitted.model.features, rows))
    ids = {"unit_id": units[target].unit_id[returns.test]}
    return pd.DataFrame(ids | dict(zip(fitted.model.reasons, shares.T, strict=True)))


def maturity(run: Run) -> Iterator[Found]:
    """The rate of what was decided in the last four weeks, in points of error against its true mean."""
    end = run.facts.snapshot.as_of
    truth = {"line": run.oracle.lines().set_index("line_id"), "parcel": run.oracle.parcels().set_index("parcel_id")}
    for target in TARGETS:
        units = labels(run.facts, target)
        label, mature = units.known(end)
        true = truth[UNITS[target].unit][target].loc[units.unit_id].to_numpy()
        recent = units.decided_at >= end - FOUR_WEEKS
        # So far: what is known to have gone wrong among all that could have; who is young counts as good.
        could = recent & ~np.isnat(units.matures_at) if target == "returned" else recent
        so_far = np.count_nonzero(_happened(units, label, mature, end) & could) / np.count_nonzero(could)
        matured = mature & (units.matures_at >= end - FOUR_WEEKS)
        actual = 100 * true[recent].mean()
        yield Found("maturity", target, "true rate", actual, np.empty(0))
        yield Found("maturity", target, "error, counted so far", 100 * so_far - actual, np.empty(0))
        if matured.any():
            error = 100 * label[matured].mean() - actual
            yield Found("maturity", target, "error, mature cohorts only", error, np.empty(0))


def _happened(units: Labels, label: Array, mature: Array, end: np.datetime64) -> Array:
    """Units of which it is known that it happened, (n,) bool: as a count of facts would have it, young or not."""
    outcome = units.outcome
    known = outcome.fact_at < end
    told = np.zeros(len(outcome.matures_at), dtype=np.int8)
    told[outcome.fact_unit[known]] = outcome.fact_value[known]
    return np.where(mature, label == 1, told[units.row] == 1)


# ---- statistics


def auc(y: Array, place: Array, weight: Array) -> float:
    """Area under the ROC curve of weighted rows by the rank of their probability; equal ranks count half."""
    positive = np.bincount(place, weights=weight * y)
    negative = np.bincount(place, weights=weight * (1 - y))
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def log_loss(y: Array, p: Array) -> Array:
    """Negative log-likelihood of each row, in nats."""
    p = np.clip(p, 1e-15, 1 - 1e-15)
    return np.asarray(-np.where(y == 1, np.log(p), np.log1p(-p)))


def spearman(a: Array, b: Array) -> float:
    """Rank correlation of two short vectors; ties share their rank; 0 where one is constant."""
    x, y = (pd.Series(v).rank().to_numpy() for v in (np.round(a, 6), np.round(b, 6)))
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _bootstrapped(
    table: str, target: str, names: tuple[str, ...], figures: Callable[[Array], Array], group: Array, seed: int
) -> Iterator[Found]:
    """Figures of weighted rows, and of resamples of their groups."""
    rng = np.random.default_rng(seed)
    value = figures(np.ones(len(group)))
    groups = int(group.max()) + 1
    draws = [rng.multinomial(groups, np.full(groups, 1 / groups))[group] for _ in range(REPLICATES)]
    resampled = np.stack([figures(d.astype(np.float64)) for d in draws])
    for i, name in enumerate(names):
        yield Found(table, target, name, float(value[i]), resampled[:, i])


# ---- all of it


def measure(
    run: Run, free: Bundle | None, seed: int, say: Say = lambda _: None, stated: pd.DataFrame | None = None
) -> list[Found]:
    """Everything about one run; `free` is the model of damage without monotone signs, `stated` see `as_stated`."""
    found = []
    for words, part in (
        ("does the truth agree with what happened", agreement(run.facts, run.oracle)),
        ("what is reached", reach(run.holdout, seed)),
        ("calibration", calibration(run, seed)),
        ("teams", teams(run, seed)),
        ("packages", packages(run, free, seed) if free is not None else iter(())),
        ("reasons", reasons(run, stated, seed)),
        ("maturity", maturity(run)),
    ):
        say(words)
        found += list(part)
    return found


def without_signs(run: Run, say: Say) -> Bundle:
    """The damage model fitted on the same rows, but for its monotone signs."""
    units = {"damaged": labels(run.facts, "damaged")}
    fold = split(units["damaged"], _start(run), run.facts.snapshot.as_of)
    matrices = matrices_of(run.facts, units, say)
    spec = replace(MODELS["damaged"], monotone=False)
    fitted = fit_on(run.facts, units["damaged"], matrices, fold, 0, say, spec)
    return Bundle("0" * 64, run.facts.snapshot.settings, {"damaged": fitted.model}, None, {})


def _start(run: Run) -> np.datetime64:
    """When the run's models would have gone live."""
    return np.datetime64(run.bundle.meta["holdout_from"].removesuffix("Z"))


def summarise(runs: dict[str, list[list[Found]]]) -> pd.DataFrame:
    """One row per scenario, table, target and figure: mean over seeds and the interval of all resamples."""
    rows = []
    for scenario, seeds in runs.items():
        frame = pd.DataFrame([vars(f) for found in seeds for f in found])
        # The cause with the largest z is another one with each seed.
        names = frame["what"].where(frame.table != "agreement", "largest z of any cause")
        for (table, target, what), own in frame.groupby(["table", "target", names], sort=False):
            value = own.value.max() if table == "agreement" else own.value.mean()
            # Replicate by replicate, the mean over the shops: the interval is that of the mean.
            resampled = np.mean(np.stack(own.resampled.tolist()), axis=0)
            resampled = resampled[np.isfinite(resampled)]
            low, high = np.quantile(resampled, (0.025, 0.975)) if len(resampled) else (np.nan, np.nan)
            rows.append((scenario, table, target, what, value, low, high, len(own)))
    return pd.DataFrame(rows, columns=["scenario", "table", "target", "what", "value", "low", "high", "seeds"])


def failures(summary: pd.DataFrame) -> list[str]:
    """What makes the benchmark fail, in words."""
    out = []
    wrong = summary[(summary.table == "agreement") & (summary.value > TOO_MUCH)]
    for row in wrong.itertuples():
        out.append(
            f"{row.scenario}: the truth about {row.target} does not agree with what happened (z {row.value:.1f})"
        )
    null = summary[(summary.scenario == "null") & (summary.what == "AUC")]
    for row in null.itertuples():
        # Five targets are looked at: an interval of 99.5 % each, as wide as 1.43 of the 95 % ones.
        middle, reach = (row.low + row.high) / 2, 1.43 * (row.high - row.low) / 2
        if abs(middle - 0.5) > max(reach, 1e-9):
            out.append(f"null: {row.target} has AUC {row.value:.3f} [{row.low:.3f}, {row.high:.3f}], where nothing is")
    return out


def text(summary: pd.DataFrame, parcels: int) -> str:
    """The summary as sections of Markdown tables, a column per target."""
    seeds = int(summary.seeds.max())
    shops = f"{seeds} shops (seeds 0 to {seeds - 1}) per scenario" if seeds > 1 else "one shop (seed 0) per scenario"
    out = [f"{parcels:,} parcels per shop, {shops}; SIMULATED."]
    for table, (title, figures) in TABLES.items():
        own = summary[summary.table == table]
        if not len(own):
            continue
        targets = [t for t in (*TARGETS, "corrected", "as stated") if t in set(own.target)]
        rows = [["scenario", "", *targets]]
        for scenario in own.scenario.unique():
            for what, show in figures.items():
                mine = own[(own.scenario == scenario) & (own.what == what)].set_index("target")
                if len(mine):
                    cells = [show(mine.loc[t]) if t in mine.index else "-" for t in targets]
                    rows.append([scenario, what, *cells])
        wide = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(r, wide, strict=True)) + " |" for r in rows]
        out += ["", f"### {title}", "", lines[0], "|" + "|".join("-" * (w + 2) for w in wide) + "|", *lines[1:]]
    return "\n".join(out)


def _plain(digits: int, factor: float = 1, unit: str = "", interval: bool = True, sign: bool = False) -> Any:
    def show(row: Any) -> str:
        if not np.isfinite(row.value):
            return "-"
        how = f"{'+' if sign else ''}.{digits}f"
        value, low, high = (format(factor * v, how) for v in (row.value, row.low, row.high))
        return f"{value}{unit}" + (f" [{low}, {high}]" if interval and row.low < row.high else "")

    return show


_PERCENT = _plain(0, 100, " %")
_SIGNED = _plain(2, sign=True)

TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "agreement": ("Does the truth agree with what happened?", {"largest z of any cause": _plain(1, interval=False)}),
    "reach": (
        "Share of the oracle's lift over the base rate that the model reaches",
        {
            "AUC": _plain(3),
            "AUC, oracle": _plain(3, interval=False),
            "reached of AUC": _PERCENT,
            "reached of log loss": _PERCENT,
        },
    ),
    "calibration": (
        "Predicted less true probability, in percentage points",
        {
            "rate": _plain(2, interval=False),
            "deciles, rms": _plain(2),
            "new product": _SIGNED,
            "rare lane": _SIGNED,
            "peak": _SIGNED,
        },
    ),
    "teams": (
        "Team shares of the explanations against the oracle's",
        {
            "rank correlation": _plain(2),
            "top team right": _PERCENT,
            "always the same team": _plain(0, 100, " %", interval=False),
            "rank correlation, riskiest tenth": _plain(2),
            "top team right, riskiest tenth": _PERCENT,
            "always the same team, riskiest tenth": _plain(0, 100, " %", interval=False),
        },
    ),
    "packages": (
        "Change of damage when only the package changes: predicted against true",
        {
            f"{what}, {who}": how
            for who in ("monotone", "not monotone", "crude rates of packages", "adjusted lever")
            for what, how in (("error", _PERCENT), ("slope", _plain(2)), ("sign right", _PERCENT))
        },
    ),
    "reasons": (
        "Reasons of returns: fitted through the inspections, and as stated",
        {
            "reached of log loss": _PERCENT,
            "macro log loss": _plain(3),
            "macro log loss, oracle": _plain(3, interval=False),
            "macro log loss, mix alone": _plain(3, interval=False),
            "macro, reached of log loss": _PERCENT,
            "largest error of the mix, points": _plain(2, interval=False),
            "reasons whose true share is in its interval": _plain(0, 100, " %", interval=False),
        },
    ),
    "maturity": (
        "Rate of the last four weeks' decisions, in percentage points",
        {
            "true rate": _plain(2, interval=False),
            "error, counted so far": _SIGNED,
            "error, mature cohorts only": _SIGNED,
        },
    ),
}
"""Per table its title, and the figures that are shown with how they are written."""

END = "<!-- /measured -->"


def write(summary: pd.DataFrame, parcels: int, block: str) -> None:
    """Put the tables into the page, between the marks of a block."""
    start = f"<!-- measured: {block} -->"
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(start)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{PAGE} has no place for the tables: {start} ... {END}")
    PAGE.write_text(f"{before}{start}\n\n{text(summary, parcels)}\n\n{mark}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = list(shipped())
    parser.add_argument("--scenario", action="append", choices=known, help="which (default all of them)")
    parser.add_argument("--parcels", type=int, default=30_000, help="parcels of each shop (default 30000)")
    parser.add_argument("--seeds", type=int, default=3, help="shops per scenario (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary as JSON")
    parser.add_argument(
        "--write", metavar="BLOCK", help="put the tables into a block of docs/truth.md: all, large, noisy"
    )
    args = parser.parse_args()
    started = time.monotonic()
    runs: dict[str, list[list[Found]]] = {}
    OUT.mkdir(parents=True, exist_ok=True)
    for name in args.scenario or known:
        for seed in range(args.seeds):

            def say(what: str, at: str = f"{name}, seed {seed}") -> None:
                print(f"[{time.monotonic() - started:6.0f} s] {at}: {what}", file=sys.stderr)

            folder = Path(tempfile.mkdtemp(dir=OUT))
            try:
                run = prepare(folder, shipped()[name], args.parcels, seed, say)
                free = without_signs(run, say) if name in ("plain", "confounded_packaging") else None
                stated = as_stated(run) if name in ("plain", "noisy_reasons") else None
                runs.setdefault(name, []).append(measure(run, free, seed, say, stated))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        if args.json:  # after each scenario: an hour's work is not lost with the last one
            args.json.write_text(json.dumps(summarise(runs).to_dict("records"), indent=1) + "\n")
    summary = summarise(runs)
    print(text(summary, args.parcels))
    if args.write:
        write(summary, args.parcels, args.write)
    wrong = failures(summary)
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
