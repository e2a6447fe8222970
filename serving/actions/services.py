"""Other carriers and services: whether each parcel may go with them, what that costs, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from features.arrays import Array, local, utc
from features.matrix import values
from features.rows import Rows
from features.vocabulary import TARGETS
from serving.actions.book import Book
from serving.actions.parcels import Parcels
from serving.bundle import Bundle
from serving.carriers import region_of
from serving.explain import logistic
from serving.policy import ANY

ROUNDING = 1e-12
"""Probabilities that are closer than this are the same."""


def other_services(book: Book, parcels: Parcels) -> tuple[Array, Array, Array]:
    """Whether each service of a carrier may be used instead, what it costs more, and its CO2e; (n, C) each."""
    tariff = book.own_tariff(parcels)
    places = zip(parcels.country.tolist(), parcels.region.tolist(), strict=True)
    offered = np.array([book.serves(c, r) for c, r in places], dtype=bool).reshape(len(tariff), len(book.tariffs))
    offered &= (tariff >= 0)[:, None] & (tariff[:, None] != np.arange(len(book.tariffs)))
    offered &= ~(parcels.weight_kg[:, None] > book.takes[:, 0]) & ~(parcels.sides[:, :1] > book.takes[:, 1])
    if not book.policy.actions["carrier"].change_service:
        names = np.array([t.service for t in book.tariffs], dtype=object)
        mine = np.array([s or ANY for s in parcels.service.tolist()], dtype=object)
        offered &= np.equal(names[None], mine[:, None]).astype(bool)
    price = book.prices(parcels)
    carriage = book.grams * (parcels.weight_kg * parcels.distance_km)[:, None]
    mine = np.maximum(tariff, 0)[:, None]
    more = price - np.take_along_axis(price, mine, axis=1)
    co2e = carriage - np.take_along_axis(carriage, mine, axis=1)
    return offered, more, co2e


def rescored(
    bundle: Bundle,
    book: Book,
    rows: Rows,
    can: Array,
    known: Mapping[str, Array],
    whole: Callable[[str], Array],
) -> Iterator[tuple[str, Array, Array]]:
    """Probabilities of each target had each service of a carrier been used, where it can be, all together, and standard
    errors of their log-odds; NaN where nobody can say one."""
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
        after[place], error[place] = found, open_  # where nothing is told the error is not known
        yield target, after, error


def _shifted(p: Array, shift: Array) -> Array:
    """Probabilities whose log-odds are moved."""
    with np.errstate(divide="ignore"):  # what is sure stays sure
        return logistic(np.log(p) - np.log1p(-p) + shift)
