"""What history counts, in plain Python: at the beginning of the day of the decision, go through every unit of the shop
that has the same key, ask what was known of it then, and add up. A window is the difference of two such moments."""

from __future__ import annotations

from typing import Any

import pandas as pd
from oracles.labels import Oracle, Unit, plain

from features.dataset import Dataset
from features.history import Entity


class HistoryOracle:
    """Counts and rates of entities as known at a unit's decision."""

    def __init__(self, dataset: Dataset, as_of: pd.Timestamp) -> None:
        self.units = Oracle(dataset)
        self.as_of = as_of
        listings = plain(dataset.tables["listings"]) if "listings" in dataset.tables else []
        self.listings = [x for x in listings if x.get("known_at") is None or x["known_at"] < as_of]
        self._keys: dict[tuple[str, int], tuple[str, ...] | None] = {}
        self.own = {(e.table, e.column): e.known_at for e in dataset.settings.extra}

    def listing(self, sku: str, at: pd.Timestamp) -> dict[str, Any]:
        """The version that was known before the second of `at`."""
        found, best = {}, pd.Timestamp(0, tz="UTC")
        for row in self.listings:
            known = row.get("known_at") or pd.Timestamp(0, tz="UTC")
            if row["sku"] == sku and known.floor("s") < at.floor("s") and known >= best:
                found, best = row, known
        return found

    def key(self, entity: Entity, unit: Unit) -> tuple[str, ...] | None:
        """Values of the entity's columns, None if one that it needs is missing or not yet known."""
        at = entity.name, id(unit)
        if at not in self._keys:
            self._keys[at] = self._key(entity, unit)
        return self._keys[at]

    def _key(self, entity: Entity, unit: Unit) -> tuple[str, ...] | None:
        out = []
        for table, column in entity.columns:
            if table == "listings":
                row = self.listing(unit.line["sku"], unit.decided_at) if unit.decided_at is not None else {}
            else:
                row = {"orders": unit.order, "parcels": unit.parcel, "order_lines": unit.line}[table]
            own = self.own.get((table, column))
            if own not in (None, "known_at", "packed_at", "ordered_at") and not (
                row.get(own) is not None and unit.decided_at is not None and row[own] < unit.decided_at
            ):
                return None
            out.append(row.get(column))
        # Where several columns make the key, a shop may do without its one country or service.
        needed = [c for _, c in entity.columns if len(out) == 1 or c not in ("destination_country", "service")]
        return (
            None if any(v is None for (_, c), v in zip(entity.columns, out, strict=True) if c in needed) else tuple(out)
        )

    def ends(self, entity: Entity, decided: pd.Timestamp) -> pd.Timestamp:
        """The first moment that is too late to be counted, but for `as_of`."""
        size = "h" if entity.hourly else "D"
        last = (self.as_of - pd.Timedelta(microseconds=1)).floor(size) + pd.Timedelta(1, unit=size)
        return min(decided.floor(size), last)

    def count(self, entity: Entity, unit: Unit, field: str, window: int | None) -> int:
        """A count of `Entity.fields` over the last `window` days (hours), or ever."""
        mine = self.key(entity, unit)
        if mine is None or unit.decided_at is None:
            return 0
        end = self.ends(entity, unit.decided_at)
        total = self._at(entity, mine, field, end)
        if window is not None:
            total -= self._at(entity, mine, field, end - pd.Timedelta(window, unit="h" if entity.hourly else "D"))
        return total

    def _at(self, entity: Entity, mine: tuple[str, ...], field: str, moment: pd.Timestamp) -> int:
        moment = min(moment, self.as_of)
        part, outcome = field.split(":")
        members = self.units.lines if entity.level == "line" else self.units.parcels
        same = [m for m in members if self.key(entity, m) == mine]
        if outcome == "packed":
            return sum(1 for m in same if m.parcel.get("packed_at") is not None and m.parcel["packed_at"] < moment)
        if outcome == "ordered":
            return len({m.order["order_id"] for m in same if m.order and m.order["ordered_at"] < moment})
        if outcome == "returned" and entity.level == "parcel":  # every line of the parcels
            parcels = {id(m) for m in same}
            judged = [line for line in self.units.lines if id(line.of) in parcels]
        elif outcome != "returned" and entity.level == "line":  # a parcel's fate counts for each of its lines
            judged = [m.of for m in same if m.of is not None]
        else:
            judged = same
        labels = [self.units.label(outcome, u, moment) for u in judged]
        return sum(1 if part == "n" else label for label in labels if label is not None)

    def rate(
        self, entities: dict[str, Entity], name: str, unit: Unit, outcome: str, window: int | None, strength: float
    ) -> float:
        """(y + strength * parent) / (n + strength), the parent of all time with 50; at the top y / n, NaN if n = 0."""
        entity = entities[name]
        n = self.count(entity, unit, f"n:{outcome}", window)
        y = self.count(entity, unit, f"y:{outcome}", window)
        if entity.parent is None:
            return y / n if n > 0 else float("nan")
        return (y + strength * self.rate(entities, entity.parent, unit, outcome, None, 50.0)) / (n + strength)
