"""Whole nights, end to end: a first one that trains both CNNs, a real registry, a real Prefect server, real kills.

The nights run as their users run them: the command line in a separate process, configured by its
environment alone. The first is started like that when the session begins (tests.ahead); the others are forked from a
process that has imported everything (tests.forked), since the imports take longer than most of them. What follows the
first night trains the tests' fake CNN, in processes of its own as well: what it shows is not about networks.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.registry.registry import TRAININGS
from infra.store.folder import FolderStore
from infra.store.keys import SYNTHETIC_MARK
from tasks.intake.demo import deliver
from tasks.intake.synthetic_cells import SyntheticPlan
from tests import ROOT
from tests.ahead import Lane
from tests.fleet import fake_cnns, hold_training, let_training_go
from tests.forked import Forked, Forks

# For a whole night on a machine five times slower than one on which it takes a minute or two.
pytestmark = [pytest.mark.slow(minutes=3), pytest.mark.server, pytest.mark.timeout(1800)]

PLAN = SyntheticPlan(patients=40, cells_per_patient=10, new_patients=6, scale=0.4)
STAGES = ("pull", "validate", "split", "pack", "train fastai", "train keras", "choose", "evaluate", "decide", "promote")
IN_AN_EPOCH = "fastai, member 1, epoch 1"
KILLS = (*STAGES[:4], IN_AN_EPOCH, *STAGES[4:], None)
# Small enough to train in seconds: these tests are about the pipeline, not about accuracy.
SETTINGS: dict[str, Any] = {
    "RETRAIN_TRAINING__SIDE": "32",
    "RETRAIN_TRAINING__MEMBERS": "1",
    "RETRAIN_TRAINING__AT_ONCE": "1",
    "RETRAIN_TRAINING__FASTAI": json.dumps(
        {"epochs": 2, "min_steps": 0, "batch_size": 16, "architecture": "xresnet18"}
    ),
    "RETRAIN_TRAINING__KERAS": json.dumps({"epochs": 2, "min_steps": 0, "batch_size": 16, "width": 8}),
    "RETRAIN_GATE__MIN_PATIENTS": "3",
    "RETRAIN_GATE__MIN_CELLS_PER_CLASS": "5",
    "RETRAIN_GATE__MIN_AUC": "0",
    "RETRAIN_GATE__MIN_SENSITIVITY": "0",
    "RETRAIN_GATE__MIN_SPECIFICITY": "0",
    "RETRAIN_GATE__RESAMPLES": "1000",
}


@dataclass(frozen=True)
class Machine:
    """A home folder, and the command line configured for it; ``cnns`` are variables that put fake CNNs there."""

    home: Path
    server: str
    forks: Forks
    cnns: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return surroundings(self.home, self.server) | self.cnns

    def start(self, *arguments: str) -> Forked:
        return self.forks.start(arguments, self.environment)

    def retrain(self, *arguments: str, code: int = 0) -> Any:
        process = self.start(*arguments, "--json")
        shown, stderr = process.finish()
        assert process.returncode == code, stderr
        return json.loads(shown.splitlines()[-1]) if shown.strip() else stderr

    @property
    def store(self) -> FolderStore:
        return store_of(self.home)


def surroundings(home: Path, server: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("RETRAIN_", "MLFLOW_"))}
    return ours | SETTINGS | {"RETRAIN_HOME": str(home), "PREFECT_API_URL": server}


def ahead(lane: Lane) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The first night, as its users run it: with its own temporary Prefect server."""
    home = lane.folder / "night"
    deliver(store_of(home), PLAN)
    done = lane.run([sys.executable, "-m", "flows.cli", "run", "--json"], RETRAIN_HOME=str(home), **SETTINGS)
    return home, done


def store_of(home: Path) -> FolderStore:
    (home / "store").mkdir(parents=True, exist_ok=True)
    return FolderStore(home / "store")


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fake CNNs' files."""
    return tmp_path_factory.mktemp("fakes")


@pytest.fixture(scope="module")
def forks(fakes: Path, prefect_url: str) -> Iterator[Forks]:
    made = Forks(surroundings(fakes, prefect_url) | fake_cnns(fakes), fakes / "log")
    yield made
    made.close()


@pytest.fixture(scope="module")
def machine(ahead: tuple[Path, subprocess.CompletedProcess[str]], prefect_url: str, forks: Forks) -> Machine:
    return Machine(ahead[0], prefect_url, forks)


@pytest.fixture
def others(tmp_path: Path, prefect_url: str, forks: Forks, fakes: Path, empty_registry: Path) -> list[Machine]:
    """Two more, with fake CNNs, whose registries have their tables already: creating them takes seconds."""
    made = [Machine(tmp_path / name, prefect_url, forks, fake_cnns(fakes)) for name in ("home", "beside")]
    for machine in made:
        machine.home.mkdir()
        shutil.copy(empty_registry, machine.home / "mlflow.db")
    return made


@pytest.fixture
def other_machine(others: list[Machine]) -> Machine:
    return others[0]


