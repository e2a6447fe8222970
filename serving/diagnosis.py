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
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

FORMAT = 1
"""Of the directory: another one is refused."""
DATABASE, SUMMARY = "diagnosis.sqlite", "diagnosis.json"
KEPT, KEPT_ROWS = 2000, 200
"""Counts and sums that are kept, and rows that one of them may have."""
MANY = 20_000
"""Rows from which putting them in order takes time."""
Value = str | int | float | None

KINDS = {
    "text": "TEXT",
    "key": "TEXT",
    "count": "INTEGER",
    "flag": "INTEGER",
    "number": "REAL",
    "time": "TEXT",
    "date": "TEXT",
}
"""Kinds of columns and what SQLite stores: a flag is 0 or 1, a time ISO text in UTC, a date the shop's own day. Empty
text is NULL, but in a key: there it is a value as others are (services that one carrier alone offers have no name)."""


@dataclass(frozen=True)
class Spec:
    """What a table of a diagnosis holds at least.

    Attributes:
        words: what a row is.
        columns: names and kinds, one of `KINDS`.
        index: columns that readers filter or count by, each tuple one index.
    """

    words: str
    columns: Mapping[str, str]
    index: tuple[tuple[str, ...], ...] = ()


def _columns(**of_kind: str) -> dict[str, str]:
    """Columns in the order written: kind_number="a b" gives a and b of that kind; what follows _ only keeps apart."""
    return {name: kind.partition("_")[0] for kind, names in of_kind.items() for name in names.split()}


_HELD = _columns(
    count_1="parcels observed",
    number_2="expected ratio low high chance_worse chance_worst excess",
    text_3="verdict why",
    count_4="others trial",
    date_5="since",
    number_6="standard",
    text_7="meets",
)
_SPAN = _columns(number="ratio low high")

PARCEL_TARGETS = ("late", "failed_attempt", "damaged", "undelivered")

TABLES: dict[str, Spec] = {
    "parcels": Spec(
        "a parcel that can be judged for one target or one measure of its warehouse at least",
        _columns(
            text_1="parcel_id order_id",
            time_2="decided_at",
            date_3="week",
            text_4="sku node shift carrier",
            key_4="service",
            text_5="service_given",
            key_5="region",
            text_6="package_type",
            flag_6="late failed_attempt damaged undelivered",
            number_7="expected_late expected_failed_attempt expected_damaged expected_undelivered",
            text_8="leg whose",
            number_8="hours_late",
            flag_9="missed_cutoff",
            number_9="backlog_hours",
            text_10="label_grade",
            flag_11="label_poor documents_complete",
            number_12="address_quality",
        ),
        (
            # What a page counts stands in the index whole, so that rows are read only to be shown.
            ("parcel_id",),
            ("carrier", "service", "region", "decided_at", "whose", *PARCEL_TARGETS),
            ("carrier", "late", "whose"),
            (
                *("node", "shift", "decided_at", "missed_cutoff", "label_poor", "documents_complete", "backlog_hours"),
                *PARCEL_TARGETS,
            ),
            ("sku", "package_type", "damaged"),
            ("late", "whose", "leg", "carrier", "service", "region", "node", "decided_at"),
            *((t, "carrier", "service", "region", "node", "decided_at") for t in PARCEL_TARGETS[1:]),
            ("package_type", "damaged"),
            ("week",),
        ),
    ),
    "lines": Spec(
        "an order line that can be judged",
        _columns(
            text_1="line_id parcel_id sku category brand",
            time_2="decided_at",
            flag_3="returned",
            text_4="reason owner",
            flag_5="counted",
            text_6="aside",
            number_7="expected value",
        ),
        (
            ("sku", "returned", "counted", "aside", "reason", "decided_at"),
            ("returned", "counted", "aside", "reason", "decided_at"),
            ("category", "returned"),
            ("parcel_id",),
        ),
    ),
    "corridors": Spec(
        "a carrier's service into a region, for one target",
        _columns(text="target carrier", key="service region") | _HELD,
        (("target", "verdict"), ("carrier", "service", "region")),
    ),
    "carriers": Spec(
        "a carrier's service, for one target",
        _columns(text="target carrier", key="service") | _HELD | _columns(count="ours theirs untold"),
        (("target", "verdict"),),
    ),
    "products": Spec(
        "a product",
        _columns(
            text_1="sku category brand",
            count_2="lines returns aside observed",
            number_3="expected ratio low high chance_worse excess",
            flag_4="named",
            text_5="verdict reason",
            count_5="reason_observed",
            number_6="reason_expected reason_ratio reason_low reason_high",
            text_6="why_not",
            date_6="from",
            number_7="worth",
            text_8="driver advice arguments",
        ),
        (("sku",), ("worth",), ("named", "worth"), ("category", "worth"), ("verdict", "worth")),
    ),
    "peers": Spec(
        "a product and a comparable one",
        _columns(text="sku peer", count="lines returned") | _SPAN,
        (("sku",),),
    ),
    "drivers": Spec(
        "a product and a term of its listing",
        _columns(text="sku term", number="value peers_value share", text_2="advice arguments"),
        (("sku",),),
    ),
    "changes": Spec(
        "a change of a product's listing, and what came back before and after",
        _columns(
            text_1="sku",
            time_2="changed_at",
            text_3="what",
            count_4="before_lines before_returned",
            number_5="before_ratio before_low before_high",
            count_6="after_lines after_returned",
            number_7="after_ratio after_low after_high",
            text_8="verdict",
            date_9="judged_from",
        ),
        (("sku",),),
    ),
    "readiness": Spec(
        "a measure of a warehouse's shift",
        _columns(
            text_1="node shift measure",
            count_2="parcels observed",
            number_3="rate low high elsewhere",
            text_4="verdict why",
            number_5="trend",
        ),
        (("node", "shift"), ("measure", "verdict")),
    ),
    "packaging": Spec(
        "a product or category in a package",
        _columns(
            text_1="sku category package_type verdict",
            count_2="parcels damaged",
            number_3="expected low high volume_use worth",
            text_4="why",
        ),
        (("sku",), ("verdict", "worth")),
    ),
    "spikes": Spec(
        "a series that departed from its forecast",
        _columns(
            text_1="kind key target",
            date_2="began until alarm",
            count_3="observed",
            number_4="forecast chance false_alarms",
        ),
        (("kind", "key"), ("began",)),
    ),
    "reality": Spec(
        "a team and target in a month: predicted and observed",
        _columns(
            text_1="team target period",
            count_2="units",
            number_3="predicted",
            count_4="observed",
            number_5="low high",
            text_6="verdict",
        ),
        (("team", "period"),),
    ),
    "excess": Spec(
        "where a target's failures came from",
        _columns(text="target source", number="share low high failures"),
        (("target",),),
    ),
    "readiness_weeks": Spec(
        "a node's week, for one target or measure",
        _columns(text="node target", date="week", count="parcels", number="observed expected"),
        (("node", "target", "week"),),
    ),
    "corridor_weeks": Spec(
        "a corridor's week, for one target",
        _columns(
            text_1="carrier",
            key="service region",
            text_2="target",
            date="week",
            count="parcels",
            number="observed expected",
        ),
        (("target", "carrier", "service", "region", "week"),),
    ),
}
"""Every table, its columns and what it is indexed by."""


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


