"""How long a bucket of a million keys takes to be listed and compared with its last snapshot, and in how much memory.

    python -m benchmarks.listing [--keys 100000 1000000] [--json FILE]

Each size runs in a child process of its own against an S3 server on loopback (tests/fake_s3.py, in this process) that
makes real ListObjectsV2 pages of 1,000 keys. The child first leaves a snapshot behind in a child of its own; what is
measured is a pull that finds it, with every thousandth object changed. Those are answered from memory; records lie in
a folder.
Seconds are the pull's; peak memory is the whole process's, libraries and all (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fake_s3 import cell_etag, fake_bucket

LIMIT_MIB = 1536


def leave_snapshot(url: str, home: Path) -> None:
    """Store the snapshot of the whole bucket, as an earlier pull would have left it; in pieces, nothing is fetched."""
    import pyarrow as pa

    from tasks.snapshots import tables as snapshots
    from tasks.snapshots.listing import TEXT, list_cells

    context = _context(url, home)
    listed = list_cells(context)
    rows = listed.append_column("sha256", pa.array((f"{number:064x}" for number in range(listed.num_rows)), TEXT))
    seen = pa.array(["2026-01-01T00:00:00.000+00:00"] * listed.num_rows, TEXT)
    rows = rows.append_column("first_seen", seen).select(snapshots.ROWS.names)
    context.records.point(
        "snapshot", snapshots.save(context, rows, snapshots.snapshot_id(rows), before=None, parent=None)
    )


def measured_pull(url: str, home: Path, results: Any) -> None:
    """Pull, and put down seconds, peak memory and what was found."""
    from infra.store.base import Fetched
    from tasks.pull import pull

    context = _context(url, home)
    fetch = context.store.fetch

    def from_memory(key: str) -> Fetched:
        if not key.startswith("labeled/"):
            kept: Fetched = fetch(key)
            return kept
        number = int(key.split("_")[-3])
        return Fetched(number.to_bytes(8, "big") * 1625, new_etag(number))

    context.store.fetch = from_memory
    at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, cpu = time.perf_counter(), time.process_time()
    snapshot = pull(context)
    results.put(
        {
            "keys": snapshot.objects,
            "new": snapshot.new,
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "libraries_mib": round(at_rest),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
    )


def new_etag(number: int) -> str:
    """Return the ETag of a cell; every thousandth has changed since the snapshot."""
    return cell_etag(number + 10**9) if number % 1000 == 7 else cell_etag(number)


def measure(keys: int) -> dict[str, Any]:
    """Run both children against one bucket."""
    spawn = multiprocessing.get_context("spawn")  # forked, a child would begin with this process's memory
    results = spawn.Queue()
    with fake_bucket(keys) as bucket, tempfile.TemporaryDirectory(prefix="listing-") as folder:
        for target, arguments in ((leave_snapshot, ()), (measured_pull, (results,))):
            child = spawn.Process(target=target, args=(bucket.url, Path(folder), *arguments))
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(f"{target.__name__} ended with {child.exitcode}")
            bucket.etag = new_etag
        result: dict[str, Any] = results.get()
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark", AWS_REGION="us-east-1")
    logging.disable(logging.INFO)
    found = [measure(keys) for keys in arguments.keys]
    print(f"{'keys':>10}{'new':>8}{'seconds':>10}{'CPU s':>8}{'peak MiB':>10}{'of it libraries':>17}")
    for one in found:
        print(
            f"{one['keys']:>10,}{one['new']:>8,}{one['seconds']:>10}{one['cpu_seconds']:>8}"
            f"{one['peak_mib']:>10,}{one['libraries_mib']:>17,}"
        )
    print(f"limit: {LIMIT_MIB:,} MiB; {'kept' if all(one['peak_mib'] <= LIMIT_MIB for one in found) else 'BROKEN'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def _context(url: str, home: Path) -> Any:
    from infra.local.files import Workspace
    from infra.settings.settings import Settings
    from infra.store.folder import FolderStore
    from infra.store.records import Records
    from infra.store.s3 import S3Store
    from tasks.context import Context

    store = S3Store("s3://cells", endpoint=url)
    # The fake server takes no uploads in parts, which a table of a million rows is: records go to a folder.
    return Context(Settings(home=home, store=store.uri), store, Records(FolderStore(home / "records")), Workspace(home))


if __name__ == "__main__":
    main()
