"""The diagnosis in the OpenAPI document, from its contract `serving.diagnosis.TABLES` and what a question may ask."""

from __future__ import annotations

from typing import Any

from serving.diagnosis import FORMAT, TABLES, Spec
from serving.pages.asked import LIMIT, MOST
from serving.pages.data import ROOT

KINDS: dict[str, dict[str, Any]] = {
    "text": {"type": ["string", "null"]},
    "key": {"type": "string"},
    "count": {"type": ["integer", "null"]},
    "flag": {"enum": [0, 1, None]},
    "number": {"type": ["number", "null"]},
    "time": {"type": ["string", "null"], "format": "date-time"},
    "date": {"type": ["string", "null"], "format": "date"},
}
"""Kind of a column -> what JSON holds."""


def described(problem: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `/v1/diagnosis` takes and answers.

    Args:
        problem: reference of the document's schema of problems.

    Returns:
        The document's `paths` and the `schemas` they refer to.
    """
    problems = {
        "400": _problem("No such column, or a value it cannot have: what, what was given, what is allowed", problem),
        "503": _problem("There is no diagnosis, or it is being replaced: what to do", problem),
    }
    paths: dict[str, Any] = {
        ROOT: _get(
            "diagnosis",
            "What the diagnosis has: a summary of it, and of each table its rows, columns and, where empty, why",
            _json({"$ref": "#/components/schemas/Diagnosis"}),
            {"503": problems["503"]},
        )
    }
    schemas: dict[str, Any] = {"Diagnosis": _summary()}
    for name, table in TABLES.items():
        title = "Diagnosis" + "".join(part.capitalize() for part in name.split("_"))
        schemas[title] = _row(table)
        which, page = _which(table), _page()
        answer = _json(_answer(name, title))
        paths[f"{ROOT}/{name}"] = _get(
            f"diagnosis_{name}", f"By the page: {table.words}", answer, problems, which + page
        )
        text = {"text/csv": {"schema": {"type": "string"}}}
        paths[f"{ROOT}/{name}.csv"] = _get(f"diagnosis_{name}_csv", f"All rows: {table.words}", text, problems, which)
    return paths, schemas


def _get(
    name: str, text: str, content: dict[str, Any], problems: dict[str, Any], asked: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    responses = {"200": {"description": text, "content": content}, **problems}
    parameters = {"parameters": asked} if asked else {}
    return {"get": {"operationId": name, "summary": text, **parameters, "responses": responses}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _problem(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/problem+json": {"schema": {"$ref": schema}}}}


def _parameter(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _which(table: Spec) -> list[dict[str, Any]]:
    """Parameters that say which rows, and in which order."""
    columns = list(table.columns)
    several = {"type": "array", "items": {"enum": columns}, "uniqueItems": True}
    out = []
    for column, kind in table.columns.items():
        flag = {"enum": ["0", "1", "true", "false"]}
        asked = flag if kind == "flag" else {k: v for k, v in KINDS[kind].items() if k != "type"}
        types = {"text": "string", "key": "string", "time": "string", "date": "string", "count": "integer"}
        typed = {} if kind == "flag" else {"type": types.get(kind, "number")}
        out.append(_parameter(column, "rows with this value", {**typed, **asked}))
    out.append(_parameter("null", "rows without a value in these columns", several))
    out.append(_parameter("known", "rows with a value in these columns", several))
    if "decided_at" in table.columns:
        moment = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?$"}
        out.append(_parameter("decided_from", "rows decided from then on, UTC", moment))
        out.append(_parameter("decided_before", "rows decided before, UTC", moment))
    orders = [*columns, *(f"-{c}" for c in columns)]
    sort = {"type": "array", "items": {"enum": orders}, "uniqueItems": True}
    out.append(
        _parameter("sort", "columns in order of weight, with - the largest first; absent values come last", sort)
    )
    return out


def _page() -> list[dict[str, Any]]:
    """Parameters that say which page."""
    most = {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT}
    return [
        _parameter("limit", "rows of the answer", most),
        _parameter("offset", "after so many others", {"type": "integer", "minimum": 0, "default": 0}),
    ]


def _row(table: Spec) -> dict[str, Any]:
    """A row; a diagnosis may have columns beyond its contract."""
    properties = {column: KINDS[kind] for column, kind in table.columns.items()}
    return {"type": "object", "description": table.words, "properties": properties, "required": list(properties)}


def _answer(name: str, row: str) -> dict[str, Any]:
    number = {"type": "integer", "minimum": 0}
    properties = {
        "table": {"const": name},
        "dataset": {"type": ["string", "null"], "description": "of which shop"},
        "as_of": {"type": ["string", "null"], "format": "date-time", "description": "as known when"},
        "why": {"type": "string", "description": "why the table is empty, if it is"},
        "total": {**number, "description": "rows under the filter"},
        "limit": number,
        "offset": number,
        "next": {"type": ["string", "null"], "description": "path of the next page; null at the end"},
        "rows": {"type": "array", "maxItems": MOST, "items": {"$ref": f"#/components/schemas/{row}"}},
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _summary() -> dict[str, Any]:
    properties = {
        "row": {"type": "string", "description": "what a row is"},
        "rows": {"type": "integer", "minimum": 0},
        "why": {"type": "string", "description": "why there are none, if there are none"},
        "columns": {"type": "object", "additionalProperties": {"enum": list(KINDS)}},
        "url": {"type": "string"},
    }
    one = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "object",
        "description": "The summary of the batch, and its tables",
        "properties": {
            "format": {"const": FORMAT},
            "dataset": {"type": ["string", "null"]},
            "as_of": {"type": ["string", "null"], "format": "date-time"},
            "since": {"type": ["string", "null"]},
            "simulated": {"type": "boolean"},
            "currency": {"type": ["string", "null"]},
            "timezone": {"type": "string"},
            "confidence": {"type": "number", "description": "of every interval"},
            "tables": {"type": "object", "properties": dict.fromkeys(TABLES, one), "required": list(TABLES)},
        },
        "required": ["format", "tables"],
    }
