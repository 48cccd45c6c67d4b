"""Reports in a real browser: accessible, light and dark; no request; nothing wider than a phone; a clean print."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.reporting.index import build_site
from tasks.reporting.page import render_report
from tests.fleet import until
from tests.tasks.reporting import samples
from tests.tasks.reporting.test_index import a_night, remembered
from validation.records import Verdict

pytestmark = pytest.mark.thorough

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
# "alarm" is "promoted" with everything that a page can have: the champion before fell short.
PAGES = ("alarm", "champion unusable", "nothing new", "index", "planned changes")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of the pages on this machine's disk, as a reader opens them."""
    folder = tmp_path_factory.mktemp("pages")
    promoted = samples.full_inputs(synthetic=True)
    field = samples.field_report("sensitivity", "balanced_accuracy")
    nights = {
        "promoted": promoted,
        "alarm": replace(promoted, night=promoted.night.model_copy(update={"field": field})),
        "kept": samples.full_inputs(Verdict.KEPT, gates=samples.gates("superior balanced accuracy")),
        "champion unusable": samples.unusable(),
        "nothing new": samples.nothing_new(),
    }
    addresses = {}
    for name, inputs in nights.items():
        path = folder / f"{name.replace(' ', '-')}.html"
        path.write_text(render_report(inputs), encoding="utf-8")
        addresses[name] = path.as_uri()
    verdicts = enumerate(Verdict, start=1)
    context = remembered(folder / "home", *(a_night(number, verdict) for number, verdict in verdicts))
    index = build_site(context)
    return addresses | {"index": index.as_uri(), "planned changes": (index.parent / "planned-changes.html").as_uri()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of this module."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab that remembers what was requested from the network, and the complaints of the browser."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_no_page_uses_the_network_or_bars_a_reader(name: str, tab: Any, pages: dict[str, str]) -> None:
    from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]

    tab.goto(pages[name])
    asked = list(tab.asked)
    for width, scheme in ((1280, "light"), (1280, "dark"), (820, "light"), (390, "light")):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        violations = Axe().run(tab).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == [], (width, scheme)
    assert {url for url in asked if not url.startswith("data:")} == {pages[name]}
    assert tab.complaints == []


@pytest.mark.parametrize("width", [360, 820, 1440])
@pytest.mark.parametrize("name", ["alarm", "kept", "index", "planned changes"])
def test_nothing_is_wider_than_the_screen(name: str, width: int, tab: Any, pages: dict[str, str]) -> None:
    tab.set_viewport_size({"width": width, "height": 740})
    tab.goto(pages[name])
    tab.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = (
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML)"
    )
    assert [html[:200] for html in tab.evaluate(wide) if "<pre" not in html] == []


def test_a_row_is_a_card_on_a_phone(tab: Any, pages: dict[str, str]) -> None:
    tab.set_viewport_size({"width": 390, "height": 900})
    tab.goto(pages["promoted"])
    cell = tab.locator("table[aria-label='Metrics on judging patients'] tbody tr").first.locator("td").first
    assert cell.evaluate("e => getComputedStyle(e, '::before').content") == '"Challenger"'
    assert cell.bounding_box()["width"] > 300
    assert not tab.locator("table[aria-label='Metrics on judging patients'] thead").is_visible()
    assert tab.locator("#commands").bounding_box()["y"] < tab.locator("#why").bounding_box()["y"]


def test_the_tab_key_skips_to_the_content_and_stops_seldom(tab: Any, pages: dict[str, str]) -> None:
    tab.goto(pages["promoted"])
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    assert tab.locator("a[href], summary, input, [tabindex='0']").count() < 40


def test_the_first_screen_holds_the_verdict_the_reason_and_the_command(tab: Any, pages: dict[str, str]) -> None:
    tab.goto(pages["promoted"])
    for name in ("h1", "#changes", "#patient", "#limits", "#patients", "#commands"):
        assert tab.locator(name).bounding_box()["y"] < 900, name