def ratio_digits(ratio: float) -> int:
    """Digits behind the point with which a ratio is said, in pages and in the batch's own sentences: two, none from
    ten on."""
    return 0 if round(ratio, 2) >= 10 else 2


def ratio_text(ratio: float) -> str:
    """A ratio as the batch's own sentences say it."""
    return f"{ratio:.{ratio_digits(ratio)}f}"


def shop_day(document: Mapping[str, Any], name: str, *, last: bool = False) -> str | None:
    """The day of a moment of a summary on its shop's clock, `timezone`; None without a moment.

    Args:
        document: the summary; without a `timezone` the moment's own day is meant.
        name: of the moment, ISO text.
        last: the last day that ended before it.
    """
    given = document.get(name)
    if not given:
        return None
    moment = datetime.fromisoformat(str(given)) - timedelta(microseconds=1) * last
    zone = document.get("timezone")
    return (moment.astimezone(ZoneInfo(zone)) if zone else moment).date().isoformat()


def create(connection: sqlite3.Connection, table: str) -> None:
    """Make an empty table of a diagnosis."""
    columns = ", ".join(f"{_quoted(c)} {KINDS[k]}" for c, k in TABLES[table].columns.items())
    connection.execute(f"CREATE TABLE {_quoted(table)} ({columns})")


def index(connection: sqlite3.Connection) -> None:
    """Make every index, on tables that hold their rows, and the statistics that choose among them."""
    for name, table in TABLES.items():
        for place, columns in enumerate(table.index):
            named = ", ".join(map(_quoted, columns))
            connection.execute(f"CREATE INDEX {_quoted(f'{name}_{place}')} ON {_quoted(name)} ({named})")
    connection.execute("PRAGMA analysis_limit = 1000")
    connection.execute("ANALYZE")


@dataclass(frozen=True)
class Table:
    """One table of a diagnosis.

    Attributes:
        name: its name.
        columns: name -> kind, one of `KINDS`.
        rows: how many there are.
        why: why it is empty, in a sentence; "" if it is not, or if there is nothing to say.
        gapless: its rows are numbered from 1 on without gaps.
    """

    name: str
    columns: Mapping[str, str]
    rows: int
    why: str
    gapless: bool = False


@dataclass(frozen=True)
class Where:
    """Which rows are meant; all conditions hold together.

    Attributes:
        equal: column -> its value; None where it is absent.
        known: columns that are not absent.
        time: column of times for the next two.
        begin, end: the time is not before the first and before the second, ISO dates or times; None: no bound.
    """

    equal: Mapping[str, Value] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    time: str = "decided_at"
    begin: str | None = None
    end: str | None = None

    def __bool__(self) -> bool:
        return bool(self.equal or self.known or self.begin or self.end)


