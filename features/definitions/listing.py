"""What the listing says about the product, and how the product did before."""

from __future__ import annotations

from features.arrays import Array, absent
from features.feature import Theme, unit, yes_no
from features.rows import Level

feature = Theme("listing")


@feature("Description length", level="line", aggregate="mean", lever=True, show=unit("characters"))
def description_length(rows: Level) -> Array:
    """Length of the listing's description in characters."""
    return rows["listings", "description_length"]


@feature("Photos:", level="line", aggregate="mean", lever=True)
def photo_count(rows: Level) -> Array:
    """Number of photos in the listing."""
    return rows["listings", "photo_count"]


@feature("Size guide", level="line", aggregate="mean", lever=True, show=yes_no)
def has_size_guide(rows: Level) -> Array:
    """The listing has a size guide."""
    return rows["listings", "has_size_guide"]


@feature("Reviews:", level="line", aggregate="mean")
def review_count(rows: Level) -> Array:
    """Number of reviews of the product."""
    return rows["listings", "review_count"]


@feature("Rating", level="line", aggregate="mean", show=unit("stars"))
def rating(rows: Level) -> Array:
    """Average rating of the product."""
    return rows["listings", "rating"]


@feature("Fragility", level="line", aggregate="max", signs={"damaged": 1})
def fragility(rows: Level) -> Array:
    """How easily the product breaks: 0 cannot break, 4 glass."""
    return rows["listings", "fragility"]


@feature("Product weight", level="line", aggregate="max", show=unit("kg", 1000))
def product_weight(rows: Level) -> Array:
    """Weight of one piece after the listing, g."""
    return rows["listings", "weight_g"]


@feature("Product's longest side", level="line", aggregate="max", show=unit("cm", 10))
def product_length(rows: Level) -> Array:
    """Longest side of one piece after the listing, mm."""
    return rows["listings", "length_mm"]


@feature("The product can be chosen in variants:", level="line", aggregate="max", show=yes_no)
def has_variant(rows: Level) -> Array:
    """The customer had to choose a size, colour or other variant."""
    return (~absent(rows["order_lines", "variant"])).astype(float)


feature.rate("damaged", "category", "Damage share of this category", level="line", aggregate="max")
feature.rate("damaged", "sku", "Damage share of this product", level="line", aggregate="max")
feature.rate("undelivered", "sku", "Undelivered share of this product", level="line", aggregate="max")
feature.rate("returned", "category", "Return share of this category", level="line", aggregate="max", window=365)
feature.rate("returned", "sku", "Return share of this product", level="line", aggregate="max", strength=20)
feature.rate("returned", "sku", "Return share of this product", level="line", window=90, strength=20)
feature.rate("returned", "variant", "Return share of this variant", level="line", strength=20)
feature.rate("returned", "brand", "Return share of this brand", level="line")
feature.volume("returned", "sku", "Sales of this product known to their end:", level="line", aggregate="mean")
