"""A carrier's meeting pack: two printed pages, the parcels as CSV, what they mean. The command gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from serving.diagnosis import PARCEL_TARGETS, Diagnosis, QueryError, Value, Where
from serving.pages.carriers import WHOSE, late_all, split
from serving.pages.data import answered, written
from serving.pages.reading import around, read, whole
from serving.pages.site import HERE, Site, of

PAGE, PARCELS, DEFINITION = "meeting.html", "parcels.csv", "definition.txt"
"""The files of a pack."""
WORST = 8
"""Corridors on the first page."""
COLUMNS = (
    *("parcel_id", "order_id", "decided_at", "carrier", "service", "region", "node"),
    *(*PARCEL_TARGETS, "leg", "whose", "claimed", "excluded_because"),
)
"""Of the parcels: `claimed` is 1 where the time was lost with the carrier."""

STYLE = (HERE / "static" / "alone.css").read_text(encoding="utf-8")
"""Of pages that stand alone, such as in a mail; it stands in them."""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
ALONE = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""Headers of such a page: its style is allowed by its hash, and nothing else is."""


def _context(diagnosis: Diagnosis, carrier: str, site: Site) -> dict[str, Any]:
    """What the page and the definitions say. Raises QueryError."""
    where = Where({"carrier": carrier})
    parcels = diagnosis.total("parcels", where)
    if not parcels:
        known = ", ".join(map(str, diagnosis.values("parcels", "carrier", limit=20)))
        raise QueryError("carrier", "is not known to this diagnosis", carrier, known or "none: no parcel has a carrier")
    services = diagnosis.rows("carriers", where, limit=24)
    worse = Where({"carrier": carrier, "verdict": "worse"})
    worst = diagnosis.rows("corridors", worse, sort="-excess", limit=WORST)
    verdicts: dict[str, dict[str, Value]] = {}
    for group in diagnosis.sums("corridors", [], where, by=["target", "verdict"]):
        verdicts.setdefault(str(group["target"]), {})[str(group["verdict"])] = group["rows"]
    return {
        "carrier": carrier,
        "parcels": parcels,
        "late": late_all(diagnosis, {"carrier": carrier}),
        "judged": diagnosis.total("parcels", Where({"carrier": carrier}, known=("late",))),
        "whose": WHOSE,
        "split": lambda row: split(row, site.texts),
        "services": services,
        "unsure": [row for row in services if row["verdict"] == "cannot tell"],
        "worse": worst,
        "worse_all": diagnosis.total("corridors", worse),
        "since": any(row["since"] for row in worst),
        "verdicts": {t: verdicts[t] for t in PARCEL_TARGETS if t in verdicts},
        "columns": COLUMNS,
        "style": Markup(STYLE),  # our own file
        **around(diagnosis, site.texts),
    }


def pack(diagnosis: Diagnosis, carrier: str, site: Site) -> dict[str, bytes]:
    """The files of a carrier's meeting pack, by name.

    Raises:
        QueryError: the diagnosis knows no such carrier; says which it knows.
    """
    context = _context(diagnosis, carrier, site)
    return {
        PAGE: site.document("meeting.html", **context).encode(),
        PARCELS: written([COLUMNS]) + b"".join(written(chunk) for chunk in _failed(diagnosis, carrier, site)),
        DEFINITION: site.document("definition.txt", **context).encode(),
    }


def zipped(files: dict[str, bytes]) -> bytes:
    """Files as one archive, the same bytes whenever it is made."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


@read
def page(request: Request, diagnosis: Diagnosis) -> Response:
    """The two pages, in the browser."""
    site = of(request)
    carrier = whole(request.query_params, ("carrier",))["carrier"]
    return HTMLResponse(site.document("meeting.html", **_context(diagnosis, carrier, site)), headers=ALONE)


def _archive(request: Request, diagnosis: Diagnosis) -> Response:
    """All of it, to keep."""
    carrier = whole(request.query_params, ("carrier",))["carrier"]
    name = quote(f"meeting {carrier}.zip", safe="")
    headers = {"Content-Disposition": f"attachment; filename=\"meeting.zip\"; filename*=UTF-8''{name}"}
    return Response(zipped(pack(diagnosis, carrier, of(request))), 200, headers, "application/zip")


archive = answered(_archive)


def _failed(diagnosis: Diagnosis, carrier: str, site: Site) -> Iterator[list[list[Value]]]:
    """The carrier's parcels that failed in any way, once each: the late ones first."""
    columns = list(diagnosis.table("parcels").columns)
    for place, target in enumerate(PARCEL_TARGETS):
        for chunk in diagnosis.stream("parcels", Where({"carrier": carrier, target: 1})):
            rows = []
            for values in chunk:
                row: dict[str, Value] = dict(zip(columns, values, strict=True))
                if any(row[earlier] == 1 for earlier in PARCEL_TARGETS[:place]):
                    continue
                claimed = int(row["whose"] == "carrier") if row["late"] == 1 else None
                why = None
                if claimed is None:
                    why = site.texts("meeting.not_single")
                elif not claimed:
                    why = site.texts.word("meeting_excluded", row["whose"] or "cannot tell")
                rows.append([{**row, "claimed": claimed, "excluded_because": why}[c] for c in COLUMNS])
            yield rows
