"""A headless browser for the tests of the pages, and for the pictures in the guides."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
TABLET = {"width": 820, "height": 1180}


def executable() -> str | None:
    """Path of the system's Chromium, or None: Playwright's own download is not used."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    path = executable()
    if path is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is on the PATH; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def watched(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page of a context of its own; fails at the end on what it complained of or asked of another machine.

    Attributes of the page:
        expected: parts of console errors that the test means to provoke, such as "net::ERR_INTERNET_DISCONNECTED".
    """
    context: BrowserContext = browser.new_context(**{"locale": "en-GB", "timezone_id": "UTC", **options})
    context.set_default_timeout(10_000)
    faults: list[str] = []
    elsewhere: list[str] = []
    page = context.new_page()
    page.expected = []  # type: ignore[attr-defined]
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    context.on(
        "request",
        lambda r: elsewhere.append(r.url) if urlsplit(r.url).hostname not in ("127.0.0.1", None) else None,
    )
    try:
        yield page
        left = [f for f in faults if not any(part in f for part in page.expected)]  # type: ignore[attr-defined]
        assert left == [], "the browser's console has errors"
        assert elsewhere == [], "asked of another machine"
    finally:
        context.close()
