"""One training: from a dataset to a bundle that is evaluated as it will be served, beside everything it has to beat."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import Array
from features.contracts import TABLES
from features.dataset import Dataset
from features.files import ArtefactError
from features.history import key
from features.matrix import FeatureSet, whole
from features.settings import Settings
from features.snapshot import Facts, on_clock
from features.vocabulary import TARGETS
from serving.bundle import REASON, Bundle, TargetModel
from serving.levers import Lever
from serving.reasons import ReasonModel
from serving.windows import NAME as WINDOW
from training.check import require
from training.evaluate import evaluate, evaluation_set
from training.evaluate.baselines import Fold as BaselineFold
from training.evaluate.baselines import fit_baselines
from training.evaluate.confusion import Noise
from training.evaluate.slices import by_slice, slices
from training.labels import Labels, labels, maturity_rule, never_told
from training.leaks import Leak, LeakError, leaks
from training.maturity import TooYoung, matured_rate, news
from training.models import MANY_ROWS, MIN_POSITIVES, MODELS, Fitted, ModelSpec, cores, fit
from training.models.carriers import estimate_carriers
from training.models.levers import estimate_levers
from training.models.params import Params
from training.models.reasons import FittedReasons, Returns, fit_reasons, judge_reasons, returns_of
from training.models.windows import fit_windows, judge_windows
from training.splits import Fold, rolling, split, violations
from training.treated import acted

Progress = Callable[[str], None]

WRITTEN = {"bundle", "evaluation", "holdout.parquet", "metrics.json", "reasons.parquet", "windows.parquet"}
"""What a training leaves in its folder."""

HOLDOUT_SHARE = 0.25
"""Without a date, the latest quarter of the mature units is held out."""

MANY_RETURNS = 20_000
"""The same for returns and their reasons."""

MIN_RETURNS = 100
"""A rolling fold of the reasons has at least so many returns on either side."""

SAMPLE_ROWS = 2_000
"""Rows of the holdout that are explained for the plots and the model card."""


@dataclass
class TargetReport:
    """What became of one target.

    Attributes:
        status: `trained` or `not_trained`.
        why: the reason it was not trained; empty otherwise.
        unit: `parcel` or `line`.
        maturity: the maturity rule in words.
        excluded_immature: units that were too young and of no use, in training and in the holdout.
        params: LightGBM's parameters.
        features: names of the columns.
        dropped: columns that were left out, having nothing, or next to nothing, to say in the training rows.
        holdout: unit_id, decided_at, target, label, probability.
        groups: order of each row of the holdout: rows of one order are not independent.
        sample: feature values of up to `SAMPLE_ROWS` rows of the holdout.
        contributions: shape as `sample`, calibrated log-odds (phi_i).
        baseline_notes: what each baseline is, in words.
    """

    status: str
    why: str
    unit: str
    maturity: str
    excluded_immature: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    holdout: pd.DataFrame | None = None
    groups: Array | None = None
    sample: pd.DataFrame | None = None
    contributions: Array | None = None
    baseline_notes: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainingResult:
    """One training.

    Attributes:
        bundle_dir: folder of the bundle.
        metrics: content of `metrics.json`.
        dataset_name, dataset_fingerprint: what it was trained on.
        settings: the dataset's settings.
        as_of, holdout_from: UTC; labels are as known before `as_of`, training as known before `holdout_from`.
        seed: of everything random.
        simulated: the dataset is a simulated world.
        targets: report per target.
        reasons: the returns of the holdout: unit_id, decided_at, stated, inspected, and the share of each reason.
        windows: the holdout of the windows, see `training.models.windows.judge_windows`; None if none was trained.
    """

    bundle_dir: Path
    metrics: dict[str, Any]
    dataset_name: str
    dataset_fingerprint: str
    settings: Settings
    as_of: pd.Timestamp
    holdout_from: pd.Timestamp
    seed: int
    simulated: bool
    targets: dict[str, TargetReport]
    reasons: pd.DataFrame | None = None
    windows: pd.DataFrame | None = None

    @property
    def evaluation_dir(self) -> Path:
        """Folder of the evaluation set, beside the bundle."""
        return self.bundle_dir.parent / evaluation_set.FOLDER

    @property
    def holdout(self) -> pd.DataFrame:
        """Holdout of all targets: unit_id, decided_at, target, label, probability."""
        frames = [t.holdout for t in self.targets.values() if t.holdout is not None]
        return pd.concat(frames, ignore_index=True) if frames else holdout_frame("late", [], [], [], [])


class TrainingError(ValueError):
    """No target could be trained; the message says why for each."""

    exit_code = 1


def train(
    dataset: Dataset,
    *,
    as_of: pd.Timestamp | str | None = None,
    holdout_from: pd.Timestamp | str | None = None,
    out: str | Path = "runs/latest",
    seed: int = 0,
    trust: Collection[str] = (),
    params: Params | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train every target that the dataset allows.

    Args:
        dataset: the shop's tables.
        as_of: only facts known before are used; default when the extract was taken.
        holdout_from: the model knows nothing of this moment or later, and is judged on what was decided from then on;
            default the latest quarter of the mature units.
        out: folder for `bundle/`, `evaluation/`, `holdout.parquet`, `reasons.parquet`, `windows.parquet` and
            `metrics.json`; an earlier training there is replaced.
        seed: of everything random.
        trust: features that may tell an outcome as well as they like; they are named in `metrics.json`.
        params: how the targets are modelled where it is not as usual, from `doorstep tune` or by hand.
        progress: told what is being done.

    Raises:
        features.settings.DatasetError: the dataset is broken, see `doorstep check`.
        training.leaks.LeakError: a feature alone tells an outcome too well; nothing is written.
        TrainingError: no target can be trained; `metrics.json` is written all the same, but over no earlier bundle.
        ValueError: dates that leave nothing to train on or to judge by.
    """
    say = progress or (lambda _: None)
    out = Path(out)
    _room_for(out)
    say("checking the dataset")
    require(dataset)
    say("joining tables and counting history")
    facts = Facts.of(dataset, moment_in(as_of, dataset.settings))
    end = facts.snapshot.as_of
    units = {name: labels(facts, name) for name in MODELS}
    start = moment_in(holdout_from, dataset.settings)
    if start is None:
        start = default_holdout(units, end)
    if not start < end:
        raise ValueError(
            f"holdout from {start}Z with the data as of {end}Z: the holdout must begin before the data end; "
            "give an earlier --holdout-from or a later --as-of"
        )
    seen = None if params is None else params.seen_until
    if seen is not None and start < on_clock(seen, dataset.settings.timezone):
        raise ValueError(
            f"the parameters were chosen on what was decided before {seen}, and the holdout from {start}Z would judge "
            "them on the same: give a later --holdout-from, or tune with an earlier one"
        )
    result = TrainingResult(
        out / "bundle",
        {},
        dataset.settings.name,
        dataset.fingerprint,
        dataset.settings,
        pd.Timestamp(end, tz="UTC"),
        pd.Timestamp(start, tz="UTC"),
        seed,
        dataset.settings.simulated,
        {},
    )
    matrices = matrices_of(facts, units, say)
    fitted: dict[str, Fitted] = {}
    documents: dict[str, Any] = {}
    say("looking for columns that know the outcome")
    no_leaks(facts, units, matrices, start, end, trust)
    able = {n: u for n, u in units.items() if not why_not(facts, u, split(u, start, end))}

    def read(features: FeatureSet, row: Array) -> Array:
        return cut(matrices, features, row)

    levers, found = estimate_levers(facts, able, read, start, end, seed, say)
    carriers, carried = estimate_carriers(facts, able, read, start, end, seed, say)
    beside = min(len(MODELS), cores())
    say(f"fitting {len(MODELS)} targets, {beside} at a time")

    def fitting(name: str) -> tuple[TargetReport, dict[str, Any], Fitted | None]:
        spec = None if params is None else params.spec(name)
        return _train_target(facts, units[name], matrices, start, end, seed, say, spec, beside, levers)

    for name, (report, document, model) in zip(MODELS, _side_by_side(fitting, MODELS, beside), strict=True):
        result.targets[name], documents[name] = report, document
        if model is not None:
            fitted[name] = model

    window, window_document = fit_windows(facts, units["undelivered"], read, start, end, seed, say)
    if not fitted:  # there will be no bundle to put it in
        window, window_document = None, window_document | {"status": "not_trained", "why": "no target was trained"}
    result.metrics = {
        "dataset": dataset.settings.name,
        "fingerprint": dataset.fingerprint,
        "simulated": dataset.settings.simulated,
        "as_of": f"{end}Z",
        "holdout_from": f"{start}Z",
        "seed": seed,
        "trusted": sorted(trust),
        **({} if params is None else {"params": params.to_json()}),
        "targets": documents,
        WINDOW: window_document,
        "levers": found,
        "carriers": carried,
    }
    fold = split(units["returned"], start, end)
    why, returns = None, None
    if documents["returned"]["status"] == "trained":
        why, returns = train_reasons(facts, units["returned"], matrices, fold, seed, say)
    result.metrics[REASON] = (
        returns.document
        if returns is not None
        else {"status": "not_trained", "why": f"returned is not trained: {documents['returned']['why']}"}
    )
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if fitted:
        say("writing the bundle")
        apart = {"targets", REASON, WINDOW, "levers", "carriers"}
        training = {k: v for k, v in result.metrics.items() if k not in apart} | {
            "not_trained": {n: r.why for n, r in result.targets.items() if r.status == "not_trained"}
        }
        bundle = Bundle.save(
            part / "bundle",
            dataset.settings,
            {n: f.model for n, f in fitted.items()},
            {n: f.booster.model_to_string() for n, f in fitted.items()}
            | ({REASON: why.booster.model_to_string()} if why is not None else {})
            | (window.texts if window is not None else {}),
            training,
            why.model if why is not None else None,
            window.model if window is not None else None,
            levers,
            carriers,
        )
        for name in fitted:
            served, report = bundle.targets[name], result.targets[name]
            _judge(facts, units[name], matrices, served, report, documents[name], start, end, seed, say)
        if bundle.reasons is not None and why is not None and returns is not None:
            say(f"{REASON}: judging on {len(returns.test):,} returns, with baselines and intervals")
            result.reasons, judged = _judge_reasons(
                facts, units["returned"], matrices, bundle.reasons, why.noise, returns, seed
            )
            returns.document.update(judged)
        if window is not None:
            result.windows = judge_windows(facts, units["undelivered"], read, bundle, window, window_document, say)
            result.windows.to_parquet(part / "windows.parquet", index=False)
        say("writing the evaluation set")
        evaluation_set.write(part / evaluation_set.FOLDER, facts, units, matrices, start, end)
    result.holdout.to_parquet(part / "holdout.parquet", index=False)
    if result.reasons is not None:
        result.reasons.to_parquet(part / "reasons.parquet", index=False)
    (part / "metrics.json").write_text(json.dumps(result.metrics, indent=2, allow_nan=False) + "\n")
    if not fitted:
        reasons = "\n".join(f"  {n}: {r.why}" for n, r in result.targets.items())
        if (out / "bundle").exists():  # a mistaken date must not cost the models that are there
            shutil.rmtree(part)
            raise TrainingError(f"no target could be trained; {out} keeps the training that is there\n{reasons}")
        _replace(part, out)
        raise TrainingError(f"no target could be trained; {out / 'metrics.json'} says so too\n{reasons}")
    _replace(part, out)
    return result


