"""The ladder: each parcel in every package of the shop, whether it may be in it and what that would cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import Array
from features.rows import Rows
from serving.actions.book import Book
from serving.actions.parcels import Parcels


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

    @staticmethod
    def of(book: Book, rows: Rows, parcels: Parcels) -> Ladder:
        """Every package under every parcel."""
        policy = book.policy
        at = book.own_package(parcels)
        own = at[:, None] == np.arange(len(book.packages))
        tariff = book.own_tariff(parcels)
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


def _padded(table: Array, at: Array) -> Array:
    """Rows of a table (m, ...), NaN where the position is -1."""
    last = np.full((1, *table.shape[1:]), np.nan)
    return np.concatenate([table, last])[at]


def _room(book: Book, rows: Rows) -> Array:
    """Whether a package of one size takes the goods by the listings' sizes, (n, P) bool; true where not known."""
    lines = rows.lines
    pieces = lines["order_lines", "quantity"]
    goods = np.sort(np.stack([lines["listings", f"{side}_mm"] for side in ("length", "width", "height")]), axis=0)
    most = np.stack([rows.per_parcel(side, "max") for side in goods], axis=1)
    volume = rows.per_parcel(goods.prod(axis=0) * np.where(np.isnan(pieces), 1.0, pieces), "sum")
    box = np.sort(book.sizes, axis=1)
    small = (most[:, None, :] > box).any(axis=2) | (volume[:, None] > box.prod(axis=1))
    return np.asarray(~small)


def other_packages(book: Book, parcels: Parcels, ladder: Ladder) -> tuple[Array, Array, Array]:
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
