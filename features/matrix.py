"""The matrix: exact columns and dtypes for a set of features, with a fingerprint of what the features compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from features.arrays import Array, take
from features.dataset import Dataset
from features.definitions import FEATURES
from features.feature import Feature, Theme, number, yes_no
from features.rows import Level, Rows
from features.settings import Extra, Settings
from features.snapshot import Facts, extra_entity
from features.vocabulary import TARGETS

RELATED: dict[str, tuple[str, ...]] = {
    "late": ("late", "handover"),
    "failed_attempt": ("failed_attempt", "undelivered"),
    "damaged": ("damaged",),
    "undelivered": ("undelivered", "failed_attempt"),
    "returned": ("returned", "late", "damaged"),
}
"""Per target, the outcomes whose past may tell about it. Other shares would only add noise and reading."""


CHUNK = 50_000
"""Parcels that are described at a time."""


def catalogue(settings: Settings) -> dict[str, Feature]:
    """All features of a shop: the registered ones, and those of the extra columns in its `dataset.toml`."""
    out = dict(FEATURES)
    for extra in settings.extra:
        for feature in _of_extra(extra):
            out[feature.name] = feature
    return out


def _of_extra(extra: Extra) -> Iterable[Feature]:
    """An extra number or flag is a feature itself; an extra code enters as the history of its values."""
    name, text = f"{extra.table}.{extra.column}", extra.column.replace("_", " ")
    level = "line" if extra.table in ("order_lines", "listings") else "parcel"
    aggregate = "max" if level == "line" else None
    if extra.kind == "code":
        theme = Theme(extra.owner)
        for outcome in ("damaged", "returned") if level == "line" else TARGETS:
            theme.rate(
                outcome,
                extra_entity(extra),
                f"{outcome} share of this {text}",
                level=level,
                aggregate=aggregate,
                strength=20,
            )
        return theme.features

    def compute(rows: Level) -> Array:
        return rows[extra.table, extra.column]

    help = f"The shop's own column {name}, as declared in dataset.toml."
    show = yes_no if extra.kind == "flag" else number
    return [Feature(name, level, extra.owner, text, help, compute, show=show, aggregate=aggregate)]


@dataclass(frozen=True)
class FeatureSet:
    """The columns of a matrix, in order, for one unit.

    Attributes:
        unit: `parcel` or `line`.
        features: the features; for parcels, those of lines are summarised as they declare.
    """

    unit: str
    features: tuple[Feature, ...]

    @staticmethod
    def for_target(target: str, settings: Settings) -> FeatureSet:
        """Every feature that may tell about a target."""
        unit, about = TARGETS[target].unit, ("", *RELATED[target])
        chosen = [f for f in catalogue(settings).values() if f.about in about]
        return FeatureSet(unit, tuple(f for f in chosen if unit == "line" or f.level == "parcel" or f.aggregate))

    @staticmethod
    def named(unit: str, names: Iterable[str], settings: Settings) -> FeatureSet:
        """The features of these names.

        Raises:
            ValueError: a name is not registered in this version.
        """
        known, names = catalogue(settings), list(names)
        missing = [n for n in names if n not in known]
        if missing:
            raise ValueError(f"unknown features {', '.join(missing[:5])}: they are not registered in this version")
        return FeatureSet(unit, tuple(known[n] for n in names))

    @staticmethod
    def union(sets: Iterable[FeatureSet]) -> FeatureSet:
        """Every feature of some sets of one unit, each once."""
        sets = list(sets)
        return FeatureSet(sets[0].unit, tuple({f.name: f for s in sets for f in s.features}.values()))

    def only(self, kept: Iterable[bool]) -> FeatureSet:
        """Those features for which `kept`, one per feature, is true."""
        return FeatureSet(self.unit, tuple(f for f, keep in zip(self.features, kept, strict=True) if keep))

    @cached_property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [f.name for f in self.features]

    @cached_property
    def teams(self) -> list[str]:
        """Owner team of each column."""
        return [f.team for f in self.features]


def values(rows: Rows, features: FeatureSet) -> Array:
    """The matrix as (n, f) float32, NaN where a value cannot be known. Rows as in `rows.parcels` or `rows.lines`."""
    of_unit, n = (_of_parcel, rows.parcels.n) if features.unit == "parcel" else (_of_line, rows.lines.n)
    out = np.empty((len(features.features), n), dtype=np.float32)  # turned at the end: across, writing takes far longer
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for i, feature in enumerate(features.features):
            out[i] = of_unit(rows, feature)
    out[~np.isfinite(out)] = np.nan
    return np.ascontiguousarray(out.T)


def _column(level: Level, feature: Feature) -> Array:
    """One feature for every row of its own level, (n,); computed once per `rows`."""
    known = level.memo.get(feature.name)
    if known is None:
        known = level.memo[feature.name] = feature.compute(level)
    return known


def _of_line(rows: Rows, feature: Feature) -> Array:
    """One feature for every line, (n,): a parcel's value holds for each of its lines."""
    if feature.level == "line":
        return _column(rows.lines, feature)
    return take(_column(rows.parcels, feature), rows.line_parcel, np.nan)


