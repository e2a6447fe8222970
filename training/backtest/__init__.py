"""Would it have held up: the whole modelling done again at several moments of the past, and judged on what came then.

An origin is a day on which the models could have gone live. At each one every target is fitted as `doorstep train`
fits it, on the labels that were mature on that day, and judged on the decisions from there to the next origin, with
labels as known at the end. The gap between the two is the time that labels take to mature, row by row, as in
`training.splits`.

Features are as of each row's own decision, so the matrix is computed once and only the fits are repeated.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from features.arrays import Array
from features.dataset import Dataset
from features.files import ArtefactError
from features.snapshot import Facts
from features.vocabulary import TARGETS
from serving.bundle import TargetModel
from training.check import require
from training.evaluate import evaluate, gap
from training.evaluate.drift import between, movers
from training.evaluate.plots import backtest_plot
from training.evaluate.slices import meaning, slices
from training.evaluate.stability import ROWS, stability
from training.labels import Labels, labels, maturity_rule
from training.models import MODELS
from training.pipeline import (
    Matrices,
    Progress,
    TrainingError,
    cut,
    fit_on,
    holdout_frame,
    matrices_of,
    moment_in,
    no_leaks,
    period,
    rivals_of,
    why_not,
)
from training.splits import Fold, evenly, folds_at, split, violations

if TYPE_CHECKING:
    from training.registry import Registry

ORIGINS = 4
FIRST_SHARES = (0.4, 0.5, 0.6)
"""Share of the units that can be judged which lie before the first origin: the smallest with which most targets can be
fitted and judged. A rare outcome needs some time before there are enough cases to learn from."""

SEEDS = 3
"""Seeds whose explanations are compared at the last origin."""

MOVERS = 5
"""Features named per origin and kind, those that have moved most. What is known of the past moves with every outcome,
so it is kept apart from what came in."""

SLICE_REPLICATES = 200
COMPARED = ("auc", "log_loss", "calibration_error", "gap")
"""Figures whose differences between origins are tested."""


@dataclass(frozen=True)
class Backtest:
    """What came out.

    Attributes:
        document: content of `backtest.json`.
        predictions: origin, unit_id, decided_at, target, label, probability of every unit that was judged.
        picture: figures per origin, as PNG.
    """

    document: dict[str, Any]
    predictions: pd.DataFrame
    picture: bytes

    def save(self, out: str | Path) -> None:
        """Write `backtest.json`, `predictions.parquet` and `backtest.png` to a folder; an earlier backtest is replaced.

        Raises:
            ArtefactError: the folder holds something else.
        """
        out = Path(out)
        room_for(out)
        part = out.with_name(f".{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        self.predictions.to_parquet(part / "predictions.parquet", index=False)
        (part / "backtest.png").write_bytes(self.picture)
        (part / "backtest.json").write_text(json.dumps(self.document, indent=2, allow_nan=False) + "\n")
        out.mkdir(parents=True, exist_ok=True)
        for file in part.iterdir():
            os.replace(file, out / file.name)
        part.rmdir()

    def log(self, registry: Registry) -> str:
        """Write a run with a run per origin below it, and return its id.

        Raises:
            training.registry.RegistryError: the registry does not answer or refuses.
        """
        said = self.document
        tags = {
            "kind": "backtest",
            "dataset": said["dataset"],
            "dataset_fingerprint": said["fingerprint"],
            "as_of": said["as_of"],
            "simulated": str(said["simulated"]).lower(),
        }
        judged = {n: t for n, t in said["targets"].items() if t["status"] == "judged"}
        with registry.run(f"backtest of {said['dataset']} as of {said['as_of'][:10]}", tags) as run:
            run.write(
                params={"seed": said["seed"], "as_of": said["as_of"], "origins": len(said["origins"])},
                metrics=dict(_flat({n: t["pooled"] for n, t in judged.items()})),
                tags={f"status.{n}": t["status"] for n, t in said["targets"].items()},
            )
            run.file("backtest.json", json.dumps(said, indent=2))
            run.file("backtest.png", self.picture, "plots")
            for origin in said["origins"]:
                there = {n: next(o for o in t["origins"] if o["at"] == origin["at"]) for n, t in judged.items()}
                with run.child(f"origin {origin['at'][:10]}", {**tags, "origin": origin["at"]}) as child:
                    child.write(
                        params={"origin": origin["at"], "until": origin["until"]},
                        metrics=dict(_flat({n: o for n, o in there.items() if o["status"] == "judged"})),
                        tags={f"why.{n}": o["why"] for n, o in there.items() if o["why"]},
                    )
            return run.id


def _flat(judged: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float | None]]:
    """Figures of targets as names and numbers: `late_auc`, `late_auc_low`, `late_lookup_auc` ..."""
    for target, found in judged.items():
        sources = [("", found["metrics"]), *((f"{b}_", figures) for b, figures in found["baselines"].items())]
        for prefix, figures in sources:
            for name, figure in figures.items():
                yield f"{target}_{prefix}{name}", figure["value"]
                if not prefix:
                    yield f"{target}_{name}_low", figure["low"]
                    yield f"{target}_{name}_high", figure["high"]
        counts = found.get("test", found)
        yield f"{target}_rows", counts["rows"]
        yield f"{target}_positives", counts["positives"]


def room_for(out: Path) -> None:
    """Raise ArtefactError if a folder holds something that is no backtest."""
    if out.exists() and any(out.iterdir()) and not (out / "backtest.json").exists():
        raise ArtefactError(f"{out}: is there already and holds no backtest: name another folder")


def backtest(
    dataset: Dataset,
    *,
    as_of: pd.Timestamp | str | None = None,
    origins: int = ORIGINS,
    targets: Collection[str] | None = None,
    seed: int = 0,
    seeds: int = SEEDS,
    trust: Collection[str] = (),
    progress: Progress | None = None,
) -> Backtest:
    """Fit and judge at several moments of the past.

    Args:
        dataset: the shop's tables.
        as_of: only facts known before are used, and labels are read then; default when the extract was taken.
        origins: how many, with equally many units that can be judged between one and the next.
        targets: which, default all.
        seed: of everything random.
        seeds: how many seeds are fitted at the last origin to see what explanations depend on; 1 for none.
        trust: as in `training.pipeline.train`.
        progress: told what is being done.

    Raises:
        features.settings.DatasetError: the dataset is broken, see `doorstep check`.
        training.leaks.LeakError: a feature alone tells an outcome too well.
        TrainingError: no target can be trained at any origin.
        ValueError: an unknown target, or fewer origins or seeds than make sense.
    """
    say = progress or (lambda _: None)
    chosen = chosen_targets(targets)
    if origins < 2:
        raise ValueError(f"origins: {origins} given; use 2 or more, `doorstep train` judges at one")
    if seeds < 1:
        raise ValueError(f"seeds: {seeds} given; use 1 (no comparison) or more")
    say("checking the dataset")
    require(dataset)
    say("joining tables and counting history")
    facts = Facts.of(dataset, moment_in(as_of, dataset.settings))
    end = facts.snapshot.as_of
    units = {name: labels(facts, name) for name in chosen}
    moments = _origins(facts, units, origins)
    matrices = matrices_of(facts, units, say)
    no_leaks(facts, units, matrices, moments[-1], end, trust)
    slicing = _Slicing(facts, moments[0])
    documents: dict[str, Any] = {}
    predictions: list[pd.DataFrame] = []
    for name in chosen:
        documents[name], rows = _target(facts, units[name], matrices, moments, seed, seeds, slicing, say)
        predictions += rows
    if not predictions:
        reasons = "\n".join(f"  {n}: {d['why']}" for n, d in documents.items())
        raise TrainingError(f"no target could be trained at any of {len(moments)} origins\n{reasons}")
    document = {
        "dataset": dataset.settings.name,
        "fingerprint": dataset.fingerprint,
        "simulated": dataset.settings.simulated,
        "as_of": f"{end}Z",
        "seed": seed,
        "trusted": sorted(trust),
        "origins": [
            {"at": f"{at}Z", "until": f"{until}Z"} for at, until in zip(moments, [*moments[1:], end], strict=True)
        ],
        "targets": documents,
    }
    say("drawing")
    return Backtest(document, pd.concat(predictions, ignore_index=True), backtest_plot(document))


def chosen_targets(targets: Collection[str] | None) -> list[str]:
    """The targets asked for, in the order of `MODELS`; all of them for None.

    Raises:
        ValueError: one of them is not known.
    """
    unknown = [t for t in targets or () if t not in MODELS]
    if unknown:
        raise ValueError(f"targets: {unknown[0]!r} is none; use {', '.join(MODELS)}")
    return [t for t in MODELS if not targets or t in targets]


def _origins(facts: Facts, units: Mapping[str, Labels], origins: int) -> Array:
    """Days on which all targets go live together, spread over what can be judged."""
    end = facts.snapshot.as_of
    decided = np.concatenate([u.decided_at[u.known(end)[1] & (u.decided_at < end)] for u in units.values()])
    if not len(decided):
        last = end - np.timedelta64(1, "us")
        reasons = "\n".join(f"  {name}: {why_not(facts, u, split(u, last, end))}" for name, u in units.items())
        raise TrainingError(f"no target can be judged\n{reasons}")

    def told(moments: Array) -> int:
        folds = [(u, fold) for u in units.values() for fold in folds_at(u, moments, end)]
        return sum(not why_not(facts, u, f) and 0 < f.test_label.sum() < len(f.test_label) for u, f in folds)

    return max((evenly(decided, origins, share) for share in FIRST_SHARES), key=told)  # the first of equals


class _Slicing:
    """Which slices units are in. Regions and values are those of the first origin, so that they mean one thing."""

    def __init__(self, facts: Facts, first: np.datetime64) -> None:
        self.facts, self.first = facts, first
        self._known: dict[tuple[str, np.datetime64], pd.DataFrame] = {}

    def __call__(self, unit: str, at: np.datetime64, row: Array) -> pd.DataFrame:
        found = self._of(unit, self.first).iloc[row].reset_index(drop=True)
        if "new lane" in found:  # what is new depends on when the model went live
            found["new lane"] = self._of(unit, at)["new lane"].iloc[row].to_numpy()
        return found

    def _of(self, unit: str, at: np.datetime64) -> pd.DataFrame:
        if (unit, at) not in self._known:
            self._known[unit, at] = slices(self.facts, unit, at)
        return self._known[unit, at]


@dataclass(frozen=True)
class _Judged:
    """One origin of one target: its model and what it and its rivals said of the test rows."""

    fold: Fold
    model: TargetModel
    probability: Array
    rivals: dict[str, Array]
    slices: pd.DataFrame


def _target(
    facts: Facts,
    units: Labels,
    matrices: Matrices,
    moments: Array,
    seed: int,
    seeds: int,
    slicing: _Slicing,
    say: Progress,
) -> tuple[dict[str, Any], list[pd.DataFrame]]:
    target, settings = TARGETS[units.target], facts.snapshot.settings
    by_origin = {fold.at: fold for fold in folds_at(units, moments, facts.snapshot.as_of)}
    origins, judged, predictions = [], [], []
    for k, at in enumerate(moments, 1):
        which = f"{k} of {len(moments)}"
        said, found = _origin(facts, units, matrices, at, by_origin.get(at), seed, slicing, which, say)
        origins.append(said)
        if found is not None:
            judged.append(found)
            test = found.fold.test
            rows = holdout_frame(
                target.name, units.unit_id[test], units.decided_at[test], found.fold.test_label, found.probability
            )
            rows.insert(0, "origin", pd.Timestamp(at, tz="UTC"))
            predictions.append(rows)
    document: dict[str, Any] = {
        "status": "judged" if judged else "not_trained",
        "why": "" if judged else origins[-1]["why"],
        "unit": target.unit,
        "maturity": maturity_rule(target.name, settings.return_window_days, settings.lost_after_days),
        "origins": origins,
    }
    if judged:
        say(f"{target.name}: all origins together, and by slice")
        document |= _pooled(units, judged, seed)
        document["drift"] = _drift(origins)
        if seeds > 1:
            document["stability"] = _stability(facts, units, matrices, judged[-1], seed, seeds, say)
    return document, predictions


def _origin(
    facts: Facts,
    units: Labels,
    matrices: Matrices,
    at: np.datetime64,
    fold: Fold | None,
    seed: int,
    slicing: _Slicing,
    which: str,
    say: Progress,
) -> tuple[dict[str, Any], _Judged | None]:
    name = units.target
    document: dict[str, Any] = {"at": f"{at}Z", "status": "not_trained"}
    if fold is None:
        why = why_not(facts, units, split(units, at, facts.snapshot.as_of))
        return document | {"why": why or f"no {units.unit} decided from then on can be judged"}, None
    document |= {
        "why": why_not(facts, units, fold),
        "train": period(units, fold.train, fold.train_label),
        "test": period(units, fold.test, fold.test_label),
        "excluded": {"train": fold.immature_train, "test": fold.immature_test},
    }
    if document["why"]:
        say(f"{name}: origin {which}: not trained: {document['why']}")
        return document, None
    wrong = violations(units.decided_at, units.matures_at, fold.train, fold.test, fold.at)
    if wrong:
        raise AssertionError(f"the split of {name} is broken, please report this: {'; '.join(wrong)}")
    fitted = fit_on(facts, units, matrices, fold, seed, lambda what: say(f"origin {which}: {what}"))
    model = fitted.model
    say(f"{name}: origin {which}: judging on {len(fold.test):,} {units.unit}s")
    matrix = cut(matrices, model.features, units.row)
    probability = model.probability(matrix[fold.test])
    rivals, notes = rivals_of(facts, units, model.features, matrix, fold)
    found = _Judged(fold, model, probability, rivals, slicing(units.unit, at, units.row[fold.test]))
    moved = movers(model.features, matrix[fold.train], matrix[fold.test])
    return (
        document
        | {
            "status": "judged",
            "trees": fitted.params["num_trees"],
            "calibration": {"slope": model.slope, "intercept": model.intercept},
            "features": model.features.names,
        }
        | _figures(fold.test_label, probability, rivals, units.group[fold.test], seed)
        | {
            "baseline_notes": notes,
            "drift": {
                "rate_before": float(fold.train_label.mean()),
                "rate": _turned(gap(fold.test_label, np.zeros(len(fold.test)), groups=units.group[fold.test])),
                "rate_change": _turned(gap(fold.test_label, rivals["base_rate"], groups=units.group[fold.test])),
                **{
                    kind: {"moved": sum(m["moved"] for m in some), "of": len(some), "most": some[:MOVERS]}
                    for kind, some in (
                        ("inputs", [m for m in moved if not m["history"]]),
                        ("histories", [m for m in moved if m["history"]]),
                    )
                },
            },
        },
        found,
    )


def _figures(
    label: Array, probability: Array, rivals: Mapping[str, Array], groups: Array, seed: int, replicates: int = 500
) -> dict[str, Any]:
    judged = evaluate(label, probability, rivals, groups=groups, seed=seed, replicates=replicates)
    judged["metrics"]["gap"] = gap(label, probability, groups=groups)
    for name, found in judged["baselines"].items():
        found["gap"] = gap(label, rivals[name], groups=groups)
    return {"metrics": judged["metrics"], "baselines": judged["baselines"], "against_baselines": judged["against"]}


def _turned(found: dict[str, Any]) -> dict[str, Any]:
    """What was expected too much is what it fell by: a gap with the sign turned."""
    if found["low"] is None:
        return {**found, "value": -found["value"]}
    return {"value": -found["value"], "low": -found["high"], "high": -found["low"]}


def _pooled(units: Labels, judged: Sequence[_Judged], seed: int) -> dict[str, Any]:
    """Every model on the rows it was there for, all together: the same rows for the model and its rivals."""
    label = np.concatenate([j.fold.test_label for j in judged])
    probability = np.concatenate([j.probability for j in judged])
    rivals = {n: np.concatenate([j.rivals[n] for j in judged]) for n in judged[0].rivals}
    groups = units.group[np.concatenate([j.fold.test for j in judged])]
    inside = pd.concat([j.slices for j in judged], ignore_index=True)
    parts = {}
    for name in inside.columns:
        hit = inside[name].to_numpy(dtype=bool)
        counted = {"words": meaning(name), "rows": int(hit.sum()), "positives": int(label[hit].sum())}
        figures = _figures(
            label[hit], probability[hit], {n: p[hit] for n, p in rivals.items()}, groups[hit], seed, SLICE_REPLICATES
        )
        parts[name] = counted | figures
    return {
        "pooled": {"rows": len(label), "positives": int(label.sum())}
        | _figures(label, probability, rivals, groups, seed),
        "slices": parts,
    }


def _drift(origins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the figures, and the rate they are about, differ between the origins by more than chance."""
    there = [o for o in origins if o["status"] == "judged"]
    out = {name: between([{"at": o["at"], **o["metrics"][name]} for o in there]) for name in COMPARED}
    rates = [{"at": o["at"], **o["drift"]["rate"]} for o in there]
    return {"rate": between(rates), **out}


def _stability(
    facts: Facts, units: Labels, matrices: Matrices, last: _Judged, seed: int, seeds: int, say: Progress
) -> dict[str, Any]:
    """The last origin's training with further seeds, and what all of them say of the same units."""
    models = [last.model]
    for k in range(1, seeds):
        prefix = f"seed {k + 1} of {seeds}"
        models.append(fit_on(facts, units, matrices, last.fold, seed + k, _prefixed(prefix, say)).model)
    pick = np.linspace(0, len(last.fold.test) - 1, min(ROWS, len(last.fold.test))).astype(np.int64)
    row = units.row[last.fold.test[pick]]
    return {"at": f"{last.fold.at}Z", **stability(models, lambda features: cut(matrices, features, row))}


def _prefixed(prefix: str, say: Progress) -> Callable[[str], None]:
    return lambda what: say(f"{prefix}: {what}")
