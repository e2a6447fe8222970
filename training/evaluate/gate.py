"""May a challenger replace the champion? Both are scored on the same rows, which neither has learned from.

The rows are the challenger's evaluation set, as far as it was decided after both models' holdouts began. Three
questions are asked, of every target that both models have:

1. Is the **log loss** larger on the whole?
2. Is the **calibration error** larger?
3. Is the log loss larger in any **slice** (a region, new products, the peak ...)?

A yes to any refuses: where the whole interval of the difference lies beyond what the rule tolerates. Dozens of
comparisons find something by chance alone, so the level is that of all of them together: a third goes to each question
and is split evenly over its comparisons (Bonferroni). A challenger that is nowhere worse by more than is tolerated is
refused with at most that chance. Without a yes, it must also be clearly better somewhere, on one target or on all of
them together: a tie keeps the champion.

The models' row losses are compared in pairs and per order, in closed form (`training.evaluate.intervals`); for the
calibration error, the gaps of all bins of both models are drawn from their joint normal distribution.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import Array
from features.files import ArtefactError
from features.matrix import FeatureSet
from features.reasons import owners
from features.vocabulary import TARGETS
from serving.bundle import REASON, Bundle
from serving.reasons import ReasonModel
from training.evaluate import CALIBRATION_BINS, bin_starts
from training.evaluate.card import home
from training.evaluate.evaluation_set import REASONS, EvaluationSet, Rows
from training.evaluate.intervals import Estimate, log_losses, mean, of_influence
from training.evaluate.report import columns

__all__ = ["Candidate", "Comparison", "Decision", "Judge", "Pair", "Rule", "RuleError", "decide", "judge", "row_losses"]

DRAWS = 20_000
QUESTIONS = 3
MOST_CERTAIN = 0.99
"""No inspection is taken to be surer: one wrong finding must not decide about a model."""
MOST_TOLD = 10


class RuleError(ValueError):
    """The rule cannot be read; the message names the key, what was given and what is allowed."""


@dataclass(frozen=True)
class Rule:
    """What a challenger has to show; `mlflow/gate.toml` says the same with reasons.

    Attributes:
        level: the chance to refuse a challenger that is nowhere worse by more than is tolerated, over all comparisons
            together; and the chance to call one better that is not.
        least_rows: rows of a target that neither model has seen, below which it is not compared.
        least_positives: positives, and negatives, below which a target or a slice is not compared.
        tolerated_log_loss: by which part of the champion's log loss the challenger's may be larger.
        tolerated_in_slice: the same within a slice.
        tolerated_calibration: by which part of the share of positives the calibration error may be larger.
        must_gain: whether a challenger that is neither better nor worse is refused.
        least_gain: by which part of the champion's log loss the challenger's must be smaller to count as better.
    """

    level: float = 0.05
    least_rows: int = 500
    least_positives: int = 20
    tolerated_log_loss: float = 0.002
    tolerated_in_slice: float = 0.01
    tolerated_calibration: float = 0.05
    must_gain: bool = True
    least_gain: float = 0.001

    @staticmethod
    def usual() -> Rule:
        """The rule of the checkout, `mlflow/gate.toml`; the values above where there is none."""
        path = home() / "gate.toml"
        return Rule.read(path) if path.is_file() else Rule()

    @staticmethod
    def read(path: Path) -> Rule:
        """Read a rule from a TOML file; a key that is not there has its usual value.

        Raises:
            RuleError: the file is not there or no TOML, or a key or a value is not allowed.
        """
        try:
            given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RuleError(f"{path}: no such file: give one with --gate FILE; mlflow/gate.toml is the usual") from None
        except (OSError, ValueError) as error:
            raise RuleError(f"{path}: cannot be read as TOML ({error})") from None
        known = {f.name: f for f in fields(Rule)}
        for key, value in given.items():
            if key not in known:
                raise RuleError(f"{path}: {key} is no key of the rule; known are {', '.join(known)}")
            what = _wrong(value, type(known[key].default), key)
            if what:
                raise RuleError(f"{path}: {key} = {value!r}: {what}")
        return Rule(**given)


def _wrong(value: Any, kind: type, key: str) -> str:
    """What a value must be, if it is not that."""
    if kind is bool:
        return "" if isinstance(value, bool) else "must be true or false"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    if kind is int:
        return "" if isinstance(value, int) and value >= 2 else "must be a whole number, 2 or more"
    if key == "level":
        return "" if 0 < value < 0.5 else "must be between 0 and 0.5"
    return "" if 0 <= value < 1 else "must be 0 or more and below 1"


@dataclass(frozen=True)
class Candidate:
    """A registered version on disk, verified.

    Attributes:
        version: its number.
        bundle: folder of its bundle; None where it cannot be had.
        evaluation: folder of its evaluation set; None where there is none.
        why: why a folder is None.
    """

    version: int
    bundle: Path | None
    evaluation: Path | None = None
    why: str = ""


@dataclass(frozen=True)
class Pair:
    """What two models made of the same rows.

    Attributes:
        name: what they predict, a target.
        unit: `parcel` or `line`.
        order: (n,) int64; rows of one order are not independent.
        challenger, champion: (n,) losses, of each row.
        slices: (n, slices) bool.
        label: (n,) 0 or 1, to count by; None where there are no two classes.
        probabilities: (n,) of challenger and champion, to compare their calibration; None to leave that out.
    """

    name: str
    unit: str
    order: Array
    challenger: Array
    champion: Array
    slices: pd.DataFrame
    label: Array | None = None
    probabilities: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class Comparison:
    """One figure of two models on the same rows.

    Attributes:
        target: name of the target, `all targets` where they are taken together.
        slice: name of the slice, empty for the whole.
        figure: `log loss` or `calibration error`.
        rows, positives: how many there were; positives None where they are not counted.
        unit: what a row is.
        challenger, champion: the figures.
        difference: challenger's less champion's; lower is better.
        low, high: of its interval, at a level that allows for the number of comparisons.
        verdict: `better`, `worse`, `alike`, or `not compared`.
        why: why it was not compared.
    """

    target: str
    slice: str
    figure: str
    rows: int
    positives: int | None
    unit: str
    challenger: float | None = None
    champion: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = "not compared"
    why: str = ""

    @property
    def place(self) -> str:
        """Target and slice for people."""
        return f"{self.target}, {self.slice}" if self.slice else self.target

    def __str__(self) -> str:
        if self.difference is None or self.low is None or self.high is None:
            return f"{self.place}: {self.figure} not compared: {self.why}"
        return (
            f"{self.place}: {self.figure} {self.challenger:.4f}, the champion's {self.champion:.4f}: "
            f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] on {self.rows:,} {self.unit}s"
        )


@dataclass(frozen=True)
class Decision:
    """What the gate says of a challenger.

    Attributes:
        passed: whether it may be promoted.
        why: in a sentence or two.
        challenger, champion: version numbers; no champion is None.
        since: the rows were decided from then on, UTC; None where nothing was compared.
        comparisons: everything that was compared.
        rule: by what rule.
    """

    passed: bool
    why: str
    challenger: int
    champion: int | None
    rule: Rule
    since: pd.Timestamp | None = None
    comparisons: tuple[Comparison, ...] = field(default=())

    @property
    def against(self) -> tuple[Comparison, ...]:
        """The comparisons that speak against the challenger."""
        return tuple(c for c in self.comparisons if c.verdict == "worse")

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self) | {
            "since": None if self.since is None else self.since.isoformat(),
            "comparisons": [asdict(c) for c in self.comparisons],
        }

    def table(self) -> str:
        """The figures of both models, target by target; of the slices, those that are clearly better or worse."""
        shown = [c for c in self.comparisons if not c.slice or c.verdict in ("better", "worse")]
        if not shown:
            return ""
        rows = [["target", "slice", "figure", "challenger", "champion", "difference", "rows", ""]]
        for c in shown:
            told = c.difference is not None
            rows.append(
                [
                    c.target,
                    c.slice or "all",
                    c.figure,
                    "-" if c.challenger is None else f"{c.challenger:.4f}",
                    "-" if c.champion is None else f"{c.champion:.4f}",
                    f"{c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}]" if told else "-",
                    f"{c.rows:,}",
                    c.verdict if told else c.why,
                ]
            )
        alike = sum(1 for c in self.comparisons if c.slice and c.verdict == "alike")
        few = sum(1 for c in self.comparisons if c.slice and c.verdict == "not compared")
        since = f"{self.since:%Y-%m-%d}" if self.since is not None else "-"
        return (
            f"Challenger {self.challenger} and champion {self.champion} on the same rows, decided from {since}; "
            f"intervals allow for the number of comparisons\n{columns(rows)}\n"
            f"slices: {alike} alike, {few} with too few rows to compare"
        )


Judge = Callable[[Candidate, Candidate], Decision]
"""Says whether the first may replace the second."""


def judge(challenger: Candidate, champion: Candidate, rule: Rule) -> Decision:
    """Compare a challenger with the champion on the challenger's evaluation set.

    What makes a comparison impossible (a bundle of another version of the code, another dataset, no evaluation set, too
    few rows that neither has seen) is a decision too: not passed, and why.
    """

    def refused(why: str) -> Decision:
        return Decision(False, why, challenger.version, champion.version, rule)

    try:
        ours, theirs = (_loaded(c, who) for c, who in ((challenger, "challenger"), (champion, "champion")))
        if challenger.evaluation is None:
            return refused(f"version {challenger.version} cannot be compared: {challenger.why}")
        held = EvaluationSet.load(challenger.evaluation)
    except ArtefactError as error:
        return refused(str(error))
    why = _other_dataset(theirs, held, champion.version)
    if why:
        return refused(why)
    since = max(held.holdout_from, *(pd.Timestamp(b.meta["holdout_from"]) for b in (ours, theirs)))
    lacking = [name for name in theirs.models if name not in ours.models]
    if lacking:
        said = ours.meta.get("not_trained", {}).get(lacking[0], "")
        return refused(
            f"version {challenger.version} has no model of {', '.join(lacking)}, the champion (version "
            f"{champion.version}) has{f': {said}' if said else ''}"
        )
    try:
        pairs = list(row_losses(ours, theirs, held, since))
    except ArtefactError as error:
        return refused(f"the champion (version {champion.version}) cannot be scored: {error}")
    decision = decide(pairs, rule, challenger.version, champion.version, since)
    gained = [name for name in ours.targets if name not in theirs.targets]
    if not decision.passed and gained and not decision.against and decision.comparisons:
        better = [name for name in gained if _beats_its_rate(ours, name, held, since, rule)]
        if better:
            why = f"nothing is worse, and {', '.join(better)} is new and better than the base rate"
            return Decision(True, why, *_versions(decision), rule, since, decision.comparisons)
    return decision


def _versions(decision: Decision) -> tuple[int, int | None]:
    return decision.challenger, decision.champion


def _loaded(candidate: Candidate, who: str) -> Bundle:
    if candidate.bundle is None:
        raise ArtefactError(f"the {who} (version {candidate.version}) cannot be compared: {candidate.why}")
    try:
        return Bundle.load(candidate.bundle)
    except ArtefactError as error:
        said = str(error).replace(f"{candidate.bundle}: ", "")
        raise ArtefactError(f"the {who} (version {candidate.version}) cannot be compared: {said}") from None


def _other_dataset(champion: Bundle, held: EvaluationSet, version: int) -> str:
    """Why the champion's features or labels are not those of the evaluation set, if so."""
    ours, theirs = champion.settings, held.settings
    head = f"the champion (version {version}) was trained"
    for what, a, b in (
        ("on another dataset", ours.name, theirs.name),
        ("on simulated data", ours.simulated, theirs.simulated),
        ("in another time zone", ours.timezone, theirs.timezone),
        ("with another return_window_days", ours.return_window_days, theirs.return_window_days),
        ("with another lost_after_days", ours.lost_after_days, theirs.lost_after_days),
    ):
        if a != b:
            return f"{head} {what}: {a!r}, the challenger's is {b!r}; they cannot be compared"
    gone = [f"{e.table}.{e.column}" for e in ours.extra if e not in theirs.extra]
    if gone:
        return f"{head} with columns that the challenger's dataset.toml does not declare alike: {', '.join(gone)}"
    return ""


