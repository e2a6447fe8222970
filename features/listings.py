"""What the shop said about its products, and from when on: the as-of lookup of listing versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.arrays import Array, hash_codes

_SECONDS = 34  # bits for the second of knowledge: until the year 2514


@dataclass(frozen=True)
class Listings:
    """Listing versions, sorted by product and time of knowledge.

    Attributes:
        order: (n,) int64, `products << 34 | second of knowledge`, ascending; `products` numbers the sorted codes.
        products: (p,) uint64 sorted stable codes of the SKUs (`features.arrays.hash_codes`).
        columns: the table's columns in that order, without `sku` and `known_at`.
    """

    order: Array
    products: Array
    columns: Mapping[str, Array]

    @property
    def n(self) -> int:
        """Number of versions."""
        return len(self.order)

    @staticmethod
    def from_columns(table: Mapping[str, Array], before: np.datetime64 | None = None) -> Listings:
        """Sort a listings table. Versions known at or after `before` are left out; an empty known_at means always."""
        sku = hash_codes(table["sku"])
        known = table.get("known_at", np.full(len(sku), np.datetime64("NaT", "us")))
        keep = sku != 0
        if before is not None:
            keep &= np.isnat(known) | (known < before)
        seconds = np.where(np.isnat(known), np.datetime64(0, "s"), known.astype("datetime64[s]")).astype(np.int64)
        products, place = np.unique(sku[keep], return_inverse=True)
        order = (place.astype(np.int64) << _SECONDS) | np.clip(seconds[keep], 0, None)
        by = np.lexsort((known[keep], order))
        at = np.flatnonzero(keep)[by]
        columns = {name: values[at] for name, values in table.items() if name not in ("sku", "known_at")}
        return Listings(order[by], products, columns)

    def find(self, sku: Array, at: Array) -> Array:
        """Row of the version known strictly before `at` (to the second), -1 where there is none.

        Args:
            sku: (n,) uint64 stable codes.
            at: (n,) datetime64[us].
        """
        if not self.n:
            return np.full(len(sku), -1, dtype=np.int64)
        place = np.searchsorted(self.products, sku)
        place = np.minimum(place, len(self.products) - 1)
        second = at.astype("datetime64[s]").astype(np.int64)
        base = place.astype(np.int64) << _SECONDS
        found = np.searchsorted(self.order, base | np.clip(second, 0, (1 << _SECONDS) - 1)) - 1
        ok = (self.products[place] == sku) & ~np.isnat(at) & (found >= 0)
        ok &= self.order[np.maximum(found, 0)] >= base
        return np.where(ok, found, -1)
