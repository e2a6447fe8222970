"""What happened, and whether it is old enough to believe: the labels of a target and the rows that are set aside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from features.arrays import Array, absent
from features.outcomes import Outcome
from features.snapshot import Facts
from features.vocabulary import EVENT_KINDS, TARGETS

_TOLD_BY = {"failed_attempt": "attempt_failed", "damaged": "damaged"}
"""Target -> the kind of event without which nothing is known of it; of all others that is a delivery."""


@dataclass(frozen=True)
class Labels:
    """Units of one target.

    Attributes:
        target: name of the target.
        unit: `parcel` or `line`.
        row: (n,) int64, row of `facts.rows.parcels` or `.lines`.
        unit_id: (n,) object.
        group: (n,) object, the order: rows of one order are not independent.
        decided_at: (n,) datetime64[us].
        matures_at: (n,) datetime64[us], NaT where the label can never be judged (not delivered, no promise ...).
        outcome: what is known and since when.
    """

    target: str
    unit: str
    row: Array
    unit_id: Array
    group: Array
    decided_at: Array
    matures_at: Array
    outcome: Outcome

    def __len__(self) -> int:
        return len(self.row)

    def known(self, as_of: np.datetime64) -> tuple[Array, Array]:
        """(n,) int8 labels and (n,) bool maturity, both as known just before `as_of`."""
        label, mature = self.outcome.label(as_of)
        return label[self.row], mature[self.row]

    def span(self, at: Array) -> dict[str, Any]:
        """How many units stand at these positions, and from when to when they were decided, for `metrics.json`."""
        decided = self.decided_at[at]
        ends = (f"{decided.min()}Z", f"{decided.max()}Z") if len(at) else (None, None)
        return {"rows": len(at), "from": ends[0], "to": ends[1]}


def labels(facts: Facts, target: str) -> Labels:
    """All units of a target, oldest decision first; equal moments in the order of their ids, not of the file.

    Units without a decision time (their order is missing) and rows that stand for an order without parcel are no units.
    """
    rows, unit = facts.rows, TARGETS[target].unit
    level, ids = (rows.parcels, rows.parcel_id) if unit == "parcel" else (rows.lines, rows.line_id)
    outcome = facts.outcomes[target]
    row = np.flatnonzero(~absent(ids) & ~np.isnat(level.decided_at))
    row = row[np.lexsort((ids[row].astype(str), level.decided_at[row]))]
    parcel = row if unit == "parcel" else rows.line_parcel[row]
    return Labels(
        target, unit, row, ids[row], rows.order_id[parcel], level.decided_at[row], outcome.matures_at[row], outcome
    )


def never_told(facts: Facts, target: str) -> str:
    """Why a dataset cannot tell an outcome of any unit, or an empty text.

    Where no event of its kind is recorded at all, nobody kept it: that it never happened would be an invention.
    """
    unit = TARGETS[target].unit
    if target == "returned" and "returns" not in facts.tables:
        return "the dataset has no table returns"
    if target == "returned" and "order_lines" not in facts.tables:
        return "the dataset has returns but no table order_lines: a return belongs to a line of an order"
    if unit == "parcel" and "parcels" not in facts.tables:
        return "the dataset has no table parcels"
    if target == "late" and np.isnat(facts.rows.parcels["orders", "promised_to"]).all():
        return "no order has a promised_to: without a promise nothing is late"
    needed = _TOLD_BY.get(target, "delivered")
    if needed not in set(facts.tables.get("events", {}).get("kind", ())):
        return f"no event of kind {needed} ({EVENT_KINDS[needed]}) is in the table events"
    return ""


def maturity_rule(target: str, return_window_days: int, lost_after_days: int) -> str:
    """The maturity rule of a target in one sentence, with the dataset's windows."""
    t = TARGETS[target]
    rule = t.matures.replace("lost_after_days", f"{lost_after_days} days").replace(
        "return_window_days", f"{return_window_days} days"
    )
    return f"true: {t.positive.replace('lost_after_days', f'{lost_after_days} days')}; judged {rule}"