def row_losses(challenger: Bundle, champion: Bundle, held: EvaluationSet, since: pd.Timestamp) -> Iterable[Pair]:
    """Both models' losses, for every target and the reasons of returns, on the rows decided from `since` on.

    Raises:
        features.files.ArtefactError: the evaluation set lacks columns that a model reads.
    """
    for name in champion.targets:
        found = _labelled(held, name, since)
        if found is None:
            continue
        rows, at, label = found
        p = [_scores(bundle, name, rows, at) for bundle in (challenger, champion)]
        yield Pair(
            name,
            TARGETS[name].unit,
            rows.order[at],
            log_losses(label, p[0]),
            log_losses(label, p[1]),
            rows.slices.iloc[at].reset_index(drop=True),
            label,
            (p[0], p[1]),
        )
    if champion.reasons is not None and challenger.reasons is not None:
        yield from _reason_losses(challenger.reasons, champion.reasons, held, since)


def _reason_losses(
    challenger: ReasonModel, champion: ReasonModel, held: EvaluationSet, since: pd.Timestamp
) -> Iterable[Pair]:
    """Losses of the reasons of returns: by what inspections found, or, without any, by what was stated.

    A model's share of a reason is held against a finding through the share of right findings, so that a reason it does
    not tell apart costs what a wrong finding costs, and not everything.
    """
    names, right = list(owners(held.settings)), min(held.settings.inspections_right, MOST_CERTAIN)
    for source in reversed(REASONS):
        found = _labelled(held, source, since, "line")
        if found is None:
            continue
        rows, at, label = found
        losses = []
        for model in (challenger, champion):
            shares = np.zeros((len(at), len(names)))
            shares[:, [names.index(r) for r in model.reasons]] = model.shares(_matrix(model.features, rows, at))
            said = right * shares + (1 - right) * (1 - shares) / max(1, len(names) - 1)
            losses.append(-np.log(said[np.arange(len(at)), label]))
        inside = rows.slices.iloc[at].reset_index(drop=True)
        yield Pair(REASON, "line", rows.order[at], losses[0], losses[1], inside)
        return


