"""Rows kept by digest: found again whole, or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from infra.local.packed_cells import PackedCellCache
from validation.digest import sha256
from validation.errors import RetrainError

ROW = 12


def row(number: int) -> tuple[str, bytes]:
    return sha256(str(number).encode()), bytes([number]) * ROW


def kept(path: Path, numbers: range) -> dict[str, bytes | None]:
    with PackedCellCache(path, ROW) as shelf:
        return {digest: shelf.read(where) for digest, where in shelf.find({row(n)[0] for n in numbers}).items()}


def test_rows_are_found_again_and_others_are_not(tmp_path: Path) -> None:
    with PackedCellCache(tmp_path / "new" / "shelf", ROW) as shelf:
        shelf.append([row(1), row(2)])
        shelf.append([row(3)])
    assert kept(tmp_path / "new" / "shelf", range(6)) == dict(map(row, (1, 2, 3)))


def test_after_a_torn_write_the_next_rows_are_whole(tmp_path: Path) -> None:
    with PackedCellCache(tmp_path, ROW) as shelf:
        shelf.append([row(1), row(2)])
    for name in ("rows.bin", "index.bin"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-3])
    with PackedCellCache(tmp_path, ROW) as shelf:
        shelf.append([row(3), row(4)])
    assert kept(tmp_path, range(6)) == dict(map(row, (1, 3, 4)))


def test_a_row_that_was_replaced_is_the_newest(tmp_path: Path) -> None:
    digest, data = row(1)
    with PackedCellCache(tmp_path, ROW) as shelf:
        shelf.append([(digest, b"x" * ROW)])
        shelf.append([(digest, data)])
    assert kept(tmp_path, range(2)) == {digest: data}


def test_several_at_once_lose_nothing(tmp_path: Path) -> None:
    def add(first: int) -> None:
        with PackedCellCache(tmp_path, ROW) as shelf:
            for number in range(first, first + 20):
                shelf.append([row(number)])

    threads = [threading.Thread(target=add, args=(first,)) for first in range(0, 100, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept(tmp_path, range(100)) == dict(map(row, range(100)))


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RetrainError, match="cannot write") as caught:
        PackedCellCache(tmp_path / "file" / "shelf", ROW)
    assert caught.value.hint