def _of_parcel(rows: Rows, feature: Feature) -> Array:
    """One feature for every parcel, (n,): lines' features are summarised."""
    if feature.level == "parcel":
        return _column(rows.parcels, feature)
    if feature.aggregate is None:
        raise ValueError(f"feature {feature.name} is of order lines only and cannot describe a parcel")
    memo = f"{feature.name}:parcel"
    whole = rows.parcels.memo.get(memo)
    if whole is None:
        whole = rows.parcels.memo[memo] = rows.per_parcel(_column(rows.lines, feature), feature.aggregate)
    return whole


def chunks(facts: Facts, parcels: int = CHUNK) -> Iterator[tuple[Rows, Array, Array]]:
    """A dataset's rows in parts of so many parcels, to bound memory: a row's values do not depend on those beside it.

    What was computed of a part is gone when the next one is asked for.

    Yields:
        The part's rows, and the positions of its parcels and lines in `facts.rows`.
    """
    order, first = facts.rows.lines_of()
    n = facts.rows.parcels.n
    for start in range(0, max(n, 1), parcels):
        stop = min(start + parcels, n)
        line = np.sort(order[first[start] if start else 0 : first[stop]])  # lines of no parcel are the first part's
        rows = facts.rows.part(slice(start, stop), line)
        yield rows, np.arange(start, stop), line
        rows.forget()  # rows and levels refer to each other: left to the collector, parts would pile up


def whole(facts: Facts, features: FeatureSet) -> Array:
    """The matrix of a whole dataset, as `values` would give it for `facts.rows`, computed in parts."""
    n = facts.rows.parcels.n if features.unit == "parcel" else facts.rows.lines.n
    out = np.empty((n, len(features.features)), dtype=np.float32)
    for rows, parcel, line in chunks(facts):
        out[parcel if features.unit == "parcel" else line] = values(rows, features)
    return out


def build(rows: Rows, features: FeatureSet) -> pd.DataFrame:
    """The matrix as a frame of float32 columns, indexed by parcel_id or line_id."""
    index = rows.parcel_id if features.unit == "parcel" else rows.line_id
    return pd.DataFrame(
        values(rows, features), columns=features.names, index=pd.Index(index, name=f"{features.unit}_id", dtype=object)
    )


def inputs(features: FeatureSet, settings: Settings) -> list[str]:
    """Raw columns (`table.column`) that the features read, found by computing them once on the probe."""
    facts = _probe(settings.timezone, settings.extra)
    trace: list[dict[str, object]] = []
    values(Rows(facts.tables, facts.snapshot, trace), features)
    return sorted({str(t["column"]) for t in trace if "column" in t})


@lru_cache(maxsize=1024)
def _reads(name: str, unit: str, timezone: str, extra: tuple[Extra, ...]) -> frozenset[str]:
    """Raw columns that one feature reads."""
    settings = Settings(timezone=timezone, extra=extra)
    return frozenset(inputs(FeatureSet.named(unit, [name], settings), settings))


def depending(features: FeatureSet, columns: Iterable[str], settings: Settings) -> Array:
    """Which features may have another value if some raw columns (`table.column`) had, (f,) bool."""
    changed = set(columns)
    return np.array(
        [bool(changed & _reads(name, features.unit, settings.timezone, settings.extra)) for name in features.names],
        dtype=bool,
    )


def fingerprint(features: FeatureSet, settings: Settings) -> str:
    """What the features compute, as a digest: names, owners, and their values on a small made-up dataset.

    Two versions of the code with the same fingerprint give a model the same columns. It is taken from behaviour, so a
    change of a comment is no new fingerprint and a change of a window is one.
    """
    facts = _probe(settings.timezone, settings.extra)
    numbers = [[f"{v:.4g}" for v in row] for row in values(Rows(facts.tables, facts.snapshot), features).tolist()]
    words = [[f.name, f.level, f.team, f.aggregate, f.lever] for f in features.features]
    return hashlib.sha256(json.dumps([features.unit, words, numbers]).encode()).hexdigest()


