"""Young rows: what a cohort's rate is worth before it can be counted, and whether a model gains by training on them.

    python benchmarks/maturity.py [rates | training] [--parcels N] [--seeds N] [--write]

Both parts make simulated shops and look at each as it was known on several days of its year. `plain` is the plain shop;
in `fresh` goods and carriers go wrong shortly before those days, so that only young rows can show it. `--write` puts
the tables into docs/maturity.md.

    rates      rate of what was decided in the last four weeks: counted so far, by a life table of the last four weeks,
               and by `training.maturity.matured_rate`, against the true mean probability of that very cohort.
               The status is 1 if the error of `matured_rate` for `returned`, on average over days and shops, is not
               under a tenth of that of counting so far.
    training   the same trees on the mature rows, and on the young ones too, in several ways; judged on what is decided
               in the six weeks after, against labels and true probabilities. Differences are paired with leaving them
               out; intervals are 95 % by Student's t over shops and days.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from features.arrays import DAY, Array  # noqa: E402
from features.dataset import Dataset  # noqa: E402
from features.matrix import FeatureSet, whole  # noqa: E402
from features.snapshot import Facts  # noqa: E402
from features.vocabulary import TARGETS as UNITS  # noqa: E402
from training.labels import Labels, labels  # noqa: E402
from training.maturity import FOUR_WEEKS, News, matured_rate, news  # noqa: E402
from training.models import MODELS, PLATT_PRIOR, fit  # noqa: E402
from training.splits import Fold, rolling, split  # noqa: E402
from training.world import Fault, Scenario, generate  # noqa: E402
from training.world.oracle import TARGETS, Oracle  # noqa: E402

OUT = ROOT / "benchmarks" / "out" / "maturity"
PAGE = ROOT / "docs" / "maturity.md"
END = "<!-- /measured -->"

FRESH = date(2025, 8, 18)
FAULTS = (
    Fault("glossy", "misleads", "apparel is shown better than it is", {"category": "apparel"}, FRESH, 0.5),
    Fault("brand", "misleads", "solano promises more than it keeps", {"brand": "solano"}, FRESH, 0.6),
    Fault("passes_by", "skips", "corvus passes by", {"carrier": "corvus"}, FRESH, 0.25),
    Fault("no_fill", "fill", "Dortmund saves on void fill", {"node": "dortmund"}, FRESH, 2.0),
)
SCENARIOS: dict[str, tuple[Scenario, tuple[str, ...]]] = {
    "plain": (Scenario(), ("2025-06-17", "2025-08-15", "2025-10-13")),
    "fresh": (replace(Scenario(), name="fresh", faults=FAULTS), ("2025-09-02", "2025-09-11", "2025-09-22")),
}
"""Each with the days on which a model is trained."""

RATE_DAYS = tuple(str(d)[:10] for d in pd.date_range("2025-05-05", "2025-11-20", freq="22D"))
"""Days on which the rate of the last four weeks is asked for: one of every weekday."""

SIX_WEEKS = 42 * DAY
TRAINED = ("returned", "failed_attempt", "damaged", "undelivered")
SHARE = 0.1
"""Of the naive error: more of it, and the benchmark fails."""

Say = Callable[[str], None]
Truth = dict[str, pd.DataFrame]
"""The oracle's probabilities of parcels and lines, by id."""


# ---- rates


