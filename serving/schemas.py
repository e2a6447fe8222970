"""What `/v1/risk` accepts and answers: pydantic types derived from the table contracts, and refusals in plain words.

A request is the columns of the tables, nested: one `order`, one `parcel`, its `lines`, and `listings` for products the
snapshot does not know. `Rules` is compiled once per set of extra columns; reading one request takes some 50 µs and
gives plain dictionaries holding only what was given, times as aware datetimes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NotRequired, Required

from pydantic import ConfigDict, FailFast, Field, GetPydanticSchema, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, core_schema, from_json
from typing_extensions import TypedDict

from features.contracts import ORDERED_TIMES, TABLES, Column
from features.settings import Extra

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
MAX_NUMBER = 1e12
"""No believable column goes beyond this, either side; larger is a mistake of unit or of key."""
MAX_ERRORS = 20
"""Faults named in one refusal; the rest are counted."""
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

EXAMPLE: dict[str, Any] = {
    "order": {
        "order_id": "O-1001",
        "ordered_at": "2025-03-01T08:10:00+00:00",
        "customer_id": "C-77",
        "channel": "web",
        "payment_method": "cod",
        "destination_country": "ID",
        "destination_region": "Jawa Barat",
        "destination_city": "Bandung",
        "promised_to": "2025-03-05T18:00:00+00:00",
        "order_value": 249000,
    },
    "parcel": {
        "parcel_id": "P-1001",
        "node": "WH-1",
        "packed_at": "2025-03-01T13:40:00+00:00",
        "pickup_cutoff_at": "2025-03-01T16:00:00+00:00",
        "carrier": "JNE",
        "service": "Reguler",
        "protection_level": 1,
        "weight_g": 820,
        "void_fill_ratio": 0.4,
        "label_grade": "C",
        "documents_complete": True,
        "address_quality": 0.6,
    },
    "lines": [{"line_id": "L-1", "sku": "SKU-9", "quantity": 1, "unit_price": 249000, "variant": "M"}],
    "listings": [{"sku": "SKU-9", "category": "shoes", "photo_count": 2, "has_size_guide": False, "rating": 4.1}],
}
"""The worked example of the documentation; `/v1/risk/batch` takes a list of such objects."""


@dataclass(frozen=True)
class Invalid(Exception):
    """A request that was refused.

    Attributes:
        detail: one sentence naming the first fault and how many there are.
        errors: `field`, `message`, `given` and `allowed` of up to `MAX_ERRORS` faults.
    """

    detail: str
    errors: list[dict[str, Any]]


class Driver(TypedDict):
    """One feature's share of a probability."""

    feature: str
    team: str
    value: Annotated[Any, Field(description="the value it had; null if it was not known")]
    points: Annotated[float, Field(description="share of the probability, -1 to 1; all of them and `base` sum to it")]
    lever: Annotated[bool, Field(description="the team can change it before the parcel leaves")]
    text: Annotated[str, Field(description="the same in words")]


class Risk(TypedDict):
    """A probability, and what it is made of: base + sum(teams) = probability, to 1e-9."""

    probability: Annotated[float, Field(ge=0, le=1)]
    base: Annotated[float, Field(ge=0, le=1, description="where the model starts; the points are counted from here")]
    base_rate: Annotated[float, Field(ge=0, le=1, description="what is usual: the share among the shop's mature units")]
    teams: Annotated[dict[str, float], Field(description="share of the probability by owner team")]
    drivers: list[Driver]


class ReasonShare(TypedDict):
    """The likeliest reason of a return, and what makes it that likely: base + sum(teams) = share, to 1e-9."""

    reason: str
    owner: Annotated[str, Field(description="the team that could prevent returns for this reason")]
    share: Annotated[float, Field(ge=0, le=1, description="if the line comes back, the chance that it is for this")]
    base: Annotated[float, Field(ge=0, le=1, description="the share before anything is known of the line")]
    teams: Annotated[dict[str, float], Field(description="share by the owner team of the features")]
    drivers: list[Driver]


class ReturnRisk(Risk):
    """The risk that one order line is sent back, once it is delivered."""

    line_id: str
    not_kept: NotRequired[
        Annotated[float, Field(ge=0, le=1, description="chance that it never arrives, or arrives and is sent back")]
    ]
    reasons: NotRequired[
        Annotated[dict[str, float], Field(description="if it comes back, the chance of each reason; they sum to 1")]
    ]
    reason: NotRequired[ReasonShare]


