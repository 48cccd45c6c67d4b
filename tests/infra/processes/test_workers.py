"""Worker processes: whatever becomes of them, every item has its answer, and only the guilty one is blamed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.processes.workers import SPARE, Worker, WorkerDied, WorkerPool
from validation.errors import RetrainError

pytestmark = pytest.mark.thorough

FRAIL = "tests.infra.processes.frail_worker"
CODE = """
from infra.processes.workers import Worker
worker = Worker("tests.infra.processes.frail_worker")
print(worker._process.pid, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def no_spare_is_left() -> Iterator[None]:
    yield
    SPARE.close()


def answered(items: list[str], *, seconds: float = 60) -> list[str]:
    with WorkerPool(FRAIL, 1, seconds=seconds) as crew:
        return [item.how if isinstance(item, WorkerDied) else item for item in crew.answer(None, items)]


def test_every_item_is_answered_in_order() -> None:
    items = [f"item {number}" for number in range(300)]
    assert answered(items) == [item.upper() for item in items]
    assert answered([]) == []


@pytest.mark.parametrize(
    ("what", "seconds", "how"),
    [
        ("crash", 60, "ended by signal 11"),
        ("leave", 60, "ended with exit code 3"),
        # The others have as long to answer: enough for a machine that is busy elsewhere.
        ("hang", 2, "gave no answer within 2 s"),
    ],
)
def test_only_the_item_that_ends_every_worker_fails(what: str, seconds: float, how: str) -> None:
    assert answered(["a", what, "b"], seconds=seconds) == ["A", how, "B"]


def test_the_last_the_first_and_neighbours_may_all_be_guilty() -> None:
    how = "ended by signal 11"
    assert answered(["crash", "crash", "a", "crash"]) == [how, how, "A", how]


def test_workers_that_always_die_are_not_the_items_fault() -> None:
    with pytest.raises(RetrainError, match="20 items in a row") as caught:
        answered(["leave"] * 30)
    assert caught.value.hint


def test_an_accident_is_not_held_against_an_item(tmp_path: Path) -> None:
    assert answered(["a", f"crash once: {tmp_path / 'first'}", "b"]) == ["A", "CRASH", "B"]


def test_threads_have_a_worker_each() -> None:
    given = [[f"{thread} {number}" for number in range(50)] for thread in range(3)]
    got: dict[int, list[str]] = {}
    with WorkerPool(FRAIL, 3, seconds=60) as crew:

        def ask(thread: int) -> None:
            got[thread] = crew.answer(None, given[thread])

        threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == {thread: [item.upper() for item in items] for thread, items in enumerate(given)}


def test_small_batches_share_one_process() -> None:
    with WorkerPool(FRAIL, 1, seconds=60) as crew:
        crew.answer(None, ["a"])
    spare = SPARE.take(FRAIL)
    SPARE.give_back(spare)
    with WorkerPool(FRAIL, 1, seconds=60) as crew:
        crew.answer(None, ["b"])
    again = SPARE.take(FRAIL)
    assert again is spare
    again.close()


def test_a_spare_that_died_is_not_handed_out() -> None:
    spare = SPARE.take(FRAIL)
    SPARE.give_back(spare)
    spare.close()
    assert answered(["a"]) == ["A"]


def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(RetrainError, match="No module named") as caught:
        Worker("tests.infra.processes.there_is_no_such_worker")
    assert "does not start" in caught.value.message


def test_no_worker_outlives_its_parent() -> None:
    command = [sys.executable, "-c", CODE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(2400):
        if not Path(f"/proc/{worker}/stat").exists() or Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            break
        threading.Event().wait(0.05)
    else:
        os.kill(worker, 9)
        pytest.fail("the worker is still there")
