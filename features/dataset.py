"""A shop's dataset: a folder of Parquet or CSV tables and a `dataset.toml`, read into frames of fixed types.

Everything is read the same way whatever the file format: the content of a CSV file is text that goes through the very
conversions a Parquet column goes through, so the two give equal datasets. Text is kept once per distinct value, because
codes and keys repeat millions of times.

`read` collects every problem and converts what can be converted, so that a check can go on and report what is wrong
between the tables in the same breath. `Dataset.open` raises if there is any problem.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from features.contracts import TABLES, Table
from features.settings import TOML, DatasetError, Extra, Problem, Settings, parse_settings, suggestion

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Dataset", "DatasetError", "Extra", "Problem", "Reading", "Settings", "TextColumn", "read", "read_frames"]

REQUIRED_TABLES: tuple[str, ...] = ("orders",)
ENDINGS: tuple[str, ...] = (".parquet", ".csv")
MISSING_WORDS: tuple[str, ...] = ("nan", "nat", "null", "none", "na", "n/a")
"""Mean "no value" in columns of numbers, times and flags. In columns of text only an empty cell does: NA is Namibia."""
FLAGS: dict[str, float] = {
    **dict.fromkeys(("true", "t", "1", "1.0", "yes", "y"), 1.0),
    **dict.fromkeys(("false", "f", "0", "0.0", "no", "n"), 0.0),
}
EXAMPLES = 3
_NAT = np.iinfo(np.int64).min
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_DATE = r"^\d{4}-\d{2}-\d{2}([Tt ]\d|$)"
_ZONED = r"^.{10}[Tt ].*([Zz]|[+-]\d{2}(:?\d{2})?)$"


@dataclass(frozen=True)
class TextColumn:
    """A column of text as positions in its distinct values.

    Attributes:
        codes: int32 of shape (rows,); -1 where there is no value.
        words: the distinct texts, an Arrow array of strings of shape (n,).
    """

    codes: np.ndarray
    words: pa.Array

    @property
    def values(self) -> np.ndarray:
        """The distinct texts, object of shape (n,)."""
        return np.asarray(self.words.to_numpy(zero_copy_only=False), dtype=object)

    def objects(self) -> np.ndarray:
        """The texts, object of shape (rows,), None where there is no value; equal texts are the same object."""
        return np.append(self.values, np.array([None], dtype=object))[self.codes]


@dataclass
class Reading:
    """What was found in a dataset, right and wrong.

    Attributes:
        settings: from `dataset.toml`; defaults stand in for what is wrong there.
        tables: the tables that could be read; unusable values are missing, unusable columns absent.
        problems: everything that is wrong.
        text: the id and code columns of `tables`, by (table, column), as positions in their distinct values.
        ignored: by table, columns of its file that have no meaning.
        unusable: rows (positions) of values that could not be converted and are missing now, by (table, column).
        strangers: table files in the folder that are no table of Doorstep.
        where: the folder, for messages.
    """

    settings: Settings = field(default_factory=Settings)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    text: dict[tuple[str, str], TextColumn] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    unusable: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    where: str = ""

    def dataset(self) -> Dataset:
        """The dataset.

        Raises:
            DatasetError: if there is any problem.
        """
        if self.problems:
            raise DatasetError(self.problems, self.where)
        return Dataset(self.settings, self.tables)


@dataclass(frozen=True)
class Dataset:
    """A shop's tables, in fixed types, and its settings.

    Attributes:
        settings: what `dataset.toml` says.
        tables: the tables that exist, each with a RangeIndex and those of its columns that exist, in the order of
            `features.contracts`, then the declared extra columns. Types by kind: id and code are `object` (str or
            None), time is `datetime64[us, UTC]`, number and flag are float64 (NaN for missing; flags are 1.0 and 0.0).
            Codes have been mapped through `settings.codes`.
    """

    settings: Settings
    tables: dict[str, pd.DataFrame]

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Read the dataset in the folder `path`.

        Raises:
            DatasetError: with everything that is wrong with the folder, the files, the columns and the values that
                cannot be read. What is wrong between rows and tables is for `training.check`.
        """
        import pyarrow as pa

        dataset = read(path).dataset()
        pa.default_memory_pool().release_unused()  # Arrow would keep what it read with for another reading
        return dataset

    @classmethod
    def from_frames(cls, frames: Mapping[str, pd.DataFrame], settings: Settings | None = None) -> Dataset:
        """A dataset from frames in memory, through the same conversions as from files.

        Args:
            frames: by table name. Times without a zone are taken to be in `settings.timezone`.
            settings: as in `dataset.toml`; defaults if None.

        Raises:
            DatasetError: as `open`.
        """
        return read_frames(frames, settings or Settings()).dataset()

    def save(self, path: str | Path) -> None:
        """Write the dataset to the folder `path` as Parquet and `dataset.toml`.

        Each file is written whole beside its place and then moved there, `dataset.toml` last; `open` gives back an
        equal dataset.

        Raises:
            DatasetError: if the folder holds a table file this would not replace, since both would be read together.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        stale = [
            Problem(f.name, "", "is there already and would be read with what is saved", todo="move it away")
            for table in TABLES
            for f in (folder / f"{table}{ending}" for ending in ENDINGS)
            if f.exists() and not (table in self.tables and f.suffix == ".parquet")
        ]
        if stale:
            raise DatasetError(stale, folder)
        for name, frame in self.tables.items():
            self._write_table(name, frame, folder / f"{name}.parquet")
        _replace(folder / TOML, lambda file: file.write_text(self.settings.to_toml(), encoding="utf-8", newline="\n"))

    def _write_table(self, name: str, frame: pd.DataFrame, target: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = _kinds(TABLES[name], self.settings)
        types = {"time": pa.timestamp("us", "UTC"), "number": pa.float64(), "flag": pa.bool_()}
        columns = {c: _arrow(frame[c], types.get(kinds[c], pa.string())) for c in map(str, frame.columns)}
        _replace(target, lambda file: pq.write_table(pa.table(columns), file, compression="zstd"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the settings and of every value in every table, in their order of rows.

        The same content gives the same fingerprint from Parquet and from CSV. The dataset's name does not count.
        """
        digest = hashlib.sha256()
        settings = {k: v for k, v in self.settings.to_json().items() if k != "name"}
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name in TABLES:
            if name in self.tables:
                frame = self.tables[name]
                digest.update(f"\n{name} {len(frame)}".encode())
                for column in frame:
                    digest.update(f"\n{column} {frame[column].dtype}\n".encode())
                    _digest(digest, frame[column])
        return digest.hexdigest()


