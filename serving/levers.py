"""What changing a raw column of the parcel does to a risk: adjusted log-odds per unit, estimated apart from the trees.

Trees predict well and answer "what if" badly: where fragile goods get better boxes, most of what a box does is put
down to the goods (docs/decisions/25-levers.md). A lever is estimated for this one question
(`training.models.levers`) and shifts the log-odds that the trees have given. More protection is never riskier: a
shift has the beneficial sign, or is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from features.arrays import Array, absent
from features.matrix import FeatureSet, values
from features.settings import Extra, Settings
from features.vocabulary import TARGETS

if TYPE_CHECKING:
    from features.rows import Rows

BETTER: dict[str, int] = {
    "protection_level": 1,
    "void_fill_ratio": 1,
    "label_grade": -1,
    "documents_complete": 1,
    "address_quality": 1,
}
"""Columns of `parcels` that can be levers, and whether more (1) or less (-1) of each is better. Numbers are those of
the feature of the same name: label grades are 0 (A) to 4 (F), flags 0 or 1."""

ONE = "1"
"""The term that is the same for every row."""


Z = 1.959964
"""Standard errors from an estimate to the ends of its 95 % interval."""


@dataclass(frozen=True)
class Lever:
    """Effect of one raw column on one target: log-odds per unit, `sum(coefficient * term)`.

    Attributes:
        target: name of the target.
        column: column of `parcels`, a key of `BETTER`.
        terms: what the effect depends on: `1`, names of features, or `orders.destination_country != DE`, 1 where the
            code is known and another one.
        coefficients: (k,) log-odds per unit of the column and of the term.
        covariance: (k, k) of the coefficients.
        usual: (k,) value of each term that is taken where it is not known.
        rows, positives: what the estimate stands on.
    """

    target: str
    column: str
    terms: tuple[str, ...]
    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    usual: tuple[float, ...]
    rows: int
    positives: int

    @property
    def unit(self) -> str:
        """`parcel` or `line`: what the target is counted in."""
        return TARGETS[self.target].unit

    def features(self, settings: Settings) -> FeatureSet:
        """The features among the terms. Raises ValueError for one that is not registered in this version."""
        return _features(self.terms, self.unit, settings)

    def moderators(self, rows: Rows) -> Array:
        """Values of the terms, (n, k) float64, n the rows of the target's unit; what is not known is as usual."""
        return terms(self.terms, self.unit, rows, self.usual)

    def slope(self, moderators: Array) -> Array:
        """Log-odds per unit of the column, (n,): of the beneficial sign, or 0.

        Args:
            moderators: (n, k), as `moderators` gives them.
        """
        # A plain sum, not a product of matrices: what a row gets must not depend on how many rows there are.
        slope = (np.asarray(moderators) * np.array(self.coefficients)).sum(axis=1)
        return np.asarray(np.minimum(slope, 0.0) if BETTER[self.column] > 0 else np.maximum(slope, 0.0))

    def shift(self, moderators: Array, before: Array | float, after: Array | float) -> Array:
        """Change of the log-odds when the column is changed, (n,); 0 where the value before or after is not known.

        Args:
            moderators: (n, k), as `moderators` gives them.
            before, after: (n,) or one number, in the units of `BETTER`.
        """
        step = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
        return np.asarray(np.where(np.isnan(step), 0.0, step) * self.slope(moderators))

    def interval(self, moderators: Array, z: float = Z) -> tuple[Array, Array]:
        """Interval of the log-odds per unit of each row, two (n,), before any sign is kept: 95 % unless told."""
        at = np.asarray(moderators)
        # Plain sums, as in `slope`: what a row gets must not depend on how many rows there are.
        middle = (at * np.array(self.coefficients)).sum(axis=1)
        error = np.sqrt((at * (at[:, :, None] * np.array(self.covariance)).sum(axis=1)).sum(axis=1))
        return middle - z * error, middle + z * error

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in a bundle's manifest."""
        return asdict(self)

    @staticmethod
    def from_json(given: Mapping[str, Any]) -> Lever:
        """The inverse of `to_json`, also after it was JSON."""
        covariance = tuple(tuple(row) for row in given["covariance"])
        plain = {k: tuple(given[k]) for k in ("terms", "coefficients", "usual")}
        return Lever(**{**given, **plain, "covariance": covariance})


def terms(names: tuple[str, ...], unit: str, rows: Rows, usual: tuple[float, ...] | None = None) -> Array:
    """Values of terms, (n, k) float64.

    Args:
        names: see `Lever.terms`.
        unit: `parcel` or `line`.
        rows: the joined tables.
        usual: (k,) what stands for what is not known; NaN if not given.
    """
    level = rows.parcels if unit == "parcel" else rows.lines
    known = _features(names, unit, rows.snapshot.settings)
    read = dict(zip(known.names, values(rows, known).astype(np.float64).T, strict=True))
    out = np.ones((level.n, len(names)))
    for k, name in enumerate(names):
        if code := _code(name):
            column = level[code[0], code[1]]
            out[:, k] = np.where(absent(column), np.nan, np.not_equal(column, code[2]).astype(np.float64))
        elif name != ONE:
            out[:, k] = read[name]
    return out if usual is None else np.where(np.isnan(out), np.array(usual), out)


def _features(names: tuple[str, ...], unit: str, settings: Settings) -> FeatureSet:
    return _named(names, unit, settings.extra)


@lru_cache(maxsize=256)
def _named(names: tuple[str, ...], unit: str, extra: tuple[Extra, ...]) -> FeatureSet:
    """Kept, because every answer asks for the same ones."""
    return FeatureSet.named(unit, [n for n in names if n != ONE and not _code(n)], Settings(extra=extra))


@lru_cache(maxsize=1024)
def _code(name: str) -> tuple[str, str, str] | None:
    """Table, column and code of a term of the kind `orders.destination_country != DE`."""
    place, apart, code = name.partition(" != ")
    table, _, column = place.partition(".")
    return (table, column, code) if apart else None
