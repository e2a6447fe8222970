"""The pages of a diagnosis, walked in a browser as the people do who read them."""

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diagnoses
import pandas as pd
import pytest
from browsers import TABLET
from playwright.sync_api import Browser, Page
from services import Service

from serving.diagnosis import TABLES
from serving.ledger import Paths, Recorder
from serving.ledger.export import export
from serving.ledger.verify import verify

from .conftest import watched

SHOP = diagnoses.shop()
BEST = max((p for p in SHOP["products"] if p["named"]), key=lambda p: p["worth"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teams")


@pytest.fixture(scope="module")
def service(run_service: Callable[..., Any], place: Path) -> Iterator[Service]:
    """A service with a diagnosis and a ledger."""
    diagnoses.write(place / "diagnosis")
    url = f"sqlite:///{place}/ledger.db"
    with run_service(DOORSTEP_DIAGNOSIS=place / "diagnosis", DOORSTEP_LEDGER=url) as running:
        yield running


def test_the_worst_listing_is_found_read_exported_and_its_change_recorded(
    service: Service, page: Page, axe: Callable[[Page], None], place: Path
) -> None:
    page.goto(service.url)
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Listings").click()
    cards = page.locator("ol.cards > li")
    assert cards.count() == 5
    assert BEST["sku"] in (cards.first.text_content() or "")
    axe(page)
    with page.expect_download() as loading:
        page.get_by_role("link", name="CSV of all").click()
    rows = list(csv.DictReader(io.StringIO(Path(loading.value.path()).read_text(), newline="")))
    assert len(rows) == len(SHOP["products"]) and rows[0]["sku"].removeprefix("'") == BEST["sku"]

    cards.first.get_by_role("link", name="Why, and what to change").click()
    assert page.locator("h1").inner_text() == BEST["sku"]
    assert page.get_by_text("Add a size guide.").count()
    axe(page)
    page.get_by_label("What was changed").fill("size table of the brand")
    page.get_by_label("Since when").fill("2026-11-02")
    page.get_by_role("button", name="Record the change").click()
    page.get_by_role("status").wait_for()
    assert "2026-11-02" in page.get_by_role("status").inner_text()
    change = page.locator("article.change", has_text="size table of the brand")
    assert "Too early" in change.inner_text()
    assert "Better" not in change.inner_text()
    axe(page)
    page.get_by_label("What was changed").fill("by mistake")
    page.get_by_role("button", name="Record the change").click()
    mistake = page.locator("article.change", has_text="by mistake")
    mistake.get_by_role("button", name="I did not change this").click()
    page.get_by_text("Withdrawn: the change of").wait_for()
    assert mistake.count() == 0 and change.count() == 1

    report = {"key": "k1", "sku": BEST["sku"], "changed_at": "2026-11-03T00:00:00Z", "what": "photos"}
    first = service.http.post("/v1/changes", json=report)
    assert first.status_code == 200 and service.http.post("/v1/changes", json=report).content == first.content
    assert service.http.post("/v1/changes", json={**report, "what": "other"}).status_code == 409
    for site in ("cross-site", "same-site"):
        other = service.http.post("/v1/changes", json={**report, "key": "k2"}, headers={"sec-fetch-site": site})
        assert other.status_code == 403
    url = f"sqlite:///{place}/ledger.db"
    recorder = Recorder(url, Paths.of(url))
    assert export(recorder.database, place / "export").rows["changes"] == 2
    assert verify(recorder.database, recorder.paths.heads).ok
    recorder.close()
    told = pd.read_parquet(place / "export" / "changes.parquet")
    assert set(told["what"]) == {"size table of the brand", "photos"}
    assert set(told["sku"]) == {BEST["sku"]}


def test_a_carrier_is_read_and_its_meeting_pack_taken_along(
    service: Service, page: Page, axe: Callable[[Page], None]
) -> None:
    page.goto(f"{service.url}/carriers")
    axe(page)
    page.get_by_role("link", name="swift", exact=True).first.click()
    assert page.locator("svg.series title").count() == 1
    axe(page)
    with page.expect_download() as loading:
        page.get_by_role("link", name="Meeting pack").click()
    with zipfile.ZipFile(loading.value.path()) as files:
        assert files.namelist() == ["meeting.html", "parcels.csv", "definition.txt"]
        alone = files.read("meeting.html").decode()
        definition = files.read("definition.txt").decode()
    page.get_by_role("link", name="Read it here").click()
    assert page.content().count("<h1>") == alone.count("<h1>") == 1
    assert page.locator("section.sheet").count() == 2
    # Both say the same, an outcome at a time, and promise no more of the intervals than is known.
    terms = page.locator("section.sheet").nth(1).inner_text()
    for said in ("is meant to hold the true value in 90", "compared in numbers, not one by one", "Cannot tell"):
        assert said in terms and said in definition, said
    assert [
        li for li in page.locator("section.sheet").nth(1).locator("li").all_inner_texts() if li not in definition
    ] == []
    mine = [c for c in SHOP["corridors"] if c["carrier"] == "swift"]
    first = page.locator("section.sheet").first.inner_text()
    for target in {c["target"] for c in mine}:
        n = sum(c["verdict"] == "worse" for c in mine if c["target"] == target)
        assert f"{n} worse" in first
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.count(b"/Type /Page\n") == 2
    axe(page)


@pytest.mark.parametrize("path", ["/carriers", "/carriers/carrier?carrier=swift", "/listings", "/warehouse"])
def test_verdicts_are_on_a_tablets_screen_and_no_reason_stretches_a_row(
    service: Service, browser: Browser, path: str
) -> None:
    with watched(browser, viewport=TABLET) as page:
        page.goto(service.url + path)
        cells = page.locator("tbody .verdict")
        assert cells.count()
        for box in (cell.bounding_box() for cell in cells.all()):
            assert box is not None and box["x"] + box["width"] < TABLET["width"]
        for box in (row.bounding_box() for row in page.locator("tbody tr").all()):
            assert box is not None and box["height"] < 120


@pytest.mark.parametrize("path", ["/", "/carriers", "/warehouse", "/rows/parcels?late=1&carrier=swift"])
def test_at_a_tablets_width_a_table_is_whole(service: Service, browser: Browser, path: str) -> None:
    with watched(browser, viewport=TABLET) as page:
        page.goto(service.url + path)
        over = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
        assert max(page.evaluate(over)) <= 0


def test_rows_show_what_is_read_first_and_every_column_when_asked(service: Service, page: Page) -> None:
    page.goto(f"{service.url}/rows/parcels?carrier=swift&late=1")
    heads = page.locator("thead th")
    assert [t for t in ("Carrier", "Late") if t in heads.all_inner_texts()] == []  # the same in every row: said above
    assert {"Parcel", "Where the time was lost", "Whose time"} <= set(heads.all_inner_texts())
    few = heads.count()
    page.get_by_role("link", name="columns").and_(page.get_by_text("Show all")).click()
    assert heads.count() == len(TABLES["parcels"].columns) > 2 * few
    page.get_by_role("link", name="Hours late").click()
    assert heads.count() == len(TABLES["parcels"].columns)
    assert page.locator("th[aria-sort=ascending]").inner_text() == "Hours late"
    with page.expect_download() as loading:
        page.get_by_role("link", name="CSV of all").click()
    rows = list(csv.reader(io.StringIO(Path(loading.value.path()).read_text(), newline="")))
    shown = [cells.locator("td").first.inner_text() for cells in page.locator("tbody tr").all()]
    assert rows[0] == list(TABLES["parcels"].columns) and [r[0] for r in rows[1 : len(shown) + 1]] == shown
    page.get_by_role("link", name="Show fewer columns").click()
    assert heads.count() == few


def test_the_overview_counts_comparisons_by_outcome_and_names_the_parts_of_a_bar(service: Service, page: Page) -> None:
    page.goto(service.url)
    carriers, late = page.locator(".tiles > li").nth(0), page.locator(".tiles > li").nth(3)
    worse = [c for c in SHOP["corridors"] if c["verdict"] == "worse"]
    numbers = carriers.locator("a.n").all_inner_texts()
    assert numbers[0] == str(len(worse)) and numbers[1] == str(len(SHOP["corridors"]))
    assert sum(map(int, numbers[2:])) == len(worse)
    assert f"{len({(c['carrier'], c['service'], c['region']) for c in SHOP['corridors']})} corridors" in (
        carriers.inner_text()
    )
    assert page.get_by_role("region", name="Where it broke").get_by_text("nothing to tell it by").count() == 1
    parts = late.locator(".legend li").all_inner_texts()
    assert [p.rsplit(" ", 1)[0] for p in parts] == ["Ours", "The carrier's", "Cannot tell"]
    assert sum(int(p.rsplit(" ", 1)[1]) for p in parts) == int(late.locator("a.n").first.inner_text())


def test_what_never_came_is_not_so_many_hours_late(service: Service, page: Page) -> None:
    page.goto(f"{service.url}/rows/parcels?late=1&undelivered=1&known=hours_late")
    rows = page.locator("tbody tr")
    assert rows.count()
    assert rows.count() == page.get_by_role("cell", name="not arrived", exact=True).count()


def test_the_warehouse_and_the_rows_of_a_number(service: Service, page: Page, axe: Callable[[Page], None]) -> None:
    page.goto(f"{service.url}/warehouse")
    axe(page)
    number = page.locator("table a.n").nth(1)
    shown = number.inner_text()
    number.click()
    assert page.get_by_text(f"{shown} rows", exact=True).count() == 1
    axe(page)
    page.get_by_role("link", name="Parcel", exact=True).click()
    assert page.locator("th[aria-sort=ascending]").inner_text() == "Parcel"
    page.go_back()
    page.get_by_role("link", name="Show all rows").click()
    page.get_by_role("link", name="Next").click()
    assert page.get_by_text("51 to 100 of 600").count() == 1


def test_by_the_keyboard_alone(service: Service, page: Page) -> None:
    page.goto(service.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Listings":
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/listings")


@pytest.mark.parametrize("width", [TABLET["width"], 390])
def test_at_a_tablets_width_nothing_hangs_over(service: Service, browser: Browser, width: int) -> None:
    with watched(browser, viewport={"width": width, "height": 1180}, has_touch=True) as page:
        for path in (
            "/",
            "/listings",
            f"/listings/product?sku={BEST['sku'].replace('=', '%3D').replace('+', '%2B')}",
            "/carriers",
            "/carriers/carrier?carrier=swift",
            "/warehouse",
            "/rows/parcels?late=1",
        ):
            page.goto(service.url + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            small = page.evaluate(
                "[...document.querySelectorAll('button, .button, input, select')].filter(e => e.offsetParent)"
                ".filter(e => e.getBoundingClientRect().height < 47.5).map(e => e.outerHTML)"
            )
            assert small == [], path


def test_a_new_diagnosis_is_taken_up_and_the_old_one_stays_while_there_is_none(
    run_service: Callable[..., Any], tmp_path: Path, page: Page, axe: Callable[[Page], None]
) -> None:
    with run_service(DOORSTEP_DIAGNOSIS=tmp_path / "diagnosis") as running:
        page.goto(f"{running.url}/listings")
        assert page.get_by_role("heading", name="No diagnosis yet").count() == 1
        axe(page)
        assert running.http.get("/v1/diagnosis").status_code == 503
        diagnoses.empty(tmp_path / "part").rename(tmp_path / "diagnosis")
        for _ in range(100):
            if running.http.get("/v1/diagnosis").status_code == 200:
                break
            page.wait_for_timeout(100)
        page.reload()
        assert page.get_by_text(diagnoses.NO_DATA).count() >= 1
        axe(page)
        assert running.http.get("/v1/diagnosis/parcels").json()["why"] == diagnoses.NO_DATA
