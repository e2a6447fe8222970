"""Small array tools everything else in this package stands on: stable codes of text, lookups, wall-clock time."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd

Array = np.ndarray[Any, Any]
Tables = Mapping[str, Mapping[str, Array]]

SMALL = 64
"""Up to so many rows plain Python beats pandas' set-up cost; the results are the same."""

HOUR = np.timedelta64(3_600_000_000, "us")
DAY = np.timedelta64(86_400_000_000, "us")

MISSING: dict[str, Any] = {
    "id": None,
    "code": None,
    "time": np.datetime64("NaT", "us"),
    "number": np.nan,
    "flag": np.nan,
}
DTYPE: dict[str, str] = {"id": "object", "code": "object", "time": "datetime64[us]", "number": "f8", "flag": "f8"}


def columns(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, Array]]:
    """Data frames as plain arrays: text as objects (str or None), times as UTC `datetime64[us]`, numbers as float64."""
    out: dict[str, dict[str, Array]] = {}
    for name, frame in tables.items():
        out[name] = {}
        for column in frame.columns:
            series = frame[column]
            if isinstance(series.dtype, pd.DatetimeTZDtype):
                series = series.dt.tz_convert("UTC").dt.tz_localize(None)
            values = series.to_numpy()
            out[name][str(column)] = values.astype("datetime64[us]") if values.dtype.kind == "M" else values
    return out


def match(needles: Array, haystack: Array) -> Array:
    """Position of each needle in the haystack (first occurrence), -1 where it is missing or not there.

    Args:
        needles: (n,) object array of str or None.
        haystack: (m,) object array of str or None.

    Returns:
        (n,) int64.
    """
    if len(haystack) + len(needles) <= SMALL:
        place: dict[Any, int] = {}
        for i, key in enumerate(haystack):
            place.setdefault(key, i)
        place.pop(None, None)
        return np.fromiter((place.get(k, -1) for k in needles), dtype=np.int64, count=len(needles))
    codes, uniques = pd.factorize(np.concatenate([haystack, needles]))
    first = np.full(len(uniques) + 1, -1, dtype=np.int64)  # the last place stands for missing, code -1
    mine = codes[: len(haystack)]
    known = np.flatnonzero(mine >= 0)[::-1]
    first[mine[known]] = known
    return first[codes[len(haystack) :]]


def absent(values: Array) -> Array:
    """Where an object array of str or None holds no text, (n,) bool."""
    return np.equal(values, None)  # type: ignore[call-overload]


def take(values: Array, at: Array, missing: Any) -> Array:
    """`values[at]`, with `missing` where `at` is negative."""
    every = min(at.tolist(), default=0) >= 0 if len(at) <= SMALL else bool(at.min() >= 0)
    if every:
        return values[at]
    out = np.full(len(at), missing, dtype=values.dtype)
    ok = at >= 0
    out[ok] = values[at[ok]]
    return out


def _hash_text(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def hash_codes(values: Array) -> Array:
    """Stable 64-bit codes of text, 0 for missing: the same on every machine, in every partition and process.

    Args:
        values: (n,) object array of str or None (float64 for coded numbers).

    Returns:
        (n,) uint64.
    """
    if len(values) <= SMALL:
        return np.array([0 if v is None or v != v else _hash_text(str(v)) for v in values], dtype=np.uint64)
    codes, uniques = pd.factorize(values)
    table = np.zeros(len(uniques) + 1, dtype=np.uint64)
    table[: len(uniques)] = [_hash_text(str(u)) for u in uniques]
    return table[codes]


def combine(*hashes: Array) -> Array:
    """One code for a combination of codes; 0 (unknown) where any part is unknown. Arrays (n,) uint64."""
    out = hashes[0]
    if len(hashes) == 1:
        return out
    known = out != 0
    for h in hashes[1:]:
        out = (out ^ (out >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + h * np.uint64(0x9E3779B97F4A7C15)
        known &= h != 0
    return np.where(known, out | np.uint64(1), np.uint64(0))


@lru_cache(maxsize=8)
def _transitions(zone: str) -> tuple[Array, Array]:
    """Moments (UTC) from which an offset of the zone holds, and the offsets, 2000 to 2040, to the minute."""
    tz = zoneinfo.ZoneInfo(zone)
    start = datetime(2000, 1, 1, tzinfo=UTC)

    def offset(minutes: int) -> timedelta:
        return (start + timedelta(minutes=minutes)).astimezone(tz).utcoffset() or timedelta(0)

    at, offsets, day = [0], [offset(0)], 24 * 60
    for minutes in range(day, day * 366 * 40, day):
        if offset(minutes) != offsets[-1]:
            before, after = minutes - day, minutes
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (middle, after) if offset(middle) == offsets[-1] else (before, middle)
            at.append(after)
            offsets.append(offset(minutes))
    begin = np.datetime64("2000-01-01", "us")
    return begin + np.array(at, dtype="timedelta64[m]"), np.array(offsets, dtype="timedelta64[us]")


def local(times: Array, zone: str) -> Array:
    """UTC times on the wall clock of the zone, (n,) datetime64[us]; NaT stays NaT."""
    at, offsets = _transitions(zone)
    return times + offsets[np.maximum(at.searchsorted(times, side="right") - 1, 0)]


def utc(times: Array, zone: str) -> Array:
    """The inverse of `local`, (n,) datetime64[us]; of an hour that a clock shows twice, one of the two."""
    at, offsets = _transitions(zone)
    near = times - offsets[np.maximum(at.searchsorted(times, side="right") - 1, 0)]
    return times - offsets[np.maximum(at.searchsorted(near, side="right") - 1, 0)]


def hours_between(start: Array, end: Array) -> Array:
    """Hours from start to end, (n,) float64, NaN where either is missing."""
    return (end - start) / HOUR
