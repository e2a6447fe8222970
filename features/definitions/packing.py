"""How the parcel was packed and labelled."""

from __future__ import annotations

import numpy as np

from features.arrays import Array, match
from features.contracts import TABLES
from features.feature import Theme, one_of, percent, unit, yes_no
from features.rows import Level

feature = Theme("packing")

GRADES: Array = np.array(TABLES["parcels"]["label_grade"].codes, dtype=object)


@feature("Protection level", lever=True, signs={"damaged": -1})
def protection_level(rows: Level) -> Array:
    """How well the package protects: 0 bag, 4 the strongest."""
    return rows["parcels", "protection_level"]


@feature("Empty space filled", lever=True, show=percent, signs={"damaged": -1})
def void_fill_ratio(rows: Level) -> Array:
    """Share of the empty space in the package that was filled."""
    return rows["parcels", "void_fill_ratio"]


@feature("Label grade", lever=True, show=one_of(*GRADES), signs={"undelivered": 1, "late": 1})
def label_grade(rows: Level) -> Array:
    """Print quality of the label: A 0 to F 4."""
    grade = match(rows["parcels", "label_grade"], GRADES)
    return np.where(grade < 0, np.nan, grade)


@feature("Documents complete", lever=True, show=yes_no, signs={"late": -1, "undelivered": -1})
def documents_complete(rows: Level) -> Array:
    """All documents are attached."""
    return rows["parcels", "documents_complete"]


@feature("Parcel weight", show=unit("kg", 1000))
def parcel_weight(rows: Level) -> Array:
    """Weight of the packed parcel, g."""
    return rows["parcels", "weight_g"]


@feature("Longest side", show=unit("cm", 10))
def longest_side(rows: Level) -> Array:
    """Longest outer side of the package, mm."""
    return rows["parcels", "package_length_mm"]


@feature("Package volume", show=unit("litres", 1e6))
def package_volume(rows: Level) -> Array:
    """Outer volume of the package, cubic mm."""
    p = [rows["parcels", f"package_{side}_mm"] for side in ("length", "width", "height")]
    return p[0] * p[1] * p[2]


def _content(rows: Level, one: Array) -> Array:
    """Sum over the parcel's lines of a quantity per piece times the pieces, on parcels."""
    pieces = rows.rows.lines["order_lines", "quantity"]
    return rows.rows.per_parcel(one * np.where(np.isnan(pieces), 1.0, pieces), "sum")


@feature("Package filled by the products", lever=True, show=percent)
def fill_share(rows: Level) -> Array:
    """Volume of the products by the volume of the package, by the listings' sizes: low is over-packed."""
    lines = rows.rows.lines
    sides = [lines["listings", f"{side}_mm"] for side in ("length", "width", "height")]
    outer = package_volume(rows)
    return np.where(outer > 0, _content(rows, sides[0] * sides[1] * sides[2]) / np.where(outer > 0, outer, 1), np.nan)


@feature("Parcel weight by product weight", lever=True, show=percent)
def weight_share(rows: Level) -> Array:
    """Weight of the parcel by the weight of the products after the listings: far from 1, something is missing."""
    content = _content(rows, rows.rows.lines["listings", "weight_g"])
    return np.where(content > 0, rows["parcels", "weight_g"] / np.where(content > 0, content, 1), np.nan)


@feature("Fragility above protection", lever=True, signs={"damaged": 1})
def fragility_gap(rows: Level) -> Array:
    """Fragility of the most fragile product minus the package's protection level."""
    return rows.rows.per_parcel(rows.rows.lines["listings", "fragility"], "max") - protection_level(rows)


feature.rate("damaged", "package", "Damage share of this package")
feature.rate(
    "damaged", "category_package", "Damage share of this category in this package", level="line", aggregate="max"
)
