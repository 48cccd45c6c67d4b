"""Fixtures that more than one package uses. It imports nothing heavy: a test of one pure file starts in a second."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests import ROOT
from tests.ahead import Lane

if TYPE_CHECKING:
    from infra.store.s3 import S3Store

# Of each of a failing test's outputs, in characters.
MOST_SAID = 4_000

# What starts for all of its modules what takes a minute to start.
TOGETHER = ("tests/flows/faults/",)

# Examples that are drawn slowly say something about the machine, and nothing about what is tested.
hypothesis.settings.register_profile("any machine", suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """A real S3 server on a free loopback port: moto's, in this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """No identity from this machine: no keys, profiles, endpoints or instance role; nor that of an earlier test."""
    import boto3

    # The session behind boto3.client() keeps the keys that it found first.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "DEFAULT_PROFILE", "REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def fake_aws(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An identity that any server on loopback may believe."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")


@pytest.fixture
def s3_store(moto_endpoint: str, fake_aws: None) -> S3Store:
    """An empty bucket of its own, with a prefix."""
    import boto3

    from infra.store.s3 import S3Store

    bucket = f"cells-{uuid.uuid4().hex[:12]}"
    client = boto3.session.Session().client("s3", endpoint_url=moto_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    client.close()
    return S3Store(f"s3://{bucket}/some/prefix", endpoint=moto_endpoint)


@pytest.fixture
def real_s3_store(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """An empty bucket on the S3 server that the environment names (S3_TEST_...); emptied and removed after."""
    from infra.store.s3 import S3Store

    names = ("ENDPOINT", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION")
    given = {name: os.environ.get(f"S3_TEST_{name}", "") for name in names}
    if not all(given.values()):
        pytest.skip("no S3 server given: set " + ", ".join(f"S3_TEST_{name}" for name in names))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", given["ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", given["SECRET_ACCESS_KEY"])
    bucket = f"cells-{uuid.uuid4().hex[:12]}"
    store = S3Store(f"s3://{bucket}/some/prefix", endpoint=given["ENDPOINT"], region=given["REGION"])
    store._client.create_bucket(Bucket=bucket)
    yield store
    whole = S3Store(f"s3://{bucket}", endpoint=given["ENDPOINT"], region=given["REGION"])
    for info in whole.list(""):
        store._client.delete_object(Bucket=bucket, Key=info.key)
    store._client.delete_bucket(Bucket=bucket)


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    """No setting of this machine's own reaches a test, nor a server of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RETRAIN_") or name == "PREFECT_API_URL"]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> None:
    """Whatever tests start can be interrupted: a shell lets what it starts in the background ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def lane(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    no_settings_from_outside: None,
    signals_as_in_a_terminal: None,
) -> Iterator[Lane]:
    """What is done beside the fast tests; see tests.ahead."""
    made = Lane(tmp_path_factory.mktemp("ahead"))
    # Of several processes each has all tests in its list, and runs some: there a module begins when it is its turn.
    for item in request.session.items if "PYTEST_XDIST_WORKER" not in os.environ else ():
        if "ahead" in getattr(item, "fixturenames", ()):
            assert isinstance(item, pytest.Function)
            made.begin(item.module)
    yield made
    made.close()


@pytest.fixture(scope="module")
def ahead(request: pytest.FixtureRequest, lane: Lane) -> Any:
    """What the module's own function ``ahead`` has returned."""
    lane.begin(request.module)
    return lane.result(request.module.__name__)


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """What a command tells its libraries through the environment ends with the test."""
    before = dict(os.environ)
    yield
    _put_back(before)


def _put_back(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        if not name.startswith("PYTEST"):  # pytest removes its own, and expects to find them
            del os.environ[name]
    os.environ.update(environment)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a test."""
    path = tmp_path / "home"
    monkeypatch.setenv("RETRAIN_HOME", str(path))
    return path


@pytest.fixture
def evidence_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up decision is carried out without evidence, which tests/tasks/judging/test_evidence.py is about."""
    monkeypatch.setattr("tasks.promote._refuse_other_evidence", lambda *_: None)


@pytest.fixture
def no_expectations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is expected of a batch as a whole is met: for what comes after validation, and half a second faster."""
    from validation.batch.expectations import BatchChecks

    monkeypatch.setattr("tasks.validate.check_batch", lambda *_: BatchChecks((), {}))


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[str]:
    """One Prefect server for all tests; one for each night is tested in test_runtime."""
    from infra.prefect_server import prefect_server
    from infra.runtime import prepare_environment
    from infra.settings.settings import load_settings
    from tests.servers import with_tables

    before = dict(os.environ)
    home = tmp_path_factory.mktemp("server")
    os.environ["RETRAIN_HOME"] = str(home)
    with_tables(home / "prefect", prefect_database)
    settings = load_settings()
    prepare_environment(settings)
    try:
        with prefect_server(settings) as url:
            # Whoever wants it is given its address; to all other tests it is not there.
            _put_back(before)
            yield url
            os.environ["PREFECT_API_URL"] = url
    finally:
        _put_back(before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server; whoever wants databases makes their own (tests.servers.databases)."""
    from tests.servers import postgres_server

    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def empty_registry(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them: making one takes seconds, copying it none."""

    def make() -> Path:
        from infra.registry.registry import Registry
        from infra.settings.settings import Settings

        home = tmp_path_factory.mktemp("registry")
        Registry(Settings(home=home))
        return home / "mlflow.db"

    ours = [path.read_text() for path in sorted((ROOT / "infra" / "registry").glob("*.py"))]
    return made_once(pytestconfig, "mlflow", metadata.version("mlflow"), *ours, make=make)


@pytest.fixture(scope="session")
def prefect_database(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect server's database with its tables and nothing in them, for ``with_tables``."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("prefect-database")
        code = "import asyncio, prefect.server.database as d; asyncio.run(d.provide_database_interface().create_db())"
        surroundings = {**os.environ, "PREFECT_HOME": str(home), "DO_NOT_TRACK": "1"}
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=surroundings, cwd=home, check=True)
        return home / "prefect.db"

    return made_once(pytestconfig, "prefect", metadata.version("prefect"), make=make)


def made_once(config: pytest.Config, name: str, *made_of: str, make: Callable[[], Path]) -> Path:
    """Return a file that is made once for all processes and runs of the tests, as long as ``made_of`` stays the same.

    It is kept in pytest's cache, which may be emptied at any time.
    """
    from filelock import FileLock

    assert config.cache
    folder = config.cache.mkdir("made-once")
    path = folder / f"{name}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}"
    with FileLock(folder / f"{name}.lock"):
        if not path.exists():
            beside = path.with_suffix(".new")
            shutil.copy(make(), beside)
            beside.replace(path)
    return path


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave modules that `make quick` runs no test of unread: importing them takes longer than its tests do."""
    if "not thorough" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    marks = re.search(r"^pytestmark = (.*)$", collection_path.read_text(), flags=re.MULTILINE)
    return True if marks and re.search("thorough|slow|server|longest", marks[1]) else None


def pytest_collection_finish() -> None:
    """Let the collector pass over what imports have brought: a million objects, which stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process of several whole modules, and those that share a server and a forking process as one."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return next((place for place in TOGETHER if nodeid.startswith(place)), super()._split_scope(nodeid))

    return Together(config, log) if config.option.dist == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the end of what a failing test and its servers said: pages of a server's log hide what failed."""
    report = yield
    report.sections = [
        (title, text if len(text) <= MOST_SAID else f"[...]\n{text[-MOST_SAID:]}") for title, text in report.sections
    ]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once each why tests were skipped; what failed comes after it, last."""
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: who broke something small should not wait for the trainings.

    The longest of the slow ones come first, so that at the end no process is left alone with one of them.
    """

    def turn(item: pytest.Item) -> tuple[bool, float]:
        slow = item.get_closest_marker("slow")
        return slow is not None, -slow.kwargs.get("minutes", 0) if slow else 0

    items.sort(key=turn)