def no_leaks(
    facts: Facts,
    units: dict[str, Labels],
    matrices: Matrices,
    start: np.datetime64,
    end: np.datetime64,
    trust: Collection[str],
) -> None:
    """Raise LeakError if a feature of any target knows its outcome."""
    known = {f.name for features, _ in matrices.values() for f in features.features}
    unknown = sorted(set(trust) - known)
    if unknown:
        raise ValueError(f"trust: {unknown[0]!r} is no feature of this dataset; `doorstep feature` lists them")
    found: list[Leak] = []
    for name, u in units.items():
        fold = split(u, start, end)
        if not why_not(facts, u, fold):
            features = FeatureSet.for_target(name, facts.snapshot.settings)
            matrix = cut(matrices, features, u.row[fold.train])
            found += leaks(name, features.features, matrix, fold.train_label, trust)
    if found:
        raise LeakError(found)


def moment_in(given: pd.Timestamp | str | None, settings: Settings) -> np.datetime64 | None:
    """A moment in UTC; without a zone it is on the shop's clock."""
    if given is None:
        return None
    return on_clock(given, settings.timezone)


def default_holdout(units: dict[str, Labels], end: np.datetime64) -> np.datetime64:
    """Midnight from which on the latest quarter of the mature units was decided."""
    mature = [u.decided_at[u.known(end)[1]] for u in units.values()]
    decided = np.concatenate(mature)
    if not len(decided):
        raise TrainingError(
            "no label is mature yet: the extract is younger than the windows in dataset.toml, or tells no outcomes "
            "(`doorstep check` says what is absent)"
        )
    at = np.quantile(decided.astype(np.int64), 1 - HOLDOUT_SHARE).astype(np.int64)
    return at.astype("datetime64[us]").astype("datetime64[D]").astype("datetime64[us]")


