"""How ready the warehouse was: time to pack, slack before the pickup, load, missed pickups."""

from __future__ import annotations

import numpy as np

from features.arrays import DAY, Array, absent, hours_between
from features.definitions.order import WEEKDAYS, clock, hour, weekday
from features.feature import Theme, number, one_of, unit
from features.rows import Level

feature = Theme("fulfilment")


@feature("Time to the pickup it can still reach", lever=True, show=unit("h"), signs={"late": -1})
def pickup_slack_hours(rows: Level) -> Array:
    """Hours from packing to the pickup the parcel can still reach: its own, or at the same hour of the next day.

    Days without a pickup are not known to it.
    """
    packed, cutoff = rows["parcels", "packed_at"], rows["parcels", "pickup_cutoff_at"]
    return hours_between(packed, cutoff) + 24 * _days_missed(packed, cutoff)


def _days_missed(packed: Array, cutoff: Array) -> Array:
    """Whole days a parcel packed after its pickup waits for the next one; NaN where either time is missing."""
    return np.maximum(np.ceil((packed - cutoff) / DAY), 0.0)


@feature("From order to packed", lever=True, show=unit("h"), signs={"late": 1})
def pack_hours(rows: Level) -> Array:
    """Hours from the order to the end of packing."""
    return hours_between(rows["orders", "ordered_at"], rows["parcels", "packed_at"])


@feature("Delivery days left for the carrier:", lever=True, show=number, signs={"late": -1})
def delivery_days_left(rows: Level) -> Array:
    """Days from Monday to Saturday after the pickup the parcel can still reach, up to the promised one.

    A parcel packed after its pickup waits for the same hour of a later day, and nobody collects on a Sunday.
    """
    packed, cutoff = rows["parcels", "packed_at"], rows["parcels", "pickup_cutoff_at"]
    waits = _days_missed(packed, cutoff)
    handover = _day(rows.local(np.where(np.isnat(cutoff), packed, cutoff)))
    handover = handover + np.where(np.isnan(waits), 0.0, waits)
    handover = handover + (np.mod(handover, 7) == _SUNDAY)
    promised = _day(rows.local(rows["orders", "promised_to"]))
    return promised - handover - (_sundays(promised) - _sundays(handover))


_SUNDAY = 3  # 1970-01-01, day 0, was a Thursday


def _day(local: Array) -> Array:
    """Number of the day, NaN where there is no time."""
    day = local.astype("datetime64[D]").astype(np.float64)
    return np.where(np.isnat(local), np.nan, day)


def _sundays(day: Array) -> Array:
    """How many Sundays there were up to a day."""
    return np.floor((day + 7 - _SUNDAY) / 7)


@feature("Packed at", show=clock)
def packed_hour(rows: Level) -> Array:
    """Hour of the day of packing, on the shop's clock: the shift."""
    return hour(rows.local(rows["parcels", "packed_at"]))


@feature("Packed on", show=one_of(*WEEKDAYS))
def packed_weekday(rows: Level) -> Array:
    """Day of the week of packing, on the shop's clock."""
    return weekday(rows.local(rows["parcels", "packed_at"]))


def _ratio(part: Array, whole: Array) -> Array:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


@feature("Node's load against its usual", show=unit("times"))
def node_load(rows: Level) -> Array:
    """Parcels the node packed in the last 24 hours by its daily mean over 28 days."""
    node = rows.lookup("node_hours")
    known = ~absent(rows["parcels", "node"])
    return np.where(known, _ratio(node.count("n:packed", 24), node.count("n:packed", 672) / 28), np.nan)


feature.rate("handover", "node", "Pickups missed by this node", window=28)
feature.rate("handover", "node_carrier", "Pickups missed by this node for this carrier", window=28)
feature.rate("late", "node", "Late share of this node", window=28)
feature.rate("damaged", "node", "Damage share of this node", window=90)