@pytest.mark.parametrize(("width", "most"), [(1440, 9_000), (820, 12_000), (390, 15_500)])
def test_it_is_short(width: int, most: int, tab: Any, pages: dict[str, str]) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(pages["alarm"])
    assert tab.evaluate("document.documentElement.scrollHeight") <= most


def test_what_is_folded_unfolds(tab: Any, pages: dict[str, str]) -> None:
    tab.goto(pages["promoted"])
    settings = tab.locator("summary", has_text="Settings")
    assert not tab.get_by_text("RETRAIN_SEED").is_visible()
    settings.click()
    assert tab.get_by_text("RETRAIN_SEED").is_visible()


def test_a_gallery_on_a_phone_is_a_strip_that_keys_scroll(tab: Any, pages: dict[str, str]) -> None:
    tab.set_viewport_size({"width": 390, "height": 900})
    tab.goto(pages["promoted"])
    strip = tab.locator("ul.cells.gained").first
    assert len({cell.bounding_box()["y"] for cell in strip.locator("li").all()}) == 1
    assert strip.evaluate("e => e.scrollWidth > e.clientWidth")
    strip.focus()
    tab.keyboard.press("ArrowRight")
    until(lambda: strip.evaluate("e => e.scrollLeft") > 0)


def test_two_decisions_are_set_side_by_side_by_their_address(tab: Any, pages: dict[str, str], tmp_path: Path) -> None:
    nights = (a_night(number, value=0.90 + number / 100, judged="f" * (number != 2)) for number in (1, 2, 3))
    address = build_site(remembered(tmp_path, *nights)).as_uri()
    tab.goto(address)
    side_by_side = tab.locator("#compared")
    assert not side_by_side.is_visible()
    tab.get_by_label("Compare 2026-01-05").check()
    assert not side_by_side.is_visible()
    tab.get_by_label("Compare 2026-01-03").check()

    def shown() -> list[list[str]]:
        return [row.inner_text().split("\t") for row in tab.locator("#side-by-side tr").all()]

    head, *rows = shown()
    assert [cell.split(" ")[0] for cell in head[1:3]] == ["2026-01-03", "2026-01-05"]
    found = {row[0]: row[1:] for row in rows}
    assert "night 1" in found["Verdict"][0]
    assert found["Sensitivity"] == ["91.0% 90.0–92.0", "93.0% 92.0–94.0", "+2.0"]
    assert found["AUC"][2] == "+0.020"
    assert "were judged on the same cells" in tab.inner_text("#pairing")
    assert tab.inner_text("#pairing code") == f"retrain compare {'d1' * 6} {'d3' * 6}"
    # Another reader of the same address sees the same.
    shared = tab.url
    tab.goto("about:blank")
    tab.goto(shared)
    assert shown() == [head, *rows]
    # A third takes the place of the first.
    tab.get_by_label("Compare 2026-01-04").check()
    assert tab.locator(".index input:checked").count() == 2
    # Its patients were others: the figures stand side by side, and have no difference.
    assert tab.inner_text("#pairing").startswith("This is no comparison")
    head, *rows = shown()
    assert [row[3:] for row in (head, *rows) if "".join(row[3:])] == []
    tab.click("#close")
    assert not side_by_side.is_visible()
    assert "compare" not in tab.url


def test_pictures_grow_where_a_reader_asks_for_it(tab: Any, pages: dict[str, str]) -> None:
    tab.goto(pages["promoted"])
    cell = tab.locator("svg.cell").first
    before = cell.bounding_box()["width"]
    tab.check("#large")
    assert cell.bounding_box()["width"] > 2 * before