def why_not(facts: Facts, units: Labels, fold: Fold) -> str:
    """Why a target cannot be trained, or an empty text."""
    untold = never_told(facts, units.target)
    if untold:
        return untold
    target = TARGETS[units.target]
    positives = int(fold.train_label.sum())
    negatives = len(fold.train_label) - positives
    if min(positives, negatives) < MIN_POSITIVES:
        lacking = "positives" if positives <= negatives else "negatives"
        return (
            f"{min(positives, negatives)} mature {lacking} among {len(fold.train_label)} {target.unit}s before the "
            f"holdout; at least {MIN_POSITIVES} are needed"
        )
    return ""


def period(units: Labels, at: Array, label: Array) -> dict[str, Any]:
    """What is told of one side of a split: rows, positives, and from when to when they were decided."""
    return units.span(at) | {"positives": int(label.sum())}


Matrices = dict[str, tuple[FeatureSet, Array]]
"""Per unit every feature that any of its targets may use, and their values for all rows."""


def matrices_of(facts: Facts, units: dict[str, Labels], say: Progress) -> Matrices:
    """Everything a model may read, computed once: a row's values are as of its decision, whatever is trained on it."""
    out: Matrices = {}
    for unit in ("parcel", "line"):
        if not any(len(u) for u in units.values() if u.unit == unit):
            continue
        wanted = [FeatureSet.for_target(n, facts.snapshot.settings) for n, u in units.items() if u.unit == unit]
        features = FeatureSet.union(wanted)
        say(f"{len(features.features)} features of every {unit}")
        out[unit] = features, whole(facts, features)
    return out


