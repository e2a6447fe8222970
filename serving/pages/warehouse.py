"""The warehouse: what leaves ready for the carrier and what does not, by node and shift; boxes too weak or too large.

Nodes and shifts, never persons: no table of a diagnosis knows who packed.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.diagnosis import Diagnosis, Where
from serving.pages.carriers import weeks
from serving.pages.reading import around, read
from serving.pages.site import of
from serving.pages.todo import OWNERS

MEASURES: dict[str, dict[str, Any]] = {
    "missed_cutoff": {"missed_cutoff": 1},
    "label_poor": {"label_poor": 1},
    "documents_missing": {"documents_complete": 0},
}
"""Measure -> what its parcels have in common; of the others a column is added up."""
KNOWN: dict[str, str] = {
    "missed_cutoff": "missed_cutoff",
    "backlog_hours": "backlog_hours",
    "label_poor": "label_poor",
    "documents_missing": "documents_complete",
}
"""Measure -> the column without which a parcel cannot be judged."""
SHOWN = 15


@read
def overview(request: Request, diagnosis: Diagnosis) -> Response:
    """Readiness, packaging, and the course of both."""
    site = of(request)
    rows = diagnosis.rows("readiness", limit=2000)
    measures = list(dict.fromkeys(str(r["measure"]) for r in rows))
    asked = request.query_params.get("measure", "")
    measure = asked if asked in measures else (measures or ["missed_cutoff"])[0]
    chosen = [r for r in rows if r["measure"] == measure]
    ends = [float(r[n]) for r in chosen for n in ("high", "elsewhere") if isinstance(r[n], float)]
    nodes = list(dict.fromkeys(str(r["node"]) for r in chosen))
    charts = [
        (node, chart)
        for node in nodes[:6]
        if (chart := weeks(diagnosis, "readiness_weeks", {"node": node, "target": measure}, site.texts)) is not None
    ]
    worse = sum(r["verdict"] == "worse" for r in rows)
    return site.render(
        request,
        "warehouse.html",
        measure=measure,
        measures=measures,
        team=OWNERS.get(measure),
        rows=sorted(chosen, key=lambda r: (r["verdict"] != "worse", str(r["node"]), str(r["shift"]))),
        worse=worse,
        judged=len(rows),
        top=max(ends, default=1.0) or 1.0,
        filters=MEASURES,
        known=KNOWN,
        charts=charts,
        packaging=diagnosis.rows("packaging", Where({"verdict": "under"}), sort="-worth", limit=SHOWN)
        + diagnosis.rows("packaging", Where({"verdict": "over"}), sort="-worth", limit=SHOWN),
        packaged={str(g["verdict"]): g["rows"] for g in diagnosis.sums("packaging", [], by=["verdict"])},
        **around(diagnosis, site.texts),
    )
