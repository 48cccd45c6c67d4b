"""Texts kept by digest: what comes back is what was put, and a damaged file costs nothing but itself."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from infra.local.facts_cache import FactsCache
from validation.digest import sha256

TEXTS = {sha256(str(number).encode()): f'["täxt", {number}]' for number in range(1_200)}
OTHER = sha256(b"other")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "kept.sqlite"
    with FactsCache(path) as kept:
        kept.put(TEXTS)
    return path


def test_texts_come_back_and_others_do_not(path: Path) -> None:
    with FactsCache(path) as kept:
        assert kept.get([*TEXTS, OTHER]) == TEXTS
        assert kept.get([OTHER]) == {}
        assert kept.get([]) == {}


def test_a_text_is_replaced(path: Path) -> None:
    digest = next(iter(TEXTS))
    with FactsCache(path) as kept:
        kept.put({digest: "new"})
        assert kept.get([digest]) == {digest: "new"}


@pytest.mark.parametrize("harm", ["text", "cut", "zeros", "empty", "removed"])
def test_a_damaged_file_is_replaced(path: Path, harm: str) -> None:
    whole = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        middle = len(whole) // 2
        zeroed = whole[:4096] + bytes(len(whole) - 4096)
        path.write_bytes({"text": b"no database" * 500, "cut": whole[:middle], "zeros": zeroed, "empty": b""}[harm])
    with FactsCache(path) as kept:
        found = kept.get(TEXTS)
        assert found.items() <= TEXTS.items()
        assert len(found) < len(TEXTS)
        kept.put(TEXTS)
        kept.put(TEXTS)
        assert kept.get(TEXTS) == TEXTS


def test_a_text_that_rotted_is_not_believed(path: Path) -> None:
    digest = next(iter(TEXTS))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE kept SET text = ? WHERE digest = ?", (b"[1]", bytes.fromhex(digest)))
    connection.close()
    with FactsCache(path) as kept:
        assert set(TEXTS) - set(kept.get(TEXTS)) == {digest}


def test_two_write_at_once(tmp_path: Path) -> None:
    digests = sorted(TEXTS)

    def put(some: list[str]) -> None:
        with FactsCache(tmp_path / "kept.sqlite") as kept:
            for digest in some:
                kept.put({digest: TEXTS[digest]})

    threads = [threading.Thread(target=put, args=(digests[start:60:3],)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with FactsCache(tmp_path / "kept.sqlite") as kept:
        assert set(kept.get(digests)) == set(digests[:60])
