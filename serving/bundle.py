"""The bundle: one trained version of all models as plain files, verified before anything in it is parsed. No pickle.

It holds, per target, the compiled trees that are served, LightGBM's own model text for people and audits, the two
calibration numbers, and the features it was trained on; the same for the reasons of returns; the models of the
time to the door; what levers and carriers do; and the shop's settings. It refuses to load where it would not answer as
it was evaluated: another protocol, a changed file, or features that compute something else in this version.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import Array
from features.files import ArtefactError, digest_of, seal, verify
from features.matrix import FeatureSet, depending, fingerprint, inputs
from features.settings import Settings
from features.vocabulary import TARGETS
from serving.carriers import CarrierLever
from serving.explain import logistic, points, usual_words
from serving.levers import Lever
from serving.reasons import ReasonModel
from serving.trees import CompiledTrees
from serving.windows import NAME as WINDOW
from serving.windows import WindowModel

PROTOCOL = 4
"""Raise when a bundle written before can no longer be read as it was meant."""

KIND = "doorstep-bundle"
REASON = "return_reason"
"""Name of the model of P(reason | return) among the targets' models."""

MAKE = "doorstep train DATASET --out DIR"


@dataclass(frozen=True)
class TargetModel:
    """One target's model.

    Attributes:
        target: name of the target.
        features: the columns it was trained on.
        trees: the compiled trees.
        slope, intercept: calibration, linear in log-odds: z = intercept + slope * raw score.
        base_rate: share of positives among the rows it was fitted and calibrated on.
        usual: per feature, its median there; what an explanation compares with.
    """

    target: str
    features: FeatureSet
    trees: CompiledTrees
    slope: float
    intercept: float
    base_rate: float
    usual: tuple[float, ...]

    @property
    def base(self) -> float:
        """phi_0: calibrated log-odds before anything is known of the row."""
        return self.intercept + self.slope * self.trees.base

    @cached_property
    def base_probability(self) -> float:
        """g(phi_0): probability before anything is known of the row."""
        return float(logistic(np.asarray(self.base)))

    def probability(self, matrix: Array) -> Array:
        """Probabilities (n,) of a matrix (n, f) float32: the fast way for many rows, within 1e-12 of `explain`."""
        return logistic(self.intercept + self.slope * self.trees.raw(matrix))

    def explain(self, matrix: Array) -> tuple[Array, Array]:
        """Probabilities (n,) and points of risk (n, f), see `serving.explain.points`."""
        return points(self.base, self.slope * self.trees.contributions(matrix))

    @cached_property
    def usual_words(self) -> list[str | None]:
        """The usual value of each feature in words, None where there is none."""
        return usual_words(self.features, self.usual)


