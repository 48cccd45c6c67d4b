"""``retrain site`` and ``retrain compare`` as their user sees them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from flows.cli.report import reader
from infra.settings.settings import Settings
from infra.store.folder import FolderStore
from tasks.context import Context
from tests.builders import folder_context
from tests.flows.cli.test_main import retrain
from tests.tasks.commands.test_compare_decisions import AFTER, BEFORE, judged, predictions
from tests.tasks.reporting.test_index import a_night
from validation.errors import StoreUnreachable

pytestmark = pytest.mark.thorough


@pytest.fixture
def store(home: Path) -> FolderStore:
    context = folder_context(home, {})
    night = a_night(1)
    context.records.save(night, night.id)
    context.store.put(f"retraining/reports/{night.decision}.html", b"<p>the report</p>")
    assert isinstance(context.store, FolderStore)
    return context.store


def test_the_index_is_built_without_serving(
    store: FolderStore, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrain(monkeypatch, "site", "--build-only", "--json") == 0
    path = Path(json.loads(capsys.readouterr().out)["index"])
    assert path == home / "reports" / "index.html"
    assert path.read_bytes() == store.get("retraining/reports/index.html")


def test_a_taken_port_is_a_usage_error(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del store
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert retrain(monkeypatch, "site", "--port", str(taken.getsockname()[1])) == 2
    shown = capsys.readouterr().err
    assert "cannot serve on port" in shown
    assert "Traceback" not in shown


def test_two_decisions_are_compared_in_words_and_as_json(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    context = folder_context(home, {})
    judged(context, BEFORE, predictions(range(30), right=0.85, seed=1), day=1)
    judged(context, AFTER, predictions(range(5, 40), right=0.95, seed=2), day=2)
    assert retrain(monkeypatch, "compare", BEFORE[:6], AFTER[:6]) == 0
    shown = capsys.readouterr()
    assert f"decision {AFTER} minus decision {BEFORE}, on 25 patients and 500 cells" in shown.out
    assert "300 cells that only one of them judged are left out" in shown.out
    assert "nothing is promoted" in shown.err
    assert retrain(monkeypatch, "compare", AFTER, BEFORE, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    difference = found["differences"]["accuracy"]
    assert difference["low"] < difference["value"] < difference["high"]
    assert f"{difference['value']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})" in shown.out


def test_a_link_in_the_folder_of_reports_is_no_page(store: FolderStore, home: Path, tmp_path: Path) -> None:
    context = Context.open(Settings(home=home))
    (tmp_path / "secret.html").write_text("secret")
    (home / "reports").mkdir(exist_ok=True)
    (home / "reports" / "link.html").symlink_to(tmp_path / "secret.html")
    (home / "reports" / "copy.html").write_text("a copy")
    read = reader(context)
    assert read("retraining/reports/copy.html") == b"a copy"
    assert read("retraining/reports/link.html") is None
    (store.root / "retraining" / "reports" / "x.html").symlink_to(tmp_path / "secret.html")
    with pytest.raises(StoreUnreachable, match="a link out of its folder"):
        read("retraining/reports/x.html")


@pytest.mark.server
def test_it_serves_the_reports_until_it_is_stopped(store: FolderStore, home: Path) -> None:
    """A report is read from the store, or from this machine's copy if the store has lost it."""
    (home / "reports").mkdir(exist_ok=True)
    (home / "reports" / "onlyhere.html").write_text("<p>a copy</p>")
    # Started in the background by a shell, it ignores Ctrl-C by default.
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    process = subprocess.Popen(
        [*shell, sys.executable, "-m", "flows.cli", "site", "--port", "0", "--json"],
        env={**os.environ, "RETRAIN_HOME": str(home)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        index = json.loads(process.stdout.readline())["url"]
        with httpx.Client(trust_env=False, timeout=120) as client:
            assert "night 1" in client.get(index).text
            folder = index.rpartition("/")[0]
            assert client.get(f"{folder}/{'d1' * 6}.html").text == "<p>the report</p>"
            assert client.get(f"{folder}/onlyhere.html").text == "<p>a copy</p>"
            assert client.get(f"{folder}/nowhere.html").status_code == 404
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0
        assert "stopped" in stderr
        assert "Traceback" not in stderr
    finally:
        process.kill()
        process.communicate()
