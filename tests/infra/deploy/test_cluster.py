"""The how-to's block for Kubernetes, line by line against a real API server, and the jobs that come of it.

Real: the API server and its etcd, kubectl, `make deploy`, Prefect's server with a login, its command line, and its
Kubernetes worker with the arguments, the environment and the role that the cluster was given for it. There is no node,
so the test starts the worker and says how a job went.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.deploy.kubernetes.make import default
from infra.prefect_api import PrefectServer
from tests import ROOT
from tests.fleet import ended, until
from tests.flows.faults.conftest import Prefect
from tests.servers import Cluster, kubernetes_server, with_tables
from tests.test_snippets import blocks
from validation.records import TrainSpec

pytestmark = [pytest.mark.longest, pytest.mark.server, pytest.mark.slow(minutes=2), pytest.mark.timeout(1_800)]

LOGIN = "admin:a-password-of-nobody"
SPEC = TrainSpec(model="fastai", member=1, split="5" * 24, side=16, seed=1, recipe={"epochs": 2}, recipe_version=1)

# Prefect's command line, which leaves what the worker sends to the API server in a file.
PREFECT = """
import json, pathlib, sys
from kubernetes_asyncio.client import BatchV1Api
from prefect.cli import app

create, sent = BatchV1Api.create_namespaced_job, pathlib.Path(sys.argv.pop(1))

async def recorded(self, namespace, body, **options):
    text = json.dumps(body)
    made = await create(self, namespace, body, **options)
    sent.with_suffix(".part").write_text(text)
    sent.with_suffix(".part").rename(sent)
    return made

BatchV1Api.create_namespaced_job = recorded
app()
"""


@dataclass(frozen=True)
class Place:
    """An API server and a Prefect server after the how-to's lines."""

    folder: Path
    cluster: Cluster
    server: PrefectServer
    environment: dict[str, str]

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-euo", "pipefail", "-c", line]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )


def lines() -> list[str]:
    """The commands of the block, as a person types them."""
    [block] = [block for block in blocks("bash") if "kubectl apply" in block.text]
    return block.text.replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    (folder / "cluster").mkdir()
    with_tables(folder / "prefect", prefect_database)
    with kubernetes_server(folder / "cluster") as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_API_AUTH_STRING", LOGIN)
        prefect = Prefect(folder / "prefect")
        patch.undo()
        ours = {
            "PREFECT_API_URL": prefect.url,
            "PREFECT_API_AUTH_STRING": LOGIN,
            "PREFECT_HOME": str(folder / "home"),
            "PYTHONPATH": str(ROOT),
            "RETRAIN_HOME": str(folder / "retrain"),
            "DO_NOT_TRACK": "1",
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        environment |= cluster.environment() | ours
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        try:
            yield Place(folder, cluster, PrefectServer(prefect.url, auth=LOGIN), environment)
        finally:
            prefect.close()


@pytest.fixture(scope="module")
def laid(place: Place) -> Place:
    """The place after the block, in whose last line a night is asked for."""
    (place.folder / "identities.env").write_text(f"AWS_ACCESS_KEY_ID=a\nPREFECT_API_AUTH_STRING={LOGIN}\n")
    # Here the environment is there already, and not where make looks for it.
    make = f"make --directory={ROOT} --old-file=install VENV={sys.prefix} "
    for line in lines():
        here = line.replace("https://prefect.example/api", place.environment["PREFECT_API_URL"])
        done = place.run(here.replace("make deploy", f"{make} deploy"))
        assert done.returncode == 0, (line, done.stdout[-2_000:], done.stderr[-2_000:])
    return place


def given(place: Place, entry: dict[str, Any]) -> str:
    """Return the value of a container's variable, as a node finds it."""
    source = entry.get("valueFrom", {})
    if key := source.get("configMapKeyRef"):
        return str(place.cluster.ask("get", "configmap", key["name"])["data"][key["key"]])
    if key := source.get("secretKeyRef"):
        return base64.b64decode(place.cluster.ask("get", "secret", key["name"])["data"][key["key"]]).decode()
    return str(entry["value"]) if not source else {"metadata.namespace": "default"}[source["fieldRef"]["fieldPath"]]


def as_the_worker(place: Place, account: str) -> Path:
    """Return the configuration of a client that is the workers' account and has no other rights."""
    request = place.folder / "token.json"
    request.write_text(json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}))
    path = f"/api/v1/namespaces/default/serviceaccounts/{account}/token"
    made = place.run(f"kubectl create --raw {path} -f {request}")
    assert made.returncode == 0, made.stderr
    config = json.loads(place.cluster.config.read_text())
    config["users"][0]["user"]["token"] = json.loads(made.stdout)["status"]["token"]
    (place.folder / account).write_text(json.dumps(config))
    return place.folder / account