@lru_cache(maxsize=4)
def _probe(timezone: str, extra: tuple[Extra, ...]) -> Facts:
    """A made-up dataset of a few parcels over a year, with every column filled and every outcome seen."""
    n = 48
    i = np.arange(n)
    start = pd.Timestamp("2024-01-01 08:00", tz="UTC")
    # A year of one order in three weeks, then some weeks of two a day: every window holds something of its own.
    ordered = pd.Series(start + pd.to_timedelta(i * 13 + np.minimum(i, 16) * 500, unit="h"))
    ordered = ordered.astype("datetime64[us, UTC]")
    hours = lambda k: pd.to_timedelta(k, unit="h")  # noqa: E731
    text = lambda prefix, k: pd.Series([f"{prefix}{j}" for j in k], dtype=object)  # noqa: E731
    packed = ordered + hours(3 + i % 7)
    orders = pd.DataFrame(
        {
            "order_id": text("o", i),
            "ordered_at": ordered,
            "customer_id": text("c", i % 5),
            "channel": text("h", i % 2),
            "payment_method": pd.Series(np.where(i % 3 == 0, "cod", "card"), dtype=object),
            "is_business": (i % 4 == 0).astype(float),
            "destination_country": text("x", i * 0),
            "destination_region": text("r", i % 3),
            "destination_city": text("t", i % 4),
            "destination_postal": text("p", i % 6),
            "promised_from": ordered + hours(48),
            "promised_to": ordered + hours(72 + i % 5),
            "order_value": 10.0 + i,
        }
    )
    parcels = pd.DataFrame(
        {
            "parcel_id": text("q", i),
            "order_id": text("o", i),
            "node": text("n", i % 2),
            "packed_at": packed,
            "pickup_cutoff_at": packed + hours(i % 5 - 1),
            "carrier": text("k", i % 2),
            "service": text("s", i % 2),
            "package_type": text("b", i % 3),
            "protection_level": (i % 5).astype(float),
            "package_length_mm": 300.0 + i,
            "package_width_mm": 200.0 + i,
            "package_height_mm": 100.0 + i,
            "weight_g": 900.0 + 10 * i,
            "void_fill_ratio": (i % 10) / 10,
            "label_grade": pd.Series(list("ABCDF" * 10)[:n], dtype=object),
            "documents_complete": (i % 6 > 0).astype(float),
            "address_quality": (i % 7) / 7,
            "distance_km": 50.0 * i,
        }
    )
    j = np.arange(2 * n)
    lines = pd.DataFrame(
        {
            "line_id": text("l", j),
            "order_id": text("o", j // 2),
            "parcel_id": text("q", j // 2),
            "sku": text("u", (j - j % 2 * (j % 6 == 1)) % 7),
            "quantity": 1.0 + j % 3,
            "unit_price": 5.0 + j,
            "discount": (j % 4).astype(float),
            "variant": text("v", j % 2),
        }
    )
    u = np.arange(7)
    listings = pd.DataFrame(
        {
            "sku": text("u", u),
            "known_at": pd.Series([start] * 7).astype("datetime64[us, UTC]"),
            "category": text("g", u % 2),
            "brand": text("d", u % 3),
            **{
                c: 1.0 + u
                for c in (
                    "description_length",
                    "photo_count",
                    "review_count",
                    "weight_g",
                    "length_mm",
                    "width_mm",
                    "height_mm",
                )
            },
            "has_size_guide": (u % 2).astype(float),
            "rating": u % 5 + 0.5,
            "fragility": (u % 5).astype(float),
        }
    )
    ends = pd.Series(np.where(i % 11 == 10, "lost", np.where(i % 11 == 9, "refused", "delivered")), dtype=object)
    events = pd.DataFrame(
        {
            "parcel_id": pd.concat([text("q", i)] * 2 + [text("q", i[::4]), text("q", i[::5])], ignore_index=True),
            "kind": pd.concat(
                [
                    text("handed_over", [""] * n),
                    ends,
                    text("attempt_failed", [""] * len(i[::4])),
                    text("damaged", [""] * len(i[::5])),
                ],
                ignore_index=True,
            ),
            "happened_at": pd.concat(
                [
                    packed + hours(i % 3),
                    packed + hours(60 + i % 9),
                    (packed + hours(40))[::4],
                    (packed + hours(70))[::5],
                ],
                ignore_index=True,
            ),
        }
    )
    returns = pd.DataFrame(
        {"line_id": text("l", j[::5]), "requested_at": (packed + hours(120))[j[::5] // 2].reset_index(drop=True)}
    )
    tables = {
        "orders": orders,
        "order_lines": lines,
        "listings": listings,
        "parcels": parcels,
        "events": events,
        "returns": returns,
    }
    sizes = {name: len(frame) for name, frame in tables.items()}
    for own_column in extra:
        k = np.arange(sizes[own_column.table])
        own = (
            text("e", k % 3)
            if own_column.kind == "code"
            else pd.Series((k % 2 if own_column.kind == "flag" else k).astype(float))
        )
        tables[own_column.table][own_column.column] = own
        if own_column.known_at is not None and own_column.known_at not in tables[own_column.table]:
            tables[own_column.table][own_column.known_at] = pd.Series([start] * len(k)).astype("datetime64[us, UTC]")
    short = Settings(timezone=timezone, return_window_days=4, lost_after_days=3, extra=extra)
    return Facts.of(Dataset(short, tables))
