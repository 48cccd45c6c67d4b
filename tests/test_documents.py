"""The documents: every path of the repository that they name exists, and every link between them leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), ROOT / "flows" / "README.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("benchmarks", "docs", "flows", "infra", "tasks", "tests", "validation", ".ci")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
# A path from the root, up to a test's name or a line's number. `tasks/<stage>.py` and `docs/*.md` are none.
PATH = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*(?=::|:\d|$)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z]+:")


def paths(text: str) -> Iterator[str]:
    """Every path of the repository that a document names in backticks, alone or in a command."""
    for code in CODE.findall(FENCED.sub("", text)):
        for word in code.split():
            if found := PATH.match(word):
                yield found[0]


def anchors(document: Path) -> set[str]:
    """What a link can name behind ``#``: headings as GitHub names them."""
    headings = HEADING.findall(FENCED.sub("", document.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(path: str) -> bool:
    """Whether there is such a file or folder, or an example that a person copies to it."""
    return (ROOT / path).exists() or (ROOT / f"{path}.example").exists()


def broken(document: Path, target: str) -> bool:
    """Whether a relative link leads nowhere."""
    if ELSEWHERE.match(target):
        return False
    name, _, anchor = target.partition("#")
    file = document.parent / name if name else document
    return not file.exists() or (anchor != "" and anchor not in anchors(file))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_a_document_names_only_what_there_is(document: Path) -> None:
    text = document.read_text()
    assert [path for path in paths(text) if not exists(path)] == []
    assert [target for target in LINK.findall(text) if broken(document, target)] == []


def test_paths_are_told_from_other_words() -> None:
    text = "`tasks/a.py`, `python tests/b.py::c docs/d.md:7`, `tasks/<stage>.py`, `docs/*.md`, tasks/e.py, `flows.cli`"
    assert list(paths(text)) == ["tasks/a.py", "tests/b.py", "docs/d.md"]
    assert list(paths("```\n`tasks/a.py`\n```\n`infra/`")) == ["infra/"]


def test_a_link_that_leads_nowhere_is_found() -> None:
    readme = ROOT / "README.md"
    assert broken(readme, "docs/no_such_page.md")
    assert broken(readme, "docs/gate.md#no-such-heading")
    assert not broken(readme, "docs/gate.md#the-gate")
    assert not broken(ROOT / "docs" / "gate.md", "../README.md")
    assert not broken(readme, "https://example.com/nothing")
