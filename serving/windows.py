"""When a parcel will be at the door if it arrives: a window with a stated coverage, and the likely time within it.

Three models of the log of the hours from decision to door (its 5 %, 50 % and 95 % quantile) are moved by what they were
off, on later parcels than they had seen, in the parcel's own lane: conformalized quantile regression (Romano, Patterson
and Candès 2019, arXiv 1905.03222), each quantile on its own, in units of the predicted spread. A lane with little
behind it takes the move of its carrier's service, then of its carrier, then of all. The moves are plain numbers.

**The window yields to P(late).** With u = P(undelivered), L = (P(late) - u) / (1 - u) is the chance that a parcel which
arrives does so after `promised_to`. A 90 % window has 5 % of the arrivals behind its end, so where L is above 5 % the
end must not lie before the promise, and where it is below, not after it; the same holds for the likely time at 50 %
and the start at 95 %. What contradicts is moved to the promise itself, the least that makes it agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.arrays import Array
from features.matrix import FeatureSet, fingerprint
from serving.trees import CompiledTrees, RawTogether

if TYPE_CHECKING:
    from features.rows import Level
    from features.settings import Settings

NAME = "time_to_door"
"""What windows are called where targets have names."""

QUANTILES: tuple[float, ...] = (0.05, 0.5, 0.95)
"""Share of the arrivals before the start, the likely time and the end."""

PARTS: tuple[str, ...] = ("from", "likely", "to")
"""The three times in an answer, and the folders of their models."""

COVERAGE = 0.9
"""Share of the arrivals that lie inside a window."""

LEVELS: tuple[str, ...] = ("lane", "carrier_service", "carrier", "all")
"""Entities (`features.history`) that moves are kept by, the closest first: a parcel takes the first that has one."""

LEAST_SPREAD = 0.05
"""Log hours between the outer quantiles at least, so that no move is a multiple of nothing."""

LONGEST = float(np.log(24 * 366))
"""Log hours; no window reaches beyond a year."""

_HOUR, _MINUTE = 3_600_000_000, 60_000_000  # microseconds
_OUTWARDS = np.array([0, _MINUTE // 2, _MINUTE - 1])
"""What makes rounding down to the minute round down, to the nearest, and up."""

_AFTER = 1 - np.array(QUANTILES)
"""Share of the arrivals after each of the three times."""


@dataclass(frozen=True)
class Group:
    """Moves of one lane, carrier's service or carrier, or of all parcels.

    Attributes:
        key: of the entity, see `features.history.key`; 1 for all.
        name: the same in words.
        rows: parcels it was measured on.
        moves: of the three log quantiles, in spreads.
    """

    key: int
    name: str
    rows: int
    moves: tuple[float, float, float]


@dataclass(frozen=True)
class WindowModel:
    """The models and moves of a shop.

    Attributes:
        features: the columns the models were trained on, of parcels.
        trees: one model per quantile, of log hours.
        groups: per level the groups that have moves of their own; `all` has exactly one.
    """

    features: FeatureSet
    trees: tuple[CompiledTrees, CompiledTrees, CompiledTrees]
    groups: Mapping[str, tuple[Group, ...]]

    def log_hours(self, matrix: Array) -> Array:
        """The three quantiles as the models say them, in order, (n, 3) log hours, of a matrix (n, f) float32."""
        if len(matrix) == 1:  # the bench asks for one parcel at a time
            return np.asarray(np.sort(self._together.raw(matrix)))[None]
        return np.sort(np.stack([t.raw(matrix) for t in self.trees], axis=1), axis=1)

    @cached_property
    def _together(self) -> RawTogether:
        return RawTogether(self.trees)

    def hours(self, matrix: Array, moves: Array) -> Array:
        """Start, likely time and end, (n, 3) hours from the decision.

        Args:
            matrix: (n, f) float32.
            moves: (n, 3), see `moves`, or (3,) for all rows.
        """
        return moved(self.log_hours(matrix), moves)

    @cached_property
    def _tables(self) -> list[tuple[Array, Array]]:
        """Per level, sorted keys (k,) uint64 and moves (k, 3)."""
        out = []
        for level in LEVELS:
            groups = sorted(self.groups.get(level, ()), key=lambda g: g.key)
            keys = np.array([g.key for g in groups], dtype=np.uint64)
            out.append((keys, np.array([g.moves for g in groups]).reshape(-1, 3)))
        return out

    def moves(self, parcels: Level) -> tuple[Array, Array]:
        """What each parcel's quantiles are moved by.

        Args:
            parcels: the level of parcels.

        Returns:
            (n, 3) moves in spreads, and (n,) int64, the place in `LEVELS` they were measured on.
        """
        n = parcels.n
        (at,) = self._tables[-1][1]
        moves, level = np.tile(at, (n, 1)), np.full(n, len(LEVELS) - 1, dtype=np.int64)
        for i in range(len(LEVELS) - 2, -1, -1):
            keys, own = self._tables[i]
            if len(keys):
                code = parcels.lookup(LEVELS[i]).keys  # made already for the features, and kept between requests
                place = np.minimum(keys.searchsorted(code), len(keys) - 1)
                known = keys[place] == code
                moves[known], level[known] = own[place[known]], i
        return moves, level

    def save(self, folder: Path, settings: Settings) -> None:
        """Write the models and `window.json` into a folder, made if needed. The same model gives the same bytes."""
        for part, trees in zip(PARTS, self.trees, strict=True):
            trees.save(folder / part)
        groups = {
            level: [{"key": f"{g.key:016x}", "name": g.name, "rows": g.rows, "moves": list(g.moves)} for g in found]
            for level, found in self.groups.items()
        }
        content = {
            "features": self.features.names,
            "fingerprint": fingerprint(self.features, settings),
            "groups": groups,
        }
        (folder / "window.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    @staticmethod
    def load(folder: Path, settings: Settings) -> WindowModel:
        """Read a folder that `save` wrote.

        Raises:
            ValueError: a file is missing or not what `save` writes, or the features compute something else in this
                version than when the models were trained.
        """
        try:
            content = json.loads((folder / "window.json").read_text())
            features = FeatureSet.named("parcel", content["features"], settings)
            groups = {
                level: tuple(
                    Group(int(g["key"], 16), g["name"], g["rows"], (g["moves"][0], g["moves"][1], g["moves"][2]))
                    for g in content["groups"][level]
                )
                for level in LEVELS
            }
        except (OSError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{folder.name}/window.json cannot be read ({error!r})") from None
        if len(groups["all"]) != 1:
            raise ValueError(f"{folder.name}/window.json: the level all has {len(groups['all'])} groups, it must be 1")
        if fingerprint(features, settings) != content["fingerprint"]:
            raise ValueError("the features of the windows compute something else in this version than when trained")
        start, likely, end = (CompiledTrees.load(folder / part) for part in PARTS)
        return WindowModel(features, (start, likely, end), groups)


def spread(log_hours: Array) -> Array:
    """Distance of the outer quantiles, (n,) log hours, of quantiles (n, 3)."""
    return np.maximum(log_hours[:, 2] - log_hours[:, 0], LEAST_SPREAD)


def moved(log_hours: Array, moves: Array) -> Array:
    """Quantiles (n, 3) in log hours, moved by (n, 3) or (3,) spreads, as hours in ascending order."""
    out = log_hours + np.asarray(moves) * spread(log_hours)[:, None]
    out[:, 0] = np.minimum(out[:, 0], out[:, 1])
    out[:, 2] = np.maximum(out[:, 2], out[:, 1])
    return np.exp(np.minimum(out, LONGEST))


@dataclass(frozen=True)
class Windows:
    """Windows of n parcels.

    Attributes:
        times: (n, 3) datetime64[us], UTC: from, likely, to, in order; NaT where the decision has no time.
        level: (n,) int64, the place in `LEVELS` the moves were measured on.
    """

    times: Array
    level: Array

    def answer(self, row: int) -> dict[str, Any] | None:
        """The row's answer, None where the decision has no time."""
        times = self.times[row]
        if np.isnat(times[0]):
            return None
        said: dict[str, Any] = {part: f"{time}Z" for part, time in zip(PARTS, times, strict=True)}
        return said | {"coverage": COVERAGE, "measured_on": LEVELS[self.level[row]]}