def _labelled(
    held: EvaluationSet, target: str, since: pd.Timestamp, unit: str = ""
) -> tuple[Rows, Array, Array] | None:
    """The rows with a label of a target that were decided from `since` on, or None if there is none."""
    rows = held.units.get(unit or TARGETS[target].unit)
    if rows is None or target not in rows.labels:
        return None
    moment = np.datetime64(since.tz_convert("UTC").tz_localize(None), "us")
    at = np.flatnonzero((rows.labels[target] >= 0) & (rows.decided_at >= moment))
    return (rows, at, rows.labels[target][at]) if len(at) else None


def _scores(bundle: Bundle, target: str, rows: Rows, at: Array) -> Array:
    model = bundle.targets[target]
    return model.probability(_matrix(model.features, rows, at))


def _matrix(features: FeatureSet, rows: Rows, at: Array) -> Array:
    gone = [n for n in features.names if n not in rows.features]
    if gone:
        raise ArtefactError(f"it reads {', '.join(gone[:3])}, which the challenger's evaluation set does not have")
    return np.ascontiguousarray(rows.features[features.names].to_numpy(dtype=np.float32)[at])


def _beats_its_rate(bundle: Bundle, target: str, held: EvaluationSet, since: pd.Timestamp, rule: Rule) -> bool:
    found = _labelled(held, target, since)
    if found is None:
        return False
    rows, at, label = found
    rate = np.full(len(label), bundle.targets[target].base_rate)
    loss = log_losses(label, rate) - log_losses(label, _scores(bundle, target, rows, at))
    return mean(loss, rows.order[at]).chance_above() < rule.level


