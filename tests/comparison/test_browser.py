"""The report in a real browser: charts are drawn, nothing is asked of the network, the table sorts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import bitsmith

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("vl_convert")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_report_in_chromium(tiny: Path, prose: Path, other: Path, tmp_path: Path, width: int, scheme: str) -> None:
    words: dict[str, Any] = {"context": 32, "max_windows": 4, "noise_floor": False, "generate": 4}
    found = bitsmith.compare(tiny, to="q8_0,q4_0", text=[f"prose={prose}", f"code={other}"], **words)
    page_path = found.report(tmp_path / "report.html")
    complaints: list[str] = []
    asked: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_path.as_uri())
        for name in ("loss", "texts", "layers"):
            page.wait_for_selector(f"#chart-{name}[data-drawn=true] svg", timeout=60_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("thead th:nth-child(2) button")
        names = page.eval_on_selector_all("tbody td:first-child", "cells => cells.map(cell => cell.textContent)")
        assert names == ["q4_0", "q8_0", "tiny"]
        page.click("thead th:nth-child(2) button")
        names = page.eval_on_selector_all("tbody td:first-child", "cells => cells.map(cell => cell.textContent)")
        assert names == ["tiny", "q8_0", "q4_0"]
        page.emulate_media(media="print", color_scheme=scheme)  # type: ignore[arg-type]
        fill = page.eval_on_selector("#chart-loss svg text", "text => getComputedStyle(text).fill")
        assert fill in ("rgb(0, 0, 0)", "rgb(68, 68, 68)")  # dark on white, whatever the browser's scheme is
        browser.close()
    assert complaints == []
    assert asked == [page_path.as_uri()]