Window = TypedDict(
    "Window",
    {
        "from": Annotated[str, Field(description="start, UTC: one in twenty of such parcels arrives before")],
        "likely": Annotated[str, Field(description="as many arrive before as after")],
        "to": Annotated[str, Field(description="end, UTC: one in twenty of such parcels arrives after")],
        "coverage": Annotated[float, Field(ge=0, le=1, description="share of arrivals inside such windows")],
        "measured_on": Annotated[
            Literal["lane", "carrier_service", "carrier", "all"],
            Field(description="whose past deliveries the window was set by; all: neither lane nor carrier is known"),
        ],
    },
)
Window.__doc__ = "When a parcel is at the door, if it arrives at all."


class Option(TypedDict):
    """One thing that can be done about the parcel, what it would do, and what it costs."""

    action: Annotated[str, Field(description="its key, such as package:foam_box or add_fill")]
    owner: Annotated[str, Field(description="the team that does it")]
    recommended: Annotated[bool, Field(description="do it; at most one is")]
    saving: Annotated[float, Field(description="money that failures are expected to cost less")]
    cost: Annotated[float, Field(description="money it costs, material and freight included; negative: it saves some")]
    net_benefit: Annotated[float, Field(description="what is left, weighted as the policy says")]
    co2e_g: Annotated[float | None, Field(description="g of CO2e it adds; null if not known")]
    evidence: Annotated[
        Literal["measured", "model-estimated", "assumed"],
        Field(description="what its effect is known from; the least trusted of the risks it moves"),
    ]
    risks: Annotated[
        dict[str, list[float]],
        Field(description="by target, the risk before and after; of `returned`: that any line comes back"),
    ]
    text: Annotated[str, Field(description="the same in words")]
    why_not: Annotated[str | None, Field(description="why it is not recommended; null if it is")]


class Rung(TypedDict):
    """The parcel in one of the shop's packages."""

    package: str
    protection_level: float
    current: Annotated[bool, Field(description="the parcel is in it")]
    recommended: bool
    fits: Annotated[bool, Field(description="it takes the goods and the weight, and the parcel's tier allows it")]
    risks: Annotated[
        dict[str, float] | None, Field(description="by target; null where it is not known what the package would do")
    ]
    material_cost: float
    dimensional_weight_kg: Annotated[float | None, Field(description="with the parcel's tariff; null without")]
    freight: Annotated[float | None, Field(description="with the parcel's tariff; null without")]
    co2e_g: float
    net_benefit: Annotated[float | None, Field(description="of changing to it; null where it is not known")]


class Advice(TypedDict):
    """What to do about the parcel."""

    decision_id: Annotated[str, Field(description="names the decision when its outcome is reported")]
    action: Annotated[str | None, Field(description="what to do; null: nothing")]
    text: Annotated[str, Field(description="the same in words")]
    arm: Annotated[
        Literal["act", "control", "none"],
        Field(
            description="control: left as it is, to measure an action or in shadow mode; none: nothing is worth doing"
        ),
    ]
    propensity: Annotated[float, Field(ge=0, le=1, description="the chance that the arm was act; 1 where it is none")]
    owner: Annotated[str | None, Field(description="the team that does it")]


class Violation(TypedDict):
    """A rule of the packing specification that the parcel breaks."""

    rule: str
    field: str
    given: Any
    required: str
    text: Annotated[str, Field(description="the same in words")]


class Incomplete(TypedDict):
    """Something that was given for the handoff and is not enough."""

    column: str
    given: Any
    text: str


class Handoff(TypedDict):
    """Whether the carrier will know what it needs."""

    complete: bool
    missing: Annotated[list[str], Field(description="columns that are not known, as table.column")]
    incomplete: list[Incomplete]


class Exceptional(TypedDict):
    """The shop's protocol for a failure that is likely here."""

    target: str
    line_id: Annotated[str | None, Field(description="the line; null if it is about the parcel")]
    probability: Annotated[float, Field(ge=0, le=1)]
    at_least: Annotated[float, Field(ge=0, le=1, description="the risk from which the protocol is called for")]
    owner: str
    steps: list[str]


class ValueTier(TypedDict):
    """The parcel's class by value."""

    name: str
    handling: Annotated[str, Field(description="what the packer does with such a parcel; may be empty")]


