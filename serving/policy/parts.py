"""The parts of a policy: what costs what, what may be used where, and the rules of packing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from features.vocabulary import LABEL_GRADES
from serving.policy.keys import ANY


@dataclass(frozen=True)
class Weights:
    """What counts how much in a net benefit, see `SECTIONS`."""

    cost: float = 1.0
    speed: float = 1.0
    reliability: float = 1.0
    co2e: float = 0.0

    def of(self, target: str) -> float:
        """Of what is saved of a target."""
        return self.speed if target == "late" else self.reliability


@dataclass(frozen=True)
class Failure:
    """What one failure costs: `cost + share_of_value * value`."""

    cost: float
    share_of_value: float


@dataclass(frozen=True)
class Tier:
    """A class of parcels by value, see `SECTIONS`."""

    name: str
    from_value: float
    factor: float
    least_protection: float | None
    handling: str


@dataclass(frozen=True)
class Package:
    """One package of the shop, see `SECTIONS`. `sides_mm` is None where it comes in many sizes."""

    name: str
    material_cost: float
    protection_level: float
    co2e_g: float
    weight_g: float | None
    volume_factor: float | None
    sides_mm: tuple[float, float, float] | None
    max_weight_g: float | None


@dataclass(frozen=True, eq=False)
class Tariff:
    """One service of a carrier, see `SECTIONS`. `pickups` are minutes after midnight by node."""

    carrier: str
    service: str
    base_price: float
    price_per_kg: float
    dimensional_divisor: float
    destinations: frozenset[str]
    co2e_g_per_kg_km: float | None
    pickups: Mapping[str, int]
    max_weight_g: float | None
    max_length_mm: float | None

    @property
    def key(self) -> str:
        """The action's key."""
        return f"carrier:{self.carrier}/{self.service}"

    def serves(self, country: str | None, region: str | None) -> bool:
        """Whether it may be used for a destination."""
        return not self.destinations.isdisjoint((ANY, country, f"{country}/{region}", f"{ANY}/{region}"))


@dataclass(frozen=True)
class Effect:
    """What an action does to the odds of a failure, stated and not estimated; an assumption may have no interval."""

    odds_ratio: float
    source: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Action:
    """One thing that can be done, see `SECTIONS`. `to` is the value its column of `parcels` has after it."""

    name: str
    cost: float
    owner: str
    capacity_per_day: int | None
    least_benefit: float
    randomize: float
    primary: str | None
    to: float | None
    change_service: bool
    effects: Mapping[str, Effect]


@dataclass(frozen=True)
class Condition:
    """One comparison of a rule."""

    field: str
    operator: str
    value: Any

    def met(self, given: Any) -> bool | None:
        """Whether a value meets it; None where the value is not known."""
        if given is None or given != given:
            return None
        if self.operator == "one_of":
            return given in self.value
        if self.operator == "is":
            return bool(given == self.value)
        ours, theirs = given, self.value
        if self.field == "label_grade":
            if given not in LABEL_GRADES:
                return None
            ours, theirs = -LABEL_GRADES.index(given), -LABEL_GRADES.index(self.value)
        return bool(ours >= theirs) if self.operator == "at_least" else bool(ours <= theirs)

    def __str__(self) -> str:
        of = f"{self.operator.replace('_', ' ')} " if self.operator != "is" else "is "
        value = ", ".join(self.value) if isinstance(self.value, tuple) else self.value
        return f"{self.field} {of}{json.dumps(value) if isinstance(value, bool) else value}"


@dataclass(frozen=True)
class Rule:
    """One rule of the packing specification."""

    rule: str
    when: tuple[Condition, ...]
    require: tuple[Condition, ...]

    def broken(self, given: Mapping[str, Any]) -> bool:
        """Whether it holds for a parcel of which these fields are known, and is not met."""
        return bool(self.unmet(given))

    def unmet(self, given: Mapping[str, Any]) -> tuple[Condition, ...]:
        """What it requires and a parcel of which these fields are known does not meet; none where it does not hold."""
        if not all(c.met(given.get(c.field)) for c in self.when):
            return ()
        return tuple(c for c in self.require if c.met(given.get(c.field)) is False)


@dataclass(frozen=True)
class Protocol:
    """What the shop does where a failure is likely, see `SECTIONS`. `actions` is None where the policy does not say."""

    target: str
    at_least: float
    owner: str
    steps: tuple[str, ...]
    actions: tuple[str, ...] | None = None

    def asks_for(self, key: str) -> bool:
        """Whether its steps ask for an action, by its key, or for any of its kind."""
        return not {key, key.partition(":")[0]}.isdisjoint(self.actions or ())
