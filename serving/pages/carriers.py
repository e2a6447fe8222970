"""Carriers: what each did with the parcels it was given, against what others would have done with the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.diagnosis import PARCEL_TARGETS, Diagnosis, Where
from serving.pages import charts
from serving.pages.reading import around, read, whole, whole_number
from serving.pages.site import of
from serving.pages.texts import Texts

WHOSE: dict[str, str] = {"ours": "ours", "carrier": "theirs", "cannot tell": "untold"}
"""Whose time a late parcel lost -> the colour of that part of a bar."""
SHOWN = 40
"""Corridors of a page."""


def targets(diagnosis: Diagnosis, table: str = "carriers") -> list[str]:
    """The targets a table has rows of, in the order in which they are read."""
    there = set(diagnosis.values(table, "target"))
    return [t for t in PARCEL_TARGETS if t in there]


@dataclass
class Late:
    """Late parcels, and whose time they lost.

    Attributes:
        of: the value of the column by which they are counted.
        whose: parcels by `WHOSE`.
    """

    of: Any
    whose: dict[str, int]

    @property
    def all(self) -> int:
        """All of them: the parts add up to it."""
        return sum(self.whose.values())


def late_by(diagnosis: Diagnosis, column: str, equal: dict[str, Any] | None = None) -> list[Late]:
    """Late parcels by the values of a column, where it has most first."""
    found: dict[Any, Late] = {}
    for group in diagnosis.sums("parcels", [], Where({"late": 1, **(equal or {})}), by=[column, "whose"]):
        row = found.setdefault(group[column], Late(group[column], dict.fromkeys(WHOSE, 0)))
        row.whose[str(group["whose"] if group["whose"] in WHOSE else "cannot tell")] += int(group["rows"] or 0)
    return sorted(found.values(), key=lambda r: -r.all)


def late_all(diagnosis: Diagnosis, equal: dict[str, Any] | None = None) -> Late:
    """All late parcels."""
    groups = diagnosis.sums("parcels", [], Where({"late": 1, **(equal or {})}), by=["whose"])
    out = Late(None, dict.fromkeys(WHOSE, 0))
    for group in groups:
        out.whose[str(group["whose"] if group["whose"] in WHOSE else "cannot tell")] += int(group["rows"] or 0)
    return out


def split(row: Late, texts: Texts) -> Any:
    """Late parcels as a bar in three parts."""
    said = ", ".join(f"{texts.word('whose', w)}: {texts.number(row.whose[w])}" for w in WHOSE)
    return charts.split([(tone, row.whose[w]) for w, tone in WHOSE.items()], said)


@read
def overview(request: Request, diagnosis: Diagnosis) -> Response:
    """All carriers, for one target."""
    site = of(request)
    there = targets(diagnosis)
    asked = request.query_params.get("target", "")
    target = asked if asked in there else (there or ["late"])[0]
    where = Where({"target": target})
    carriers = diagnosis.rows("carriers", where, limit=500)
    worse = diagnosis.rows("corridors", Where({"target": target, "verdict": "worse"}), sort="-excess", limit=12)
    verdicts = {str(g["verdict"]): g["rows"] for g in diagnosis.sums("corridors", [], where, by=["verdict"])}
    return site.render(
        request,
        "carriers.html",
        target=target,
        targets=there,
        carriers=carriers,
        worse=worse,
        verdicts=verdicts,
        late=late_all(diagnosis),
        late_by=late_by(diagnosis, "carrier"),
        whose=WHOSE,
        split=lambda row: split(row, site.texts),
        **around(diagnosis, site.texts),
    )


@read
def carrier(request: Request, diagnosis: Diagnosis) -> Response:
    """One carrier, its services and corridors."""
    site = of(request)
    name = whole(request.query_params, ("carrier",))["carrier"]
    there = [str(g["target"]) for g in diagnosis.sums("carriers", [], Where({"carrier": name}), by=["target"])]
    there = [t for t in PARCEL_TARGETS if t in there]
    if not there and not diagnosis.total("parcels", Where({"carrier": name})):
        return site.render(
            request, "unknown.html", status=404, what="carrier", given=name, near=near(diagnosis, "carrier", name),
            **around(diagnosis, site.texts),
        )  # fmt: skip
    asked = request.query_params.get("target", "")
    target = asked if asked in there else (there or ["late"])[0]
    chosen = {n: request.query_params[n] for n in ("service", "region") if n in request.query_params}
    where = Where({"carrier": name, "target": target})
    offset = whole_number(request.query_params.get("offset"))
    rows = diagnosis.rows("corridors", where, limit=SHOWN, offset=offset)
    since = next((r["since"] for r in rows if r["since"] and all(r[k] == v for k, v in chosen.items())), None)
    return site.render(
        request,
        "carrier.html",
        carrier=name,
        target=target,
        targets=there,
        services=diagnosis.rows("carriers", Where({"carrier": name}), limit=200),
        corridors=rows,
        total=diagnosis.total("corridors", where),
        offset=offset,
        shown=SHOWN,
        chosen=chosen,
        late=late_all(diagnosis, {"carrier": name}),
        whose=WHOSE,
        split=lambda row: split(row, site.texts),
        chart=weeks(
            diagnosis, "corridor_weeks", {"carrier": name, "target": target, **chosen}, site.texts,
            since=str(since) if since and chosen else None,
        ),
        **around(diagnosis, site.texts),
    )  # fmt: skip


def weeks(
    diagnosis: Diagnosis, table: str, equal: dict[str, Any], texts: Texts, *, since: str | None = None
) -> Any | None:
    """The weeks of a carrier, corridor or node as a figure; None where there are none."""
    groups = diagnosis.sums(table, ["parcels", "observed", "expected"], Where(equal), by=["week"])
    groups = [g for g in groups if g["week"] and g["parcels"]]
    if len(groups) < 2:
        return None
    labels = [texts.day(str(g["week"])) for g in groups]
    observed = [float(g["observed"] or 0) / float(g["parcels"] or 1) for g in groups]
    expected = [float(g["expected"] or 0) / float(g["parcels"] or 1) or None for g in groups]
    top = max(max(observed), *(e or 0.0 for e in expected))
    mark = next((i for i, g in enumerate(groups) if since and str(g["week"]) >= since), None)
    hours = equal["target"] == "backlog_hours"

    def say(value: float, digits: int = 1) -> str:
        return texts.number(value, 1) if hours else texts.percent(value, digits)

    title = texts("figure.weeks", what=texts.word("target", equal["target"]))
    said = texts(
        "figure.weeks_said",
        n=len(groups),
        first=labels[0],
        last=labels[-1],
        least=say(min(observed)),
        most=say(max(observed)),
        latest=say(observed[-1]),
    )
    return charts.series(labels, observed, expected, title, said, top_says=say(top, 0), mark=mark)


def near(diagnosis: Diagnosis, what: str, name: str) -> list[Any]:
    """Names of carriers, or of products, that hold a text."""
    table = {"carrier": "carriers", "sku": "products"}[what]
    return diagnosis.like(table, what, name, limit=10) if name else []
