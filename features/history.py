"""What was known about a lane, a node, a product or a customer at a moment: additive counts per entity and day.

The only place where the time of a fact is compared with the time of a decision. History is a table of sums
`(entity, key, day of knowledge, counts)`: tables of two partitions are merged by adding, a new outcome is one more row,
and the same table answers a build over years and one request. A count for a decision on day d uses days before d only,
so everything it holds was known strictly before the decision.

Rates are counted from mature cohorts only (`features.outcomes`): numerator and denominator come from the same units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from features.arrays import SMALL, Array, combine

if TYPE_CHECKING:
    from features.outcomes import Outcome
    from features.rows import Level, Rows

_SHIFT = 22  # bits for the day or hour number of knowledge: hours until the year 2448
PARCEL_OUTCOMES = ("late", "failed_attempt", "damaged", "undelivered", "handover")


@dataclass(frozen=True)
class Entity:
    """What counts are kept by.

    Attributes:
        name: name of the entity.
        level: `parcel` or `line`, where its key columns live.
        columns: (table, column) pairs whose combination is the key; none for the whole shop.
        parent: entity to fall back to where little is known; every chain ends at `all`.
        counts: outcomes (a pair of counts each: units and positives) and activities (one count) that are kept.
        hourly: counts are kept by hour instead of by day.
    """

    name: str
    level: str
    columns: tuple[tuple[str, str], ...]
    parent: str | None
    counts: tuple[str, ...]
    hourly: bool = False

    @cached_property
    def outcomes(self) -> tuple[str, ...]:
        """The outcomes among the counts."""
        return tuple(c for c in self.counts if c not in ACTIVITIES)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the kept sums: `n:late`, `y:late` for each outcome, then `n:packed` for each activity."""
        pairs = [f"{part}:{c}" for c in self.outcomes for part in "ny"]
        return (*pairs, *(f"n:{c}" for c in self.counts if c in ACTIVITIES))

    @cached_property
    def place(self) -> dict[str, int]:
        """Position of each field."""
        return {name: i for i, name in enumerate(self.fields)}


STRENGTH = 50.0
"""A rate is drawn towards its parent's as if so many more units at the parent's rate had been seen."""

SEEN = 20_000
"""Lookups of single rows that are kept for the next request, some 2 kB each."""

FEW = 16
"""Up to so many what-ifs are looked up one by one, as they share nearly all with those of other parcels."""

ACTIVITIES = ("ordered", "packed")
"""Counts of facts that are no outcomes: orders placed, parcels packed."""

_TO = (("orders", "destination_country"), ("orders", "destination_region"))
_CARRIER, _SERVICE, _NODE = ("parcels", "carrier"), ("parcels", "service"), ("parcels", "node")
_SKU, _CATEGORY = ("order_lines", "sku"), ("listings", "category")
_ALL = (*PARCEL_OUTCOMES, "returned")
_DOOR = ("late", "failed_attempt", "damaged", "undelivered")

ENTITIES: dict[str, Entity] = {
    e.name: e
    for e in (
        Entity("all", "parcel", (), None, _ALL),
        Entity("carrier", "parcel", (_CARRIER,), "all", _DOOR),
        Entity("carrier_service", "parcel", (_CARRIER, _SERVICE), "carrier", _DOOR),
        Entity("lane", "parcel", (_CARRIER, _SERVICE, *_TO), "carrier_service", _DOOR),
        Entity("region", "parcel", _TO, "all", ("failed_attempt", "undelivered", "returned")),
        Entity("city", "parcel", (*_TO, ("orders", "destination_city")), "region", ("failed_attempt", "undelivered")),
        Entity(
            "postal",
            "parcel",
            (("orders", "destination_country"), ("orders", "destination_postal")),
            "region",
            ("failed_attempt", "undelivered"),
        ),
        Entity(
            "payment", "parcel", (("orders", "payment_method"),), "all", ("failed_attempt", "undelivered", "returned")
        ),
        Entity(
            "payment_region",
            "parcel",
            (("orders", "payment_method"), *_TO),
            "payment",
            ("failed_attempt", "undelivered"),
        ),
        Entity("channel", "parcel", (("orders", "channel"),), "all", ("returned", "undelivered")),
        Entity("node", "parcel", (_NODE,), "all", ("handover", "late", "damaged")),
        Entity("node_carrier", "parcel", (_NODE, _CARRIER), "node", ("handover",)),
        Entity("package", "parcel", (("parcels", "package_type"),), "all", ("damaged",)),
        Entity(
            "customer",
            "parcel",
            (("orders", "customer_id"),),
            "all",
            ("failed_attempt", "undelivered", "returned", "ordered"),
        ),
        Entity("category", "line", (_CATEGORY,), "all", ("damaged", "returned", "undelivered")),
        Entity("category_package", "line", (_CATEGORY, ("parcels", "package_type")), "category", ("damaged",)),
        Entity("brand", "line", (("listings", "brand"),), "all", ("returned",)),
        Entity("sku", "line", (_SKU,), "category", ("damaged", "returned", "undelivered")),
        Entity("variant", "line", (_SKU, ("order_lines", "variant")), "sku", ("returned",)),
        Entity("node_hours", "parcel", (_NODE,), None, ("packed",), hourly=True),
    )
}


