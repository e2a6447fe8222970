"""A headless browser for the tests of the pages, and for the pictures in the guides."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

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
