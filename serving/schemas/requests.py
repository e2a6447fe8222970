"""What a request may hold, compiled from the table contracts, and reading one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Required

from pydantic import ConfigDict, FailFast, Field, GetPydanticSchema, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, core_schema, from_json
from typing_extensions import TypedDict

from features.contracts import ORDERED_TIMES, TABLES, Column
from features.settings import Extra
from serving.schemas.refusals import MAX_ERRORS, MAX_NUMBER, Invalid, fault

SECTIONS: dict[str, str] = {"order": "orders", "parcel": "parcels", "lines": "order_lines", "listings": "listings"}
"""Part of a request -> the table whose columns it holds."""

_typed_dict: Any = TypedDict  # types made at run time, from the contracts
_list: Any = list

MAX_PARCELS = 1_000
"""Parcels in one batch request."""
MAX_ROWS = 1_000
"""Lines, and listings, of one parcel."""
MAX_TEXT = 200
"""Characters of an id or code."""
TIME_EXAMPLE = "2025-03-01T10:15:00+07:00"

MESSAGES: dict[str, str] = {
    "missing": "is missing",
    "zone": "has no zone",
    "time": "is not a time",
    "finite_number": "is not finite",
    "string_too_short": "is empty",
    "literal_error": "is not a known code",
    **dict.fromkeys(
        ("greater_than_equal", "less_than_equal", "string_too_long", "too_long"),
        "is out of bounds",
    ),
}
"""Type of a pydantic error -> what is said of the field; the rest is "of the wrong type"."""


def _time(value: Any) -> datetime:
    """ISO 8601 text with a zone -> aware datetime. Numbers are refused: seconds and milliseconds look alike."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise PydanticCustomError("time", "not a time") from None
        if moment.tzinfo is None:
            raise PydanticCustomError("zone", "a time without zone")
        if not 1970 <= moment.year <= 2200:
            raise PydanticCustomError("time", "a year beyond belief")
        return moment
    raise PydanticCustomError("time", "not a time in quotes")


_Time = Annotated[
    datetime,
    GetPydanticSchema(
        lambda _source, _handler: core_schema.no_info_plain_validator_function(_time),
        lambda _schema, _handler: {"type": "string", "format": "date-time", "examples": [TIME_EXAMPLE]},
    ),
]


def _type(column: Column) -> Any:
    """The pydantic type of a column's values."""
    match column.kind:
        case "time":
            return _Time
        case "flag":
            return Annotated[bool, Field(strict=True)]
        case "number":
            low, high = _bounds(column)
            return Annotated[float, Field(strict=True, allow_inf_nan=False, ge=low, le=high)]
        case "id" if column.required:
            return Annotated[str, Field(strict=True, min_length=1, max_length=MAX_TEXT)]
        case _:
            return Annotated[str, Field(strict=True, max_length=MAX_TEXT)]


def _bounds(column: Column) -> tuple[float, float]:
    low = -MAX_NUMBER if column.low is None else column.low
    high = MAX_NUMBER if column.high is None else column.high
    return low, high


def may_hold(column: Column) -> str:
    """What a column may hold, in words."""
    match column.kind:
        case "time":
            return f"ISO 8601 with a zone, such as {TIME_EXAMPLE}, from 1970 to 2200"
        case "flag":
            return "true or false"
        case "number":
            low, high = _bounds(column)
            unit = f" ({column.unit})" if column.unit else ""
            return f"a number from {low:,.15g} to {high:,.15g}{unit}"
        case "id":
            return f"text of {1 if column.required else 0} to {MAX_TEXT} characters, in quotes"
        case _:
            known = f"; known are {', '.join(column.codes)}" if column.codes else ""
            return f"text of at most {MAX_TEXT} characters, in quotes{known}"


def _clean(row: dict[str, Any]) -> dict[str, Any]:
    """Null and empty text both mean "not known": leave the column out, as a table's empty cell."""
    return {k: v for k, v in row.items() if v is not None and v != ""}


