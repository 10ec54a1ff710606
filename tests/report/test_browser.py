"""The report page in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import HOSTILE

from scalekd.report import measure_figures, read_runs, render_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here (apt-get install chromium)")


@pytest.fixture(scope="module")
def page_file(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = read_runs([runs / "none", runs / "scalekd"])
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_page(records, [measure_figures(record, 6) for record in records]))
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, page_file: Path) -> Iterator[Page]:
    """The opened page. At teardown, fails if it loaded a resource, wrote to the console or raised an error."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(dialog.message))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(page_file.as_uri())
    yield page
    assert [what for what in heard if what != page_file.as_uri() and not what.startswith("data:")] == []
    page.close()


def test_a_hostile_class_is_shown_as_text_and_a_phone_need_not_scroll_sideways(page: Page) -> None:
    assert page.get_by_text(HOSTILE).count() > 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hovering_and_arrow_keys_show_values(page: Page) -> None:
    tip = page.locator("#tip")
    assert tip.is_hidden()
    chart = page.locator("figure.chart", has_text="Loss: all terms").locator("svg")
    chart.hover()
    assert tip.is_visible()
    shown = tip.inner_text()
    assert "epoch" in shown
    assert {"none", "scalekd"} <= set(shown.split())
    page.mouse.move(0, 0)
    assert tip.is_hidden()
    chart.focus()
    page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert "epoch" in first
    assert first != tip.inner_text()


def test_hovering_a_square_shows_its_value(page: Page) -> None:
    page.locator("svg.heat rect").first.hover()
    assert "frequency (0, 0)" in page.locator("#tip").inner_text()


def test_the_table_sorts_both_ways(page: Page) -> None:
    def column() -> list[str]:
        return list(page.locator("table.sortable tbody tr td:first-child").all_inner_texts())

    head = page.locator("table.sortable th", has_text="run")
    head.locator("button").click()
    assert (column(), head.get_attribute("aria-sort")) == (["none", "scalekd"], "ascending")
    head.locator("button").click()
    assert (column(), head.get_attribute("aria-sort")) == (["scalekd", "none"], "descending")


def test_dark_and_print(page: Page) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page.emulate_media(color_scheme="dark")
    assert background() != "rgb(255, 255, 255)"
    page.emulate_media(media="print", color_scheme="dark")
    assert background() == "rgb(255, 255, 255)"