def read(path: str | Path) -> Reading:
    """Read the folder `path` as far as it can be read, collecting every problem."""
    folder = Path(path)
    reading = Reading(where=str(path))
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        todo = "name the folder that holds orders.parquet or orders.csv, and dataset.toml"
        reading.problems.append(Problem(str(path), "", what, todo=todo))
        return reading
    zone = _read_toml(folder, reading)
    files = {f.name: f for f in sorted(folder.iterdir()) if f.suffix.lower() in ENDINGS and f.is_file()}
    reading.strangers = [name for name in files if name not in {f"{t}{e}" for t in TABLES for e in ENDINGS}]
    for table in TABLES.values():
        _read_table(table, files, zone, reading)
    return _finish(reading)


def _read_table(table: Table, files: Mapping[str, Path], zone: ZoneInfo | None, reading: Reading) -> None:
    """Add what is found in the file of one table to the reading."""
    name = table.name
    found = [files[f"{name}{ending}"] for ending in ENDINGS if f"{name}{ending}" in files]
    if not found:
        if name in REQUIRED_TABLES:
            what = f"the table is missing; the folder holds {', '.join(files) or 'no table at all'}"
            todo = suggestion(f"{name}.csv", reading.strangers)
            reading.problems.append(Problem(name, "", what, allowed=f"{name}.parquet or {name}.csv", todo=todo))
        return
    if len(found) > 1:
        what = f"is there twice: {found[0].name} and {found[1].name}"
        reading.problems.append(Problem(name, "", what, allowed="one of them", todo="remove the one that is older"))
    try:
        names, load = (_open_parquet if found[0].suffix == ".parquet" else _open_csv)(found[0], reading.problems)
        _convert_table(table, names, load, zone, reading)
    except _NoTableError as error:
        reading.problems.append(Problem(name, "", f"{found[0].name} is no table: {error}", todo=error.todo))


