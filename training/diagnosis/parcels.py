"""The parcels a diagnosis is about, and what every table calls their places: node, shift, carrier, service, region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.arrays import DAY, Array, absent, local
from features.snapshot import Facts
from training.labels import Labels

TARGETS = ("late", "failed_attempt", "damaged", "undelivered")

SHIFTS = ((6, "night"), (14, "early"), (22, "late"), (24, "night"))
"""Local hours before which a shift ends, and the shift."""


@dataclass(frozen=True)
class Parcels:
    """Parcels decided in the period, oldest first.

    Attributes:
        at: (n,) int64, position in the labels of every target of parcels.
        row: (n,) int64, row of `facts.rows.parcels`.
        parcel_id, order_id: (n,) object.
        decided_at: (n,) datetime64[us], UTC.
        week: (n,) datetime64[D], the Monday of its week, on the shop's calendar.
        places: (n,) object each: node, shift, carrier, service, service_given, region, payment; "" where missing.
    """

    at: Array
    row: Array
    parcel_id: Array
    order_id: Array
    decided_at: Array
    week: Array
    places: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.at)


def parcels_of(facts: Facts, units: Labels, as_of: np.datetime64, since: np.datetime64 | None = None) -> Parcels:
    """The parcels of a dataset that were decided before `as_of`, and from `since` on.

    A service that one carrier alone offers says who carried, and others have nothing to hold against it: such services
    are one, without a name. `service_given` is what the shop wrote.

    Args:
        facts: the dataset, joined.
        units: the labels of any target of parcels: all have the same units.
        as_of: nothing decided later.
        since: nothing decided before.
    """
    take = units.decided_at < as_of
    if since is not None:
        take &= units.decided_at >= since
    at = np.flatnonzero(take)
    row, decided = units.row[at], units.decided_at[at]
    rows, zone = facts.rows.parcels, facts.snapshot.settings.timezone
    region = rows["orders", "destination_region"][row]
    region = np.where(absent(region), rows["orders", "destination_country"][row], region)
    carrier, given = text(rows["parcels", "carrier"][row]), text(rows["parcels", "service"][row])
    pairs = pd.DataFrame({"service": given, "carrier": carrier}).query("carrier != ''").drop_duplicates()
    shared = pairs.groupby("service").size() > 1
    service = np.where(shared.reindex(given).fillna(False).to_numpy(bool), given, "")
    return Parcels(
        at,
        row,
        units.unit_id[at],
        units.group[at],
        decided,
        mondays(decided, zone),
        {
            "node": text(rows["parcels", "node"][row]),
            "shift": shifts(rows["parcels", "packed_at"][row], zone),
            "carrier": carrier,
            "service": service,
            "service_given": given,
            "region": text(region),
            "payment": text(rows["orders", "payment_method"][row]),
        },
    )


def mondays(times: Array, zone: str) -> Array:
    """The Monday of each moment's week on the shop's calendar, (n,) datetime64[D]."""
    day = local(times, zone).astype("datetime64[D]")
    return np.asarray(day - (day.astype(np.int64) + 3) % 7 * np.timedelta64(1, "D"))


def shifts(packed: Array, zone: str) -> Array:
    """The shift in which each parcel was packed, by the hour on the shop's clock: early from 6, late from 14, night
    from 22; "" where that is not known. (n,) object."""
    hour = (local(packed, zone) - local(packed, zone).astype("datetime64[D]")) / np.timedelta64(1, "h")
    return np.select([hour < end for end, _ in SHIFTS], [name for _, name in SHIFTS], "").astype(object)


def judged(parcels: Parcels, units: Labels, as_of: np.datetime64) -> Array:
    """(n,) float64: 1 failed, 0 did not, NaN cannot be judged."""
    label, mature = units.known(as_of)
    return np.where(mature[parcels.at], label[parcels.at].astype(np.float64), np.nan)


def table(
    facts: Facts,
    parcels: Parcels,
    failed: Mapping[str, Array],
    expected: Mapping[str, Array],
    late: pd.DataFrame,
    measured: Mapping[str, Array],
    goods: Array,
) -> pd.DataFrame:
    """A row per parcel that can be judged for one target, or for one measure of its warehouse, at least.

    Args:
        facts: the dataset, joined.
        parcels: the parcels.
        failed: per target (n,), from `judged`.
        expected: per target (n,), what others would have had; NaN where nobody can say.
        late: a row per late parcel, from `training.diagnosis.legs.legs`.
        measured: per measure (n,), from `training.diagnosis.warehouse.measures`.
        goods: (n,) from `alone`.
    """
    rows = facts.rows.parcels
    keep = ~np.isnan(np.stack([*(failed[t] for t in TARGETS), *measured.values()])).all(axis=0)
    row = parcels.row[keep]
    out = pd.DataFrame(
        {
            "parcel_id": parcels.parcel_id[keep],
            "order_id": parcels.order_id[keep],
            "decided_at": parcels.decided_at[keep],
            "week": parcels.week[keep],
            "sku": goods[keep],
            **{name: parcels.places[name][keep] for name in ("node", "shift", "carrier", "service", "service_given")},
            "region": parcels.places["region"][keep],
            "package_type": rows["parcels", "package_type"][row],
            **{t: failed[t][keep] for t in TARGETS},
            **{f"expected_{t}": expected[t][keep] for t in TARGETS if t in expected},
            "missed_cutoff": measured["missed_cutoff"][keep],
            "backlog_hours": measured["backlog_hours"][keep],
            "label_grade": rows["parcels", "label_grade"][row],
            "label_poor": measured["label_poor"][keep],
            "documents_complete": rows["parcels", "documents_complete"][row],
            "address_quality": rows["parcels", "address_quality"][row],
        }
    )
    at = pd.Index(out["parcel_id"]).get_indexer(pd.Index(late["parcel_id"]))
    for name, missing in (("leg", None), ("whose", None), ("hours_late", np.nan)):
        values = np.full(len(out), missing, dtype=object if missing is None else np.float64)
        values[at] = late[name].to_numpy()
        out[name] = values
    return out


def alone(facts: Facts, parcels: Parcels) -> Array:
    """The product of each parcel that holds no other, "" of all others, (n,) object."""
    line = np.flatnonzero(facts.rows.line_parcel >= 0)
    sku, names = pd.factorize(facts.rows.lines["order_lines", "sku"][line])
    parcel = facts.rows.line_parcel[line]
    low = np.full(facts.rows.parcels.n, len(names), dtype=np.int64)
    high = np.full(facts.rows.parcels.n, -1, dtype=np.int64)
    np.minimum.at(low, parcel, sku)
    np.maximum.at(high, parcel, sku)
    of = np.where(low == high, high, -1)[parcels.row]
    return np.append(np.asarray(names, dtype=object), "")[of]


def text(values: Array) -> Array:
    """A column of text with nothing where it is missing, (n,) object."""
    return np.where(absent(values), "", values).astype(object)


def week_number(decided: Array) -> Array:
    """Number of the week of each moment, (n,) int64, for what only has to tell early from late."""
    return np.asarray(decided.astype("datetime64[us]").astype(np.int64) // (7 * DAY.astype(np.int64)))
