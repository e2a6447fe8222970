"""What each action does to the risks, what that is known from, and how bad it could be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from features.arrays import Array, take
from features.rows import Rows
from features.treated import COLUMNS
from features.vocabulary import LABEL_GRADES, TARGETS
from serving.actions.book import Book
from serving.actions.parcels import Parcels
from serving.bundle import Bundle
from serving.explain import logistic
from serving.levers import BETTER, Z
from serving.policy import Effect

BAD_END = 1.644854
"""Standard errors from the estimate to the end that the truth is beyond in one of twenty cases."""

MEASURED, ESTIMATED, ASSUMED = "measured", "model-estimated", "assumed"
TRUST = (MEASURED, ESTIMATED, ASSUMED)
"""Kinds of evidence, most trusted first."""

SIGN: dict[int, tuple[float, float]] = {1: (-np.inf, 0.0), -1: (0.0, np.inf)}
"""What a lever's slope may be where more, or less, of its column is better."""

PROTECTED = ("damaged", "returned")
"""Targets that more protection never makes likelier."""


def moved(
    bundle: Bundle,
    book: Book,
    rows: Rows,
    parcels: Parcels,
    before: Mapping[str, Array],
    scored: Mapping[str, tuple[Array, Array]],
    offered: Array,
) -> tuple[dict[str, Array], dict[str, list[str | None]], dict[str, Array], dict[str, Array]]:
    """Probabilities with each action, (n, K) or (l, K), what each is known from, and what that leaves open.

    The third is (n, P) or (l, P) for packages: probabilities at the bad end of what the estimate, the experiment or the
    assumption leaves open; only of targets that a package moves. The last is (2, n, K) or (2, l, K): the higher and the
    lower end of the 95 % interval of each probability after the action, by its effect alone; NaN where nobody says one.
    Of another carrier the effect is its lever's; what the other pickup does is taken as the model says.

    Takes out of `offered` what a parcel does not need: its column is as good already, or not known.
    """
    boxes, services, k = book.boxes, book.services, len(book.keys)
    steps = _steps(book, rows, parcels)
    for kind, (at, step) in steps.items():
        if kind != "package":
            offered[:, at] &= step * BETTER[COLUMNS[kind]] > 0
    levers = {(x.target, x.column): x for x in bundle.levers}
    moderators: dict[Any, Array] = {}  # several levers depend on the same
    evidence: dict[str, list[str | None]] = {}
    # All targets one below the other: what counts is how often numpy is called.
    last = np.cumsum([len(p) for p in before.values()]).tolist()
    part = {t: slice(end - len(p), end) for (t, p), end in zip(before.items(), last, strict=True)}
    shifts = np.zeros((last[-1] if last else 0, k))
    spread = np.zeros((2, *shifts.shape))
    bad: dict[str, Array] = {}
    of_lines = {kind: _of_lines(step, rows.line_parcel) for kind, (_, step) in steps.items()}
    of_parcels = {kind: np.where(np.isnan(step), 0.0, step) for kind, (_, step) in steps.items()}
    for target in before:
        moves = of_lines if TARGETS[target].unit == "line" else of_parcels
        shift, known = shifts[part[target]], evidence.setdefault(target, [None] * k)
        ends = spread[:, part[target]]
        if target in scored:
            known[services] = [ESTIMATED] * (services.stop - services.start)
            ends[:, :, services] = np.nan  # said below, by the errors of what is scored
        for kind, (at, _) in steps.items():
            lever = levers.get((target, COLUMNS[kind]))
            if lever is not None:
                terms = lever.unit, lever.terms, lever.usual
                if terms not in moderators:
                    moderators[terms] = lever.moderators(rows)
                shift[:, at] = moves[kind] * lever.slope(moderators[terms])[:, None]
                slopes = np.clip(lever.interval(moderators[terms]), *SIGN[BETTER[lever.column]])
                ends[:, :, at] = np.sort(moves[kind] * slopes[:, :, None], axis=0)[::-1]
                known[at] = [ESTIMATED] * (at.stop - at.start)
                if kind == "package":
                    steepest = np.minimum(lever.interval(moderators[terms], BAD_END)[0], 0.0)
                    bad[target] = moves[kind] * steepest[:, None]
        for j, stated, per_level in book.stated[target]:
            if stated.source != "experiment" and known[j] is not None:
                continue
            by = moves["package"][:, j] if per_level else np.ones(len(shift))
            shift[:, j] = math.log(stated.odds_ratio) * by
            known[j] = MEASURED if stated.source == "experiment" else ASSUMED
            ends[:, :, j] = _ends(stated, by)
            if j < boxes.stop:
                # Nobody has said how bad an assumption without an interval may be, so it may be anything.
                worse = np.where(np.isnan(ends[0, :, j]), np.inf, ends[0, :, j])
                bad.setdefault(target, shift[:, boxes].copy())[:, j] = worse
    p = np.concatenate([*before.values()]) if before else np.empty(0)
    with np.errstate(divide="ignore"):  # what is sure stays sure
        z = np.log(p) - np.log1p(-p)
    moved = np.where(shifts == 0.0, p[:, None], logistic(z[:, None] + shifts))
    after = {target: moved[at] for target, at in part.items()}
    with np.errstate(invalid="ignore"):  # what is sure to happen and could be sure not to: is not known
        reached = np.where(spread == 0.0, p[:, None], logistic(z[:, None] + spread))
    between = {target: reached[:, at] for target, at in part.items()}
    for target, known in evidence.items():
        if target in scored:
            own = [j for j in range(services.start, services.stop) if known[j] == ESTIMATED]
            found, error = (x[:, [j - services.start for j in own]] for x in scored[target])
            after[target][:, own] = found
            with np.errstate(divide="ignore"):  # what is sure stays sure
                middle = np.log(found) - np.log1p(-found)
            between[target][:, :, own] = logistic(middle + np.array([Z, -Z])[:, None, None] * error)
        if target in PROTECTED and boxes.stop:
            step = (of_lines if TARGETS[target].unit == "line" else of_parcels)["package"]
            after[target][:, boxes] = _never_riskier(book, before[target], after[target][:, boxes], step)
            for end in between[target]:
                unknown = np.isnan(end[:, boxes])
                kept = _never_riskier(book, before[target], np.where(unknown, np.inf, end[:, boxes]), step)
                end[:, boxes] = np.where(unknown, np.nan, kept)
        np.maximum(between[target][0], after[target], out=between[target][0])
        np.minimum(between[target][1], after[target], out=between[target][1])
    with np.errstate(invalid="ignore"):  # what is sure not to happen and could, for all we know: is not known
        worst = {target: logistic(z[part[target], None] + shift) for target, shift in bad.items()}
    return after, evidence, worst, between


