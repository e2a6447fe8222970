"""A diagnosis over HTTP, asked of the pages' application itself: JSON, CSV and what every page links to."""

import asyncio
import csv
import html
import io
import json
import re
import unicodedata
import zipfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import diagnoses
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from starlette.applications import Starlette

from features.definitions import FEATURES
from serving.diagnosis import TABLES, Diagnosis
from serving.pages import Site, Sources, Status, routes
from serving.pages.brief import brief
from serving.pages.data import DATA, written
from serving.pages.openapi import described
from serving.pages.reading import share_bar
from serving.pages.texts import Texts
from serving.pages.todo import named, todo

SHOP = diagnoses.shop()
API = "/v1/diagnosis"


class Http:
    """Asks an application, without a network."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def get(self, url: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
                return await http.get(url, **options)

        return asyncio.run(ask())


def client(directory: Path | None, **sources: Any) -> Http:
    """The pages of a diagnosis, without the service around them."""
    found = None if directory is None else Diagnosis.open(directory)
    endpoints: dict[str, str] = {}
    site = Site(Sources(sources.pop("status", Status), endpoints, diagnosis=lambda: found, **sources))
    made = routes(site)
    endpoints |= {route.path: "GET" for route in made}
    return Http(Starlette(routes=made))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Http:
    return client(diagnoses.write(tmp_path_factory.mktemp("diagnosis")))


def restored(text: str) -> str:
    """A field of our CSV as it was."""
    return text[1:] if text.startswith("'") else text


class TestJson:
    def test_the_summary_names_every_table_with_its_columns(self, shop: Http) -> None:
        said = shop.get(API).json()
        assert (said["dataset"], said["as_of"], said["simulated"]) == ("corner-shop", "2026-11-09T00:00:00Z", True)
        assert said["tables"].keys() == TABLES.keys()
        for name, table in said["tables"].items():
            assert table["rows"] == len(SHOP[name])
            assert set(TABLES[name].columns) <= table["columns"].keys()
            assert shop.get(table["url"]).json()["total"] == table["rows"]

    def test_pages_put_together_are_the_table(self, shop: Http) -> None:
        url: str | None = f"{API}/parcels?carrier=swift&limit=37"
        rows: list[dict[str, Any]] = []
        while url:
            said = shop.get(url).json()
            rows += said["rows"]
            url = said["next"]
        expected = [p for p in SHOP["parcels"] if p["carrier"] == "swift"]
        assert [r["parcel_id"] for r in rows] == [p["parcel_id"] for p in expected]
        assert said["total"] == len(expected)
        assert {k: rows[0][k] for k in expected[0]} == expected[0]

    def test_filters_sort_and_absent_values(self, shop: Http) -> None:
        said = shop.get(f"{API}/products?named=true&sort=-worth&limit=2").json()["rows"]
        best = sorted((p for p in SHOP["products"] if p["named"]), key=lambda p: -p["worth"])[:2]
        assert [r["sku"] for r in said] == [p["sku"] for p in best]
        assert shop.get(f"{API}/parcels?null=late").json()["total"] == sum(p["late"] is None for p in SHOP["parcels"])
        known = shop.get(f"{API}/parcels?known=late&decided_from=2026-08-10&decided_before=2026-08-17").json()["total"]
        assert known == sum(p["late"] is not None and p["week"] == "2026-08-10" for p in SHOP["parcels"])

    @pytest.mark.parametrize(
        ("asked", "field", "allowed"),
        [
            ("parcels?colour=red", "colour", "carrier"),
            ("parcels?late=often", "late", "a number"),
            ("parcels?limit=1001", "limit", "1 to 1000"),
            ("parcels?limit=-1", "limit", "1 to 1000"),
            ("parcels?offset=x", "offset", "0 to"),
            ("parcels?sort=-colour", "sort", "parcel_id"),
            ("parcels?late=1&late=0", "late", "once"),
            ("parcels?decided_from=yesterday", "decided_from", "2026-03-02"),
            ("carriers?decided_from=2026-01-01", "decided_from", "carrier"),
            ("parcels?null=colour", "colour", "carrier"),
        ],
    )
    @pytest.mark.parametrize("ending", ["", ".csv"])
    def test_what_cannot_be_answered_is_refused_by_name(
        self, shop: Http, asked: str, field: str, allowed: str, ending: str
    ) -> None:
        table, _, query = asked.partition("?")
        answer = shop.get(f"{API}/{table}{ending}?{query}")
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/problem+json"
        (fault,) = answer.json()["errors"]
        assert fault["field"] == field
        assert allowed in fault["allowed"]

    def test_without_a_diagnosis_it_says_how_to_get_one(self) -> None:
        http = client(None, diagnosis_problem=lambda: "it is damaged")
        for path in (API, f"{API}/parcels", f"{API}/parcels.csv", "/carriers/meeting.zip?carrier=x"):
            answer = http.get(path)
            assert answer.status_code == 503
            assert "it is damaged" in answer.json()["detail"]
            assert "doorstep diagnose" in answer.json()["detail"]


class TestDocumented:
    @pytest.mark.parametrize("made", [diagnoses.write, diagnoses.empty, diagnoses.one_sided])
    def test_every_answer_is_what_the_document_says(self, tmp_path: Path, made: Any) -> None:
        http = client(made(tmp_path))
        paths, schemas = described("#/components/schemas/Problem")
        whole = {"components": {"schemas": {**schemas, "Problem": {"required": ["type", "title", "status", "detail"]}}}}
        assert paths.keys() == DATA.keys()
        for path, operations in paths.items():
            responses = operations["get"]["responses"]
            if path.endswith(".csv"):
                assert "text/csv" in http.get(path).headers["content-type"]
                continue
            said = http.get(f"{path}?limit=200" if path != API else path).json()
            check = Draft202012Validator({**whole, **responses["200"]["content"]["application/json"]["schema"]})
            assert list(check.iter_errors(said)) == []
            if path == API:
                continue
            for row in said["rows"][:1]:
                assert not check.is_valid({**said, "rows": [{k: v for k, v in row.items() if k != next(iter(row))}]})
                assert not check.is_valid({**said, "rows": [{**row, next(iter(row)): ["a list"]}]})
            refused = http.get(f"{path}?nobody=1")
            problem = responses["400"]["content"]["application/problem+json"]["schema"]
            assert refused.status_code == 400
            assert Draft202012Validator({**whole, **problem}).is_valid(refused.json())

    def test_what_may_be_asked_is_answered(self, shop: Http) -> None:
        examples = {"integer": "1", "number": "0.5", "string": "2026-08-10"}
        for path, operations in described("")[0].items():
            for parameter in operations["get"].get("parameters", []):
                schema = parameter["schema"]
                if "pattern" in schema:
                    assert re.match(schema["pattern"], "2026-08-10T00:00:00Z")
                values = schema.get("enum") or schema.get("items", {}).get("enum") or [examples.get(schema.get("type"))]
                for value in (values[0], values[-1]):
                    answer = shop.get(path, params={parameter["name"]: value})
                    assert answer.status_code == 200, (path, parameter["name"], value)

    def test_the_service_has_it_in_its_document(self, bare: Any) -> None:
        document = bare.http.get("/docs.json").json()
        assert document["paths"].keys() >= DATA.keys()
        named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document["paths"])))
        assert named <= document["components"]["schemas"].keys()
        assert document["components"]["schemas"]["DiagnosisProducts"]["properties"].keys() >= {"sku", "worth", "from"}


class TestCsv:
    @pytest.mark.parametrize("query", ["", "?sku=%3D1%2B1&returned=1", "?null=reason&returned=1&sort=-value"])
    def test_it_is_the_table_under_the_same_filter(self, shop: Http, query: str) -> None:
        answer = shop.get(f"{API}/lines.csv{query}")
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["content-disposition"] == 'attachment; filename="lines.csv"'
        rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
        told: list[dict[str, Any]] = []
        url: str | None = f"{API}/lines{query}{'&' if query else '?'}limit=1000"
        while url:
            said = shop.get(url).json()
            told += said["rows"]
            url = said["next"]
        assert len(rows) == len(told)
        assert [{c: restored(v) for c, v in row.items()} for row in rows] == [
            {c: "" if v is None else str(v) for c, v in row.items()} for row in told
        ]

    def test_no_text_can_be_a_formula_and_all_of_it_can_be_restored(self) -> None:
        values = [
            "=1+1",
            "+1",
            "-1",
            "@x",
            "'=1",
            "'",
            "plain",
            "a\nb",
            '"quoted",',
            "\t=1",
            "\r=1",
            -1,
            -1.5,
            None,
            "",
        ]
        ((*read,),) = csv.reader(io.StringIO(written([values]).decode(), newline=""))
        assert not any(v.startswith(("=", "+", "@", "\t", "\r")) for v in read)
        assert [restored(v) for v in read] == ["" if v is None else str(v) for v in values]
        assert read[values.index(-1)] == "-1"


def links(http: Http, path: str) -> Iterator[tuple[str, str]]:
    """Links to rows on a page, each with the number it stands on."""
    text = http.get(path).text
    for href, shown in re.findall(r'<a class="n" href="([^"]*)">([^<]*)</a>', text):
        yield urljoin(path, html.unescape(href)), shown


class TestPages:
    PATHS = (
        "/",
        "/listings",
        "/listings/product?sku=SKU-03",
        "/carriers",
        "/carriers?target=damaged",
        "/carriers/carrier?carrier=swift",
        "/warehouse",
        "/warehouse?measure=backlog_hours",
        "/warehouse?measure=label_poor",
        "/warehouse?measure=documents_missing",
    )

    @pytest.mark.parametrize("path", PATHS)
    def test_a_number_is_the_count_of_the_rows_it_links_to(self, shop: Http, path: str) -> None:
        found = list(links(shop, path))
        assert found
        for href, shown in found:
            at = urlsplit(href)
            table = at.path.removeprefix("/rows/")
            said = shop.get(f"{API}/{table}?{at.query}&limit=1000")
            assert said.status_code == 200, href
            rows, asked = said.json()["rows"], dict(parse_qsl(at.query))
            if "sort" in asked:  # a column added up, the largest first
                value = sum(r[asked["sort"].removeprefix("-")] for r in rows)
                assert said.json()["total"] == len(rows) and rows, href
                assert shown in (f"{value:,.1f}", f"{value:,.0f}", f"EUR {value:,.0f}"), href
            elif table in ("parcels", "lines", "products", "corridors", "readiness"):
                assert f"{said.json()['total']:,}" == shown, href
            else:  # a figure of rows that hold it
                assert rows or shown == "0", href

    def test_no_figure_of_the_tables_stands_without_its_rows(self, shop: Http) -> None:
        for path in ("/warehouse?measure=backlog_hours", "/warehouse?measure=label_poor", "/carriers", "/listings"):
            linked = [href for href, _ in links(shop, path)]
            cells = re.findall(r'<td class="figure">(.*?)</td>', shop.get(path).text)
            counts = [c for c in cells if re.fullmatch(r"\s*[\d,]+\s*", c)]
            assert linked and counts == [], path
        assert "known=worth" in " ".join(href for href, _ in links(shop, "/"))

    def test_late_parcels_and_returns_add_up(self, shop: Http) -> None:
        text = re.sub(r"<[^>]*>", " ", shop.get("/listings").text)
        (line,) = re.findall(r"([\d,]+)\s+returns\s+=\s+(.*?)\n", text)
        assert int(line[0]) == sum(map(int, re.findall(r"\d+", line[1]))) == sum(x["returned"] for x in SHOP["lines"])
        late = [p for p in SHOP["parcels"] if p["late"]]
        shown = {s for href, s in links(shop, "/carriers") if "whose=" in href and "carrier=" not in href}
        assert sum(map(int, shown)) == len(late)

    @pytest.mark.parametrize("make", [diagnoses.empty, diagnoses.one_sided, diagnoses.write])
    def test_every_link_of_every_page_leads_to_a_page(self, tmp_path: Path, make: Any) -> None:
        http = client(make(tmp_path))
        seen, todo = {"/docs.json"}, ["/"]
        while todo and len(seen) < 150:
            path = todo.pop(0)
            if path in seen:
                continue
            seen.add(path)
            answer = http.get(path)
            assert answer.status_code == 200, path
            if not answer.headers["content-type"].startswith("text/html"):
                continue
            assert answer.text.count("<h1") == 1
            assert "<script>" not in answer.text and "<b>Fast" not in answer.text
            for href in re.findall(r'href="([^"]*)"', answer.text):
                at = urlsplit(urljoin(path, html.unescape(href)))
                asked = "&".join(f"{k}" for k, _ in parse_qsl(at.query, keep_blank_values=True))
                if (at.path, asked) not in seen:  # a page of each kind is enough
                    seen.add((at.path, asked))  # type: ignore[arg-type]
                    todo.append(f"{at.path}?{at.query}" if at.query else at.path)

    def test_an_empty_diagnosis_says_why_on_every_page(self, tmp_path: Path) -> None:
        http = client(diagnoses.empty(tmp_path))
        for path in ("/", "/listings", "/carriers", "/warehouse", "/rows/parcels"):
            assert diagnoses.NO_DATA in http.get(path).text, path

    def test_names_are_text(self, shop: Http) -> None:
        text = shop.get("/carriers/carrier", params={"carrier": diagnoses.MARKUP}).text
        assert html.escape(diagnoses.MARKUP, quote=False).split("<")[0][:10] in text
        assert "<script>alert" not in text
        assert re.search(rf"<bdi[^>]*>{diagnoses.RIGHT_TO_LEFT}</bdi>", shop.get("/listings").text)
        assert diagnoses.LONG.strip() in shop.get("/listings/product", params={"sku": diagnoses.LONG}).text

    def test_what_is_not_there_is_said_to_be_not_there(self, shop: Http) -> None:
        answer = shop.get("/listings/product?sku=sku-0")
        assert answer.status_code == 404
        assert "SKU-01" in answer.text
        assert shop.get("/listings/product").status_code == 400
        assert shop.get("/carriers/carrier?carrier=nobody").status_code == 404
        assert shop.get("/rows/parcels?late=often").status_code == 400
        assert shop.get("/carriers/meeting?carrier=nobody").status_code == 400


class TestMeetingPack:
    def test_the_command_gives_the_bytes_of_the_page(self, shop: Http, tmp_path: Path) -> None:
        from click.testing import CliRunner

        from training.cli import main

        made = diagnoses.write(tmp_path / "diagnosis")
        for carrier in ("swift", diagnoses.MARKUP):
            out = tmp_path / carrier[:5].strip("<>")
            for to in (out, out / "pack.zip"):
                said = CliRunner().invoke(main, ["meeting-pack", str(made), "--carrier", carrier, "--out", str(to)])
                assert said.exit_code == 0, said.output
            archive = shop.get("/carriers/meeting.zip", params={"carrier": carrier}).content
            assert (out / "pack.zip").read_bytes() == archive
            with zipfile.ZipFile(io.BytesIO(archive)) as files:
                for name in files.namelist():
                    assert files.read(name) == (out / name).read_bytes()
                assert files.namelist() == ["meeting.html", "parcels.csv", "definition.txt"]
            page = shop.get("/carriers/meeting", params={"carrier": carrier})
            assert page.content == (out / "meeting.html").read_bytes()
            assert "unsafe" not in page.headers["content-security-policy"]
        said = CliRunner().invoke(
            main, ["meeting-pack", str(made), "--carrier", "nobody", "--out", str(tmp_path / "x")]
        )
        assert said.exit_code == 2 and "swift" in said.output

    def test_its_parcels_are_all_that_failed_and_what_is_claimed_adds_up(self, shop: Http) -> None:
        with zipfile.ZipFile(io.BytesIO(shop.get("/carriers/meeting.zip?carrier=swift").content)) as files:
            rows = list(csv.DictReader(io.StringIO(files.read("parcels.csv").decode(), newline="")))
            definition = files.read("definition.txt").decode()
        targets = ("late", "failed_attempt", "damaged", "undelivered")
        mine = [p for p in SHOP["parcels"] if p["carrier"] == "swift"]
        assert sorted(r["parcel_id"] for r in rows) == sorted(
            p["parcel_id"] for p in mine if any(p[t] == 1 for t in targets)
        )
        late = [r for r in rows if r["late"] == "1"]
        claimed = [r for r in late if r["claimed"] == "1"]
        assert len(claimed) == sum(p["whose"] == "carrier" for p in mine)
        assert all(bool(r["excluded_because"]) == (r["claimed"] != "1") for r in rows)
        for whose in ("ours", "cannot tell"):
            assert f"- {sum(p['whose'] == whose for p in mine)} late parcels" in definition


def _counts_of(week: str) -> str:
    """How many parcels of a week failed, as a brief says it."""
    monday = date.fromisocalendar(int(week[:4]), int(week[-2:]), 1).isoformat()
    names = {
        "late": "Late",
        "failed_attempt": "First attempt failed",
        "damaged": "Damaged",
        "undelivered": "Not delivered",
    }
    said = []
    for target, name in names.items():
        judged = [p[target] for p in SHOP["parcels"] if p["week"] == monday and p[target] is not None]
        said += [f"{name} {sum(judged)} of {len(judged)}"] if judged else []
    return f"of the parcels that can be judged: {', '.join(said)}." if said else "no parcel can be judged yet."


class TestBrief:
    def test_it_says_what_to_do_and_what_came_of_last_week(self, tmp_path: Path) -> None:
        from click.testing import CliRunner

        from training.cli import main

        now = diagnoses.write(tmp_path / "now")
        best = next(p for p in SHOP["products"] if p["named"])
        others = [{**p, "named": 0} if p["sku"] == best["sku"] else p for p in SHOP["products"]]
        later = diagnoses.write(tmp_path / "later", {**SHOP, "products": others})
        for team in ("packing", "listing", "carrier", "fulfilment"):
            said = CliRunner().invoke(main, ["brief", str(now), "--team", team, "--week", "2026-W36"])
            assert said.exit_code == 0, said.output
            assert "No diagnosis of last week" in said.output
            assert _counts_of("2026-W36") in said.output
        out = tmp_path / "out"
        week = ["--team", "listing", "--week", "2026-W45", "--previous", str(now), "--out", str(out)]
        assert CliRunner().invoke(main, ["brief", str(later), *week]).exit_code == 0
        text = (out / "brief.md").read_text()
        assert re.search(rf"- {re.escape(best['sku'])}: .*No longer shown to be wrong", text)
        assert re.search(r"[^\n]\n\n## What came of last week's\n\n", text), "a list ends with an empty line"
        first = min(p["week"] for p in SHOP["parcels"])
        assert re.search(rf"Found over {first} to 2026-\d\d-\d\d, not in this week alone\.", text)
        assert text.count("No clear change") == 4
        assert diagnoses.MARKUP not in (out / "brief.html").read_text()
        first_week = "{}-W{:02d}".format(*date.fromisoformat(first).isocalendar())
        allowed = {
            "2026-W54": "such as 2025-W52",
            "46": "such as 2025-W52",
            "2027-W01": f"{first_week} to 2026-W46, which 2026-11-09 is in",
            "2024-W30": f"{first_week} to 2026-W46, which 2026-11-09 is in",
        }
        said = CliRunner().invoke(main, ["brief", str(now), "--team", "listing", "--week", "2026-W46"])
        last = max(p["week"] for p in SHOP["parcels"] if p["late"] is not None)
        judged = "{}-W{:02d}".format(*date.fromisoformat(last).isocalendar())
        assert f"no parcel can be judged yet. The last week that can is {judged}." in said.output
        for asked, answer in allowed.items():
            said = CliRunner().invoke(main, ["brief", str(now), "--team", "listing", "--week", asked])
            assert said.exit_code == 2 and answer in said.output

    @pytest.mark.parametrize(
        ("late", "compared", "said"),
        [
            (
                "no promise is kept",
                "late: no promise is kept; damaged: nobody looks",
                "late: no promise is kept; damaged",
            ),
            ("no promise is kept", "no parcel says which carrier took it", "judged: no promise is kept."),
        ],
    )
    def test_where_no_outcome_is_recorded_it_says_so_and_not_yet(
        self, tmp_path: Path, late: str, compared: str, said: str
    ) -> None:
        none = dict.fromkeys(("late", "failed_attempt", "damaged", "undelivered"))
        parcels = {"parcels": [{**p, **none} for p in SHOP["parcels"]]}
        made = Diagnosis.open(diagnoses.write(tmp_path, parcels, {"corridors": compared}, late={"why": late}))
        for file in brief(made, "carrier", "2026-W36", Site(Sources())).values():
            assert said in file.decode() and "yet" not in file.decode().split("Worth most")[0]


def test_an_address_that_nobody_would_write_is_no_fault_of_ours(shop: Http) -> None:
    sku = SHOP["products"][0]["sku"]
    assert shop.get("/listings", params={"offset": "9" * 20}).status_code == 200
    assert shop.get("/listings/product", params={"sku": sku, "recorded": "x"}).status_code == 200
    for word in ("known", "sort"):
        answer = shop.get(f"{API}/parcels?" + "&".join([f"{word}=late"] * 1200))
        assert (answer.status_code, "asked for twice" in answer.text) == (400, True)


def test_backlog_is_said_in_hours_and_not_in_percent() -> None:
    row = {"measure": "backlog_hours", "rate": 4.5, "low": 4.0, "high": 5.0, "elsewhere": 2.0}
    hours = str(share_bar(row, 6.0, Texts.load("en")))
    assert "4.5" in hours and "%" not in hours
    assert "450.0 %" in str(share_bar(row | {"measure": "label_poor"}, 6.0, Texts.load("en")))


def test_a_service_that_nobody_named_is_not_told_as_several(tmp_path: Path) -> None:
    parcel, corridor = {**SHOP["parcels"][0], "service": ""}, {**SHOP["corridors"][0], "service": ""}
    http = client(diagnoses.write(tmp_path, {"parcels": [parcel], "corridors": [corridor]}))
    for table in ("parcels", "corridors"):
        page = http.get(f"/rows/{table}").text
        assert "other services, or none named" in page and "services counted as one" not in page
    named = client(diagnoses.write(tmp_path / "named", {"parcels": [{**parcel, "service_given": "by bike"}]}))
    assert "services counted as one" in named.get("/rows/parcels").text


def test_columns_without_any_value_are_not_added_up_and_a_sum_of_nought_is(tmp_path: Path) -> None:
    http = client(diagnoses.write(tmp_path))

    def sums(path: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", http.get(path).text.split("Added up:")[1].split("</p>")[0]))

    assert " 0.0" in sums("/rows/packaging?verdict=fits")
    sole = sums("/rows/parcels?service=sole")
    assert "Hours from order" in sole and "xpected" not in sole


def test_what_is_to_be_packed_otherwise_has_its_interval_on_the_scale_of_its_ratio(tmp_path: Path) -> None:
    found = todo(Diagnosis.open(diagnoses.write(tmp_path / "d")), "packing", Texts.load("en"))
    assert found
    for action in found:
        ratio, low, high = action.interval
        assert ratio is None or low is None or low <= ratio <= high


def test_a_fault_of_a_shift_has_the_team_that_its_feature_has_everywhere(tmp_path: Path) -> None:
    row = next(r for r in SHOP["readiness"] if r["measure"] == "missed_cutoff")
    told = {"shift": "late", "verdict": "worse", "rate": 0.4, "low": 0.3, "high": 0.5, "elsewhere": 0.1}
    owners = {"missed_cutoff": "fulfilment", "backlog_hours": "fulfilment"}
    owners |= {"label_poor": FEATURES["label_grade"].team, "documents_missing": FEATURES["documents_complete"].team}
    rows = [{**row, **told, "node": f"node of {m}", "measure": m} for m in owners]
    made = Diagnosis.open(diagnoses.write(tmp_path, {**SHOP, "readiness": rows}))
    for team in ("packing", "fulfilment"):
        actions = todo(made, team, Texts.load("en"), 20)
        found = {a.query["measure"] for a in actions if "measure" in a.query}
        assert found == {m for m, owner in owners.items() if owner == team}
        assert {a.team for a in actions} == {team}
        assert any("measure" in a.query for a in todo(made, team, Texts.load("en"), 2))  # however much a box is worth
    text = client(tmp_path).get("/warehouse?measure=label_poor").text
    assert "Owner: Packing." in text


def test_a_shifts_ratio_is_one_everywhere_and_that_of_the_rates_shown(tmp_path: Path) -> None:
    row = {**SHOP["readiness"][0], "node": "leipzig", "shift": "late", "measure": "label_poor", "verdict": "worse"}
    row |= {"rate": 0.42487, "low": 0.3706, "high": 0.4871, "elsewhere": 0.029241, "why": "14.42 times the others"}
    http = client(diagnoses.write(tmp_path, {**SHOP, "readiness": [row]}))
    first, ready = (re.sub(r"<[^>]*>", " ", http.get(p).text) for p in ("/", "/warehouse?measure=label_poor"))
    shown = re.search(r"Poor label ([\d.]+) %, elsewhere ([\d.]+) %", first)
    assert shown is not None
    assert f"{float(shown[1]) / float(shown[2]):.0f}×" == "15×"
    assert "15×" in first and "15× the same shift elsewhere." in ready
    assert f"{shown[1]} %" in ready and f"{shown[2]} %" in ready
    assert "14.4" not in first + ready


def test_a_product_has_one_advice_first_in_the_list_and_on_its_page(tmp_path: Path) -> None:
    texts = Texts.load("en")
    best = max((p for p in SHOP["products"] if p["named"]), key=lambda p: p["worth"])
    told = {**best, "driver": None, "advice": "check_sizes", "arguments": None}
    drivers = [
        {"sku": best["sku"], "term": "photo_count", "value": 1.0, "peers_value": 5.0, "share": 0.14}
        | {"advice": "add_photos", "arguments": "{}"}
    ]
    products = [told if p["sku"] == best["sku"] else p for p in SHOP["products"]]
    http = client(diagnoses.write(tmp_path, {**SHOP, "products": products, "drivers": drivers}))
    said = r'class="advice"><span aria-hidden="true">→</span> ([^<]*)<'
    page = http.get("/listings/product", params={"sku": best["sku"]}).text
    assert re.findall(said, page) == [texts("advice.check_sizes"), texts("advice.add_photos")]
    assert page.index(texts("advice.check_sizes")) < page.index(texts("product.lacks"))
    assert re.findall(said, http.get("/listings").text)[0] == texts("advice.check_sizes")
    assert todo(Diagnosis.open(tmp_path), "listing", texts)[0].do == texts("advice.check_sizes")


def test_a_defect_is_not_laid_at_the_page(tmp_path: Path) -> None:
    best = max((p for p in SHOP["products"] if p["named"]), key=lambda p: p["worth"])
    told = {**best, "reason": "defect", "driver": None, "advice": "check_quality", "arguments": None}
    http = client(diagnoses.write(tmp_path, {**SHOP, "products": [told]}))
    for path in ("/", "/listings", "/listings/product"):
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", http.get(path, params={"sku": best["sku"]}).text))
        assert "came back for what the page says or the product is" in text, path


def test_the_figures_shown_are_those_that_the_verdict_goes_by(tmp_path: Path) -> None:
    best = max((p for p in SHOP["products"] if p["named"]), key=lambda p: p["worth"])
    told = {**best, "sku": "A", "ratio": 1.38, "low": 0.95, "high": 12.1, "observed": 22, "expected": 10.3, "lines": 47}
    told |= {"reason": "wrong_size", "reason_observed": 20, "reason_expected": 6.7, "brand": "b", "category": "shoes"}
    told |= {"reason_ratio": 2.01, "reason_low": 1.17, "reason_high": 3.53, "chance_worse": 0.969}
    single = {**told, "sku": "B", "observed": 1, "expected": 0.01, "lines": 1, "reason_low": 0.8, "chance_worse": 0.87}
    surely = {**told, "sku": "C", "low": 1.4, "ratio": 1.8, "brand": "c"}
    http = client(diagnoses.write(tmp_path, {**SHOP, "products": [told, single, surely]}))

    def read(path: str, **query: str) -> str:
        return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", http.get(path, params=query).text)))

    page = read("/listings/product", sku="A")
    assert page.index("2.01×") < page.index("Goes by wrong size:") < page.index("2.01× (1.17 to 3.53)")
    assert "All counted reasons together:" in page and "1.38× (0.95 to 12)" in page
    alone = read("/listings/product", sku="B")
    assert "has a probability of 87 %" in alone
    assert "Its brand's other products of this category come back, too: 22 of 47, 10.3 expected." in alone
    sure = read("/listings/product", sku="C")
    assert "Goes by" not in sure and "Mostly wrong size:" in sure and "probability" not in sure
    told_all = read("/listings")
    assert "For wrong size: 20, 6.7 expected." in told_all
    for path in ("/", "/listings"):
        assert ("with fewer than 2 such returns of their own: 1." in read(path)) == (path == "/")
    assert told_all.count("Named for its brand") == 1


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=80))
def test_a_name_is_copied_as_it_is_unless_it_turns_the_sentence(name: str) -> None:
    turns = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") or "\u202a" <= c <= "\u202e" for c in name)
    isolated = turns or any("\u2066" <= c <= "\u2069" for c in name)
    assert named(name) == (f"\u2068{name}\u2069" if isolated else name)


def test_names_written_from_right_to_left_keep_to_themselves() -> None:
    assert named(diagnoses.RIGHT_TO_LEFT) == f"\u2068{diagnoses.RIGHT_TO_LEFT}\u2069"
    assert named("SKU00552") == "SKU00552"
