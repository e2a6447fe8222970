"""What can be done about each parcel, what it would do to the risks, what it costs, and whether it is worth it.

Everything is computed in arrays, for all parcels and all actions together: a request of one parcel and the replay of a
season run through the same code, and a parcel's figures do not depend on the parcels beside it.

An action shifts the log-odds of a target, z_after = z_before + shift. What is known of the shift, in order of trust:

    measured         the policy states it as an experiment's result
    model-estimated  a lever of the bundle (`serving.levers`); for another carrier the carriers' lever
                     (`serving.carriers`), the parcel scored again for its other pickup; for what that lever does not
                     know, another service mostly, the parcel scored again with the other carrier
    assumed          the policy states it, and nobody has measured it

Benefit is money: what failures cost times the change of their probabilities, less what the action costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from features.arrays import Array, local, take, utc
from features.contracts import TABLES
from features.matrix import values
from features.rows import Rows
from features.treated import COLUMNS
from features.vocabulary import LABEL_GRADES, TARGETS
from serving.bundle import Bundle
from serving.carriers import region_of
from serving.explain import logistic
from serving.levers import BETTER
from serving.policy import ACTIONS, ANY, Action, Effect, Package, Policy, Tariff

BAD_END = 1.644854
"""Standard errors from the estimate to the end that the truth is beyond in one of twenty cases."""

LIKELY = 0.430727
"""The same for one of three: another carrier's effects are shrunken, so that their errors are not what is picked."""

ROUNDING = 1e-12
"""Probabilities that are closer than this are the same."""

SEEN = 4096
"""Destinations whose carriers are remembered."""

MEASURED, ESTIMATED, ASSUMED = "measured", "model-estimated", "assumed"
TRUST = (MEASURED, ESTIMATED, ASSUMED)
"""Kinds of evidence, most trusted first."""

PROTECTED = ("damaged", "returned")
"""Targets that more protection never makes likelier."""

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


@dataclass(frozen=True)
class Ladder:
    """The packages of the policy, weakest first, under n parcels; (n, P) each.

    Attributes:
        names: the P packages.
        level, material: (P,) protection and cost of each.
        own: the package the parcel is in.
        fits: it takes the goods and the weight, and the parcel's tier allows it.
        dimensional_kg: dimensional weight with the parcel's tariff; NaN without.
        freight: with the parcel's tariff; NaN without.
        co2e_g: of the package, and of carriage where it is known.
    """

    names: tuple[str, ...]
    level: Array
    material: Array
    own: Array
    fits: Array
    dimensional_kg: Array
    freight: Array
    co2e_g: Array


