"""What the pages that read a diagnosis share: none without one, errors as pages, the words around figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.diagnosis import Diagnosis, QueryError, ReplacedError, Row, ratio_digits, shop_day
from serving.pages import charts
from serving.pages.site import of
from serving.pages.texts import Texts

TONES: dict[str, str] = {
    "worse": "bad",
    "under": "bad",
    "more": "bad",
    "fail": "bad",
    "over": "warn",
    "as expected": "good",
    "better": "good",
    "fits": "good",
    "as predicted": "good",
    "fewer": "good",
    "pass": "good",
}
"""Verdict -> colour of its box; all others are `unsure`."""
SIGNS: dict[str, str] = {"bad": "▲", "warn": "◆", "good": "●", "unsure": "?"}

Context = dict[str, Any]


def read(answer: Callable[[Request, Diagnosis], Response]) -> Callable[[Request], Response]:
    """A page that needs a diagnosis; where there is none, a page that says so and what to do."""

    def page(request: Request) -> Response:
        site = of(request)
        found = site.sources.diagnosis()
        if found is None:
            return site.render(request, "nothing.html", problem=site.sources.diagnosis_problem())
        try:
            return answer(request, found)
        except QueryError as error:
            return site.render(request, "question.html", status=400, error=error, **around(found, site.texts))
        except ReplacedError:
            return site.render(request, "replaced.html", status=503)

    return page


def around(diagnosis: Diagnosis, texts: Texts) -> Context:
    """What every template of a diagnosis names: what it is of, and how figures are shown."""
    document = diagnosis.document
    return {
        "of": {
            "dataset": document.get("dataset") or "",
            "as_of": shop_day(document, "as_of", last=True),
            "since": shop_day(document, "since"),
            "simulated": bool(document.get("simulated")),
            "confidence": float(document.get("confidence") or 0.9),
        },
        "tables": diagnosis.tables,
        "unknown": ", ".join(texts.word("compared", name) for name in document.get("unknown") or ()),
        "why_none_late": (document.get("late") or {}).get("why"),
        "tone": lambda verdict: TONES.get(verdict, "unsure"),
        "sign": lambda verdict: SIGNS[TONES.get(verdict, "unsure")],
        "money": lambda value: money(value, document, texts),
        "ratio": lambda value: ratio_of(value, texts),
        "times": lambda value: "–" if value is None else texts("figure.times", ratio=ratio_of(value, texts)),
        "ratio_bar": lambda row, before="": ratio_bar(row, texts, before),
        "share_bar": lambda row, top: share_bar(row, top, texts),
        "goes_by": goes_by,
        "rate": lambda value: rate_of(value, texts),
        "advice": lambda row: advice(row, texts),
        "compared": lambda row: compared(row, texts),
        "sentence": sentence,
    }


def money(value: float | None, document: Mapping[str, Any], texts: Texts, digits: int = 0) -> str:
    """An amount in the document's currency."""
    if value is None:
        return "–"
    return texts("figure.money", amount=texts.number(value, digits), currency=document.get("currency") or "").strip()


def ratio_bar(row: Row, texts: Texts, before: str = "") -> Any:
    """The interval of a row's ratio as a figure; `before` stands in front of its columns' names."""
    value, low, high = (row.get(f"{before}{n}") for n in ("ratio", "low", "high"))
    if not isinstance(value, float) or not isinstance(low, float) or not isinstance(high, float):
        return charts.ratio(None, None, None, texts("figure.no_ratio"))
    said = texts(
        "figure.ratio",
        ratio=ratio_of(value, texts),
        low=ratio_of(low, texts),
        high=ratio_of(high, texts),
    )
    return charts.ratio(value, low, high, said)


def ratio_of(value: float | None, texts: Texts) -> str:
    """A ratio to the expected, or an end of its interval."""
    return texts.number(value, 0 if value is None else ratio_digits(value))


def goes_by(row: Row) -> str:
    """What stands before the names of the columns that a product's verdict goes by.

    "reason_" where it is named for one reason of return, and all reasons together do not say it; "" else.
    """
    low, of_reason = row.get("low"), row.get("reason_low")
    if row.get("verdict") != "worse" or not isinstance(low, float) or not isinstance(of_reason, float):
        return ""
    return "reason_" if low <= 1 and of_reason > low else ""


def share_bar(row: Row, top: float, texts: Texts) -> Any:
    """The interval of a row's rate, against elsewhere's."""
    rate, low, high, mark = (row.get(n) for n in ("rate", "low", "high", "elsewhere"))
    if not isinstance(rate, float) or not isinstance(low, float) or not isinstance(high, float):
        return ""
    mark = mark if isinstance(mark, float) else None
    hours = row.get("measure") == "backlog_hours"
    said = (("rate", rate), ("low", low), ("high", high), ("elsewhere", mark))
    shown = {n: texts.number(v, 1) if hours else rate_of(v, texts) for n, v in said}
    return charts.share(rate, low, high, mark, top, texts("figure.share", **shown))


def rate_of(value: float | None, texts: Texts) -> str:
    """A share of parcels as percent, a small one with two digits behind the point, so that their ratio can be read."""
    return texts.percent(value, 1 if value is None or value >= 0.1 else 2)


def advice(row: Row, texts: Texts) -> str:
    """What to change, from the key of a text and its arguments, "" if nothing is known."""
    key = row.get("advice")
    if not key:
        return ""
    try:
        given = json.loads(str(row.get("arguments") or "{}"))
    except ValueError:
        given = {}
    text = texts.all.get(f"advice.{key}")
    if text is None or not isinstance(given, dict):
        return texts.word("advice", key)
    return text.format_map(
        _Lenient({k: v if isinstance(v, str) else texts.number(v, int(v % 1 > 0)) for k, v in given.items()})
    )


def compared(row: Row, texts: Texts) -> str:
    """A term of a listing here and on comparable pages."""
    here, peers = (float(v) if isinstance(v := row[n], int | float) else None for n in ("value", "peers_value"))
    if str(row["term"]).startswith("has_"):
        shown = "–" if here is None else texts("figure.yes") if here else texts("figure.no")
        return texts("product.has", here=shown, peers=texts.percent(peers, 0))
    digits = [0 if v is None or v >= 20 or v == int(v) else 1 for v in (here, peers)]
    return texts("product.here", here=texts.number(here, digits[0]), peers=texts.number(peers, digits[1]))


def sentence(words: str | None) -> str:
    """Words of the batch as a sentence."""
    text = (words or "").strip()
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


class _Lenient(dict[str, str]):
    """What a batch did not say is left out of the sentence."""

    def __missing__(self, key: str) -> str:
        return "…"


def whole(query: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """What an address must name, for a page about one thing. Raises QueryError."""
    for name in names:
        if name not in query:
            raise QueryError(name, "is missing", None, f"an address with {', '.join(names)}")
    return {name: query[name] for name in names}


def whole_number(text: str | None) -> int:
    """A number of an address, 0 where it is none or too large to be meant."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else 0
