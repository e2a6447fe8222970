"""Listings: products that come back for what their page says or they are, why, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.diagnosis import Diagnosis, Row, Where
from serving.pages.carriers import near
from serving.pages.reading import around, read, whole, whole_number
from serving.pages.site import of

FIRST = 5
"""Products on top."""
LEAST_SHARE = 0.01
"""Terms of a listing that go with less of the difference are not advised on."""
SUMMED = ("lines", "observed", "expected")
SHOWN = 25
"""Products of a page of the table below."""
VERDICTS = ("worse", "as expected", "cannot tell")


def set_aside(diagnosis: Diagnosis, equal: dict[str, Any] | None = None) -> dict[str, Any]:
    """Every return that can be judged: how many, how many count, and why the others are set aside; it adds up."""
    groups = diagnosis.sums("lines", [], Where({"returned": 1, **(equal or {})}), by=["counted", "aside"])
    aside = [{"aside": g["aside"], "n": int(g["rows"] or 0)} for g in groups if not g["counted"]]
    counted = sum(int(g["rows"] or 0) for g in groups if g["counted"])
    aside.sort(key=lambda g: -int(g["n"]))
    return {
        "returns": counted + sum(g["n"] for g in aside),
        "counted": counted,
        "aside": sum(g["n"] for g in aside),
        "reasons": aside,
    }


LITTLE = 2
"""Counted returns of its own below which a product that is named goes by its brand's record."""


def brands(diagnosis: Diagnosis, product: Row) -> Row | None:
    """Its brand's other products of the category, added up, where they come back more than expected as well."""
    if not product["brand"] or not product["category"]:
        return None
    where = Where({n: product[n] for n in ("brand", "category")})
    found = diagnosis.sums("products", SUMMED, where)
    if not found:
        return None
    others = {n: float(found[0][n] or 0) - float(product[n] or 0) for n in SUMMED}
    return others if others["observed"] > others["expected"] > 0 else None


def by_brand(diagnosis: Diagnosis) -> int:
    """How many of the products that are named have fewer than `LITTLE` counted returns of their own."""
    groups = diagnosis.sums("products", [], Where({"named": 1}), by=["observed"])
    return sum(int(g["rows"] or 0) for g in groups if g["observed"] is not None and float(g["observed"]) < LITTLE)


def first(diagnosis: Diagnosis, limit: int = FIRST) -> list[Row]:
    """The products that are named, those worth most money first."""
    return diagnosis.rows("products", Where({"named": 1}), sort="-worth", limit=limit)


@read
def overview(request: Request, diagnosis: Diagnosis) -> Response:
    """The five products worth most, then all of them."""
    site = of(request)
    asked = request.query_params
    equal = {n: asked[n] for n in ("verdict", "category") if asked.get(n)}
    offset = whole_number(asked.get("offset"))
    where = Where(equal)
    return site.render(
        request,
        "listings.html",
        first=first(diagnosis),
        named=diagnosis.total("products", Where({"named": 1})),
        returns=set_aside(diagnosis),
        products=diagnosis.rows("products", where, sort="-worth", limit=SHOWN, offset=offset),
        total=diagnosis.total("products", where),
        verdicts=VERDICTS,
        little=LITTLE,
        by_brand=by_brand(diagnosis),
        categories=diagnosis.values("products", "category", limit=200),
        chosen=equal,
        offset=offset,
        shown=SHOWN,
        **around(diagnosis, site.texts),
    )


@read
def product(request: Request, diagnosis: Diagnosis) -> Response:
    """One product: why it comes back, what to change, and what came of a change."""
    site = of(request)
    sku = whole(request.query_params, ("sku",))["sku"]
    found = diagnosis.rows("products", Where({"sku": sku}), limit=1)
    if not found:
        return site.render(
            request, "unknown.html", status=404, what="product", given=sku, near=near(diagnosis, "sku", sku),
            **around(diagnosis, site.texts),
        )  # fmt: skip
    changes = diagnosis.rows("changes", Where({"sku": sku}), sort="-changed_at", limit=20)
    recorded = site.sources.changes(sku)
    keys = {_same(r): r["key"] for r in recorded or ()}
    for at, change in enumerate(changes):  # one change's before ends where the one before it has its after
        change["before_one"] = changes[at - 1]["changed_at"] if at else None
        change["key"] = keys.get(_same(change))
        change["after_one"] = changes[at + 1]["changed_at"] if at + 1 < len(changes) else None
    drivers = diagnosis.rows("drivers", Where({"sku": sku}), sort="-share", limit=12)
    reasons = diagnosis.sums("lines", ["value"], Where({"sku": sku, "returned": 1}), by=["counted", "reason", "owner"])
    reasons.sort(key=lambda r: (-int(r["counted"] or 0), -int(r["rows"] or 0)))
    return site.render(
        request,
        "product.html",
        product=found[0],
        brand=brands(diagnosis, found[0]) if found[0]["named"] else None,
        little=LITTLE,
        peers=diagnosis.rows("peers", Where({"sku": sku}), limit=20),
        drivers=[d for d in drivers if d["share"] is None or d["share"] >= LEAST_SHARE],
        reasons=reasons,
        returns=set_aside(diagnosis, {"sku": sku}),
        changes=changes,
        recorded=pending(recorded, changes),
        can_record=site.sources.status().ledger and "/v1/changes" in site.sources.endpoints,
        done=_day(request.query_params.get("recorded")),
        withdrawn=_day(request.query_params.get("withdrawn")),
        **around(diagnosis, site.texts),
    )


def _day(text: str | None) -> str | None:
    try:
        return date.fromisoformat(text or "").isoformat()
    except ValueError:
        return None


def pending(recorded: list[dict[str, Any]] | None, changes: list[Row]) -> list[dict[str, Any]] | None:
    """Changes that were recorded and that the diagnosis does not know yet; None: the ledger does not answer."""
    if recorded is None:
        return None
    known = {_same(c) for c in changes}
    return [r for r in recorded if _same(r) not in known]


def _same(change: Mapping[str, Any]) -> tuple[str, Any]:
    """By what a change in the ledger is known again in a diagnosis."""
    return str(change["changed_at"])[:10], change["what"]