@dataclass(frozen=True)
class Options:
    """What K actions would do for n parcels with l lines.

    Attributes:
        keys, actions: what can be done, and what the policy says of it.
        place: position of each key.
        told: something is known of what it does; of a package: what it does to damage.
        offered: (n, K) it can be done to the parcel, and something is known of what it does.
        before: per target, (n,) or (l,) probabilities as they are.
        after: per target, (n, K) or (l, K) with the action.
        evidence: per target and action, one of `TRUST`; None where it changes nothing.
        saving: (n, K) money that failures would cost less, expected.
        cost: (n, K) money: of the action, of material and freight; negative where it saves some.
        co2e_g: (n, K) added; NaN where it is not known, and counts as nothing.
        benefit: (n, K) net, weighted as the policy says.
        least: (K,) benefit below which the action is not recommended.
        safe: (n, K) false for a weaker package that is worth it only if its effect is as small as estimated: the best
            of many estimates is too good to be true, and protection is taken away only where the bad end is worth it.
            False also for another service of a carrier that is less likely than two to one to be worth anything.
        breaks: (n, K) another package or service with which the parcel breaks a packing rule that reads it.
        parcels, ladder: what it was made from, for the answer.
        line_parcel: (l,) the parcel of each line.
    """

    keys: tuple[str, ...]
    actions: tuple[Action, ...]
    place: Mapping[str, int]
    told: tuple[bool, ...]
    offered: Array
    before: Mapping[str, Array]
    after: Mapping[str, Array]
    evidence: Mapping[str, list[str | None]]
    saving: Array
    cost: Array
    co2e_g: Array
    benefit: Array
    least: Array
    safe: Array
    breaks: Array
    parcels: Parcels
    ladder: Ladder
    line_parcel: Array

    def ranked(self, row: int) -> list[int]:
        """The actions that are offered for a parcel, the highest benefit first; ties in the order of the keys."""
        benefit, offered = self.benefit[row].tolist(), self.offered[row].tolist()
        return sorted((k for k in range(len(self.keys)) if offered[k]), key=lambda k: -benefit[k])

    @property
    def open(self) -> Array:
        """(n, K) what may be recommended, if it is worth it."""
        return np.asarray(self.offered & self.safe & ~self.breaks)

    def best(self) -> Array:
        """The one action worth doing for each parcel, (n,) position in `keys`; -1 where nothing is worth it."""
        if not self.keys:
            return np.full(len(self.offered), -1)
        worth = np.where(self.open & (self.benefit > self.least), self.benefit, -np.inf)
        best = worth.argmax(axis=1)
        return np.where(np.isfinite(np.take_along_axis(worth, best[:, None], axis=1)[:, 0]), best, -1)


def weigh(
    bundle: Bundle,
    policy: Policy,
    rows: Rows,
    probability: Mapping[str, Array],
    matrix: Callable[[str], Array] | None = None,
) -> Options:
    """What every action of the policy would do for every parcel.

    Args:
        bundle: the models, and its levers.
        policy: what things cost.
        rows: the parcels.
        probability: per target of the bundle, (n,) or (l,), as served.
        matrix: the values of `bundle.columns` of a unit for the rows, where they are there already.
    """
    book = _book(policy)
    parcels = Parcels.of(rows, policy)
    ladder = _ladder(book, rows, parcels)
    n, k = rows.parcels.n, len(book.keys)
    boxes, services = book.boxes, book.services
    before = {t: probability[t] for t in TARGETS if t in probability}
    offered = np.ones((n, k), dtype=bool)
    cost, co2e = np.zeros((n, k)), np.zeros((n, k))
    if boxes.stop > boxes.start:
        offered[:, boxes], cost[:, boxes], co2e[:, boxes] = _packages(book, parcels, ladder)
    scored: dict[str, Array] = {}
    left_open: dict[str, Array] = {}
    if services.stop > services.start:
        offered[:, services], cost[:, services], co2e[:, services] = _services(book, parcels)
        whole = matrix or (lambda unit: values(rows, bundle.columns(unit)))
        for target, found, error in _rescored(bundle, book, rows, offered[:, services], before, whole):
            scored[target], left_open[target] = found, error
    cost += np.array([a.cost for a in book.actions])
    after, evidence, worst = _moved(bundle, book, rows, parcels, before, scored, offered)

    # Nothing is offered of which nobody can say what it does: a weaker box of unknown risk would look free.
    says = [{t for t in before if evidence[t][j] is not None} for j in range(k)]
    decisive = {"damaged"} if "damaged" in before else set(before)
    told = tuple(bool(says[j] & (decisive if j < boxes.stop else set(before))) for j in range(k))
    offered &= np.array(told, dtype=bool)
    factor = _factor(policy, parcels)
    saving, weighted, doubt = np.zeros((n, k)), np.zeros((n, k)), np.zeros((n, k))
    variance = np.zeros((n, services.stop - services.start))
    for target, p in before.items():
        each, line = _failure(policy, parcels, target)[:, None], TARGETS[target].unit == "line"
        gain = (p[:, None] - after[target]) * each
        if line:
            gain = _per_parcel(gain, rows.line_parcel, n)
        gain *= factor[:, None]
        saving += gain
        weighted += policy.weights.of(target) * gain
        if target in worst:
            loss = np.maximum(worst[target] - after[target][:, boxes], 0.0) * each
            loss = _per_parcel(loss, rows.line_parcel, n) if line else loss
            doubt[:, boxes] += policy.weights.of(target) * loss * factor[:, None]
        if target in left_open:
            # A carrier is as good or bad to all lines of the parcel; what it does to one target says nothing of others.
            p_after = after[target][:, services]
            by_lever = np.array([e == ESTIMATED for e in evidence[target][services]])
            error = by_lever * left_open[target] * p_after * (1.0 - p_after) * each
            error = _per_parcel(error, rows.line_parcel, n) if line else error
            variance += (policy.weights.of(target) * error * factor[:, None]) ** 2
    doubt[:, services] = LIKELY * np.sqrt(variance)
    kilograms = np.where(np.isnan(co2e), 0.0, co2e) / 1000.0
    benefit = weighted - policy.weights.cost * cost - policy.weights.co2e * kilograms
    least = np.array([a.least_benefit for a in book.actions])
    doubtful = np.zeros((n, k), dtype=bool)
    doubtful[:, boxes] = book.levels[: boxes.stop] < parcels.level[:, None]
    doubtful[:, services] = True
    return Options(
        keys=book.keys,
        actions=book.actions,
        place=book.place_of,
        told=told,
        offered=offered,
        before=before,
        after=after,
        evidence=evidence,
        saving=saving,
        cost=cost,
        co2e_g=co2e,
        benefit=benefit,
        least=least,
        safe=~doubtful | (benefit - doubt > 0.0),
        breaks=_breaks(book, rows, parcels),
        parcels=parcels,
        ladder=ladder,
        line_parcel=rows.line_parcel,
    )


