"""How what reads all nights, splits or tables grows with them: ``python -m benchmarks.growth [--nights N ...]``.

A store with so many nights of made-up records, as small as real ones, over 27,558 cells and 20 new ones a night, with
two candidates, a look, an evaluation and 40 patients in the field each; every fourth night promoted one, every eighth
was rolled back. Each operation runs in a process of its own; shown are its seconds of CPU and the memory that it adds,
with what both grow by from one number of nights to the next.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from infra.registry.registry import Registry
from infra.store.folder import FolderStore
from infra.store.keys import history_key, latest_key, look_key, origins_key, record_key
from infra.store.records import table_bytes
from tasks.champion.history import ENTRY, reconcile_champion
from tasks.commands.describe_champion import describe_history
from tasks.context import Context
from tasks.field import field_report
from tasks.judging import ledger
from tasks.judging.assignments import assign_origins, remember
from tasks.nights import find_night, last_good_decision
from tasks.pruning.prune import prune
from tasks.reporting.exhibits import exhibits
from tasks.reporting.index import build_site
from tasks.reporting.pictures.gather import Gathered
from tests.builders import context_over
from tests.interleaving import Version, WatchedRegistry
from tests.tasks.reporting.samples import START, full_inputs, predictions, some_metrics
from validation.digest import digest, sha256
from validation.records import ChampionRef, Decision, FieldNight, Look, Promotion, Record, Start, Verdict

CELLS, NEW, IN_FIELD = 27_558, 20, 40
Operation = Callable[[Context, Registry], object]


class Made:
    """A store of many nights and what a registry has of them."""

    def __init__(self, home: Path, nights: int) -> None:
        store = FolderStore(home / "store")
        self.context = context_over(store, home)
        self.registry = WatchedRegistry(lambda: None)
        self._made: set[Path] = set()
        self._inputs = full_inputs()
        self._champion = self._register(0)
        self._table = self.put_table("splits/shared.rows", _cells(0, CELLS).assign(fold=0, label="Uninfected"))
        self._add_origins(0, _cells(0, CELLS))
        self._promise(self._champion)
        for number in range(1, nights + 1):
            self._night(number)

    def put(self, key: str, data: bytes) -> None:
        """Write an object; a benchmark needs no flush."""
        path = Path(self.context.settings.home / "store" / key)
        if path.parent not in self._made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(path.parent)
        path.write_bytes(data)

    def put_table(self, name: str, table: pd.DataFrame) -> str:
        key = f"retraining/{name}.parquet"
        self.put(key, table_bytes(table))
        return key

    def _save(self, record: Record, id_: str) -> None:
        self.put(record_key(record.kind, id_), record.model_dump_json(indent=2).encode())

    def _add_origins(self, number: int, cells: pd.DataFrame) -> None:
        key = origins_key(number + 1, _id("split", number), "0")
        self.put(key, table_bytes(cells[["pixels", "patient", "origin"]]))

    def _register(self, number: int) -> ChampionRef:
        reference = ChampionRef(
            version=str(len(self.registry.versions) + 1), candidate=_id("fastai", number), model="fastai",
            model_sha256=sha256(str(number).encode()), threshold=0.44, since=START,
        )  # fmt: skip
        self.registry.versions.append(Version(reference, _id("decision", number), b"", None))
        return reference

    def _promise(self, champion: ChampionRef) -> None:
        """Store what the first champion was promoted on."""
        given, id_ = self._inputs, _id("decision", 0)
        assert given.evaluation
        table = self.put_table("evaluations/first.predictions", predictions())
        evaluation = given.evaluation.model_copy(update={"id": _id("evaluation", 0), "predictions": table})
        self._save(evaluation, evaluation.id)
        self._save(given.decision.model_copy(update={"id": id_, "evaluation": evaluation.id}), id_)
        self._change(0, "promoted", champion)

    def _change(self, number: int, action: Any, after: ChampionRef) -> None:
        entries = len(self.registry.entries_with_prefix(ENTRY))
        entry = Promotion(
            number=entries + 1, action=action, decision=_id("decision", number), why="it is better",
            version_before=self.registry.alias, version_after=after.version, at=START + timedelta(days=number),
        )  # fmt: skip
        text = entry.model_dump_json(indent=2)
        self.registry.entries[f"{ENTRY}{entry.number:06d}"] = text
        self.put(history_key(entry.number), text.encode())
        self._champion, self.registry.alias = after, after.version

    def _night(self, number: int) -> None:
        given, at = self._inputs, START + timedelta(days=number)
        before = self._champion
        names = {kind: _id(kind, number) for kind in ("snapshot", "validation", "split", "decision", "evaluation")}
        self._save(given.snapshot.model_copy(update={"id": names["snapshot"], "created_at": at}), names["snapshot"])
        valid = given.validation.model_copy(update={"id": names["validation"], "snapshot": names["snapshot"]})
        self._save(valid, valid.id)
        assert given.split
        assert given.evaluation
        split = given.split.model_copy(update={"id": names["split"], "validation": valid.id, "table": self._table})
        self._save(split, split.id)
        self._add_origins(number, _cells(CELLS + NEW * number, NEW))
        candidates, model = [], sha256(str(number).encode())
        for candidate in given.candidates:
            id_ = _id(candidate.model, number)
            self._save(candidate.model_copy(update={"id": id_, "split": split.id, "model_sha256": model}), id_)
            candidates.append(id_)
        look = Look(
            number=number, challenger=model, champion=before.model_sha256, spent=0.0021,
            looked_at=at,
        )  # fmt: skip
        text = look.model_dump_json(indent=2)
        self.put(look_key(number, ledger.pair_of(model, look.champion)), text.encode())
        self.registry.entries[f"{ledger.ENTRY}{number:06d}"] = text
        evaluation = given.evaluation.model_copy(
            update={"id": names["evaluation"], "split": split.id, "challenger": candidates[0], "look": look}
        )
        self._save(evaluation, evaluation.id)
        promoted = number % 4 == 0
        of_night = {
            "id": names["decision"],
            "verdict": Verdict.PROMOTED if promoted else Verdict.KEPT,
            "snapshot": names["snapshot"],
            "validation": valid.id,
            "split": split.id,
            "candidates": tuple(candidates),
            "challenger": candidates[0],
            "champion_before": before,
            "evaluation": evaluation.id,
            "decided_at": at,
        }
        decision = given.decision.model_copy(update=of_night)
        self._save(decision, decision.id)
        assert given.exhibits
        self._save(given.exhibits.model_copy(update={"id": decision.id}), decision.id)
        if promoted:
            self._change(number, "promoted", self._register(number))
        if number % 8 == 0:
            self._change(number, "rollback", before)
        night = given.night.model_copy(
            update={
                "id": _id("night", number), "decision": decision.id, "verdict": decision.verdict, "started_at": at,
                "finished_at": at, "champion_after": self._champion.version, "metrics": some_metrics(0.94).intervals(),
            }
        )  # fmt: skip
        self._save(night, night.id)
        self._save(Start(id=night.id, champion=before, started_at=at), night.id)
        field = pd.DataFrame(1, index=range(IN_FIELD), columns=["tp", "positives", "tn", "negatives"])
        field["patient"] = [f"N{number}P{patient}" for patient in range(IN_FIELD)]
        table = self.put_table(f"field/{_id('field', number)}.patients", field)
        # The first champion stays in the field all the time: the longest that there can be.
        first, id_ = sha256(b"0"), _id("field", number)
        self._save(FieldNight(id=id_, champion=first, split=split.id, patients=IN_FIELD, table=table, at=at), id_)
        for name, record in {"snapshot": given.snapshot, "night": night}.items():
            self.put(latest_key(name), record.model_dump_json(indent=2).encode())


def _id(kind: str, number: int) -> str:
    return digest(kind, number)[:24]


def _cells(first: int, count: int) -> pd.DataFrame:
    numbers = np.arange(first, first + count)
    patients = [f"P{number // 140}" for number in numbers]
    pixels = [sha256(str(number).encode()) for number in numbers]
    return pd.DataFrame({"pixels": pixels, "patient": patients, "origin": patients, "key": pixels, "sha256": pixels})


def _history(context: Context, registry: Registry) -> object:
    return describe_history(context, registry)


def _origins(context: Context, registry: Registry) -> object:
    del registry
    return assign_origins(remember(context), _cells(0, CELLS))


def _field(context: Context, registry: Registry) -> object:
    return field_report(context, registry, registry.version("1"))


def _exhibits(context: Context, registry: Registry) -> object:
    """Of a decision that has none yet, without a look of its own: earlier nights and looks."""
    newest = context.records.load(Decision, find_night(context, "latest").decision or "")
    fresh = newest.model_copy(update={"id": "f" * 24, "evaluation": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.reporting.exhibits.Registry", lambda _: registry)
        patch.setattr("tasks.reporting.exhibits.gather_cells", lambda *_: Gathered())
        return exhibits(context, fresh, None, None, ())


OPERATIONS: dict[str, Operation] = {
    "the index of all reports": lambda context, _: build_site(context),
    "`retrain report DECISION`: its night": lambda context, _: find_night(context, _id("decision", 1)),
    "the last good decision": lambda context, _: last_good_decision(context),
    "`retrain history`": _history,
    "the champion, reconciled": reconcile_champion,
    "the ledger of looks": ledger.read_ledger,
    "origins of 27,558 cells": _origins,
    "the field's report": _field,
    "exhibits: earlier nights and looks": _exhibits,
    "`retrain prune --dry-run`": lambda context, registry: prune(context, registry, dry_run=True),
}


def measured(operation: Operation, made: Made) -> tuple[float, float]:
    """Return the seconds of CPU of an operation, and the MB that it adds to a process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            cpu, memory = resource.getrusage(resource.RUSAGE_SELF).ru_utime, _memory_mb()
            operation(made.context, made.registry)
            used = resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu
            os.write(writing, f"{used} {_peak_mb() - memory}".encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    cpu_seconds, memory_mb = map(float, text.split())
    return cpu_seconds, max(0.0, memory_mb)


def _memory_mb() -> float:
    return _status("VmRSS")


def _peak_mb() -> float:
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1_000 for line in lines if line.startswith(name))


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, nargs="+", default=[250, 500, 1_000])
    asked = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in OPERATIONS}
    for nights in asked.nights:
        with tempfile.TemporaryDirectory() as folder:
            made = Made(Path(folder), nights)
            for name, operation in OPERATIONS.items():
                found[name].append(measured(operation, made))
    heads = [f"{nights:,} nights: s, MB" for nights in asked.nights]
    print("| what | " + " | ".join(heads) + " | times from first to last: s, MB |")
    print("|---" * (len(heads) + 2) + "|")
    for name, figures in found.items():
        shown = [f"{cpu:.2f}, {memory:.0f}" for cpu, memory in figures]
        (first_cpu, first_mb), (last_cpu, last_mb) = figures[0], figures[-1]
        ratio = f"{last_cpu / max(first_cpu, 0.01):.1f}, {last_mb / max(first_mb, 1):.1f}"
        print(f"| {name} | " + " | ".join(shown) + f" | {ratio} |")


if __name__ == "__main__":
    main()