class Rules:
    """What a request may hold, compiled for one set of extra columns.

    Args:
        extra: the shop's own columns, known from the loaded bundle or snapshot.
        closed: refuse unknown fields. Open only while all there is of a shop is a bundle that could not be loaded:
            its extra columns cannot be told from mistakes then, and the packing station must still be answered.
    """

    def __init__(self, extra: Iterable[Extra] = (), *, closed: bool = True) -> None:
        self.extra = tuple(extra)
        self.closed = closed
        self.columns: dict[str, dict[str, Column]] = {}
        for section, table in SECTIONS.items():
            columns = {c.name: c for c in TABLES[table].columns}
            for e in self.extra:
                if e.table == table:
                    columns[e.column] = Column(e.column, e.kind, "a column of this shop", low=None)
                    if e.known_at is not None:
                        columns.setdefault(e.known_at, Column(e.known_at, "time", f"when {e.column} became known"))
            if section != "order":  # one request is one order: repeating its id is allowed, not needed
                columns.pop("order_id", None)
                if "order_id" in TABLES[table].names:
                    columns["order_id"] = Column("order_id", "id", "the order it belongs to; may be left out")
            self.columns[section] = columns
        order, parcel, line, listing = (self._row(section) for section in SECTIONS)
        rows = Field(max_length=MAX_ROWS)
        first = FailFast()  # a report of every fault of every line could take a gigabyte
        self.request: Any = _typed_dict(
            "RiskRequest",
            {
                "order": Required[order],
                "parcel": Required[parcel],
                "lines": Annotated[_list[line], rows, first],
                "listings": Annotated[_list[listing], rows, first],
            },
            total=False,
        )
        self._configure(self.request, "What is known of one parcel on the bench")
        self.requests: Any = _list[self.request]
        self._adapter: TypeAdapter[Any] = TypeAdapter(self.request)

    def _row(self, section: str) -> Any:
        fields: dict[str, Any] = {}
        for name, column in self.columns[section].items():
            unit = f" ({column.unit})" if column.unit else ""
            described = Field(description=f"{column.help}{unit}")
            if column.required:
                fields[name] = Required[Annotated[_type(column), described]]
            else:
                fields[name] = Annotated[_type(column) | None, described]
        row = _typed_dict(SECTIONS[section], fields, total=False)
        return self._configure(row, TABLES[SECTIONS[section]].help)

    def _configure(self, type_: Any, doc: str) -> Any:
        type_.__pydantic_config__ = ConfigDict(extra="forbid" if self.closed else "ignore")
        type_.__doc__ = doc
        type_.__module__ = __name__
        return type_

    def one(self, body: bytes) -> list[dict[str, Any]]:
        """The request in `body`, as a list of one. Raises Invalid."""
        content = _parse(body)
        if not isinstance(content, dict):
            hint = "; a list of parcels goes to /v1/risk/batch" if isinstance(content, list) else ""
            raise Invalid.of([fault((), "is not an object", content, f"an object of {', '.join(SECTIONS)}{hint}")])
        return self._read([((), content)])

    def many(self, body: bytes) -> list[dict[str, Any]]:
        """The requests in `body`, in order. Raises Invalid."""
        content = _parse(body)
        allowed = f"a list of at most {MAX_PARCELS:,} parcels, each as /v1/risk takes it"
        if not isinstance(content, list):
            raise Invalid.of([fault((), "is not a list", content, allowed)])
        if len(content) > MAX_PARCELS:
            raise Invalid.of([fault((), "is too long", content, allowed)])
        return self._read([((i,), item) for i, item in enumerate(content)])

    def _read(self, items: list[tuple[tuple[int, ...], Any]]) -> list[dict[str, Any]]:
        requests: list[dict[str, Any]] = []
        faults: list[dict[str, Any]] = []
        for loc, item in items:
            unknown = list(self._unknown(loc, item)) if self.closed else []
            faults += unknown
            if not unknown:  # pydantic would report each of a million of them
                try:
                    requests.append(self._tidy(self._adapter.validate_python(item)))
                except ValidationError as e:
                    faults += self._translate(loc, e)
                else:
                    faults += _contradictions(loc, requests[-1])
            if len(faults) > MAX_ERRORS:
                break
        if faults:
            raise Invalid.of(faults)
        return requests

    def _unknown(self, loc: tuple[int, ...], request: Any) -> Iterator[dict[str, Any]]:
        if not isinstance(request, dict):
            return
        parts: list[tuple[tuple[str | int, ...], Any, Mapping[str, Any]]] = [(loc, request, SECTIONS)]
        for section, columns in self.columns.items():
            part = request.get(section)
            if isinstance(part, dict) and section in ("order", "parcel"):
                parts.append(((*loc, section), part, columns))
            elif isinstance(part, list):
                parts += [((*loc, section, i), row, columns) for i, row in enumerate(part[:MAX_ROWS])]
        found = 0
        for place, part, known in parts:
            if not isinstance(part, dict) or part.keys() <= known.keys():
                continue
            for name in part:
                if name not in known:
                    yield fault((*place, name[:80]), "is not a known field", part[name], self._names(name, known))
                    found += 1
                    if found > MAX_ERRORS:
                        return

    def _names(self, name: str, known: Mapping[str, Any]) -> str:
        near = get_close_matches(name[:80].lower(), known, n=1)
        elsewhere = [s for s, columns in self.columns.items() if name in columns] if not near else []
        hint = f"did you mean {near[0]}? " if near else f"it belongs in {elsewhere[0]}. " if elsewhere else ""
        return f"{hint}known are {', '.join(known)}"

    def _translate(self, at: tuple[int, ...], error: ValidationError) -> Iterator[dict[str, Any]]:
        for e in error.errors(include_url=False, include_context=False):
            loc = e["loc"]
            column = self.columns.get(str(loc[0]), {}).get(str(loc[-1])) if len(loc) > 1 else None
            if column is not None:
                allowed = may_hold(column)
            elif not loc:
                allowed = f"an object of {', '.join(SECTIONS)}"
            elif loc[0] in ("lines", "listings") and len(loc) == 1:
                allowed = f"a list of at most {MAX_ROWS:,} objects"
            else:
                allowed = f"an object of {', '.join(self.columns[str(loc[0])])}"
            given = None if e["type"] == "missing" else e["input"]
            yield fault((*at, *loc), MESSAGES.get(e["type"], "is of the wrong type"), given, allowed)

    @staticmethod
    def _tidy(request: dict[str, Any]) -> dict[str, Any]:
        return {
            "order": _clean(request["order"]),
            "parcel": _clean(request["parcel"]),
            "lines": [_clean(r) for r in request.get("lines", ())],
            "listings": [_clean(r) for r in request.get("listings", ())],
        }