def test_pictures_are_drawn(tab: Any, pages: dict[str, str]) -> None:
    """Each is defined once and used by name: a name that leads nowhere would draw nothing, without a complaint."""
    tab.goto(pages["promoted"])
    sizes = tab.evaluate("[...document.querySelectorAll('svg.cell use')].map(use => use.getBBox().width)")
    assert sizes
    assert min(sizes) > 0


def test_it_prints_on_few_pages_in_black_on_white(tab: Any, pages: dict[str, str], tmp_path: Path) -> None:
    tab.emulate_media(color_scheme="dark", media="print")
    tab.goto(pages["alarm"])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    # What a screen folds away is a line on paper: it is not cut without a sign.
    assert tab.locator("details > summary").first.bounding_box()["height"] > 0
    assert not tab.locator("details .keys").first.is_visible()
    pdf = tab.pdf(path=str(tmp_path / "page.pdf"), format="A4", outline=True, tagged=True)
    assert b"/Outlines" in pdf
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8


def test_the_index_filters_by_verdict_and_text(tab: Any, pages: dict[str, str]) -> None:
    tab.goto(pages["index"])
    rows = tab.locator(".index tr[data-id]:visible")
    assert rows.count() == len(Verdict)
    tab.select_option("select[name=verdict]", "kept")
    assert rows.count() == 1
    assert "Kept" in rows.first.inner_text()
    assert tab.inner_text("#shown") == f"1 of {len(Verdict)} decisions"
    tab.select_option("select[name=verdict]", "")
    tab.fill("input[name=text]", "NIGHT 3")
    assert rows.count() == 1
    # The address holds the filters: another reader sees the same rows.
    tab.reload()
    assert rows.count() == 1
    tab.fill("input[name=text]", "")
    tab.fill("input[name=from]", "2026-01-06")
    assert rows.count() == len(Verdict) - 3
    tab.select_option("select[name=sort]", "oldest")
    assert "night 4" in rows.first.inner_text()


def test_a_year_of_nights_is_paged(tab: Any, tmp_path: Path) -> None:
    nights = (a_night(number, field=samples.field_report() if number == 119 else None) for number in range(1, 120))
    tab.goto(build_site(remembered(tmp_path, *nights)).as_uri())
    rows = tab.locator(".index tr[data-id]:visible")
    assert rows.count() == 50
    tab.click("#more")
    tab.click("#more")
    assert rows.count() == 119
    assert not tab.locator("#more").is_visible()
    tab.reload()
    assert rows.count() == 50
    tab.pdf()  # paper has no button that shows more
    assert rows.count() == 119


def test_the_index_is_whole_without_its_script(browser: Any, pages: dict[str, str]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["index"])
    assert page.locator(".index tr[data-id]:visible").count() == len(Verdict)
    assert not page.locator("#filters").is_visible()
    context.close()


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no poppler on this machine")
def test_every_printed_page_has_its_number_and_the_decision_and_the_last_a_place_to_sign(
    tab: Any, pages: dict[str, str], tmp_path: Path
) -> None:
    tab.goto(pages["alarm"])
    path = tmp_path / "page.pdf"
    tab.pdf(path=str(path), format="A4")
    printed = subprocess.run(
        ["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True
    ).stdout
    sheets = printed.split("\f")[:-1]
    for number, sheet in enumerate(sheets, start=1):
        assert f"Page {number} of {len(sheets)}" in sheet
        assert "Decision 94c7d03b1f6e28a5d9410c3e" in sheet
    assert "Signature" in sheets[-1]


def test_a_command_breaks_between_its_words(tab: Any, pages: dict[str, str]) -> None:
    """Copied, it is one line; `--why` does not become `--` and `why`."""
    tab.set_viewport_size({"width": 360, "height": 900})
    tab.goto(pages["promoted"])
    command = tab.locator("#commands ~ dl code").first
    assert command.inner_text() == 'retrain rollback --why "REASON"'
    assert [len(word.evaluate("e => e.getClientRects()")) for word in command.locator("span").all()] == [1, 1, 1, 1]