def rates(facts: Facts, truth: Truth, target: str, day: str) -> Iterator[dict[str, Any]]:
    """The rate of what was decided in the four weeks before a day, by each way to tell it."""
    units, at = labels(facts, target), np.datetime64(day, "us")
    found = matured_rate(facts, units, at)
    every = news(facts, units, at)
    own = every.where[units.decided_at[every.where] >= at - FOUR_WEEKS]
    true = truth[units.unit][target].reindex(units.unit_id[own]).mean()
    final, judged = units.known(facts.snapshot.as_of)
    ways = {"counted so far": (found.naive, np.nan, np.nan), "matured_rate": (found.rate, found.low, found.high)}
    if target == "returned":
        ways["life table"] = (life_table(units, at, facts.snapshot.settings.return_window_days), np.nan, np.nan)
    old = units.known(at)[1] & (units.matures_at >= at - FOUR_WEEKS)
    if old.any():
        ways["what matured last"] = (units.known(at)[0][old].mean(), np.nan, np.nan)
    for way, (value, low, high) in ways.items():
        yield {
            "target": target,
            "day": day,
            "way": way,
            "units": found.units,
            "true": true,
            "final": final[own[judged[own]]].mean(),
            "error": value - true,
            "covers": low <= true <= high if np.isfinite(low) else np.nan,
            "wide": high - low,
        }


def life_table(units: Labels, at: np.datetime64, window: int) -> float:
    """Kaplan and Meier's share of lines back within the window, from what was at risk in the last four weeks.

    By age since the door, in days: those whose age fell on that day within the four weeks, and those of them sent back.
    A line enters at the age it had when the four weeks began, the old way to be of today with a window longer than it.
    """
    outcome = units.outcome
    told = np.full(len(outcome.matures_at), np.datetime64("NaT", "us"))
    told[outcome.fact_unit[::-1]] = outcome.fact_at[::-1]
    told = told[units.row]
    door = units.matures_at - window * DAY
    risk = (units.decided_at < at) & (door < at)
    start, stop = np.maximum(door, at - FOUR_WEEKS), np.minimum(units.matures_at, at)
    back = told < stop
    stop = np.where(back, told, stop)
    risk &= start < stop
    first, last = (start[risk] - door[risk]) / DAY, (stop[risk] - door[risk]) / DAY
    event = np.floor(last[back[risk]]).astype(int)
    left = 1.0
    for day in range(window + 1):
        exposed = (np.clip(last, day, day + 1) - np.clip(first, day, day + 1)).sum()
        left *= np.exp(-np.count_nonzero(event == day) / exposed) if exposed else 1.0
    return 1 - left


# ---- training


@dataclass(frozen=True)
class Rows:
    """What one way trains on.

    Attributes:
        at: (n,) positions in the labels.
        slope: gradient and curvature of the loss by the raw score, each (n,); None for LightGBM's own log loss.
        label, weight: (n,) where `slope` is None.
    """

    at: Array
    slope: Callable[[Array], tuple[Array, Array]] | None = None
    label: Array | None = None
    weight: Array | None = None

    def gradient(self, raw: Array) -> tuple[Array, Array]:
        if self.slope is not None:
            return self.slope(raw)
        p, weight = _logistic(raw), 1.0 if self.weight is None else self.weight
        return weight * (p - self.label), weight * p * (1 - p)


def ways(facts: Facts, units: Labels, fold: Fold, end: np.datetime64) -> dict[str, Rows]:
    """Every way to train, by name."""
    every = news(facts, units, fold.at)
    told = _first(units, facts, fold.at)
    window = facts.snapshot.settings
    days = window.return_window_days if units.unit == "line" else window.lost_after_days
    final = units.known(end)[0]
    young = every.where[~every.mature]
    both = np.concatenate([fold.train, young])
    return {
        "left out": Rows(fold.train, label=fold.train_label.astype(np.float64)),
        "censoring weights": censoring(units, fold, every, told, days),
        "hazard": Rows(every.where, hazard(units, fold, every, told)),
        "news": Rows(every.where, every.slopes),
        "foreseen": Rows(both, label=np.concatenate([fold.train_label, final[young]]).astype(np.float64)),
    }


def _first(units: Labels, facts: Facts, at: np.datetime64) -> Array:
    """When the label was first told by a fact (that of `undelivered` either way), NaT where it was not before `at`."""
    outcome = units.outcome
    out = np.full(len(outcome.matures_at), np.datetime64("NaT", "us"))
    tells = (outcome.fact_at < at) & ((outcome.fact_value == 1) | (units.target == "undelivered"))
    out[outcome.fact_unit[tells][::-1]] = outcome.fact_at[tells][::-1]
    return out[units.row]


