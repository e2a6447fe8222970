"""What happened, as it came to be known: per outcome and unit, when the label matures and every later change of mind.

An outcome is counted at the time its whole cohort can be judged, not when it shows: a return is known on day 3, a kept
order only when the return window has closed, and counting each as it comes would make every recent rate wrong. Facts
that arrive after that (a late scan, a lost parcel found) are changes to the count at the time they became known, so a
count at t never depends on what was learned at t or later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from features.arrays import DAY, Array, absent, match, take
from features.treated import EVERY, treated

if TYPE_CHECKING:
    from features.dataset import Settings
    from features.rows import Rows

NAT = np.datetime64("NaT", "us")

FINAL = ("delivered", "lost", "refused", "returned_to_sender")
TELLING = (*FINAL, "handed_over", "handover_failed", "attempt_failed", "damaged")
"""The kinds of events that an outcome is told by; all others are on the way."""


@dataclass(frozen=True)
class Outcome:
    """One outcome of n units.

    Attributes:
        name: a target's name, or `handover` (missed its pickup), which is only used as history.
        unit: `parcel` or `line`.
        matures_at: (n,) datetime64[us], when the unit's cohort can be judged; NaT where it never can.
        default: label of a mature unit of which no fact is known, 0 or 1.
        fact_unit, fact_at, fact_value: (f,) facts sorted by unit and time of knowledge, and the label from then on.
        withdrawn_at: (n,) datetime64[us], when the unit turned out not to be at risk; NaT for nearly all.
        left_out_at: (n,) datetime64[us], when it was treated against the outcome (`features.treated`): from then on it
            has no label and does not count, as if withdrawn; None: nobody was treated.
        weight: (n,) int64, for how many units each counts; None: for itself.
    """

    name: str
    unit: str
    matures_at: Array
    default: int
    fact_unit: Array
    fact_at: Array
    fact_value: Array
    withdrawn_at: Array
    left_out_at: Array | None = None
    weight: Array | None = None

    @cached_property
    def gone_at(self) -> Array:
        """When a unit was withdrawn or left out, (n,) datetime64[us]; NaT for those that stay."""
        return self.withdrawn_at if self.left_out_at is None else np.fmin(self.withdrawn_at, self.left_out_at)

    def label(self, as_of: np.datetime64) -> tuple[Array, Array]:
        """Labels as known just before `as_of`.

        Returns:
            (n,) int8 labels (the default where nothing is known) and (n,) bool, true where the label is mature.
        """
        label = np.full(len(self.matures_at), self.default, dtype=np.int8)
        known = self.fact_at < as_of
        label[self.fact_unit[known]] = self.fact_value[known]  # sorted by time: the last assignment stays
        return label, (self.matures_at < as_of) & ~(self.gone_at < as_of)

    def steps(self, as_of: np.datetime64) -> tuple[Array, Array, Array, Array]:
        """Every change of the counts before `as_of`: additive, in any order.

        Returns:
            (s,) unit, (s,) time of knowledge, (s,) change in the number of units, (s,) change in the positives.
        """
        n = len(self.matures_at)
        enters = (self.matures_at < as_of) & ~(self.gone_at <= self.matures_at)
        unit, at, value = self.fact_unit, self.fact_at, self.fact_value
        early = at <= self.matures_at[unit]
        first = np.full(n, self.default, dtype=np.int64)
        first[unit[early]] = value[early]
        later = (at > self.matures_at[unit]) & (at < as_of) & ~(at >= self.gone_at[unit])
        late_unit, late_at, late_value = unit[later], at[later], value[later].astype(np.int64)
        before = first[late_unit]
        same = np.flatnonzero(late_unit[1:] == late_unit[:-1]) + 1  # a second change: against the first one
        before[same] = late_value[same - 1]
        entered = np.flatnonzero(enters)
        final = first.copy()
        final[late_unit] = late_value
        left = np.flatnonzero(enters & (self.gone_at < as_of))
        changed = np.concatenate([entered, late_unit, left])
        times = 1 if self.weight is None else self.weight[changed]
        return (
            changed,
            np.concatenate([self.matures_at[entered], late_at, self.gone_at[left]]),
            np.concatenate([np.ones(len(entered)), np.zeros(len(late_unit)), -np.ones(len(left))]).astype(np.int64)
            * times,
            np.concatenate([first[entered], late_value - before, -final[left]]) * times,
        )


def outcomes(tables: Mapping[str, Mapping[str, Array]], rows: Rows, settings: Settings) -> dict[str, Outcome]:
    """Outcomes of all units of a dataset.

    Args:
        tables: arrays per table, see `features.rows.columns`; only events, returns and decisions are read.
        rows: the units, as joined from the same tables.
        settings: windows of the dataset.

    Returns:
        late, failed_attempt, damaged, undelivered and handover per row of `rows.parcels`; returned per row of
        `rows.lines`. Rows that stand for an order without parcel never mature.
    """
    events = tables.get("events", {})
    n = rows.parcels.n
    decided = np.where(absent(rows.parcel_id), NAT, rows.parcels.decided_at)
    none: Array = np.empty(0, dtype=object)
    kind = match(events.get("kind", none), np.array(TELLING, dtype=object))
    tells = np.flatnonzero(kind >= 0)
    unit = match(events.get("parcel_id", none)[tells], rows.parcel_id)
    tells, unit = tells[unit >= 0], unit[unit >= 0]
    happened = events["happened_at"][tells] if len(tells) else np.empty(0, dtype="datetime64[us]")
    known = events["known_at"][tells] if len(tells) and "known_at" in events else np.full(len(tells), NAT)
    known = np.where(np.isnat(known), happened, known)
    order = np.lexsort((happened, known, unit))
    unit, kind, happened, known = unit[order], kind[tells[order]], happened[order], known[order]

    def of(*kinds: str) -> Array:
        return np.isin(kind, [TELLING.index(k) for k in kinds])

    def first(mask: Array, values: Array) -> Array:
        """Value of the earliest known fact of each unit, NaT without one."""
        out = np.full(n, NAT)
        out[unit[mask][::-1]] = values[mask][::-1]
        return out

    withdrawn = first(of("handover_failed"), known)
    delivered = of("delivered")
    settled = decided + settings.lost_after_days * DAY
    promised = rows.parcels["orders", "promised_to"]
    never = np.full(n, NAT)

    def facts(mask: Array, value: int | Array) -> tuple[Array, Array, Array]:
        chosen = np.broadcast_to(np.asarray(value, dtype=np.int8), unit.shape)[mask]
        return unit[mask], known[mask], chosen

    # The kind of the latest happening known so far decides whether a parcel is undelivered.
    final = of(*FINAL)
    f_unit, f_known, f_happened = unit[final], known[final], happened[final]
    seen = _running_latest(f_unit, f_happened)
    f_value = (~delivered[final]).astype(np.int8)[seen]

    handed, cutoff = first(of("handed_over"), happened), rows.parcels["parcels", "pickup_cutoff_at"]
    handed_known = first(of("handed_over"), known)
    # Judged by whichever is known first; a handover given up later turns the label then, not before.
    judged = np.maximum(cutoff + DAY, handed_known)  # a day for the late ones: else only those on time count at first
    judged = np.where(judged < withdrawn, judged, np.where(np.isnat(withdrawn), judged, withdrawn))
    judged = np.maximum(judged, decided)  # a scan dated before the parcel was packed tells nothing before it
    judged_unit, gone = np.flatnonzero(~np.isnat(judged)), np.flatnonzero(~np.isnat(withdrawn))
    missed = (withdrawn <= judged) | (handed > cutoff)
    h_unit = np.concatenate([judged_unit, gone])
    h_known = np.concatenate([judged[judged_unit], withdrawn[gone]])
    h_value = np.concatenate([missed[judged_unit], np.ones(len(gone))]).astype(np.int8)
    h_order = np.lexsort((h_known, h_unit))
    acted = treated(tables.get("decisions", {}), rows.parcel_id)

    def kept(outcome: Outcome) -> Outcome:
        """The outcome of those that nothing was done against."""
        return replace(outcome, left_out_at=acted.left_out_at[outcome.name], weight=acted.weight[outcome.name])

    by = {
        "late": Outcome(
            "late",
            "parcel",
            np.maximum(promised, decided),
            1,
            *facts(delivered & (happened <= promised[unit]), 0),
            withdrawn,
        ),
        "failed_attempt": Outcome("failed_attempt", "parcel", settled, 0, *facts(of("attempt_failed"), 1), withdrawn),
        "damaged": Outcome("damaged", "parcel", settled, 0, *facts(of("damaged"), 1), withdrawn),
        "undelivered": Outcome("undelivered", "parcel", settled, 1, f_unit, f_known, f_value, withdrawn),
        "handover": Outcome(
            "handover", "parcel", judged, 0, h_unit[h_order], h_known[h_order], h_value[h_order], never
        ),
    }
    if "decisions" in tables:
        by |= {name: kept(by[name]) for name in EVERY}
    door, door_known = first(delivered, happened), first(delivered, known)
    closes = np.maximum(np.maximum(door + settings.return_window_days * DAY, door_known), decided)
    by["returned"] = _returned(tables.get("returns", {}), rows, closes, withdrawn)
    return by


def _running_latest(unit: Array, happened: Array) -> Array:
    """For facts sorted by unit: index of the latest happening among the unit's facts up to and including each."""
    if not len(unit):
        return np.empty(0, dtype=np.int64)
    rank = np.empty(len(unit), dtype=np.int64)
    rank[np.argsort(happened, kind="stable")] = np.arange(len(unit))
    block = np.cumsum(np.r_[True, unit[1:] != unit[:-1]])  # a later unit's facts outrank all earlier ones
    top = np.maximum.accumulate(rank + block * np.int64(len(unit))) - block * np.int64(len(unit))
    place = np.empty(len(unit), dtype=np.int64)
    place[rank] = np.arange(len(unit))
    return place[top]


def _returned(returns: Mapping[str, Array], rows: Rows, closes: Array, withdrawn: Array) -> Outcome:
    none: Array = np.empty(0, dtype="datetime64[us]")
    line = match(returns.get("line_id", np.empty(0, dtype=object)), rows.line_id)
    requested = returns.get("requested_at", none)
    known = returns.get("known_at", np.full(len(line), NAT))
    known = np.where(np.isnat(known), requested, known)
    order = np.lexsort((known, line))
    order = order[line[order] >= 0]
    return Outcome(
        "returned",
        "line",
        take(closes, rows.line_parcel, NAT),
        0,
        line[order],
        known[order],
        np.ones(len(order), dtype=np.int8),
        take(withdrawn, rows.line_parcel, NAT),
    )
