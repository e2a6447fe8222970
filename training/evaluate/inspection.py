"""Look at one value: a feature of one parcel or line, and the facts that made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import Array, Tables, columns
from features.dataset import Dataset
from features.feature import Feature
from features.history import Lookup, key
from features.matrix import FeatureSet, catalogue, values
from features.rows import Level, Rows
from features.settings import suggestion
from features.snapshot import Facts, on_clock


@dataclass(frozen=True)
class Count:
    """A count of history that went into a value.

    Attributes:
        entity: what it is counted by, with the key columns and their values.
        field: `n:outcome` (mature units) or `y:outcome` (positives among them), or `n:activity`.
        window: days (or hours) it looks back; None for all time.
        value: the count.
        hourly: the window is in hours.
        facts: the latest changes in it: unit, known (the day it was counted), units and positives (negative where they
            were taken back); all of them add up to the value, but for activities, whose facts are not listed.
    """

    entity: str
    field: str
    window: int | None
    value: float
    hourly: bool
    facts: pd.DataFrame


@dataclass(frozen=True)
class Inspected:
    """A feature's value and what made it.

    Attributes:
        feature: the feature.
        unit_id: parcel or line.
        decided_at: the moment whose knowledge counts.
        value: the value, NaN where it cannot be known.
        inputs: raw columns that were read, and their values.
        counts: history that was read.
    """

    feature: Feature
    unit_id: str
    decided_at: np.datetime64
    value: float
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    counts: list[Count] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "feature": self.feature.name,
            "team": self.feature.team,
            "lever": self.feature.lever,
            "help": self.feature.help,
            "unit_id": self.unit_id,
            "decided_at": f"{self.decided_at}Z",
            "value": None if np.isnan(self.value) else self.value,
            "inputs": self.inputs,
            "counts": [
                {
                    "entity": c.entity,
                    "field": c.field,
                    "window": c.window,
                    "value": c.value,
                    "facts": c.facts.to_dict("records"),
                }
                for c in self.counts
            ],
        }


def inspect(
    dataset: Dataset,
    name: str,
    *,
    parcel: str | None = None,
    line: str | None = None,
    as_of: str | None = None,
    most: int = 5,
) -> Inspected:
    """Compute one feature for one parcel or order line and collect what it was made of.

    Args:
        dataset: the shop's tables.
        name: name of the feature.
        parcel, line: which unit; one of them.
        as_of: history known before this moment; default everything in the extract. Never anything known at the unit's
            decision or later.
        most: how many facts are listed per count.

    Raises:
        ValueError: no such feature, parcel or line, or both or none of them given.
    """
    features = catalogue(dataset.settings)
    if name not in features:
        raise ValueError(
            f"no feature is called {name!r}; {suggestion(name, features) or 'doorstep feature lists them'}"
        )
    if (parcel is None) == (line is None):
        raise ValueError("give one of a parcel and an order line")
    wanted = parcel if parcel is not None else str(line)
    feature = features[name]
    end = None
    if as_of is not None:
        end = on_clock(as_of, dataset.settings.timezone)
    facts = Facts.of(dataset, end)
    trace: list[dict[str, Any]] = []
    table = "parcels" if parcel is not None else "order_lines"
    rows = Rows(_order_of(columns(dataset.tables), table, wanted), facts.snapshot, trace)
    unit, ids = ("parcel", rows.parcel_id) if parcel is not None else ("line", rows.line_id)
    at = int(np.flatnonzero(ids == wanted)[0])
    if unit == "parcel" and feature.level == "line" and feature.aggregate is None:
        raise ValueError(f"{name} describes order lines only: give --line instead of --parcel")
    value = float(values(rows, FeatureSet(unit, (feature,)))[at, 0])
    level = rows.parcels if unit == "parcel" else rows.lines
    mine = _rows_of(rows, feature.level, unit, at)
    read = {"parcel": _rows_of(rows, "parcel", unit, at), "line": _rows_of(rows, "line", unit, at)}
    if feature.level == "parcel":  # what it read of lines, it read of all lines of the parcel
        read["line"] = [int(i) for p in read["parcel"] for i in np.flatnonzero(rows.line_parcel == p)]
    inputs = {t["column"]: [_plain(t["values"][i]) for i in read[t["level"]]] for t in trace if "column" in t}
    counted = _level(rows, feature)
    counts = [
        _count(facts, t["lookup"], t["field"], t["window"], float(t["count"][i]), counted, i, most)
        for t in trace
        if "lookup" in t
        for i in mine
    ]
    return Inspected(feature, str(ids[at]), level.decided_at[at], value, inputs, counts)


def _level(rows: Rows, feature: Feature) -> Level:
    return rows.lines if feature.level == "line" else rows.parcels


def _rows_of(rows: Rows, level: str, unit: str, at: int) -> list[int]:
    """The rows of a level that belong to the unit's row."""
    if unit == level:
        return [at]
    if unit == "line":
        return [int(rows.line_parcel[at])] if rows.line_parcel[at] >= 0 else []
    return [int(i) for i in np.flatnonzero(rows.line_parcel == at)]