MAY_LACK = (("orders", "destination_country"), ("parcels", "service"))
"""Parts of a key that a shop may do without: a shop that sends to one country rarely writes it down."""


def key(entity: Entity, level: Level) -> Array:
    """Stable key of the entity for each row of a level, (n,) uint64; 0 where a part it cannot do without is missing."""
    if not entity.columns:
        return np.ones(level.n, dtype=np.uint64)
    parts = [level.hash(*c) for c in entity.columns]
    if len(parts) > 1:
        parts = [
            np.maximum(p, np.uint64(1)) if c in MAY_LACK else p for c, p in zip(entity.columns, parts, strict=True)
        ]
    return combine(*parts)


@dataclass(frozen=True)
class Change:
    """Changes of an entity's counts.

    Attributes:
        row: (c,) int64, the row whose key they belong to.
        bucket: (c,) int64, day or hour at which they became known.
        fields: (c,) change of each field, by its name.
    """

    row: Array
    bucket: Array
    fields: Mapping[str, Array]


@dataclass(frozen=True)
class Counts:
    """The table of one entity: rows sorted by key and bucket of knowledge.

    Attributes:
        keys: (k,) uint64, sorted.
        order: (r,) int64, `place of the key << 22 | bucket`, ascending.
        sums: (r + 1, f) int32 running sums over all rows before, fields as in `Entity.fields`.
    """

    keys: Array
    order: Array
    sums: Array

    @staticmethod
    def of(entity: Entity, key: Array, changes: Sequence[Change]) -> Counts:
        """Add up changes by key and bucket of knowledge.

        Args:
            entity: whose counts they are.
            key: (n,) uint64 key of each row; changes of rows with key 0 (unknown) are left out.
            changes: what to add.
        """
        place, keys = pd.factorize(key, sort=True)
        place[key == 0] = -1
        slots, chosen = [], []
        for c in changes:
            at = place[c.row]
            known = at >= 0
            slots.append((at[known] << _SHIFT) | c.bucket[known])
            chosen.append(known)
        slot, order = pd.factorize(np.concatenate(slots), sort=True)
        sums = np.zeros((len(order) + 1, len(entity.fields)), dtype=np.int32)
        ends = np.cumsum([len(s) for s in slots])[:-1]
        for c, known, mine in zip(changes, chosen, np.split(slot, ends), strict=True):
            for field, change in c.fields.items():
                added = np.bincount(mine, weights=change[known], minlength=len(order))
                sums[1:, entity.place[field]] += added.astype(np.int32)
        np.cumsum(sums, axis=0, out=sums)
        return Counts(keys, order, sums)

    def table(self) -> tuple[Array, Array, Array]:
        """The rows as (r,) key, (r,) bucket, (r, f) counts: what is added when tables are merged."""
        return self.keys[self.order >> _SHIFT], self.order & ((1 << _SHIFT) - 1), np.diff(self.sums, axis=0)


