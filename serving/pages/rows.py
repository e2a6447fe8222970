"""The rows that a number is made of: any table under a filter, by the page, and the same as CSV."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from serving.diagnosis import TABLES, Diagnosis
from serving.pages.asked import asked
from serving.pages.reading import around, read
from serving.pages.site import of

SHOWN = 50
"""Rows of a page."""
SORTED = 20_000
"""Rows that a page sorts or adds up at most; programs may ask for more."""


def page(table: str) -> Callable[[Request], Response]:
    """The page of a table's rows."""

    def answer(request: Request, diagnosis: Diagnosis) -> Response:
        site = of(request)
        question = asked(diagnosis, table, request.query_params.multi_items(), limit=SHOWN)
        total = diagnosis.total(table, question.where)
        known = diagnosis.table(table)
        small = total <= SORTED
        found = diagnosis.rows(
            table, question.where, sort=question.sort if small else (), limit=question.limit, offset=question.offset
        )
        added = [
            c for c in known.columns if c.startswith("expected") or c in ("value", "excess", "worth", "backlog_hours")
        ]
        sums = diagnosis.sums(table, added, question.where)[0] if small and total and added else {}
        columns = list(known.columns)
        return site.render(
            request,
            "rows.html",
            table=known,
            question=question,
            columns=columns,
            rows=[[(c, known.columns[c], row[c]) for c in columns] for row in found],
            total=total,
            sums={c: sums[c] for c in added if c in sums},
            sortable=small,
            filters=[(name, v) for name, values in question.query.items() if name != "sort" for v in values],
            **around(diagnosis, site.texts),
        )

    return read(answer)


PAGES: dict[str, Callable[[Request], Response]] = {f"/rows/{name}": page(name) for name in TABLES}
