"""Parameters per target by trial on temporal folds, kept on disk trial by trial, so that what stops it loses nothing.

A trial is the training of a target as it is always done (`training.pipeline.fit_on`: features, inner folds, number of
trees, calibration), once per fold with other parameters, and its figure is the log loss of the served probabilities on
all folds together. Folds are rolling origins before the holdout, which has no part in the choice. The first trial of a
target is what it is trained with today, so what is chosen is never worse on the folds.

What is proposed depends on the trials that are finished and on nothing else: a tuning that was interrupted and goes on
ends where it would have ended without the interruption.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from features.arrays import Array
from features.dataset import Dataset
from features.files import ArtefactError
from features.matrix import FeatureSet, fingerprint
from features.snapshot import Facts
from training.backtest import chosen_targets
from training.check import require
from training.evaluate import compare
from training.evaluate.plots import tuning_plot
from training.labels import Labels, labels
from training.models import MODELS, PARAMS
from training.models.params import KNOBS, spec_of
from training.pipeline import (
    Matrices,
    Progress,
    TrainingError,
    cut,
    default_holdout,
    fit_on,
    matrices_of,
    moment_in,
    no_leaks,
    period,
    why_not,
)
from training.splits import Fold, rolling, split

if TYPE_CHECKING:
    import optuna

    from training.registry import Registry
    from training.registry.session import Run

FOLDS = 3
FIRST_SHARE = 0.4
LEAST_POSITIVES = 5
"""Positives, and negatives, that a fold needs to be judged on."""

RANDOM = 8
"""Trials before the sampler learns from them; the present parameters are one of them."""

BEFORE_PRUNING = 4
"""Finished trials before one may be given up half-way."""

_TRIAL = "doorstep.trial"


@dataclass(frozen=True)
class Tuned:
    """What came out.

    Attributes:
        document: content of `tuning.json`.
        out: folder with `params.toml`, `tuning.json`, `tuning.png` and the trials.
        unlogged: why trials are not in MLflow; empty if they all are, or none was to be.
    """

    document: dict[str, Any]
    out: Path
    unlogged: str = ""


class TuningError(ValueError):
    """A tuning that cannot go on; the message says what differs and what to do."""


def tune(
    dataset: Dataset,
    *,
    out: str | Path,
    as_of: pd.Timestamp | str | None = None,
    holdout_from: pd.Timestamp | str | None = None,
    targets: Collection[str] | None = None,
    trials: int = 30,
    seconds: float | None = None,
    seed: int = 0,
    trust: Collection[str] = (),
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Look for better parameters, going on where an earlier tuning in the same folder ended.

    Args:
        dataset: the shop's tables.
        out: folder of the tuning.
        as_of, holdout_from, trust: as in `training.pipeline.train`; the holdout is not looked at.
        targets: which, default all.
        trials: finished trials each target is to have, earlier ones counted.
        seconds: no trial begins after so many seconds, but the first of each target; None for no limit.
        seed: of everything random.
        registry: where trials are logged, a run each below one of the tuning; None for nowhere.
        progress: told what is being done.

    Raises:
        features.settings.DatasetError: the dataset is broken, see `doorstep check`.
        TuningError: the folder holds a tuning of something else, or one that is running.
        ArtefactError: the folder holds something else.
        training.registry.RegistryError: the registry did not answer before the first trial.
        TrainingError: no target can be tuned.
        ValueError: an unknown target, or dates that leave nothing to learn from.
    """
    begun = time.monotonic()
    say = progress or (lambda _: None)
    chosen = chosen_targets(targets)
    if trials < 1:
        raise ValueError(f"trials: {trials} given; use 1 or more")
    out = Path(out)
    say("checking the dataset")
    require(dataset)
    say("joining tables and counting history")
    facts = Facts.of(dataset, moment_in(as_of, dataset.settings))
    units = {name: labels(facts, name) for name in MODELS}
    start = moment_in(holdout_from, dataset.settings)
    if start is None:
        start = default_holdout(units, facts.snapshot.as_of)
    if not start < facts.snapshot.as_of:
        raise ValueError(
            f"holdout from {start} with the data as of {facts.snapshot.as_of}: give an earlier --holdout-from"
        )
    with _Journal.opened(out, _plan(dataset, facts, start, seed)) as journal:
        journal.log(registry, say)  # a registry that does not answer is told before hours of work, not after
        known = [n for n in MODELS if n in chosen or journal.finished(n)]  # what was tuned before stays in the results
        grounds, reasons = _grounds(facts, {n: units[n] for n in known}, start, trust, say)
        for name in chosen:
            if name in reasons:
                say(f"{name}: not tuned: {reasons[name]}")
        if not grounds:
            raise TrainingError("no target can be tuned\n" + "\n".join(f"  {n}: {w}" for n, w in reasons.items()))
        away = ""
        try:
            for number in range(trials):
                wanted = [n for n in grounds if n in chosen and len(journal.finished(n)) <= number]
                for name in wanted:
                    if number and seconds is not None and time.monotonic() - begun >= seconds:
                        break
                    _trial(journal, name, grounds[name], seed, trials, say)
                    away = away or journal.try_to_log(registry, say)
        except KeyboardInterrupt:
            journal.try_to_log(registry, say, "KILLED")
            raise
        say("what came out")
        document = journal.plan | {"targets": _results(journal, grounds, reasons, seed)}
        journal.write(document)
        unlogged = journal.try_to_log(registry, say, "FINISHED", document)
        return Tuned(document, out, unlogged)