def censoring(units: Labels, fold: Fold, every: News, told: Array, days: int) -> Rows:
    """Rows whose label is known, each weighted by 1 / P(it would have been, however old) (Vock et al., 2016).

    When a unit is censored depends on nothing but when it was decided, so Kaplan and Meier's estimate is the share of
    units that are old enough.
    """
    age = days - (units.matures_at[every.where] - fold.at) / DAY
    age = np.sort(np.minimum(age, days))
    took = days - (units.matures_at - told) / DAY  # clock of the label from 0 to `days`
    heard = ~every.mature & ~np.isnat(told[every.where])
    at = np.concatenate([every.where[every.mature], every.where[heard]])
    took = np.where(np.isnat(told[at]), days, np.clip(took[at], 0, days))
    observed = 1 - np.searchsorted(age, took - 1e-9) / len(age)
    label = np.concatenate([units.known(fold.at)[0][every.where[every.mature]], every.happened[heard]])
    return Rows(at, label=label.astype(np.float64), weight=1 / observed)


def hazard(units: Labels, fold: Fold, every: News, told: Array) -> Callable[[Array], tuple[Array, Array]]:
    """P(known to have happened by age a) = 1 - (1 - p) ** G(a): proportional hazards, one row per unit.

    G is the share of what happens in the end that is known by that age, from mature units.
    """
    at, mature, y = every.where, every.mature, every.happened.astype(np.float64)
    left = (units.matures_at - told) / DAY
    ever = left[at[mature & every.happened]]
    heard = np.sort(ever[~np.isnan(ever)])  # what no fact ever told (a lost parcel) was known when the time was up
    exposure = (len(heard) - np.searchsorted(heard, (units.matures_at[at] - fold.at) / DAY)) / max(1, len(ever))
    over = mature | (~every.happened & (~np.isnat(told[at])))  # delivered: it is no longer at risk of never being so
    g = np.clip(np.where(over, 1.0, exposure), 1e-3, 1.0)

    def slope(raw: Array) -> tuple[Array, Array]:
        p = np.clip(_logistic(raw), 1e-6, 1 - 1e-6)
        kept = (1 - p) ** g
        pull = g * p * kept / (1 - kept)
        curve = np.where(y == 1, pull * (g * p / (1 - kept) - (1 - p)), g * p * (1 - p))
        return np.where(y == 1, -pull, g * p), np.maximum(curve, 1e-6)

    return slope


def _logistic(raw: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(raw, -500, 500))))


def level(rows: Rows, raw: Array, prior: float = 0.0) -> float:
    """What is added to raw scores to have the least loss over the rows, drawn towards 0."""
    at = 0.0
    for _ in range(50):
        gradient, curve = rows.gradient(raw + at)
        step = (gradient.sum() + prior * at) / max(1e-9, curve.sum() + prior)
        at -= float(np.clip(step, -2, 2))
        if abs(step) < 1e-10:
            break
    return at


def train(matrix: Array, rows: Rows, params: dict[str, Any], trees: int, slope: float) -> Array:
    """Fit the trees of one way and calibrate them on its rows: log-odds of every row of the matrix."""
    mine, start = matrix[rows.at], 0.0
    if rows.slope is None:
        booster = lgb.train(params, lgb.Dataset(mine, rows.label, weight=rows.weight), num_boost_round=trees)
    else:
        start = level(rows, np.zeros(len(mine)))
        data = lgb.Dataset(mine, np.zeros(len(mine)), init_score=np.full(len(mine), start))
        own = {**params, "objective": lambda raw, _: rows.gradient(raw)}
        booster = lgb.train(own, data, num_boost_round=trees)
    raw = slope * (start + np.asarray(booster.predict(matrix, raw_score=True)))
    return np.asarray(raw + level(rows, raw[rows.at]))


@dataclass(frozen=True)
class Size:
    """What all ways share: features, LightGBM's parameters, number of trees and the slope of the calibration."""

    columns: Array
    params: dict[str, Any]
    trees: int
    slope: float


