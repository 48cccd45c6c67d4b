"""Builds the site of the documents, without any connection: ``python -m docs.site [FOLDER]``, by default site/.

The pages are laid out as in the repository, so that their links lead to each other. A link that leads nowhere is an
error.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "LICENSE", "flows/README.md", "docs/**/*.md", "docs/*.png", "docs/*.svg")


def build(folder: Path) -> None:
    """Write the site into ``folder``.

    Raises:
        mkdocs.exceptions.Abort: (exit code 1) when a link or an anchor leads nowhere, or a page is in no menu.
    """
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    with tempfile.TemporaryDirectory() as pages:
        for path in (path for pattern in PAGES for path in ROOT.glob(pattern)):
            copy = Path(pages) / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
            if path.suffix == ".md":
                copy.write_text(as_mkdocs_reads(path.read_text()))
        config = load_config(str(ROOT / "docs" / "mkdocs.yml"), docs_dir=pages, site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build_site(config)


def as_mkdocs_reads(text: str) -> str:
    """Return a page whose lists are indented by four columns, where GitHub takes two; blocks of code stay."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"^( +)", r"\1\1", part, flags=re.MULTILINE) for part in parts[::2]]
    return "".join(parts)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "site"))
