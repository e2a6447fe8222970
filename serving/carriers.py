"""What another carrier does to a risk on a lane: adjusted log-odds with what they leave open, estimated apart from the
trees.

The trees can be asked about the parcel once more with another carrier, but not how sure they are, and what a lane's few
failures say is drowned in what else they read. A carriers' lever (`training.models.carriers`) holds for each region the
effects of all carriers' services with their covariance, shrunken as far as the lane's parcels leave them open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from features.arrays import Array, absent
from features.rows import Rows
from features.vocabulary import TARGETS


@dataclass(frozen=True)
class CarrierLever:
    """Effects of carriers on one target by region, in log-odds; only their differences mean something.

    Attributes:
        target: name of the target.
        carriers: the p carriers' services it knows, as (carrier, service); service is empty where there is none.
        kinds: (p,) what each is a choice of: a service that several carriers offer, or empty for services of one
            carrier alone. Those of one kind can be held against each other.
        regions: the r - 1 regions it knows; the last place of what follows is for every other one.
        effects: (r, p).
        covariance: (r, p, p); between kinds 0, as nothing is said there.
        rows, positives: what the estimate stands on.
    """

    target: str
    carriers: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    regions: tuple[str, ...]
    effects: tuple[tuple[float, ...], ...]
    covariance: tuple[tuple[tuple[float, ...], ...], ...]
    rows: int
    positives: int

    @property
    def unit(self) -> str:
        """`parcel` or `line`: what the target is counted in."""
        return TARGETS[self.target].unit

    @cached_property
    def place(self) -> Mapping[tuple[str, str], int]:
        """Position of each of `carriers`."""
        return {pair: i for i, pair in enumerate(self.carriers)}

    @cached_property
    def _arrays(self) -> tuple[Array, Array, Array]:
        kinds = np.unique(np.array([*self.kinds, ""], dtype=object).astype(str), return_inverse=True)[1]
        return np.array(self.effects), np.array(self.covariance), kinds[:-1]

    def positions(self, carrier: Array, service: Array) -> Array:
        """Where each carrier's service is, (n,) int64; -1 for one that is not known."""
        pairs = zip(carrier.tolist(), service.tolist(), strict=True)
        return np.array([self.place.get((c or "", s or ""), -1) for c, s in pairs], dtype=np.int64)

    def places(self, region: Array) -> Array:
        """Where each region is, (n,) int64; the last place for one that is not known."""
        known = self._region
        return np.array([known.get(r, len(known)) for r in region.tolist()], dtype=np.int64)

    @cached_property
    def _region(self) -> Mapping[str, int]:
        return {r: i for i, r in enumerate(self.regions)}

    def shift(self, place: Array, now: Array, then: Array) -> tuple[Array, Array]:
        """Change of the log-odds when another carrier takes it, and its standard error.

        Args:
            place: (n,) of the region, from `places`.
            now, then: (n,) the carrier's service as it is and the other one, from `positions`.

        Returns:
            Two (n,); NaN where either is not known or they cannot be held against each other.
        """
        effects, covariance, kinds = self._arrays
        told = (now >= 0) & (then >= 0) & (kinds[now] == kinds[then])
        change = effects[place, then] - effects[place, now]
        variance = covariance[place, then, then] + covariance[place, now, now] - 2 * covariance[place, now, then]
        error = np.sqrt(np.maximum(variance, 0.0))
        return np.where(told, change, np.nan), np.where(told, error, np.nan)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in a bundle's manifest."""
        return asdict(self)

    @staticmethod
    def from_json(given: Mapping[str, Any]) -> CarrierLever:
        """The inverse of `to_json`, also after it was JSON."""
        deep = {"carriers", "effects", "covariance", "kinds", "regions"}
        return CarrierLever(**{k: _tuples(v) if k in deep else v for k, v in given.items()})


def region_of(rows: Rows, unit: str) -> Array:
    """The region each parcel or line goes to, its country where there is no region; (n,) object."""
    level = rows.parcels if unit == "parcel" else rows.lines
    region = level["orders", "destination_region"]
    return np.where(absent(region), level["orders", "destination_country"], region)


def _tuples(given: Any) -> Any:
    return tuple(_tuples(x) for x in given) if isinstance(given, list | tuple) else given
