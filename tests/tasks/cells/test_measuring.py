"""Measuring: every image has facts or a finding, is decoded once, and costs only itself."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pandas as pd
import pytest

from infra.processes.workers import SPARE, WorkerPool
from tasks.cells import measuring
from tasks.cells.measuring import measure_all
from tasks.context import Context
from tests.builders import CountingStore, context_over, png, synthetic_cells, with_settings
from tests.tasks.cells.crashing_measurer import CRASHES, FAILS, HANGS
from validation.digest import sha256
from validation.errors import StoreUnreachable
from validation.images.facts import FACT_NAMES
from validation.images.measure import inspect
from validation.records import Finding

pytestmark = pytest.mark.thorough

CELLS = dict(list(synthetic_cells().items())[:12])
BAD = {
    "labeled/Uninfected/text.png": b"to do: buy stain",
    "labeled/Uninfected/cut.png": next(iter(CELLS.values()))[:99],
}


@pytest.fixture
def store() -> CountingStore:
    return CountingStore(CELLS | BAD)


@pytest.fixture
def context(store: CountingStore, home: Path) -> Context:
    return context_over(store, home)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The contents that are given to a measuring process from now on."""
    seen: list[str] = []
    plain = WorkerPool.answer

    def watched(self: WorkerPool, setting: object, items: list[list[str]]) -> list[object]:
        seen.extend(digest for _, digest in items)
        return plain(self, setting, items)

    monkeypatch.setattr(WorkerPool, "answer", watched)
    return seen


