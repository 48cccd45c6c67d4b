"""Clocks that jump and nights in which the hour changes: time affects nothing but timestamps."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from flows import retrain
from infra.registry.registry import Registry
from infra.store.folder import FolderStore
from tasks.champion.history import champion_at, history
from tasks.context import Context
from tasks.judging.ledger import read_ledger
from tests import ROOT
from tests.builders import RED, channel_member, folder_context, leave_finished_trainings, plain_cells, prepare
from tests.stages import plain_stages
from validation.records import Decision, Night, Split

pytestmark = pytest.mark.thorough

FLOORS = ("flows", "tasks", "infra", "validation")
RIGHT = [timedelta(0)] * 3
# Set back by ten years before the second night, and corrected to an hour too late before the third.
JUMPING = [timedelta(0), timedelta(days=-3650), timedelta(hours=1)]


@pytest.fixture(autouse=True)
def stages_are_plain_functions(monkeypatch: pytest.MonkeyPatch, no_expectations: None) -> None:
    """Outside a flow a Prefect task would start a server."""
    plain_stages(monkeypatch)


def set_clock(patch: pytest.MonkeyPatch, wrong_by: timedelta) -> None:
    """Make every module that reads the clock read another time: the project's, and MLflow's."""
    real = time.time

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + wrong_by

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in FLOORS and vars(module).get("datetime") is datetime:
            patch.setattr(module, "datetime", Clock)
    patch.setattr(time, "time", lambda: real() + wrong_by.total_seconds())


def three_nights(home: Path, empty: Path, clocks: list[timedelta]) -> tuple[list[Night], Context]:
    """Run three nights whose trainings end with given models; the second brings copies of known cells."""
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty.read_bytes())
    gate = {"min_auc": 0.0, "min_sensitivity": 0.0, "min_specificity": 0.0}
    context = folder_context(home, plain_cells(40, 4), gate=gate)
    assert isinstance(context.store, FolderStore)
    nights = []
    for number, wrong_by in enumerate(clocks):
        if number:
            for key, data in plain_cells(8, 4, seed=number + 1, first=number * 100).items():
                context.store.put(key, data)
        if number == 1:
            for key, data in list(plain_cells(40, 4).items())[:6]:
                folder, _, name = key.rpartition("/")
                # First by name: only the time when it was first seen shows that it is the copy.
                context.store.put(f"{folder}/A0thin_{name}", data)
        with pytest.MonkeyPatch.context() as patch:
            set_clock(patch, wrong_by)
            prepared = prepare(context, Registry(context.settings).champion())
            member = channel_member(RED) if number == 0 else channel_member(centre=100.0 + number)
            for name in ("fastai", "keras"):
                leave_finished_trainings(context, name, prepared.split.id, member)
            nights.append(retrain.run_night(context))
    return nights, context


def test_a_clock_that_jumps_changes_no_name_no_order_and_no_level(
    tmp_path: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[Any] = []
    for name, clocks in (("right", RIGHT), ("jumping", JUMPING)):
        monkeypatch.setenv("RETRAIN_HOME", str(tmp_path / name))
        nights, context = three_nights(tmp_path / name, empty_registry, clocks)
        entries = history(context)
        results.append(
            (
                [(night.id, night.decision, night.verdict, night.champion_after) for night in nights],
                [
                    (entry.look.number, entry.look.spent)
                    for entry in read_ledger(context, Registry(context.settings))
                    if entry.look
                ],
                [(entry.number, entry.action, entry.version_before, entry.version_after) for entry in entries],
            )
        )
        assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)
        assert champion_at(entries, entries[-1].at) == entries[-1]
        # Of each of the six pairs the earlier cell stays; the ids alone would not show it.
        assert not [key for key in cells_of(context, nights[1]) if "/A0thin_" in key]
        assert nights[1].images["rejected"] == 6
    right, jumping = results
    assert jumping == right
    assert len(right[1]) >= 2


def cells_of(context: Context, night: Night) -> list[str]:
    """Return the keys of the cells that a night trained and judged on."""
    decision = context.records.load(Decision, night.decision or "")
    split = context.records.load(Split, decision.split or "")
    return list(context.records.load_table(split.table)["key"])


def dates(schedule: dict[str, Any], start: datetime, count: int) -> list[datetime]:
    from prefect.server.schemas.schedules import CronSchedule

    made = CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    found = asyncio.run(made.get_dates(count, start=start))
    return [datetime.fromisoformat(str(date)) for date in found]


def nightly() -> dict[str, Any]:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    [entry] = [entry for entry in deployments if entry["name"] == "nightly"]
    schedule: dict[str, Any] = entry["schedules"][0]
    return schedule


def test_the_deployed_schedule_starts_a_night_every_24_hours_whatever_the_hour_is_called() -> None:
    found = dates(nightly(), datetime(2027, 1, 1, tzinfo=UTC), 400)
    assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(days=1)}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_in_a_zone_that_changes_its_hour_there_is_one_night_a_day(zone: str) -> None:
    """02:30 may not exist in spring and may exist twice in autumn: there is exactly one night."""
    for cron in ("0 2 * * *", "30 2 * * *", "30 1 * * *"):
        found = dates({"cron": cron, "timezone": zone}, datetime(2027, 1, 1, tzinfo=UTC), 365)
        days = Counter(date.astimezone(ZoneInfo(zone)).date() for date in found)
        assert set(days.values()) == {1}, cron
        assert (max(days) - min(days)).days == 364, cron