@dataclass(frozen=True)
class _Ground:
    """What the trials of a target are tried on."""

    facts: Facts
    units: Labels
    matrices: Matrices
    folds: list[Fold]

    @property
    def label(self) -> Array:
        return np.concatenate([f.test_label for f in self.folds])

    @property
    def groups(self) -> Array:
        return self.units.group[np.concatenate([f.test for f in self.folds])]


def _grounds(
    facts: Facts,
    units: dict[str, Labels],
    start: np.datetime64,
    trust: Collection[str],
    say: Progress,
) -> tuple[dict[str, _Ground], dict[str, str]]:
    end = facts.snapshot.as_of
    matrices = matrices_of(facts, units, say)
    no_leaks(facts, units, matrices, start, end, trust)
    grounds, reasons = {}, {}
    for name, u in units.items():
        folds = [f for f in rolling(u, start, FOLDS, FIRST_SHARE) if _judges(f) and not why_not(facts, u, f)]
        why = why_not(facts, u, split(u, start, end))
        if why or not folds:
            reasons[name] = why or "at no earlier moment were there enough cases to fit it and to judge it"
        else:
            grounds[name] = _Ground(facts, u, matrices, folds)
    return grounds, reasons


def _judges(fold: Fold) -> bool:
    positives = int(fold.test_label.sum())
    return min(positives, len(fold.test_label) - positives) >= LEAST_POSITIVES


def _plan(dataset: Dataset, facts: Facts, start: np.datetime64, seed: int) -> dict[str, Any]:
    """What makes trials comparable: all of it has to be the same for a tuning to go on."""
    settings = facts.snapshot.settings
    space = {
        "knobs": [asdict(k) for k in KNOBS.values()],
        "models": [asdict(m) for m in MODELS.values()],
        "usual": PARAMS,
    }
    computed = {n: fingerprint(FeatureSet.for_target(n, settings), settings) for n in MODELS}
    return {
        "dataset": dataset.settings.name,
        "fingerprint": dataset.fingerprint,
        "simulated": dataset.settings.simulated,
        "as_of": f"{facts.snapshot.as_of}Z",
        "holdout_from": f"{start}Z",
        "seed": seed,
        "folds": FOLDS,
        "space": _digest(space),
        "features": _digest(computed),
    }


