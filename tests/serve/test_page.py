"""The page to chat, in a real browser: playwright and Chromium are needed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
sync_api = pytest.importorskip("playwright.sync_api")

from tests.serve.server import Running, serving  # noqa: E402

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
PICTURES = os.environ.get("BITSMITH_SCREENSHOTS")  # a folder, to look at them
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving() as found:
        decoder: Any = found.model.decoder
        inner = decoder.hidden

        def slowly(*args: Any, **words: Any) -> Any:
            time.sleep(0.01)  # so that there is something to stop
            return inner(*args, **words)

        decoder.hidden = slowly
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def until(true: Callable[[], bool]) -> None:
    """Wait; the page's own policy forbids playwright's way to do so."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Page:
    """An open page, and what went wrong in it."""

    def __init__(self, browser: Any, url: str, **words: Any) -> None:
        self.page = browser.new_page(**words)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on(
            "console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        until(lambda: self.page.title() != "bitsmith")

    def set(self, name: str, value: str) -> None:
        if not self.page.locator("#settings").get_attribute("open"):
            self.page.evaluate("document.getElementById('settings').open = true")
        self.page.fill(f"#{name}", value)

    def ask(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def ended(self) -> str:
        """The last answer, once it has ended."""
        self.page.wait_for_selector("#send:not([hidden])", timeout=60000)
        return str(self.page.locator("main article").last.inner_text())

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.screenshot(path=str(Path(PICTURES) / f"{name}.png"))


@pytest.fixture
def page(running: Running, browser: Any) -> Iterator[Page]:
    made = Page(browser, running.url)
    yield made
    assert made.wrong == []
    assert all(url.startswith(running.url) or url.startswith("data:") for url in made.asked)
    made.page.close()


def test_a_message_is_answered_in_pieces(page: Page, running: Running) -> None:
    page.set("max_tokens", "60")
    page.set("temperature", "0")
    page.ask("Tell me of the whale.")
    lengths = set()
    while page.page.locator("#stop").is_visible():
        lengths.add(len(page.page.locator("main article").last.inner_text()))
    assert len(lengths) > 4
    talk = [{"role": "user", "content": "Tell me of the whale."}]
    expected = running.model.chat(talk, max_tokens=60, temperature=0)
    assert page.ended().split() == expected.split()
    assert "tokens/s" in page.page.locator("#speed").inner_text()
    assert page.page.locator("#model").inner_text() == "reference"
    page.picture("answer")


def test_stop_and_again(page: Page, running: Running) -> None:
    page.set("max_tokens", "400")
    page.ask("Tell me of the whale.")
    until(lambda: len(page.page.locator("article.assistant").inner_text()) > 20)
    page.page.click("#stop")
    assert page.ended().endswith("stopped")
    until(lambda: running.engine.load == (0, 0))
    page.picture("stopped")
    page.set("max_tokens", "5")
    page.page.click("#again")
    assert not page.ended().endswith("stopped")
    assert page.page.locator("main article").count() == 2
    page.ask("And then?")
    page.ended()
    assert page.page.locator("main article").count() == 4


def test_an_error_is_shown_and_the_talk_goes_on(running: Running, browser: Any) -> None:
    page = Page(browser, running.url)
    page.set("max_tokens", "5")
    page.ask("whale " * 2000)
    assert "shorten it" in page.ended()
    page.ask("Tell me of the whale.")
    assert "shorten it" not in page.ended()
    assert page.page.locator("article.error").count() == 1
    assert all("400" in words for words in page.wrong)  # the browser's own note of the refused request
    page.page.close()


def test_a_phone_in_the_dark(running: Running, browser: Any) -> None:
    page = Page(browser, running.url, viewport={"width": 360, "height": 640}, color_scheme="dark", has_touch=True)
    page.page.evaluate("document.querySelectorAll('#settings')[0].open = false")
    page.set("max_tokens", "40")
    page.picture("phone-settings")
    page.page.evaluate("document.querySelectorAll('#settings')[0].open = false")
    page.ask("Tell me of the whale.")
    page.ended()
    wide, seen = page.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= seen
    for name in ("#text", "#send", "#again"):
        box = page.page.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["y"] + box["height"] <= 640
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    page.picture("phone")
    assert page.wrong == []
    page.page.close()


def test_markdown_is_shown_and_html_is_not_run(page: Page) -> None:
    lines = ("# Head", "", "- one", "- **two**", "", "```python", "print('<b>')", "```")
    lines += ("| a | b |", "|---|---|", "| 1 | <img src=x onerror=boom()> |")
    text = "\\n".join(lines)
    html = page.page.evaluate(f'markdown("{text}")')
    for wanted in (
        "<h1>Head</h1>",
        "<li>one</li>",
        "<strong>two</strong>",
        "<pre><code>print('&lt;b&gt;')",
        "<td>1</td>",
    ):
        assert wanted in html
    assert "<img" not in html
    page.page.evaluate(f'bubble("assistant", markdown("{text}"))')
    page.picture("markdown")
