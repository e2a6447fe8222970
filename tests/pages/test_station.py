"""The packing station, walked as a packer would: scan, read, do, answer; with and without a network."""

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
import pytest
from browsers import watched
from playwright.sync_api import Browser, Page, Route, expect
from services import Service

from features import Dataset
from features.treated import treated
from serving.ledger import Paths
from serving.ledger.seals import Secrets
from serving.ledger.store import Database
from serving.pages.site import HERE
from serving.pages.station import DONE_KEY, OVERRIDE_KEYS
from serving.pages.verdict import DONE, OVERRIDES
from training.announce import requests, send
from training.policy import draft

ABORTED = "net::ERR_FAILED"
OFFLINE = "net::ERR_INTERNET_DISCONNECTED"


@dataclass
class Shop:
    """A service with parcels that wait.

    Attributes:
        advised: codes of parcels with something to do, with the key of the action.
        usual: codes of parcels without.
        url: of its ledger.
        policy: its file.
    """

    service: Service
    advised: list[tuple[str, str]]
    usual: list[str]
    url: str
    policy: Path

    def decisions(self) -> dict[str, dict[str, Any]]:
        """Body of every decision in the ledger by its id."""
        database = Database(self.url, Secrets.load(Paths.of(self.url).key))
        try:
            return {str(r.decision_id): dict(r.body or {}) for r in database.records() if r.kind == "decision"}
        finally:
            database.close()

    def reports(self) -> list[tuple[str, dict[str, Any]]]:
        """Kind and body of every report in the ledger, in its order."""
        database = Database(self.url, Secrets.load(Paths.of(self.url).key))
        try:
            return [(r.kind, dict(r.body or {})) for r in database.records() if r.kind in ("outcome", "override")]
        finally:
            database.close()