def cut(matrices: Matrices, features: FeatureSet, row: Array) -> Array:
    """The values of some features for some rows, (n, f) float32."""
    every, matrix = matrices[features.unit]
    place = {name: i for i, name in enumerate(every.names)}
    return matrix[np.ix_(row, np.array([place[n] for n in features.names], dtype=np.int64))]


def _train_target(
    facts: Facts,
    units: Labels,
    matrices: Matrices,
    start: np.datetime64,
    end: np.datetime64,
    seed: int,
    say: Progress,
    spec: ModelSpec | None,
    beside: int,
    levers: Sequence[Lever],
) -> tuple[TargetReport, dict[str, Any], Fitted | None]:
    target, settings = TARGETS[units.target], facts.snapshot.settings
    rule = maturity_rule(target.name, settings.return_window_days, settings.lost_after_days)
    fold = split(units, start, end)
    excluded = fold.immature_train + fold.immature_test
    document: dict[str, Any] = {
        "status": "not_trained",
        "why": why_not(facts, units, fold),
        "unit": target.unit,
        "maturity": rule,
        "excluded_immature": excluded,
        "excluded": {"train": fold.immature_train, "holdout": fold.immature_test},
        "train": period(units, fold.train, fold.train_label),
        "holdout": period(units, fold.test, fold.test_label),
        "metrics": {},
        "baselines": {},
    }
    report = TargetReport("not_trained", document["why"], target.unit, rule, excluded)
    if report.why:
        say(f"{target.name}: not trained: {report.why}")
        return report, document, None
    fitted = fit_on(facts, units, matrices, fold, seed, say, spec, beside, levers)
    say(f"{target.name}: fitted")
    report.status = document["status"] = "trained"
    report.params = fitted.params
    report.features = document["features"] = fitted.model.features.names
    every = FeatureSet.for_target(target.name, settings).names
    report.dropped = document["dropped"] = [n for n in every if n not in report.features]
    # Of those too young to judge, what was known before the holdout began has been learned from.
    report.excluded_immature = document["excluded_immature"] = excluded - fitted.young_rows
    document["excluded"]["train"] -= fitted.young_rows
    document["young"] = {"rows": fitted.young_rows, "worth": fitted.young_worth, "level": fitted.recent_level}
    document["recent"] = _recent(facts, units, end)
    if (done := acted(facts, units, fold.at, levers)) is not None:
        document["treated"] = done.to_json()
    document["calibration"] = {
        "slope": fitted.model.slope,
        "intercept": fitted.model.intercept,
        "rows": fitted.calibration_rows,
        "positives": fitted.calibration_positives,
    }
    return report, document, fitted


