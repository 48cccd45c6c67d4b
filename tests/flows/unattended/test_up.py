"""`retrain up` as its users run it: a real server, real workers, whole nights with fake CNNs, real kills."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import SecretStr

from flows.events import NIGHT, night_event
from flows.unattended.alerts import PREFIX, apply_alerts, as_json, definitions
from infra.prefect_api import INTERRUPTED
from infra.settings.groups import AlertSettings
from infra.store.keys import CANDIDATE_ASSET, CHAMPION_ASSET, REPORT_ASSET, SNAPSHOT_ASSET
from tests import ROOT
from tests.fleet import Up, ended, fill, running, until
from tests.flows.unattended.services import SERVICES, TOKEN, services
from tests.loopback import serving
from tests.servers import with_tables
from validation.errors import RetrainError
from validation.records import Verdict

# A busy machine takes many times as long.
pytestmark = [pytest.mark.server, pytest.mark.slow(minutes=4), pytest.mark.timeout(1800)]

SECRET = "s3cr3t-in-the-path"
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
ALERTS = AlertSettings(night_hours=0.005)


class Receiver:
    """Receives the alerts of a webhook."""

    def __init__(self) -> None:
        self.url = ""
        self.alerts: list[dict[str, Any]] = []
        self.paths: set[str] = set()

    def alert(self, name: str, text: str = "") -> dict[str, Any]:
        """Wait for an alert and return it."""
        return dict(until(lambda: next((t for t in self.alerts if t["alert"] == name and text in t["text"]), None)))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.paths.add(self.path)
            made.alerts.append(json.loads(body))
            self.send_response(204)
            self.end_headers()

    with serving(Handler) as url:
        made.url = f"{url}/hook/{SECRET}"
        yield made


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, prefect_database: Path) -> Iterator[Up]:
    """A machine with room for two trainings at once."""
    made = Up(
        tmp_path_factory.mktemp("up"),
        RETRAIN_UP__GPU_SLOTS="2",
        RETRAIN_ALERTS__WEBHOOK=receiver.url,
        RETRAIN_ALERTS__NIGHT_HOURS=str(ALERTS.night_hours),
    )
    fill(made.store)
    with_tables(made.home / "prefect", prefect_database)
    with running(made):
        yield made


@pytest.fixture(scope="module")
def first_night(machine: Up) -> dict[str, Any]:
    """A night by hand, as by the button on Prefect's page. Its trainings wait until both are running."""
    machine.hold_trainings()
    run = machine.server.create_run("retrain/nightly")
    until(lambda: machine.training_now() == ["fastai", "keras"])
    machine.let_trainings_go(waiting=True)
    return ended(machine.server, run["id"])


def test_everything_is_there_and_ready(machine: Up) -> None:
    server = machine.server
    assert server.healthy()
    assert {name: server.ask("GET", f"/work_pools/{name}")["concurrency_limit"] for name in ("cpu", "gpu")} == {
        "cpu": None,
        "gpu": 2,
    }
    assert server.has_worker("cpu")
    assert server.has_worker("gpu")
    found = server.deployments()
    assert {deployment["name"] for deployment in found.values()} == {entry["name"] for entry in DEPLOYMENTS}
    assert {deployment["status"] for deployment in found.values()} == {"READY"}
    # Where each runs on a pool of containers: as infra/deploy/images/Dockerfile names them.
    images = {deployment["name"]: deployment["job_variables"]["image"] for deployment in found.values()}
    trainings = {name: f"malaria/{name}" for name in ("fastai", "keras")}
    assert images == dict.fromkeys(images, "malaria/orchestration") | trainings


def test_it_serves_the_reports_and_the_form_leads_to_them(machine: Up) -> None:
    def served() -> str:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(machine.site, follow_redirects=True, trust_env=False, timeout=120).text
        return ""

    assert "Planned changes" in until(served)
    approval = machine.server.deployment("approve/approval")
    assert f"{machine.site}/reports/index.html" in approval["description"]


def test_the_page_is_complete_and_calls_no_other_host(machine: Up) -> None:
    address = f"http://127.0.0.1:{machine.port}"
    page = httpx.get(address, follow_redirects=True, trust_env=False, timeout=120)
    assert page.status_code == 200
    parts = [part.split('"')[0] for part in page.text.replace("href=", "src=").split('src="')[1:]]
    assert any(part.endswith(".js") for part in parts)
    assert not [part for part in parts if part.startswith(("http:", "https:", "//"))]
    for part in parts:
        if "/assets/" in part:
            assert httpx.get(address + part, trust_env=False, timeout=120).status_code == 200


