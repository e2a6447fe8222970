import asyncio
import csv
import html
import io
import re
from collections.abc import Iterator
from datetime import date
from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from serving.ledger.base import UnavailableError
from serving.pages import Site, Sources, routes
from serving.pages.shadow import Reader, Shadow, Withheld


def record(
    seq: int, parcel: str, action: str | None, *, shown: bool = False, day: int = 1, kind: str = "decision"
) -> Any:
    body = {"parcel_id": parcel, "decided_at": "2026-02-01T00:00:00Z", "action": action, "net_benefit": 1.0}
    at = f"2026-02-{day:02}T00:00:00.000000Z"
    return SimpleNamespace(seq=seq, kind=kind, recorded_at=at, body=body | {"shown": shown})


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, "add_fill"]), st.booleans(), st.integers(1, 28))),
    st.integers(0, 20),
)
def test_each_parcel_counts_once_however_the_ledger_grows(told: list[tuple[str, Any, bool, int]], cut: int) -> None:
    told.sort(key=lambda x: x[3])
    ledger = [record(i + 1, p, a, shown=s, day=d) for i, (p, a, s, d) in enumerate(told)]
    seen = ledger[:cut]
    reader = Reader(lambda after: [r for r in seen if r.seq > after])
    reader.read()
    seen = ledger
    found = {w.parcel_id: w for w in reader.read()}
    hidden = [(p, a) for p, a, shown, _ in told if not shown]
    assert found.keys() == {p for p, _ in hidden}
    for parcel, withheld in found.items():
        assert (withheld.action is None) == all(a is None for p, a in hidden if p == parcel)


def test_what_is_gone_or_is_no_decision_does_not_count() -> None:
    gone = record(1, "gone", "add_fill")
    gone.body = None
    assert Reader(lambda after: [gone, record(2, "told", "add_fill", kind="outcome")]).read() == []


def test_what_a_journal_held_back_until_the_shadow_was_over_counts() -> None:
    after = record(2, "shown", "add_fill", shown=True)
    after.recorded_at = "2026-03-01T00:00:01.000000Z"
    ledger = [record(1, "first", "add_fill"), after, record(3, "held back", "add_fill", day=28)]
    assert [w.parcel_id for w in Reader(lambda after: ledger).read()] == ["first", "held back"]


def test_what_is_forgotten_is_not_told_even_where_the_ledger_fails_half_way() -> None:
    ledger = [record(1, "gone", "add_fill"), record(2, "kept", "add_fill")]

    def records(after: int) -> Iterator[Any]:
        for r in ledger:
            if r is None:
                raise UnavailableError("away")
            if r.seq > after:
                yield r

    reader = Reader(records)
    assert len(reader.read()) == 2
    ledger[0].body = None
    ledger += [record(3, "", None, kind="erasure"), None]
    with pytest.raises(UnavailableError):
        reader.read()
    ledger.pop()
    assert [w.parcel_id for w in reader.read()] == ["kept"]


SHOWN: list[Any] = [None]
APP = Starlette(routes=routes(Site(Sources(shadow=lambda: SHOWN[0]()))))


def page(shadow: Any, path: str = "/pack/shadow") -> httpx.Response:
    SHOWN[0] = shadow

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://test") as http:
            return await http.get(path)

    return asyncio.run(ask())


def test_afterwards_one_page_says_what_it_would_have_said_and_been_worth() -> None:
    parcels = [Withheld(f"P{i}", "2026-02-01T00:00:00Z", "add_fill" if i % 3 else None, 0.5 * i) for i in range(30)]
    parcels.append(Withheld("<b>=1+1</b>", "2026-02-01T00:00:00Z", "package:<i>", 100.0))
    shadow = Shadow(date(2026, 3, 1), True, parcels, "EUR", True)
    text = page(lambda: shadow).text
    worth = 100 + sum(0.5 * i for i in range(30) if i % 3)
    for said in ("Until 2026-03-01", ">31<", ">10<", ">21<", f"EUR {worth:,.2f}", "Simulated shop", "not measured"):
        assert said in text
    assert "&lt;b&gt;=1+1&lt;/b&gt;" in text and "<b>=1" not in text and "<i>" not in text
    assert text.index("add_fill") < text.index("package:")  # 217.50 EUR in all before 100
    table = page(lambda: shadow, "/pack/shadow.csv").text.splitlines()
    assert len(table) == 32 and table[0] == "parcel_id,decided_at,action,expected_net_benefit"


