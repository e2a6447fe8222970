"""The overview: where to go, and what the service answers with."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from serving.pages.site import of


def page(request: Request) -> Response:
    """The overview."""
    site = of(request)
    endpoints = [(m, p) for p, m in site.sources.endpoints.items() if not p.startswith("/static/")]
    return site.render(request, "overview.html", status_of=site.sources.status(), endpoints=endpoints)