@pytest.fixture
def frail(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A decoder that crashes or hangs on certain images."""
    monkeypatch.setattr(measuring, "WORKER", "tests.tasks.cells.crashing_measurer")
    monkeypatch.setattr(measuring, "SECONDS", 2.0)
    yield
    SPARE.close()


def rows(objects: dict[str, bytes], **columns: str) -> pd.DataFrame:
    return pd.DataFrame([{"key": key, **columns, "sha256": sha256(data)} for key, data in objects.items()])


def reasons(findings: list[Finding]) -> dict[str, str]:
    return {finding.key: finding.reason for finding in findings}


def test_every_image_has_its_facts_or_its_finding(context: Context) -> None:
    mixed = list((CELLS | BAD).items())
    random.Random(1).shuffle(mixed)
    table, findings = measure_all(context, rows(dict(mixed), label="x"))
    assert list(table.columns) == ["key", "label", "sha256", *FACT_NAMES]
    assert list(table["key"]) == [key for key, _ in mixed if key in CELLS]
    assert reasons(findings) == dict(zip(BAD, ("not an image", "truncated"), strict=True))
    for row in table[["key", *FACT_NAMES]].itertuples(index=False, name=None):
        assert row[1:] == astuple(inspect(CELLS[row[0]], context.settings.data))


def test_no_rows_are_no_facts(context: Context, asked: list[str]) -> None:
    table, findings = measure_all(context, rows(CELLS).iloc[:0])
    assert (len(table), findings, asked) == (0, [], [])
    assert list(table.columns) == ["key", "sha256", *FACT_NAMES]


def test_no_image_is_measured_twice_in_its_life(context: Context, store: CountingStore, asked: list[str]) -> None:
    first = measure_all(context, rows(CELLS | BAD))
    assert set(asked) == {sha256(data) for data in (CELLS | BAD).values()}
    asked.clear()
    store.objects.clear()
    shutil.rmtree(context.workspace.home / "cache" / "objects")
    again = measure_all(context, rows(CELLS | BAD))
    pd.testing.assert_frame_equal(again[0], first[0])
    assert again[1] == first[1]
    renamed = {f"other/{key}": data for key, data in CELLS.items()}
    assert list(measure_all(context, rows(renamed))[0]["pixels"]) == list(first[0]["pixels"])
    assert asked == []


def test_the_same_bytes_under_many_keys_are_measured_once(context: Context, store: CountingStore) -> None:
    data = next(iter(CELLS.values()))
    copies = {f"labeled/Uninfected/copy_{number}.png": data for number in range(100)}
    store.objects |= copies
    table, findings = measure_all(context, rows(copies))
    assert (len(table), findings) == (100, [])
    assert sum(store.fetched[key] for key in copies) == 1


def test_the_facts_cache_may_be_lost(context: Context) -> None:
    first = measure_all(context, rows(CELLS | BAD))
    for path in (context.workspace.home / "cache").glob("facts-*"):
        path.write_bytes(b"rotten" * 999)
    again = measure_all(context, rows(CELLS | BAD))
    pd.testing.assert_frame_equal(again[0], first[0])
    assert again[1] == first[1]


def test_only_a_limit_that_changed_is_looked_at_again(context: Context, store: CountingStore, asked: list[str]) -> None:
    text = {key: data for key, data in BAD.items() if "text" in key}
    narrow = with_settings(context, data={"max_pixels": 30})
    table, findings = measure_all(narrow, rows(CELLS | text))
    refused = [key for key, reason in reasons(findings).items() if reason == "too large"]
    assert len(refused) > 3
    assert len(table) + len(findings) == len(CELLS | text)
    asked.clear()
    table, findings = measure_all(context, rows(CELLS | text))
    assert len(table) == len(CELLS)
    assert list(reasons(findings).values()) == ["not an image"]
    assert asked == [sha256(CELLS[key]) for key in refused]


def test_a_copy_that_is_gone_or_rotted_is_fetched_again(context: Context, store: CountingStore) -> None:
    gone, rotted, *_ = CELLS
    for key, data in CELLS.items():
        context.workspace.write_object(data)
        if key == gone:
            context.workspace.object_path(sha256(data)).unlink()
        if key == rotted:
            context.workspace.object_path(sha256(data)).write_bytes(b"rotted")
    table, findings = measure_all(context, rows(CELLS))
    assert (len(table), findings) == (len(CELLS), [])
    assert store.fetched == {gone: 1, rotted: 1}


def test_an_object_that_vanished_costs_itself(context: Context, store: CountingStore) -> None:
    gone = next(iter(CELLS))
    store.objects[gone] = b"overwritten"
    table, findings = measure_all(context, rows(CELLS))
    assert reasons(findings) == {gone: "vanished"}
    assert len(table) == len(CELLS) - 1
    store.objects[gone] = CELLS[gone]  # nothing of it was kept
    assert measure_all(context, rows(CELLS))[1] == []


def test_a_store_that_does_not_answer_ends_the_night(context: Context, store: CountingStore) -> None:
    store.broken[next(iter(CELLS))] = StoreUnreachable("no answer")
    with pytest.raises(StoreUnreachable):
        measure_all(context, rows(CELLS))


@pytest.mark.usefixtures("frail")
def test_a_crash_a_hang_and_a_bug_cost_one_image_each(context: Context, store: CountingStore) -> None:
    frailties = {
        "labeled/Uninfected/a.png": CRASHES,
        "labeled/Uninfected/b.png": HANGS,
        "labeled/Uninfected/c.png": FAILS,
    }
    store.objects |= frailties
    table, findings = measure_all(context, rows(dict(list(CELLS.items())[:6]) | frailties | CELLS))
    assert len(table) == len(CELLS)
    details = {finding.key[-5:-4]: (finding.reason, finding.detail) for finding in findings}
    assert details["a"] == ("decoder crashed", "the process that decoded it ended by signal 11, twice")
    assert details["b"] == ("decoder crashed", "the process that decoded it gave no answer within 2 s, twice")
    assert details["c"] == ("damaged image", "ZeroDivisionError: an unforeseen image")


@pytest.mark.usefixtures("frail")
def test_a_crashed_image_is_measured_again_on_the_next_night(
    context: Context, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.objects |= {"x.png": CRASHES}
    assert list(reasons(measure_all(context, rows({"x.png": CRASHES}))[1]).values()) == ["decoder crashed"]
    monkeypatch.setattr(measuring, "WORKER", "tasks.cells.measuring_worker")
    assert list(reasons(measure_all(context, rows({"x.png": CRASHES}))[1]).values()) == ["not an image"]


def test_many_images_are_measured_side_by_side(
    context: Context, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "WORTH_A_PROCESS", 20)
    many = {f"labeled/Uninfected/{n}.png": png([[[n % 251 + 1, n // 251 + 1, 99]] * 16] * 16) for n in range(300)}
    store.objects |= many
    table, findings = measure_all(context, rows(many))
    assert list(table["key"]) == list(many)
    assert findings == []
    assert table["pixels"].nunique() == len(many)