def size(facts: Facts, units: Labels, matrix: Array, features: FeatureSet, at: np.datetime64) -> Size:
    """As the product chooses them on the mature rows of a day."""
    fold = split(units, at, facts.snapshot.as_of)
    label = np.full(len(units), -1, dtype=np.int8)
    label[fold.train] = fold.train_label
    mine = FeatureSet.for_target(units.target, facts.snapshot.settings)
    columns = np.array([features.names.index(n) for n in mine.names])
    seen = matrix[units.row[fold.train]][:, columns]
    same = (seen == seen[0]) | (np.isnan(seen) & np.isnan(seen[0]))
    useful = mine.only(~same.all(axis=0))
    rows = matrix[np.ix_(units.row, columns[~same.all(axis=0)])]
    fitted = fit(MODELS[units.target], useful, rows, label, rolling(units, at, 3), seed=0)
    columns = np.array([features.names.index(n) for n in fitted.model.features.names])
    params = {k: v for k, v in fitted.params.items() if k != "num_trees"}
    return Size(columns, params, fitted.params["num_trees"], fitted.model.slope)


def compared(
    facts: Facts, truth: Truth, units: Labels, matrix: Array, by: Size, at: np.datetime64
) -> Iterator[dict[str, Any]]:
    """Each way, trained on one day and judged by what is decided in the six weeks after."""
    end = facts.snapshot.as_of
    fold = split(units, at, end)
    test = fold.test[units.decided_at[fold.test] < at + SIX_WEEKS]
    label = units.known(end)[0][test]
    rows = matrix[np.ix_(units.row, by.columns)]
    true = truth[units.unit][units.target].reindex(units.unit_id[test]).to_numpy()
    every = news(facts, units, at)
    lately = every.only(every.recent)
    for way, own in ways(facts, units, fold, end).items():
        started = time.perf_counter()
        raw = train(rows, own, by.params, by.trees, by.slope)
        seconds = time.perf_counter() - started
        figures = {"rows": len(own.at), "seconds": seconds, "MB": rows[own.at].nbytes / 1e6}
        yield {"way": way, **judged(raw[test], label, true), **figures}
        if way in ("left out", "news"):
            add = level(Rows(lately.where, lately.slopes), raw[lately.where], PLATT_PRIOR)
            yield {"way": f"{way}, recent level", **judged(raw[test] + add, label, true), **figures}


def judged(raw: Array, label: Array, true: Array) -> dict[str, float]:
    """Figures of log-odds (n,) by labels and by true probabilities."""
    p = np.clip(_logistic(raw), 1e-9, 1 - 1e-9)
    decile = np.argsort(np.argsort(p, kind="stable"), kind="stable") * 10 // len(p)
    error = [np.mean((p - true)[decile == k]) for k in range(10)]
    return {
        "log loss": -np.mean(np.where(label == 1, np.log(p), np.log1p(-p))),
        "log loss, true": -np.mean(true * np.log(p) + (1 - true) * np.log1p(-p)),
        "AUC": roc_auc_score(label, p),
        "level": 100 * (p.mean() - true.mean()),
        "deciles": 100 * float(np.sqrt(np.mean(np.square(error)))),
    }


# ---- tables


def with_interval(values: Array, digits: int, factor: float = 1.0, sign: bool = True) -> str:
    """Mean of independent values and its 95 % interval."""
    values = factor * np.asarray(values, dtype=np.float64)
    mean = values.mean()
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    how = f"{'+' if sign else ''}.{digits}f"
    return f"{mean:{how}}" + (f" [{mean - half:{how}}, {mean + half:{how}}]" if half else "")


def table(rows: list[list[str]]) -> str:
    """Rows of text as a Markdown table; the first is its head."""
    wide = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(r, wide, strict=True)) + " |" for r in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in wide) + "|", *lines[1:]])


RATE_WAYS = ("counted so far", "what matured last", "life table", "matured_rate")


