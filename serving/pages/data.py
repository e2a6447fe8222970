"""The diagnosis for programs: JSON by the page under `/v1/diagnosis`, and any table as CSV, whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serving.diagnosis import TABLES, Diagnosis, QueryError, ReplacedError, Value
from serving.guard import PROBLEM, Refused, later
from serving.pages.asked import Asked, asked
from serving.pages.site import Site, of

ROOT = "/v1/diagnosis"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""A spreadsheet program would compute text that begins so, or hide its first character."""


def refused(refusal: Refused) -> Response:
    """A refusal as a problem+json answer."""
    headers = {name.decode(): value.decode() for name, value in refusal.headers}
    return Response(refusal.body(), refusal.status, headers, media_type=PROBLEM.decode())


def unanswerable(error: QueryError) -> Response:
    """A question that has no answer, as a problem+json answer that names what is wrong with it."""
    fault = {n: getattr(error, n) for n in ("field", "message", "given", "allowed")}
    return refused(Refused(400, str(error), errors=[fault]))


def answered(answer: Callable[[Request, Diagnosis], Response]) -> Callable[[Request], Response]:
    """An endpoint that needs a diagnosis, with what cannot be answered as a problem+json."""

    def endpoint(request: Request) -> Response:
        site = of(request)
        try:
            return answer(request, loaded(site))
        except QueryError as error:
            return unanswerable(error)
        except Refused as refusal:
            return refused(refusal)
        except ReplacedError:
            return refused(Refused(503, "The diagnosis is being replaced; ask again", headers=later()))

    return endpoint


def loaded(site: Site) -> Diagnosis:
    """The diagnosis that is served. Raises Refused: 503, with what to do, where there is none."""
    found = site.sources.diagnosis()
    if found is not None:
        return found
    problem = site.sources.diagnosis_problem()
    why = f"none could be loaded: {problem}" if problem else "DOORSTEP_DIAGNOSIS names no directory"
    raise Refused(
        503,
        f"There is no diagnosis: {why}. `doorstep diagnose DATASET --out DIR` makes one, --diagnosis DIR serves it.",
    )


def summary(request: Request, diagnosis: Diagnosis) -> Response:
    """What there is: the summary of the batch, and of each table what its rows are, how many, and why none."""
    tables = {
        t.name: {
            "row": TABLES[t.name].words,
            "rows": t.rows,
            "why": t.why,
            "columns": dict(t.columns),
            "url": f"{ROOT}/{t.name}",
        }
        for t in diagnosis.tables.values()
    }
    return Response(to_json({**diagnosis.document, "tables": tables}), media_type="application/json")


def rows(table: str) -> Callable[[Request, Diagnosis], Response]:
    """The endpoint of a table's rows, by the page."""

    def answer(request: Request, diagnosis: Diagnosis) -> Response:
        question = asked(diagnosis, table, request.query_params.multi_items())
        total = diagnosis.total(table, question.where)
        found = diagnosis.rows(table, question.where, sort=question.sort, limit=question.limit, offset=question.offset)
        after = question.offset + len(found)
        following = urlencode({**question.query, "limit": question.limit, "offset": after}, doseq=True)
        content: dict[str, Any] = {
            "table": table,
            "dataset": diagnosis.document.get("dataset"),
            "as_of": diagnosis.document.get("as_of"),
            "why": diagnosis.table(table).why,
            "total": total,
            "limit": question.limit,
            "offset": question.offset,
            "next": f"{ROOT}/{table}?{following}" if after < total and found else None,
            "rows": found,
        }
        return Response(to_json(content), media_type="application/json")

    return answer


def table_csv(table: str) -> Callable[[Request, Diagnosis], Response]:
    """The endpoint of all rows of a table under a filter, as CSV."""

    def answer(request: Request, diagnosis: Diagnosis) -> Response:
        question = asked(diagnosis, table, request.query_params.multi_items())
        headers = {"Content-Disposition": f'attachment; filename="{table}.csv"'}
        return StreamingResponse(content(diagnosis, question), media_type="text/csv; charset=utf-8", headers=headers)

    return answer


def content(diagnosis: Diagnosis, question: Asked) -> Iterator[bytes]:
    """A table under a filter as CSV, a part at a time: every row, whatever page was asked for."""
    chunks = diagnosis.stream(question.table, question.where, sort=question.sort)
    columns = list(diagnosis.table(question.table).columns)

    def parts() -> Iterator[bytes]:
        yield written([columns])
        for chunk in chunks:
            yield written(chunk)

    return parts()


def written(rows: Sequence[Sequence[Value]]) -> bytes:
    """Rows as CSV (RFC 4180, UTF-8).

    Text that a spreadsheet program would compute gets an apostrophe in front, and so does text that begins with one:
    taking one leading apostrophe away from every text that has it gives back the data. Numbers stay numbers.
    """
    out = io.StringIO()
    csv.writer(out).writerows([[_guarded(v) for v in row] for row in rows])
    return out.getvalue().encode()


def _guarded(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


DATA: dict[str, Callable[[Request], Response]] = {ROOT: answered(summary)} | {
    path: answered(answer)
    for name in TABLES
    for path, answer in ((f"{ROOT}/{name}", rows(name)), (f"{ROOT}/{name}.csv", table_csv(name)))
}
"""Path -> what is answered there."""