def decide(pairs: Iterable[Pair], rule: Rule, challenger: int, champion: int, since: pd.Timestamp) -> Decision:
    """Decide by what two models made of the same rows.

    Args:
        pairs: per target. Whatever has a loss of each row can be compared, also what is no probability of two classes.
        rule: the rule.
        challenger, champion: version numbers.
        since: from when on the rows were decided.
    """
    every = list(pairs)
    few = {p.name: _too_few(p.label, len(p.order), rule, p.unit, rule.least_rows) for p in every}
    told = [p for p in every if not few[p.name]]
    found = [Comparison(p.name, "", "log loss", *_counts(p), p.unit, why=few[p.name]) for p in every if few[p.name]]
    if not told:
        lacking = "; ".join(f"{c.place}: {c.why}" for c in found) or "no target has a label there"
        why = (
            f"too few rows that neither model has seen, decided from {since:%Y-%m-%d}: {lacking}. Train the challenger "
            "on a later extract, so that more comes after its --holdout-from"
        )
        return Decision(False, why, challenger, champion, rule, since, tuple(found))
    share = rule.level / QUESTIONS
    gain = rule.level / (len(told) + (len(told) > 1))
    if len(told) > 1:
        found.append(_together(told, gain, rule))
    found += [_whole(p, share / len(told), gain, rule) for p in told]
    with_p = [p for p in told if p.probabilities is not None]
    found += [_calibration(p, share / len(with_p), rule) for p in with_p]
    found += _in_slices(told, share, rule)
    worse = [c for c in found if c.verdict == "worse"]
    better = [c for c in found if c.verdict == "better" and not c.slice and c.figure == "log loss"]
    comparisons = tuple(found)
    if worse:
        told_of = "\n".join(f"  {c}" for c in sorted(worse, key=lambda c: -_relative(c))[:MOST_TOLD])
        told_of += f"\n  and {len(worse) - MOST_TOLD} more" if len(worse) > MOST_TOLD else ""
        why = (
            f"version {challenger} is clearly worse than the champion (version {champion}) in {len(worse)} of "
            f"{sum(c.difference is not None for c in found)} comparisons:\n{told_of}"
        )
        return Decision(False, why, challenger, champion, rule, since, comparisons)
    if better:
        why = "; ".join(str(c) for c in better)
        return Decision(True, f"nothing is worse, and better is {why}", challenger, champion, rule, since, comparisons)
    if not rule.must_gain:
        return Decision(True, "nothing is worse", challenger, champion, rule, since, comparisons)
    first = next(c for c in found if not c.slice and c.difference is not None)
    why = f"version {challenger} is nowhere clearly better than the champion (version {champion}): {first}"
    return Decision(False, why, challenger, champion, rule, since, comparisons)


