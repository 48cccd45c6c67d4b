"""docs/faults.md: every row names a test, and the test exists."""

from __future__ import annotations

import ast
import re

import pytest

from tests import ROOT

COLUMNS = ["fault", "what happens then", "what the operator is told, and does", "test"]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row != COLUMNS and set(row[0]) != {"-"}]


def test_there_is_a_table_and_every_row_is_whole() -> None:
    found = rows()
    assert len(found) > 30
    for row in found:
        assert len(row) == len(COLUMNS), row
        assert all(row), row


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0])[:60])
def test_every_row_names_a_test_that_exists(row: list[str]) -> None:
    named = NAMED.fullmatch(row[-1])
    assert named, f"no test is named by: {row[-1]}"
    tree = ast.parse((ROOT / named[1]).read_text())
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert named[2] in tests, f"{named[1]} has no {named[2]}"
    assert named[2].startswith("test_")