def test_the_schedule_brings_runs(machine: Up) -> None:
    """With SQLAlchemy 2.1 Prefect's scheduler writes none, and says so only in the server's log."""
    scheduled = until(lambda: machine.server.runs(deployment="retrain/nightly", states=["SCHEDULED"]))
    assert "auto-scheduled" in scheduled[0]["tags"]
    assert datetime.fromisoformat(scheduled[0]["expected_start_time"]).hour == 2


@pytest.mark.parametrize(
    ("deployment", "parameters"),
    [
        ("retrain/nightly", {"models": ["random forest"]}),
        ("retrain/nightly", {"models": []}),
        ("retrain/nightly", {"unknown": 1}),
        ("retrain/nightly", {"members": 6}),
        ("retrain/nightly", {"dry_run": "perhaps"}),
        ("train/fastai", {"spec": {"model": "fastai"}}),
        ("promote/promotion", {}),
    ],
)
def test_invalid_parameters_are_refused_before_a_run_is_created(
    machine: Up, deployment: str, parameters: dict[str, Any]
) -> None:
    key = f"refused {deployment} {parameters}"
    with pytest.raises(RetrainError, match=r"409|422"):
        machine.server.create_run(deployment, parameters=parameters, key=key)
    assert machine.server.runs(key=key) == []


def test_a_night_by_hand_trains_on_the_gpu_pool_at_the_same_time_and_promotes(
    machine: Up, first_night: dict[str, Any], receiver: Receiver
) -> None:
    assert first_night["state_name"] == "Completed", first_night["state"]
    trainings = {
        name: machine.server.runs(deployment=f"train/{name}", states=["COMPLETED"]) for name in ("fastai", "keras")
    }
    assert [len(runs) for runs in trainings.values()] == [1, 1]
    for [run] in trainings.values():
        assert run["work_pool_name"] == "gpu"
        assert run["parent_task_run_id"]  # shown under the night
    records = [json.loads(p.read_text()) for p in (machine.home / "store/retraining/candidates").glob("*.json")]
    assert {member["device"] for record in records for member in record["members"]} == {"cpu"}
    alert = receiver.alert("promoted")
    assert alert["text"].startswith("malaria: promoted: ")
    decision = re.findall(rf"\(report: {machine.site}/reports/(\w+)\.html\)", alert["text"])[0]
    assert httpx.get(f"{machine.site}/reports/{decision}.html", trust_env=False, timeout=120).status_code == 200
    assert receiver.paths == {f"/hook/{SECRET}"}


def test_a_night_by_prefects_command_line_finds_nothing_new(machine: Up, first_night: dict[str, Any]) -> None:
    known = [run["id"] for run in _by_hand(machine)]
    shown = machine.run("prefect", "deployment", "run", "retrain/nightly", "--param", 'models=["fastai","keras"]')
    assert shown.returncode == 0, shown.stderr
    [run] = [run for run in _by_hand(machine) if run["id"] not in known]
    assert ended(machine.server, run["id"])["state_name"] == "Completed"
    nights = list((machine.home / "store/retraining/nights").glob("*.json"))
    assert len(nights) == 1


def test_many_notices_become_one_run_later(machine: Up) -> None:
    before = datetime.now(UTC)
    answers = [json.loads(machine.run("flows.cli", "notify", "--json").stdout) for _ in range(2)]
    assert answers[0] == answers[1]
    noticed = datetime.fromisoformat(answers[0]["at"]) - timedelta(minutes=10)
    assert before <= noticed <= datetime.now(UTC)
    machine.server.ask("DELETE", f"/flow_runs/{answers[0]['id']}")


@pytest.mark.parametrize("verdict", [Verdict.INVALID_DATA, Verdict.AWAITING_APPROVAL, Verdict.CHAMPION_UNUSABLE])
def test_every_verdict_that_needs_a_person_is_an_alert(machine: Up, receiver: Receiver, verdict: Verdict) -> None:
    nasty = 'it said "why" {{ 1 / 0 }} \\ and\nmore'
    machine.server.emit(night_event(verdict), {"prefect.resource.id": NIGHT}, {"sentence": nasty, "report": "x"})
    assert nasty in receiver.alert(verdict.value)["text"]


