"""The pages: what people read in a browser, served by the same service at `/`.

    site      what every page is made with: templates, texts, links, headers
    texts     the catalogue: every word a page says, one file a language
    charts    figures as SVG, drawn at the server
    home      the overview
    listings, carriers, warehouse: what a diagnosis tells the teams; `reading` is what they share
    meeting   a carrier's meeting pack
    brief     a team's week on one page
    todo      what each team does first
    rows      the rows a number is made of; `asked` reads which
    data      the same as JSON and CSV
    station   the packing station; `verdict` is what it says of a parcel, `barcode` its control codes,
              `shadow` what it would have said
    static/   one style sheet, small scripts of our own
    texts/    the languages

Pages are plain functions `(request) -> Response`, entered in `PAGES`; no page asks anything off the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.diagnosis import Diagnosis, Where
from serving.pages import carriers, home, listings, meeting, rows, shadow, station, warehouse
from serving.pages.data import DATA
from serving.pages.site import Site, Sources, Status
from serving.pages.texts import Texts

__all__ = ["PAGES", "Site", "Sources", "Status", "prepared", "routes"]

PAGES: dict[str, Callable[[Request], Response]] = {
    "/": home.page,
    "/pack": station.page,
    "/pack/codes": station.codes,
    "/pack/shadow": shadow.page,
    "/pack/shadow/parcels": shadow.parcels,
    "/listings": listings.overview,
    "/listings/product": listings.product,
    "/carriers": carriers.overview,
    "/carriers/carrier": carriers.carrier,
    "/carriers/meeting": meeting.page,
    "/warehouse": warehouse.overview,
}
"""Path -> page. Paths are fixed, and what a page is about stands in the query (`/listings/product?sku=A%2FB`): an id
may hold a slash, and the metrics keep a series for each path."""


def prepared(directory: Path) -> Diagnosis:
    """A diagnosis whose overviews have been asked for once, so that no reader waits for sums over every parcel.

    Raises:
        serving.diagnosis.DiagnosisError: there is none, or it cannot be read.
    """
    found = Diagnosis.open(directory)
    texts = Texts.load()
    home.found(found, texts)
    carriers.late_by(found, "carrier")
    for carrier in found.values("parcels", "carrier", limit=100):
        carriers.late_all(found, {"carrier": carrier})
    found.total("lines", Where({"returned": 1}))
    return found


def routes(site: Site) -> list[Route]:
    """Every page and every file they need, for the application that serves them."""
    answers = {
        **PAGES,
        **rows.PAGES,
        "/carriers/meeting.zip": meeting.archive,
        "/pack/shadow.csv": shadow.table,
        **DATA,
    }
    pages = [Route(path, site.shown(page)) for path, page in answers.items()]
    return [*pages, *(Route(path, site.file) for path in site.files)]