class Answer(TypedDict):
    """The answer for one parcel."""

    parcel_id: str
    bundle: Annotated[str | None, Field(description="the model that answered; null if none is loaded")]
    as_of: Annotated[str | None, Field(description="until when history was known; null if no snapshot is loaded")]
    degraded: Annotated[bool, Field(description="base rates only: no model, or no snapshot, is loaded")]
    missing: Annotated[list[str], Field(description="columns the models read that were not given, as table.column")]
    warnings: Annotated[list[str], Field(description="codes never seen before, an old snapshot, base rates")]
    risks: Annotated[dict[str, Risk], Field(description="by target")]
    returns: list[ReturnRisk]
    window: Annotated[Window | None, Field(description="time to the door; null if there is no model of it")]
    policy: Annotated[str | None, Field(description="the policy that was applied; null, and no advice, without one")]
    tier: Annotated[ValueTier | None, Field(description="class by value; null if there is none, or no value is known")]
    advice: Advice | None
    actions: Annotated[list[Option], Field(description="what can be done, the highest net benefit first")]
    packages: Annotated[list[Rung], Field(description="the parcel in each package of the shop, weakest first")]
    violations: list[Violation]
    handoff: Handoff | None
    exceptions: list[Exceptional]


class Fault(TypedDict):
    """One thing that is wrong with a request."""

    field: str
    message: str
    given: Any
    allowed: str