def test_a_run_that_is_not_heard_of_is_marked_crashed_and_told(machine: Up, receiver: Receiver) -> None:
    flow = machine.server.deployment("retrain/nightly")["flow_id"]
    state = {"type": "RUNNING", "name": "Running"}
    run = machine.server.ask("POST", "/flow_runs/", {"flow_id": flow, "name": "a-zombie", "state": state})
    resource = {"prefect.resource.id": f"prefect.flow-run.{run['id']}", "prefect.resource.name": "a-zombie"}
    apply_alerts(machine.server, ALERTS.model_copy(update={"webhook": SecretStr(receiver.url), "zombie_seconds": 10.0}))
    # The server takes a moment to load a new alert; an earlier heartbeat would not start its watchdog.
    for seconds in (1, 2, 30, 60, 120, 240):
        machine.server.emit("prefect.flow-run.heartbeat", resource)
        with contextlib.suppress(AssertionError):
            ended(machine.server, run["id"], seconds)
            break
    assert machine.server.run(run["id"])["state_type"] == "CRASHED"
    receiver.alert("zombie run", "a-zombie")
    assert "no heartbeat" in receiver.alert("failed night", "a-zombie")["text"]


def test_a_night_that_does_not_come_is_told(machine: Up, receiver: Receiver, first_night: dict[str, Any]) -> None:
    assert "0.005 hours" in receiver.alert("no night")["text"]


def test_alerts_are_brought_in_line_and_otherwise_left_alone(machine: Up, receiver: Receiver) -> None:
    same = ALERTS.model_copy(update={"webhook": SecretStr(receiver.url)})
    apply_alerts(machine.server, same)
    assert set(apply_alerts(machine.server, same).values()) == {"unchanged"}
    stale = as_json(definitions(same, None)[0])
    machine.server.ask("POST", "/automations/", {**stale, "name": f"{PREFIX}of an older version"})
    machine.server.ask("POST", "/automations/", {**stale, "name": "somebody else's"})
    done = apply_alerts(machine.server, same.model_copy(update={"night_hours": 30.0}))
    assert {name: what for name, what in done.items() if what != "unchanged"} == {
        f"{PREFIX}no night": "changed",
        f"{PREFIX}of an older version": "removed",
    }
    names = [automation["name"] for automation in machine.server.ask("POST", "/automations/filter", {})]
    assert len(names) == len(set(names))
    assert "somebody else's" in names


def test_each_service_gets_alerts_that_it_accepts(machine: Up) -> None:
    mail = {"mail_from": "night@example.org", "mail_to": "a@example.org", "token": TOKEN}
    event, nasty = night_event(Verdict.INVALID_DATA), 'it said "why" {{ 1 / 0 }} <!here> & \\ and\nmore'
    with services() as there:
        for name in SERVICES:
            settings = AlertSettings(
                webhook=f"{there.url}/{name}", service=name, **(mail if name == "sendgrid" else {}), night_hours=26
            )
            apply_alerts(machine.server, settings)
            # The server takes a moment to load a changed alert.
            for seconds in (1, 2, 30, 60, 120):
                machine.server.emit(event, {"prefect.resource.id": NIGHT}, {"sentence": nasty, "report": None})
                with contextlib.suppress(AssertionError):
                    until(partial(there.accepted.get, name), seconds)
                    break
            assert there.refused == []
            assert nasty in there.accepted[name][0]


def test_what_a_night_makes_is_an_asset_with_its_lineage(machine: Up, first_night: dict[str, Any]) -> None:
    """Read as a page reads it: from the events of Prefect's server."""
    wanted = {"event": {"name": ["prefect.asset.materialization.succeeded"]}, "order": "ASC"}

    def made() -> dict[str, set[str]]:
        found = machine.server.ask("POST", "/events/filter", {"filter": wanted, "limit": 50})["events"]
        return {
            event["resource"]["prefect.resource.id"]: {
                related["prefect.resource.id"]
                for related in event["related"]
                if related["prefect.resource.role"] == "asset"
            }
            for event in found
        }

    candidates = {f"{CANDIDATE_ASSET}{model}" for model in ("fastai", "keras")}
    assert until(lambda: {**made()} if REPORT_ASSET in made() else None) == {
        SNAPSHOT_ASSET: set(),
        **{candidate: {SNAPSHOT_ASSET} for candidate in candidates},
        CHAMPION_ASSET: candidates,
        REPORT_ASSET: candidates,
    }