class Lookup:
    """An entity's counts as known at each row's decision.

    Args:
        entity: the entity.
        counts: its table.
        keys: (n,) uint64 key of each row.
        bucket: (n,) int64, first bucket that is too late to be known to the row.
        parent: lookup of the parent entity for the same rows.
        trace: told of every count that is read, if given.
    """

    def __init__(
        self,
        entity: Entity,
        counts: Counts,
        keys: Array,
        bucket: Array,
        parent: Lookup | None,
        trace: list[dict[str, Any]] | None = None,
    ) -> None:
        self._trace = trace
        self.tag: tuple[Any, ...] | None = None
        self.entity, self.counts, self.parent = entity, counts, parent
        self.keys, self.bucket = keys, bucket
        self._rates: dict[tuple[int | None, float], Array] = {}
        if len(counts.keys):
            place = np.minimum(counts.keys.searchsorted(keys), len(counts.keys) - 1)
            self._known = (counts.keys[place] == keys) & (keys != 0)
            self._base = place.astype(np.int64) << _SHIFT
        else:
            self._known, self._base = np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.int64)
        # Many rows are looked up in the order of the table: the next one is found where the last one was.
        self._by = np.argsort(self._base | bucket) if len(keys) > SMALL else slice(None)
        self._at: dict[int | None, Array] = {}
        self._sums: dict[int | None, Array] = {}

    def _place(self, back: int | None) -> Array:
        """Row of the running sums at `back` buckets before the decision (None: at the beginning)."""
        at = self._at.get(back)
        if at is None:
            at = self._at[back] = self._search(0 if back is None else np.maximum(self.bucket - back, 0))
        return at

    def _search(self, bucket: Array | int) -> Array:
        found = np.empty(len(self.keys), dtype=np.int64)
        found[self._by] = self.counts.order.searchsorted((self._base | bucket)[self._by])
        return np.where(self._known, found, 0)

    def _all(self, window: int | None) -> Array:
        """All fields' sums over a window, (f, n) float64: read together, as most of them are asked for."""
        found = self._sums.get(window)
        if found is None:
            sums = self.counts.sums
            change = sums.take(self._place(0), axis=0) - sums.take(self._place(window), axis=0)
            found = self._sums[window] = change.T.astype(np.float64, order="C")
        return found

    def count(self, field: str, window: int | None = None, before: Array | None = None) -> Array:
        """A sum over the last `window` buckets before the decision, all of them if no window; (n,) float64.

        Args:
            field: a name of `Entity.fields`.
            window: days (hours for an hourly entity).
            before: (n,) datetime64[us]; where this is earlier than the decision, the count ends here.
        """
        if before is None:
            found = self._all(window)[self.entity.place[field]]
        else:
            end = self._search(np.minimum(self.bucket, _bucket(before, self.entity)))
            column = self.counts.sums[:, self.entity.place[field]]
            found = (column[end] - column[self._place(window)]).astype(np.float64)
        if self._trace is not None:
            self._trace.append({"lookup": self, "field": field, "window": window, "count": found})
        return found

    def rate(self, outcome: str, window: int | None = None, strength: float = STRENGTH) -> Array:
        """Share of positives among mature units, drawn towards the parent's where few are known; (n,) float64.

        Additive smoothing, `(y + strength * parent) / (n + strength)`: an entity never seen answers with its parent's
        rate. The parent is read over all time and with the usual strength, so that only the entity's own count is
        recent. NaN where nothing is known at all.
        """
        if self._trace is not None:
            self.count(f"n:{outcome}", window)
            self.count(f"y:{outcome}", window)
            if self.parent is not None:
                self.parent.rate(outcome)
        return self._shares(window, strength)[self.entity.outcomes.index(outcome)]

    def _shares(self, window: int | None, strength: float) -> Array:
        """The rates of all the entity's outcomes, (outcomes, n): together they cost little more than one of them."""
        shares = self._rates.get((window, strength))
        if shares is None:
            outcomes = 2 * len(self.entity.outcomes)
            sums = self._all(window)
            n, y = sums[0:outcomes:2], sums[1:outcomes:2]
            if self.parent is None:
                shares = np.full(n.shape, np.nan)
                np.divide(y, n, out=shares, where=n > 0)
            else:
                theirs = _columns(self.entity, self.parent.entity)
                shares = (y + strength * self.parent._shares(None, STRENGTH)[theirs]) / (n + strength)
            self._rates[window, strength] = shares
        return shares