def spent(policy: Policy, rows: Rows, happened: Mapping[str, Array]) -> Array:
    """What parcels cost at the policy's prices, as they were packed and sent: failures, material and freight, (n,).

    What has no price there, a package or a service that the policy does not know, counts as nothing.

    Args:
        policy: what things cost.
        rows: the parcels.
        happened: per target, (n,) or (l,), 1 where it happened, else 0.
    """
    book, parcels = _book(policy), Parcels.of(rows, policy)
    out = np.zeros(rows.parcels.n)
    for target, which in happened.items():
        money = (which * _failure(policy, parcels, target))[:, None]
        out += (_per_parcel(money, rows.line_parcel, len(out)) if TARGETS[target].unit == "line" else money)[:, 0]
    out *= _factor(policy, parcels)
    out += np.array([*(p.material_cost for p in book.packages), 0.0])[
        _positions(parcels.package, {p.name: i for i, p in enumerate(book.packages)})
    ]
    tariff = _own_tariff(book, parcels)
    sent = np.flatnonzero(tariff >= 0)
    out[sent] += _prices(book, parcels)[sent, tariff[sent]]
    return out


def _failure(policy: Policy, parcels: Parcels, target: str) -> Array:
    """What one failure costs of each parcel or line, (n,) or (l,), before the factors of `_factor`."""
    failure = policy.failures[target]
    value = parcels.line_value if TARGETS[target].unit == "line" else parcels.value
    return np.asarray(failure.cost + failure.share_of_value * np.where(np.isnan(value), 0.0, value))


def _per_parcel(of_lines: Array, line_parcel: Array, n: int) -> Array:
    """Sums (n, K) of figures of lines (l, K), added line by line whatever else there is."""
    out = np.zeros((n, of_lines.shape[1]))
    mine = line_parcel >= 0
    np.add.at(out, line_parcel[mine], of_lines[mine])
    return out


def _factor(policy: Policy, parcels: Parcels) -> Array:
    """How many times as much a failure of each parcel costs, (n,)."""
    tiers = np.array([*(t.factor for t in policy.tiers), 1.0])
    return tiers[parcels.tier] * np.where(parcels.business, policy.business_factor, 1.0)


