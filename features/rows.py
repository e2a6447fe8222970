"""From raw tables to rows that features can be computed on: one join, used by training, batch scoring and the service.

Two levels: `parcels` (one row per parcel, and one per order that has no parcel yet) and `lines` (one row per order
line). Both know `decided_at`, the moment whose knowledge counts. Everything is a numpy array: a request with one parcel
and a year of a million parcels run through the same code, and a row's values do not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from features.arrays import DTYPE, MISSING, Array, Tables, absent, hash_codes, local, match, take
from features.contracts import TABLES
from features.listings import Listings

if TYPE_CHECKING:
    from features.history import Lookup
    from features.snapshot import Snapshot


Read = Callable[[str, str], Array]
"""From a table and a column to values, (n,)."""


class Level:
    """Rows of one level, with their columns joined on, and history as it was known at `decided_at`.

    Columns are asked for by table: `level["parcels", "carrier"]`. A column that was not given is all missing.

    Args:
        name: `parcel` or `line`.
        decided_at: (n,) datetime64[us].
        rows: what the level belongs to.
        get: reads a column.
        codes: gives the stable codes of a column where they are known already.
    """

    def __init__(self, name: str, decided_at: Array, rows: Rows, get: Read, codes: Read | None = None) -> None:
        self.name = name
        self.n = len(decided_at)
        self.decided_at = decided_at
        self.rows = rows
        self._get, self._codes = get, codes
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
            values = hash_codes(self[table, column]) if self._codes is None else self._codes(table, column)
            self._hashes[table, column] = values
        return values

    def lookup(self, entity: str) -> Lookup:
        """What was known about each row's entity (its lane, its SKU ...) at the row's `decided_at`."""
        found: Lookup | None = self._lookups.get(entity)
        if found is None:
            found = self._lookups[entity] = self.rows.snapshot.history.lookup(entity, self)
        return found

    def forget(self) -> None:
        """Let go of what was computed, but for the codes of text: they take the longest to compute again."""
        for kept in (self._columns, self._lookups, self.memo):
            kept.clear()

    def local(self, times: Array) -> Array:
        """Times on the shop's wall clock."""
        return local(times, self.rows.zone)


_KINDS = {(t.name, c.name): c.kind for t in TABLES.values() for c in t.columns}


