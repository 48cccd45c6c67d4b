"""What must be true after every night of a soak. Each function runs in a forked process and answers in plain values."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.settings.settings import load_settings
from infra.store.keys import LABELED, OURS, report_key
from tasks.champion.approval import open_requests
from tasks.champion.history import history
from tasks.context import Context
from tasks.judging.ledger import read_ledger
from tasks.report import report
from validation.errors import RetrainError
from validation.records import Decision, Night, Retired, Snapshot, ValidationResult


def look() -> dict[str, Any]:
    """Return how things stand, and everything that is wrong."""
    settings = load_settings()
    context, registry = Context.open(settings), Registry(settings)
    wrong = [*_objects(context), *_ledger(context, registry), *_reports(context)]
    champion = registry.champion()
    usable = True
    if champion is not None:
        try:
            model = ModelFile(registry.model_bytes(champion), sha256_expected=champion.model_sha256)
            usable = bool(np.isfinite(model.score(np.zeros((1, model.side, model.side, 3), np.uint8))).all())
        except RetrainError:
            usable = False
    entries = history(context)
    if champion is not None and entries[-1].version_after != champion.version:
        wrong.append(f"the history ends with version {entries[-1].version_after}, the alias is at {champion.version}")
    spent = len([entry for entry in read_ledger(context, registry) if entry.cost(1) > 0])
    return {
        "wrong": wrong,
        "history": [[entry.action, entry.version_before, entry.version_after] for entry in entries],
        "champion": champion.version if champion else None,
        "usable": usable,
        "nights": len(context.records.ids(Night)),
        "decisions": len(context.records.ids(Decision)),
        "retired": len(context.records.ids(Retired)),
        "waiting": [request.decision for request in open_requests(context)],
        "looks": spent,
    }


def _objects(context: Context) -> list[str]:
    """Every object of the bucket is in the newest snapshot, and accepted or named with a reason there."""
    snapshot = context.records.latest("snapshot", Snapshot)
    validation = context.records.latest("validation", ValidationResult)
    if snapshot is None or validation is None or validation.snapshot != snapshot.id:
        return ["the newest validation is not of the newest snapshot"]
    listed = {info.key for info in context.store.list(LABELED)}
    rows = set(context.records.load_table(snapshot.table)["key"])
    findings = context.records.load_table(validation.findings)
    rejected = set(findings.loc[findings["severity"] != "warn", "key"])
    accepted = set(context.records.load_table(validation.facts)["key"])
    wrong = []
    if listed != rows:
        wrong.append(f"{len(listed ^ rows)} objects are in the bucket or in the snapshot alone")
    if not rows - accepted <= set(findings["key"]):
        wrong.append(
            f"{len(rows - accepted - set(findings['key']))} of {len(rows)} rows are not accepted and not named"
        )
    if accepted & rejected or not accepted <= rows:
        wrong.append(
            f"{len(accepted & rejected)} rows are accepted and rejected, {len(accepted - rows)} came from nowhere"
        )
    return wrong


def _ledger(context: Context, registry: Registry) -> list[str]:
    rules = context.settings.gate
    entries = read_ledger(context, registry)
    spent = sum(entry.cost(rules.error_budget) for entry in entries)
    wrong = [f"look {entry.number}: {entry.problem}" for entry in entries if entry.problem]
    if [entry.number for entry in entries] != list(range(1, len(entries) + 1)):
        wrong.append(f"looks are numbered {[entry.number for entry in entries]}")
    if spent > rules.error_budget * (1 + 1e-9):
        wrong.append(f"{spent} of the error budget {rules.error_budget} is spent")
    return wrong


def _reports(context: Context) -> list[str]:
    """Every decision has a page; and a night's record."""
    pages = {info.key for info in context.store.list(f"{OURS}reports/")}
    decided = {night.decision for night in _nights(context)}
    return [f"decision {d} has no page" for d in decided if d and report_key(d) not in pages]


def _nights(context: Context) -> list[Night]:
    return [context.records.load(Night, id_) for id_ in context.records.ids(Night)]


def rebuild_reports() -> dict[str, Any]:
    """Build every report anew that was not retired; return how many, and those that came out otherwise."""
    context = Context.open(load_settings())
    retired = set(context.records.ids(Retired))
    latest = {}
    for night in sorted(_nights(context), key=lambda night: night.finished_at):
        latest[night.decision] = night
    others, built = [], 0
    for decision, night in latest.items():
        if decision is None or decision in retired:
            continue
        before = context.store.get(report_key(decision))
        if report(context, night).read_bytes() != before:
            others.append(decision)
        built += 1
    return {"built": built, "others": others, "retired": len(retired)}


def disk(home: Path, temporary: Path) -> dict[str, int]:
    """Return bytes by part of the home folder."""
    ours = home / "store" / "retraining"
    parts = {
        "cache": home / "cache",
        "scratch": home / "scratch",
        "pages here": home / "reports",
        "mlflow.db": home / "mlflow.db",
        "mlflow files": home / "mlflow-artifacts",
        "prefect": home / "prefect",
        "temporary": temporary,
        **{f"store {path.name}": path for path in sorted(ours.iterdir()) if path.is_dir()},
    }
    return {name: _size(path) for name, path in parts.items()}


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def processes_of(home: Path, within: float = 60.0) -> list[str]:
    """Return the processes that still work for a home folder, once those that end by themselves have had time to."""
    wanted = f"RETRAIN_HOME={home}".encode()
    until = time.monotonic() + within
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if int(path.parent.name) != os.getpid() and wanted in path.read_bytes().split(b"\0"):
                    found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.2)


def backdate(places: list[Path], seconds: float = 86_400.0) -> None:
    """Make what was left behind a day older: between two nights of a soak lie seconds, not a day."""
    for place in places:
        for path in [*place.rglob("*.tmp-*"), *place.glob("retrain-*"), *place.glob("scratch/*")]:
            stat = path.stat()
            os.utime(path, (stat.st_atime - seconds, stat.st_mtime - seconds))
