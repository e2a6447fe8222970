"""From raw tables to rows that features can be computed on: one join, used by training, batch scoring and the service.

Two levels: `parcels` (one row per parcel, and one per order that has no parcel yet) and `lines` (one row per order
line). Both know `decided_at`, the moment whose knowledge counts. Everything is a numpy array: a request with one parcel
and a year of a million parcels run through the same code, and a row's values do not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from features.arrays import DTYPE, MISSING, Array, Tables, absent, hash_codes, local, match, take
from features.contracts import TABLES
from features.listings import Listings

if TYPE_CHECKING:
    from features.history import Lookup
    from features.snapshot import Snapshot


class Level:
    """Rows of one level, with their columns joined on, and history as it was known at `decided_at`.

    Columns are asked for by table: `level["parcels", "carrier"]`. A column that was not given is all missing.
    """

    def __init__(self, name: str, n: int, decided_at: Array, get: Callable[[str, str], Array], rows: Rows) -> None:
        self.name = name
        self.n = n
        self.decided_at = decided_at
        self.rows = rows
        self._get = get
        self._columns: dict[tuple[str, str], Array] = {}
        self._hashes: dict[tuple[str, str], Array] = {}
        self._lookups: dict[Any, Any] = {}
        self.memo: dict[Any, Array] = {}

    def __getitem__(self, at: tuple[str, str]) -> Array:
        values = self._columns.get(at)
        if values is None:
            values = self._get(*at)
            own = self.rows.known_at.get(at)
            if own is not None:  # an extra column that came to be known at a time of its own
                values = np.where(self[at[0], own] < self.decided_at, values, self.rows.missing(*at))
            self._columns[at] = values
            if self.rows.trace is not None:
                self.rows.trace.append({"level": self.name, "column": f"{at[0]}.{at[1]}", "values": values})
        return values

    def hash(self, table: str, column: str) -> Array:
        """Stable codes of a text column, (n,) uint64."""
        values = self._hashes.get((table, column))
        if values is None:
            values = self._hashes[table, column] = hash_codes(self[table, column])
        return values

    def lookup(self, entity: str) -> Lookup:
        """What was known about each row's entity (its lane, its SKU ...) at the row's `decided_at`."""
        found: Lookup | None = self._lookups.get(entity)
        if found is None:
            found = self._lookups[entity] = self.rows.snapshot.history.lookup(entity, self)
        return found

    def local(self, times: Array) -> Array:
        """Times on the shop's wall clock."""
        return local(times, self.rows.zone)


_KINDS = {(t.name, c.name): c.kind for t in TABLES.values() for c in t.columns}