def rates_text(found: pd.DataFrame, parcels: int) -> str:
    """Tables of the rates."""
    shops, days = found.seed.nunique(), found.day.nunique()
    out = [f"{parcels:,} parcels per shop, {shops} shops and {days} days each; SIMULATED. Errors in percentage points."]
    head = ["scenario", "target", "true rate", *RATE_WAYS, "off, matured_rate", "covers", "of naive error"]
    rows = [head]
    for (scenario, target), own in found.groupby(["scenario", "target"], sort=False):
        by = dict(list(own.groupby("way")))
        mine = by["matured_rate"]
        per_shop = {w: 100 * by[w].groupby("seed").error.mean() for w in RATE_WAYS if w in by}
        rows.append(
            [
                str(scenario),
                str(target),
                f"{100 * mine['true'].mean():.2f}",
                *(with_interval(per_shop[w], 2) if w in per_shop else "-" for w in RATE_WAYS),
                f"{100 * mine.error.abs().mean():.2f}",
                f"{100 * mine.covers.mean():.0f} %",
                f"{100 * abs(mine.error.mean() / by['counted so far'].error.mean()):.0f} %",
            ]
        )
    out += ["", "### Error of the last four weeks' rate", "", table(rows)]
    rows = [["scenario", "as of", "true rate", *RATE_WAYS]]
    returned = found[found.target == "returned"]
    for (scenario, day), own in returned.groupby(["scenario", "day"], sort=False):
        by = dict(list(own.groupby("way")))
        cells = [with_interval(by[w].error, 2, 100) if w in by else "-" for w in RATE_WAYS]
        rows.append([str(scenario), str(day), f"{100 * own['true'].mean():.2f}", *cells])
    out += ["", "### Error for `returned`, day by day", "", table(rows)]
    return "\n".join(out)


def rates_failures(found: pd.DataFrame) -> list[str]:
    """What makes the benchmark fail, in words."""
    out = []
    for scenario, own in found[found.target == "returned"].groupby("scenario"):
        naive, ours = (own[own.way == w].error.mean() for w in ("counted so far", "matured_rate"))
        if abs(ours) >= SHARE * abs(naive):
            out.append(
                f"{scenario}: the rate is off by {100 * ours:+.2f} points, counting so far by {100 * naive:+.2f}"
            )
    return out


TRAINING_WAYS = (
    "left out",
    "left out, recent level",
    "censoring weights",
    "hazard",
    "news",
    "news, recent level",
    "foreseen",
)


def training_text(found: pd.DataFrame, parcels: int) -> str:
    """Tables of the ways to train."""
    shops = found.seed.nunique()
    out = [
        f"{parcels:,} parcels per shop, {shops} shops per scenario, trained on {found.day.nunique() // 2} days each; "
        "SIMULATED. Log loss in thousandths of a nat; below 0 is better than leaving out."
    ]
    shown = (
        ("log loss, true", 2, 1000.0, "log loss against the true probability, less that of leaving out"),
        ("log loss", 2, 1000.0, "log loss against labels, less that of leaving out"),
        ("AUC", 2, 100.0, "AUC in hundredths, less that of leaving out (above 0 is better)"),
        ("level", 2, 1.0, "mean predicted less mean true probability, percentage points"),
        ("deciles", 2, 1.0, "predicted less true probability over deciles, rms, percentage points"),
    )
    for what, digits, factor, title in shown:
        rows = [["scenario", "target", "left out", *TRAINING_WAYS[1:]]]
        for (scenario, target), own in found.groupby(["scenario", "target"], sort=False):
            wide = own.pivot_table(index=["seed", "day"], columns="way", values=what)
            paired = what in ("log loss, true", "log loss", "AUC")
            base = wide["left out"] if paired else 0.0
            first = f"{factor * wide['left out'].mean():.{digits}f}"
            if not paired:
                first = with_interval(wide["left out"], digits, factor, what == "level")
            cells = [
                with_interval(wide[w] - base, digits, factor, paired or what == "level") for w in TRAINING_WAYS[1:]
            ]
            rows.append([str(scenario), str(target), first, *cells])
        out += ["", f"### {title[0].upper()}{title[1:]}", "", table(rows)]
    rows = [["target", "", *TRAINING_WAYS]]
    for target, own in found.groupby("target", sort=False):
        mean = own.groupby("way")[["rows", "seconds", "MB"]].mean()
        for what, how in (("rows", ",.0f"), ("seconds", ".1f"), ("MB", ".1f")):
            rows.append([str(target), what, *(format(mean.loc[w, what], how) for w in TRAINING_WAYS)])
    out += ["", "### Rows, seconds to fit, size of the matrix", "", table(rows)]
    return "\n".join(out)


