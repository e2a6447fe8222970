"""Scenario files: a shop that differs from the plain one, as TOML that says only how.

What has a name (a carrier, a warehouse, a category, a fault) is a table of its own, found by that name; one that the
plain shop has not is added, and must then be complete:

    words = "one carrier has closed its hub"

    [carriers]
    lane_sigma = 0.05

    [carriers.carriers.corvus]
    transit = 0.2

    [faults.bad_corridor]
    kind = "corridor"
    words = "the hub in Saxony is closed"
    where = { carrier = "corvus", destination_region = "DE-SN" }
    since = 2025-03-01
    effect = 0.7

The plain shop's faults hold only in `plain`: another scenario has those it plants itself.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints
from zoneinfo import available_timezones

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from features.vocabulary import LABEL_GRADES
from training.world.scenario import FAULT_KINDS, RETURN_REASONS, SERVICES, SHIFTS, Scenario
from training.world.shop import REGIONS

FOLDER = Path(__file__).parent / "shipped"


def shipped() -> dict[str, Scenario]:
    """The scenarios that come with Doorstep, by name, the plain one first."""
    names = sorted(p.stem for p in FOLDER.glob("*.toml"))
    return {"plain": Scenario(), **{n: read(FOLDER / f"{n}.toml") for n in names}}


def scenario(name_or_file: str | Path) -> Scenario:
    """A shipped scenario by its name, or one from a file.

    Raises:
        ValueError: there is neither, or the file says something that no scenario has; names the place.
    """
    text = str(name_or_file)
    if text == "plain":
        return Scenario()
    own = FOLDER / f"{text}.toml"
    if "/" not in text and own.is_file():
        return read(own)
    path = Path(text)
    if not path.is_file():
        names = ", ".join(shipped())
        raise ValueError(f"{text} is no scenario: name a TOML file, or one of {names}")
    return read(path)


def read(path: Path) -> Scenario:
    """Read a scenario file. Raises ValueError, see `scenario`."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    try:
        return parse({"name": path.stem, **given})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse(given: Mapping[str, Any]) -> Scenario:
    """A scenario from what its file says.

    Raises:
        ValueError: an unknown name, a value of the wrong kind or out of range, a fault that names no place.
    """
    plain = Scenario() if given.get("name") == "plain" else replace(Scenario(), faults=())
    document = _listed(Scenario, _merge(_document(plain), given, ""))
    try:
        made: Scenario = _adapter().validate_python(document)
    except ValidationError as error:
        raise ValueError("; ".join(_said(e, document) for e in error.errors()[:5])) from None
    _check(made)
    return made


def to_toml(what: Scenario) -> str:
    """A whole scenario, every parameter of it, as TOML that `read` reads back the same."""
    return tomli_w.dumps(_document(what))