class Problem(TypedDict):
    """An error after RFC 9457, served as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    errors: NotRequired[list[Fault]]


def problem_type(slug: str) -> str:
    """The identifier (a URI) of one kind of problem, such as `invalid-request`."""
    return f"urn:problem-type:doorstep:{slug}"


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


def _allowed(column: Column) -> str:
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


def _given(value: Any) -> Any:
    """`value` as it can be shown in a refusal: short, and valid JSON."""
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return "an integer beyond 1e12"
    if isinstance(value, str) and len(value) > 80:
        return f"{value[:80]}... ({len(value):,} characters)"
    return value


def _path(loc: Sequence[str | int]) -> str:
    """('lines', 0, 'sku') -> lines[0].sku; the whole body is `body`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "body"


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
            raise _invalid([_fault((), "is not an object", content, f"an object of {', '.join(SECTIONS)}{hint}")])
        return self._read([((), content)])

    def many(self, body: bytes) -> list[dict[str, Any]]:
        """The requests in `body`, in order. Raises Invalid."""
        content = _parse(body)
        allowed = f"a list of at most {MAX_PARCELS:,} parcels, each as /v1/risk takes it"
        if not isinstance(content, list):
            raise _invalid([_fault((), "is not a list", content, allowed)])
        if len(content) > MAX_PARCELS:
            raise _invalid([_fault((), "is too long", content, allowed)])
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
            raise _invalid(faults)
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
                    yield _fault((*place, name[:80]), "is not a known field", part[name], self._names(name, known))
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
                allowed = _allowed(column)
            elif not loc:
                allowed = f"an object of {', '.join(SECTIONS)}"
            elif loc[0] in ("lines", "listings") and len(loc) == 1:
                allowed = f"a list of at most {MAX_ROWS:,} objects"
            else:
                allowed = f"an object of {', '.join(self.columns[str(loc[0])])}"
            given = None if e["type"] == "missing" else e["input"]
            yield _fault((*at, *loc), MESSAGES.get(e["type"], "is of the wrong type"), given, allowed)

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
            raise _invalid([_fault((), "is not an object", content, f"an object of {names}")])
        faults = []
        for name in [n for n in content if n not in self.columns][: MAX_ERRORS + 1]:
            near = get_close_matches(name[:80].lower(), self.columns, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            faults.append(_fault((name[:80],), "is not a known field", content[name], f"{hint}known are {names}"))
        if not faults:
            try:
                return _clean(self._adapter.validate_python(content))
            except ValidationError as e:
                for error in e.errors(include_url=False, include_context=False):
                    column = self.columns[str(error["loc"][0])]
                    given = None if error["type"] == "missing" else error["input"]
                    faults.append(self.fault(column.name, MESSAGES.get(error["type"], "is of the wrong type"), given))
        raise _invalid(faults)

    def fault(self, column: str, message: str, given: Any, allowed: str = "") -> dict[str, Any]:
        """One fault of a column; what is allowed is what its contract says, unless told."""
        c = self.columns[column]
        says = f"one of {', '.join(c.codes)}" if c.codes else _allowed(c)
        return _fault((column,), message, given, allowed or says)

    def refusal(self, *faults: dict[str, Any]) -> Invalid:
        """The refusal of a request with these faults."""
        return _invalid(list(faults))


def _parse(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError as e:
        shown = body[:60].decode("utf-8", "backslashreplace")
        raise _invalid([_fault((), f"is not JSON: {e}", shown, "JSON in UTF-8, nested at most a few levels")]) from None


def _fault(loc: Sequence[str | int], message: str, given: Any, allowed: str) -> dict[str, Any]:
    return {"field": _path(loc), "message": message, "given": _given(given), "allowed": allowed}


def _invalid(faults: list[dict[str, Any]]) -> Invalid:
    first = faults[0]
    given = "" if first["message"] == "is missing" else f"; given: {json.dumps(first['given'], ensure_ascii=False)}"
    more = len(faults) - 1
    also = "" if not more else f" (and {more} more)" if more < MAX_ERRORS else " (and more)"
    return Invalid(
        f"{first['field']} {first['message']}{given}; allowed: {first['allowed']}{also}", faults[:MAX_ERRORS]
    )


def _contradictions(loc: tuple[int, ...], request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Faults between fields: repeated keys, another order's rows, times in an impossible order."""
    order_id = request["order"]["order_id"]
    rows: list[tuple[tuple[str | int, ...], dict[str, Any]]] = [((*loc, "parcel"), request["parcel"])]
    rows += [((*loc, "lines", i), r) for i, r in enumerate(request["lines"])]
    for place, row in rows:
        if row.get("order_id", order_id) != order_id:
            yield _fault((*place, "order_id"), "is another order's", row["order_id"], f"{order_id}, or nothing")
    for section, key in (("lines", ("line_id",)), ("listings", ("sku", "known_at"))):
        seen: set[tuple[Any, ...]] = set()
        for i, row in enumerate(request[section]):
            value = tuple(row.get(k) for k in key)
            if value in seen:
                yield _fault(
                    (*loc, section, i, key[0]), "is there twice", row[key[0]], f"each {' and '.join(key)} once"
                )
            seen.add(value)
    place_of = {"orders": "order", "parcels": "parcel"}
    for before_table, before, after_table, after in ORDERED_TIMES:
        if before_table in place_of and after_table in place_of:
            first = request[place_of[before_table]].get(before)
            second = request[place_of[after_table]].get(after)
            if first is not None and second is not None and first > second:
                name = f"{place_of[before_table]}.{before}"
                yield _fault(
                    (*loc, place_of[after_table], after),
                    f"is before {name}",
                    second.isoformat(),
                    f"{first.astimezone(UTC).isoformat()} or later",
                )


@dataclass(frozen=True)
class ReportDocs:
    """How an endpoint that takes reports is described.

    Attributes:
        name, summary: of the operation.
        fields: what a report holds.
        example, receipt: a report, and the answer to it.
        answer: type of the answer; None: a receipt.
    """

    name: str
    summary: str
    fields: Fields
    example: dict[str, Any]
    receipt: dict[str, Any]
    answer: Any = None


class Announced(TypedDict):
    """Parcels that were announced."""

    announced: int
    waiting: Annotated[int, Field(description="how many wait to be packed now")]


class Receipt(TypedDict):
    """That a report is recorded: the same, whenever the same report is sent again."""

    key: str
    decision_id: NotRequired[Annotated[str, Field(description="the decision it is about; not of a change")]]
    recorded_at: Annotated[str, Field(description="when it was acknowledged, UTC")]
    seq: Annotated[int, Field(description="its place in the chain of records")]
    hash: Annotated[str, Field(description="the chain's hash up to it")]


def openapi(
    rules: Rules, *, version: str, answers: list[Any], reports: Mapping[str, ReportDocs] | None = None
) -> dict[str, Any]:
    """The OpenAPI 3.1 document, with one worked example per endpoint.

    Args:
        rules: what this service accepts now, extra columns included.
        version: version of the project.
        answers: what the service answers to `EXAMPLE`, a list of one.
        reports: endpoints that take reports, by path.
    """
    reports = reports or {}
    named = [("request", rules.request), ("answer", Answer), ("problem", Problem), ("receipt", Receipt)]
    named += [("announced", Announced)]
    named += [(r.name, r.fields.type) for r in reports.values()]
    named += [(f"{r.name} answer", r.answer) for r in reports.values() if r.answer is not None]
    types: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = [
        (name, "validation", TypeAdapter(type_)) for name, type_ in named
    ]
    refs, definitions = TypeAdapter.json_schemas(types, ref_template="#/components/schemas/{model}")
    schema: dict[str, Any] = {name: refs[(name, "validation")] for name, _, _ in types}

    def body(of: Any, example: Any, kind: str = "application/json") -> dict[str, Any]:
        return {kind: {"schema": of, "example": example}}

    fault = {"field": "parcel.weight_g", "message": "is out of bounds", "given": -5}
    fault["allowed"] = _allowed(TABLES["parcels"]["weight_g"])
    refusal = {
        "type": problem_type("invalid-request"),
        "title": "Bad Request",
        "status": 400,
        "detail": _invalid([fault]).detail,
        "errors": [fault],
    }
    problems = {
        str(status): {"description": text}
        for status, text in (
            (408, "The body took too long to arrive"),
            (413, "The body is too large"),
            (415, "The body is not application/json"),
            (503, "Too many requests at once; try again after Retry-After seconds"),
        )
    }
    for p in problems.values():
        p["content"] = {"application/problem+json": {"schema": schema["problem"]}}  # type: ignore[assignment]
    problems["400"] = {
        "description": "The request is not valid: what, what was given, what is allowed",
        "content": body(schema["problem"], refusal, "application/problem+json"),  # type: ignore[dict-item]
    }

    def post(name: str, text: str, given: Any, given_example: Any, answer: Any, answer_example: Any) -> dict[str, Any]:
        ok = {"description": "The risks, and what they are made of", "content": body(answer, answer_example)}
        return {
            "post": {
                "operationId": name,
                "summary": text,
                "requestBody": {"required": True, "content": body(given, given_example)},
                "responses": {"200": ok, **dict(sorted(problems.items()))},
            }
        }

    def report(docs: ReportDocs) -> dict[str, Any]:
        answer = schema["receipt"] if docs.answer is None else schema[f"{docs.name} answer"]
        out = post(docs.name, docs.summary, schema[docs.name], docs.example, answer, docs.receipt)
        responses = out["post"]["responses"]
        if docs.answer is not None:
            responses["200"]["description"] = docs.answer.__doc__
            again = "It was announced before the shop's settings changed: announce it again"
            responses["409"] = {"description": again, "content": problems["408"]["content"]}
            return out
        responses["200"]["description"] = "It is recorded"
        for status, text in (
            ("404", "There is no such decision, or no ledger is kept"),
            ("409", "It contradicts what is recorded: in what, and under which key"),
            ("410", "What the decision said was erased, or has passed its retention"),
            ("503", "The ledger's database does not answer; nothing is recorded, try again after Retry-After seconds"),
        ):
            responses[status] = {"description": text, "content": problems["408"]["content"]}
        return out

    def get(name: str, text: str) -> dict[str, Any]:
        return {"get": {"operationId": name, "summary": text, "responses": {"200": {"description": text}}}}

    listed = {"type": "array", "maxItems": MAX_PARCELS}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Doorstep",
            "version": version,
            "description": "Risk that a parcel fails at the door or comes back, why, and whose lever it is. Send "
            "`X-Request-ID` to find a request again: it is echoed on every answer. Errors are problem+json (RFC 9457).",
        },
        "paths": {
            "/v1/risk": post(
                "risk", "The risks of one parcel", schema["request"], EXAMPLE, schema["answer"], answers[0]
            ),
            "/v1/risk/batch": post(
                "risk_batch",
                f"The risks of up to {MAX_PARCELS:,} parcels, in order",
                {**listed, "items": schema["request"]},
                [EXAMPLE],
                {**listed, "items": schema["answer"]},
                answers,
            ),
            "/v1/parcels": post(
                "announce",
                f"Announce up to {MAX_PARCELS:,} parcels that wait to be packed; one that waits already is replaced",
                {**listed, "items": schema["request"]},
                [EXAMPLE],
                schema["announced"],
                {"announced": 1, "waiting": 1},
            ),
            **{path: report(docs) for path, docs in reports.items()},
            "/livez": get("livez", "The process is alive"),
            "/readyz": get("readyz", "The service can answer"),
            "/metrics": get("metrics", "Prometheus metrics"),
        },
        "components": {"schemas": definitions.get("$defs", {})},
    }