@lru_cache(maxsize=256)
def _columns(entity: Entity, parent: Entity) -> list[int]:
    """Where the parent keeps each of the entity's outcomes."""
    lacking = [o for o in entity.outcomes if o not in parent.outcomes]
    if lacking:
        raise KeyError(f"{parent.name} keeps no counts of {lacking[0]}, so {entity.name} cannot fall back to it")
    return [parent.outcomes.index(o) for o in entity.outcomes]


class Several(Lookup):
    """The lookups of a few rows, each found by itself, as one.

    Args:
        each: (n,) lookups of one row of one entity.
    """

    def __init__(self, each: Sequence[Lookup]) -> None:
        self.each = each
        self.entity, self.counts, self.tag = each[0].entity, each[0].counts, None
        self.keys, self.bucket = (np.concatenate(x) for x in ([e.keys for e in each], [e.bucket for e in each]))

    def count(self, field: str, window: int | None = None, before: Array | None = None) -> Array:
        """As of any lookup."""
        ends = [None] * len(self.each) if before is None else [before[i : i + 1] for i in range(len(self.each))]
        return np.concatenate([x.count(field, window, end) for x, end in zip(self.each, ends, strict=True)])

    def rate(self, outcome: str, window: int | None = None, strength: float = STRENGTH) -> Array:
        """As of any lookup."""
        return np.concatenate([x.rate(outcome, window, strength) for x in self.each])