def _order_of(tables: Tables, table: str, wanted: str) -> dict[str, dict[str, Array]]:
    """The tables of the one order a parcel or line belongs to."""
    ids = "parcel_id" if table == "parcels" else "line_id"
    found = np.flatnonzero(tables.get(table, {}).get(ids, np.empty(0, dtype=object)) == wanted)
    if not len(found):
        raise ValueError(f"no {ids.removesuffix('_id')} {wanted!r} in the table {table}")
    order = tables[table]["order_id"][found[0]]
    out: dict[str, dict[str, Array]] = {}
    for name in ("orders", "order_lines", "parcels"):
        if name in tables:
            keep = tables[name]["order_id"] == order
            out[name] = {c: v[keep] for c, v in tables[name].items()}
    return out


def _count(
    facts: Facts, lookup: Lookup, name: str, window: int | None, value: float, level: Level, row: int, most: int
) -> Count:
    entity = lookup.entity
    said = ", ".join(f"{c} = {_plain(level[t, c][row])}" for t, c in entity.columns) or "the whole shop"
    outcome = name.split(":", 1)[1]
    if outcome not in facts.outcomes:
        return Count(f"{entity.name} ({said})", name, window, value, entity.hourly, pd.DataFrame())
    happened = facts.outcomes[outcome]
    unit, at, dn, dy = happened.steps(facts.snapshot.as_of)
    units = facts.rows.lines if happened.unit == "line" else facts.rows.parcels
    if entity.level == "line" and happened.unit == "parcel":
        keys, ids = key(entity, facts.rows.lines), facts.rows.parcel_id
        parcel = facts.rows.line_parcel[keys == lookup.keys[row]]
        times = np.bincount(parcel[parcel >= 0], minlength=facts.rows.parcels.n)[unit]  # once for each such line
        mask, dn, dy = times > 0, dn * times, dy * times
    else:
        keys, ids = key(entity, units), facts.rows.line_id if happened.unit == "line" else facts.rows.parcel_id
        mask = keys[unit] == lookup.keys[row]
    size = "datetime64[h]" if entity.hourly else "datetime64[D]"
    bucket = at.astype(size).astype(np.int64)
    last = lookup.bucket[row] if np.ndim(lookup.bucket) else lookup.bucket
    mask &= (bucket < last) & (bucket >= (0 if window is None else last - window)) & (lookup.keys[row] != 0)
    if name.startswith("y:"):
        mask &= dy != 0
    pick = np.flatnonzero(mask)
    pick = pick[np.argsort(at[pick], kind="stable")[::-1][:most]]
    frame = pd.DataFrame(
        {
            "unit": ids[unit[pick]],
            "known": at[pick].astype("datetime64[D]").astype(str),
            "units": dn[pick],
            "positives": dy[pick],
        }
    )
    return Count(f"{entity.name} ({said})", name, window, value, entity.hourly, frame)


def _plain(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else f"{value}Z"
    if isinstance(value, float) and np.isnan(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
