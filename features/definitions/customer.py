"""What the customer's own past and address say."""

from __future__ import annotations

import numpy as np

from features.arrays import Array, absent, combine
from features.feature import Theme, yes_no
from features.rows import Level

feature = Theme("customer")


@feature("Address quality", lever=True, signs={"failed_attempt": -1, "undelivered": -1})
def address_quality(rows: Level) -> Array:
    """How complete and checked the address is: 0 unusable, 1 verified."""
    return rows["parcels", "address_quality"]


@feature("Orders before this one:")
def orders_before(rows: Level) -> Array:
    """Orders of the customer on earlier days."""
    count = rows.lookup("customer").count("n:ordered", before=rows["orders", "ordered_at"])
    return np.where(absent(rows["orders", "customer_id"]), np.nan, count)


@feature("Same product in several variants:", level="line", aggregate="max", show=yes_no)
def several_variants(rows: Level) -> Array:
    """The parcel holds the same product in more than one variant: to be tried at home, one comes back."""
    if rows.n < 2:
        return np.zeros(rows.n)
    parcel = rows.rows.line_parcel
    product = combine(parcel.astype(np.uint64) + np.uint64(1), rows.hash("order_lines", "sku"))
    variant = combine(product, rows.hash("order_lines", "variant"))
    # Count distinct variants per product: mark the first line of each (product, variant), then add up per product.
    _, first = np.unique(variant, return_index=True)
    is_first = np.zeros(rows.n)
    is_first[first] = 1.0
    is_first[variant == 0] = 0.0
    _, of_product = np.unique(product, return_inverse=True)
    kinds = np.bincount(of_product, weights=is_first, minlength=1)[of_product] if rows.n else np.zeros(0)
    return (kinds > 1).astype(float)


feature.rate("failed_attempt", "customer", "Failed attempts of this customer", strength=5)
feature.rate("failed_attempt", "customer", "Failed attempts of this customer", window=60, strength=5)
feature.rate("undelivered", "customer", "Undelivered share of this customer", strength=5)
feature.rate("returned", "customer", "Return share of this customer", strength=5)
feature.volume("failed_attempt", "customer", "Parcels of this customer known to their end:")
feature.rate("returned", "region", "Return share of this region", window=365)