def _recent(facts: Facts, units: Labels, end: np.datetime64) -> dict[str, Any]:
    """The rate of the last four weeks before the data end, by what is known so far; or why there is none."""
    try:
        return matured_rate(facts, units, end).to_json()
    except TooYoung as error:
        return {"why": str(error).removeprefix(f"{units.target}: ")}


def fit_on(
    facts: Facts,
    units: Labels,
    matrices: Matrices,
    fold: Fold,
    seed: int,
    say: Progress,
    spec: ModelSpec | None = None,
    beside: int = 1,
    levers: Sequence[Lever] | None = None,
) -> Fitted:
    """Fit one target on what a fold trains on, as every training does: the same features, inner folds and calibration.

    Args:
        facts: the joined dataset.
        units: the target's labels.
        matrices: as `matrices_of` makes them.
        fold: what is trained on, and what it will be judged on, which is only checked here.
        seed: of bagging and feature sampling.
        say: told what is being done.
        spec: how it is modelled, default as in `MODELS`.
        beside: how many targets are fitted at the same time.
        levers: what changing a column does, to train on those it was changed for; default estimated here, as of the
            fold, if there are any.

    Raises:
        ValueError: the training rows hold one class only; ask `why_not` first.
    """
    wrong = violations(units.decided_at, units.matures_at, fold.train, fold.test, fold.at)
    if wrong:
        raise AssertionError(f"the split of {units.target} is broken, please report this: {'; '.join(wrong)}")
    every = FeatureSet.for_target(units.target, facts.snapshot.settings)
    train = units.row[fold.train]
    features = every.only(_useful(cut(matrices, every, train)) & _own_history(facts, every, train))
    matrix = cut(matrices, features, units.row)
    many = len(fold.train) >= MANY_ROWS
    inner = rolling(units, fold.at, 1 if many else 3, 0.75 if many else 0.4)
    label = np.full(len(units), -1, dtype=np.int8)
    label[fold.train] = fold.train_label
    spec = spec or MODELS[units.target]
    done = acted(facts, units, fold.at, levers or ())
    if done is not None and levers is None and done.corrected + done.left_out:

        def read(chosen: FeatureSet, row: Array) -> Array:
            return cut(matrices, chosen, row)

        estimated, _ = estimate_levers(facts, {units.target: units}, read, fold.at, fold.until, seed, say)
        done = acted(facts, units, fold.at, estimated)
    offset = None
    if done is not None and done.corrected:
        units, offset = done.units, done.offset
        after = split(units, fold.at, fold.until)
        label[after.train] = after.train_label
        inner = [_with_treated(f, units) for f in inner]
    heard = news(facts, units, fold.at) if spec.young else None
    return fit(spec, features, matrix, label, inner, seed, say, heard, beside, offset)


