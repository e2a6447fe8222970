import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page

from serving.diagnosis import TABLES
from serving.pages import PAGES
from serving.pages.site import HERE, NAVIGATION, link
from serving.pages.texts import TextError, Texts

SOURCES = [*HERE.glob("templates/*"), *HERE.glob("*.py")]
KEY = re.compile(r"""\b(?:t|texts)\(\s*f?["']([a-z_.]+)(?:["'](\s*~)?|(\{))""")
TABLE = re.compile(r"""(?:\b(?:word|under)\(\s*|\.all\.get\(f)["']([a-z_]+)["'.]""")


class TestTexts:
    def test_every_text_that_a_page_names_is_there_and_none_is_unused(self) -> None:
        texts = Texts.load().all
        named, tables = set(), {"format", "page"}  # `page`: the names of NAVIGATION
        for path in SOURCES:
            for key, joined, filled in KEY.findall(path.read_text()):
                (tables.add(key.partition(".")[0]) if joined or filled else named.add(key))
            tables |= set(TABLE.findall(path.read_text()))
        assert named - texts.keys() == set()
        assert {key for key in texts if key not in named and key.partition(".")[0] not in tables} == set()
        assert {f"page.{name}" for name, _ in NAVIGATION} == {key for key in texts if key.startswith("page.")}

    def test_every_column_that_rows_are_shown_with_has_a_name(self) -> None:
        assert {f"column.{c}" for table in TABLES.values() for c in table.columns} <= Texts.load().all.keys()

    def test_no_template_says_words_of_its_own(self) -> None:
        for path in HERE.glob("templates/*.html"):
            without = re.sub(
                r"\{% block kind %\}\w+|\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}|<[^>]*>", "", path.read_text(), flags=re.DOTALL
            )
            assert re.findall(r"[A-Za-z]{2,}", without) in ([], ["docs", "json"]), path.name

    def test_another_language_is_another_file(self, tmp_path: Path) -> None:
        whole = (HERE / "texts" / "en.toml").read_text()
        other = tmp_path / "de.toml"
        other.write_text(whole.replace('decimal = "."', 'decimal = ","').replace('thousands = ","', 'thousands = "."'))
        texts = Texts.load(str(other))
        assert texts.number(1234567.891, 2) == "1.234.567,89"
        assert texts.percent(-0.0345) == "−3,5 %"
        other.write_text(re.sub(r"^skip = .*$", "", whole, flags=re.MULTILINE))
        with pytest.raises(TextError, match=r"lacks 1 texts: site\.skip"):
            Texts.load(str(other))
        with pytest.raises(TextError, match="allowed: en"):
            Texts.load("xx")

    def test_a_code_without_a_word_is_shown_as_it_is(self) -> None:
        assert Texts({"team.packing": "Packing"}).word("team", "packing") == "Packing"
        assert Texts({}).word("team", "cold_chain") == "cold chain"


class TestLinks:
    @given(st.integers(0, 4), st.sampled_from([p for _, p in NAVIGATION]), st.text(min_size=1))
    def test_a_link_leads_to_the_path_from_any_depth_behind_any_prefix(self, depth: int, path: str, sku: str) -> None:
        here = "http://host/behind/a/prefix/" + "x/" * depth + "page?q=1"
        found = urlsplit(urljoin(here, link(depth, path, {"sku": sku, "none": None})))
        assert found.path == "/behind/a/prefix" + path
        assert parse_qs(found.query, keep_blank_values=True, errors="strict") == {"sku": [sku]}

    def test_static_files_are_kept_by_their_digest_and_only_by_it(self, bare: Any) -> None:
        text = bare.http.get("/").text
        (asked,) = re.findall(r'href="\./(static/doorstep\.css\?v=[0-9a-f]{16})"', text)
        found = bare.http.get(f"/{asked}")
        assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert found.headers["content-type"] == "text/css; charset=utf-8"
        again = bare.http.get("/static/doorstep.css", headers={"if-none-match": found.headers["etag"]})
        assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")
        assert bare.http.get("/static/doorstep.css?v=0").headers["cache-control"] == "no-cache"
        assert bare.http.get("/static/../site.py").status_code == 404


class TestPages:
    def test_headers_allow_nothing_from_elsewhere(self, bare: Any) -> None:
        for path in PAGES:
            headers = bare.http.get(path).headers
            assert headers["content-security-policy"].startswith("default-src 'self'; ")
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["cache-control"] == "no-store"

    @pytest.mark.parametrize(
        ("path", "like"), [("/carrierz", "/carriers"), ("/listings/", "/listings"), ("/a%2Fb/<b>&c", None)]
    )
    def test_a_mistyped_address_is_a_page_for_a_browser_and_json_for_a_program(
        self, bare: Any, page: Page, axe: Callable[[Page], None], path: str, like: str | None
    ) -> None:
        page.expected = ["404"]  # type: ignore[attr-defined]
        answer = page.goto(bare.url + path)
        assert answer is not None and answer.status == 404
        assert page.locator("h1").inner_text() == "There is no such page"
        assert page.locator("main code").inner_text() == unquote(path)
        axe(page)
        if like:
            page.get_by_role("link", name=like, exact=True).click()
        else:
            page.get_by_role("main").get_by_role("link", name="Carriers").click()
        assert urlsplit(page.url).path == (like or "/carriers")
        for accept in ("*/*", "application/json", "application/json, text/html;q=0.5"):
            found = bare.http.get(path, headers={"accept": accept})
            assert (found.status_code, found.headers["content-type"]) == (404, "application/problem+json")
        assert bare.http.post("/carrierz", json={}, headers={"accept": "text/html"}).headers["content-type"] == (
            "application/problem+json"
        )

    @pytest.mark.parametrize("path", PAGES)
    @pytest.mark.parametrize("width", [1280, 820, 390])
    def test_a_page_of_a_service_with_nothing_loaded(
        self, bare: Any, page: Page, axe: Callable[[Page], None], path: str, width: int
    ) -> None:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(bare.url + path)
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width == 1280:
            axe(page)