@dataclass(frozen=True)
class _Book:
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


def _numbers(values: Iterable[float | None]) -> Array:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


@lru_cache(maxsize=4)
def _book(policy: Policy) -> _Book:
    packages, tariffs = tuple(policy.packages.values()), tuple(policy.carriers.values())
    named = [f"package:{p.name}" for p in packages] if "package" in policy.actions else []
    named += [t.key for t in tariffs] if "carrier" in policy.actions else []
    named += [a for a in ACTIONS if a in policy.actions and a not in ("package", "carrier")]
    actions = {key: action for key in named if (action := policy.action(key)) is not None}
    nowhere = (np.nan,) * 3
    return _Book(
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


def _positions(names: Array, known: Mapping[Any, int]) -> Array:
    """Where each name is, (n,) int64, -1 where it is not known."""
    return np.array([known.get(x, -1) for x in names.tolist()], dtype=np.int64)


def _own_tariff(book: _Book, parcels: Parcels) -> Array:
    pairs = zip(parcels.carrier.tolist(), parcels.service.tolist(), strict=True)
    return np.array([book.place.get((c, s or ANY), -1) for c, s in pairs], dtype=np.int64)


def _padded(table: Array, at: Array) -> Array:
    """Rows of a table (m, ...), NaN where the position is -1."""
    last = np.full((1, *table.shape[1:]), np.nan)
    return np.concatenate([table, last])[at]


def _ladder(book: _Book, rows: Rows, parcels: Parcels) -> Ladder:
    """Every package under every parcel."""
    policy = book.policy
    at = _positions(parcels.package, {p.name: i for i, p in enumerate(book.packages)})
    own = at[:, None] == np.arange(len(book.packages))
    tariff = _own_tariff(book, parcels)
    # A package of many sizes is made to the goods: its sides are those of the parcel, scaled.
    scale = np.cbrt(book.factor / _padded(book.factor, at)[:, None])
    sides = np.where(np.isnan(scale), 1.0, scale)[:, :, None] * parcels.sides[:, None, :]
    sides = np.where(np.isnan(book.sizes), sides, book.sizes)
    sides = np.where(own[:, :, None], parcels.sides[:, None, :], sides)
    heavier = book.own - _padded(book.own, at)[:, None]
    weight = parcels.weight_kg[:, None] + np.where(np.isnan(heavier), 0.0, heavier)
    price = _padded(book.price, tariff)
    dimensional = sides.prod(axis=2) / 1000.0 / price[:, 2:]
    freight = price[:, :1] + price[:, 1:2] * np.fmax(weight, dimensional)
    carriage = _padded(book.grams, tariff)[:, None] * weight * parcels.distance_km[:, None]
    least = np.array([t.least_protection or 0.0 for t in policy.tiers] + [0.0])[parcels.tier]
    fits = ~(weight > book.holds) & (book.levels >= least[:, None])
    if not np.isnan(book.sizes).all():
        fits &= _room(book, rows)
    return Ladder(
        names=tuple(p.name for p in book.packages),
        own=own,
        fits=fits,
        level=book.levels,
        material=book.material,
        dimensional_kg=dimensional,
        freight=freight,
        co2e_g=book.making + np.where(np.isnan(carriage), 0.0, carriage),
    )


def _room(book: _Book, rows: Rows) -> Array:
    """Whether a package of one size takes the goods by the listings' sizes, (n, P) bool; true where not known."""
    lines = rows.lines
    pieces = lines["order_lines", "quantity"]
    goods = np.sort(np.stack([lines["listings", f"{side}_mm"] for side in ("length", "width", "height")]), axis=0)
    most = np.stack([rows.per_parcel(side, "max") for side in goods], axis=1)
    volume = rows.per_parcel(goods.prod(axis=0) * np.where(np.isnan(pieces), 1.0, pieces), "sum")
    box = np.sort(book.sizes, axis=1)
    small = (most[:, None, :] > box).any(axis=2) | (volume[:, None] > box.prod(axis=1))
    return np.asarray(~small)


def _packages(book: _Book, parcels: Parcels, ladder: Ladder) -> tuple[Array, Array, Array]:
    """Whether each package may be taken instead, what it costs more, and its CO2e; (n, P) each."""

    def more(values: Array) -> Array:
        """Against the package the parcel is in; against nothing where that is not one of the policy's."""
        mine = np.where(ladder.own, values, 0.0).sum(axis=1, keepdims=True)
        change = values - mine
        return np.where(np.isnan(change), 0.0, change)

    known = ladder.own.any(axis=1, keepdims=True)
    # Without a package of the policy's the sides, the weight and the freight are the parcel's own whatever the package.
    freight = np.where(known, more(ladder.freight), 0.0)
    offered = ladder.fits & ~ladder.own & ~np.isnan(parcels.level)[:, None]
    co2e = np.where(known, more(ladder.co2e_g), book.making)
    return offered, more(np.broadcast_to(book.material, ladder.own.shape)) + freight, co2e


def _services(book: _Book, parcels: Parcels) -> tuple[Array, Array, Array]:
    """Whether each service of a carrier may be used instead, what it costs more, and its CO2e; (n, C) each."""
    tariff = _own_tariff(book, parcels)
    places = zip(parcels.country.tolist(), parcels.region.tolist(), strict=True)
    offered = np.array([book.serves(c, r) for c, r in places], dtype=bool).reshape(len(tariff), len(book.tariffs))
    offered &= (tariff >= 0)[:, None] & (tariff[:, None] != np.arange(len(book.tariffs)))
    offered &= ~(parcels.weight_kg[:, None] > book.takes[:, 0]) & ~(parcels.sides[:, :1] > book.takes[:, 1])
    if not book.policy.actions["carrier"].change_service:
        names = np.array([t.service for t in book.tariffs], dtype=object)
        mine = np.array([s or ANY for s in parcels.service.tolist()], dtype=object)
        offered &= np.equal(names[None], mine[:, None]).astype(bool)
    price = _prices(book, parcels)
    carriage = book.grams * (parcels.weight_kg * parcels.distance_km)[:, None]
    mine = np.maximum(tariff, 0)[:, None]
    more = price - np.take_along_axis(price, mine, axis=1)
    co2e = carriage - np.take_along_axis(carriage, mine, axis=1)
    return offered, more, co2e


def fact(rows: Rows, policy: Policy, value: Array, field: str) -> list[Any]:
    """A field of the packing rules for every parcel, None where it is not known.

    Args:
        rows: the parcels.
        policy: says what is abroad.
        value: of the goods of each parcel, (n,).
        field: one of `serving.policy.FIELDS`.
    """
    p = rows.parcels
    if field == "fragility":
        found: list[Any] = rows.per_parcel(rows.lines["listings", "fragility"], "max").tolist()
    elif field == "value":
        found = value.tolist()
    elif field == "abroad":
        home = policy.home_countries
        countries = p["orders", "destination_country"].tolist()
        return [None if c is None else bool(home) and c not in home for c in countries]
    else:
        table = next(t for t in ("parcels", "orders") if field in TABLES[t].names)
        found = p[table, field].tolist()
        if TABLES[table][field].kind == "flag":
            return [None if v != v else bool(v) for v in found]
    return [None if v != v else v for v in found]


def _breaks(book: _Book, rows: Rows, parcels: Parcels) -> Array:
    """Whether a parcel would break a packing rule that reads what an action changes, (n, K) bool.

    Of another package that is its name and its protection, of another service the carrier and the service.
    """
    n = rows.parcels.n
    out = np.zeros((n, len(book.keys)), dtype=bool)
    packages = [{"package_type": p.name, "protection_level": p.protection_level} for p in book.packages]
    services = [{"carrier": t.carrier, "service": None if t.service == ANY else t.service} for t in book.tariffs]
    for at, changed in ((book.boxes, packages), (book.services, services)):
        if at.stop == at.start:
            continue
        fields = changed[0].keys()
        for rule in book.policy.specification:
            read = {c.field for c in (*rule.when, *rule.require)}
            if not read & fields:
                continue
            known = {field: fact(rows, book.policy, parcels.value, field) for field in read}
            for row in range(n):
                given = {field: found[row] for field, found in known.items()}
                if all(c.met(given[c.field]) for c in rule.when if c.field not in fields):
                    out[row, at] |= [rule.broken(given | change) for change in changed]
    return out


def _prices(book: _Book, parcels: Parcels) -> Array:
    """What each service asks for each parcel as it is packed, (n, C)."""
    volume = parcels.sides.prod(axis=1)[:, None] / 1000.0
    billable = np.fmax(parcels.weight_kg[:, None], volume / book.price[:, 2])
    return np.asarray(book.price[:, 0] + book.price[:, 1] * np.where(np.isnan(billable), 0.0, billable))


def _rescored(
    bundle: Bundle,
    book: _Book,
    rows: Rows,
    can: Array,
    known: Mapping[str, Array],
    whole: Callable[[str], Array],
) -> Iterator[tuple[str, Array, Array]]:
    """Probabilities of each target had each service of a carrier been used, where it can be, all together, and standard
    errors of their log-odds; 0 where nobody can say one."""
    at, which = np.nonzero(can)
    tariffs = [book.tariffs[c] for c in which.tolist()]
    p = rows.parcels
    minutes = [
        -1 if node is None else t.pickups.get(node, -1)
        for t, node in zip(tariffs, p["parcels", "node"][at].tolist(), strict=True)
    ]
    # The first collection on or after the day of packing: one that is missed is rolled on by the features.
    packed = local(p["parcels", "packed_at"][at], rows.zone).astype("datetime64[D]").astype("datetime64[us]")
    collects = utc(packed + np.array(minutes) * np.timedelta64(1, "m"), rows.zone)
    usual = (np.array(minutes) < 0) | np.isnat(packed)
    columns = {
        "carrier": np.array([t.carrier for t in tariffs], dtype=object),
        "service": np.array([None if t.service == ANY else t.service for t in tariffs], dtype=object),
        "pickup_cutoff_at": np.where(usual, p["parcels", "pickup_cutoff_at"][at], collects),
    }
    other, lines = rows.as_if(at, columns)
    pickup, _ = rows.as_if(at, {"pickup_cutoff_at": columns["pickup_cutoff_at"]})
    matrix: dict[tuple[str, bool], Array] = {}

    def again(target: str, place: tuple[Array, Array], only_pickup: bool) -> Array:
        """Probabilities of what is changed, at some rows and services."""
        unit, before = TARGETS[target].unit, known[target][place[0]]
        changed = ("parcels.pickup_cutoff_at",) if only_pickup else tuple(f"parcels.{c}" for c in columns)
        features, moves = bundle.moving(unit, changed)
        if not set(features.names) & set(bundle.targets[target].features.names):
            return before
        if (unit, only_pickup) not in matrix:
            matrix[unit, only_pickup] = whole(unit)[place[0]]
            matrix[unit, only_pickup][:, moves] = values(pickup if only_pickup else other, features)
        found = bundle.targets[target].probability(bundle.cut(target, matrix[unit, only_pickup]))
        # Served risks are summed in another order, feature by feature: what differs by rounding is the same.
        return np.where(np.abs(found - before) < ROUNDING, before, found)

    names, services = (np.array([getattr(t, f) for t in tariffs], dtype=object) for f in ("carrier", "service"))
    services = np.where(services == ANY, "", services)
    for target, p_before in known.items():
        line = TARGETS[target].unit == "line"
        place = (lines, which[other.line_parcel]) if line else (at, which)
        level, own = (rows.lines, other.line_parcel) if line else (rows.parcels, slice(None))
        shift, open_ = np.full((2, len(place[0])), np.nan)
        if (lever := bundle.carriers.get(target)) is not None:
            now = lever.positions(level["parcels", "carrier"], level["parcels", "service"])[place[0]]
            region = lever.places(region_of(rows, lever.unit))[place[0]]
            shift, open_ = lever.shift(region, now, lever.positions(names, services)[own])
        told = ~np.isnan(shift)
        found = np.empty(len(shift))
        if told.any():
            moved = again(target, place, only_pickup=True)
            found = np.where(shift == 0.0, moved, _shifted(moved, np.where(told, shift, 0.0)))
        if not told.all():
            found = np.where(told, found, again(target, place, only_pickup=False))
        after = np.repeat(p_before[:, None], len(book.tariffs), axis=1)
        error = np.zeros_like(after)
        after[place], error[place] = found, np.where(told, open_, 0.0)
        yield target, after, error


def _moved(
    bundle: Bundle,
    book: _Book,
    rows: Rows,
    parcels: Parcels,
    before: Mapping[str, Array],
    scored: Mapping[str, Array],
    offered: Array,
) -> tuple[dict[str, Array], dict[str, list[str | None]], dict[str, Array]]:
    """Probabilities with each action, (n, K) or (l, K), what each is known from, and how bad it could be.

    The last is (n, P) or (l, P) for packages: probabilities at the bad end of what the estimate, the experiment or the
    assumption leaves open; only of targets that a package moves.

    Takes out of `offered` what a parcel does not need: its column is as good already, or not known.
    """
    boxes, services, k = book.boxes, book.services, len(book.keys)
    steps = _steps(book, rows, parcels)
    for kind, (at, step) in steps.items():
        if kind != "package":
            offered[:, at] &= step * BETTER[COLUMNS[kind]] > 0
    levers = {(x.target, x.column): x for x in bundle.levers}
    moderators: dict[Any, Array] = {}  # several levers depend on the same
    evidence: dict[str, list[str | None]] = {}
    # All targets one below the other: what counts is how often numpy is called.
    ends = np.cumsum([len(p) for p in before.values()]).tolist()
    part = {t: slice(end - len(p), end) for (t, p), end in zip(before.items(), ends, strict=True)}
    shifts = np.zeros((ends[-1] if ends else 0, k))
    bad: dict[str, Array] = {}
    of_lines = {kind: _of_lines(step, rows.line_parcel) for kind, (_, step) in steps.items()}
    of_parcels = {kind: np.where(np.isnan(step), 0.0, step) for kind, (_, step) in steps.items()}
    for target in before:
        moves = of_lines if TARGETS[target].unit == "line" else of_parcels
        shift, known = shifts[part[target]], evidence.setdefault(target, [None] * k)
        if target in scored:
            known[services] = [ESTIMATED] * (services.stop - services.start)
        for kind, (at, _) in steps.items():
            lever = levers.get((target, COLUMNS[kind]))
            if lever is not None:
                terms = lever.unit, lever.terms, lever.usual
                if terms not in moderators:
                    moderators[terms] = lever.moderators(rows)
                shift[:, at] = moves[kind] * lever.slope(moderators[terms])[:, None]
                known[at] = [ESTIMATED] * (at.stop - at.start)
                if kind == "package":
                    steepest = np.minimum(lever.interval(moderators[terms], BAD_END)[0], 0.0)
                    bad[target] = moves[kind] * steepest[:, None]
        for j, stated, per_level in book.stated[target]:
            if stated.source != "experiment" and known[j] is not None:
                continue
            by = moves["package"][:, j] if per_level else np.ones(len(shift))
            shift[:, j] = math.log(stated.odds_ratio) * by
            known[j] = MEASURED if stated.source == "experiment" else ASSUMED
            if j < boxes.stop:
                bad.setdefault(target, shift[:, boxes].copy())[:, j] = _bad_end(stated, by)
    p = np.concatenate([*before.values()]) if before else np.empty(0)
    with np.errstate(divide="ignore"):  # what is sure stays sure
        z = np.log(p) - np.log1p(-p)
    moved = np.where(shifts == 0.0, p[:, None], logistic(z[:, None] + shifts))
    after = {target: moved[at] for target, at in part.items()}
    for target, known in evidence.items():
        if target in scored:
            own = [j for j in range(services.start, services.stop) if known[j] == ESTIMATED]
            after[target][:, own] = scored[target][:, [j - services.start for j in own]]
        if target in PROTECTED and boxes.stop:
            step = (of_lines if TARGETS[target].unit == "line" else of_parcels)["package"]
            after[target][:, boxes] = _never_riskier(book, before[target], after[target][:, boxes], step)
    with np.errstate(invalid="ignore"):  # what is sure not to happen and could, for all we know: is not known
        worst = {target: logistic(z[part[target], None] + shift) for target, shift in bad.items()}
    return after, evidence, worst


def _bad_end(stated: Effect, by: Array) -> Array:
    """How far an effect that is stated may move the log-odds up, (n,), where it counts `by` times, (n,).

    By its interval, whichever end is the worse: of one level of protection less it is the lower one. Nobody has said
    how bad an assumption without an interval may be, so it may be anything.
    """
    if stated.low is None or stated.high is None:
        return np.where(by == 0.0, 0.0, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.log([[stated.low], [stated.high]]) * by
    return np.where(by == 0.0, 0.0, ends.max(axis=0))


def _shifted(p: Array, shift: Array) -> Array:
    """Probabilities whose log-odds are moved."""
    with np.errstate(divide="ignore"):  # what is sure stays sure
        return logistic(np.log(p) - np.log1p(-p) + shift)


def _of_lines(step: Array, line_parcel: Array) -> Array:
    """What moves by (n, ...) of parcels, of their lines; nothing moves where it is not known."""
    found = take(step, line_parcel, np.nan)
    return np.where(np.isnan(found), 0.0, found)


def _steps(book: _Book, rows: Rows, parcels: Parcels) -> dict[str, tuple[slice, Array]]:
    """Per kind of action that changes a column: which actions, and by how much it moves, (n, 1) or (n, P)."""
    out = {}
    if book.boxes.stop:
        out["package"] = book.boxes, book.levels - parcels.level[:, None]
    for j in range(book.services.stop, len(book.keys)):
        key, to = book.keys[j], book.actions[j].to
        if key in COLUMNS and to is not None:
            now = rows.parcels["parcels", COLUMNS[key]]
            if key == "fix_label":
                now = _numbers(_GRADES.get(grade) for grade in now.tolist())
            out[key] = slice(j, j + 1), (to - now)[:, None]
    return out


_GRADES = {grade: float(i) for i, grade in enumerate(LABEL_GRADES)}


def _never_riskier(book: _Book, before: Array, after: Array, step: Array) -> Array:
    """Risks (n, P) of packages, weakest first, such that more protection is never riskier than less.

    Only what is stated of a single package can be otherwise: it is cut to what the next weaker one has.
    """
    out = np.where(step > 0, np.minimum(after, before[:, None]), np.maximum(after, before[:, None]))
    out = np.where(step == 0, after, out)
    levels = book.levels
    if (levels[1:] > levels[:-1]).all():
        return np.minimum.accumulate(out, axis=1)
    for j in range(1, len(levels)):  # of two equally strong ones, one may be said to be better
        weaker = np.flatnonzero(levels[:j] < levels[j])
        if len(weaker):
            np.minimum(out[:, j], out[:, weaker].min(axis=1), out=out[:, j])
    return out