def test_a_dry_run_by_hand_looks_at_the_data_only(machine: Up, first_night: dict[str, Any]) -> None:
    nights = sorted((machine.home / "store/retraining/nights").glob("*.json"))
    parameters = {"dry_run": True, "members": 1, "models": ["keras"]}
    run = ended(machine.server, machine.server.create_run("retrain/nightly", parameters=parameters)["id"])
    assert run["state_name"] == "Completed", run["state"]
    assert run["name"].startswith("dry run")
    assert sorted((machine.home / "store/retraining/nights").glob("*.json")) == nights
    ran = machine.server.ask("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert {task["name"].rpartition("-")[0] for task in ran} == {"pull", "validate"}


def test_killed_in_the_middle_of_a_training_nothing_is_left_and_started_again_it_goes_on(
    machine: Up, first_night: dict[str, Any]
) -> None:
    server = machine.server
    fill(machine.store, 8, first=100)
    machine.hold_trainings()
    night = server.create_run("retrain/nightly", parameters={"models": ["keras"]})
    until(machine.training_now)
    until(lambda: any("tasks.training.child" in command for command in machine.processes()))
    ours = set(server.deployments())
    _add_what_is_not_in_the_file(machine)
    alerts = server.ask("POST", "/automations/count", {})
    machine.end(signal.SIGKILL)
    until(lambda: not machine.processes())

    machine.let_trainings_go(waiting=False)
    machine.start()
    assert server.run(night["id"])["state_name"] == INTERRUPTED
    [again] = server.runs(key=f"again-{night['id']}")
    assert again["parameters"] == {"models": ["keras"]}
    assert ended(server, again["id"])["state_name"] == "Completed"
    assert len(list((machine.home / "store/retraining/nights").glob("*.json"))) == 2
    # No duplicates; what is not in prefect.yaml is gone, except other projects' deployments.
    found = server.deployments()
    assert set(found) == {*ours, "retrain/not-ours"}
    [schedule] = found["retrain/nightly"]["schedules"]
    assert (schedule["slug"], schedule["active"]) == ("nightly", False)
    assert server.ask("POST", "/automations/count", {}) == alerts
    assert len(server.ask("POST", "/work_pools/cpu/workers/filter", {})) == 1


def test_it_stops_cleanly_and_leaves_no_process_and_no_secret(machine: Up) -> None:
    assert machine.process is not None
    assert machine.end(signal.SIGINT) == 0
    assert machine.processes() == []
    assert not machine.server.healthy()
    logs = [machine.folder / "up.log", *(machine.home / "logs").iterdir()]
    assert len(logs) >= 4
    for log in logs:
        assert SECRET not in log.read_text(errors="replace"), log
    shown = machine.run("flows.cli", "settings", "--json")
    assert SECRET not in shown.stdout
    assert "****" in shown.stdout


def _by_hand(machine: Up) -> list[dict[str, Any]]:
    """Return the nights that were not scheduled."""
    found = machine.server.runs(deployment="retrain/nightly")
    return [run for run in found if "auto-scheduled" not in run["tags"]]


def _add_what_is_not_in_the_file(machine: Up) -> None:
    """Add a schedule and a deployment of an older prefect.yaml, and one of another project; pause the schedule."""
    server = machine.server
    nightly = server.deployment("retrain/nightly")
    [schedule] = nightly["schedules"]
    path = f"/deployments/{nightly['id']}/schedules"
    server.ask("PATCH", f"{path}/{schedule['id']}", {"active": False})
    weekly = {"slug": "weekly", "schedule": {"cron": "0 3 * * 0", "timezone": "UTC"}, "active": True}
    server.ask("POST", path, [weekly])
    common = {"flow_id": nightly["flow_id"], "entrypoint": nightly["entrypoint"]}
    server.ask("POST", "/deployments/", {**common, "name": "older", "tags": ["malaria-retraining"]})
    server.ask("POST", "/deployments/", {**common, "name": "not-ours"})
    assert len(server.deployment("retrain/nightly")["schedules"]) == 2