@contextmanager
def working(place: Place, pool: str) -> Iterator[Path]:
    """Have a worker of a pool, as its deployment says; yield where the job that it sends is left."""
    sent = place.folder / f"{pool}-sent.json"
    pod = place.cluster.ask("get", "deployment", f"malaria-worker-{pool}")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    program, *arguments = container["args"]
    assert program == "prefect"
    ours = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    environment = {name: value for name, value in place.environment.items() if name not in ours}
    environment |= {entry["name"]: given(place, entry) for entry in container["env"]}
    environment |= {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_HOME": str(place.folder / pool)}
    environment["KUBECONFIG"] = str(as_the_worker(place, pod["serviceAccountName"]))
    with (place.folder / f"{pool}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PREFECT, sent, *arguments], cwd=place.folder, env=environment, stdout=log, stderr=log
        )
        try:
            yield sent
        finally:
            process.kill()
            process.wait()
        assert b"Forbidden" not in (place.folder / f"{pool}.log").read_bytes()


def lost(sent: Any, stored: Any, at: str = "job") -> list[str]:
    """Where a server has left out or changed what it was sent; what it has added is its own affair."""
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(sent, dict) and isinstance(stored, dict):
        pairs = [(name, value, stored.get(name)) for name, value in sent.items()]
    elif isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        pairs = [(str(number), *pair) for number, pair in enumerate(zip(sent, stored, strict=True))]
    # A quantity is kept as text; nothing is not kept.
    elif sent not in (stored, None, {}, []) and not (".resources." in at and str(sent) == stored):
        return [f"{at}: {sent!r} is {stored!r}"]
    return [found for name, was, has in pairs for found in lost(was, has, f"{at}.{name}")]


def the_job(place: Place, run: str, sent: Path) -> dict[str, Any]:
    """Wait for the job of a run, and return it as the server has it; it is all that was sent."""
    until(sent.exists)
    [job] = place.cluster.ask("get", "jobs", f"--selector=prefect.io/flow-run-id={run}")["items"]
    assert lost(json.loads(sent.read_text()), job) == []
    return dict(job)


def check(place: Place, job: dict[str, Any], pool: str, image: str) -> None:
    """What a job of a pool needs in the cluster is there, and it says what the deployment says."""
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == f"registry.example/malaria/{image}"
    assert container["args"] == ["prefect", "flow-run", "execute"]
    [claim] = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] == "data"]
    assert claim == f"malaria-{pool}"
    assert place.cluster.ask("get", "pvc", claim)["spec"]["resources"]["requests"] == {"storage": "20Gi"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"data": "/data", "shm": "/dev/shm"}
    [given, secret] = container["envFrom"]
    config = place.cluster.ask("get", "configmap", given["configMapRef"]["name"])["data"]
    assert config["RETRAIN_TRAINING__WHERE"] == "deployment"
    assert set(place.cluster.ask("get", "secret", secret["secretRef"]["name"])["data"]) == {
        "AWS_ACCESS_KEY_ID",
        "PREFECT_API_AUTH_STRING",
    }
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]["value"] == "30"
    assert environment["PREFECT_API_URL"]["value"].endswith("/api")
    # Who may read a job reads no password in it.
    reference = {"secretKeyRef": {"name": "malaria", "key": "PREFECT_API_AUTH_STRING"}}
    assert environment["PREFECT_API_AUTH_STRING"]["valueFrom"] == reference
    assert LOGIN not in json.dumps(job)
    assert pod["securityContext"]["runAsUser"] == 10001


def test_a_night_becomes_a_job_and_crashes_when_that_is_deleted(laid: Place) -> None:
    [run] = laid.server.runs(states=["SCHEDULED", "PENDING"], deployment="retrain/nightly")
    with working(laid, "cpu") as sent:
        job = the_job(laid, run["id"], sent)
        check(laid, job, "cpu", "orchestration")
        [container] = job["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == {"cpu": "1", "memory": "3Gi"}
        done = laid.run(f"kubectl delete job {job['metadata']['name']}")
        assert done.returncode == 0, done.stderr
        assert ended(laid.server, run["id"])["state"]["message"] == "Kubernetes job was deleted"


def test_a_training_becomes_a_job_with_a_gpu_and_crashes_with_it(laid: Place) -> None:
    run = laid.server.create_run("train/fastai", parameters={"spec": SPEC.model_dump(mode="json")})
    with working(laid, "gpu") as sent:
        job = the_job(laid, run["id"], sent)
        check(laid, job, "gpu", "fastai")
        pod = job["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert container["resources"] == {
            "requests": {"cpu": "2", "memory": "8Gi"},
            "limits": {"nvidia.com/gpu": "1"},
        }
        assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]
        # As the controller of jobs says it when a node has gone.
        job["status"] = {"failed": 1}
        (laid.folder / "failed.json").write_text(json.dumps(job))
        path = f"/apis/batch/v1/namespaces/default/jobs/{job['metadata']['name']}/status"
        done = laid.run(f"kubectl replace --raw {path} -f failed.json")
        assert done.returncode == 0, done.stderr
        assert ended(laid.server, run["id"])["state_type"] == "CRASHED"


def test_a_worker_may_make_jobs_and_read_no_secret(laid: Place) -> None:
    account = "--as=system:serviceaccount:default:malaria-worker"
    for asked, answer in {
        "create jobs": "yes",
        "get pods --subresource=log": "yes",
        "get secrets": "no",
        "create pods": "no",
        "get jobs --namespace=kube-system": "no",
    }.items():
        assert laid.run(f"kubectl auth can-i {asked} {account}").stdout.strip() == answer, asked


def test_a_field_that_is_lost_is_found(place: Place) -> None:
    """In Prefect's own template two fields of the job stand in the pod, where the server drops or refuses them."""
    from prefect.utilities.templating import apply_values

    filled = apply_values(default()["job_configuration"], {"name": "default", "image": "prefect"})["job_manifest"]
    filled = {**filled, "metadata": {"name": "default"}}
    (place.folder / "default.json").write_text(json.dumps(filled))
    assert "completions" in place.run("kubectl create -f default.json").stderr
    assert place.run("kubectl create -f default.json --validate=false").returncode == 0
    stored = place.cluster.ask("get", "job", "default")
    assert [found.partition(":")[0] for found in lost(filled, stored)] == [
        "job.spec.template.spec.parallelism",
        "job.spec.template.spec.completions",
    ]
