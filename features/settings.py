"""`dataset.toml`: what a shop says about its tables, and every way in which that can be wrong.

A mistake never hides another: everything that is wrong is collected as `Problem`s and raised as one `DatasetError`.
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pandas as pd

from features.contracts import TABLES
from features.vocabulary import TEAMS

T = TypeVar("T")

EXTRA_TABLES: tuple[str, ...] = ("orders", "order_lines", "listings", "parcels")
"""Tables that may carry extra columns. Rows of `events` and `returns` are outcomes: a column of theirs would leak."""

EXTRA_KINDS: tuple[str, ...] = ("number", "code", "flag")

TOML = "dataset.toml"

KEYS: dict[str, str] = {
    "name": "text: what the dataset is called; the folder's name if absent",
    "timezone": 'text: IANA zone of times that carry none, and of the shop\'s working day, e.g. "Asia/Jakarta"',
    "currency": 'text: the one currency of all amounts, e.g. "IDR"',
    "return_window_days": "whole days a customer may take to send something back (30 if absent)",
    "lost_after_days": "whole days after which a parcel that did not arrive counts as lost (30 if absent)",
    "extracted_at": "the moment the extract was taken; nothing later can be in it",
    "inspections_right": "share of inspections that find the true reason of a return, above 0.5 (1 if absent); what a "
    "second inspection of some returns tells",
    "codes": "tables [codes.COLUMN]: the shop's code = the code to use instead",
    "reasons": "table [reasons]: a return reason of the shop's own, or one of Doorstep's = the team that owns it",
    "extra": "tables [[extra]]: further columns that become features",
    "simulated": "true if the data come from a simulation, so that every figure says so (false if absent)",
}
"""The keys of `dataset.toml` and what each may hold."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a dataset.

    Attributes:
        table: the table, file or `dataset.toml` it is in; empty where the message names it already.
        column: column or key; empty where the whole table is meant.
        what: what is wrong, in a person's words.
        count: how many rows (or places) have it.
        examples: up to three of them; `row` counts a table's rows from 1, without the heading.
        allowed: what would be right.
        todo: what to do about it.
    """

    table: str
    column: str
    what: str
    count: int = 1
    examples: tuple[dict[str, Any], ...] = ()
    allowed: str = ""
    todo: str = ""

    @property
    def place(self) -> str:
        """`table.column`, or the one of them that is named."""
        return ".".join(part for part in (self.table, self.column) if part)

    def __str__(self) -> str:
        parts = [f"{self.place}: {self.what}"]
        if self.count != 1 or self.examples:
            shown = "; ".join(", ".join(f"{k} {v!r}" for k, v in e.items()) for e in self.examples)
            rows = f"{self.count:,} row{'s' if self.count != 1 else ''}"
            parts.append(f"{rows}, e.g. {shown}" if shown else rows)
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.todo:
            parts.append(f"to do: {self.todo}")
        return "\n    ".join(parts)


class UnusableError(ValueError):
    """What somebody wrote cannot be used. Lists everything that is wrong, not the first thing only.

    Attributes:
        problems: all of them.
        where: what was read; empty if it has no name.
    """

    what = "it"

    def __init__(self, problems: Iterable[Problem], where: object = "") -> None:
        self.problems: list[Problem] = list(problems)
        self.where = str(where)
        n = len(self.problems)
        head = f"{self.where or self.what} cannot be used: {n} problem{'s' if n != 1 else ''}"
        super().__init__("\n".join([head, *(f"  {p}" for p in self.problems)]))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.problems, self.where))


class DatasetError(UnusableError):
    """A dataset cannot be used; problems are in the order of the tables."""

    what = "the dataset"


@dataclass(frozen=True)
class Extra:
    """A raw column outside the contracts that becomes a feature of its owner team.

    Attributes:
        table: one of `EXTRA_TABLES`.
        column: its name in the file.
        kind: one of `EXTRA_KINDS`.
        owner: the team that can act on it, one of `features.vocabulary.TEAMS`.
        known_at: a time column of the same table from which a value is known; None if it is known with its row.
    """

    table: str
    column: str
    kind: str
    owner: str
    known_at: str | None = None


@dataclass(frozen=True)
class Settings:
    """What `dataset.toml` says.

    Attributes:
        name: what the dataset is called.
        timezone: IANA zone of the shop's working day, and of times that carry no zone.
        currency: the currency of all amounts, empty if not said.
        return_window_days: days a customer may take to ask for a return.
        lost_after_days: days after which a parcel that did not arrive counts as lost.
        extracted_at: when the extract was taken (UTC), None if not said.
        inspections_right: share of inspections of returns that find the true reason.
        codes: for each column the shop's codes and what each is read as; an empty text means "no value".
        reasons: return reasons of the shop's own, or Doorstep's given to another team, and the team that owns each.
        extra: further columns that become features.
        simulated: the data come from a simulation; every figure from them then says so.
    """

    name: str = "dataset"
    timezone: str = "UTC"
    currency: str = ""
    return_window_days: int = 30
    lost_after_days: int = 30
    extracted_at: pd.Timestamp | None = None
    inspections_right: float = 1.0
    codes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[Extra, ...] = ()
    simulated: bool = False

    def to_json(self) -> dict[str, Any]:
        """The settings as plain data for JSON; `from_json` reads it back equal."""
        return {
            "name": self.name,
            "timezone": self.timezone,
            "currency": self.currency,
            "return_window_days": self.return_window_days,
            "lost_after_days": self.lost_after_days,
            "extracted_at": None if self.extracted_at is None else self.extracted_at.isoformat(),
            "inspections_right": self.inspections_right,
            "codes": {column: dict(mapping) for column, mapping in self.codes.items()},
            "reasons": dict(self.reasons),
            "extra": [_extra_json(e) for e in self.extra],
            "simulated": self.simulated,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Settings:
        """Read what `to_json` wrote.

        Raises:
            DatasetError: with everything that is wrong in the document.
        """
        settings, _, problems = parse_settings({k: v for k, v in document.items() if v is not None})
        if problems:
            raise DatasetError(problems, "the settings")
        return settings

    def to_toml(self) -> str:
        """The settings as the text of a `dataset.toml`."""
        lines = [
            f"name = {_quoted(self.name)}",
            f"timezone = {_quoted(self.timezone)}",
            f"currency = {_quoted(self.currency)}",
            f"return_window_days = {self.return_window_days}",
            f"lost_after_days = {self.lost_after_days}",
        ]
        if self.simulated:
            lines.append("simulated = true")
        if self.inspections_right != 1.0:
            lines.append(f"inspections_right = {self.inspections_right}")
        if self.extracted_at is not None:
            lines.append(f"extracted_at = {self.extracted_at.isoformat()}")
        for column, mapping in self.codes.items():
            lines += ["", f"[codes.{_quoted(column)}]", *(f"{_quoted(k)} = {_quoted(v)}" for k, v in mapping.items())]
        if self.reasons:
            lines += ["", "[reasons]", *(f"{_quoted(k)} = {_quoted(v)}" for k, v in self.reasons.items())]
        for e in self.extra:
            lines += ["", "[[extra]]", *(f"{k} = {_quoted(v)}" for k, v in _extra_json(e).items())]
        return "\n".join(lines) + "\n"


def parse_settings(
    document: Mapping[str, Any], name: str = "dataset"
) -> tuple[Settings, ZoneInfo | None, list[Problem]]:
    """Turn the content of a `dataset.toml` into settings, collecting every problem.

    Args:
        document: the parsed TOML.
        name: what the dataset is called if the document does not say.

    Returns:
        The settings (defaults stand in for what is wrong); the zone for times without one, None if none was named;
        all problems.
    """
    problems: list[Problem] = []

    def wrong(key: str, what: str, allowed: str = "", todo: str = "") -> None:
        problems.append(Problem(TOML, key, what, allowed=allowed, todo=todo))

    for key in document:
        if key not in KEYS:
            wrong(key, "unknown key", ", ".join(KEYS), suggestion(key, KEYS) or "remove it")

    def take(key: str, kind: type[T], default: T) -> T:
        value = document.get(key, default)
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        wrong(key, f"given {value!r}", KEYS[key])
        return default

    def days(key: str) -> int:
        value = take(key, int, 30)
        if value > 0:
            return value
        wrong(key, f"given {value}, which is not a period", KEYS[key], "write a whole number above 0")
        return 30

    right = document.get("inspections_right", 1.0)
    if isinstance(right, bool) or not isinstance(right, int | float) or not 0.5 < right <= 1:
        wrong("inspections_right", f"given {right!r}", KEYS["inspections_right"])
        right = 1.0
    zone: ZoneInfo | None = None
    timezone = "UTC"
    if "timezone" in document:
        given = take("timezone", str, "UTC")
        try:
            zone = ZoneInfo(given)
            timezone = given
        except (KeyError, ValueError, OSError):
            wrong("timezone", f"no zone is called {given!r}", KEYS["timezone"])
    codes = _parse_codes(document.get("codes", {}), wrong)
    extra = _parse_extra(document.get("extra", []), wrong)
    for column in codes:
        names = {c.name for t in TABLES.values() for c in t.columns if c.kind == "code"}
        names |= {e.column for e in extra if e.kind == "code"}
        if column not in names:
            other = any(column in t.names for t in TABLES.values())
            wrong(
                f"codes.{column}",
                "codes can be mapped for columns of codes only" if other else "no table has a column of that name",
                "columns of codes: " + ", ".join(sorted(names)),
                suggestion(column, names),
            )
    settings = Settings(
        name=take("name", str, name) or name,
        timezone=timezone,
        currency=take("currency", str, ""),
        return_window_days=days("return_window_days"),
        lost_after_days=days("lost_after_days"),
        extracted_at=_parse_moment(document.get("extracted_at"), zone, wrong),
        inspections_right=float(right),
        codes=codes,
        reasons=_parse_reasons(document.get("reasons", {}), wrong),
        extra=extra,
        simulated=take("simulated", bool, False),
    )
    return settings, zone, problems


def suggestion(given: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest known name, empty if none is near."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(given.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"did you mean {by_lower[near[0]]!r}?" if near else ""


def _parse_moment(value: Any, zone: ZoneInfo | None, wrong: Any) -> pd.Timestamp | None:
    if value is None:
        return None
    allowed = "a moment with a zone, e.g. 2025-12-01T00:00:00+07:00, or without one if timezone is given"
    try:
        if not isinstance(value, str | dt.date | pd.Timestamp):
            raise ValueError
        moment = pd.Timestamp(value)
        if pd.isna(moment):
            raise ValueError
    except ValueError:
        wrong("extracted_at", f"given {value!r}, which is no moment", allowed)
        return None
    if moment.tzinfo is None:
        if zone is None:
            wrong("extracted_at", f"given {value}, without a zone", allowed)
        moment = moment.tz_localize(zone or "UTC", ambiguous=True, nonexistent="shift_forward")
    return moment.tz_convert("UTC").as_unit("us")


def _parse_codes(value: Any, wrong: Any) -> dict[str, dict[str, str]]:
    shape = '[codes.payment_method] with lines like "COD (Bayar di Tempat)" = "cod"'
    if not isinstance(value, Mapping):
        wrong("codes", f"given {value!r}", shape)
        return {}
    codes: dict[str, dict[str, str]] = {}
    for column, mapping in value.items():
        if not isinstance(mapping, Mapping):
            wrong(f"codes.{column}", f"given {mapping!r}", shape)
            continue
        allowed = {code for t in TABLES.values() for c in t.columns if c.name == column for code in c.codes}
        clean: dict[str, str] = {}
        for shop, code in mapping.items():
            if not isinstance(code, str):
                wrong(f"codes.{column}", f"{shop!r} is read as {code!r}, which is no text", shape)
            elif allowed and code and code not in allowed:
                todo = suggestion(code, allowed) or f"take one of these for {shop!r}"
                wrong(f"codes.{column}", f"{shop!r} is read as {code!r}", ", ".join(sorted(allowed)), todo)
            else:
                clean[shop.strip()] = code.strip()
        for shop, code in clean.items():
            # A saved dataset holds codes that were read already: reading them again must change nothing.
            if clean.get(code, code) != code:
                wrong(
                    f"codes.{column}",
                    f"{shop!r} is read as {code!r}, and {code!r} as {clean[code]!r}",
                    "one step: what a code is read as is not read as something else again",
                    f"write {shop!r} = {clean[code]!r}",
                )
        codes[str(column)] = clean
    return codes


def _parse_reasons(value: Any, wrong: Any) -> dict[str, str]:
    shape = '[reasons] with lines like "itchy" = "listing"'
    if not isinstance(value, Mapping):
        wrong("reasons", f"given {value!r}", shape)
        return {}
    found: dict[str, str] = {}
    for reason, team in value.items():
        name = str(reason).strip()
        if not name:
            wrong("reasons", f"a reason without a name, owned by {team!r}", shape)
        elif not isinstance(team, str) or team.strip() not in TEAMS:
            owner = "by nobody" if team == "" else f"by {team!r}, which is no team"
            todo = suggestion(str(team), TEAMS) or "name the team that could have prevented it"
            wrong(f"reasons.{name}", f"is owned {owner}", ", ".join(TEAMS), todo)
        else:
            found[name] = team.strip()
    return found


def _parse_extra(value: Any, wrong: Any) -> tuple[Extra, ...]:
    keys = ("table", "column", "kind", "owner", "known_at")
    if not isinstance(value, list) or not all(isinstance(e, Mapping) for e in value):
        wrong("extra", f"given {value!r}", "[[extra]] with the keys " + ", ".join(keys))
        return ()
    found: list[Extra] = []
    for i, entry in enumerate(value, 1):
        given = {k: v for k, v in entry.items() if v is not None}
        place = f"extra {i}" + (f" ({given['column']})" if isinstance(given.get("column"), str) else "")
        good = True

        def bad(what: str, allowed: str = "", todo: str = "", place: str = place) -> None:
            nonlocal good
            good = False
            wrong(place, what, allowed, todo)

        for key in given:
            if key not in keys:
                bad(f"unknown key {key!r}", ", ".join(keys), suggestion(key, keys))
            elif not isinstance(given[key], str):
                bad(f"{key} is {given[key]!r}, which is no text")
        for key, allowed in (("table", EXTRA_TABLES), ("column", ()), ("kind", EXTRA_KINDS), ("owner", TEAMS)):
            text = given.get(key)
            if text is None:
                bad(f"{key} is missing", ", ".join(allowed) or "the column's name in the file")
            elif isinstance(text, str) and key == "table" and text in TABLES and text not in EXTRA_TABLES:
                bad(
                    f"table {text!r} may carry no extra columns: its rows are outcomes, a column of it would leak them",
                    ", ".join(allowed),
                )
            elif isinstance(text, str) and allowed and text not in allowed:
                bad(f"{key} is {text!r}", ", ".join(allowed), suggestion(text, allowed))
        if not good:
            continue
        extra = Extra(given["table"], given["column"], given["kind"], given["owner"], given.get("known_at"))
        if extra.column in TABLES[extra.table].names:
            bad(f"{extra.column!r} is a column of {extra.table} anyway", "columns Doorstep does not know", "remove it")
        elif any((e.table, e.column) == (extra.table, extra.column) for e in found):
            bad(f"{extra.table}.{extra.column} is declared twice", "once", "remove one of them")
        else:
            found.append(extra)
    return tuple(found)


def _extra_json(extra: Extra) -> dict[str, str]:
    pairs = {"table": extra.table, "column": extra.column, "kind": extra.kind, "owner": extra.owner}
    return pairs if extra.known_at is None else {**pairs, "known_at": extra.known_at}


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
