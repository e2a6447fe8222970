"""The registered features, by theme. To add one, write a function in the theme of the team that owns it."""

from __future__ import annotations

from features.definitions import carrier, customer, fulfilment, listing, order, packing
from features.feature import Feature

FEATURES: dict[str, Feature] = {}
for _theme in (order.feature, packing.feature, fulfilment.feature, carrier.feature, listing.feature, customer.feature):
    for _f in _theme.features:
        if _f.name in FEATURES:
            raise ValueError(f"two features are called {_f.name}: rename one")
        FEATURES[_f.name] = _f
