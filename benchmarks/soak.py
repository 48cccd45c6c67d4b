"""Many nights in a row through the real flow, with faults drawn by chance: is all accounted for, is disk bounded?

    python -m benchmarks.soak [--nights N] [--seed N] [--json FILE] [--folder FOLDER]

The nights run the real flow function with fake CNNs whose quality varies (tests/soak/); cells arrive, are overwritten,
moved and deleted, processes are killed, stores go away, caches rot. Pruning is set so tight that it bites. Every 50th
night runs by the command line with a Prefect server of its own. Ends with exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.fleet import fake_environment

# Small enough that every bound is met within a few dozen nights.
TIGHT = {
    "CACHE_GB": "0.0003",
    "PACKS": "1",
    "SCRATCH_DAYS": "0",
    "ORPHAN_DAYS": "0",
    "MODELS_DAYS": "0",
    "MODELS_NIGHTS": "8",
    "REPORTS_DAYS": "0",
    "REPORTS_NIGHTS": "20",
    "RUNS_DAYS": "1",
}
SHOWN = ("cache", "pages here", "mlflow.db", "mlflow files", "prefect", "temporary")


def soak(folder: Path, nights: int, seed: int, *, many_champions: bool = False) -> Iterator[dict[str, Any]]:
    """Yield what was seen of each night, and at last the sums."""
    environment = fake_environment(
        folder,
        folder / "home",
        **{f"RETRAIN_PRUNE__{name}": value for name, value in TIGHT.items()},
        RETRAIN_GATE__ERROR_BUDGET="0.45" if many_champions else "0.05",
        RETRAIN_GATE__MIN_AUC="0",
        RETRAIN_GATE__MIN_SENSITIVITY="0",
        RETRAIN_GATE__MIN_SPECIFICITY="0",
        TMPDIR=str(folder / "tmp"),
    )
    # There before anything is imported: whoever asks for the temporary folder first decides for the process.
    (folder / "tmp").mkdir()
    with (folder / "soak.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.run", str(folder), str(nights), str(seed), str(int(many_champions))],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        with process.stdout:
            try:
                yield from (json.loads(line) for line in process.stdout)
            finally:
                process.kill()
                process.wait()
    if process.returncode:
        raise RuntimeError(f"the soak ended with {process.returncode}: {(folder / 'soak.log').read_text()[-2000:]}")


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="soak-") as made:
        yield Path(made)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--many-champions", action="store_true", help="CNNs that begin bad and a gate that lets more of them pass"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="a new folder, which is left as it is at the end")
    arguments = parser.parse_args()
    seen: list[dict[str, Any]] = []
    started = time.monotonic()
    print(f"{'night':>5}{'wrong':>6}{'CPU s':>6}{'RSS MB':>8}{'store MB':>10}" + "".join(f"{n:>14}" for n in SHOWN))
    with _folder(arguments.folder) as folder:
        for told in soak(folder, arguments.nights, arguments.seed, many_champions=arguments.many_champions):
            seen.append(told)
            if "disk" in told and "night" in told:
                disk = told["disk"]
                store = sum(size for name, size in disk.items() if name.startswith("store "))
                first = (
                    f"{told['night']:>5}{len(told['wrong']):>6}{told['cpu']:>6}{told['rss_mb']:>8}{store / 1e6:>10.1f}"
                )
                print(first + "".join(f"{disk[name] / 1e6:>14.2f}" for name in SHOWN), flush=True)
    *nights, end = seen
    print(f"\n{len(nights)} nights in {time.monotonic() - started:.0f} s")
    for name, values in {
        "drawn": [n["drawn"] for n in nights],
        "ended": [v for n in nights for v in n["verdicts"]],
    }.items():
        print(f"{name}: " + ", ".join(f"{what} {count}" for what, count in Counter(values).most_common()))
    print(f"champions {nights[-1]['champion']}, decisions {nights[-1]['decisions']}, retired {nights[-1]['retired']}")
    for name in ("reports", "pruned_at_the_end", "processes_left", "temporary_files", "rss_mb"):
        print(f"{name}: {end[name]}")
    for wrong in end["wrong"]:
        print(f"WRONG {wrong}")
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=1))
    bad = end["wrong"] or end["processes_left"] or end["temporary_files"] or end["reports"]["others"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