def windows(
    model: WindowModel, parcels: Level, matrix: Array, late: Array | None, undelivered: Array | None
) -> Windows:
    """Windows of all parcels of a level, in agreement with the probabilities that are answered beside them.

    Args:
        model: the models.
        parcels: the level.
        matrix: (n, f) float32, the model's features of its rows.
        late: (n,) P(late); None if the shop has no such model: nothing can contradict then.
        undelivered: (n,) P(undelivered); None counts as 0.
    """
    moves, level = model.moves(parcels)
    hours = model.hours(matrix, moves)
    promised = parcels["orders", "promised_to"]
    return Windows(times(parcels.decided_at, hours, promised, chance_late(late, undelivered)), level)


def chance_late(late: Array | None, undelivered: Array | None) -> Array | None:
    """L, (n,): the chance to arrive after the promise, given that the parcel arrives. None without P(late)."""
    if late is None:
        return None
    u = np.zeros(len(late)) if undelivered is None else np.asarray(undelivered)
    return np.clip((late - u) / np.maximum(1 - u, 1e-9), 0.0, 1.0)


def times(decided: Array, hours: Array, promised: Array, chance: Array | None) -> Array:
    """Windows as times, outwards to the minute, that do not contradict the chance of being late.

    Args:
        decided: (n,) datetime64[us].
        hours: (n, 3), ascending.
        promised: (n,) datetime64[us], NaT without a promise.
        chance: (n,) L, see `chance_late`, or None.

    Returns:
        (n, 3) datetime64[us], ascending, never before the decision.
    """
    # As whole numbers, which numpy is several times quicker with; a missing time is put back at the end.
    known = decided.astype("datetime64[us]").view(np.int64)[:, None]
    at = known + np.rint(hours * _HOUR).astype(np.int64) + _OUTWARDS
    at -= at % _MINUTE
    if chance is not None:
        promise, above, below = _sides(decided, promised, chance)
        at = np.where(above, np.maximum(at, promise), np.where(below, np.minimum(at, promise), at))
    out = np.maximum(at, known).view("datetime64[us]")
    out[np.isnat(decided)] = np.datetime64("NaT", "us")
    return out


def contradictions(window: Array, decided: Array, promised: Array, chance: Array) -> Array:
    """Where a window says something else than the chance of being late, (n,) bool.

    Args:
        window: (n, 3) datetime64[us].
        decided, promised, chance: as in `times`.
    """
    promise, above, below = _sides(decided, promised, chance)
    at = window.astype("datetime64[us]").view(np.int64)
    wrong: Array = (above & (at < promise)) | (below & (at > promise))
    return np.asarray(wrong.any(axis=1))


def _sides(decided: Array, promised: Array, chance: Array) -> tuple[Array, Array, Array]:
    """The promise (n, 1) in microseconds; which times must not lie before it, and which not after it, (n, 3) bool.

    A promise that had passed at the decision is broken whatever the model says: every arrival is after it.
    """
    known = ~np.isnat(promised)[:, None]
    sure = np.where(promised <= decided, 1.0, chance)[:, None]
    return promised.astype("datetime64[us]").view(np.int64)[:, None], known & (sure > _AFTER), known & (sure < _AFTER)