class Rows:
    """The join of the tables as of each row's decision.

    Args:
        tables: arrays per table and column, see `columns`. Only orders, order_lines, parcels and listings are read:
            what happened later (events, returns) cannot reach a feature except through the snapshot's history, and what
            was advised (decisions) not at all.
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
        self._tables = tables
        self._instead: Mapping[tuple[str, str], Array] = {}
        none: Array = np.empty(0, dtype=object)

        def given(table: str, column: str) -> Array:
            return tables.get(table, {}).get(column, none)

        order_ids, parcel_ids = given("orders", "order_id"), given("parcels", "parcel_id")
        order_of_parcel = match(given("parcels", "order_id"), order_ids)
        without = np.ones(len(order_ids), dtype=bool)
        without[order_of_parcel[order_of_parcel >= 0]] = False
        bare = np.flatnonzero(without)  # orders that have no parcel (yet)
        # The row of each parcel and line in its table; None: all of them, as they lie there.
        self._order_at = np.concatenate([order_of_parcel, bare])
        self._parcel_at: Array | None = None
        self._line_at: Array | None = None
        if len(bare):
            self._parcel_at = np.concatenate([np.arange(len(parcel_ids)), np.full(len(bare), -1)])
        packed, ordered = self._of_parcel("parcels", "packed_at"), self._of_parcel("orders", "ordered_at")
        decided = np.where(np.isnat(packed), ordered, packed)

        first = np.full(len(order_ids) + 1, -1, dtype=np.int64)
        # An order's first row is the one decided first, not the first in the file: which one that is must not change
        # when a later parcel of the order comes to be known. Parcels of no known order land in the last place.
        early = np.argsort(decided, kind="stable")[::-1]
        first[self._order_at[early]] = early
        first[-1] = -1
        self.first_of_order = first[self._order_at] == np.arange(len(decided))

        self.line_id = given("order_lines", "line_id")
        other = first[match(given("order_lines", "order_id"), order_ids)]
        named = tables.get("order_lines", {}).get("parcel_id")
        if named is None:
            self.line_parcel = other
        else:
            mine = match(named, parcel_ids)
            # A line of a parcel that is not known yet waits for it: it does not travel with the order's other parcel.
            waits = ~absent(named) & (other < len(parcel_ids))
            self.line_parcel = np.where(mine >= 0, mine, np.where(waits, -1, other))
        listings = tables.get("listings")
        self._given_listings = Listings.from_columns(listings) if listings and len(listings.get("sku", none)) else None
        self._levels(decided)

    def _levels(self, decided: Array, of_parcel: Read | None = None, of_line: Read | None = None) -> None:
        """Start the two levels, from when each parcel was decided and the codes that are known already."""
        self._listing_at: tuple[Array, Array] | None = None
        self.parcels = Level("parcel", decided, self, self._of_parcel, of_parcel)
        self.parcel_id, self.order_id = self._of_parcel("parcels", "parcel_id"), self._of_parcel("orders", "order_id")
        decided = take(decided, self.line_parcel, np.datetime64("NaT", "us"))
        self.lines = Level("line", decided, self, self._of_line, of_line)

    def part(self, parcels: slice, lines: Array) -> Rows:
        """Some parcels and lines, nothing joined or coded anew; a row has the values it has in the whole.

        Args:
            parcels: which parcels, from one to another.
            lines: (l,) int64, which lines: of these parcels, or of none.
        """
        some = copy(self)
        some._order_at = self._order_at[parcels]
        some._parcel_at = (np.arange(self.parcels.n) if self._parcel_at is None else self._parcel_at)[parcels]
        some._line_at = lines if self._line_at is None else self._line_at[lines]
        some.line_id, some.line_parcel = self.line_id[lines], self.line_parcel[lines] - parcels.start
        some.line_parcel[some.line_parcel < 0] = -1
        some.first_of_order = self.first_of_order[parcels]
        some._instead = {at: values[parcels] for at, values in self._instead.items()}
        some._levels(
            self.parcels.decided_at[parcels],
            lambda table, column: self.parcels.hash(table, column)[parcels],
            lambda table, column: self.lines.hash(table, column)[lines],
        )
        return some

    def as_if(self, parcels: Array, columns: Mapping[str, Array]) -> tuple[Rows, Array]:
        """Parcels with their lines, as if some of their columns had been otherwise.

        Nothing is joined anew; when they were decided, and what was known then, stays.

        Args:
            parcels: (m,) int64, which parcels, each as often as wanted.
            columns: per column of `parcels`, (m,) values to read instead; none that decides when a parcel was decided.

        Returns:
            The rows, and for each of their lines which line it is here, (l,) int64.
        """
        order, first = self.lines_of()
        count = first[parcels + 1] - first[parcels]
        ends = np.cumsum(count)
        lines = order[np.repeat(first[parcels] - (ends - count), count) + np.arange(count.sum())]
        some = copy(self)
        some._order_at = self._order_at[parcels]
        some._parcel_at = parcels if self._parcel_at is None else self._parcel_at[parcels]
        some._line_at = lines if self._line_at is None else self._line_at[lines]
        some.line_id, some.line_parcel = self.line_id[lines], np.repeat(np.arange(len(parcels)), count)
        some.first_of_order = self.first_of_order[parcels]
        some._instead = {at: values[parcels] for at, values in self._instead.items()}
        some._instead |= {("parcels", column): values for column, values in columns.items()}

        def of_parcel(table: str, column: str) -> Array:
            if table == "parcels" and column in columns:
                return hash_codes(columns[column])
            return self.parcels.hash(table, column)[parcels]

        def of_line(table: str, column: str) -> Array:
            if table == "parcels" and column in columns:
                return take(some.parcels.hash(table, column), some.line_parcel, np.uint64(0))
            return self.lines.hash(table, column)[lines]

        some._levels(self.parcels.decided_at[parcels], of_parcel, of_line)
        return some, lines

    @property
    def what_if(self) -> bool:
        """Whether some columns are read as if they had been otherwise."""
        return bool(self._instead)

    def lines_of(self) -> tuple[Array, Array]:
        """Lines in the order of their parcels, those of no parcel first, and where each parcel's begin.

        Returns:
            (n_lines,) int64 and (n_parcels + 1,) int64.
        """
        order = np.argsort(self.line_parcel, kind="stable")
        return order, np.searchsorted(self.line_parcel[order], np.arange(self.parcels.n + 1))

    def forget(self) -> None:
        """Let go of what was computed on both levels."""
        self.parcels.forget()
        self.lines.forget()

    def _of_parcel(self, table: str, column: str) -> Array:
        if table not in ("orders", "parcels"):
            raise KeyError(f"a parcel has no single {table}.{column}: use the level of lines")
        if (table, column) in self._instead:
            return self._instead[table, column]
        at = self._order_at if table == "orders" else self._parcel_at
        return self._column(self._tables.get(table, {}), table, column, at, len(self._order_at))

    def _of_line(self, table: str, column: str) -> Array:
        if table == "order_lines":
            return self._column(self._tables.get(table, {}), table, column, self._line_at, len(self.line_parcel))
        if table == "listings":
            return self._listing(column)
        return take(self.parcels[table, column], self.line_parcel, self.missing(table, column))

    def _column(self, given: Mapping[str, Array], table: str, column: str, at: Array | None, n: int) -> Array:
        """A given column at some rows of its table (None: all of them), n in number; -1 is a row that is not there."""
        values = given.get(column)
        if values is None:
            return np.full(n, self.missing(table, column), dtype=DTYPE[self._kind(table, column)])
        return values if at is None else take(values, at, self.missing(table, column))

    def _kind(self, table: str, column: str) -> str:
        return self.kinds.get((table, column), "time")  # only an extra's known_at has no kind of its own

    def missing(self, table: str, column: str) -> Any:
        """What stands for a missing value of the column."""
        return MISSING[self._kind(table, column)]

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
        at, given_at = self._listings()
        values = self._column(self.snapshot.listings.columns, "listings", column, at, len(at))
        if self._given_listings is not None:
            other = self._column(self._given_listings.columns, "listings", column, given_at, len(at))
            values = np.where(at < 0, other, values)
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