@pytest.fixture(scope="module")
def shop(run_service: Callable[..., Any], trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("station")
    dataset = Dataset.open(trained.dataset)
    (folder / "policy.toml").write_text(draft(dataset), encoding="utf-8")
    url = f"sqlite:///{folder}/ledger.db"
    env = {
        "DOORSTEP_BUNDLE": trained.bundle,
        "DOORSTEP_SNAPSHOT": trained.snapshot,
        "DOORSTEP_POLICY": folder / "policy.toml",
        "DOORSTEP_LEDGER": url,
        "DOORSTEP_WAITING": folder / "waiting.db",
        "DOORSTEP_STATION_MS": 3000,  # on a busy machine a parcel is not to be lost to a test
    }
    with run_service(**env) as service:
        parcels = requests(dataset, 150)
        assert list(send(service.url, parcels)) == [100, 150]
        advised, usual = [], []
        for code in (p["parcel"]["parcel_id"] for p in parcels):
            said = service.http.post("/v1/parcels/scan", json={"code": code}).json()
            assert said["recorded"]
            if said["key"]:
                advised.append((code, said["key"]))
            elif said["kind"] == "usual":
                usual.append(code)
        assert len(advised) >= 8 and len(usual) > 75  # most parcels just say so
        yield Shop(service, advised, usual, url, folder / "policy.toml")


@pytest.fixture
def station(shop: Shop, page: Page) -> Page:
    """The station, ready to scan."""
    page.goto(f"{shop.service.url}/pack")
    expect(page.locator("#code")).to_be_focused()
    return page


def scan(page: Page, code: str) -> None:
    """As a scanner does: the code, Enter, and no look at where the focus is."""
    page.keyboard.type(code)
    page.keyboard.press("Enter")
    expect(page.locator("#parcel")).to_have_text(code.strip())
    expect(page.locator("#verdict")).not_to_have_attribute("data-kind", "asking")


def test_a_parcel_is_scanned_read_done_and_the_next_one_scanned(
    shop: Shop, station: Page, axe: Callable[[Page], None]
) -> None:
    (code, key), before = shop.advised[0], len(shop.reports())
    scan(station, code)
    expect(station.locator("#verdict")).to_have_attribute("data-kind", "do")
    expect(station.locator("#action")).to_be_visible()
    assert len(station.locator("#said").inner_text().split()) <= 12
    assert 0 < station.locator("#reasons li").count() <= 3
    assert float(station.locator("#station").get_attribute("data-painted") or "nan") > 0
    axe(station)
    with station.expect_response("**/v1/outcomes") as answered:
        station.keyboard.press(DONE_KEY)
    assert answered.value.status == 200
    expect(station.locator("#said")).to_have_text("Noted: done. Scan the next parcel")
    expect(station.locator("#answers")).to_be_hidden()
    scan(station, shop.usual[0])
    expect(station.locator("#said")).to_have_text("Pack as usual")
    expect(station.locator("#answers")).to_be_hidden()
    axe(station)
    for control in (DONE, next(iter(OVERRIDES)).lower()):  # an answer to nothing is not swallowed
        station.keyboard.type(control)
        station.keyboard.press("Enter")
        expect(station.locator("#said")).to_have_text("Nothing to answer. Scan the next parcel")
    assert len(shop.reports()) == before + 1
    kind, body = shop.reports()[before]
    assert (kind, body["kind"], body["action"], body["parcel_id"]) == ("outcome", "done", key, code)


def test_advice_is_overridden_by_one_key_one_code_or_two_taps(shop: Shop, browser: Browser) -> None:
    before = len(shop.reports())
    with watched(browser, viewport={"width": 820, "height": 1180}, has_touch=True) as page:
        page.goto(f"{shop.service.url}/pack")
        (code, _), (second, _), (third, _) = shop.advised[1:4]
        by_key, by_scan, by_tap = list(OVERRIDES)[1:]
        keys = {code: key for key, code in OVERRIDE_KEYS.items()}
        scan(page, code)
        page.keyboard.press(keys[by_key])
        expect(page.locator("#said")).to_have_text("Noted. Scan the next parcel")
        scan(page, second)
        page.keyboard.type(by_scan.lower())
        page.keyboard.press("Enter")
        expect(page.locator("#said")).to_have_text("Noted. Scan the next parcel")
        scan(page, third)
        page.get_by_role("button", name="Something else was done").tap()
        for button in page.locator(".answers button:visible, #scan button").all():
            box = button.bounding_box()
            assert box is not None and min(box["width"], box["height"]) >= 48
        with page.expect_response("**/v1/overrides"):
            page.locator(f"button[data-code={by_tap}]").tap()
        expect(page.locator("#code")).to_be_focused()
        expect(page.locator("#state")).to_have_text("")
    told = [(kind, body["parcel_id"], body["reason"]) for kind, body in shop.reports()[before:]]
    assert told == [("override", c, OVERRIDES[o]) for c, o in ((code, by_key), (second, by_scan), (third, by_tap))]


def test_without_a_network_scanning_goes_on_and_reports_arrive_once_and_in_order(shop: Shop, browser: Browser) -> None:
    before = len(shop.reports())
    with watched(browser) as page:
        page.expected = [ABORTED, OFFLINE]  # type: ignore[attr-defined]
        page.goto(f"{shop.service.url}/pack")
        page.evaluate("navigator.serviceWorker.ready.then(() => null)")
        lost = re.compile("/v1/(outcomes|overrides)")
        page.context.route(lost, lambda route: route.abort())
        for code, _ in shop.advised[4:7]:
            scan(page, code)
            page.keyboard.press(DONE_KEY if code != shop.advised[5][0] else next(iter(OVERRIDE_KEYS)))
            expect(page.locator("#said")).to_contain_text("Noted")
        expect(page.locator("#state")).to_have_text("Reports waiting to be sent: 3.")
        page.context.set_offline(True)
        for code in (shop.usual[1], "anything"):
            scan(page, code)
            expect(page.locator("#said")).to_have_text("No advice, pack as usual")
        expect(page.locator("#state")).to_contain_text("No network: keep packing.")
        assert len(shop.reports()) == before
        page.reload()  # the page, and what waits to be sent, outlive a reload without a network
        expect(page.locator("#state")).to_contain_text("Reports waiting to be sent: 3.")
        page.context.unroute(lost)
        page.context.set_offline(False)
        expect(page.locator("#state")).to_have_text("")
        scan(page, shop.usual[1])
        expect(page.locator("#said")).to_have_text("Pack as usual")
    told = [(kind, body["parcel_id"]) for kind, body in shop.reports()[before:]]
    kinds = ("outcome", "override", "outcome")
    assert told == [(kind, code) for kind, (code, _) in zip(kinds, shop.advised[4:7], strict=True)]


def test_a_proxys_login_page_is_no_receipt_and_reports_arrive_once_and_in_order_when_it_is_gone(
    shop: Shop, browser: Browser
) -> None:
    before = len(shop.reports())
    answers = itertools.cycle((200, 403, 404))  # a page to sign in, a refusal, a page that is not there: none is ours
    told: list[str] = []

    def proxy(route: Route) -> None:
        told.append(route.request.post_data_json["key"])
        route.fulfill(status=next(answers), content_type="text/html", body="<title>Sign in</title>")

    with watched(browser) as page:
        page.expected = ["403", "404"]  # type: ignore[attr-defined]
        page.goto(f"{shop.service.url}/pack")
        between = re.compile("/v1/(outcomes|overrides)")
        page.context.route(between, proxy)
        for code, _ in shop.advised[:3]:
            scan(page, code)
            page.keyboard.press(next(iter(OVERRIDE_KEYS)) if code == shop.advised[1][0] else DONE_KEY)
            expect(page.locator("#said")).to_contain_text("Noted")
        expect(page.locator("#state")).to_have_text("Reports waiting to be sent: 3.")
        while len(told) < 4:  # it is tried again and again, always the first one
            page.wait_for_timeout(50)
        page.reload()
        expect(page.locator("#state")).to_have_text("Reports waiting to be sent: 3.")
        assert len(set(told)) == 1 and len(shop.reports()) == before
        page.context.unroute(between)
        expect(page.locator("#state")).to_have_text("", timeout=20_000)
    arrived = [(kind, body["parcel_id"]) for kind, body in shop.reports()[before:]]
    kinds = ("outcome", "override", "outcome")
    assert arrived == [(kind, code) for kind, (code, _) in zip(kinds, shop.advised[:3], strict=True)]


def test_the_first_scan_of_a_page_whose_answer_is_lost_is_told_to_the_ledger(shop: Shop, station: Page) -> None:
    before, code = len(shop.reports()), shop.advised[0][0]
    station.expected = [ABORTED]  # type: ignore[attr-defined]
    asked: list[str] = []

    def lose(route: Route) -> None:
        asked.append(route.request.post_data_json["decision_id"])
        assert route.fetch().json()["recorded"]  # the service has decided, and nobody hears of it
        route.abort()

    station.route("**/v1/parcels/scan", lose)
    with station.expect_response(lambda r: "overrides" in r.url and r.status == 200):
        scan(station, code)
    expect(station.locator("#said")).to_have_text("No advice, pack as usual")
    expect(station.locator("#answers")).to_be_hidden()
    station.unroute("**/v1/parcels/scan")
    ((kind, body),) = shop.reports()[before:]
    assert (kind, body["decision_id"], body["parcel_id"]) == ("override", asked[0], code)
    assert body["reason"] == "not shown: no answer in time"


@pytest.mark.parametrize("known", [True, False])
def test_a_first_scan_that_reaches_nobody_is_packed_as_usual_and_holds_nothing_up(
    shop: Shop, station: Page, known: bool
) -> None:
    before, decided = len(shop.reports()), len(shop.decisions())
    station.expected = [ABORTED, OFFLINE, "404"]  # type: ignore[attr-defined]
    if known:  # the browser knows that it has no network
        station.context.set_offline(True)
    else:
        station.route("**/v1/parcels/scan", lambda route: route.abort())
    scan(station, shop.advised[0][0])
    expect(station.locator("#said")).to_have_text("No advice, pack as usual")
    expect(station.locator("#answers")).to_be_hidden()
    expect(station.locator("#state")).to_have_text("No network: keep packing." if known else "")  # no report to send
    station.context.set_offline(False)
    station.unroute("**/v1/parcels/scan")
    code, key = shop.advised[1]
    scan(station, code)
    expect(station.locator("#verdict")).to_have_attribute("data-kind", "do")
    done = re.compile("/v1/outcomes")  # it waits until the report of a decision that nobody made is given up
    with station.expect_response(done, timeout=30_000) as answered:
        station.keyboard.press(DONE_KEY)
    assert answered.value.status == 200
    assert [(k, b["parcel_id"], b["action"]) for k, b in shop.reports()[before:]] == [("outcome", code, key)]
    assert len(shop.decisions()) == decided + 1  # the report was taken, so its decision is there, and no other


def test_an_answer_that_comes_too_late_is_not_shown_and_the_ledger_is_told(shop: Shop, station: Page) -> None:
    before, code = len(shop.reports()), shop.advised[7][0]
    station.expected = ["404"]  # type: ignore[attr-defined]
    scan(station, shop.usual[2])  # the page has learned that decisions are recorded
    held: list[Route] = []
    station.route("**/v1/parcels/scan", lambda route: held.append(route))
    with station.expect_response("**/v1/overrides"):  # not found: the decision is not made yet
        scan(station, code)
    expect(station.locator("#said")).to_have_text("No advice, pack as usual")
    expect(station.locator("#answers")).to_be_hidden()
    asked = held[0].request.post_data_json
    with station.expect_response(lambda r: "overrides" in r.url and r.status == 200):  # and is told again
        assert shop.service.http.post("/v1/parcels/scan", json=asked).json()["decision_id"] == asked["decision_id"]
    ((kind, body),) = shop.reports()[before:]
    assert (kind, body["parcel_id"], body["reason"]) == ("override", code, "not shown: no answer in time")
    assert "action" not in body
    station.unroute("**/v1/parcels/scan")


@pytest.mark.parametrize(
    "code",
    [
        "<img src=x onerror=document.title=1>",
        "طرد رقم ٤٢ من المستودع",
        "W" * 200,
        "P-1/../../%2e%2e?x=1#y",
        "'; DROP TABLE waiting; --",
    ],
)
def test_a_code_that_nobody_announced_is_shown_as_text(station: Page, code: str) -> None:
    station.set_viewport_size({"width": 820, "height": 1180})
    scan(station, code)
    expect(station.locator("#said")).to_have_text("Unknown parcel, pack as usual")
    assert station.locator("#verdict img").count() == 0
    assert station.evaluate("document.documentElement.scrollWidth") <= 820


def test_a_scan_arrives_in_the_field_wherever_the_focus_is(shop: Shop, station: Page) -> None:
    station.get_by_role("link", name="Control codes").focus()
    scan(station, shop.usual[4])
    expect(station.locator("#code")).to_be_focused()
    station.locator("h1").dispatch_event("click")
    expect(station.locator("#code")).to_be_focused()


def test_a_parcel_is_scored_anew_by_its_latest_announcement(shop: Shop) -> None:
    post = shop.service.http.post
    parcel = {"parcel_id": "late-1", "packed_at": "2025-12-01T10:00:00Z"}
    body = {"order": {"order_id": "o", "ordered_at": "2025-12-01T08:00:00Z"}, "parcel": parcel, "lines": []}
    assert post("/v1/parcels", json=[body]).json()["announced"] == 1
    assert post("/v1/parcels", json=[body]).json()["waiting"] == 151
    said = post("/v1/parcels/scan", json={"code": " late-1 ", "decision_id": "mine"}).json()
    assert (said["parcel_id"], said["decision_id"], said["recorded"]) == ("late-1", "mine", True)
    refused = post("/v1/parcels", json=[body, {"order": {}, "parcel": {"parcel_id": "late-2"}}])
    assert refused.status_code == 400 and refused.json()["errors"][0]["field"].startswith("[1].order")
    assert post("/v1/parcels/scan", json={"code": "late-2"}).json()["kind"] == "none"  # nothing of it is kept


def test_another_language_is_one_file_and_changes_every_word(
    shop: Shop, run_service: Callable[..., Any], trained: Any, page: Page, tmp_path: Path
) -> None:
    letters = str.maketrans({c: chr(0x400 + ord(c)) for c in ascii_letters})  # each letter has one in Cyrillic
    whole, table = (HERE / "texts" / "en.toml").read_text(), ""
    lines = []
    for line in whole.splitlines():
        table = line if line.startswith("[") else table
        key, equals, text = line.partition(" = ")
        if equals and table not in ("", "[format]"):
            text = re.sub(r"\{\w+\}|[A-Za-z]", lambda m: m[0] if len(m[0]) > 1 else m[0].translate(letters), text)
        lines.append(f"{key}{equals}{text}")
    (tmp_path / "xx.toml").write_text("\n".join(lines), encoding="utf-8")
    policy = shop.policy.read_text(encoding="utf-8")
    env = {
        "DOORSTEP_BUNDLE": trained.bundle,
        "DOORSTEP_SNAPSHOT": trained.snapshot,
        "DOORSTEP_POLICY": shop.policy,
        "DOORSTEP_LEDGER": f"sqlite:///{tmp_path}/ledger.db",
        "DOORSTEP_WAITING": tmp_path / "waiting.db",
        "DOORSTEP_STATION_MS": 3000,
        "DOORSTEP_LANGUAGE": tmp_path / "xx.toml",
    }

    def left(text: str) -> list[str]:
        """Words that are neither of the language nor of the shop, nor a code or a key on the keyboard."""
        known = set(re.findall(r"[A-Za-z]+", f"{policy} {' '.join(c for c, _ in shop.advised)}"))
        words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\b(DS-[A-Z]+|F\d)\b", "", text))
        return [w for w in words if w not in known]

    with run_service(**env) as service:
        assert list(send(service.url, requests(Dataset.open(trained.dataset), 150))) == [100, 150]
        for code, _ in shop.advised:
            said = service.http.post("/v1/parcels/scan", json={"code": code}).json()
            assert said["kind"] == "do" and len(said["reasons"]) > 1
            assert left(" ".join([said["verdict"], said["action"], *said["reasons"]])) == [], said
        page.goto(f"{service.url}/pack")
        assert left(page.locator("body").inner_text()) == []
        scan(page, shop.advised[0][0])
        page.locator("#other").click()
        assert left(page.locator("body").inner_text()) == []
        page.keyboard.press(DONE_KEY)
        expect(page.locator("#answers")).to_be_hidden()
        assert left(page.locator("body").inner_text()) == []


def test_control_codes_are_printed(shop: Shop, page: Page, axe: Callable[[Page], None]) -> None:
    page.goto(f"{shop.service.url}/pack/codes")
    assert page.locator(".barcode").count() == 1 + len(OVERRIDES)
    axe(page)


def test_it_stands_behind_a_proxys_prefix_and_without_parcels(run_service: Callable[..., Any], page: Page) -> None:
    with run_service(DOORSTEP_PREFIX="/shop/door") as service:
        assert service.http.get("/readyz").status_code == 200
        moved = service.http.get("/shop/door")
        assert (moved.status_code, moved.headers["location"]) == (308, "/shop/door/")
        assert service.http.get("/shop/doors").status_code == 404
        page.goto(f"{service.url}/shop/door")
        page.get_by_role("link", name="Packing station").first.click()
        assert page.url == f"{service.url}/shop/door/pack"
        expect(page.locator(".note")).to_contain_text("DOORSTEP_WAITING")
        with page.expect_response("**/shop/door/v1/parcels/scan"):
            scan(page, "P1")
        expect(page.locator("#said")).to_have_text("Unknown parcel, pack as usual")
        assert page.evaluate("getComputedStyle(document.querySelector('header')).display") == "flex"
        refused = service.http.post("/v1/parcels", json=[])
        assert refused.status_code == 404 and "DOORSTEP_WAITING" in refused.json()["detail"]


def test_the_announcing_command_writes_what_it_would_send(trained: Any, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from training.cli import main

    out = tmp_path / "waiting.jsonl"
    done = CliRunner().invoke(main, ["announce", str(trained.dataset), "--last", "5", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert [json.loads(line) for line in out.read_text().splitlines()] == requests(Dataset.open(trained.dataset), 5)
    nobody = CliRunner().invoke(main, ["announce", str(trained.dataset), "http://127.0.0.1:9"])
    assert nobody.exit_code == 2 and "does not answer" in nobody.output


def test_in_shadow_nothing_is_shown_and_what_would_have_been_is_recorded_as_withheld(
    shop: Shop, station: Page, axe: Callable[[Page], None]
) -> None:
    shown = shop.policy.read_text(encoding="utf-8")
    said: dict[str, dict[str, Any]] = {}

    def ask(kind: str) -> None:
        until = time.monotonic() + 30  # the service takes up a policy within seconds
        while said.get("first", {}).get("kind") != kind:
            assert time.monotonic() < until
            said["first"] = shop.service.http.post("/v1/parcels/scan", json={"code": shop.advised[0][0]}).json()

    shop.policy.write_text(shown.replace("[station]", "[station]\nshadow_until = 2199-01-01"), encoding="utf-8")
    try:
        ask("usual")
        for code, _ in shop.advised[1:4]:
            scan(station, code)
            expect(station.locator("#said")).to_have_text("Pack as usual")
            expect(station.locator("#reasons")).to_be_hidden()
            expect(station.locator("#answers")).to_be_hidden()
        station.goto(f"{shop.service.url}/pack/shadow")
        expect(station.locator(".lead")).to_contain_text("Until 2199-01-01 the packing station shows nothing.")
        axe(station)
        decision = said["first"]["decision_id"]
        while len(hidden := [d for d in shop.decisions().values() if not d["shown"]]) < 4:  # delivered within seconds
            time.sleep(0.2)
        assert decision in {d["decision_id"] for d in hidden}
        for d in hidden:
            assert (d["action"] is not None, d["arm"], d["propensity"]) == (True, "control", 0.0)
        columns = ("parcel_id", "decided_at", "action", "arm", "propensity")
        table = {c: np.array([d[c] for d in hidden], dtype=object) for c in columns}
        table["propensity"] = table["propensity"].astype(np.float64)
        table["decided_at"] = np.array([d["decided_at"].rstrip("Z") for d in hidden], dtype="datetime64[us]")
        found = treated(table, np.unique(table["parcel_id"].astype(str)).astype(object))
        for outcome in found.weight:  # they count as what they are: untreated, and for themselves alone
            assert (found.weight[outcome] == 1).all() and np.isnat(found.left_out_at[outcome]).all()
    finally:
        shop.policy.write_text(shown, encoding="utf-8")
    ask("do")