@given(
    st.lists(st.tuples(st.sampled_from([None, "add_fill", "package:<i>&"]), st.floats(0, 99)), min_size=1, max_size=80)
)
@settings(max_examples=15, deadline=None)
def test_every_number_leads_to_its_parcels_and_the_csv_is_the_table(told: list[tuple[Any, float]]) -> None:
    parcels = [Withheld(f"P{i}", "2026-02-01T00:00:00Z", a, n if a else None) for i, (a, n) in enumerate(told)]
    shadow = Shadow(date(2026, 3, 1), True, parcels, "EUR", False)
    text = page(lambda: shadow).text
    found = re.findall(r'<a class="n" href="([^"]*)">([^<]*)</a>', text)
    assert len(found) == 4 + 2 * len({a for a, _ in told if a})
    for href, shown in found:
        at = urlsplit(urljoin("/pack/shadow", html.unescape(href)))
        rows: list[list[str]] = []
        following: str | None = f"{at.path}?{at.query}"
        while following:
            table = page(lambda: shadow, following).text
            cells = [re.findall(r"<td[^>]*>(.*?)</td>", r) for r in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
            rows += [[html.unescape(re.sub("<[^>]*>", "", c)).strip() for c in r] for r in cells if r]
            after = re.findall(r'rel="next" href="([^"]*)"', table)
            following = urljoin(at.path, html.unescape(after[0])) if after else None
        answer = page(lambda: shadow, f"/pack/shadow.csv?{at.query}").text
        lines = list(csv.DictReader(io.StringIO(answer, newline="")))
        assert [x["parcel_id"] for x in lines] == [r[0] for r in rows]
        assert [x["action"] or "–" for x in lines] == [r[2] for r in rows]
        worth = sum(float(x["expected_net_benefit"] or 0) for x in lines)
        assert shown in (f"{len(lines):,}", f"EUR {worth:,.2f}")


def test_amounts_without_smaller_coins_have_no_decimals() -> None:
    shadow = Shadow(date(2026, 3, 1), True, [Withheld("P1", "2026-02-01T00:00:00Z", "add_fill", 300.4)], "IDR", False)
    for path, times in (("/pack/shadow", 3), ("/pack/shadow/parcels", 2)):
        text = page(lambda: shadow, path).text
        assert text.count("IDR 300<") == times and "300." not in text


def test_what_no_parcel_can_be_asked_for_is_refused() -> None:
    shadow = Shadow(date(2026, 3, 1), True, [], "EUR", False)
    for query in ("?told=often", "?colour=red"):
        assert page(lambda: shadow, f"/pack/shadow/parcels{query}").status_code == 400
        refused = page(lambda: shadow, f"/pack/shadow.csv{query}")
        assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
    assert "No row is like that." in page(lambda: shadow, "/pack/shadow/parcels?action=x").text


def test_before_the_day_nothing_is_told() -> None:
    shadow = Shadow(date(2199, 1, 1), False, [Withheld("P1", "2026-02-01T00:00:00Z", "add_fill", 9.5)], "EUR", False)
    text = page(lambda: shadow).text
    assert "Parcels scanned so far: 1." in text and "add_fill" not in text and "9.5" not in text
    assert len(page(lambda: shadow, "/pack/shadow.csv").text.splitlines()) == 1
    assert "P1" not in page(lambda: shadow, "/pack/shadow/parcels").text


def test_a_ledger_that_does_not_answer_is_said_so() -> None:
    def away() -> None:
        raise UnavailableError("away")

    answer = page(away)
    assert answer.status_code == 503 and "does not answer now" in answer.text


def test_where_there_is_no_shadow_the_page_says_how_to_have_one() -> None:
    assert "shadow_until" in page(lambda: None).text
