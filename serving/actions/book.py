"""A policy as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from features.arrays import Array
from features.vocabulary import TARGETS
from serving.actions.parcels import Parcels
from serving.policy import ACTIONS, ANY, Action, Effect, Package, Policy, Tariff

SEEN = 4096
"""Destinations whose carriers are remembered."""


@dataclass(frozen=True)
class Book:
    """A policy as arrays: K actions, first P packages, then C services of carriers, then the others.

    Attributes:
        levels, material, making: (P,) protection, cost, g of CO2e.
        own, factor: (P,) weight in kg, outer by inner volume; NaN where not said.
        sizes: (P, 3) sides in mm; NaN for packages of many sizes.
        holds: (P,) kg.
        place: position of a tariff by carrier and service; `place_of` that of an action by its key.
        price: (C, 3) base, per kg, divisor.
        grams: (C,) of CO2e per kg and km.
        takes: (C, 2) at most so many kg, and mm.
        stated: per target, the effects that are stated: action, effect, and whether it is of one level of protection.
        served: which tariffs serve a destination, as it is asked for.
    """

    policy: Policy
    packages: tuple[Package, ...]
    tariffs: tuple[Tariff, ...]
    keys: tuple[str, ...]
    actions: tuple[Action, ...]
    levels: Array
    material: Array
    making: Array
    own: Array
    factor: Array
    sizes: Array
    holds: Array
    place: Mapping[tuple[str, str], int]
    place_of: Mapping[str, int]
    price: Array
    grams: Array
    takes: Array
    stated: Mapping[str, tuple[tuple[int, Effect, bool], ...]]
    served: dict[tuple[str | None, str | None], Array]

    @staticmethod
    @lru_cache(maxsize=4)
    def of(policy: Policy) -> Book:
        """Those of a policy; the last few are kept."""
        packages, tariffs = tuple(policy.packages.values()), tuple(policy.carriers.values())
        named = [f"package:{p.name}" for p in packages] if "package" in policy.actions else []
        named += [t.key for t in tariffs] if "carrier" in policy.actions else []
        named += [a for a in ACTIONS if a in policy.actions and a not in ("package", "carrier")]
        actions = {key: action for key in named if (action := policy.action(key)) is not None}
        nowhere = (np.nan,) * 3
        return Book(
            policy=policy,
            packages=packages,
            tariffs=tariffs,
            keys=tuple(actions),
            actions=tuple(actions.values()),
            levels=_numbers(p.protection_level for p in packages),
            material=_numbers(p.material_cost for p in packages),
            making=_numbers(p.co2e_g for p in packages),
            own=_numbers(p.weight_g for p in packages) / 1000.0,
            factor=_numbers(p.volume_factor for p in packages),
            sizes=np.array([p.sides_mm or nowhere for p in packages], dtype=np.float64).reshape(-1, 3),
            holds=_numbers(p.max_weight_g for p in packages) / 1000.0,
            place={at: i for i, at in enumerate(policy.carriers)},
            place_of={key: j for j, key in enumerate(actions)},
            price=np.array([(t.base_price, t.price_per_kg, t.dimensional_divisor) for t in tariffs]).reshape(-1, 3),
            grams=_numbers(t.co2e_g_per_kg_km for t in tariffs),
            takes=np.array(
                [(_or_more(t.max_weight_g) / 1000.0, _or_more(t.max_length_mm)) for t in tariffs], dtype=np.float64
            ).reshape(-1, 2),
            stated={target: tuple(_stated(policy, tuple(actions), target)) for target in TARGETS},
            served={},
        )

    @property
    def boxes(self) -> slice:
        """The actions that are packages; none if the policy has no such action."""
        return slice(0, len(self.packages) if "package" in self.policy.actions else 0)

    @property
    def services(self) -> slice:
        """The actions that are services of carriers."""
        first = self.boxes.stop
        return slice(first, first + (len(self.tariffs) if "carrier" in self.policy.actions else 0))

    def serves(self, country: str | None, region: str | None) -> Array:
        """Which tariffs may be used for a destination, (C,) bool."""
        found = self.served.get((country, region))
        if found is None:
            if len(self.served) >= SEEN:
                self.served.clear()
            found = np.array([t.serves(country, region) for t in self.tariffs], dtype=bool)
            self.served[country, region] = found
        return found

    def own_package(self, parcels: Parcels) -> Array:
        """Which of the packages each parcel is in, (n,) int64; -1 where it is none of them."""
        at = {p.name: i for i, p in enumerate(self.packages)}
        return np.array([at.get(x, -1) for x in parcels.package.tolist()], dtype=np.int64)

    def own_tariff(self, parcels: Parcels) -> Array:
        """Which of the tariffs each parcel goes by, (n,) int64; -1 where it is none of them."""
        pairs = zip(parcels.carrier.tolist(), parcels.service.tolist(), strict=True)
        return np.array([self.place.get((c, s or ANY), -1) for c, s in pairs], dtype=np.int64)

    def prices(self, parcels: Parcels) -> Array:
        """What each service asks for each parcel as it is packed, (n, C)."""
        volume = parcels.sides.prod(axis=1)[:, None] / 1000.0
        billable = np.fmax(parcels.weight_kg[:, None], volume / self.price[:, 2])
        return np.asarray(self.price[:, 0] + self.price[:, 1] * np.where(np.isnan(billable), 0.0, billable))


def _numbers(values: Iterable[float | None]) -> Array:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _stated(policy: Policy, keys: Sequence[str], target: str) -> Iterator[tuple[int, Effect, bool]]:
    for j, key in enumerate(keys):
        kind = key.partition(":")[0]
        for name in dict.fromkeys((key, kind)):
            action = policy.actions.get(name)
            if action is not None and target in action.effects:
                yield j, action.effects[target], name == "package"
                break


def _or_more(limit: float | None) -> float:
    return np.inf if limit is None else limit
