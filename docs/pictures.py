"""Takes the pictures of the documents, docs/report.png and docs/index.png: ``python -m docs.pictures HOME``.

HOME is a home folder after three nights on synthetic cells (`make run`, three times). It needs Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# What is seen of each page, width and height in pixels.
SIZES = {"report": (1200, 1130), "index": (1180, 1190)}


def take(home: Path) -> None:
    """Photograph the first screen of the newest report, and of the index."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from infra.settings.settings import Settings
    from tasks.context import Context
    from tasks.nights import find_night
    from tasks.report import report
    from tasks.reporting.index import build_site

    context = Context.open(Settings(home=home, store=f"file://{home}/synthetic/store"))
    pages = {"report": report(context, find_night(context, "latest")), "index": build_site(context)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height) in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            page.goto(pages[name].as_uri())
            taken = Image.open(io.BytesIO(page.screenshot()))
            # 256 colours are enough, and a quarter of the bytes.
            taken.convert("RGB").quantize(256).save(FOLDER / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]).absolute())
