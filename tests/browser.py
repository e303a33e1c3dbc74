"""A headless Chromium for tests: `page` opens an empty page, whose console errors and failed requests are collected.

The system's browser is used, none is downloaded. Without one (or without Playwright) tests that need a page are
skipped, with the reason.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
"""Commands that start a Chromium, the first available is used; RESDM_CHROMIUM names another."""

ARGUMENTS = (
    "--no-sandbox",  # inside a container, where tests run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def chromium() -> str | None:
    """The path of a Chromium, or ``None``."""
    named = os.environ.get("RESDM_CHROMIUM")
    if named is not None:
        return named if Path(named).is_file() else None
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def open_page(width: int = 1280, height: int = 900, **context: Any) -> Iterator[Any]:
    """A page of a fresh browser, with a list ``page.errors``: console errors, exceptions and failed requests, as text.

    Parameters
    ----------
    width, height : int
        Of the window, in CSS pixels.
    **context
        Options of Playwright's ``new_context`` (``is_mobile``, ``device_scale_factor``, …).
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -e '.[dev]'")
    path = chromium()
    if path is None:
        pytest.skip(f"no Chromium (looked for {', '.join(NAMES)}): apt-get install chromium, or set RESDM_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(ARGUMENTS))
        except sync_api.Error as error:  # such as a stub that asks for a snap
            pytest.skip(f"{path} does not start: {error}")
        try:
            page = browser.new_context(viewport={"width": width, "height": height}, **context).new_page()
            page.errors = []
            page.on("console", lambda line: line.type == "error" and page.errors.append(line.text))
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on("requestfailed", lambda request: page.errors.append(f"{request.url}: {request.failure}"))
            yield page
        finally:
            browser.close()


@pytest.fixture
def page() -> Iterator[Any]:
    """See `open_page`."""
    with open_page() as opened:
        yield opened