class Rows:
    """The join of the six tables as of each row's decision.

    Args:
        tables: arrays per table and column, see `columns`. Only orders, order_lines, parcels and listings are read:
            what happened later (events, returns) cannot reach a feature except through the snapshot's history.
        snapshot: history and listings. Listings given in `tables` are used for products the snapshot does not know.

    Attributes:
        parcels, lines: the two levels.
        parcel_id, line_id: (n,) object; parcel_id is None for an order without parcel.
        line_parcel: (n_lines,) int64, the row of `parcels` a line belongs to: the parcel it names, else the one of its
            order that was decided first; -1 where neither is known.
        order_id: (n_parcels,) object.
        first_of_order: (n_parcels,) bool, one row per order, the one decided first.
    """

    def __init__(self, tables: Tables, snapshot: Snapshot, trace: list[dict[str, Any]] | None = None) -> None:
        self.snapshot = snapshot
        self.zone = snapshot.settings.timezone
        self.trace = trace
        self.kinds = _KINDS | {(e.table, e.column): e.kind for e in snapshot.settings.extra}
        # Known with its row, if it names the row's own time of knowledge; else only from a time of its own.
        self.known_at = {
            (e.table, e.column): e.known_at
            for e in snapshot.settings.extra
            if e.known_at is not None and e.known_at not in TABLES[e.table].known_at
        }
        orders, parcels = tables.get("orders", {}), tables.get("parcels", {})
        lines = tables.get("order_lines", {})
        none: Array = np.empty(0, dtype=object)
        order_ids = orders.get("order_id", none)
        parcel_ids = parcels.get("parcel_id", none)
        order_of_parcel = match(parcels.get("order_id", none), order_ids)
        without = np.ones(len(order_ids), dtype=bool)
        without[order_of_parcel[order_of_parcel >= 0]] = False
        bare = np.flatnonzero(without)  # orders that have no parcel (yet)
        parcel_at = np.concatenate([np.arange(len(parcel_ids)), np.full(len(bare), -1)])
        order_at = np.concatenate([order_of_parcel, bare])
        n = len(parcel_at)

        def parcel_column(table: str, column: str) -> Array:
            if table == "parcels":
                values, at = self._given(parcels, table, column, len(parcel_ids)), parcel_at
                if not len(bare):
                    return values
            elif table == "orders":
                values, at = self._given(orders, table, column, len(order_ids)), order_at
            else:
                raise KeyError(f"a parcel has no single {table}.{column}: use the level of lines")
            return take(values, at, self.missing(table, column))

        packed, ordered = parcel_column("parcels", "packed_at"), parcel_column("orders", "ordered_at")
        self.parcels = Level("parcel", n, np.where(np.isnat(packed), ordered, packed), parcel_column, self)
        self.parcel_id, self.order_id = parcel_column("parcels", "parcel_id"), parcel_column("orders", "order_id")

        self.line_id = lines.get("line_id", none)
        line_order = match(lines.get("order_id", none), order_ids)
        first = np.full(len(order_ids) + 1, -1, dtype=np.int64)
        # An order's first row is the one decided first, not the first in the file: which one that is must not change
        # when a later parcel of the order comes to be known. Parcels of no known order land in the last place.
        early = np.argsort(self.parcels.decided_at, kind="stable")[::-1]
        first[order_at[early]] = early
        first[-1] = -1
        self.first_of_order = first[order_at] == np.arange(n)
        named = self._given(lines, "order_lines", "parcel_id", len(self.line_id))
        mine, other = match(named, parcel_ids), first[line_order]
        # A line of a parcel that is not known yet waits for it: it does not travel with the order's other parcel.
        waits = (mine < 0) & ~absent(named) & (take(parcel_at, other, -1) >= 0)
        self.line_parcel = np.where(mine >= 0, mine, np.where(waits, -1, other))
        decided = take(self.parcels.decided_at, self.line_parcel, np.datetime64("NaT", "us"))

        def line_column(table: str, column: str) -> Array:
            if table == "order_lines":
                return self._given(lines, table, column, len(self.line_id))
            if table == "listings":
                return self._listing(column)
            return take(self.parcels[table, column], self.line_parcel, self.missing(table, column))

        self.lines = Level("line", len(self.line_id), decided, line_column, self)
        given = tables.get("listings")
        self._given_listings = Listings.from_columns(given) if given and len(given.get("sku", none)) else None
        self._listing_at: tuple[Array, Array] | None = None

    def missing(self, table: str, column: str) -> Any:
        """What stands for a missing value of the column."""
        return MISSING[self.kinds.get((table, column), "time")]  # only an extra's known_at has no kind of its own

    def _given(self, given: Mapping[str, Array], table: str, column: str, n: int) -> Array:
        values = given.get(column)
        if values is None:
            missing = self.missing(table, column)
            return np.full(n, missing, dtype=DTYPE[self.kinds.get((table, column), "time")])
        return values

    @property
    def listed(self) -> Array:
        """Whether a listing of each line's product was known before its decision, (n_lines,) bool."""
        at, given_at = self._listings()
        return (at >= 0) | (given_at >= 0)

    def _listings(self) -> tuple[Array, Array]:
        """Row of each line's product in the snapshot's listings and in the given ones, -1 where it is not there."""
        if self._listing_at is None:
            sku, decided = self.lines.hash("order_lines", "sku"), self.lines.decided_at
            at = self.snapshot.listings.find(sku, decided)
            given = self._given_listings
            self._listing_at = at, given.find(sku, decided) if given is not None else np.full(len(at), -1)
        return self._listing_at

    def _listing(self, column: str) -> Array:
        """A listing's column as it read before each line's decision; the snapshot's word goes before the request's."""
        known = self.snapshot.listings
        at, given_at = self._listings()
        missing = self.missing("listings", column)
        values = take(self._given(known.columns, "listings", column, known.n), at, missing)
        if self._given_listings is not None:
            other = self._given(self._given_listings.columns, "listings", column, self._given_listings.n)
            values = np.where(at < 0, take(other, given_at, missing), values)
        return values

    def per_parcel(self, values: Array, how: str) -> Array:
        """Line values (n_lines,) summarised per parcel: `max`, `sum` or `mean`; NaN where a parcel has no line."""
        n = self.parcels.n
        at, v = self.line_parcel, values
        ok = (at >= 0) & ~np.isnan(v)
        if not ok.all():
            at, v = at[ok], v[ok]
        count = np.bincount(at, minlength=n)
        if how == "max":
            out = np.full(n, -np.inf)
            np.maximum.at(out, at, v)
        else:
            out = np.bincount(at, weights=v, minlength=n)
            if how == "mean":
                out = out / np.maximum(count, 1)
        return np.where(count > 0, out, np.nan)