def _counts(pair: Pair, at: Array | None = None) -> tuple[int, int | None]:
    label = None if pair.label is None else pair.label if at is None else pair.label[at]
    return len(pair.order) if at is None else len(at), None if label is None else int(label.sum())


def _too_few(label: Array | None, rows: int, rule: Rule, unit: str, least: int = 1) -> str:
    """Why rows are too few to compare on, if they are."""
    if rows < least:
        return f"{rows:,} {unit}s, at least {least:,} are needed"
    fewest = rows if label is None else int(min(label.sum(), rows - label.sum()))
    if fewest < rule.least_positives:
        kind = f"{unit}s" if label is None else "positives" if fewest == int(label.sum()) else "negatives"
        return f"{fewest} {kind} among {rows:,} {unit}s, at least {rule.least_positives} are needed"
    return ""


def _relative(c: Comparison) -> float:
    return (c.difference or 0.0) / max(c.champion or 0.0, 1e-12)


def _verdict(low: float, high: float, tolerated: float, wanted: float) -> str:
    if low > tolerated:
        return "worse"
    return "better" if high < -wanted else "alike"


Allowed = tuple[float, float]
"""What is tolerated, and what is wanted, as parts of the champion's log loss."""


def _compared(pair: Pair, at: Array | None, name: str, chances: tuple[float, float], allowed: Allowed) -> Comparison:
    """The log losses of some rows; the chances are those of a wrong `worse` and of a wrong `better`."""
    a, b = (x if at is None else x[at] for x in (pair.challenger, pair.champion))
    order = pair.order if at is None else pair.order[at]
    champion, found = float(b.mean()), mean(a - b, order)
    if np.isnan(found.error):
        return Comparison(pair.name, name, "log loss", *_counts(pair, at), pair.unit, why="all rows are of one order")
    low, high = _ends(found, *chances)
    verdict = _verdict(low, high, allowed[0] * champion, allowed[1] * champion)
    figures = (float(a.mean()), champion, found.value, low, high)
    return Comparison(pair.name, name, "log loss", *_counts(pair, at), pair.unit, *figures, verdict)


def _ends(found: Estimate, worse: float, better: float) -> tuple[float, float]:
    """The two ends of an interval, each of its own chance of being missed."""
    return found.interval(1 - 2 * worse)[0], found.interval(1 - 2 * better)[1]


