"""Secrets are given in every place where one can be, nights fail in several ways, and then everything that was written
is searched: files, databases, the bucket, what was printed, what Prefect keeps.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import boto3
import pytest

from flows.unattended.alerts import apply_alerts
from infra.prefect_api import PrefectServer
from infra.prefect_server import free_port, prefect_server
from infra.runtime import prepare_environment
from infra.settings.settings import Settings, load_settings
from infra.store.s3 import S3Store
from tests import ROOT
from tests.fleet import fake_environment, fill
from tests.servers import with_tables

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800)]

NAMES = ("webhook", "prefect", "secret-key", "session", "tracking", "database", "basic", "link")
CANARY = {name: f"canary-{name}-7Qx2/+{number}" for number, name in enumerate(NAMES)}
LOGIN = f"operator:{CANARY['prefect']}"
# A normal night, but one stage fails with a secret in its message.
BROKEN_STAGE = """
import os, sys
from infra.settings.settings import load_settings
load_settings()  # first, as a command does it: Prefect reads its login when it is imported
import tasks.pull
def broken(*_):
    import os
    raise RuntimeError("it did not like " + os.environ["AWS_SECRET_ACCESS_KEY"])
tasks.pull.pull.__code__ = broken.__code__
sys.argv = ["retrain", "run"]
import flows.cli.main
flows.cli.main.main()
"""


class Place:
    """A machine with all its secrets, and everything that they might leak into."""

    def __init__(self, folder: Path, url: str, endpoint: str) -> None:
        self.folder, self.url, self.endpoint = folder, url, endpoint
        self.said: list[str] = []
        secrets = folder.parent / "secrets"
        secrets.mkdir()
        for name, text in {"webhook": self.webhook, "prefect": LOGIN, "secret-key": CANARY["secret-key"]}.items():
            (secrets / name).write_text(f"{text}\n")
        (folder / "tmp").mkdir()
        self.environment = {
            **fake_environment(folder, folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY_FILE": str(secrets / "secret-key"),
            "AWS_SESSION_TOKEN": CANARY["session"],
            "MLFLOW_TRACKING_USERNAME": "somebody",
            "MLFLOW_TRACKING_PASSWORD": CANARY["tracking"],
            "PREFECT_API_URL": url,
            "PREFECT_API_AUTH_STRING_FILE": str(secrets / "prefect"),
            "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,infra,validation",
            "RETRAIN_ALERTS__WEBHOOK_FILE": str(secrets / "webhook"),
            "RETRAIN_UP__DATABASE": f"postgresql://somebody:{quote(CANARY['database'], safe='')}@127.0.0.1:1/prefect",
            "RETRAIN_STORE": "s3://canaries/cells",
            "RETRAIN_STORE_ENDPOINT": endpoint,
            "RETRAIN_STORE_REGION": "us-east-1",
        }

    @property
    def webhook(self) -> str:
        return f"https://127.0.0.1:1/services/{CANARY['webhook']}"

    def run(self, *arguments: str, **settings: str) -> int:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT, env=self.environment | settings, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.said.append(done.stdout + done.stderr)
        return done.returncode

    def leaks(self) -> list[str]:
        """Return where a secret is found: in a file of this machine, in the output, or in the bucket."""
        found = [f"said by command {n}: {name}" for n, text in enumerate(self.said) for name in leaked(text.encode())]
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                found += [f"{path.relative_to(self.folder)}: {name}" for name in leaked(path.read_bytes())]
        client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="canaries"):
            for entry in page["Contents"]:
                body = client.get_object(Bucket="canaries", Key=entry["Key"])["Body"].read()
                found += [f"{entry['Key']}: {name}" for name in leaked(body + entry["Key"].encode())]
        client.close()
        return found


def leaked(data: bytes) -> list[str]:
    """Return which canaries are in ``data``, in any of their spellings."""
    return [name for name in NAMES if any(spelling in data for spelling in spellings(CANARY[name]))]


def spellings(secret: str) -> list[bytes]:
    # user:password in base64, in each of the three alignments, without the ends that depend on neighbours.
    coded = [base64.b64encode(b"x" * shift + secret.encode())[4:-4] for shift in range(3)]
    return [secret.encode(), quote(secret).encode(), quote(secret, safe="").encode(), secret.encode()[7:], *coded]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, moto_endpoint: str, prefect_database: Path) -> Iterator[Place]:
    """A bucket with cells, and a Prefect server with a password and one database."""
    folder = tmp_path_factory.mktemp("canaries") / "machine"
    folder.mkdir()
    before = dict(os.environ)
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "no-key-of-anybody")
    patch.setenv("RETRAIN_HOME", str(folder / "server"))
    patch.setenv("PREFECT_HOME", str(folder / "server" / "prefect"))
    patch.setenv("PREFECT_SERVER_API_AUTH_STRING", LOGIN)
    patch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
    with_tables(folder / "server" / "prefect", prefect_database)
    settings = load_settings()
    prepare_environment(settings)
    client = boto3.client("s3", endpoint_url=moto_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="canaries")
    client.close()
    fill(S3Store("s3://canaries/cells", endpoint=moto_endpoint, region="us-east-1"), 30)
    try:
        with prefect_server(settings) as url:
            yield Place(folder, url, moto_endpoint)
    finally:
        patch.undo()
        for name in set(os.environ) - set(before):
            del os.environ[name]


def test_no_secret_is_found_after_nights_that_went_well_and_nights_that_did_not(place: Place) -> None:
    server = PrefectServer(place.url, auth=LOGIN)
    apply_alerts(server, Settings(home=place.folder, alerts={"webhook": place.webhook}).alerts)
    assert place.run("-m", "flows.cli", "run") == 0, place.said[-1]
    assert "PROMOTED" in place.said[-1]
    # Each fails in another place: in a task, at the registry's database, at a download.
    assert place.run("-c", BROKEN_STAGE) == 1, place.said[-1]
    assert "it did not like ***" in place.said[-1]
    database = f"postgresql://somebody:{CANARY['basic']}@127.0.0.1:{free_port()}/mlflow"
    assert place.run("-m", "flows.cli", "champion", RETRAIN_REGISTRY=database) == 4
    link = f"http://somebody:{CANARY['basic']}@127.0.0.1:1/cells.zip?X-Amz-Signature={CANARY['link']}"
    assert place.run("-m", "flows.cli", "import", link) != 0

    # Prefect's records are there, so the search looks in the right place.
    until_logged(server, "it did not like ***")
    failed = server.runs(states=["FAILED"])
    assert ["it did not like ***" in run["state"]["message"] for run in failed] == [True]
    assert (place.folder / "server" / "prefect" / "prefect.db").stat().st_size > 100_000
    assert place.leaks() == []


def until_logged(server: PrefectServer, words: str) -> None:
    """Wait until Prefect's server has a log line with ``words``: lines are sent in batches."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if any(words in line["message"] for line in server.ask("POST", "/logs/filter", {"limit": 200})):
            return
        time.sleep(0.2)
    raise AssertionError(f"no log line says {words!r}")


def test_the_search_finds_what_is_there(place: Place) -> None:
    (place.folder / "leak.txt").write_text(base64.b64encode(LOGIN.encode()).decode())
    place.said.append(quote(CANARY["link"], safe=""))
    try:
        assert [leak.partition(": ")[2] for leak in place.leaks()] == ["link", "prefect"]
    finally:
        (place.folder / "leak.txt").unlink()
        place.said.pop()