_WORDS = {
    "fingerprint": "the dataset's content",
    "space": "what may be set, or how models are fitted by default",
    "features": "what the features compute",
}


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _trial(journal: _Journal, name: str, ground: _Ground, seed: int, trials: int, say: Progress) -> None:
    """One trial: fold by fold, given up where it is worse than half of the others were at the same fold."""
    import optuna

    finished = journal.finished(name)
    study = journal.study(name, _seed(seed, name, len(finished)))
    if not finished and not any(t.state == optuna.trial.TrialState.WAITING for t in study.trials):
        study.enqueue_trial({k.name: k.usual for k in KNOBS.values()})
    trial = study.ask()
    values = {k.name: _suggested(trial, k.name) for k in KNOBS.values()}
    # The first is what is done today, to the bit: what it says of the knobs is only where the sampler is to start.
    spec = spec_of(name, values) if finished else MODELS[name]
    losses = [
        [t.intermediate_values[k] for t in finished if k in t.intermediate_values] for k in range(len(ground.folds))
    ]
    probabilities: list[Array] = []
    rows = 0
    started = time.monotonic()
    try:
        for k, fold in enumerate(ground.folds):
            which = f"{name}: trial {len(finished) + 1} of {trials}, fold {k + 1} of {len(ground.folds)}"
            say(which)
            fitted = fit_on(ground.facts, ground.units, ground.matrices, fold, seed, lambda _: None, spec)
            rows += len(fold.test)
            matrix = cut(ground.matrices, fitted.model.features, ground.units.row[fold.test])
            probabilities.append(fitted.model.probability(matrix))
            loss = _log_loss(ground.label[:rows], np.concatenate(probabilities))
            trial.report(loss, k)
            last = k == len(ground.folds) - 1
            if not last and len(finished) >= BEFORE_PRUNING and loss > np.median(losses[k]):
                trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return
        journal.keep(name, trial.number, np.concatenate(probabilities))
        trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
        study.tell(trial, loss)
    except BaseException:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise


def _suggested(trial: optuna.Trial, name: str) -> float | int:
    knob = KNOBS[name]
    if knob.whole:
        return trial.suggest_int(name, int(knob.low), int(knob.high), log=knob.log)
    return trial.suggest_float(name, knob.low, knob.high, log=knob.log)


def _seed(seed: int, name: str, number: int) -> int:
    """A seed of its own for each trial: what is drawn does not depend on how often the tuning was stopped before."""
    return int(hashlib.sha256(f"{seed}/{name}/{number}".encode()).hexdigest()[:8], 16)


def _log_loss(label: Array, probability: Array) -> float:
    return float(-np.where(label == 1, np.log(probability), np.log1p(-probability)).mean())


