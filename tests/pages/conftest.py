"""A real browser before a real service. What the browser complains of, or asks of another machine, fails the test."""

import os
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import browser as started
from browsers import executable, watched
from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")  # while it runs, Playwright holds an event loop in this thread that others cannot use
def browser() -> Iterator[Browser]:
    """Chromium. Where there is none the test is skipped, but never where CI is set."""
    if executable() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no chromium: `make test` says how to get one")
    with started() as chromium:
        yield chromium


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page at desktop size; see `watched`."""
    with watched(browser, viewport={"width": 1280, "height": 900}) as page:
        yield page


@pytest.fixture(scope="session")
def axe() -> Callable[[Page], None]:
    """Fails on serious and critical faults of accessibility of what a page shows now."""

    def check(page: Page) -> None:
        found = Axe().run(page).response["violations"]
        bad = [f for f in found if f["impact"] in ("serious", "critical")]
        said = [f"{f['id']}: {f['help']}: {[n['html'] for n in f['nodes']]}" for f in bad]
        assert said == []

    return check
