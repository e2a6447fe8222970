"""The rows that a number is made of: any table under a filter, by the page, and the same as CSV."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from serving.diagnosis import PARCEL_TARGETS, TABLES, Diagnosis, Table
from serving.pages.asked import Asked, asked
from serving.pages.reading import around, read
from serving.pages.site import of

SHOWN = 50
"""Rows of a page."""
SORTED = 20_000
"""Rows that a page sorts or adds up at most; programs may ask for more."""

FIRST: dict[str, str] = {
    "parcels": "parcel_id decided_at node carrier service region late failed_attempt damaged undelivered",
    "lines": "line_id decided_at sku returned reason owner counted aside value",
    "corridors": "carrier service region target verdict parcels observed expected ratio low high since",
    "carriers": "carrier service target verdict parcels observed expected ratio low high since",
    "products": "sku category verdict lines observed expected ratio low high reason worth",
    "changes": "sku changed_at what verdict before_ratio after_ratio judged_from",
}
"""Columns that a page of a wide table shows until all are asked for; those that are asked by stand beside them."""
BESIDE: dict[str, str] = {
    "late": "hours_late leg whose",
    "whose": "hours_late leg",
    "damaged": "sku package_type",
    "missed_cutoff": "shift",
}
"""Columns that are read together with one that is asked by."""


def page(table: str) -> Callable[[Request], Response]:
    """The page of a table's rows."""

    def answer(request: Request, diagnosis: Diagnosis) -> Response:
        site = of(request)
        given = request.query_params.multi_items()
        whole = table in FIRST and ("columns", "all") in given
        question = asked(diagnosis, table, [g for g in given if g != ("columns", "all")], limit=SHOWN)
        total = diagnosis.total(table, question.where)
        known = diagnosis.table(table)
        small = total <= SORTED
        found = diagnosis.rows(
            table, question.where, sort=question.sort if small else (), limit=question.limit, offset=question.offset
        )
        added = [
            c for c in known.columns if c.startswith("expected") or c in ("value", "excess", "worth", "backlog_hours")
        ]
        wanted = small and total and added
        sums = diagnosis.sums(table, added, question.where, nothing=None)[0] if wanted else {}
        columns = _first(known, question) if table in FIRST and not whole else list(known.columns)
        return site.render(
            request,
            "rows.html",
            table=known,
            question=question,
            columns={c: known.columns[c] for c in columns},
            all_columns=len(known.columns),
            whole=whole,
            kept={**question.query, "columns": ["all"]} if whole else question.query,
            rows=found,
            total=total,
            sums={c: sums[c] for c in added if sums.get(c) is not None},
            sortable=small,
            filters=[(name, v) for name, values in question.query.items() if name != "sort" for v in values],
            **around(diagnosis, site.texts),
        )

    return read(answer)


def _first(table: Table, question: Asked) -> list[str]:
    """The columns of a page that was not asked for all, in the table's order."""
    same = {*question.where.equal}  # one value in every row, which stands above them
    by = {*same, *question.where.known, *(s.removeprefix("-") for s in question.sort)}
    shown = {*FIRST[table.name].split(), *by, *(c for b in by for c in BESIDE.get(b, "").split())} - same
    if {*PARCEL_TARGETS} & by:  # who asks for one outcome reads about that one
        shown -= {*PARCEL_TARGETS} - by
    return [c for c in table.columns if c in shown]


PAGES: dict[str, Callable[[Request], Response]] = {f"/rows/{name}": page(name) for name in TABLES}
