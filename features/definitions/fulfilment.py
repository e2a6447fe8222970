"""How ready the warehouse was: time to pack, slack before the pickup, load, missed pickups."""

from __future__ import annotations

import numpy as np

from features.arrays import Array, absent, hours_between
from features.definitions.order import WEEKDAYS, clock, hour, weekday
from features.feature import Theme, number, one_of, unit
from features.rows import Level

feature = Theme("fulfilment")


@feature("Packed before the pickup:", lever=True, show=unit("h"), signs={"late": -1})
def pickup_slack_hours(rows: Level) -> Array:
    """Hours from packing to the carrier's collection; negative: the pickup was missed."""
    return hours_between(rows["parcels", "packed_at"], rows["parcels", "pickup_cutoff_at"])


@feature("From order to packed", lever=True, show=unit("h"), signs={"late": 1})
def pack_hours(rows: Level) -> Array:
    """Hours from the order to the end of packing."""
    return hours_between(rows["orders", "ordered_at"], rows["parcels", "packed_at"])


@feature("From pickup to the promise", show=unit("days"), signs={"late": -1})
def transit_allowance_days(rows: Level) -> Array:
    """Days between the carrier's collection and the end of the promised window."""
    return hours_between(rows["parcels", "pickup_cutoff_at"], rows["orders", "promised_to"]) / 24


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


@feature("Node's load against its usual", show=lambda v: f"{number(v)} times")
def node_load(rows: Level) -> Array:
    """Parcels the node packed in the last 24 hours by its daily mean over 28 days."""
    node = rows.lookup("node_hours")
    known = ~absent(rows["parcels", "node"])
    return np.where(known, _ratio(node.count("n:packed", 24), node.count("n:packed", 672) / 28), np.nan)


@feature("Orders coming in against what is packed", show=lambda v: f"{number(v)} times")
def order_pressure(rows: Level) -> Array:
    """Orders of the last 72 hours by the parcels packed in three days of the last 28: a backlog builds above 1."""
    shop = rows.lookup("shop_hours")
    return _ratio(shop.count("n:ordered", 72), shop.count("n:packed", 672) * (3 / 28))


feature.rate("handover", "node", "Pickups missed by this node", window=28)
feature.rate("handover", "node_carrier", "Pickups missed by this node for this carrier", window=28)
feature.rate("late", "node", "Late share of this node", window=28)
feature.rate("damaged", "node", "Damage share of this node", window=90)
