"""The property that no value may know the future, as a function of a dataset and features: who breaks it, and how.

Deletion is written here in plain pandas, from the table contracts and not from the code that is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from features.arrays import columns
from features.dataset import Dataset
from features.feature import Feature
from features.matrix import FeatureSet, values
from features.rows import Rows
from features.settings import Settings
from features.snapshot import Facts, Snapshot

Frames = dict[str, pd.DataFrame]
Features = Callable[[Dataset], Sequence[Feature]]
"""Features of a dataset. A function, so that a planted feature can read the dataset it is computed on."""


def decided_at(frames: Frames) -> pd.Series:
    """When each parcel was packed, else when its order was placed; by parcel_id."""
    parcels = frames["parcels"]
    ordered = parcels["order_id"].map(frames["orders"].set_index("order_id")["ordered_at"])
    packed = parcels.get("packed_at", ordered)
    return packed.fillna(ordered).set_axis(parcels["parcel_id"])


def _first_known(frame: pd.DataFrame, *times: str) -> pd.Series:
    given = [frame[t] for t in times if t in frame]
    known = given[0]
    for other in given[1:]:
        known = known.fillna(other)
    return known


def _forget(frames: Frames, settings: Settings, t: pd.Timestamp) -> Frames:
    """The frames with the values of extra columns that came to be known at `t` or later taken out."""
    out = {name: frame.copy() for name, frame in frames.items()}
    for extra in settings.extra:
        if extra.known_at in (None, "packed_at", "ordered_at", "known_at") or extra.table not in out:
            continue
        frame = out[extra.table]
        late = frame[extra.known_at] >= t
        frame.loc[late, extra.column] = None if extra.kind == "code" else np.nan
        frame.loc[late, extra.known_at] = pd.NaT
    return out


def before(frames: Frames, settings: Settings, t: pd.Timestamp) -> Frames:
    """The dataset as it was known strictly before `t`."""
    out = _forget(frames, settings, t)
    out["orders"] = out["orders"][out["orders"]["ordered_at"] < t]
    if "parcels" in out:
        out["parcels"] = out["parcels"][decided_at(frames).to_numpy() < t]
    if "order_lines" in out:
        out["order_lines"] = out["order_lines"][out["order_lines"]["order_id"].isin(out["orders"]["order_id"])]
    if "listings" in out and "known_at" in out["listings"]:
        out["listings"] = out["listings"][~(out["listings"]["known_at"] >= t)]
    if "events" in out:
        out["events"] = out["events"][_first_known(out["events"], "known_at", "happened_at") < t]
    if "returns" in out:
        out["returns"] = out["returns"][_first_known(out["returns"], "known_at", "requested_at") < t]
    return {name: frame.reset_index(drop=True) for name, frame in out.items()}


def to_score(frames: Frames, settings: Settings, t: pd.Timestamp) -> Frames:
    """The rows that were decided at or before `t`, and nothing else: what a request of that moment could hold."""
    kept = _forget(frames, settings, t)
    orders = kept["orders"][kept["orders"]["ordered_at"] <= t]
    out = {"orders": orders}
    if "parcels" in kept:
        out["parcels"] = kept["parcels"][decided_at(frames).to_numpy() <= t]
    if "order_lines" in kept:
        out["order_lines"] = kept["order_lines"][kept["order_lines"]["order_id"].isin(orders["order_id"])]
    return {name: frame.reset_index(drop=True) for name, frame in out.items()}


def matrix(rows: Rows, unit: str, features: Sequence[Feature]) -> pd.DataFrame:
    """Values of all features that a unit can have, by the unit's id (`order:...` for an order without parcel)."""
    fitting = tuple(f for f in features if unit == "line" or f.level == "parcel" or f.aggregate)
    if unit == "line":
        index = rows.line_id
    else:
        index = np.where(rows.parcel_id == None, "order:" + rows.order_id, rows.parcel_id)  # noqa: E711
    return pd.DataFrame(values(rows, FeatureSet(unit, fitting)), index=index, columns=[f.name for f in fitting])


def differences(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Columns in which two frames differ in any bit, NaN being equal to NaN."""
    a, b = one.to_numpy(np.float32), other.to_numpy(np.float32)
    same = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
    return [str(c) for c, ok in zip(one.columns, same.all(axis=0), strict=True) if not ok]


def moved_by_deletion(dataset: Dataset, features: Features, moments: Sequence[pd.Timestamp]) -> set[str]:
    """Features of which any value decided at or before a moment moves when the facts from then on are deleted.

    Raises:
        AssertionError: there was nothing to compare, so the answer would mean nothing.
    """
    moved: set[str] = set()
    frames, settings = dataset.tables, dataset.settings
    full = Facts.of(dataset)
    compared = 0
    for t in moments:
        past = Dataset(settings, before(frames, settings, t))
        snapshot = Facts.of(past, t).snapshot
        rows = Rows(columns(to_score(frames, settings, t)), snapshot)
        for unit in ("parcel", "line"):
            level = full.rows.parcels if unit == "parcel" else full.rows.lines
            old = (level.decided_at <= np.datetime64(t.tz_localize(None), "us")) & ~np.isnat(level.decided_at)
            whole = matrix(full.rows, unit, features(dataset))[old]
            then = matrix(rows, unit, features(past))
            assert set(whole.index) <= set(then.index), "a unit was lost with the future"
            moved |= set(differences(whole, then.loc[whole.index]))
            compared += len(whole)
    assert compared > 0, "no unit was decided before any of the moments"
    return moved


def moved_alone(dataset: Dataset, features: Features, orders: Sequence[str]) -> set[str]:
    """Features of which any value differs when an order is computed alone instead of with all others."""
    moved: set[str] = set()
    snapshot = Snapshot.from_dataset(dataset)
    tables = columns(dataset.tables)
    batch = Rows(tables, snapshot)
    whole = {unit: matrix(batch, unit, features(dataset)) for unit in ("parcel", "line")}
    for order in orders:
        alone = {
            name: {c: v[np.equal(table["order_id"], order)] for c, v in table.items()}
            for name, table in tables.items()
            if name in ("orders", "parcels", "order_lines")
        }
        rows = Rows(alone, snapshot)
        for unit, expected in whole.items():
            one = matrix(rows, unit, features(dataset))
            moved |= set(differences(one, expected.loc[one.index]))
    return moved
