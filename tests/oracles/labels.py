"""What happened to a parcel or line as known just before a moment: the definitions, row by row, in plain Python.

Nothing is computed from facts of that moment or later: they are dropped before anything is looked at. No code of the
project is used but the settings.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from features.dataset import Dataset

PARCEL = ("late", "failed_attempt", "damaged", "undelivered", "handover")
FINAL = ("delivered", "lost", "refused", "returned_to_sender")


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries; every way to be missing is None."""
    return [
        {k: None if v is None or v is pd.NaT or v != v else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]


@dataclass
class Unit:
    """A parcel (or an order without one) or an order line, with the rows it is made of."""

    id: str | None
    decided_at: pd.Timestamp | None
    order: dict[str, Any]
    parcel: dict[str, Any]
    line: dict[str, Any] = field(default_factory=dict)
    of: Unit | None = None  # a line's parcel


class Oracle:
    """All units of a dataset and their labels.

    Attributes:
        parcels: parcels, then orders that have none.
        lines: order lines.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.settings = dataset.settings
        tables = {name: plain(frame) for name, frame in dataset.tables.items()}
        orders = {o["order_id"]: o for o in tables["orders"]}
        self.parcels: list[Unit] = []
        of_order: dict[str, list[Unit]] = defaultdict(list)
        for p in tables.get("parcels", []):
            order = orders.get(p["order_id"], {})
            unit = Unit(p["parcel_id"], p.get("packed_at") or order.get("ordered_at"), order, p)
            self.parcels.append(unit)
            of_order[p["order_id"]].append(unit)
        for order_id, order in orders.items():
            if order_id not in of_order:
                self.parcels.append(Unit(None, order["ordered_at"], order, {}))
                of_order[order_id].append(self.parcels[-1])
        by_id = {u.id: u for u in self.parcels if u.id is not None}
        self.lines: list[Unit] = []
        for row in tables.get("order_lines", []):
            mates, named = of_order.get(row["order_id"], []), row.get("parcel_id")
            if named in by_id:
                of: Unit | None = by_id[named]
            elif named is not None and any(m.id is not None for m in mates):
                of = None  # it travels in a parcel that nobody knows yet
            else:
                of = min(mates, key=lambda m: m.decided_at, default=None)
            self.lines.append(
                Unit(
                    row["line_id"],
                    of.decided_at if of else None,
                    of.order if of else {},
                    of.parcel if of else {},
                    row,
                    of,
                )
            )
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for e in tables.get("events", []):
            self.events[e["parcel_id"]].append(e | {"known": e.get("known_at") or e["happened_at"]})
        self.returns: dict[str, list[pd.Timestamp]] = defaultdict(list)
        for r in tables.get("returns", []):
            self.returns[r["line_id"]].append(r.get("known_at") or r["requested_at"])
        self._answers: dict[Any, int | None] = {}

    def label(self, outcome: str, unit: Unit, as_of: pd.Timestamp) -> int | None:
        """0 or 1, or None where the unit is not mature: it is young, not at risk, or cannot be judged."""
        key = outcome, id(unit), as_of
        if key not in self._answers:
            self._answers[key] = (
                self._line(unit, as_of) if outcome == "returned" else self._parcel(outcome, unit, as_of)
            )
        return self._answers[key]

    def _known(self, parcel: Unit, as_of: pd.Timestamp, *kinds: str) -> list[dict[str, Any]]:
        """Events of the kinds that were known, in the order in which they came to be known."""
        found = [e for e in self.events[parcel.id or ""] if e["known"] < as_of and e["kind"] in kinds]
        return sorted(found, key=lambda e: (e["known"], e["happened_at"]))

    def _parcel(self, outcome: str, unit: Unit, as_of: pd.Timestamp) -> int | None:
        if unit.id is None or unit.decided_at is None or not unit.decided_at < as_of:
            return None
        never_left = self._known(unit, as_of, "handover_failed")
        if outcome == "handover":
            cutoff, scans = unit.parcel.get("pickup_cutoff_at"), self._known(unit, as_of, "handed_over")
            if never_left:
                return 1
            if cutoff is None or not scans or not cutoff + pd.Timedelta(days=1) < as_of:
                return None
            return int(scans[0]["happened_at"] > cutoff)
        if never_left:
            return None
        promised = unit.order.get("promised_to")
        if outcome == "late":
            if promised is None or not promised < as_of:
                return None
            return int(not any(e["happened_at"] <= promised for e in self._known(unit, as_of, "delivered")))
        if not unit.decided_at + pd.Timedelta(days=self.settings.lost_after_days) < as_of:
            return None
        if outcome == "undelivered":
            ends = self._known(unit, as_of, *FINAL)
            last = max(enumerate(ends), key=lambda e: (e[1]["happened_at"], e[0]), default=None)
            return int(last is None or last[1]["kind"] != "delivered")
        return int(bool(self._known(unit, as_of, {"failed_attempt": "attempt_failed"}.get(outcome, outcome))))

    def _line(self, unit: Unit, as_of: pd.Timestamp) -> int | None:
        parcel = unit.of
        if parcel is None or parcel.decided_at is None or not parcel.decided_at < as_of:
            return None
        if self._known(parcel, as_of, "handover_failed"):
            return None
        door = self._known(parcel, as_of, "delivered")
        if not door or not door[0]["happened_at"] + pd.Timedelta(days=self.settings.return_window_days) < as_of:
            return None
        return int(any(known < as_of for known in self.returns[unit.id or ""]))
