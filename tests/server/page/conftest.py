"""A Chromium, a live `glm serve`, and a page in it that must not complain."""

import os
import shutil
from pathlib import Path

import pytest
from serve_process import ServeProcess

ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 30_000


@pytest.fixture(scope="session")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed; run `make test-page`")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def nano_url():
    """`glm serve` with the embedded model, as a user starts it."""
    server = ServeProcess("--threads", "1", "--num-speculative-tokens", "2")
    yield server.root
    server.close()


@pytest.fixture
def open_page(browser):
    """`open_page(url, **context)` gives a fresh page at its own profile. Errors of scripts and of the content policy fail the test."""
    contexts, complaints = [], []

    def note(message):
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def opened(url, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-US", **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{url}/")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def picture():
    """`picture(page, name)` keeps a screenshot where the variable SCREENSHOTS names a directory."""
    directory = os.environ.get("SCREENSHOTS")

    def take(page, name):
        if directory:
            page.screenshot(path=Path(directory) / f"{name}.png", animations="disabled")

    return take
