"""Progress: count, rate and time left, in the log, in a terminal and on Prefect's pages."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import console
from flows.cli import display
from tasks import stage as stage_module
from tasks.context import Context
from tasks.progress import Progress, Step, watched_by
from tasks.pull import pull, pull_task
from tests.builders import CountingStore, context_over, synthetic_cells

CELLS = synthetic_cells(patients=4)


@pytest.fixture
def context(home: Path) -> Context:
    return context_over(CountingStore(CELLS), home)


def test_a_pull_logs_its_progress(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Progress, "EVERY_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        pull(context)
    lines = [line for line in caplog.messages if line.startswith("pulled")]
    assert re.fullmatch(r"pulled \d+ of 16 \([\d,]+/s, \d+ s left\)", lines[0])
    assert [line.split()[1] for line in lines][-1] == "16"


def test_a_watcher_sees_the_end_and_no_more_than_it_wants(context: Context) -> None:
    often: list[Step] = []
    seldom: list[Step] = []
    with watched_by(often.append, 0.0), watched_by(seldom.append, 3600.0):
        pull(context)
    pull(context)
    assert [step.done for step in often] == sorted(step.done for step in often)
    assert [(step.doing, step.done, step.total) for step in seldom] == [("pulled", 16, 16)]
    assert often[-1].seconds_left == 0


def test_the_time_left_follows_from_the_rate() -> None:
    assert Step("pulled", 250, 1000, 50.0).seconds_left == 15
    assert str(Step("pulled", 2500, 27_558, 50.0)) == "pulled 2,500 of 27,558 (50/s, 501 s left)"


def test_a_stage_may_find_out_on_its_way_how_much_there_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Progress, "EVERY_SECONDS", 0.0)
    seen: list[Step] = []
    with caplog.at_level(logging.INFO), watched_by(seen.append, 0.0):
        progress = Progress(logging.getLogger("tasks.train"), "batch", 400)
        progress.reach(30, 400)
        progress.reach(90, 120)
        progress.end()
    assert [(step.done, step.total) for step in seen] == [(30, 400), (90, 120), (90, 90)]
    assert [message.partition(" (")[0] for message in caplog.messages] == ["batch 30 of 400", "batch 90 of 120"]


def test_a_terminal_gets_a_bar_and_log_lines_above_it(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=100, _environ={}))
    monkeypatch.setattr(Progress, "EVERY_SECONDS", 0.0)
    handler = console.LogHandler()
    logger = logging.getLogger("tasks.pull")
    monkeypatch.setattr(logger, "handlers", [handler])
    before = logger.level
    logger.setLevel(logging.INFO)
    with display.stages():
        progress = Progress(logger, "pulled", 1000)
        progress.advance(10)
        logger.info("something else")
        for listener, _ in progress._listeners[1:]:
            listener(Step("pulled", 400, 1000, 80.0))
    logger.setLevel(before)
    text = screen.getvalue()
    assert "something else" in text
    assert "400/1000" in text
    assert "80/s" in text
    assert "s left)" not in text
    assert not console.LogHandler.bar_is_drawn


def test_no_terminal_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen))
    with display.stages():
        for listener, _ in Progress(logging.getLogger("x"), "pulled", 1)._listeners[1:]:
            listener(Step("pulled", 1, 2, 1.0))
    assert screen.getvalue() == ""


def test_prefect_shows_an_artifact_that_grows(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls to Prefect's API within a real task run, without its server."""
    calls: list[tuple[Any, ...]] = []

    def make(**given: Any) -> str:
        calls.append(("make", given))
        return "id"

    monkeypatch.setattr(stage_module, "create_progress_artifact", make)
    monkeypatch.setattr(stage_module, "update_progress_artifact", lambda *given, **more: calls.append((*given, more)))
    pages = stage_module.ProgressOnPages()
    pages(Step("pulled", 8, 16, 4.0))
    assert calls == []  # outside a task run there is no page to show it on

    class Run:
        class task_run:  # noqa: N801
            id = "run"

    monkeypatch.setattr("tasks.stage.TaskRunContext.get", lambda: Run)
    monkeypatch.setattr("tasks.snapshots.fetching.BATCH", 4)  # of 16 cells
    with watched_by(pages, 0.0):
        pull_task.fn(context)
    assert calls[0][0] == "make"
    assert calls[0][1]["key"] == "pulled-progress"
    assert calls[-1][0] == "id"
    assert calls[-1][1]["progress"] == 100.0
    assert "16 of 16" in calls[-1][1]["description"]

    def refuse(**_: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(stage_module, "create_progress_artifact", refuse)
    pages(Step("pulled", 1, 2, 1.0))  # costs only the artifact
