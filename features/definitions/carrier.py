"""Who carries it, how far, and how that went before."""

from __future__ import annotations

from features.arrays import Array
from features.feature import Theme, unit
from features.rows import Level

feature = Theme("carrier")


@feature("Distance", show=unit("km"))
def distance(rows: Level) -> Array:
    """Distance from the node to the destination, km."""
    return rows["parcels", "distance_km"]


for _outcome, _words in (
    ("late", "Late share"),
    ("failed_attempt", "Failed attempts"),
    ("undelivered", "Undelivered share"),
    ("damaged", "Damage share"),
):
    feature.rate(_outcome, "carrier_service", f"{_words} of this carrier's service", window=90)
    feature.rate(_outcome, "lane", f"{_words} of this carrier's service in this region", window=28)
    feature.rate(_outcome, "lane", f"{_words} of this carrier's service in this region", window=365)
for _outcome, _words in (("failed_attempt", "Failed attempts"), ("undelivered", "Undelivered share")):
    feature.rate(_outcome, "region", f"{_words} in this region", window=365)
    feature.rate(_outcome, "payment_region", f"{_words} with this payment in this region", window=365)
    feature.rate(_outcome, "city", f"{_words} in this city", window=365)
    feature.rate(_outcome, "postal", f"{_words} at this postal code", window=365, strength=20)
feature.volume("undelivered", "lane", "Parcels known of this carrier's service in this region:")