def read_frames(frames: Mapping[str, pd.DataFrame], settings: Settings) -> Reading:
    """As `read`, from frames in memory. Times without a zone are taken to be in `settings.timezone`."""
    import pyarrow as pa

    reading = Reading(settings=settings, where=settings.name)
    for name in frames:
        if name not in TABLES:
            todo = suggestion(name, TABLES)
            reading.problems.append(Problem(name, "", "is no table", allowed=", ".join(TABLES), todo=todo))
    for name, table in TABLES.items():
        if name not in frames:
            if name in REQUIRED_TABLES:
                what = f"the table is missing; given: {', '.join(frames) or 'nothing'}"
                reading.problems.append(Problem(name, "", what))
            continue
        frame = frames[name]

        def load(
            wanted: list[str], text: list[str], frame: pd.DataFrame = frame, name: str = name
        ) -> dict[str, pa.ChunkedArray]:
            columns = {}
            for c in wanted:
                try:
                    columns[c] = pa.chunked_array([_arrow(frame[c])])
                except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
                    what = f"holds values of several types: {_first_line(error)}"
                    reading.problems.append(Problem(name, c, what, todo="make them all one type"))
            return columns

        _convert_table(table, [str(c) for c in frame.columns], load, ZoneInfo(settings.timezone), reading)
    return _finish(reading)


def _finish(reading: Reading) -> Reading:
    orders = reading.tables.get("orders")
    if orders is not None and orders.empty:
        todo = "export at least one order"
        reading.problems.append(Problem("orders", "", "the dataset is empty: the table has no rows", 1, (), "", todo))
    return reading


class _NoTableError(Exception):
    """A file cannot be read as a table."""

    def __init__(self, what: str, todo: str = "") -> None:
        self.todo = todo
        super().__init__(what)


_Load = Callable[[list[str], list[str]], "dict[str, pa.ChunkedArray]"]
"""Takes the names of the columns wanted, and which of them are ids or codes; gives the columns."""


def _read_toml(folder: Path, reading: Reading) -> ZoneInfo | None:
    file = folder / TOML
    problems = reading.problems
    if not file.is_file():
        todo = 'write one; the least is the two lines: name = "my shop" and timezone = "Europe/Berlin"'
        problems.append(Problem(TOML, "", "the file is missing", todo=todo))
        # Without the file nothing says which zone is meant; one problem for that is enough.
        return ZoneInfo("UTC")
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        todo = 'text needs quotes, as in name = "my shop"; the file must be UTF-8'
        problems.append(Problem(TOML, "", f"is no TOML: {_first_line(error)}", todo=todo))
        return ZoneInfo("UTC")
    reading.settings, zone, found = parse_settings(document, folder.resolve().name or "dataset")
    problems += found
    return ZoneInfo("UTC") if zone is None and "timezone" in document else zone


def _open_parquet(file: Path, problems: list[Problem]) -> tuple[list[str], _Load]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        names = [str(n) for n in schema.names]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _NoTableError(
            _first_line(error), "export it again as Parquet, or as CSV under the ending .csv"
        ) from error

    def load(wanted: list[str], text: list[str]) -> dict[str, pa.ChunkedArray]:
        try:
            words = [c for c in text if pa.types.is_string(schema.field(c).type)]
            with pq.ParquetFile(file, read_dictionary=words) as opened:
                table = opened.read(columns=wanted)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _NoTableError(_first_line(error), "the file is damaged: export it again") from error
        return {c: table.column(table.column_names.index(c)) for c in wanted}

    return names, load


