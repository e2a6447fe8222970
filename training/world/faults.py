"""Finds, in the tables of a world, what meets a planted fault: as a person would who had been told of it."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from features.vocabulary import TARGETS
from training.world.scenario import SHIFTS, Fault


def meeting(fault: Fault, tables: Mapping[str, pd.DataFrame], timezone: str = "Europe/Berlin") -> pd.Index:
    """Ids of what meets a fault, by the tables alone.

    Args:
        fault: one of the scenario's.
        tables: the tables of a world, as `Dataset.tables`.
        timezone: the shop's zone.

    Returns:
        Line ids if the fault's first target is one of lines, else parcel ids; in the order of the tables.
    """
    rows = tables["parcels"].merge(tables["orders"], on="order_id", validate="m:1")
    per_line = TARGETS[fault.targets[0]].unit == "line"
    if per_line:
        lines = tables["order_lines"].drop(columns="order_id")
        products = tables["listings"].drop_duplicates("sku", keep="last")[["sku", "category", "brand"]]
        rows = lines.merge(rows, on="parcel_id", validate="m:1").merge(products, on="sku", validate="m:1")
    packed = rows["packed_at"].dt.tz_convert(timezone)
    rows["shift"] = (packed.dt.hour >= 14).map({False: SHIFTS[0], True: SHIFTS[1]})
    when = rows["ordered_at"].dt.tz_convert(timezone) if fault.team == "listing" else packed
    hit = when >= pd.Timestamp(fault.since, tz=timezone)
    for column, value in fault.where.items():
        hit &= rows[column] == value
    return pd.Index(rows.loc[hit, "line_id" if per_line else "parcel_id"])