# ---- all of it


PARTS = {"rates": (40_000, 5), "training": (30_000, 2)}
"""Parcels and shops per scenario of each part."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", nargs="?", choices=tuple(PARTS), help="which (default both)")
    parser.add_argument("--parcels", type=int, help="parcels of each shop (default 40000, for training 30000)")
    parser.add_argument("--seeds", type=int, help="shops per scenario (default 5, for training 2)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/maturity.md")
    args = parser.parse_args()
    wrong: list[str] = []
    for part, (parcels, seeds) in PARTS.items():
        if args.part in (None, part):
            parcels = args.parcels or parcels
            found = measured(part, parcels, args.seeds or seeds)
            text = (rates_text if part == "rates" else training_text)(found, parcels)
            print(text)
            if args.write:
                write(text, part)
            wrong += rates_failures(found) if part == "rates" else []
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


def measured(part: str, parcels: int, seeds: int) -> pd.DataFrame:
    """Every figure of one part, a row each."""
    started, found = time.monotonic(), []
    OUT.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for name, (scenario, days) in SCENARIOS.items():
            folder = Path(tempfile.mkdtemp(dir=OUT))

            def say(what: str, at: str = f"{name}, seed {seed}") -> None:
                print(f"[{time.monotonic() - started:6.0f} s] {at}: {what}", file=sys.stderr, flush=True)

            try:
                shop = generate(folder / "shop", parcels=parcels, seed=seed, scenario=scenario)
                say("asking the oracle")
                oracle = Oracle.open(shop)
                truth = {"line": oracle.lines().set_index("line_id"), "parcel": oracle.parcels().set_index("parcel_id")}
                facts = Facts.of(Dataset.open(shop))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            every = all_rates(facts, truth, say) if part == "rates" else all_trainings(facts, truth, days, say)
            found += [{"scenario": name, "seed": seed, **f} for f in every]
    return pd.DataFrame(found)


def all_rates(facts: Facts, truth: Truth, say: Say) -> Iterator[dict[str, Any]]:
    """`rates` of every target and day."""
    for target in TARGETS:
        say(f"rates of {target}")
        for day in RATE_DAYS:
            yield from rates(facts, truth, target, day)


def all_trainings(facts: Facts, truth: Truth, days: tuple[str, ...], say: Say) -> Iterator[dict[str, Any]]:
    """`compared` of every target and day."""
    for unit in ("line", "parcel"):
        wanted = [n for n in TRAINED if UNITS[n].unit == unit]
        features = FeatureSet.union([FeatureSet.for_target(n, facts.snapshot.settings) for n in wanted])
        matrix = whole(facts, features)
        for target in wanted:
            units = labels(facts, target)
            by = size(facts, units, matrix, features, np.datetime64(days[0], "us"))
            for day in days:
                say(f"{target}, {day}")
                for found in compared(facts, truth, units, matrix, by, np.datetime64(day, "us")):
                    yield {"target": target, "day": day, **found}


def write(text: str, block: str) -> None:
    """Put tables into the page, between the marks of their block."""
    start = f"<!-- measured: {block} -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(start)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{PAGE} has no place for the tables: {start} ... {END}")
    PAGE.write_text(f"{before}{start}\n\n{text}\n\n{mark}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
