"""Headless Chromium, for tests of pages.

They are skipped where there is none: `pip install playwright`, and Debian's package chromium.
"""

import contextlib
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium():
    """A browser of playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"there is no browser; one of {', '.join(BROWSERS)} is needed")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
