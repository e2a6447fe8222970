"""What a request asks of a diagnosis: which table, which rows, in which order. Pages, JSON and CSV ask alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from serving.diagnosis import Diagnosis, QueryError, Where

LIMIT, MOST = 100, 1000
"""Rows of one answer: where nothing is asked, and at most."""
WORDS = ("limit", "offset", "sort", "null", "known", "decided_from", "decided_before")
"""Names in a query that are no columns."""

_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?")


@dataclass(frozen=True)
class Asked:
    """A question about one table.

    Attributes:
        table: its name.
        where: which rows.
        sort: by what.
        limit, offset: how many, after how many.
        query: the question as it stands in an address, without `limit` and `offset`: each name with its values.
    """

    table: str
    where: Where
    sort: tuple[str, ...] = ()
    limit: int = LIMIT
    offset: int = 0
    query: Mapping[str, list[str]] = field(default_factory=dict)


def asked(diagnosis: Diagnosis, table: str, query: Iterable[tuple[str, str]], *, limit: int = LIMIT) -> Asked:
    """Read a question.

    Every name in the query is a column, and its value what rows must have in it, but for `null` (a column that is
    absent), `known` (one that is not), `decided_from` and `decided_before` (dates or times in UTC), `sort` (a column,
    with `-` the largest first), `limit` and `offset`.

    Args:
        diagnosis: what is asked.
        table: of its tables.
        query: names and values in order.
        limit: rows unless the question says how many.

    Raises:
        QueryError: it cannot be answered; says what can.
    """
    known = diagnosis.table(table)
    allowed = ", ".join((*known.columns, *WORDS))
    equal: dict[str, str | None] = {}
    words: dict[str, str] = {}
    kept: dict[str, list[str]] = {}
    sort: list[str] = []
    there: list[str] = []
    for name, value in query:
        if (name == "sort" and value in sort) or (name == "known" and value in there):
            raise QueryError(name, "is asked for twice", value, "each column once")
        if name == "sort":
            sort.append(value)
        elif name == "known":
            there.append(value)
        elif name == "null":
            if value in equal:
                raise QueryError(value, "is asked for twice", value, "each column once")
            equal[value] = None
        elif name in known.columns or name in WORDS:
            at: dict[str, str | None] | dict[str, str] = words if name in WORDS else equal
            if name in at:
                raise QueryError(name, "is asked for twice", value, "each name once")
            at[name] = value
        else:
            raise QueryError(name, f"is no column of {table}", name, allowed)
        if name not in ("limit", "offset"):
            kept.setdefault(name, []).append(value)
    for column in (s.removeprefix("-") for s in sort):
        if column not in known.columns:
            raise QueryError("sort", f"is no column of {table}", column, ", ".join(known.columns))
    bounds = {"begin": words.get("decided_from"), "end": words.get("decided_before")}
    for name, moment in zip(("decided_from", "decided_before"), bounds.values(), strict=True):
        if moment is not None:
            if not _MOMENT.fullmatch(moment):
                raise QueryError(name, "is no date", moment, "2026-03-02 or 2026-03-02T00:00:00Z")
            if "decided_at" not in known.columns:
                raise QueryError(name, f"does not go with {table}, whose rows are decided at no time", moment, allowed)
    where = diagnosis.where(table, equal, known=tuple(there), **bounds)
    size = _count("limit", words.get("limit"), limit, 1, MOST)
    return Asked(table, where, tuple(sort), size, _count("offset", words.get("offset"), 0, 0, 2**53), kept)


def _count(name: str, text: str | None, default: int, least: int, most: int) -> int:
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,16}", text, re.ASCII) or not least <= int(text) <= most:
        raise QueryError(name, "is no such number", text, f"{least} to {most}")
    return int(text)