ALL = Where()
_KIND_OF = {"INTEGER": "count", "REAL": "number"}
Row = dict[str, Any]


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
        self._kept: OrderedDict[tuple[Any, ...], list[tuple[Any, ...]]] = OrderedDict()
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
                least = TABLES[name].columns
                columns = {r[1]: r[2] for r in connection.execute(f"PRAGMA table_info({_quoted(name)})")}
                lacking = [c for c in least if c not in columns]
                if columns and lacking:
                    raise DiagnosisError(f"{directory}: table {name} lacks {', '.join(lacking)}: {again}")
                said = told.get(name, {})
                rows = connection.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()[0] if columns else 0
                why = said.get("why") or ""
                more = {c: _KIND_OF.get(sql.upper(), "text") for c, sql in columns.items() if c not in least}
                last = connection.execute(f"SELECT max(rowid) FROM {_quoted(name)}").fetchone()[0] if rows else 0
                tables[name] = Table(name, {**least, **more}, rows, why, last == rows)
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
        return int(self._counted(f"SELECT count(*) FROM {_quoted(table)}{condition}", values)[0][0])

    def sums(
        self,
        table: str,
        columns: Sequence[str],
        where: Where = ALL,
        *,
        by: Sequence[str] = (),
        nothing: int | None = 0,
    ) -> list[Row]:
        """Rows counted, and columns added up, by the values of others.

        Returns:
            A row per combination of values of `by`, in their order: those, `rows`, and each of `columns`, `nothing`
            where no row has a value.

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
        added = [f"sum({_quoted(c)})" for c in columns]
        select = ", ".join([*map(_quoted, by), "count(*)", *added])
        group = f" GROUP BY {named} ORDER BY {named}" if by else ""
        query = f"SELECT {select} FROM {_quoted(table)}{condition}{group}"
        names, keys = (*by, "rows", *columns), len(by) + 1
        return [
            dict(zip(names, (*row[:keys], *(nothing if v is None else v for v in row[keys:])), strict=True))
            for row in self._counted(query, values)
        ]

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

    def like(self, table: str, column: str, text: str, *, limit: int) -> list[Value]:
        """Values of a column that hold a text, large and small letters alike. Raises QueryError."""
        known = self.table(table)
        name = _quoted(self._column(known, column))
        query = (
            f"SELECT DISTINCT {name} FROM {_quoted(table)} WHERE instr(lower({name}), lower(?)) ORDER BY {name} LIMIT ?"
        )
        with self._connection() as connection:
            return [row[0] for row in connection.execute(query, (text, limit))]

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
        if limit is not None and order == "rowid":
            if not where and known.gapless:
                return columns, f"{select} WHERE rowid > ? ORDER BY rowid LIMIT ?", [offset, limit]
            # Of many rows the first are found sooner one after the other than by putting all of them in order.
            if where and where.begin is where.end is None and "week" not in where.equal:
                found = self.total(table, where)
                if found >= MANY and (offset + limit) * known.rows < found * found / 4:
                    name = f"{name} NOT INDEXED"
        chosen = f"SELECT rowid FROM {name}{condition} ORDER BY {order} LIMIT ? OFFSET ?"
        values += [-1 if limit is None else limit, offset]
        return columns, f"{select} WHERE rowid IN ({chosen}) ORDER BY {order}", values

    def _condition(self, table: Table, where: Where) -> tuple[str, list[Value]]:
        terms: list[str] = []
        values: list[Value] = []
        for column, value in where.equal.items():
            terms.append(f"{_quoted(self._column(table, column))} {'IS NULL' if value is None else '= ?'}")
            values += [] if value is None else [value]
        # Most rows have a value: with a plus in front no index is chosen for this, which would leave out better ones.
        terms += [f"+{_quoted(self._column(table, column))} IS NOT NULL" for column in where.known]
        for bound, sign in ((where.begin, ">="), (where.end, "<")):
            if bound is not None:
                terms.append(f"{_quoted(self._column(table, where.time))} {sign} ?")
                values.append(bound)
        return (f" WHERE {' AND '.join(terms)}" if terms else ""), values

    def _order(self, table: Table, sort: str) -> str:
        name = _quoted(self._column(table, sort.removeprefix("-"), "sort"))
        # Absent values are the smallest to SQLite: downwards they come last by themselves, and an index serves.
        return f"{name} DESC, " if sort.startswith("-") else f"{name} IS NULL, {name}, "

    def _column(self, table: Table, name: str, asked: str = "") -> str:
        if name not in table.columns:
            allowed = ", ".join(table.columns)
            raise QueryError(asked or name, f"is no column of {table.name}", name, allowed)
        return name

    # --- connections -----------------------------------------------------------------------------------------------

    def _counted(self, query: str, values: Sequence[Value]) -> list[tuple[Any, ...]]:
        """The answer to a question that reads many rows and gives few; kept, as what is read never changes."""
        key = (query, *values)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._connection() as connection:
            found = connection.execute(query, values).fetchall()
        if len(found) <= KEPT_ROWS:
            with self._lock:
                self._kept[key] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return found

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
    if KINDS[kind] == "TEXT":
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