class History:
    """Counts of all entities, known before `as_of`.

    Attributes:
        as_of: datetime64[us], UTC.
        counts: table per entity.
        entities: what is counted; the standard ones and one per coded extra column of the dataset.
    """

    def __init__(self, as_of: np.datetime64, counts: Mapping[str, Counts], entities: Mapping[str, Entity]) -> None:
        self.as_of = as_of
        self.counts = dict(counts)
        self.entities = dict(entities)
        self._seen: dict[tuple[Any, ...], Lookup] = {}

    @staticmethod
    def build(
        rows: Rows, outcomes: Mapping[str, Outcome], as_of: np.datetime64, entities: Mapping[str, Entity]
    ) -> History:
        """Count what was known before `as_of`.

        Args:
            rows: units of the dataset.
            outcomes: what happened to them, see `features.outcomes`.
            as_of: facts known at this time or later are not counted.
            entities: what to count by.
        """
        steps = {name: o.steps(as_of) for name, o in outcomes.items()}
        lines_of, first_line = rows.lines_of()
        per_parcel = np.diff(first_line)
        counts: dict[str, Counts] = {}
        for entity in entities.values():
            level = rows.lines if entity.level == "line" else rows.parcels
            changes = []
            for name in entity.counts:
                if name in ACTIVITIES:
                    column = ("orders", "ordered_at") if name == "ordered" else ("parcels", "packed_at")
                    at = rows.parcels[column]
                    unit = np.flatnonzero(at < as_of)
                    if name == "ordered":  # once per order, however many parcels it has
                        unit = unit[rows.first_of_order[unit]]
                    changes.append(Change(unit, _bucket(at[unit], entity), {f"n:{name}": np.ones(len(unit))}))
                    continue
                unit, at, dn, dy = steps[name]
                if outcomes[name].unit == "line" and entity.level == "parcel":
                    unit = rows.line_parcel[unit]
                elif outcomes[name].unit == "parcel" and entity.level == "line":  # a parcel's fate counts for each line
                    times = per_parcel[unit]
                    within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
                    which = np.repeat(np.arange(len(unit)), times)
                    unit = lines_of[first_line[unit[which]] + within]
                    at, dn, dy = at[which], dn[which], dy[which]
                changes.append(Change(unit, _bucket(at, entity), {f"n:{name}": dn, f"y:{name}": dy}))
            counts[entity.name] = Counts.of(entity, key(entity, level), changes)
        return History(as_of, counts, entities)

    def lookup(self, entity: str, level: Level) -> Lookup:
        """Counts of an entity as known at the decisions of a level's rows.

        A decision later than the history's `as_of` sees the history as of then: windows end where knowledge ends.
        """
        e = self.entities[entity]
        parent = level.lookup(e.parent) if e.parent else None
        memo = "hour of decision" if e.hourly else "day of decision"
        bucket = level.memo.get(memo)
        if bucket is None:
            last = _bucket(self.as_of - np.timedelta64(1, "us"), e) + 1
            bucket = level.memo[memo] = np.minimum(_bucket(level.decided_at, e), last)
        if level.n > (FEW if level.rows.what_if else 1) or level.n == 0 or level.rows.trace is not None:
            return Lookup(e, self.counts[entity], key(e, level), bucket, parent, level.rows.trace)
        # One parcel asked for alone shares its carrier, lane, node ... with many others of the day, and so do the same
        # parcel's what-ifs. Found by its words, a lookup needs no key.
        above: Sequence[Lookup | None] = [parent] * level.n
        if isinstance(parent, Several):
            above = parent.each
        columns = [level[c].tolist() for c in e.columns]
        words = list(zip(*columns, strict=True)) if columns else [()] * level.n
        found, keys = [], None
        for i, (up, day, names) in enumerate(zip(above, bucket.tolist(), words, strict=True)):
            tag = (entity, day, up and up.tag, *names)
            one = self._seen.get(tag)
            if one is None:
                if len(self._seen) >= SEEN:
                    self._seen.clear()
                keys = key(e, level) if keys is None else keys
                one = Lookup(e, self.counts[entity], keys[i : i + 1], bucket[i : i + 1], up)
                one.tag = tag  # before another thread can find it
                self._seen[tag] = one
            found.append(one)
        return found[0] if level.n == 1 else Several(found)

    def save(self, to: Path) -> None:
        """Write the tables as plain .npy files into the folder."""
        to.mkdir(parents=True, exist_ok=True)
        for name, c in self.counts.items():
            safe = quote(name, safe="")
            for part in ("keys", "order", "sums"):
                np.save(to / f"{safe}.{part}.npy", getattr(c, part), allow_pickle=False)
        meta = {"as_of": str(self.as_of), "entities": {n: _kept(e) for n, e in self.entities.items()}}
        (to / "history.json").write_text(json.dumps(meta, indent=1, sort_keys=True))

    @staticmethod
    def load(folder: Path, entities: Mapping[str, Entity]) -> History:
        """Read what `save` wrote; tables stay on disk and are mapped into memory.

        Raises:
            ValueError: the folder was written for other entities or counts than this version keeps.
        """
        meta = json.loads((folder / "history.json").read_text())
        ours = {n: _kept(e) for n, e in entities.items()}
        if meta["entities"] != ours:
            changed = sorted(n for n in ours.keys() | meta["entities"].keys() if ours.get(n) != meta["entities"].get(n))
            raise ValueError(
                f"{folder}: the snapshot keeps other counts than this version ({', '.join(changed)}): "
                "make a new one with `doorstep snapshot`"
            )
        counts = {}
        for name in entities:
            safe = quote(name, safe="")
            # As plain arrays of the mapped memory: indexing a memmap costs ten times as much, and a request does 400.
            parts = [
                np.load(folder / f"{safe}.{p}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
                for p in ("keys", "order", "sums")
            ]
            counts[name] = Counts(*parts)
        return History(np.datetime64(meta["as_of"], "us"), counts, entities)


def _kept(entity: Entity) -> list[Any]:
    """What an entity's table depends on, as plain data."""
    return [entity.level, [list(c) for c in entity.columns], list(entity.fields), entity.hourly]


def _bucket(times: Array | np.datetime64, entity: Entity) -> Array:
    """Number of the day (or hour) a time falls in, UTC; 0 for what was before 1970 or is missing."""
    bucket = np.asarray(times).astype("datetime64[h]" if entity.hourly else "datetime64[D]").astype(np.int64)
    # A date like 1900-01-01 or 9999-12-31 must not reach another key's rows. On one row np.clip is five times as slow.
    return np.minimum(np.maximum(bucket, 0), (1 << _SHIFT) - 1)


def merge(entity: Entity, tables: Sequence[Counts]) -> Counts:
    """One table from those of several partitions: the counts are added."""
    parts = [t.table() for t in tables]
    key, bucket, counts = (np.concatenate(p) for p in zip(*parts, strict=True))
    fields = dict(zip(entity.fields, counts.T, strict=True))
    return Counts.of(entity, key, [Change(np.arange(len(key)), bucket, fields)])
