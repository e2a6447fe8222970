"""The overview: what is wrong, what to do first, whether it went as planned; and what the service answers with."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.diagnosis import PARCEL_TARGETS, Diagnosis, ReplacedError, Row, Where
from serving.guard import HIDDEN
from serving.pages.carriers import WHOSE, late_all
from serving.pages.carriers import split as late_split
from serving.pages.listings import LITTLE, by_brand, set_aside
from serving.pages.reading import around
from serving.pages.site import of
from serving.pages.texts import Texts
from serving.pages.todo import TEAMS, todo

FIRST = 2
"""Actions of each team."""


def page(request: Request) -> Response:
    """The overview."""
    site = of(request)
    endpoints = [(m, p) for p, m in site.sources.endpoints.items() if not p.startswith(HIDDEN)]
    diagnosis = site.sources.diagnosis()
    told: dict[str, Any] = {"diagnosed": False, "problem": site.sources.diagnosis_problem()}
    if diagnosis is not None:
        try:
            told = {"diagnosed": True, **found(diagnosis, site.texts), **around(diagnosis, site.texts)}
        except ReplacedError:
            return site.render(request, "replaced.html", status=503)
    return site.render(request, "overview.html", status_of=site.sources.status(), endpoints=endpoints, **told)


def missing(request: Request) -> Response:
    """What a browser is shown at an address at which there is nothing."""
    site = of(request)
    path = request.url.path
    pages = [
        p for p, method in site.sources.endpoints.items() if method == "GET" and not p.startswith(("/static/", "/v1/"))
    ]
    near = get_close_matches(path.rstrip("/")[:100].lower(), pages, n=3, cutoff=0.7)
    return site.render(request, "missing.html", status=404, path=path[:200], near=near)


def found(diagnosis: Diagnosis, texts: Texts) -> dict[str, Any]:
    """What the overview shows of a diagnosis."""
    excess: dict[str, dict[str, Row]] = {}
    for row in diagnosis.rows("excess", limit=100):
        excess.setdefault(row["target"], {})[row["source"]] = row
    by_target = diagnosis.sums("corridors", [], Where({"verdict": "worse"}), by=["target"])
    worse = {g["target"]: g["rows"] for g in by_target}
    worth = diagnosis.sums("products", ["worth"], Where({"named": 1}))
    return {
        "actions": [a for team in TEAMS for a in todo(diagnosis, team, texts, FIRST)],
        "late": late_all(diagnosis),
        "whose": WHOSE,
        "judged_late": diagnosis.total("parcels", Where(known=("late",))),
        "split": lambda row: late_split(row, texts),
        "returns": set_aside(diagnosis),
        "lines": diagnosis.tables["lines"].rows,
        "named": worth[0]["rows"] if worth else 0,
        "worth": worth[0]["worth"] if worth else None,
        "by_brand": by_brand(diagnosis),
        "little": LITTLE,
        "worse": sum(worse.values()),
        "worse_by": {t: worse[t] for t in PARCEL_TARGETS if t in worse},
        "corridors": len(diagnosis.sums("corridors", [], by=["carrier", "service", "region"])),
        "comparisons": diagnosis.tables["corridors"].rows,
        "unready": diagnosis.total("readiness", Where({"verdict": "worse"})),
        "readiness": diagnosis.tables["readiness"].rows,
        "reality": diagnosis.rows("reality", sort="-period", limit=8),
        "spikes": diagnosis.rows("spikes", sort="-began", limit=6),
        "excess": excess,
        "sources": list(dict.fromkeys(s for parts in excess.values() for s in parts)),
    }
