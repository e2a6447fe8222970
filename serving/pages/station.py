"""The packing station: a scan field, one verdict, one thing to do. What it says of a parcel is `serving.pages.verdict`.

The page asks `/v1/parcels/scan` and reports to `/v1/outcomes` and `/v1/overrides` by its script, `static/pack.js`.
"""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import Response

from serving.pages.barcode import code39
from serving.pages.site import of
from serving.pages.verdict import DONE, OVERRIDES

DONE_KEY = "F2"
OVERRIDE_KEYS: dict[str, str] = dict(zip(("F4", "F7", "F8", "F9"), OVERRIDES, strict=True))
"""Key -> control code. Scanners type letters and digits, so only function keys are free; browsers keep some of them."""


def page(request: Request) -> Response:
    """The station."""
    site = of(request)
    keys = {code: key for key, code in OVERRIDE_KEYS.items()}
    overrides = [(code, keys[code], reason) for code, reason in OVERRIDES.items()]
    return site.render(
        request,
        "pack.html",
        status_of=site.sources.status(),
        done=(DONE, DONE_KEY),
        overrides=overrides,
        words=json.dumps(site.texts.under("bench")),
    )


def codes(request: Request) -> Response:
    """The control codes as barcodes, to print and pin to the bench."""
    site = of(request)
    named = [(DONE, site.texts("bench.done"), code39(DONE))]
    named += [(code, site.texts.word("override", code), code39(code)) for code in OVERRIDES]
    return site.render(request, "codes.html", codes=named)
