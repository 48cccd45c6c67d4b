"""Our measuring and judging beside CleanVision, over the same files in one run, alternating.

    pip install --target /tmp/cleanvision cleanvision
    python -m benchmarks.validation CELLS_FOLDER --cleanvision /tmp/cleanvision [--rounds 3] [--json FILE]

Ours is all that a night does for new images once they lie in its cache: read, checksum, decode, measure, keep the
facts, learn the bounds, judge, and look for near duplicates among all. CleanVision finds its default issues with as
many processes as there are cores. Each runs in a process of its own; seconds are taken around the work, without
imports, but with the start of the worker processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_THEIRS = """
import json, os, resource, sys, time
folder, cores = sys.argv[1], int(sys.argv[2])
from cleanvision import Imagelab
began, cpu = time.perf_counter(), os.times()
lab = Imagelab(data_path=folder, verbose=False)
lab.find_issues(n_jobs=cores, verbose=False)
after = os.times()
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "cpu": sum(after[:4]) - sum(cpu[:4]),
    "images": len(lab.issues),
    "found": {column[3:-6]: int(lab.issues[column].sum()) for column in lab.issues if column.endswith("_issue")},
}))
"""


def _ours(folder: Path) -> dict[str, Any]:
    """Measure all images of ``folder`` in a home folder of its own, as the first night would."""
    import pandas as pd

    from infra.local.files import Workspace
    from infra.processes.workers import SPARE
    from infra.settings.settings import Settings
    from infra.store.folder import FolderStore
    from infra.store.records import Records
    from tasks.cells.measuring import measure_all
    from tasks.context import Context
    from validation.images.facts import FACT_NAMES, ImageFacts, judge_image, learn_bounds
    from validation.images.fingerprints import near_duplicates

    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home))
        store = FolderStore(Path(home) / "store")
        context = Context(settings, store, Records(store), Workspace(Path(home)))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        rows = [(str(path), context.workspace.write_object(path.read_bytes())) for path in files]
        began, cpu = time.perf_counter(), os.times()
        table, findings = measure_all(context, pd.DataFrame(rows, columns=["key", "sha256"]))
        bounds = learn_bounds(table)
        found: dict[str, int] = {}
        for row in table[list(FACT_NAMES)].itertuples(index=False, name=None):
            for problem in judge_image(ImageFacts(*row), settings.data, bounds):
                found[problem.reason] = found.get(problem.reason, 0) + 1
        pairs = near_duplicates(list(table["fingerprint"]))
        seconds = time.perf_counter() - began
        SPARE.close()  # the processor time of a process is known when it has ended
        after = os.times()
        again = time.perf_counter()
        measure_all(context, pd.DataFrame(rows, columns=["key", "sha256"]))
        return {
            "seconds": seconds,
            "cpu": sum(after[:4]) - sum(cpu[:4]),
            "images": len(rows),
            "seconds when nothing is new": time.perf_counter() - again,
            "found": {**found, "not decoded": len(findings), "near duplicates": len(pairs)},
        }


def _run(command: list[str], path: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} ... failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Run both in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--cleanvision", type=Path, help="where CleanVision was installed; without it only ours runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ours:
        print(json.dumps(_ours(given.cells)))
        return
    if given.cleanvision is None:
        print("without CleanVision: pip install --target FOLDER cleanvision, and name it: --cleanvision FOLDER")
    cores = len(os.sched_getaffinity(0))
    here = str(Path(__file__).parents[1])
    rounds: dict[str, list[dict[str, Any]]] = {"ours": []}
    for number in range(given.rounds):
        rounds["ours"].append(_run([sys.executable, "-m", "benchmarks.validation", str(given.cells), "--ours"], here))
        if given.cleanvision:
            command = [sys.executable, "-c", _THEIRS, str(given.cells), str(cores)]
            rounds.setdefault("CleanVision", []).append(_run(command, str(given.cleanvision)))
        print(
            f"round {number + 1}: " + ", ".join(f"{n} {r[-1]['seconds']:.1f} s" for n, r in rounds.items()), flush=True
        )
    report: dict[str, Any] = {"cores": cores, "load before": os.getloadavg()[1], "rounds": rounds}
    print(f"\n{'':14}{'images/s, median (range)':>30}{'CPU ms an image':>18}")
    for name, runs in rounds.items():
        rates = [run["images"] / run["seconds"] for run in runs]
        cpu = statistics.median(1000 * run["cpu"] / run["images"] for run in runs)
        report[name] = {"images/s": statistics.median(rates), "low": min(rates), "high": max(rates), "cpu ms": cpu}
        shown = f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"
        print(f"{name:14}{shown:>30}{cpu:>18.2f}")
    if given.cleanvision:
        report["ratio"] = report["ours"]["images/s"] / report["CleanVision"]["images/s"]
        report["cpu ratio"] = report["CleanVision"]["cpu ms"] / report["ours"]["cpu ms"]
        print(f"\nours over CleanVision: {report['ratio']:.1f}x images/s, {report['cpu ratio']:.1f}x less CPU an image")
    print(f"ours found {rounds['ours'][-1]['found']}")
    if given.cleanvision:
        print(f"CleanVision found {rounds['CleanVision'][-1]['found']}")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