def _with_treated(fold: Fold, units: Labels) -> Fold:
    """A fold that trains on treated units, too, and is judged on the same as before."""
    every = split(units, fold.at, fold.until)
    return replace(fold, train=every.train, train_label=every.train_label)


def train_reasons(
    facts: Facts, units: Labels, matrices: Matrices, fold: Fold, seed: int, say: Progress
) -> tuple[FittedReasons | None, Returns]:
    """Fit P(reason | return) on the mature returns of a fold of `returned`."""
    returns = returns_of(facts, units, fold)
    if returns.document["why"]:
        say(f"{REASON}: not trained: {returns.document['why']}")
        return None, returns
    every = FeatureSet.for_target("returned", facts.snapshot.settings)
    row = units.row[returns.train]
    matrix = cut(matrices, every, row)
    useful = _useful(matrix) & _own_history(facts, every, row)
    few = len(row) < MANY_RETURNS
    place = np.full(len(units), -1, dtype=np.int64)
    place[returns.train] = np.arange(len(row))
    inner = rolling(units, fold.at, 3 if few else 1, 0.4 if few else 0.75)
    parts = [tuple(p[p >= 0] for p in (place[f.train[f.train_label == 1]], place[f.test])) for f in inner]
    fitted = fit_reasons(
        returns.names,
        every.only(useful),
        matrix[:, useful],
        returns.stated[0],
        returns.inspected[0],
        [(train, test) for train, test in parts if len(train) >= MIN_RETURNS and len(test) >= MIN_RETURNS],
        facts.snapshot.settings,
        seed,
        say,
    )
    noise, names = fitted.noise, returns.names
    learned = {
        "status": "trained",
        "features": fitted.model.features.names,
        "rounds": fitted.params["rounds"],
        "calibration": {"slope": fitted.model.slope},
        "noise": {
            "corrected": noise.corrected,
            "inspected": noise.inspected,
            "inspections_right": facts.snapshot.settings.inspections_right,
            "stated_truly": dict(zip(names, np.diag(noise.stated).tolist(), strict=True)),
            "stated_nothing": dict(zip(names, noise.stated[:, -1].tolist(), strict=True)),
        },
    }
    returns.document.update(learned)
    return fitted, returns