def _whole(pair: Pair, worse: float, better: float, rule: Rule) -> Comparison:
    return _compared(pair, None, "", (worse, better), (rule.tolerated_log_loss, rule.least_gain))


def _in_slices(pairs: list[Pair], share: float, rule: Rule) -> list[Comparison]:
    inside = [(p, str(name), np.flatnonzero(p.slices[name].to_numpy())) for p in pairs for name in p.slices]
    few = [_too_few(None if p.label is None else p.label[at], len(at), rule, p.unit) for p, _, at in inside]
    tried = max(1, sum(not why for why in few))
    out = []
    for (pair, name, at), why in zip(inside, few, strict=True):
        if why:
            out.append(Comparison(pair.name, name, "log loss", *_counts(pair, at), pair.unit, why=why))
        else:
            chance = share / tried
            out.append(_compared(pair, at, name, (chance, chance), (rule.tolerated_in_slice, rule.least_gain)))
    return out


def _together(pairs: list[Pair], better: float, rule: Rule) -> Comparison:
    """The mean over the targets of the log loss's relative change; an order's rows of all targets go together."""
    influence, order, values = [], [], []
    for p in pairs:
        d, champion = p.challenger - p.champion, float(p.champion.mean())
        values.append(float(d.mean()) / champion)
        influence.append((d - d.mean()) / (len(d) * champion * len(pairs)))
        order.append(p.order)
    found = of_influence(float(np.mean(values)), np.concatenate(influence), np.concatenate(order))
    low, high = _ends(found, better, better)
    # Not a reason to refuse: what is worse is told of the target it is worse in.
    verdict = "better" if _verdict(low, high, np.inf, rule.least_gain) == "better" else "alike"
    rows = sum(len(p.order) for p in pairs)
    figures = (1 + found.value, 1.0, found.value, low, high)
    return Comparison("all targets", "", "log loss", rows, None, "row", *figures, verdict)


def _calibration(pair: Pair, chance: float, rule: Rule) -> Comparison:
    """The calibration errors, with an interval of their difference from the joint distribution of all bins' gaps."""
    from threadpoolctl import threadpool_limits

    assert pair.label is not None and pair.probabilities is not None
    gaps, pulls = zip(*(_bin_gaps(pair.label, p) for p in pair.probabilities), strict=True)
    ours, theirs = (float(np.abs(g).sum()) for g in gaps)
    sums = np.zeros((int(pair.order.max()) + 1, sum(map(len, gaps))))
    start = 0
    for place, pull, gap in ((*pulls[0], gaps[0]), (*pulls[1], gaps[1])):
        np.add.at(sums, (pair.order, start + place), pull)
        start += len(gap)
    held = np.unique(pair.order)
    spread = sums[held] - sums[held].mean(axis=0)
    with threadpool_limits(1, "blas"):  # matrices this small gain nothing from threads that wait for each other
        covariance = spread.T @ spread * (len(held) / max(len(held) - 1, 1))
        drawn = np.random.default_rng(0).multivariate_normal(np.concatenate(gaps), covariance, DRAWS, method="svd")
    split = len(gaps[0])
    drawn = np.abs(drawn)
    differences = drawn[:, :split].sum(axis=1) - drawn[:, split:].sum(axis=1)
    difference = ours - theirs
    # The basic interval, as in `training.evaluate`: noise only ever adds to an error, and draws have more of it.
    ends = np.quantile(differences, (1 - chance, chance))
    low, high = (float(2 * difference - e) for e in ends)
    rate = float(pair.label.mean())
    verdict = _verdict(low, high, rule.tolerated_calibration * rate, 0.0)
    figures = (ours, theirs, difference, low, high)
    return Comparison(pair.name, "", "calibration error", *_counts(pair), pair.unit, *figures, verdict)


def _bin_gaps(label: Array, probability: Array) -> tuple[Array, tuple[Array, Array]]:
    """Per bin the part of the calibration error with its sign, (bins,); per row its bin, and what it adds there."""
    order = np.argsort(-probability, kind="stable")
    starts = bin_starts(probability[order], CALIBRATION_BINS)
    place = np.empty(len(label), dtype=np.int64)
    place[order] = np.searchsorted(starts, np.arange(len(label)), side="right") - 1
    pull = (label - probability) / len(label)
    return np.bincount(place, weights=pull, minlength=len(starts)), (place, pull)
