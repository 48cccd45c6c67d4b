"""How long a report takes to be built and to be shown: ``python -m benchmarks.reports [--json]``.

A night over 7,000 made-up cells of 140 patients, two candidates and a champion, all with tiny models, so the
trainings and the models' own time are not in these figures. The page is opened from disk in headless Chromium, if
there is one, five times; shown is the median of the time until it is loaded.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from infra.registry.registry import Registry
from tasks.choose import prepare_contest
from tasks.decide import Evidence, decide
from tasks.evaluate import evaluate
from tasks.report import report
from tests.builders import (
    GREEN,
    NOON,
    RED,
    CountingStore,
    candidate_of,
    channel_member,
    context_over,
    made_up_decision,
    plain_cells,
    prepare,
)
from tests.tasks.test_report import night_of
from validation.records import Evaluation, Start

PATIENTS, EACH = 140, 50


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder))
    if "--json" in sys.argv:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:<36} {value}")


def measure(home: Path) -> dict[str, Any]:
    """Return the figures by name."""
    context = context_over(CountingStore(plain_cells(PATIENTS, EACH)), home)
    ready = prepare(context)
    registry = Registry(context.settings)
    champion = candidate_of(context, ready, channel_member(RED), name="keras", seed=2)
    reference = registry.register(champion, context.store.get(champion.model_key), made_up_decision("crowned"))
    registry.set_champion(reference.version)
    candidates = tuple(
        candidate_of(context, ready, channel_member(channel), name=name)
        for name, channel in (("fastai", GREEN), ("keras", RED))
    )
    start = Start(id="night1", champion=registry.champion(), started_at=NOON)
    contest = prepare_contest(context, candidates, start, registry, ready.split, ready.pack)
    evaluation = evaluate(context, contest, ready.split, ready.pack, registry)
    assert isinstance(evaluation, Evaluation), evaluation
    evidence = Evidence(ready.snapshot, ready.validation, ready.split, candidates, {}, contest, evaluation)
    night = night_of(decide(context, evidence))
    first, first_cpu, path = timed(report, context, night)
    again, again_cpu, path = timed(report, context, night)
    return {
        "judged cells": evaluation.challenger_metrics.cells,
        "first build, s (of CPU)": f"{first:.1f} ({first_cpu:.1f})",
        "built again, s (of CPU)": f"{again:.1f} ({again_cpu:.1f})",
        "page, kB": round(path.stat().st_size / 1000),
        "loaded in Chromium, s": loaded(path),
    }


def timed(function: Any, *arguments: Any) -> tuple[float, float, Any]:
    """Return the seconds of a call, those of CPU, and what it returned."""
    started, cpu = time.monotonic(), time.process_time()
    result = function(*arguments)
    return time.monotonic() - started, time.process_time() - cpu, result


def loaded(path: Path) -> float | str:
    """Return the median time until a page on disk is loaded."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return "no Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        times = []
        for _ in range(5):
            page = browser.new_page()
            page.goto(path.as_uri(), wait_until="load")
            times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
            page.close()
        browser.close()
    return float(round(statistics.median(times), 3))


if __name__ == "__main__":
    main()
