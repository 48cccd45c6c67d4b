"""The command line as its user sees it: help, exit codes, one clear line for every mistake."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import pytest
from rich.table import Table
from rich.text import Text

from flows import console
from flows.cli import main as cli
from infra.processes.parent import make_tag, tagged_processes
from tests import ROOT
from validation.errors import RetrainError

pytestmark = pytest.mark.thorough


def retrain(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["retrain", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETRAIN_HOME", str(tmp_path / "home"))
    # Rich fits its tables to the terminal; the tests read whole lines.
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.mark.parametrize(
    "command",
    [
        *("run", "demo", "import", "predict", "champion", "report", "settings", "validate", "quarantine"),
        *(
            "up",
            "devices",
            "notify",
            "backup",
            "restore",
            "history",
            "rollback",
            "promote",
            "approve",
            "compare",
            "reject",
            "rebuild-registry",
            "site",
        ),
    ],
)
def test_every_command_explains_itself(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrain(monkeypatch, command, "--help") == 0
    shown = capsys.readouterr().out
    assert f"retrain {command}" in shown
    assert "--json" in shown
    assert f"Example: retrain {command}" in shown


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert retrain(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"retrain {version('malaria-retraining')}\n"


def test_an_unknown_command_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrain(monkeypatch, "retarin") == 2
    assert "No such command" in capsys.readouterr().err


def test_an_invalid_setting_is_refused_by_name_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    monkeypatch.setenv("RETRAIN_GATE__LOOKS", "none")
    assert retrain(monkeypatch, "run") == 2
    shown = capsys.readouterr().err
    assert "RETRAIN_GATE__LOOKS" in shown
    assert "Traceback" not in shown
    assert not home.exists()


def test_an_unknown_recipe_setting_is_refused_by_name_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RETRAIN_TRAINING__KERAS__EPOCHZ", "3")
    assert retrain(monkeypatch, "run") == 2
    shown = capsys.readouterr().err
    assert "training.keras" in shown
    assert "epochz" in shown


def test_a_missing_store_ends_with_what_to_do_and_exit_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RETRAIN_STORE", str(tmp_path / "nowhere"))
    assert retrain(monkeypatch, "run") == 4
    shown = capsys.readouterr().err
    assert "error: no folder at" in shown
    assert "retrain import" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("command", ["import", "demo"])
def test_a_source_with_a_typing_mistake_changes_nothing(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    option = ["--cells"] if command == "demo" else []
    assert retrain(monkeypatch, command, *option, str(tmp_path / "cels")) == 2
    assert f"no folder or file at {tmp_path / 'cels'}" in capsys.readouterr().err
    assert [path.name for path in home.iterdir() if not path.name.startswith("mlflow.db")] == []


def test_there_is_no_champion_and_no_report_yet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    (home / "store").mkdir(parents=True)
    assert retrain(monkeypatch, "report") == 2
    assert "no night has come to a decision yet" in capsys.readouterr().err
    assert retrain(monkeypatch, "champion") == 2
    assert "no champion" in capsys.readouterr().err


def test_settings_are_printed_with_passwords_masked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RETRAIN_REGISTRY", "postgresql://who:hunter2@host/db")
    assert retrain(monkeypatch, "settings") == 0
    assert retrain(monkeypatch, "settings", "--json") == 0
    shown = capsys.readouterr()
    assert "hunter2" not in shown.out + shown.err
    assert "postgresql://who:***@host/db" in shown.out
    values = json.loads(shown.out.splitlines()[-1])
    assert values["gate.looks"] == "24"


def test_settings_are_never_cut_and_have_source_default_and_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, home: Path
) -> None:
    store = f"file://{tmp_path}/{'long' * 60}"
    home.mkdir()
    (home / "retrain.toml").write_text("[gate]\nlooks = 12\n")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("RETRAIN_STORE", store)
    monkeypatch.setenv("RETRAIN_TRAINING__KERAS__EPOCHS", "3")
    assert retrain(monkeypatch, "settings") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"store = {store}  (RETRAIN_STORE)" in lines
    assert "training.keras.epochs = 3  (RETRAIN_TRAINING__KERAS__EPOCHS)" in lines
    assert "gate.error_budget = 0.05  (default)" in lines
    at = lines.index("gate.looks = 12  (settings file)")
    assert lines[at + 1] == "    RETRAIN_GATE__LOOKS, default 24: looks in any 365 days that share the budget"


def test_an_unforeseen_error_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(cli, "load_settings", broken)
    assert retrain(monkeypatch, "settings") == 1
    shown = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: surprise" in shown
    assert "Traceback" not in shown
    kept = Path(shown.split("the traceback is in ")[1].strip())
    assert "surprise" in kept.read_text()
    kept.unlink()


@pytest.mark.parametrize(
    ("ended_it", "code", "expected"),
    [
        (RetrainError("No space left on device: /cells", "make room"), 1, "error: No space left on device: /cells"),
        (None, 4, "error: Prefect's server did not answer in the middle of the night: answered 503"),
    ],
)
def test_what_ended_a_night_is_told_even_if_prefects_server_fails_when_it_is_told(
    ended_it: RetrainError | None,
    code: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    from flows import retrain as flow

    def night() -> None:
        try:
            if ended_it:
                raise ended_it
        finally:  # as Prefect's engine does: it reports the failure while it handles it
            request = httpx.Request("POST", "http://127.0.0.1/api/flow_runs/1/set_state")
            answer = httpx.HTTPStatusError("busy", request=request, response=httpx.Response(503, request=request))
            raise PrefectHTTPStatusError.from_httpx_error(answer)

    monkeypatch.setattr(flow, "retrain", night)
    monkeypatch.setattr(cli, "_night", lambda *_: cli._run_flow())
    assert retrain(monkeypatch, "run") == code
    assert expected in capsys.readouterr().err


def test_import_puts_cells_into_the_store_and_is_idempotent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, home: Path
) -> None:
    from tasks.intake.synthetic_cells import SyntheticPlan, folder_of, night_cells

    for cell in night_cells(1, SyntheticPlan(patients=4, cells_per_patient=10, scale=0.3)):
        path = tmp_path / "cells" / folder_of(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cell.png)
    assert retrain(monkeypatch, "import", str(tmp_path / "cells"), "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["written"] == first["found"] == len(list((home / "store" / "labeled").rglob("*.png")))
    assert retrain(monkeypatch, "import", str(tmp_path / "cells"), "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["written"], again["unchanged"]) == (0, first["found"])


@pytest.mark.parametrize(
    "mistake",
    [["--cells", "clels"], ["--cells", "cells", "--class", "sick"], ["--cells", "cells", "--labels", "x.csv"]],
)
def test_a_mistake_in_the_source_leaves_the_settings_file_as_it_was(
    mistake: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, home: Path
) -> None:
    from tasks.intake.demo import choose_place

    choose_place(home / "retrain.toml", home, synthetic=True)
    before = (home / "retrain.toml").read_text()
    (tmp_path / "cells" / "sick").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert retrain(monkeypatch, "demo", *mistake) == 2
    assert "\nerror: " in f"\n{capsys.readouterr().err}"
    assert (home / "retrain.toml").read_text() == before
    assert not (home / "cells").exists()


def test_real_cells_never_join_synthetic_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, home: Path
) -> None:
    (home / "store" / "retraining").mkdir(parents=True)
    (home / "store" / "retraining" / "synthetic.json").write_text("{}")
    (tmp_path / "cells" / "Parasitized").mkdir(parents=True)
    assert retrain(monkeypatch, "import", str(tmp_path / "cells")) == 2
    assert "synthetic" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli._EXAMPLES))
def test_whatever_the_first_command_is_the_home_folder_is_for_its_owner_alone(
    command: str, monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path
) -> None:
    """Each as its help shows it; what would start servers ends before it does."""

    def stop(*_: object, **__: object) -> None:
        raise RetrainError("stopped by the test")

    monkeypatch.setattr("flows.unattended.up.LocalDeployment", stop)
    monkeypatch.setattr("tasks.training.device.device_here", stop)
    monkeypatch.setattr("infra.prefect_server.prefect_server", stop)
    monkeypatch.setattr("tasks.intake.demo.deliver", lambda *_, **__: (1, 0))
    for name in ("cells", "images"):
        for folder in ("infected", "Parasitized", "Uninfected"):
            (tmp_path / name / folder).mkdir(parents=True)
            (tmp_path / name / folder / "a.png").write_bytes(b"cell")
    monkeypatch.chdir(tmp_path)
    umask = os.umask(0o002)
    try:
        example = cli._EXAMPLES[command].partition(">")[0].replace("/backups", str(tmp_path / "backups"))
        retrain(monkeypatch, command, *shlex.split(example))
    finally:
        os.umask(umask)
    made = stat.S_IMODE(home.stat().st_mode) if home.exists() else None
    assert made == (None if command in ("settings", "devices", "backup", "restore") else 0o700)


@pytest.mark.parametrize(
    "arguments", [("import", ""), ("predict", ""), ("backup", ""), ("restore", " "), ("import", "x", "--labels", "")]
)
def test_an_empty_name_is_not_the_current_folder(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "Parasitized").mkdir()
    (tmp_path / "Parasitized" / "a.png").write_bytes(b"cell")
    monkeypatch.chdir(tmp_path)
    assert retrain(monkeypatch, *arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "name" in shown
    assert not list(tmp_path.rglob("a.png"))[1:]


def test_nothing_from_outside_reaches_the_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[2Jb\x9b31mc\u202ed\re\x07f\x7fg"
    table = Table("key")
    table.add_row(hostile)
    for show in (console.out.print, console.err.print):
        show(Text(hostile), hostile, table)
    console.error(RetrainError(hostile, hostile))
    console.prepare_logging()
    logging.getLogger("tasks").warning("%s", hostile)
    console.json_line({"why": hostile})
    shown = "".join(capsys.readouterr())
    assert set(re.findall(r"[^\n]", shown)) <= {letter for letter in shown if letter.isprintable()}
    assert shown.count(r"\x1b[2J") == 9
    assert json.loads(
        shown.splitlines()[shown.splitlines().index(next(x for x in shown.splitlines() if "why" in x))]
    ) == {"why": hostile}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_a_terminal_cannot_show_end_no_command(encoding: str, tmp_path: Path) -> None:
    home = tmp_path / "é漢😀"
    environment = {**os.environ, "RETRAIN_HOME": str(home), "PYTHONIOENCODING": encoding}
    for arguments in (["settings"], ["settings", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=ROOT, env=environment, capture_output=True, encoding=encoding, check=True,
        )  # fmt: skip
    assert json.loads(done.stdout)["home"] == str(home)


def test_a_second_machine_on_one_home_is_refused(
    monkeypatch: pytest.MonkeyPatch, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from infra.local.up_lock import machine_lock

    with machine_lock(home):
        assert retrain(monkeypatch, "up") == 2
    assert "is running on" in capsys.readouterr().err


def test_a_port_that_is_taken_is_a_clear_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.settimeout(0)
        port = str(other.getsockname()[1])
        monkeypatch.setenv("RETRAIN_UP__PORT", port)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            assert retrain(monkeypatch, "up") == 2
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        # The other process got no request: `retrain up` ends only runs of its own server when it stops.
        with pytest.raises(BlockingIOError):
            other.accept()
    shown = capsys.readouterr().err
    assert f"port {port} is taken" in shown
    assert "RETRAIN_UP__PORT" in shown
    assert tagged_processes(make_tag(os.getpid())) == []


def test_a_notice_without_a_server_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert retrain(monkeypatch, "notify") == 4
    assert "retrain up" in capsys.readouterr().err


class TestDevices:
    SAID: ClassVar[dict[str, dict[str, str]]] = {
        "fastai": {"device": "cuda: NVIDIA H100", "why_no_gpu": "", "unused_gpu": ""},
        "keras": {"device": "cpu", "why_no_gpu": "x", "unused_gpu": "GPU 0 is not used: x"},
    }

    @pytest.fixture(autouse=True)
    def said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tasks.training.device.device_here", self.SAID.__getitem__)

    def test_it_says_what_each_cnn_trains_on(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert retrain(monkeypatch, "devices") == 0
        assert capsys.readouterr().out == "fastai: cuda: NVIDIA H100\nkeras: cpu (GPU 0 is not used: x)\n"
        assert retrain(monkeypatch, "devices", "--json") == 0
        assert json.loads(capsys.readouterr().out) == self.SAID

    def test_a_gpu_that_must_be_usable_ends_it_with_an_error(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("RETRAIN_TRAINING__UNUSABLE_GPU", "fail")
        assert retrain(monkeypatch, "devices") == 1
        assert "UNUSABLE_GPU is fail, and keras: GPU 0 is not used: x\n" in capsys.readouterr().err
        monkeypatch.setenv("RETRAIN_TRAINING__MODELS", "fastai")
        assert retrain(monkeypatch, "devices") == 0


def test_a_webhook_is_never_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RETRAIN_ALERTS__WEBHOOK", "https://hooks.example/s3cr3t")
    assert retrain(monkeypatch, "settings") == 0
    shown = capsys.readouterr()
    assert "alerts.webhook" in shown.out
    assert "s3cr3t" not in shown.out + shown.err


@pytest.mark.server
def test_a_machine_that_is_stopped_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    from tests.fleet import Up, until

    machine = Up(tmp_path)
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "up"], cwd=ROOT, env=machine.environment, stderr=log
        )
    machine.mark = make_tag(process.pid)
    until(lambda: any("prefect server start" in command for command in machine.processes()))
    process.terminate()
    assert process.wait(timeout=300) == 130
    assert machine.processes() == []
    assert "stopping" in (tmp_path / "up.log").read_text()