class _Journal:
    """A tuning on disk: what it is of, Optuna's trials, and what the finished ones have predicted.

    Args:
        out: its folder.
        plan: what its trials are of.
    """

    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.out, self.plan = out, plan
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{(out / 'trials.db').absolute()}")
        self.run = ""
        self._finished: dict[str, list[optuna.trial.FrozenTrial]] = {}

    @staticmethod
    @contextmanager
    def opened(out: Path, plan: dict[str, Any]) -> Iterator[_Journal]:
        """Begin a tuning in a folder, or go on with the one there, alone.

        Raises:
            TuningError: it is of something else, or running.
            ArtefactError: the folder holds something else.
        """
        import optuna

        file = out / "plan.json"
        if out.exists() and any(out.iterdir()) and not file.exists():
            raise ArtefactError(f"{out}: is there already and holds no tuning: name another folder")
        out.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            _write(file, json.dumps(plan, indent=2))
        with file.open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however the process ends
            except BlockingIOError:
                raise TuningError(
                    f"{out}: another tuning is at work here: wait for it, or name another folder"
                ) from None
            before = json.loads(handle.read())
            differs = [k for k in plan if before.get(k) != plan[k]]
            if differs:
                told = "; ".join(
                    f"{_WORDS[k]} has changed" if k in _WORDS else f"{k} was {before.get(k)}, now {plan[k]}"
                    for k in differs
                )
                raise TuningError(
                    f"{out}: the trials there are of something else ({told}) and cannot be compared with new ones: "
                    "go on with what it was, or name another folder with --out"
                )
            journal = _Journal(out, plan)
            for summary in optuna.get_all_study_names(journal._storage):
                study = journal.study(summary, 0)
                for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # nobody is at it any more
            yield journal

    def study(self, name: str, seed: int) -> optuna.Study:
        """The trials of a target, with a sampler of this seed."""
        import optuna

        return optuna.create_study(
            storage=self._storage,
            study_name=name,
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM),
            load_if_exists=True,
        )

    def finished(self, name: str) -> list[optuna.trial.FrozenTrial]:
        """Trials of a target that were finished or given up half-way, in order."""
        import optuna

        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        if name not in optuna.get_all_study_names(self._storage):
            return []
        return optuna.load_study(study_name=name, storage=self._storage).get_trials(deepcopy=False, states=states)

    def failed(self, name: str) -> int:
        """How many trials of a target were interrupted."""
        import optuna

        study = optuna.load_study(study_name=name, storage=self._storage)
        return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.FAIL,)))

    def keep(self, name: str, number: int, probability: Array) -> None:
        """Keep what a trial has predicted."""
        file = self._kept(name, number)
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(".part")
        with part.open("wb") as handle:
            np.save(handle, probability, allow_pickle=False)
        os.replace(part, file)

    def kept(self, name: str, number: int) -> Array:
        """What a finished trial has predicted, (rows of all folds,)."""
        return np.asarray(np.load(self._kept(name, number), allow_pickle=False))

    def _kept(self, name: str, number: int) -> Path:
        return self.out / "predictions" / f"{name}-{number}.npy"

    def write(self, document: dict[str, Any]) -> None:
        """Write the results."""
        _write(self.out / "params.toml", params_file(document))
        (self.out / "tuning.png").write_bytes(tuning_plot(document))
        _write(self.out / "tuning.json", json.dumps(document, indent=2, allow_nan=False) + "\n")

    def try_to_log(
        self, registry: Registry | None, say: Progress, left: str = "RUNNING", document: dict[str, Any] | None = None
    ) -> str:
        """Log what is not logged yet; if the registry has gone away, say why: the trials are on disk."""
        from training.registry import RegistryError

        try:
            self.log(registry, say, left, document)
        except RegistryError as error:
            say(f"not logged: {error}")
            return str(error)
        return ""

    def log(
        self,
        registry: Registry | None,
        say: Progress,
        left: str = "RUNNING",
        document: dict[str, Any] | None = None,
    ) -> None:
        """Write every finished trial that is not there yet as a run below the tuning's.

        Raises:
            training.registry.RegistryError: the registry does not answer or refuses.
        """
        if registry is None:
            return
        plan = self.plan
        known = self.out / "run.json"
        remembered = json.loads(known.read_text()) if known.exists() else {}
        id = remembered.get("run", "") if remembered.get("at") == registry.where else ""
        tags = {
            "kind": "tuning",
            "dataset": plan["dataset"],
            "dataset_fingerprint": plan["fingerprint"],
            "as_of": plan["as_of"],
            "simulated": str(plan["simulated"]).lower(),
        }
        with registry.run(f"tuning of {plan['dataset']} as of {plan['as_of'][:10]}", tags, id, left) as run:
            _write(known, json.dumps({"at": registry.where, "run": run.id}))
            run.write(params={k: plan[k] for k in ("as_of", "holdout_from", "seed", "folds")})
            there = run.children(_TRIAL)
            for name in MODELS:
                for trial in self.finished(name):
                    self._log_trial(run, name, trial, there)
            if document is not None:
                judged = {n: t for n, t in document["targets"].items() if t["status"] == "tuned"}
                run.write(
                    metrics={
                        f"{n}_{w}_log_loss": t[w]["log_loss"] for n, t in judged.items() for w in ("current", "best")
                    }
                    | {f"{n}_gain{b}": t["gain"][k] for n, t in judged.items() for b, k in _BOUNDS},
                )
                for file in ("params.toml", "tuning.json", "tuning.png"):
                    run.file(file, (self.out / file).read_bytes())

    def _log_trial(
        self, run: Run, name: str, trial: optuna.trial.FrozenTrial, there: Mapping[str, tuple[str, bool]]
    ) -> None:
        key = f"{name}/{trial.number}"
        id, done = there.get(key, ("", False))
        if done:
            return
        with run.child(f"{name} trial {trial.number}", {_TRIAL: key, "target": name}, id) as child:
            child.write(
                params=trial.params,
                metrics={f"log_loss_to_fold_{k + 1}": v for k, v in trial.intermediate_values.items()}
                | {"log_loss": _whole(trial), "seconds": trial.user_attrs.get("seconds")},
                tags={"state": trial.state.name.lower()},
            )


_BOUNDS = (("", "difference"), ("_low", "low"), ("_high", "high"))


def _results(
    journal: _Journal, grounds: Mapping[str, _Ground], reasons: Mapping[str, str], seed: int
) -> dict[str, Any]:
    return {n: _result(journal, n, grounds[n], seed) for n in grounds} | {
        n: {"status": "not_tuned", "why": why} for n, why in reasons.items()
    }


