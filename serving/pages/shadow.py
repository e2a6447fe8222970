"""Shadow mode, afterwards: what the packing station would have said and what it would have been worth.

Read from the ledger. Nothing was shown and nothing is measured: the worth is what the models expect.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from features.vocabulary import amount_digits
from serving.diagnosis import QueryError
from serving.guard import Refused, later
from serving.ledger.base import LedgerError
from serving.pages.data import refused, unanswerable, written
from serving.pages.reading import money, whole_number
from serving.pages.site import of
from serving.pages.texts import Texts

SHOWN = 20
"""Parcels on the page, those worth most."""
ROWS = 50
"""Parcels of a page of all of them; the CSV has all at once."""


@dataclass(frozen=True)
class Withheld:
    """What would have been said of a parcel; `action` is None where it was nothing."""

    parcel_id: str
    decided_at: str
    action: str | None
    net_benefit: float | None


@dataclass(frozen=True)
class Shadow:
    """What is known of the shadow.

    Attributes:
        until: the first day on which the station shows what it says.
        over: that day has come.
        parcels: the parcels that were scanned before, each once.
        currency: of the worth.
        simulated: the shop is.
    """

    until: date
    over: bool
    parcels: list[Withheld]
    currency: str
    simulated: bool


FORGETS = ("erasure", "retention")
"""Kinds of records with which earlier ones have lost what they said."""
KINDS = ("decision", *FORGETS)
"""Kinds of records that `Reader` has to be given."""


class Reader:
    """Reads decisions that were not shown; each record of the ledger once, until one says that some are forgotten.

    Args:
        records: the ledger's records of `KINDS` after a number, in order; each has `seq`, `kind` and `body`.
    """

    def __init__(self, records: Callable[[int], Iterable[Any]]) -> None:
        self._records = records
        self._seq = 0
        self._stale = False
        self._parcels: dict[str, Withheld] = {}
        self._lock = threading.Lock()

    def read(self) -> list[Withheld]:
        """Of each parcel the first decision that had something to say, else the first.

        Nothing is left unshown once the shadow has ended, so no record is too late; and none may end the reading, as
        what a journal held back is delivered after what was recorded later.

        Raises:
            serving.ledger.LedgerError: the ledger does not answer.
        """
        with self._lock:
            self._go_on()
            if self._stale:  # which of those known are meant, no record says: customers stand in them as pseudonyms
                self._seq, self._stale = 0, False
                self._parcels.clear()
                self._go_on()
            return list(self._parcels.values())

    def _go_on(self) -> None:
        """Read what is new. From the start on, what is forgotten is so already."""
        anew = self._seq == 0
        for record in self._records(self._seq):
            self._seq = record.seq
            self._stale |= record.kind in FORGETS and not anew
            body = record.body
            if record.kind != "decision" or body is None or body.get("shown", True):
                continue
            told = Withheld(body["parcel_id"], body["decided_at"], body["action"], body["net_benefit"])
            earlier = self._parcels.get(told.parcel_id)
            if earlier is None or (earlier.action is None and told.action is not None):
                self._parcels[told.parcel_id] = told


def page(request: Request) -> Response:
    """What would have been said, once the shadow is over."""
    site = of(request)
    try:
        shadow = site.sources.shadow()
    except LedgerError:
        return site.render(request, "shadow.html", shadow=None, problem=True, status=503)
    told = [] if shadow is None else chosen(shadow, {"told": "1"})
    kinds: dict[str, list[Withheld]] = {}
    for parcel in told:
        kinds.setdefault(str(parcel.action), []).append(parcel)
    actions = [(key, len(of_it), worth(of_it)) for key, of_it in kinds.items()]
    actions.sort(key=lambda a: (-a[2], a[0]))
    return site.render(
        request,
        "shadow.html",
        shadow=shadow,
        problem=False,
        told=told,
        most=told[:SHOWN],
        actions=actions,
        worth=worth(told),
        money=_money(shadow, site.texts),
    )


def parcels(request: Request) -> Response:
    """The parcels that a number of the page is made of, by the page."""
    site = of(request)
    try:
        shadow = site.sources.shadow()
        asked = filters(request.query_params)
        found = [] if shadow is None else chosen(shadow, asked)
    except LedgerError:
        return site.render(request, "shadow.html", shadow=None, problem=True, status=503)
    except QueryError as error:
        return site.render(request, "question.html", status=400, error=error)
    offset = whole_number(request.query_params.get("offset"))
    return site.render(
        request,
        "shadow_parcels.html",
        shadow=shadow,
        asked=asked,
        rows=found[offset : offset + ROWS],
        total=len(found),
        offset=offset,
        shown=ROWS,
        worth=worth(found),
        money=_money(shadow, site.texts),
    )


def _money(shadow: Shadow | None, texts: Texts) -> Callable[[float], str]:
    """How amounts are written, in the shadow's currency."""
    currency = "" if shadow is None else shadow.currency
    return lambda amount: money(amount, {"currency": currency}, texts, amount_digits(currency))


def table(request: Request) -> Response:
    """The same as CSV, whole."""
    try:
        shadow = of(request).sources.shadow()
        rows = [] if shadow is None else chosen(shadow, filters(request.query_params))
    except LedgerError:
        return refused(Refused(503, "The ledger's database does not answer; ask again", headers=later(2)))
    except QueryError as error:
        return unanswerable(error)
    head = ("parcel_id", "decided_at", "action", "expected_net_benefit")
    content = written([head, *((p.parcel_id, p.decided_at, p.action, p.net_benefit) for p in rows)])
    headers = {"Content-Disposition": 'attachment; filename="shadow.csv"'}
    return Response(content, media_type="text/csv; charset=utf-8", headers=headers)


def filters(query: Mapping[str, str]) -> dict[str, str]:
    """Which parcels an address asks for: `action`, the key of what was to be done, and `told`, 1 or 0, whether there
    was something. Raises QueryError."""
    asked = {name: value for name, value in query.items() if name not in ("offset", "limit")}
    for name, value in asked.items():
        if name not in ("action", "told"):
            raise QueryError(name, "is no column", value, "action, told, offset")
        if name == "told" and value not in ("0", "1"):
            raise QueryError(name, "is neither", value, "0 or 1")
    return asked


def chosen(shadow: Shadow, asked: Mapping[str, str]) -> list[Withheld]:
    """The parcels asked for, those worth most first; none before the shadow is over."""
    found = [
        p
        for p in (shadow.parcels if shadow.over else ())
        if asked.get("action", p.action) == p.action and asked.get("told") in (None, "0" if p.action is None else "1")
    ]
    return sorted(found, key=lambda p: (-(p.net_benefit or 0.0), p.parcel_id))


def worth(parcels: Iterable[Withheld]) -> float:
    """What doing as was to be said was expected to be worth, in all."""
    return sum(p.net_benefit or 0.0 for p in parcels if p.action is not None)