def _open_csv(file: Path, problems: list[Problem]) -> tuple[list[str], _Load]:
    import pyarrow as pa
    import pyarrow.csv as pc

    todo = "save it as CSV UTF-8 with a heading line and one row per line"
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            delimiter = max(",;\t", key=first.count)
            stream.seek(0)
            header = next(csv.reader(stream, delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise _NoTableError(_first_line(error), todo) from error
    names = [h.strip() for h in header]
    if not any(names):
        raise _NoTableError("it has no heading line", todo)
    if "\0" in first:
        raise _NoTableError("it holds binary data", todo)
    # Arrow wants distinct names; a second column of a name can be told by its suffix, which no heading has.
    distinct = [n if names.index(n) == i else f"{n}\0{i}" for i, n in enumerate(names)]

    def load(wanted: list[str], text: list[str]) -> dict[str, pa.ChunkedArray]:
        bad: list[tuple[int | None, int, str]] = []

        def skip(row: Any) -> str:
            bad.append((row.number, row.actual_columns, row.text if len(bad) < EXAMPLES else ""))
            return "skip"

        try:
            table = pc.read_csv(
                file,
                read_options=pc.ReadOptions(column_names=distinct, skip_rows_after_names=1),
                parse_options=pc.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
                convert_options=pc.ConvertOptions(
                    include_columns=wanted,
                    column_types={
                        c: pa.dictionary(pa.int32(), pa.string()) if c in text else pa.string() for c in wanted
                    },
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _NoTableError(_first_line(error), todo) from error
        if bad:
            examples = tuple({"cells": n, "line": text[:200]} for _, n, text in bad[:EXAMPLES])
            what = "lines with more or fewer cells than the heading"
            allowed = f"{len(names)} cells in each line, separated by {delimiter!r}"
            fix = "put quotes around values that hold the separator"
            problems.append(Problem(file.name, "", what, len(bad), examples, allowed, fix))
        return {c: table.column(c) for c in wanted}

    return names, load


def _kinds(table: Table, settings: Settings) -> dict[str, str]:
    """Kind of every column of the table that has a meaning, in the order of the dataset."""
    kinds = {c.name: c.kind for c in table.columns}
    for e in settings.extra:
        if e.table == table.name:
            kinds[e.column] = e.kind
            if e.known_at is not None:
                kinds.setdefault(e.known_at, "time")
    return kinds


def _convert_table(table: Table, names: list[str], load: _Load, zone: ZoneInfo | None, reading: Reading) -> None:
    settings, problems = reading.settings, reading.problems
    kinds = _kinds(table, settings)
    for c in table.columns:
        if c.required and c.name not in names:
            todo = suggestion(c.name, [n for n in names if n not in kinds]) or f"add it: {c.help}"
            what = f"the column is missing; given: {', '.join(names)}"
            problems.append(Problem(table.name, c.name, what, todo=todo))
    for e in settings.extra:
        for column in (e.column, e.known_at):
            if e.table == table.name and column is not None and column not in names:
                what = f"an [[extra]] of dataset.toml names it, but the table has only {', '.join(names)}"
                todo = suggestion(column, names) or "correct the name, or remove the [[extra]]"
                problems.append(Problem(table.name, column, what, todo=todo))
        if e.table == table.name and e.known_at is not None and kinds.get(e.known_at) != "time":
            what = f"[[extra]] {e.column} takes it as the time a value is known, but it is no column of times"
            allowed = ", ".join(c for c, kind in kinds.items() if kind == "time")
            problems.append(Problem(table.name, e.known_at, what, allowed=allowed))
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        if name in kinds:
            what = f"the column is there {names.count(name)} times"
            problems.append(Problem(table.name, name, what, allowed="once", todo="remove or rename the others"))
    reading.ignored[table.name] = [n for n in dict.fromkeys(names) if n not in kinds]
    # A name that is there twice is a problem already; which of the two is meant is not for us to say.
    wanted = [c for c in kinds if names.count(c) == 1]
    raw = load(wanted, [c for c in wanted if kinds[c] in ("id", "code")])
    columns: dict[str, pd.Series] = {}
    for name in [c for c in kinds if c in raw]:
        converter = _Converter(table, name, kinds[name], zone, reading)
        column = raw.pop(name)
        if kinds[name] in ("id", "code"):
            text = converter.text(column, settings.codes.get(name, {}) if kinds[name] == "code" else {})
            if text is not None:
                reading.text[table.name, name] = text
                columns[name] = pd.Series(text.objects(), dtype=object)
        else:
            values = converter.values(column)
            if values is not None:
                columns[name] = values
    reading.tables[table.name] = pd.DataFrame(columns)


class _Converter:
    """Turns one raw column into its fixed type and notes what cannot be turned."""

    def __init__(self, table: Table, column: str, kind: str, zone: ZoneInfo | None, reading: Reading) -> None:
        self.table = table
        self.column = column
        self.kind = kind
        self.zone = zone
        self.reading = reading

    def text(self, raw: pa.ChunkedArray, mapping: Mapping[str, str]) -> TextColumn | None:
        """Ids and codes: trimmed, empty is missing, codes mapped."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = raw.type.value_type if pa.types.is_dictionary(raw.type) else raw.type
        if pa.types.is_null(kind):
            return TextColumn(np.full(len(raw), -1, dtype=np.int32), pa.array([], pa.string()))
        try:
            encoded = (raw if pa.types.is_dictionary(raw.type) else raw.dictionary_encode()).unify_dictionaries()
            encoded = encoded.combine_chunks()
            codes = _indices(encoded)
            words = encoded.dictionary
            if pa.types.is_floating(kind):
                # A spreadsheet or a frame with gaps turns the key 17 into 17.0.
                whole = pc.and_(pc.is_finite(words), pc.equal(pc.floor(words), words))
                small = pc.and_(whole, pc.less(pc.abs(words), 2.0**53))
                if pc.all(small, min_count=0).as_py():
                    words = pc.cast(words, pa.int64())
            words = pc.cast(words, pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            self._problem(f"holds {kind}", len(raw), allowed="text")
            return None
        trimmed = pc.utf8_trim_whitespace(words)
        if mapping:
            mapped = [None if w is None else mapping.get(w, w) for w in trimmed.to_pylist()]
            trimmed = pa.array(mapped, type=pa.string())
        trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
        if mapping or not trimmed.equals(words):
            again = trimmed.dictionary_encode()
            codes = np.append(_indices(again), np.int32(-1))[codes]
            trimmed = again.dictionary
        return TextColumn(codes, trimmed)

    def values(self, raw: pa.ChunkedArray) -> pd.Series | None:
        """Times, numbers and flags."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = raw.combine_chunks() if raw.num_chunks != 1 else raw.chunk(0)
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        if pa.types.is_large_string(column.type) or column.type == pa.string_view():
            column = pc.cast(column, pa.string())
        if pa.types.is_string(column.type):
            column = self._without_missing_words(column)
        if pa.types.is_null(column.type):
            column = pc.cast(column, pa.string())
        if self.kind == "time":
            return self._times(column)
        return self._flags(column) if self.kind == "flag" else self._numbers(column)

    def _without_missing_words(self, column: pa.Array) -> pa.Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        column = pc.utf8_trim_whitespace(column)
        # No word is longer than four letters, and few values are as short: the costly comparison is for those only.
        short = pc.less_equal(pc.binary_length(column), max(map(len, MISSING_WORDS)))
        if not pc.any(short).as_py():
            return column
        gone = pc.is_in(pc.utf8_lower(column), pa.array(["", *MISSING_WORDS]))
        return pc.if_else(gone, pa.scalar(None, pa.string()), column)

    def _numbers(self, column: pa.Array) -> pd.Series | None:
        import pyarrow as pa
        import pyarrow.compute as pc

        given = column
        if pa.types.is_string(column.type):
            try:
                column = pc.cast(column, pa.float64())
            except pa.ArrowInvalid:
                good = pc.match_substring_regex(column, _NUMBER)
                column = pc.cast(pc.if_else(good, column, pa.scalar(None, pa.string())), pa.float64())
        elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
            column = pc.cast(column, pa.float64(), safe=False)
        elif pa.types.is_decimal(column.type):
            column = pc.cast(column, pa.float64())
        else:
            self._problem(f"holds {column.type}", len(column), allowed="numbers")
            return None
        numbers = pc.fill_null(column, float("nan")).to_numpy(zero_copy_only=False).copy()
        bad = np.isinf(numbers)
        if pa.types.is_string(given.type):
            bad |= np.isnan(numbers) & _valid(given)
        if bad.any():
            numbers[bad] = np.nan
            self._unusable(bad)
            allowed = "numbers with a decimal point and no thousands separator or unit, e.g. 1234.5; empty if missing"
            self._values_problem("no number", bad, given, allowed, "export it as a plain number")
        return pd.Series(numbers)

    def _flags(self, column: pa.Array) -> pd.Series | None:
        import pyarrow as pa
        import pyarrow.compute as pc

        given = column
        try:
            if (
                pa.types.is_boolean(column.type)
                or pa.types.is_integer(column.type)
                or pa.types.is_floating(column.type)
            ):
                numbers = pc.cast(column, pa.float64(), safe=False)
            else:
                encoded = pc.utf8_lower(column).dictionary_encode()
                known = pa.array([FLAGS.get(w) for w in encoded.dictionary.to_pylist()], pa.float64())
                numbers = pc.take(known, encoded.indices)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            self._problem(f"holds {column.type}", len(column), allowed="true or false")
            return None
        flags = pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False).copy()
        present = _valid(given)
        if pa.types.is_floating(given.type):
            present &= ~np.isnan(flags)
        bad = present & ~np.isin(flags, (0.0, 1.0))
        if bad.any():
            flags[bad] = np.nan
            self._unusable(bad)
            allowed = "true or false, yes or no, 1 or 0; empty if missing"
            self._values_problem("neither true nor false", bad, given, allowed, "write one of these words")
        return pd.Series(flags)

    def _times(self, column: pa.Array) -> pd.Series | None:
        import pyarrow as pa
        import pyarrow.compute as pc

        given = column
        naive: np.ndarray | None = None
        if pa.types.is_string(column.type):
            moments, naive = _parse_times(column)
        elif pa.types.is_timestamp(column.type):
            moments = _micros(pc.cast(column, pa.timestamp("us", column.type.tz), safe=False))
            naive = None if column.type.tz else moments != _NAT
        elif pa.types.is_date(column.type):
            moments = _micros(pc.cast(pc.cast(column, pa.date32()), pa.timestamp("us")))
            naive = moments != _NAT
        else:
            allowed = "timestamps, or text like 2025-03-01T14:30:00+07:00"
            self._problem(f"holds {column.type}, not times", len(column), allowed=allowed)
            return None
        bad = (moments == _NAT) & _valid(given)
        if bad.any():
            self._unusable(bad)
            allowed = "times like 2025-03-01T14:30:00+07:00 (ISO 8601: year-month-day); empty if missing"
            self._values_problem(
                "no time", bad, given, allowed, "export it in this form; in a spreadsheet, format the cells so"
            )
        if naive is not None and naive.any():
            if self.zone is None:
                allowed = "times with a zone, e.g. 2025-03-01T14:30:00+07:00"
                todo = (
                    'write the zone into the times, or name the shop\'s zone in dataset.toml: timezone = "Asia/Jakarta"'
                )
                self._values_problem("a time without zone", naive, given, allowed, todo)
            local = pd.DatetimeIndex(moments[naive].view("datetime64[us]"))
            # An hour that comes twice is its first; one that is skipped moves to its end. Both are an hour a year.
            first = np.ones(len(local), dtype=bool)
            local = local.tz_localize(self.zone or "UTC", ambiguous=first, nonexistent="shift_forward")
            moments = moments.copy()
            moments[naive] = local.tz_convert("UTC").as_unit("us").asi8
        return pd.Series(pd.DatetimeIndex(moments.view("datetime64[us]")).tz_localize("UTC"))

    def _problem(self, what: str, count: int, allowed: str) -> None:
        self.reading.problems.append(Problem(self.table.name, self.column, what, count, allowed=allowed))

    def _unusable(self, bad: np.ndarray) -> None:
        self.reading.unusable[self.table.name, self.column] = np.flatnonzero(bad)

    def _values_problem(self, what: str, bad: np.ndarray, given: pa.Array, allowed: str, todo: str) -> None:
        rows = np.flatnonzero(bad)[:EXAMPLES]
        examples = tuple({"row": int(r) + 1, "value": str(given[int(r)].as_py())} for r in rows)
        self.reading.problems.append(
            Problem(self.table.name, self.column, what, int(bad.sum()), examples, allowed, todo)
        )


def _parse_times(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Moments of texts of which some may have a zone, some none, and some may be no times.

    Arrow parses a whole column of one form at once and fails for any other, so the forms are tried from the common to
    the odd: all with a zone, all without, the same but for texts that are no dates, and in the end one by one.

    Returns:
        Microseconds since 1970 (int64, NaT where it is none; local where there is no zone); where there is no zone.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    zoned, naive = pa.timestamp("us", "UTC"), pa.timestamp("us")
    for dates_only in (False, True):
        if dates_only:
            texts = pc.if_else(pc.match_substring_regex(texts, _DATE), texts, pa.scalar(None, pa.string()))
        for kind in (zoned, naive):
            try:
                moments = _micros(pc.cast(texts, kind))
            except pa.ArrowInvalid:
                continue
            return moments, (moments != _NAT) & (kind is naive)
    parsed = pd.to_datetime(
        pd.Series(texts.to_numpy(zero_copy_only=False), dtype=object), format="ISO8601", utc=True, errors="coerce"
    )
    moments = pd.DatetimeIndex(parsed).as_unit("us").asi8
    has_zone = pc.fill_null(pc.match_substring_regex(texts, _ZONED), False).to_numpy(zero_copy_only=False)
    return moments, ~has_zone & (moments != _NAT)


def _micros(column: pa.Array) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    # A writable copy: the array is Arrow's own memory where nothing is missing.
    return np.array(pc.fill_null(pc.cast(column, pa.int64()), _NAT).to_numpy(zero_copy_only=False), dtype=np.int64)


def _indices(encoded: pa.DictionaryArray) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.cast(encoded.indices, pa.int32()), -1))


def _valid(column: pa.Array) -> np.ndarray:
    return np.array(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)


def _arrow(series: pd.Series, kind: pa.DataType | None = None) -> pa.Array:
    """A pandas column as Arrow's, with every way of pandas to say "missing" as null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(series.dtype, pd.DatetimeTZDtype):
        # By way of integers: the direct way uses `Series.values`, which pandas 3 deprecates for times with a zone.
        micros = pd.DatetimeIndex(series).as_unit("us").asi8
        return pc.cast(pa.array(micros, mask=micros == _NAT), pa.timestamp("us", "UTC"))
    return pa.array(series, type=kind, from_pandas=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _digest(digest: Any, series: pd.Series) -> None:
    if series.dtype == object:
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = _arrow(series, pa.large_string())
        # Lengths tell ("ab", "c") from ("a", "bc"), and -1 tells no value from an empty one.
        digest.update(np.ascontiguousarray(pc.fill_null(pc.binary_length(texts), -1).to_numpy()).tobytes())
        data = texts.buffers()[2]
        if data is not None:
            digest.update(memoryview(data))
    elif series.dtype == np.float64:
        values = series.to_numpy(copy=True)
        values[np.isnan(values)] = np.nan  # one of the many bit patterns that all mean "missing"
        digest.update((values + 0.0).tobytes())  # -0.0 is 0.0
    else:
        digest.update(pd.DatetimeIndex(series).as_unit("us").asi8.tobytes())


def _replace(target: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file beside `target` and move it there: the target is whole or as it was."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's are for the owner only
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
