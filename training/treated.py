"""What was done to the rows a model is trained on, as log-odds: it learns the risk without it.

A treated parcel is trained on as it was before the action (`features.treated.restored`), its score moved by what the
action did: by the lever of the column that was changed, or by the lot that withheld it from others. Where neither is
known the parcel is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.arrays import Array, match
from features.snapshot import Facts
from features.treated import COLUMNS, treated
from serving.levers import Lever
from training.labels import Labels

LEAST = 5
"""Events in either arm from which on a lot says what an action does."""


@dataclass(frozen=True)
class Acted:
    """Units with the treated ones among them.

    Attributes:
        units: the same units, those with a known offset not left out any more.
        offset: (n,) log-odds that what was done has added; 0 where nothing was.
        left_out, corrected: how many treated units are left out, and how many are trained on with their offset.
        stand_for_them: how many units the lot withheld an action from.
    """

    units: Labels
    offset: Array
    left_out: int
    corrected: int
    stand_for_them: int

    def to_json(self) -> dict[str, int]:
        """Plain data, as in `metrics.json`."""
        return {name: getattr(self, name) for name in ("left_out", "corrected", "stand_for_them")}


def acted(facts: Facts, units: Labels, at: np.datetime64, levers: Sequence[Lever]) -> Acted | None:
    """What was done to units that were decided before a moment; None where nothing is on record.

    Args:
        facts: the joined dataset.
        units: labels of one target of parcels.
        at: the moment training knows up to.
        levers: what changing a column does.
    """
    outcome = units.outcome
    if outcome.left_out_at is None:
        return None
    gone = outcome.left_out_at[units.row]
    out = (gone < at) & (units.decided_at < at)
    kind = np.array([(d or "").partition(":")[0] for d in treated_of(facts)[units.row].tolist()], dtype=object)
    offset = np.where(out, np.nan, 0.0)
    for action in sorted(set(kind[out].tolist()) - {""}):
        mine = np.flatnonzero(out & (kind == action))
        offset[mine] = _effect(facts, units, at, levers, action, mine)
    known = out & ~np.isnan(offset)
    kept = outcome.left_out_at.copy()
    kept[units.row[known]] = np.datetime64("NaT", "us")
    weight = np.ones(len(out)) if outcome.weight is None else outcome.weight[units.row]
    return Acted(
        replace(units, outcome=replace(outcome, left_out_at=kept)),
        np.nan_to_num(offset),
        int(np.count_nonzero(out & ~known)),
        int(np.count_nonzero(known)),
        int(np.count_nonzero((weight > 1) & (units.decided_at < at))),
    )


def treated_of(facts: Facts) -> Array:
    """The action done to each row of parcels, (n,) object; None for none."""
    return treated(facts.tables.get("decisions", {}), facts.rows.parcel_id).done


def _effect(facts: Facts, units: Labels, at: np.datetime64, levers: Sequence[Lever], action: str, mine: Array) -> Array:
    """Log-odds that an action has added to the units at some positions, (m,); NaN where that is not known.

    What the lot has measured and what the lever says are put together by their precision; the lever says how the effect
    differs from one parcel to another. A parcel whose column was not put back trains nothing: it would be taken for one
    that had always been so.
    """
    measured, error = by_lot(facts, units, at, action)
    column = COLUMNS.get(action)
    if column is None:
        return np.full(len(mine), measured)
    row = units.row[mine]
    step = np.full(facts.rows.parcels.n, np.nan)
    if column in facts.steps:
        step[: len(facts.steps[column])] = facts.steps[column]  # rows of orders without a parcel come last
    step = step[row]
    lever = next((x for x in levers if (x.target, x.column) == (units.target, column)), None)
    if lever is None:
        return np.where(np.isnan(step), np.nan, measured)
    moderators = lever.moderators(facts.rows)[row]
    shift = step * lever.slope(moderators)
    mean = float(np.nanmean(shift)) if not np.isnan(shift).all() else 0.0
    if np.isnan(measured) or mean == 0.0:
        return shift
    at_mean = np.nanmean(step[:, None] * moderators, axis=0)
    variance = float(at_mean @ np.array(lever.covariance) @ at_mean)
    together = (measured / error**2 + mean / variance) / (1 / error**2 + 1 / variance)
    return np.asarray(shift * together / mean)


def by_lot(facts: Facts, units: Labels, at: np.datetime64, action: str) -> tuple[float, float]:
    """Log odds ratio of an action on those it was done to, by the arms of its lot, and its standard error.

    The arm that was advised is compared with the one it was withheld from, and what it differs by is put down to those
    of it who did get the action (Bloom 1984). NaN where either arm has fewer than `LEAST` events.
    """
    decisions, nothing = facts.tables["decisions"], (float("nan"), float("nan"))
    label, mature = replace(units.outcome, left_out_at=None).label(at)
    row = match(decisions["parcel_id"], facts.rows.parcel_id)
    absent_ = np.full(len(row), None, dtype=object)
    key, done = (
        np.array([(k or "").partition(":")[0] for k in decisions.get(name, absent_).tolist()], dtype=object)
        for name in ("action", "done")
    )
    chance = decisions.get("propensity", np.full(len(row), np.nan))
    drawn = (chance > 0) & (chance < 1)  # 0: withheld from all, in shadow mode
    use = (row >= 0) & (key == action) & drawn & mature[np.maximum(row, 0)]
    act, control = (use & (decisions["arm"] == arm) for arm in ("act", "control"))
    n = np.array([act.sum(), control.sum()], dtype=np.float64)
    y = np.array([label[row[act]].sum(), label[row[control]].sum()], dtype=np.float64)
    if min(y) < LEAST:
        return nothing
    followed = float((done[act] == action).mean())
    if followed == 0.0:
        return nothing
    rate = y / n
    got = float(np.clip(rate[1] + (rate[0] - rate[1]) / followed, 0.02 * rate[1], 0.98))
    odds = np.log([got / (1 - got), rate[1] / (1 - rate[1])])
    error = float(np.sqrt((1 / y + 1 / (n - y)).sum())) / followed
    return float(odds[0] - odds[1]), error