def _ends(stated: Effect, by: Array) -> Array:
    """How far an effect that is stated may move the log-odds, (2, n), the higher end first, where it counts `by` times.

    By its interval, whichever end is the higher: of one level of protection less it is the lower one. NaN where the
    policy states no interval.
    """
    if stated.low is None or stated.high is None:
        return np.where(by == 0.0, 0.0, np.full((2, 1), np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.log([[stated.low], [stated.high]]) * by
    return np.where(by == 0.0, 0.0, np.sort(ends, axis=0)[::-1])


def _of_lines(step: Array, line_parcel: Array) -> Array:
    """What moves by (n, ...) of parcels, of their lines; nothing moves where it is not known."""
    found = take(step, line_parcel, np.nan)
    return np.where(np.isnan(found), 0.0, found)


def _steps(book: Book, rows: Rows, parcels: Parcels) -> dict[str, tuple[slice, Array]]:
    """Per kind of action that changes a column: which actions, and by how much it moves, (n, 1) or (n, P)."""
    out = {}
    if book.boxes.stop:
        out["package"] = book.boxes, book.levels - parcels.level[:, None]
    for j in range(book.services.stop, len(book.keys)):
        key, to = book.keys[j], book.actions[j].to
        if key in COLUMNS and to is not None:
            now = rows.parcels["parcels", COLUMNS[key]]
            if key == "fix_label":
                now = np.array([_GRADES.get(grade, np.nan) for grade in now.tolist()])
            out[key] = slice(j, j + 1), (to - now)[:, None]
    return out


_GRADES = {grade: float(i) for i, grade in enumerate(LABEL_GRADES)}


def _never_riskier(book: Book, before: Array, after: Array, step: Array) -> Array:
    """Risks (n, P) of packages, weakest first, such that more protection is never riskier than less.

    Only what is stated of a single package can be otherwise: it is cut to what the next weaker one has.
    """
    out = np.where(step > 0, np.minimum(after, before[:, None]), np.maximum(after, before[:, None]))
    out = np.where(step == 0, after, out)
    levels = book.levels
    if (levels[1:] > levels[:-1]).all():
        return np.minimum.accumulate(out, axis=1)
    for j in range(1, len(levels)):  # of two equally strong ones, one may be said to be better
        weaker = np.flatnonzero(levels[:j] < levels[j])
        if len(weaker):
            np.minimum(out[:, j], out[:, weaker].min(axis=1), out=out[:, j])
    return out