def _judge_reasons(
    facts: Facts, units: Labels, matrices: Matrices, model: ReasonModel, noise: Noise, returns: Returns, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    rows = units.row[returns.train], units.row[returns.test]
    category = facts.rows.lines["listings", "category"]
    train, test = (cut(matrices, model.features, row) for row in rows)
    shares = model.shares(test)
    judged = judge_reasons(
        shares,
        noise,
        returns,
        (train, test),
        (category[rows[0]], category[rows[1]]),
        units.group[returns.test],
        facts.snapshot.settings,
        seed,
    )
    names = np.array([*returns.names, None], dtype=object)  # the last place stands for nothing said
    frame = pd.DataFrame(
        {
            "unit_id": pd.Series(units.unit_id[returns.test], dtype="str"),
            "decided_at": pd.DatetimeIndex(units.decided_at[returns.test]).tz_localize("UTC"),
            "stated": pd.Series(names[returns.stated[1]], dtype="str"),
            "inspected": pd.Series(names[returns.inspected[1]], dtype="str"),
            **dict(zip(returns.names, shares.T, strict=True)),
        }
    )
    return frame, judged


def _own_history(facts: Facts, features: FeatureSet, row: Array) -> Array:
    """Which features have a history of their own in the rows.

    Where a shop names no brand, the share "of this brand" falls back to the whole shop's everywhere: as a column it
    would say little, and as an explanation it would name a brand that is not there.
    """
    out = np.ones(len(features.features), dtype=bool)
    for i, feature in enumerate(features.features):
        if feature.entity:
            entity = facts.snapshot.history.entities[feature.entity]
            line = features.unit == "line"
            level = facts.rows.lines if line or entity.level == "line" else facts.rows.parcels
            known = key(entity, level) != 0
            out[i] = (known[row] if (line or entity.level == "parcel") else known).any()
    return out


def _useful(matrix: Array) -> Array:
    """Columns that take two values at least (missing counts as one) in the rows."""
    # A column at a time: a whole matrix of answers would be as large again as a part of the matrix itself.
    return np.array([not _same(column).all() for column in matrix.T], dtype=bool)


def _same(column: Array) -> Array:
    """Where a column is what it is in its first row."""
    return np.isnan(column) if np.isnan(column[0]) else column == column[0]


def _side_by_side(work: Callable[[str], Any], names: Iterable[str], beside: int) -> list[Any]:
    """Results of some work on each of these, in their order, so many at a time.

    In threads: what takes long (LightGBM, numpy) lets go of the interpreter. Models fitted one beside the other use
    the cores better than one model in several threads, which wait for one another after every split.
    """
    pool = ThreadPoolExecutor(beside)
    try:
        return list(pool.map(work, names))
    finally:
        pool.shutdown(cancel_futures=True)  # what has not begun when one fails or is interrupted never does


def _judge(
    facts: Facts,
    units: Labels,
    matrices: Matrices,
    model: TargetModel,
    report: TargetReport,
    document: dict[str, Any],
    start: np.datetime64,
    end: np.datetime64,
    seed: int,
    say: Progress,
) -> None:
    """Evaluate the loaded model, the one that would be served, and its baselines on the holdout."""
    fold = split(units, start, end)
    say(f"{units.target}: judging on {len(fold.test):,} {units.unit}s, with baselines and intervals")
    matrix = cut(matrices, model.features, units.row)
    probability = _in_parts(model.probability, matrix[fold.test])
    report.holdout = holdout_frame(
        units.target, units.unit_id[fold.test], units.decided_at[fold.test], fold.test_label, probability
    )
    report.groups = units.group[fold.test]
    pick = np.linspace(0, len(fold.test) - 1, min(SAMPLE_ROWS, len(fold.test))).astype(np.int64)
    rows = matrix[fold.test[pick]]
    report.sample = pd.DataFrame(rows, columns=model.features.names)
    report.contributions = model.slope * model.trees.contributions(rows)

    rivals, report.baseline_notes = rivals_of(facts, units, model.features, matrix, fold)
    judged = evaluate(fold.test_label, probability, rivals, groups=report.groups, seed=seed)
    document["metrics"], document["baselines"] = judged["metrics"], judged["baselines"]
    document["against_baselines"] = judged["against"]
    document["baseline_notes"] = report.baseline_notes
    document["base"] = model.base_probability
    inside = slices(facts, units.unit, start, units.row[fold.test])
    document["slices"] = by_slice(inside, fold.test_label, probability, rivals, report.groups)


def _in_parts(say: Callable[[Array], Array], rows: Array) -> Array:
    """What a model says of many rows (n, f), (n,): all cores, a part of the rows each; a row's answer is its own."""
    with ThreadPoolExecutor(cores()) as pool:
        return np.concatenate(list(pool.map(say, np.array_split(rows, cores()))))


def rivals_of(
    facts: Facts, units: Labels, features: FeatureSet, matrix: Array, fold: Fold
) -> tuple[dict[str, Array], dict[str, str]]:
    """What the baselines, fitted on what a fold trains on, say of its test rows.

    Args:
        facts: the joined dataset.
        units: the target's labels.
        features: what the model reads, and so the regression beside it.
        matrix: (n, f) float32, a row per label of the target.
        fold: what they are fitted and tried on.

    Returns:
        Probabilities (test rows,) by baseline, and what each baseline is, in words.
    """
    inner = rolling(units, fold.at, 1, 0.75)
    later = np.zeros(len(units), dtype=bool)
    later[fold.train] = True
    if inner:
        later[inner[0].train] = False
    codes = _codes(facts, units)
    known = np.zeros(len(units), dtype=np.int8)
    known[fold.train] = fold.train_label
    train = np.zeros(len(units), dtype=bool)
    train[fold.train] = True

    def part(mask: Array) -> BaselineFold:
        at = np.flatnonzero(mask & train)
        frame = pd.DataFrame(matrix[at], columns=features.names)
        return BaselineFold(frame, codes.iloc[at].reset_index(drop=True), known[at])

    baselines = fit_baselines(part(~later), part(later))
    test = pd.DataFrame(matrix[fold.test], columns=features.names)
    test_codes = codes.iloc[fold.test].reset_index(drop=True)
    rivals = {name: b.predict(test, test_codes) for name, b in baselines.items()}
    return rivals, {name: b.describe() for name, b in baselines.items()}


def holdout_frame(target: str, ids: Any, decided: Any, label: Any, probability: Any) -> pd.DataFrame:
    """Rows of `holdout.parquet`: unit_id, decided_at, target, label, probability."""
    return pd.DataFrame(
        {
            "unit_id": pd.Series(ids, dtype="str"),
            "decided_at": pd.Series(pd.DatetimeIndex(np.asarray(decided, dtype="datetime64[us]")).tz_localize("UTC")),
            "target": target,
            "label": np.asarray(label, dtype=np.int8),
            "probability": np.asarray(probability, dtype=np.float64),
        }
    )


def _codes(facts: Facts, units: Labels) -> pd.DataFrame:
    """The raw code columns of the units, for the lookup baseline: what a spreadsheet would group by."""
    level = facts.rows.parcels if units.unit == "parcel" else facts.rows.lines
    tables = ("orders", "parcels") if units.unit == "parcel" else ("orders", "parcels", "order_lines", "listings")
    columns = [(t, c.name) for t in tables for c in TABLES[t].columns if c.kind == "code"]
    columns += [("orders", "customer_id")] + ([("order_lines", "sku")] if units.unit == "line" else [])
    columns += [(e.table, e.column) for e in facts.snapshot.settings.extra if e.kind == "code" and e.table in tables]
    out = {f"{t}.{c}": level[t, c][units.row] for t, c in columns}
    return pd.DataFrame({name: column for name, column in out.items() if any(v is not None for v in column)})


def _room_for(out: Path) -> None:
    """Raise ArtefactError if a folder holds something that is no training: all of it is replaced."""
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    if held and "metrics.json" not in held:
        raise ArtefactError(f"{out}: is there already and holds no training: name another folder")
    others = sorted(held - WRITTEN)
    if others:
        raise ArtefactError(
            f"{out}: holds more than a training ({', '.join(others[:3])}), which would be lost: name another folder"
        )


def _replace(part: Path, out: Path) -> None:
    """Put a finished folder in its place."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)