@pytest.fixture(scope="module")
def first_night(ahead: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    _, done = ahead
    assert done.returncode == 0, done.stderr
    assert "not on MLflow's page" not in done.stderr, done.stderr
    night: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return night


@pytest.fixture(scope="module")
def second_night(
    machine: Machine, first_night: dict[str, Any], fakes: Path
) -> tuple[dict[str, Any], dict[Path, bytes]]:
    """A night over new cells, some of them bad, with fake CNNs; and the objects that were there before."""
    del first_night
    number, count = deliver(machine.store, PLAN)
    assert number == 2
    folder = machine.home / "store" / "labeled" / "Uninfected"
    cell = next(folder.glob("*.png")).read_bytes()
    bad = {
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "notes.txt": b"left here by mistake",
        "C9P9ThinF_IMG_20260101_000000_cell_1.png": cell[: len(cell) // 2],
        "nobody.png": _other_pixels(cell),
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    night: dict[str, Any] = replace(machine, cnns=fake_cnns(fakes)).retrain("run")
    # Every object counts as new, junk too.
    assert night["images"]["new"] == count + len(bad)
    return night, before


def test_the_first_night_ends_with_a_champion_and_a_report(machine: Machine, first_night: dict[str, Any]) -> None:
    assert first_night["verdict"] == "promoted"
    assert (first_night["champion_before"], first_night["champion_after"]) == (None, "1")
    assert first_night["challenger_model"] in ("fastai", "keras")
    assert first_night["synthetic"] is True
    assert set(STAGES) <= set(first_night["seconds"])
    assert first_night["images"]["accepted"] == len(list((machine.home / "store" / "labeled").rglob("*.png")))
    for name in ("accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity"):
        interval = first_night["metrics"][name]
        assert interval["low"] <= interval["value"] <= interval["high"]
    page = Path(first_night["report"]).read_text()
    assert first_night["decision"] in page
    assert "synthetic" in page.lower()
    assert not (machine.home / "scratch").exists() or not list((machine.home / "scratch").iterdir())


def test_both_cnns_were_trained_in_separate_processes_and_each_left_one_model_file(
    machine: Machine, first_night: dict[str, Any]
) -> None:
    kept = machine.home / "store" / "retraining" / "candidates"
    records = [json.loads(path.read_text()) for path in kept.glob("*.json")]
    assert {record["model"] for record in records} == {"fastai", "keras"}
    for record in records:
        assert (machine.home / "store" / record["model_key"]).is_file()
        assert [member["spec"]["member"] for member in record["members"]] == [0]
        for member in record["members"]:
            assert member["history"]
            frameworks = {"torch", "tensorflow"} & set(member["versions"])
            assert len(frameworks) == 1, member["versions"]


def test_every_training_is_a_run_in_mlflow_with_its_curves(machine: Machine, first_night: dict[str, Any]) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{machine.home / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name(TRAININGS).experiment_id])
    runs = [run for run in found if run.data.tags["night"] == first_night["id"] and run.data.tags["level"] == "member"]
    assert sorted((run.data.params["cnn"], run.data.params["member"]) for run in runs) == [
        (cnn, "1") for cnn in ("fastai", "keras")
    ]
    began = datetime.fromisoformat(first_night["started_at"]).timestamp() * 1_000
    for run in runs:
        assert run.data.tags["outcome"] == (
            "promoted" if run.data.params["cnn"] == first_night["challenger_model"] else "not chosen"
        )
        curve = client.get_metric_history(run.info.run_id, "tuning_loss")
        assert curve
        times = [began, run.info.start_time, *(point.timestamp for point in curve), run.info.end_time]
        assert times == sorted(times)


def test_the_champion_loads_with_mlflow_alone_and_agrees_with_predict(
    machine: Machine, first_night: dict[str, Any]
) -> None:
    facts = machine.retrain("champion")
    assert (facts["version"], facts["decision"]) == ("1", first_night["decision"])
    path = next((machine.home / "store" / "labeled" / "Parasitized").glob("*.png"))
    [prediction] = machine.retrain("predict", str(path))["predictions"]
    code = f"""
import sys, mlflow
from pathlib import Path
from validation.images.decode import decode, to_square
from validation.rules import DataRules
mlflow.set_tracking_uri({facts["registry"]!r})
model = mlflow.pyfunc.load_model("models:/malaria-cell@champion")
# Either network may be the champion, and the two take cells of different sizes.
size = model.metadata.get_input_schema().inputs[0].shape[1]
image = to_square(decode(Path({str(path)!r}).read_bytes(), DataRules()), size)[None]
answer = model.predict(image)["probability"]
assert not {{"torch", "tensorflow"}} & set(sys.modules)
print(repr(float(answer[0])))
"""
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT, env=machine.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert float(shown.stdout.splitlines()[-1]) == prediction["probability"]


def test_unchanged_data_is_nothing_new_and_trains_nothing(machine: Machine, first_night: dict[str, Any]) -> None:
    looks = list((machine.home / "store" / "retraining" / "looks").rglob("*.json"))
    night = machine.retrain("run")
    assert night["verdict"] == "nothing new"
    assert night["decision"] == first_night["decision"]
    assert set(night["seconds"]) == {"pull"}
    assert night["images"]["new"] == 0
    assert looks == list((machine.home / "store" / "retraining" / "looks").rglob("*.json"))


def test_new_cells_bring_another_challenger_decision_and_report(
    machine: Machine, first_night: dict[str, Any], second_night: tuple[dict[str, Any], dict[Path, bytes]]
) -> None:
    night, _ = second_night
    assert night["verdict"] in ("kept", "undecided", "promoted")
    assert night["champion_before"] == "1"
    assert night["decision"] != first_night["decision"]
    report = machine.retrain("report", night["decision"][:8])
    assert Path(report["report"]).read_bytes() == Path(night["report"]).read_bytes()


def test_bad_images_are_left_out_by_name_and_nothing_else_is(
    machine: Machine, second_night: tuple[dict[str, Any], dict[Path, bytes]]
) -> None:
    night, before = second_night
    assert night["images"]["rejected"] == 2
    assert night["images"]["without_patient"] == 1
    page = Path(night["report"]).read_text()
    for reason in ("junk file", "not an image", "truncated", "no patient"):
        assert reason in page
    assert before == {path: path.read_bytes() for path in before}
    assert set(before) == set((machine.home / "store" / "labeled" / "Uninfected").iterdir())


def test_one_class_only_is_invalid_data_exit_3_with_a_report_and_the_champion_untouched(other_machine: Machine) -> None:
    machine = other_machine
    deliver(machine.store, PLAN)
    for path in (machine.home / "store" / "labeled" / "Parasitized").iterdir():
        path.unlink()
    for _ in range(2):  # the same data is invalid the second time too
        night = machine.retrain("run", code=3)
        assert night["verdict"] == "invalid data"
        assert "Parasitized cells" in night["sentence"]
        assert night["champion_after"] is None
        assert Path(night["report"]).exists()


def test_an_empty_store_says_what_to_do(other_machine: Machine) -> None:
    machine = other_machine
    (machine.store.root / "labeled").mkdir()
    stderr = machine.retrain("run", code=3)
    assert "no cells in" in stderr
    assert "retrain import" in stderr
    assert "Traceback" not in stderr


@pytest.mark.longest
def test_a_night_that_is_killed_again_and_again_ends_as_if_it_had_never_been(
    others: list[Machine], fakes: Path
) -> None:
    """SIGKILL in every stage, one after the other; what was finished is not done again, and the result is the same.

    One kill falls into an epoch: it leaves no child behind, and the training is done again.
    """
    machine, undisturbed = others
    deliver(machine.store, PLAN)
    deliver(undisturbed.store, PLAN)
    expected = undisturbed.retrain("run")
    done: list[str] = []
    log: list[str] = []
    for stage in KILLS:
        if stage == IN_AN_EPOCH:
            hold_training(fakes, "fastai")
        process = machine.start("run", "--json")
        stderr = _kill_after(process, stage)
        log += [f"--- until {stage}\n", *stderr]
        # A stage that an earlier attempt finished takes no time; a training that it finished reports no epoch.
        trained = {model for model in ("fastai", "keras") if any(f"  {model}, member" in line for line in stderr)}
        assert not [model for model in trained if f"train {model}" in done], stderr
        if stage is not None:
            assert process.returncode == -signal.SIGKILL, stderr
            done.append(stage)
        if stage == IN_AN_EPOCH:
            _wait_for_the_end_of_all(machine.home)
            let_training_go(fakes, "fastai", waiting=False)
    night = machine.retrain("run")
    assert night["verdict"] == "nothing new"
    assert (night["decision"], expected["verdict"]) == (expected["decision"], "promoted"), "".join(log)
    assert (night["champion_after"], expected["champion_after"]) == ("1", "1")
    history = list((machine.home / "store" / "retraining" / "history").glob("*.json"))
    looks = list((machine.home / "store" / "retraining" / "looks").rglob("*.json"))
    assert (len(history), len(looks)) == (1, 1)


def test_the_mark_of_synthetic_cells_is_there(machine: Machine) -> None:
    assert machine.store.exists(SYNTHETIC_MARK)


def _kill_after(process: Forked, text: str | None) -> list[str]:
    """Kill a run with SIGKILL as soon as it has logged that ``text`` is done; without a text let it end."""
    stderr: list[str] = []
    for line in process.stderr:
        stderr.append(line)
        if text is not None and (f"  {text}: " in line or (text in line and "epoch" in text)):
            process.kill()
            break
    process.finish()
    return stderr


def _wait_for_the_end_of_all(home: Path) -> None:
    """A child checks its parent every half a second, between two batches of a busy machine."""
    until = time.monotonic() + 300
    while (found := _processes_of(home)) and time.monotonic() < until:
        time.sleep(0.05)
    assert found == []


def _processes_of(home: Path) -> list[str]:
    """Return the command lines of live processes that name a home folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # has ended meanwhile
        if str(home) in command:
            found.append(command)
    return found


def _other_pixels(png: bytes) -> bytes:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image)
    out = io.BytesIO()
    Image.fromarray(np.flipud(pixels)).save(out, "PNG")
    return out.getvalue()
