"""A real browser without a window, and a page in it that is watched for what must never happen."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, Response, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
USUAL = {
    "darwin": ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",),
    "win32": (
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    ),
}
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WATCH = """
addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective}`));
"""


def find_browser() -> Path | None:
    """Chromium or Chrome, by its name or where it usually is."""
    named = (shutil.which(name) for name in NAMES)
    usual = (path for path in USUAL.get(sys.platform, ()) if Path(path).is_file())
    found = next((path for path in (*named, *usual) if path), None)
    return None if found is None else Path(found)


@contextmanager
def started() -> Iterator[Browser]:
    """The browser. Where there must be one, none is a failure."""
    path = find_browser()
    if path is None:
        text = f"no Chromium or Chrome was found (looked for {', '.join(NAMES)}): the page's tests need one"
        must = os.environ.get("CI") or os.environ.get("BOREALIS_GGUF_ALL_TESTS")
        (pytest.fail if must else pytest.skip)(text)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Watched:
    """A tab with the page open. `errors` is what its console said, `asked` all addresses it asked for."""

    page: Page
    origin: str
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def at(self, name: str) -> Locator:
        return self.page.locator(name)

    @property
    def answer(self) -> Locator:
        """The body of the last answer."""
        return self.at(".assistant .body").last

    @property
    def note(self) -> Locator:
        """What stands under it."""
        return self.at(".assistant .foot").last

    def say(self, text: str) -> None:
        self.at("#input").fill(text)
        self.page.keyboard.press("Enter")

    def done(self) -> None:
        """Wait for the end of the answer."""
        self.at("#send").wait_for(state="visible")

    def script(self, code: str, value: Any = None) -> Any:
        return self.page.evaluate(code, value)

    def check(self) -> None:
        """Nothing from elsewhere, nothing missing, no error, nothing that the policy forbids."""
        outside = [url for url in self.asked if not url.startswith((self.origin + "/", "data:"))]
        assert (outside, self.errors, self.failed) == ([], [], [])


@contextmanager
def opened(browser: Browser, origin: str, **options: Any) -> Iterator[Watched]:
    """The page in a new profile; what it did is checked in the end."""
    context = browser.new_context(**{"locale": "nb-NO", "viewport": {"width": 1100, "height": 760}} | options)
    context.set_default_timeout(5000)
    page = context.new_page()
    watched = Watched(page, origin)

    def hear(message: ConsoleMessage) -> None:
        # An answer that is an error, or broken off, is said here too; files that are missing are found below.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            watched.errors.append(message.text)

    def see(response: Response) -> None:
        if response.status >= 400 and "/v1/" not in response.url:
            watched.failed.append(response.url)

    def ask(request: Request) -> None:
        watched.asked.append(request.url)

    page.on("console", hear)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("dialog", lambda dialog: watched.errors.append(f"a dialog: {dialog.message}"))
    page.on("popup", lambda popup: watched.errors.append(f"a window: {popup.url}"))
    page.on("request", ask)
    page.on("response", see)
    context.add_init_script(WATCH)
    try:
        page.goto(origin)
        page.locator("#model:not(:empty)").wait_for()
        yield watched
        watched.check()
    finally:
        context.close()