def _result(journal: _Journal, name: str, ground: _Ground, seed: int) -> dict[str, Any]:
    """The best trial beside the first, which is what is done today, on the same rows."""
    finished = journal.finished(name)
    complete = [t for t in finished if _whole(t) is not None]
    current, best = complete[0], min(complete, key=lambda t: (t.value, t.number))
    label, groups = ground.label, ground.groups
    now = journal.kept(name, current.number)

    def against(trial: optuna.trial.FrozenTrial, rows: slice) -> dict[str, Any]:
        ours = journal.kept(name, trial.number)
        return compare(label[rows], ours[rows], now[rows], "log_loss", groups=groups[rows], seed=seed)

    whole = slice(None)
    document: dict[str, Any] = {
        "status": "tuned",
        "why": "",
        "folds": [
            {
                "at": f"{f.at}Z",
                "train": _counts(ground, f.train, f.train_label),
                "test": _counts(ground, f.test, f.test_label),
            }
            for f in ground.folds
        ],
        "trials": {
            "finished": len(complete),
            "given_up": len(finished) - len(complete),
            "interrupted": journal.failed(name),
        },
        "history": [{"trial": t.number, "log_loss": _whole(t), "so_far": _last(t)} for t in finished],
        "current": {"trial": current.number, "log_loss": current.value},
        "best": {"trial": best.number, "log_loss": best.value, "params": {} if best is current else dict(best.params)},
        "gain": against(best, whole),
    }
    document["taken"] = document["gain"]["verdict"] == "better"
    if len(ground.folds) > 1:
        # Chosen without the last fold and judged on it: what a choice is worth where it had no say.
        step = len(ground.folds) - 2
        chosen = min(complete, key=lambda t: (t.intermediate_values[step], t.number))
        last = slice(len(label) - len(ground.folds[-1].test), None)
        document["unseen"] = {"trial": chosen.number, **against(chosen, last)}
    return document


def _whole(trial: optuna.trial.FrozenTrial) -> float | None:
    """The log loss on all folds; Optuna has that of the folds so far where a trial was given up."""
    return trial.value if trial.state.name == "COMPLETE" else None


def _last(trial: optuna.trial.FrozenTrial) -> float | None:
    values: Sequence[float] = [trial.intermediate_values[k] for k in sorted(trial.intermediate_values)]
    return values[-1] if values else None


def _counts(ground: _Ground, at: Array, label: Array) -> dict[str, Any]:
    return period(ground.units, at, label)


def params_file(document: Mapping[str, Any]) -> str:
    """The results as a file for `doorstep train --params`: what is better than today, and as comments what may be."""
    lines = [
        f"# Chosen by `doorstep tune` on {document['dataset']}, as of {document['as_of']}.",
        "# The gains are on the folds the choice was made on, so somewhat too good: `unseen` in tuning.json is what",
        "# a choice was worth on a fold that had no say in it, and the holdout of a training with this file judges.",
        "",
        "[tuned]",
        f"dataset = {json.dumps(document['dataset'])}",
        f'fingerprint = "{document["fingerprint"]}"',
        f'as_of = "{document["as_of"]}"',
        f'seen_until = "{document["holdout_from"]}"',
        f"seed = {document['seed']}",
    ]
    for name, target in document["targets"].items():
        if target["status"] != "tuned":
            lines += ["", f"# {name}: not tuned: {target['why']}"]
            continue
        trials = target["trials"]["finished"] + target["trials"]["given_up"]
        if not target["best"]["params"]:
            lines += ["", f"# {name}: none of {trials} trials was better than what it is trained with already"]
            continue
        told = f"log loss {target['current']['log_loss']:.5f} to {target['best']['log_loss']:.5f} in {trials} trials"
        values = [f"{key} = {_number(value)}" for key, value in target["best"]["params"].items()]
        if target["taken"]:
            lines += ["", f"# {told}", f"[targets.{name}]", *values]
        else:
            lines += ["", f"# {told}: cannot be told from luck, so left out", f"# [targets.{name}]"]
            lines += [f"# {value}" for value in values]
    return "\n".join(lines) + "\n"


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
