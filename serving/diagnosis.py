"""A diagnosis as it is read: `diagnosis.sqlite` and `diagnosis.json`, which `doorstep diagnose` writes.

This module is the contract between the batch that writes and the pages, the JSON and the commands that read: what the
tables hold and what is indexed. A table is read by the page, filtered, sorted and counted in the database; none is ever
loaded whole. What is read is immutable: a new diagnosis is another directory in the place of this one.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
"""Of the directory: another one is refused."""
DATABASE, SUMMARY = "diagnosis.sqlite", "diagnosis.json"
TEXT, INTEGER, REAL = "TEXT", "INTEGER", "REAL"
Value = str | int | float | None

_SAID = {"ratio": REAL, "low": REAL, "high": REAL, "chance_worse": REAL, "excess": REAL}
_CORRIDOR: dict[str, str] = {
    "target": TEXT,
    "carrier": TEXT,
    "service": TEXT,
    "region": TEXT,
    "parcels": INTEGER,
    "observed": INTEGER,
    "expected": REAL,
    "ratio": REAL,
    "low": REAL,
    "high": REAL,
    "chance_worse": REAL,
    "chance_worst": REAL,
    "excess": REAL,
    "verdict": TEXT,
    "why": TEXT,
    "others": INTEGER,
    "trial": INTEGER,
    "since": TEXT,
}

TABLES: dict[str, dict[str, str]] = {
    "parcels": {
        "parcel_id": TEXT,
        "order_id": TEXT,
        "decided_at": TEXT,
        "week": TEXT,
        "node": TEXT,
        "shift": TEXT,
        "carrier": TEXT,
        "service": TEXT,
        "region": TEXT,
        "package_type": TEXT,
        "late": INTEGER,
        "failed_attempt": INTEGER,
        "damaged": INTEGER,
        "undelivered": INTEGER,
        "expected_late": REAL,
        "expected_failed_attempt": REAL,
        "expected_damaged": REAL,
        "expected_undelivered": REAL,
        "leg": TEXT,
        "whose": TEXT,
        "missed_cutoff": INTEGER,
        "label_grade": TEXT,
        "documents_complete": INTEGER,
        "address_quality": REAL,
    },
    "lines": {
        "line_id": TEXT,
        "parcel_id": TEXT,
        "sku": TEXT,
        "category": TEXT,
        "decided_at": TEXT,
        "returned": INTEGER,
        "reason": TEXT,
        "owner": TEXT,
        "counted": INTEGER,
        "aside": TEXT,
        "expected": REAL,
        "value": REAL,
    },
    "corridors": _CORRIDOR,
    "carriers": {
        **{c: kind for c, kind in _CORRIDOR.items() if c not in ("region", "chance_worst")},
        "ours": INTEGER,
        "theirs": INTEGER,
        "untold": INTEGER,
    },
    "products": {
        "sku": TEXT,
        "category": TEXT,
        "brand": TEXT,
        "lines": INTEGER,
        "returns": INTEGER,
        "aside": INTEGER,
        "observed": INTEGER,
        "expected": REAL,
        **_SAID,
        "named": INTEGER,
        "reason": TEXT,
        "verdict": TEXT,
        "why_not": TEXT,
        "from": TEXT,
        "worth": REAL,
        "driver": TEXT,
        "advice": TEXT,
    },
    "peers": {
        "sku": TEXT,
        "peer": TEXT,
        "lines": INTEGER,
        "returned": INTEGER,
        "ratio": REAL,
        "low": REAL,
        "high": REAL,
    },
    "drivers": {
        "sku": TEXT,
        "term": TEXT,
        "value": TEXT,
        "peers_value": TEXT,
        "share": REAL,
        "advice": TEXT,
    },
    "changes": {
        "sku": TEXT,
        "changed_at": TEXT,
        "what": TEXT,
        "before_lines": INTEGER,
        "before_ratio": REAL,
        "before_low": REAL,
        "before_high": REAL,
        "after_lines": INTEGER,
        "after_ratio": REAL,
        "after_low": REAL,
        "after_high": REAL,
        "verdict": TEXT,
        "judged_from": TEXT,
    },
    "readiness": {
        "node": TEXT,
        "shift": TEXT,
        "measure": TEXT,
        "parcels": INTEGER,
        "observed": INTEGER,
        "rate": REAL,
        "low": REAL,
        "high": REAL,
        "elsewhere": REAL,
        "verdict": TEXT,
        "trend": REAL,
    },
    "packaging": {
        "sku": TEXT,
        "category": TEXT,
        "package_type": TEXT,
        "verdict": TEXT,
        "parcels": INTEGER,
        "damaged": INTEGER,
        "expected": REAL,
        "low": REAL,
        "high": REAL,
        "volume_use": REAL,
        "worth": REAL,
    },
    "spikes": {
        "kind": TEXT,
        "key": TEXT,
        "target": TEXT,
        "began": TEXT,
        "until": TEXT,
        "observed": INTEGER,
        "forecast": REAL,
        "chance": REAL,
        "false_alarms_per_year": REAL,
    },
    "reality": {
        "team": TEXT,
        "target": TEXT,
        "period": TEXT,
        "predicted": REAL,
        "observed": REAL,
        "low": REAL,
        "high": REAL,
        "verdict": TEXT,
    },
    "excess": {
        "target": TEXT,
        "source": TEXT,
        "share": REAL,
        "low": REAL,
        "high": REAL,
        "failures": REAL,
    },
    "readiness_weeks": {
        "node": TEXT,
        "target": TEXT,
        "week": TEXT,
        "parcels": INTEGER,
        "observed": REAL,
        "expected": REAL,
    },
    "corridor_weeks": {
        "carrier": TEXT,
        "service": TEXT,
        "region": TEXT,
        "target": TEXT,
        "week": TEXT,
        "parcels": INTEGER,
        "observed": REAL,
        "expected": REAL,
    },
}
"""What a diagnosis holds at least: table -> column -> type. Text is an id, a word or a time in UTC, ISO 8601."""

INDEXES: dict[str, tuple[str, ...]] = {
    # Every way in which a page comes to rows; what it counts stands in the index, so that rows are read for show only.
    "parcels_by_id": ("parcels", "parcel_id"),
    "parcels_by_carrier": ("parcels", "carrier", "service", "region", "decided_at", "whose", *(
        "late", "failed_attempt", "damaged", "undelivered")),
    "parcels_by_late": ("parcels", "late", "whose", "leg", "carrier", "service", "region", "node", "week"),
    "parcels_by_failed_attempt": ("parcels", "failed_attempt", "carrier", "service", "region", "node", "week"),
    "parcels_by_damaged": ("parcels", "damaged", "carrier", "service", "region", "node", "package_type", "week"),
    "parcels_by_undelivered": ("parcels", "undelivered", "carrier", "service", "region", "node", "week"),
    "parcels_by_node": ("parcels", "node", "shift", "decided_at", "missed_cutoff", "label_grade", *(
        "documents_complete", "late", "failed_attempt", "damaged", "undelivered")),
    "parcels_by_package": ("parcels", "package_type", "damaged"),
    "lines_by_sku": ("lines", "sku", "returned", "counted", "aside", "reason", "decided_at"),
    "lines_by_returned": ("lines", "returned", "counted", "aside", "reason", "category"),
    "lines_by_parcel": ("lines", "parcel_id"),
    "corridors_by_carrier": ("corridors", "carrier", "service", "region"),
    "corridors_by_verdict": ("corridors", "verdict", "target"),
    "products_by_sku": ("products", "sku"),
    "products_by_worth": ("products", "named", "worth"),
    "products_by_verdict": ("products", "verdict", "worth"),
    "products_by_category": ("products", "category", "verdict"),
    "peers_by_sku": ("peers", "sku"),
    "drivers_by_sku": ("drivers", "sku"),
    "changes_by_sku": ("changes", "sku", "changed_at"),
    "packaging_by_verdict": ("packaging", "verdict", "worth"),
    "packaging_by_sku": ("packaging", "sku"),
    "corridor_weeks_by_carrier": ("corridor_weeks", "carrier", "service", "region", "target", "week"),
    "readiness_weeks_by_node": ("readiness_weeks", "node", "target", "week"),
}  # fmt: skip
"""Name -> table and its columns. `index` makes them."""


class DiagnosisError(ValueError):
    """A directory holds no diagnosis that can be read; says what was found and what to do."""


class QueryError(ValueError):
    """A question about a table that it has no answer to.

    Attributes:
        field: what of the question is wrong.
        message: what is wrong with it.
        given: what was asked.
        allowed: what may be asked.
    """

    def __init__(self, field: str, message: str, given: Any, allowed: str) -> None:
        super().__init__(f"{field} {message}; given: {given!r}; allowed: {allowed}")
        self.field, self.message, self.given, self.allowed = field, message, given, allowed


class ReplacedError(RuntimeError):
    """The diagnosis was replaced while it was read: ask again."""


def index(connection: sqlite3.Connection) -> None:
    """Make the indexes that the pages need, on tables that hold their rows, and the statistics that choose among them.

    Args:
        connection: to the database that is written; columns that a table lacks are left out of its indexes.
    """
    for name, (table, *columns) in INDEXES.items():
        there = {row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(table)})")}
        found = ", ".join(_quoted(c) for c in columns if c in there)
        if found:
            connection.execute(f"CREATE INDEX {_quoted(name)} ON {_quoted(table)} ({found})")
    connection.execute("PRAGMA analysis_limit = 1000")
    connection.execute("ANALYZE")


@dataclass(frozen=True)
class Table:
    """One table of a diagnosis.

    Attributes:
        name: its name.
        columns: name -> type: TEXT, INTEGER or REAL.
        rows: how many there are.
        why: why it is empty, in a sentence; "" if it is not, or if there is nothing to say.
    """

    name: str
    columns: Mapping[str, str]
    rows: int
    why: str


@dataclass(frozen=True)
class Where:
    """Which rows are meant; all conditions hold together.

    Attributes:
        equal: column -> its value; None where it is absent.
        time: column of times for the next two.
        begin, end: the time is not before the first and before the second, ISO dates or times; None: no bound.
        least: column -> the smallest value it may have.
    """

    equal: Mapping[str, Value] = field(default_factory=dict)
    time: str = "decided_at"
    begin: str | None = None
    end: str | None = None
    least: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.equal or self.begin or self.end or self.least)


ALL = Where()
Row = dict[str, Value]


class Diagnosis:
    """An open diagnosis. Safe to use from several threads.

    Attributes:
        directory: where it lies.
        document: the summary, `diagnosis.json`.
        tables: by name.
    """

    def __init__(self, directory: Path, document: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
        self.directory, self.document, self.tables = directory, document, tables
        self._file = directory / DATABASE
        self._is = _identity(self._file)
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()

    @classmethod
    def open(cls, directory: Path | str) -> Diagnosis:
        """The diagnosis in a directory.

        Raises:
            DiagnosisError: there is none, or one of another format, or it is damaged.
        """
        directory = Path(directory)
        again = "write it with `doorstep diagnose DATASET --out DIR`"
        for name in (SUMMARY, DATABASE):
            if not (directory / name).is_file():
                raise DiagnosisError(f"{directory}: has no {name}, so it holds no diagnosis: {again}")
        try:
            document = json.loads((directory / SUMMARY).read_bytes())
            format, told = document["format"], document["tables"]
        except (ValueError, TypeError, KeyError) as error:
            raise DiagnosisError(
                f"{directory / SUMMARY}: expected JSON with `format` and `tables`; {error!r}: {again}"
            ) from None
        if format != FORMAT:
            raise DiagnosisError(f"{directory}: format {format!r}, this version of Doorstep reads {FORMAT}: {again}")
        found = cls(directory, document, {})
        tables: dict[str, Table] = {}
        with found._connection() as connection:
            for name in TABLES:
                columns = {r[1]: r[2] for r in connection.execute(f"PRAGMA table_info({_quoted(name)})")}
                lacking = [c for c in TABLES[name] if c not in columns]
                if columns and lacking:
                    raise DiagnosisError(f"{directory}: table {name} lacks {', '.join(lacking)}: {again}")
                said = told.get(name, {})
                rows = connection.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()[0] if columns else 0
                why = said.get("why") or ""
                tables[name] = Table(name, columns or TABLES[name], rows, why)
        found.tables = tables
        return found

    def table(self, name: str) -> Table:
        """The table of that name. Raises QueryError."""
        try:
            return self.tables[name]
        except KeyError:
            raise QueryError("table", "is not one of a diagnosis", name, ", ".join(self.tables)) from None

    # --- rows ------------------------------------------------------------------------------------------------------

    def rows(
        self,
        table: str,
        where: Where = ALL,
        *,
        sort: str | Sequence[str] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Row]:
        """Rows of a table as they were written, or sorted.

        Args:
            table: its name.
            where: which rows.
            sort: a column or several, one with `-` in front for the largest first. Absent values come last.
            limit, offset: how many, after how many others.

        Raises:
            QueryError: there is no such table or column, or a value that the column cannot have.
        """
        columns, query, values = self._query(table, where, sort, limit, offset)
        with self._connection() as connection:
            return [dict(zip(columns, row, strict=True)) for row in connection.execute(query, values)]

    def stream(
        self, table: str, where: Where = ALL, *, sort: str | Sequence[str] = (), size: int = 1000
    ) -> Iterator[list[tuple[Value, ...]]]:
        """All rows that `rows` would give, without their names, `size` at a time. Raises QueryError at once."""
        _, query, values = self._query(table, where, sort, None, 0)

        def chunks() -> Iterator[list[tuple[Value, ...]]]:
            with self._connection() as connection:
                cursor = connection.execute(query, values)
                while chunk := cursor.fetchmany(size):
                    yield chunk

        return chunks()

    def total(self, table: str, where: Where = ALL) -> int:
        """How many rows there are. Raises QueryError."""
        known = self.table(table)
        if not where or not known.rows:
            return known.rows
        condition, values = self._condition(known, where)
        return int(self._one(f"SELECT count(*) FROM {_quoted(table)}{condition}", values)[0])

    def sums(self, table: str, columns: Sequence[str], where: Where = ALL, *, by: Sequence[str] = ()) -> list[Row]:
        """Rows counted, and columns added up, by the values of others.

        Returns:
            A row per combination of values of `by`, in their order: those, `rows`, and each of `columns`, 0 where
            nothing has a value.

        Raises:
            QueryError: there is no such table or column.
        """
        known = self.table(table)
        for name in (*columns, *by):
            self._column(known, name)
        if not known.rows:
            return []
        condition, values = self._condition(known, where)
        named = ", ".join(map(_quoted, by))
        added = [f"coalesce(sum({_quoted(c)}), 0)" for c in columns]
        select = ", ".join([*map(_quoted, by), "count(*)", *added])
        group = f" GROUP BY {named} ORDER BY {named}" if by else ""
        query = f"SELECT {select} FROM {_quoted(table)}{condition}{group}"
        with self._connection() as connection:
            found = connection.execute(query, values).fetchall()
        return [dict(zip((*by, "rows", *columns), row, strict=True)) for row in found]

    def values(self, table: str, column: str, *, limit: int = 1000) -> list[Value]:
        """The values a column has, in order, without absent ones. Raises QueryError."""
        known = self.table(table)
        name = _quoted(self._column(known, column))
        if not known.rows:
            return []
        query = (
            f"SELECT DISTINCT {name} FROM {_quoted(table)} WHERE {name} IS NOT NULL ORDER BY {name} LIMIT {int(limit)}"
        )
        with self._connection() as connection:
            return [row[0] for row in connection.execute(query)]

    def where(self, table: str, equal: Mapping[str, str | None], **bounds: Any) -> Where:
        """Conditions given as text, such as in an address, with values of their columns' types.

        Args:
            table: its name.
            equal: column -> value as text; None where it is absent.
            bounds: see `Where`.

        Raises:
            QueryError: there is no such table or column, or it cannot have that value.
        """
        known = self.table(table)
        typed = {
            c: None if v is None else _typed(c, known.columns[self._column(known, c)], v) for c, v in equal.items()
        }
        return Where(typed, **bounds)

    # --- SQL -------------------------------------------------------------------------------------------------------

    def _query(
        self, table: str, where: Where, sort: str | Sequence[str], limit: int | None, offset: int
    ) -> tuple[list[str], str, list[Value]]:
        """Columns, statement and parameters. Rows are chosen by their ids first: an index answers that alone."""
        known = self.table(table)
        condition, values = self._condition(known, where)
        order = "".join(self._order(known, s) for s in ([sort] if isinstance(sort, str) else sort)) + "rowid"
        name = _quoted(table)
        columns = list(known.columns)
        select = f"SELECT {', '.join(map(_quoted, columns))} FROM {name}"
        if limit is None and not offset:
            return columns, f"{select}{condition} ORDER BY {order}", values
        chosen = f"SELECT rowid FROM {name}{condition} ORDER BY {order} LIMIT ? OFFSET ?"
        values += [-1 if limit is None else limit, offset]
        return columns, f"{select} WHERE rowid IN ({chosen}) ORDER BY {order}", values

    def _condition(self, table: Table, where: Where) -> tuple[str, list[Value]]:
        terms: list[str] = []
        values: list[Value] = []
        for column, value in where.equal.items():
            terms.append(f"{_quoted(self._column(table, column))} {'IS NULL' if value is None else '= ?'}")
            values += [] if value is None else [value]
        for column, least in where.least.items():
            terms.append(f"{_quoted(self._column(table, column))} >= ?")
            values.append(least)
        for bound, sign in ((where.begin, ">="), (where.end, "<")):
            if bound is not None:
                terms.append(f"{_quoted(self._column(table, where.time))} {sign} ?")
                values.append(bound)
        return (f" WHERE {' AND '.join(terms)}" if terms else ""), values

    def _order(self, table: Table, sort: str) -> str:
        name = _quoted(self._column(table, sort.removeprefix("-"), "sort"))
        return f"{name} IS NULL, {name}{' DESC' if sort.startswith('-') else ''}, "

    def _column(self, table: Table, name: str, asked: str = "") -> str:
        if name not in table.columns:
            allowed = ", ".join(table.columns)
            raise QueryError(asked or name, f"is no column of {table.name}", name, allowed)
        return name

    # --- connections -----------------------------------------------------------------------------------------------

    def _one(self, query: str, values: Sequence[Value]) -> tuple[Any, ...]:
        with self._connection() as connection:
            row: tuple[Any, ...] = connection.execute(query, values).fetchone()
            return row

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            connection.close()
            raise DiagnosisError(f"{self._file}: cannot be read ({error}): write the diagnosis again") from error
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        # Immutable: no lock is taken and no journal looked for. Connections that are open stay with the file they have.
        uri = f"{self._file.absolute().as_uri()}?mode=ro&immutable=1"
        try:
            if _identity(self._file) != self._is:
                raise ReplacedError(f"{self.directory}: another diagnosis was written in its place")
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise ReplacedError(f"{self.directory}: is gone ({error})") from error
        return connection

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _identity(file: Path) -> tuple[int, int, int]:
    s = os.stat(file)
    return s.st_ino, s.st_mtime_ns, s.st_size


def _quoted(name: str) -> str:
    """An identifier that is known to be one of the schema's, as SQL."""
    return '"' + name.replace('"', '""') + '"'


def _typed(column: str, kind: str, text: str) -> Value:
    """A value given as text, in the type of its column. Raises QueryError."""
    if kind.upper() not in (INTEGER, REAL):
        if "\x00" in text:
            raise QueryError(column, "holds a character that no text has", text, "text")
        return text
    words = {"true": 1, "yes": 1, "false": 0, "no": 0}
    if text.lower() in words:
        return words[text.lower()]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise QueryError(column, "is no number", text, "a number, or true or false")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