class Fields:
    """One flat object of columns, such as a report of an outcome: what may stand in it, and how it is refused.

    Args:
        name: of the type, in the documentation.
        help: what it is.
        columns: what it may hold; null and empty text are as if the column were left out.
    """

    def __init__(self, name: str, help: str, columns: Iterable[Column]) -> None:
        self.help = help
        self.columns = {c.name: c for c in columns}
        fields: dict[str, Any] = {}
        for c in self.columns.values():
            type_: Any = Literal[c.codes] if c.codes else _type(c)
            described = Field(description=c.help)
            fields[c.name] = Required[Annotated[type_, described]] if c.required else Annotated[type_ | None, described]
        self.type: Any = _typed_dict(name, fields, total=False)
        self.type.__pydantic_config__ = ConfigDict(extra="forbid")
        self.type.__doc__, self.type.__module__ = help, __name__
        self._adapter: TypeAdapter[Any] = TypeAdapter(self.type)

    def read(self, body: bytes) -> dict[str, Any]:
        """What `body` holds, without what is empty, times as aware datetimes. Raises Invalid."""
        content = _parse(body)
        names = ", ".join(self.columns)
        if not isinstance(content, dict):
            raise Invalid.of([fault((), "is not an object", content, f"an object of {names}")])
        faults = []
        for name in [n for n in content if n not in self.columns][: MAX_ERRORS + 1]:
            near = get_close_matches(name[:80].lower(), self.columns, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            faults.append(fault((name[:80],), "is not a known field", content[name], f"{hint}known are {names}"))
        if not faults:
            try:
                return _clean(self._adapter.validate_python(content))
            except ValidationError as e:
                for error in e.errors(include_url=False, include_context=False):
                    column = self.columns[str(error["loc"][0])]
                    given = None if error["type"] == "missing" else error["input"]
                    faults.append(self.fault(column.name, MESSAGES.get(error["type"], "is of the wrong type"), given))
        raise Invalid.of(faults)

    def fault(self, column: str, message: str, given: Any, allowed: str = "") -> dict[str, Any]:
        """One fault of a column; what is allowed is what its contract says, unless told."""
        c = self.columns[column]
        says = f"one of {', '.join(c.codes)}" if c.codes else may_hold(c)
        return fault((column,), message, given, allowed or says)

    def refusal(self, *faults: dict[str, Any]) -> Invalid:
        """The refusal of a request with these faults."""
        return Invalid.of(list(faults))


def _parse(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError as e:
        shown = body[:60].decode("utf-8", "backslashreplace")
        raise Invalid.of(
            [fault((), f"is not JSON: {e}", shown, "JSON in UTF-8, nested at most a few levels")]
        ) from None


def _contradictions(loc: tuple[int, ...], request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Faults between fields: repeated keys, another order's rows, times in an impossible order."""
    order_id = request["order"]["order_id"]
    rows: list[tuple[tuple[str | int, ...], dict[str, Any]]] = [((*loc, "parcel"), request["parcel"])]
    rows += [((*loc, "lines", i), r) for i, r in enumerate(request["lines"])]
    for place, row in rows:
        if row.get("order_id", order_id) != order_id:
            yield fault((*place, "order_id"), "is another order's", row["order_id"], f"{order_id}, or nothing")
    for section, key in (("lines", ("line_id",)), ("listings", ("sku", "known_at"))):
        seen: set[tuple[Any, ...]] = set()
        for i, row in enumerate(request[section]):
            value = tuple(row.get(k) for k in key)
            if value in seen:
                yield fault((*loc, section, i, key[0]), "is there twice", row[key[0]], f"each {' and '.join(key)} once")
            seen.add(value)
    place_of = {"orders": "order", "parcels": "parcel"}
    for before_table, before, after_table, after in ORDERED_TIMES:
        if before_table in place_of and after_table in place_of:
            first = request[place_of[before_table]].get(before)
            second = request[place_of[after_table]].get(after)
            if first is not None and second is not None and first > second:
                name = f"{place_of[before_table]}.{before}"
                yield fault(
                    (*loc, place_of[after_table], after),
                    f"is before {name}",
                    second.isoformat(),
                    f"{first.astimezone(UTC).isoformat()} or later",
                )