def _document(value: Any) -> Any:
    """Plain data: what has a name is found by it."""
    if is_dataclass(value):
        return {f.name: _document(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return {v.name: {k: x for k, x in _document(v).items() if k != "name"} for v in value}
    if isinstance(value, tuple):
        return [_document(v) for v in value]
    return value


def _merge(plain: Any, given: Any, at: str) -> Any:
    named = at in _NAMED
    if named and not plain:
        plain = {}
    if not isinstance(plain, dict) or not isinstance(given, Mapping) or at.endswith(("where", "sole")):
        return given
    out = dict(plain)
    for key, value in given.items():
        place = f"{at}.{key}" if at else key
        if key not in plain and not named:
            close = difflib.get_close_matches(key, plain, 1)
            hint = f"; do you mean {close[0]}?" if close else f"; there are {', '.join(plain)}"
            raise ValueError(f"{place} is no parameter{hint}")
        if (named or isinstance(plain.get(key), dict)) and not isinstance(value, Mapping):
            raise ValueError(f"{place} is {value!r}; it is a table of its own, [{place}]")
        out[key] = _merge(plain.get(key), value, place) if key in plain else dict(value) if named else value
    return out


def _listed(kind: Any, document: Any) -> Any:
    """The inverse of `_document`, for pydantic: named tables become lists again."""
    hints = get_type_hints(kind)
    out = dict(document)
    for name, hint in hints.items():
        inner = get_args(hint)
        if name in out and is_dataclass(hint):
            out[name] = _listed(hint, out[name])
        elif name in out and inner and is_dataclass(inner[0]) and isinstance(out[name], Mapping):
            out[name] = [{"name": n, **own} for n, own in out[name].items()]
    return out


_NAMED = ("carriers.carriers", "nodes.nodes", "products.categories", "faults")
"""Tables of things with names."""


_SHARES = ("bracketing", "stated_truly", "stated_nothing", "inspected_truly", "carrier_sees_damage", "refuse_damaged")
"""Shares that are not called so."""


@cache
def _adapter() -> TypeAdapter[Scenario]:
    for kind in _kinds(Scenario):
        with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(kind)
    return TypeAdapter(Scenario)


def _kinds(kind: Any) -> Iterator[Any]:
    """A dataclass and all those that its fields are made of."""
    yield kind
    for hint in get_type_hints(kind).values():
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner):
                yield from _kinds(inner)


def _said(error: Any, document: Any) -> str:
    """One of pydantic's errors, its place written as the file has it."""
    place = []
    for step in error["loc"]:
        document = document[step] if isinstance(document, dict | list) and step in _keys(document) else None
        place.append(document["name"] if isinstance(step, int) and isinstance(document, dict) else str(step))
    what = "is missing" if error["type"] == "missing" else f"{error['msg'].lower()}, given {error['input']!r}"
    return f"{'.'.join(place)}: {what}"


def _keys(document: dict[str, Any] | list[Any]) -> Any:
    return document if isinstance(document, dict) else range(len(document))


def _check(s: Scenario) -> None:
    """What the types cannot say. Raises ValueError."""

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise ValueError(what)

    for section in fields(s):
        values = getattr(s, section.name)
        for name, value in vars(values).items() if is_dataclass(values) else ():
            if isinstance(value, float) and name.endswith(("_sigma", "_spread", "noise")):
                need(value >= 0, f"{section.name}.{name} is {value}; a spread is 0 or more")
            if isinstance(value, float) and (name.endswith("_share") or name in _SHARES):
                need(0 <= value <= 1, f"{section.name}.{name} is {value}; a share is 0 to 1")
    carriers, nodes = [c.name for c in s.carriers.carriers], [n.name for n in s.nodes.nodes]
    known: dict[str, list[str]] = {
        "carrier": carriers,
        "destination_region": [r[0] for r in REGIONS],
        "service": list(SERVICES),
        "node": nodes,
        "shift": list(SHIFTS),
        "brand": list(s.products.brands),
        "category": [c.name for c in s.products.categories],
    }
    days = (s.calendar.extracted_on - s.calendar.first_day).days
    need(days >= 60, f"calendar: the world spans {days} days; it must span 60 at least")
    for fault in s.faults:
        at = f"faults.{fault.name}"
        need(fault.kind in FAULT_KINDS, f"{at}.kind is {fault.kind!r}; there are {', '.join(FAULT_KINDS)}")
        columns = FAULT_KINDS[fault.kind].columns
        need(bool(fault.where), f"{at}.where names no place; it takes {', '.join(columns)}")
        most = FAULT_KINDS[fault.kind].most
        need(0 < fault.effect <= most, f"{at}.effect is {fault.effect}; it must be above 0 and at most {most}")
        start, end = s.calendar.first_day, s.calendar.extracted_on
        need(start <= fault.since < end, f"{at}.since is {fault.since}; it lies from {start} to {end}")
        for column, value in fault.where.items():
            need(column in columns, f"{at}.where.{column}: a fault of this kind is placed by {', '.join(columns)}")
            need(value in known[column], f"{at}.where.{column} is {value!r}; there are {', '.join(known[column])}")
    for region, carrier in s.carriers.sole.items():
        need(region in known["destination_region"], f"carriers.sole.{region}: no region of that code")
        need(carrier in carriers, f"carriers.sole.{region} is {carrier!r}; there are {', '.join(carriers)}")
        only = next(c for c in s.carriers.carriers if c.name == carrier)
        lacks = [x for x in SERVICES if x not in only.services]
        need(not lacks, f"carriers.sole.{region}: {carrier} has no {', '.join(lacks)}, so nobody would serve it")
    for own in s.carriers.carriers:
        need(own.share >= 0, f"carriers.carriers.{own.name}.share is {own.share}; it is 0 or more")
        for service in own.services:
            need(service in SERVICES, f"carriers.carriers.{own.name}.services: {service!r} is none of {SERVICES}")
        for name in ("notifies", "scans_late", "skips"):
            value = getattr(own, name)
            need(0 <= value <= 1, f"carriers.carriers.{own.name}.{name} is {value}; a share is 0 to 1")
    for service in SERVICES:
        offered = any(service in c.services and c.share > 0 for c in s.carriers.carriers)
        need(offered, f"carriers.carriers: nobody offers {service}")
    for node in s.nodes.nodes:
        leans = ", ".join(carriers)
        need(node.leans_to in ("", *carriers), f"nodes.nodes.{node.name}.leans_to: there are {leans}")
        need(node.capacity > 0, f"nodes.nodes.{node.name}.capacity is {node.capacity}; it must be above 0")
    need(s.products.count >= len(s.products.categories), "products.count is below the number of categories")
    for name, value in (("customers.count", s.customers.count), ("return_window_days", s.return_window_days)):
        need(value >= 1, f"{name} is {value}; it must be at least 1")
    for name, values, length in (
        ("calendar.weekdays", s.calendar.weekdays, 7),
        ("carriers.service_share", s.carriers.service_share, len(SERVICES)),
        ("carriers.transit_days", s.carriers.transit_days, len(SERVICES)),
        ("carriers.transit_sigma", s.carriers.transit_sigma, len(SERVICES)),
        ("carriers.grade_transit", s.carriers.grade_transit, len(LABEL_GRADES)),
        ("outcomes.loss_grade", s.outcomes.loss_grade, len(LABEL_GRADES)),
        ("outcomes.delay_days", s.outcomes.delay_days, len(RETURN_REASONS)),
        ("outcomes.free_reasons", s.outcomes.free_reasons, len(RETURN_REASONS)),
    ):
        need(len(values) == length, f"{name} has {len(values)} numbers; it takes {length}")
        free = name in ("carriers.grade_transit", "outcomes.loss_grade")
        need(free or (min(values) >= 0 and sum(values) > 0), f"{name} holds a number below 0, or nothing but 0")
    need(min(s.carriers.transit_days) > 0, "carriers.transit_days must be above 0")
    need(min(s.carriers.transit_sigma) > 0, "carriers.transit_sigma must be above 0")
    for category in s.products.categories:
        known_brand = category.leading_brand in s.products.brands
        need(known_brand, f"products.categories.{category.name}.leading_brand: there are {', '.join(known['brand'])}")
        for name in ("share", "fragility", "size", "mismatch", "defect", "mind"):
            value = getattr(category, name)
            need(value >= 0, f"products.categories.{category.name}.{name} is {value}; it is 0 or more")
        for name in ("price", "weight_g", "litres"):
            value = getattr(category, name)
            need(value > 0, f"products.categories.{category.name}.{name} is {value}; it must be above 0")
    for start, end, multiple in s.calendar.peaks:
        inside = s.calendar.first_day <= start <= end < s.calendar.extracted_on and multiple > 0
        need(inside, f"calendar.peaks: {start} to {end} times {multiple} is not within the calendar, or turned round")
    hours = (s.calendar.opens, s.calendar.closes)
    need(0 <= hours[0] < hours[1] <= 24, f"calendar opens at {hours[0]} and closes at {hours[1]}")
    first, last = s.nodes.cutoff_hours
    need(hours[0] < first <= last < 24, f"nodes.cutoff_hours are {first} and {last}; the earlier comes first")
    zone = s.calendar.timezone
    need(zone in available_timezones(), f"calendar.timezone is {zone!r}; give a name like Europe/Berlin")
    for name, value in (("lost_after_days", s.lost_after_days), ("outcomes.tail_days", s.outcomes.tail_days)):
        need(value > 0, f"{name} is {value}; it must be above 0")
    need(s.knowledge.inspection_days > 2, "knowledge.inspection_days must be above 2")