class Bundle:
    """A loaded bundle.

    Attributes:
        name: first twelve digits of its digest; every answer carries it.
        digest: SHA-256 of its manifest.
        settings: the shop's settings it was trained with.
        targets: model per trained target.
        reasons: the model of P(reason | return), None where it could not be trained.
        meta: what the training said of it: dataset, as_of, holdout_from, why a target was not trained.
        window: the model of the time to the door, None where it could not be trained.
        levers: what changing a raw column does to a target, at most one for each pair of them.
        carriers: what another carrier does to a target, at most one for each target.
    """

    def __init__(
        self,
        digest: str,
        settings: Settings,
        targets: Mapping[str, TargetModel],
        reasons: ReasonModel | None,
        meta: Mapping[str, Any],
        window: WindowModel | None = None,
        levers: Sequence[Lever] = (),
        carriers: Sequence[CarrierLever] = (),
    ):
        self.digest, self.name = digest, digest[:12]
        self.settings, self.targets, self.reasons, self.meta = settings, dict(targets), reasons, dict(meta)
        self.window, self.levers = window, tuple(levers)
        self.carriers = {lever.target: lever for lever in carriers}
        self._moving: dict[tuple[str, tuple[str, ...]], tuple[FeatureSet, Array]] = {}

    @staticmethod
    def load(path: str | Path) -> Bundle:
        """Read a bundle.

        Raises:
            features.files.ArtefactError: no bundle, another protocol, a changed or missing file, or features that
                compute something else in this version.
        """
        folder = Path(path)
        meta = verify(folder, KIND, PROTOCOL, MAKE)
        settings = Settings.from_json(meta["settings"])
        targets: dict[str, TargetModel] = {}
        reasons: ReasonModel | None = None
        for name, m in meta["targets"].items():
            unit = "line" if name == REASON else TARGETS[name].unit
            try:
                features = FeatureSet.named(unit, m["features"], settings)
                trees = CompiledTrees.load(folder / "trees" / name)
            except ValueError as error:
                raise ArtefactError(f"{folder}: model of {name}: {error}. Train again with `{MAKE}`") from None
            if fingerprint(features, settings) != m["fingerprint"]:
                raise ArtefactError(
                    f"{folder}: the features of {name} compute something else in this version than when the model was "
                    f"trained: train again with `{MAKE}`, or serve it with the version that made it"
                )
            usual = tuple(np.nan if u is None else u for u in m["usual"])
            if name == REASON:
                per_reason = (tuple(m[key]) for key in ("reasons", "owners", "bases", "intercepts", "mix"))
                named, owners, bases, intercepts, mix = per_reason
                reasons = ReasonModel(named, owners, features, trees, bases, m["slope"], intercepts, mix, usual)
            else:
                targets[name] = TargetModel(name, features, trees, m["slope"], m["intercept"], m["base_rate"], usual)
        window = None
        if meta["window"]:
            try:
                window = WindowModel.load(folder / "window", settings)
            except ValueError as error:
                raise ArtefactError(f"{folder}: model of {WINDOW}: {error}. Train again with `{MAKE}`") from None
        levers = [Lever.from_json(x["lever"]) for x in meta["levers"]]
        for lever, x in zip(levers, meta["levers"], strict=True):
            try:
                same = fingerprint(lever.features(settings), settings) == x["fingerprint"]
            except ValueError:
                same = False  # a feature this version has not
            if not same:
                raise ArtefactError(
                    f"{folder}: what the effect of {lever.column} on {lever.target} depends on is computed in another "
                    f"way in this version: train again with `{MAKE}`, or serve it with the version that made it"
                )
        carriers = [CarrierLever.from_json(x) for x in meta["carriers"]]
        return Bundle(digest_of(folder), settings, targets, reasons, meta["training"], window, levers, carriers)

    @staticmethod
    def save(
        to: str | Path,
        settings: Settings,
        targets: Mapping[str, TargetModel],
        texts: Mapping[str, str],
        training: Mapping[str, Any],
        reasons: ReasonModel | None = None,
        window: WindowModel | None = None,
        levers: Sequence[Lever] = (),
        carriers: Sequence[CarrierLever] = (),
    ) -> Bundle:
        """Write a bundle, whole or not at all, and load it back.

        Args:
            to: folder of the bundle; a bundle already there is replaced.
            settings: the shop's settings.
            targets: model per target.
            texts: LightGBM's model texts by name: per target, of `REASON`, and per part of the window.
            training: plain data about the training, for people.
            reasons: the model of return reasons.
            window: the model of the time to the door.
            levers: what changing a raw column does to a target.
            carriers: what another carrier does to a target.
        """
        to = Path(to)
        part = to.with_name(f".{to.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        (part / "models").mkdir(parents=True)
        models: dict[str, Any] = {}
        every: dict[str, TargetModel | ReasonModel] = {**targets, **({REASON: reasons} if reasons else {})}
        for name, model in every.items():
            model.trees.save(part / "trees" / name)
            models[name] = {
                "features": model.features.names,
                "fingerprint": fingerprint(model.features, settings),
                "slope": model.slope,
                "usual": [None if np.isnan(u) else float(u) for u in model.usual],
            }
            if isinstance(model, ReasonModel):
                models[name] |= {
                    k: list(getattr(model, k)) for k in ("reasons", "owners", "bases", "intercepts", "mix")
                }
            else:
                models[name] |= {"intercept": model.intercept, "base_rate": model.base_rate}
        for name, text in texts.items():
            (part / "models" / f"{name}.txt").write_text(text)
        if window is not None:
            window.save(part / "window", settings)
        meta = {
            "settings": settings.to_json(),
            "targets": models,
            "window": window is not None,
            "levers": [
                {"lever": x.to_json(), "fingerprint": fingerprint(x.features(settings), settings)} for x in levers
            ],
            "carriers": [x.to_json() for x in carriers],
        }
        seal(part, to, KIND, PROTOCOL, meta | {"training": dict(training)})
        return Bundle.load(to)

    def fits(self, settings: Settings) -> bool:
        """Whether a snapshot made with these settings counts what the models were trained to read."""
        ours, theirs = self.settings, settings
        return (ours.timezone, ours.return_window_days, ours.lost_after_days, ours.extra, ours.codes) == (
            theirs.timezone,
            theirs.return_window_days,
            theirs.lost_after_days,
            theirs.extra,
            theirs.codes,
        )

    @property
    def models(self) -> list[str]:
        """Names of all models: the targets', the reasons' and the window's."""
        return list(self._feature_sets)

    def columns(self, unit: str) -> FeatureSet:
        """Every feature that a model of the unit reads, each once: the matrix that all of them are cut from."""
        return self._columns[unit][0]

    def moving(self, unit: str, columns: tuple[str, ...]) -> tuple[FeatureSet, Array]:
        """The features of `columns(unit)` that may change if some raw columns (`table.column`) do, and where they are.

        Returns:
            The features and (f,) int64.
        """
        found = self._moving.get((unit, columns))
        if found is None:
            every = self.columns(unit)
            moves = depending(every, columns, self.settings)
            found = self._moving[unit, columns] = every.only(moves.tolist()), np.flatnonzero(moves)
        return found

    def cut(self, target: str, matrix: Array) -> Array:
        """The columns of one target's model (or `REASON`'s, or the window's), (n, f), out of a matrix of `columns`."""
        unit = self._feature_sets[target].unit
        return np.take(matrix, self._columns[unit][1][target], axis=1)

    @cached_property
    def _columns(self) -> dict[str, tuple[FeatureSet, dict[str, Array]]]:
        out = {}
        for unit in ("parcel", "line"):
            sets = {name: f for name, f in self._feature_sets.items() if f.unit == unit}
            if not sets:
                continue
            every = FeatureSet.union(sets.values())
            place = {name: i for i, name in enumerate(every.names)}
            cuts = {m: np.array([place[n] for n in f.names], dtype=np.int64) for m, f in sets.items()}
            out[unit] = every, cuts
        return out

    @cached_property
    def _feature_sets(self) -> dict[str, FeatureSet]:
        sets = {name: m.features for name, m in self.targets.items()}
        sets |= {REASON: self.reasons.features} if self.reasons else {}
        return sets | ({WINDOW: self.window.features} if self.window else {})

    @cached_property
    def inputs(self) -> list[str]:
        """Raw columns (`table.column`) that any of the models reads."""
        return sorted({c for features in self._feature_sets.values() for c in inputs(features, self.settings)})

    def _in(self, frame: pd.DataFrame, targets: list[str] | None) -> list[TargetModel]:
        if targets is None:
            chosen = [m for m in self.targets.values() if set(m.features.names) <= set(frame.columns)]
            if chosen:
                return chosen
            targets = list(self.targets)
        for name in targets:
            if name not in self.targets:
                raise ValueError(f"target {name!r} is not in this bundle; it has {', '.join(self.targets) or 'none'}")
            lacking = [c for c in self.targets[name].features.names if c not in frame.columns]
            if lacking:
                raise ValueError(
                    f"the frame lacks {len(lacking)} columns that {name} needs ({', '.join(lacking[:3])} ...): "
                    "build it with features.matrix.build and the model's feature set"
                )
        return [self.targets[name] for name in targets]

    def predict_proba(self, frame: pd.DataFrame, targets: list[str] | None = None) -> pd.DataFrame:
        """Calibrated probabilities.

        Args:
            frame: a matrix as `features.matrix.build` makes it; further columns do no harm.
            targets: which; default every target whose columns the frame has.

        Returns:
            A column per target, the frame's index.

        Raises:
            ValueError: a target is not in the bundle, or the frame lacks columns it needs.
        """
        models = self._in(frame, targets)
        return pd.DataFrame({m.target: m.probability(_matrix(frame, m)) for m in models}, index=frame.index)

    def explain(self, frame: pd.DataFrame, targets: list[str] | None = None) -> pd.DataFrame:
        """Points of risk, exactly additive: per row and target they sum to the probability.

        Args:
            frame: as in `predict_proba`.
            targets: as in `predict_proba`.

        Returns:
            A long frame with columns row (the frame's index), target, feature, team, lever, value, points. The base is
            the row with feature and team `base`.

        Raises:
            ValueError: as in `predict_proba`.
        """
        parts = []
        for m in self._in(frame, targets):
            matrix = _matrix(frame, m)
            _, risk = m.explain(matrix)
            n, f = matrix.shape
            base = np.full((n, 1), m.base_probability)
            parts.append(
                pd.DataFrame(
                    {
                        "row": np.repeat(frame.index.to_numpy(), f + 1),
                        "target": m.target,
                        "feature": ["base", *m.features.names] * n,
                        "team": ["base", *m.features.teams] * n,
                        "lever": [False, *(x.lever for x in m.features.features)] * n,
                        "value": np.hstack([np.full((n, 1), np.nan), matrix.astype(np.float64)]).ravel(),
                        "points": np.hstack([base, risk]).ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)


def _matrix(frame: pd.DataFrame, model: TargetModel) -> Array:
    return np.ascontiguousarray(frame[model.features.names].to_numpy(dtype=np.float32))


class _PyFunc:
    """What MLflow asks of a model: predict(frame)."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Calibrated probabilities of every target whose columns the frame has."""
        return self.bundle.predict_proba(frame)


def _load_pyfunc(path: str) -> _PyFunc:
    """Entry point of MLflow's pyfunc flavour (`loader_module`): a bundle folder, no pickle."""
    return _PyFunc(Bundle.load(path))
