"""What a parcel and its goods are worth, weigh and measure, and how it is sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import Array
from features.rows import Rows
from serving.policy import Policy

SIDES = ("package_length_mm", "package_width_mm", "package_height_mm")


def goods_value(rows: Rows) -> tuple[Array, Array]:
    """What the goods of each parcel are worth, (n,), and of each line, (l,); NaN where it is not known.

    Of a parcel it is the sum of its lines', or its order's where a line has no price.
    """
    lines, n, at = rows.lines, rows.parcels.n, rows.line_parcel
    pieces, off = lines["order_lines", "quantity"], lines["order_lines", "discount"]
    each = lines["order_lines", "unit_price"] * np.where(np.isnan(pieces), 1.0, pieces)
    each = each - np.where(np.isnan(off), 0.0, off)
    mine = at >= 0
    count = np.bincount(at[mine], minlength=n)
    total = np.bincount(at[mine], weights=each[mine], minlength=n)
    return np.where((count > 0) & ~np.isnan(total), total, rows.parcels["orders", "order_value"]), each


@dataclass(frozen=True)
class Parcels:
    """What money and rules read of n parcels with l lines; NaN (None) where it is not known.

    Attributes:
        value: (n,) of the goods; by the lines, else the order's.
        line_value: (l,).
        business: (n,) bool.
        tier: (n,) int64, position in the policy's tiers, -1 for none.
        country, region, carrier, service, package: (n,) object.
        level: (n,) protection, as given, else the package's after the policy.
        weight_kg, distance_km: (n,).
        sides: (n, 3) mm.
    """

    value: Array
    line_value: Array
    business: Array
    tier: Array
    country: Array
    region: Array
    carrier: Array
    service: Array
    package: Array
    level: Array
    weight_kg: Array
    distance_km: Array
    sides: Array

    @staticmethod
    def of(rows: Rows, policy: Policy) -> Parcels:
        """Read them."""
        p = rows.parcels
        value, line_value = goods_value(rows)
        edges = np.array([t.from_value for t in policy.tiers])
        tier = np.searchsorted(edges, value, side="right") - 1
        package, level = p["parcels", "package_type"], p["parcels", "protection_level"]
        known = np.array([x.protection_level if (x := policy.packages.get(k)) else np.nan for k in package.tolist()])
        return Parcels(
            value=value,
            line_value=line_value,
            business=p["orders", "is_business"] == 1.0,
            tier=np.where(np.isnan(value), -1, tier),
            country=p["orders", "destination_country"],
            region=p["orders", "destination_region"],
            carrier=p["parcels", "carrier"],
            service=p["parcels", "service"],
            package=package,
            level=np.where(np.isnan(level), known, level),
            weight_kg=p["parcels", "weight_g"] / 1000.0,
            distance_km=p["parcels", "distance_km"],
            sides=np.stack([p["parcels", side] for side in SIDES], axis=1),
        )
